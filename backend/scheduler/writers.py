"""Without same-step sharing: rows show their prefixes to the cache when they are written, and others wait for that."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.cache.base import Namespace
from stemma.backend.scheduler.branch import Branch
from stemma.backend.scheduler.policy import PREFIX_STEP, common_prefix

if TYPE_CHECKING:
    from stemma.backend.scheduler.admit import Memory


class Writers:
    """The rows that write a prefix in the step that is being planned, or wrote one in the last."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._branches: list[tuple[Branch, int]] = []
        self._sorted: dict[Namespace, list[bytes]] = {}  # what they write, in depth-first order

    def add(self, branch: Branch, end: int) -> None:
        self._branches.append((branch, end))
        insort(self._sorted.setdefault(branch.program.namespace, []), branch.ids(end).tobytes())

    def commit(self) -> None:
        """A new step: what was written in the last is in the pool, unless that step is still under way."""
        ahead, written = self._memory.rows.ahead, self._branches
        self._branches = []
        self._sorted.clear()
        for branch, end in written:
            if branch.row >= 0 and ahead[branch.row]:
                self.add(branch, end)
            elif branch.row >= 0:
                self._memory.commit(branch)

    def write_for(self, branch: Branch) -> bool:
        """Whether a row writes at least PREFIX_STEP tokens that the branch needs and the cache does not have."""
        written = self._sorted.get(branch.program.namespace)
        if not written:
            return False
        memory, ids = self._memory, branch.ids()
        limit = memory.match_limit(branch, len(ids))
        cached = memory.cache.match(ids, limit, branch.program.namespace).length
        at = bisect_left(written, ids.tobytes())
        near = (common_prefix(ids, np.frombuffer(other, np.int32)) for other in written[max(at - 1, 0) : at + 1])
        return min(max(near), limit) - cached >= PREFIX_STEP
