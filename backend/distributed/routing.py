"""Which replica a program goes to. Pure Python, no processes: the front process and the simulator use the same code.

The unit of routing is the program: all its branches run where its prefixes are. `choose` is a pure function of the
loads, of how much of the program's beginning each replica is believed to hold, and of a turn; `Router` keeps what it
needs to know between calls: open programs, last reported loads, and a summary of the prefixes sent to each replica.

The rule of `prefix` follows SGLang's cache-aware router: a good enough prefix match decides, unless the loads are too
unequal. The summary here is a table of hashed blocks, not a tree of text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.backend.core import Int32

POLICIES = ("round_robin", "least_loaded", "prefix")
BLOCK = 64  # tokens of one block of the summary
MAX_BLOCKS = 64  # blocks of a prompt that are looked at


@dataclass(slots=True)
class ReplicaLoad:
    """programs: sent there and not finished. sent: in all. branches, received: branches running and waiting, and
    programs that had reached it, as the replica last said."""

    programs: int = 0
    sent: int = 0
    branches: int = 0
    received: int = 0

    @property
    def work(self) -> int:
        """What is compared: branches known to be there, and one for each program that is on its way."""
        return self.branches + self.sent - self.received


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """match: least share of the beginning that a replica must hold for `prefix` to prefer it.
    unequal, ratio: loads are too unequal when the largest exceeds the smallest by both."""

    policy: str = "prefix"
    match: float = 0.3
    unequal: int = 32
    ratio: float = 1.5

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"routing policy must be one of {', '.join(POLICIES)}, got {self.policy!r}")


def choose(rule: RoutingRule, loads: Sequence[ReplicaLoad], matched: Sequence[float], turn: int) -> int:
    """The index of the replica. `matched`: share of the program's beginning at each, 0 to 1; `turn`: a running number.

    Ties go round: the first candidate at or after `turn`.
    """
    n = len(loads)
    if rule.policy == "round_robin":
        return turn % n
    work = [load.work for load in loads]
    if rule.policy == "prefix" and not (max(work) - min(work) > rule.unequal and max(work) > rule.ratio * min(work)):
        best = max(matched)
        if best >= rule.match:
            return min((k for k in range(n) if matched[k] == best), key=lambda k: (work[k], (k - turn) % n))
    return min(range(n), key=lambda k: (work[k], (k - turn) % n))


class PrefixSummary:
    """Which replicas have seen which beginnings: chained hashes of blocks, at most `size`, the oldest dropped."""

    def __init__(self, replicas: int, size: int = 1 << 18) -> None:
        self.replicas, self.size = replicas, size
        self._seen: OrderedDict[int, int] = OrderedDict()  # block chain -> bits of the replicas

    @staticmethod
    def _chain(ids: Int32) -> list[int]:
        """Hashes of the whole blocks of a beginning, each including those before it."""
        data = np.ascontiguousarray(ids[: BLOCK * MAX_BLOCKS], np.int32).tobytes()
        step, value, out = 4 * BLOCK, 0, []
        for at in range(0, len(data) - step + 1, step):
            value = hash((value, data[at : at + step]))
            out.append(value)
        return out

    def matched(self, ids: Int32) -> list[float]:
        """Share of the beginning that each replica has seen."""
        found = [0] * self.replicas
        chain = self._chain(ids)
        alive = (1 << self.replicas) - 1
        for k, value in enumerate(chain):
            alive &= self._seen.get(value, 0)
            if not alive:
                break
            for replica in range(self.replicas):
                if alive >> replica & 1:
                    found[replica] = k + 1
        return [n / len(chain) for n in found] if chain else [0.0] * self.replicas

    def note(self, replica: int, ids: Int32) -> None:
        """This beginning was sent to that replica."""
        for value in self._chain(ids):
            self._seen[value] = self._seen.pop(value, 0) | 1 << replica
        while len(self._seen) > self.size:
            self._seen.popitem(last=False)

    def forget(self, replica: int) -> None:
        """A replica was flushed or restarted."""
        for value in list(self._seen):
            self._seen[value] &= ~(1 << replica)


class Router:
    """Routes programs to replicas; a program stays where it began until it is finished."""

    def __init__(self, replicas: int, rule: RoutingRule | None = None) -> None:
        if replicas < 1:
            raise ValueError(f"replicas must be >= 1, got {replicas}")
        self.rule = rule or RoutingRule()
        self.loads = [ReplicaLoad() for _ in range(replicas)]
        self.summary = PrefixSummary(replicas)
        self.where: dict[str, int] = {}
        self._turn = 0

    def route(self, program: str, beginning: Int32) -> int:
        """The replica of a program; `beginning` is what is known of its first prompt."""
        known = self.where.get(program)
        if known is not None:
            return known
        looks = self.rule.policy == "prefix" and len(self.loads) > 1
        matched = self.summary.matched(beginning) if looks else [0.0] * len(self.loads)
        replica = choose(self.rule, self.loads, matched, self._turn)
        self._turn += 1
        if looks:
            self.summary.note(replica, beginning)
        self.where[program] = replica
        self.loads[replica].programs += 1
        self.loads[replica].sent += 1
        return replica

    def report(self, replica: int, branches: int, received: int) -> None:
        """What a replica says of itself: branches running and waiting, and how many programs have reached it so far."""
        load = self.loads[replica]
        load.branches, load.received = branches, received

    def finished(self, program: str) -> None:
        replica = self.where.pop(program, None)
        if replica is not None:
            self.loads[replica].programs -= 1
