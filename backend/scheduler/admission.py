"""Whether there is memory for one more row, and which row gives way when there is none.

Admission looks at the whole future at once (the past-future scheduler of LightLLM, ASPLOS 2025): when rows end one
after the other, the most slots are in use at the moment before one of them ends. With the rows sorted by what they have
left, longest first, that is

    peak = shared + max over i of (held[0] + ... + held[i] + left[i] * (i + 1))

`held` are the slots that a row alone needs for the tokens it has, `shared` the pinned rest of the prefix cache, each
slot once, however many rows use it. `left` is how many tokens a row is expected to add: never more than max_new_tokens
and, where it is known, the longest match of its constraint; within that what its program's `expected_len` says, or else
what outputs of the same kind (constraint, max_new_tokens, stop strings) have lately been.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import Int64
from stemma.backend.scheduler.branch import Branch, Work

if TYPE_CHECKING:
    from stemma.backend.cache.base import PrefixCache
    from stemma.backend.cache.slots import SlotAllocator
    from stemma.backend.scheduler.rows import Rows

HEADROOM = 8  # tokens that every row is expected to add at least, unless it must end sooner
UNKNOWN = 0.5  # share of what is allowed that an output is expected to have when nothing is known
UNKNOWN_MOST = 4096  # tokens, of such an output
QUANTILE = 0.75  # of the lengths seen: as likely as that, an output is not longer than expected
KINDS, SEEN, ENOUGH = 256, 64, 4  # kinds remembered, lengths of each, and how many of them are worth believing


class Lengths:
    """What outputs of one kind have lately been long. Costs O(log n) for each output."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[int, tuple[deque[int], list[int]]] = OrderedDict()  # in order seen, and sorted

    def observe(self, kind: int, length: int) -> None:
        seen, ordered = self._kinds.setdefault(kind, (deque(), []))
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KINDS:
            self._kinds.popitem(last=False)
        if len(seen) == SEEN:
            ordered.remove(seen.popleft())
        seen.append(length)
        insort(ordered, length)

    def expect(self, kind: int, produced: int, most: int) -> int:
        """How long an output will be that has `produced` tokens already and may have `most`."""
        _, ordered = self._kinds.get(kind, ((), ()))
        first = bisect_right(ordered, produced)
        if len(ordered) < ENOUGH:
            expected = produced + int(min((most - produced) * UNKNOWN, UNKNOWN_MOST))
        elif first == len(ordered):  # longer than any
            expected = produced + max(produced // 2, HEADROOM)
        else:
            expected = ordered[first + int((len(ordered) - 1 - first) * QUANTILE)]
        return min(expected, most)


class Admission:
    """The forecast of one step. `stale` when rows have come or gone otherwise than by `enter`."""

    def __init__(self, rows: Rows, slots: SlotAllocator, cache: PrefixCache, conservativeness: float) -> None:
        self._rows, self._slots, self._cache = rows, slots, cache
        self.conservativeness = conservativeness
        self.lengths = Lengths()
        self.stale = True
        self._held: Int64 = np.empty(0, np.int64)
        self._left: Int64 = np.empty(0, np.int64)
        self._own_cached = 0  # tokens of the cache that one row alone pins
        self._sum = 0  # of what is held and left

    # -- what is expected ------------------------------------------------------------------------------------------

    def expect(self, branch: Branch, work: Work) -> tuple[int, int]:
        """The sequence length that the branch is expected to end with, and the longest that it may."""
        if work.params is None:
            return work.limit, work.limit
        most = work.limit if work.longest is None else min(work.limit, work.prompt_len + work.longest)
        produced = branch.length - work.prompt_len
        told = branch.program.expected_len
        if told is not None and produced < told:
            return min(work.prompt_len + told, most), most
        return work.prompt_len + self.lengths.expect(work.kind, produced, most - work.prompt_len), most

    def _remaining(self, length: Int64, expected: Int64, most: Int64) -> Int64:
        wanted = np.ceil((expected - length) * self.conservativeness).astype(np.int64)
        return np.clip(np.maximum(wanted, HEADROOM), 0, np.maximum(most - length, 0))

    def own(self, branch: Branch) -> int:
        """Slots that would be nobody's if the row gave way."""
        rows, row = self._rows, branch.row
        return self._cache.own(branch.handle) + int(rows.computed[row] - rows.tree_len[row])

    def refresh(self, running: list[Branch]) -> None:
        """Forecast what is running."""
        rows = self._rows
        index = np.fromiter((b.row for b in running), np.int64, len(running))
        length = rows.length[index].astype(np.int64)
        for k in np.flatnonzero(length >= rows.expected[index]).tolist():  # longer than expected: expect more
            branch, row = running[k], int(index[k])
            if branch.work is not None and rows.sample[row]:
                rows.expected[row], rows.most[row] = self.expect(branch, branch.work)
        cached = self._cache.own
        own = np.fromiter((cached(b.handle) for b in running), np.int64, len(running))
        self._held = length - rows.tree_len[index] + own
        self._left = self._remaining(length, rows.expected[index].astype(np.int64), rows.most[index].astype(np.int64))
        self._own_cached = int(own.sum())
        self._sum = int(self._held.sum() + self._left.sum())
        self.stale = False

    def fits(self, branch: Branch, work: Work, extend: int, running: list[Branch]) -> bool:
        """Whether the rows, and this one with `extend` tokens that are not cached, all reach their ends without
        anybody being retracted, as far as can be foreseen. Its cached prefix is locked already."""
        if self.stale or self._cache.joins(branch.handle):
            self.refresh(running)
        expected, most = self.expect(branch, work)
        one = lambda value: np.array([value], np.int64)  # noqa: E731
        left = int(self._remaining(one(branch.length), one(expected), one(most))[0])
        shared = self._cache.size - self._cache.evictable - self._own_cached
        if shared + self._sum + extend + left > self._slots.total:
            held_all, left_all = np.append(self._held, extend), np.append(self._left, left)
            if shared + peak(held_all, left_all) > self._slots.total:
                return False
        self._held, self._left = np.append(self._held, extend), np.append(self._left, left)
        self._sum += extend + left
        return True


def peak(held: Int64, left: Int64) -> int:
    """The most slots that rows need at once which hold so many and still add so many, each until it ends."""
    order = np.argsort(-left, kind="stable")
    return int((np.cumsum(held[order]) + left[order] * np.arange(1, len(order) + 1)).max(initial=0))


def seniority(branch: Branch) -> tuple[int, int, int]:
    """The smallest never gives way, so it always advances: the oldest branch of the oldest program of the highest
    priority."""
    return (-branch.program.priority, branch.program.serial, branch.serial)


def choose_victim(admission: Admission, running: list[Branch], keep: Branch | None, planned: set[int]) -> Branch | None:
    """The row that gives way: of the lowest priority, then the one that loses the fewest tokens, but some (a row whose
    tokens others use too frees nothing). Never the senior one, `keep`, one that is senior to `keep`, or a planned one.
    """
    if len(running) < 2:
        return None
    senior = min(running, key=seniority) if keep is None else keep
    limit = seniority(senior)
    found: Branch | None = None
    best: tuple[int, bool, int, tuple[int, ...]] | None = None
    for branch in running:
        age = seniority(branch)
        if branch is keep or branch.row in planned or age <= limit:
            continue
        own = admission.own(branch)
        rank = (branch.program.priority, own == 0, own, tuple(-a for a in age))
        if best is None or rank < best:
            found, best = branch, rank
    return found
