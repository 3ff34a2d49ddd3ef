"""The order of the waiting queue.

Every policy is a key for each waiting branch, kept in a heap. Keys that depend on the prefix cache or on what a program
has had so far may be out of date: the head is looked at again before it is handed out, so that a step costs a few
looks, however many branches wait. A branch that is admitted tells its neighbours (in depth-first order of the waiting
prompts' trie) that they share a prefix with it: nobody else can share more, so longest prefix first stays exact (but
for a token, where one prompt is the beginning of another) while families are admitted.

    fcfs        first come, first served
    lpm         longest cached prefix first (SGLang, arXiv 2312.07104), ties as queued
    dfs-weight  depth-first in the prefix cache, the child that more waiting branches lie under first (SGLang)
    lof         longest output first, by max_new_tokens
    random      in an order drawn from the seed when a branch is queued
    program     finish programs: the place of a program is its arrival, put back by half of the work that is known to
                be left of it; among near places the longest cached prefix first, in steps of 32 tokens; then the
                older program; siblings as queued

Work left is what the program's known generations may still produce (max_new_tokens of all of its graph that has come,
less what is over) and the tokens of the branch's prompt that are not cached. Places are counted in arrivals of programs
and branches, one for each two tokens: a small program passes larger ones that came shortly before it, and none waits
for more than so many later ones, unlike in a plain shortest-remaining-first order. A program whose rest is not known is
taken to want a thirty-second of what it has had (attained service, as in Autellix, arXiv 2502.13965).

Priorities come before all of this, higher first. Nobody starves: of every `AGE_SHARE` branches that a priority admits
one is its longest waiting, and of every `PRIORITY_SHARE` admitted in all one is the longest waiting of all. So a branch
that `p` others wait longer than is admitted with at most AGE_SHARE * (p + 1) admissions of its priority, and at most
PRIORITY_SHARE * (p + 1) in all, whatever comes after it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Any

from stemma.backend.cache.base import Namespace, PrefixCache
from stemma.backend.core import Int32
from stemma.backend.scheduler.branch import Branch

POLICIES = ("program", "lpm", "fcfs", "dfs-weight", "random", "lof")
AGE_SHARE = 16  # of so many branches that a priority admits, one is its longest waiting
PRIORITY_SHARE = 64  # of so many branches admitted, one is the longest waiting of all, whatever its priority
LOOK = 32  # most entries looked at again before a head is handed out
NEAR = 512  # arrivals; places of `program` that differ by less are near
ATTAINED_SHARE = 32  # of what a program whose rest is unknown has had, one in so many is taken to be left
PER_ARRIVAL = 2  # tokens of work that put a program back by one arrival
PREFIX_STEP = 32  # tokens; `program` takes prefixes that differ by less for equally long
AT_ONCE = 128  # `dfs-weight` orders so few anew in every step that admits, more when an eighth has been admitted
SNAPSHOT = 1024  # most waiting branches of a priority that `dfs-weight` orders at once, the longest waiting

Key = tuple[float, ...]
_LAST = math.inf  # behind all that have a place


def common_prefix(a: Int32, b: Int32) -> int:
    """Length of the common prefix of two id arrays."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    at = int(differs.argmax()) if n else 0
    return at if n and differs[at] else n


class Entry:
    """A waiting branch and its place. `serial` orders by age: a retracted branch keeps what it had."""

    __slots__ = ("aged", "alive", "branch", "draw", "ids_key", "key", "matched", "priority", "serial", "stamp")

    def __init__(self, branch: Branch, serial: int, priority: int, draw: float) -> None:
        self.branch, self.serial, self.priority, self.draw = branch, serial, priority, draw
        self.alive = True
        self.aged = False  # stands in the heap of ages
        self.matched = 0  # tokens believed to be cached
        self.key: Key = ()
        self.stamp = -1  # of its valid item in the heap of keys
        self.ids_key = b""


class Line:
    """The waiting branches of one priority."""

    def __init__(self, rank: Callable[[Entry], Key]) -> None:
        self._rank = rank
        self._stamps = itertools.count()
        self._heap: list[tuple[Key, int, Entry]] = []  # (key, stamp, entry); stale where the entry has another stamp
        self.ages: list[tuple[int, int, Entry]] = []  # (serial, stamp, entry)
        self.count = 0
        self.overtaken = 0  # admissions since the longest waiting was admitted
        self.fresh = 0  # branches queued since places in depth-first order were given
        self.gone = 0  # and branches admitted since
        self.placed = 0  # branches with such a place

    def add(self, entry: Entry) -> None:
        self.count += 1
        self.enter(entry)

    def enter(self, entry: Entry) -> None:
        """Put an entry in its places (again, if it was set aside)."""
        entry.alive = True
        if not entry.aged:
            entry.aged = True
            heapq.heappush(self.ages, (entry.serial, next(self._stamps), entry))
        self.push(entry, self._rank(entry))

    def push(self, entry: Entry, key: Key) -> None:
        entry.key, entry.stamp = key, next(self._stamps)
        heapq.heappush(self._heap, (key, entry.stamp, entry))

    def move(self, entry: Entry) -> None:
        """The entry's key may have changed."""
        key = self._rank(entry)
        if entry.alive and key != entry.key:
            self.push(entry, key)

    def oldest(self) -> Entry | None:
        while self.ages and not self.ages[0][2].alive:
            heapq.heappop(self.ages)[2].aged = False
        return self.ages[0][2] if self.ages else None

    def longest_waiting(self, n: int) -> list[Entry]:
        return [entry for _, _, entry in heapq.nsmallest(n, self.ages) if entry.alive]

    def head(self, look: Callable[[Entry], None]) -> Entry | None:
        """Whose turn it is. `look` brings an entry's facts up to date."""
        if self.overtaken >= AGE_SHARE - 1:
            return self.oldest()
        heap = self._heap
        for looked in range(LOOK + 1):
            while heap and not (heap[0][2].alive and heap[0][1] == heap[0][2].stamp):
                heapq.heappop(heap)
            if not heap:
                return None
            entry = heap[0][2]
            if looked == LOOK:
                break
            look(entry)
            key = self._rank(entry)
            if key == entry.key:
                return entry
            heapq.heappop(heap)
            self.push(entry, key)
        return heap[0][2]

    def compact(self) -> None:
        """Drop stale items when most are."""
        if len(self._heap) > 64 and len(self._heap) > 4 * self.count:
            self._heap = [item for item in self._heap if item[2].alive and item[1] == item[2].stamp]
            heapq.heapify(self._heap)
        if len(self.ages) > 64 and len(self.ages) > 4 * self.count:
            for *_, entry in self.ages:
                entry.aged = entry.alive
            self.ages = [item for item in self.ages if item[2].alive]
            heapq.heapify(self.ages)


class WaitingQueue:
    """The branches that wait for a row, in the order of a policy. A collection of them; iterating gives no order.

    `limit(branch, length)` is how many of its tokens may come from the cache. Costs O(log n) comparisons and, where the
    policy looks at prefixes, one cache lookup for each branch that is queued or handed out.
    """

    def __init__(
        self, policy: str, cache: PrefixCache, limit: Callable[[Branch, int], int], seed: int = 0, radix: bool = True
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        self.policy = policy if radix or policy not in ("lpm", "dfs-weight") else "fcfs"
        self._cache, self._limit = cache, limit
        self._random = random.Random(seed)
        self._entries: dict[Branch, Entry] = {}
        self._lines: dict[int, Line] = {}
        self._best: list[int] = []  # priorities in use, the highest last
        self._serials = itertools.count(1)
        self._overtaken = 0  # admissions since the longest waiting of all was admitted
        self._by_prefix = radix and policy in ("lpm", "program")
        self._sorted: dict[Namespace, list[tuple[bytes, int, Entry]]] = {}  # depth-first order of the waiting prompts
        self._aside: list[Entry] = []
        self._rank: Callable[[Entry], Key] = {
            "fcfs": lambda e: (e.serial,),
            "lpm": lambda e: (-e.matched, e.serial),
            "lof": lambda e: (-_new_tokens(e.branch), e.serial),
            "random": lambda e: (e.draw,),
            "program": _program_key,
            "dfs-weight": lambda e: (e.draw, e.serial),
        }[self.policy]

    # -- a collection ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Branch]:
        return iter(list(self._entries))

    def __contains__(self, branch: object) -> bool:
        return branch in self._entries

    # -- change ----------------------------------------------------------------------------------------------------

    def add(self, branch: Branch) -> None:
        """Queue a branch: at the end, or where it was if its work has waited before."""
        work = branch.work
        assert work is not None and branch not in self._entries
        if not work.queued:
            work.queued = next(self._serials)
        entry = Entry(branch, work.queued, branch.program.priority, self._random.random())
        self._entries[branch] = entry
        line = self._lines.get(entry.priority)
        if line is None:
            line = self._lines[entry.priority] = Line(self._rank)
            insort(self._best, entry.priority)
        if self._by_prefix:
            entry.ids_key = branch.ids().tobytes()
            insort(self._sorted.setdefault(branch.program.namespace, []), (entry.ids_key, entry.serial, entry))
            self._look(entry)
        elif self.policy == "dfs-weight":
            entry.draw = _LAST
            line.fresh += 1
        line.add(entry)

    def remove(self, branch: Branch) -> None:
        """Take a branch out that will not be admitted."""
        entry = self._entries.pop(branch)
        at = self._drop(entry)
        if self._by_prefix:
            ids = branch.ids()
            self._tell(entry, at, self._cache.match(ids, len(ids), branch.program.namespace).length)

    def admitted(self, branch: Branch) -> None:
        """Take a branch out that has got a row: count for those it overtook, and tell its neighbours."""
        entry = self._entries[branch]
        line = self._lines[entry.priority]
        line.gone += 1
        line.overtaken = 0 if line.oldest() is entry else line.overtaken + 1
        self._overtaken = 0 if self._oldest() is entry else self._overtaken + 1
        del self._entries[branch]
        self._tell(entry, self._drop(entry), branch.length)

    def _tell(self, entry: Entry, at: int, cached: int) -> None:
        """The neighbours of an entry that stood at `at`, `cached` of whose tokens are in the cache, share them."""
        branch = entry.branch
        waiting = self._sorted.get(branch.program.namespace, ())
        ids = branch.ids(cached)
        for k in (at - 1, at):
            if 0 <= k < len(waiting):
                other = waiting[k][2]
                theirs = other.branch.ids()
                common = min(common_prefix(ids, theirs), self._limit(other.branch, len(theirs)))
                if common > other.matched:
                    other.matched = common
                    self._lines[other.priority].move(other)

    def set_aside(self, branch: Branch) -> None:
        """Pass over a branch until `restore`."""
        entry = self._entries[branch]
        entry.alive = False
        self._aside.append(entry)

    def new_step(self) -> None:
        """Branches are about to be admitted. What was admitted in the last step may have changed the order."""
        if self.policy == "dfs-weight":
            for line in self._lines.values():
                if line.gone and (line.count <= AT_ONCE or 8 * line.gone >= line.placed):
                    line.placed = line.gone = 0
                    for _, _, entry in line.ages:
                        entry.draw = _LAST

    def restore(self) -> None:
        for entry in self._aside:
            if self._entries.get(entry.branch) is entry:
                self._lines[entry.priority].enter(entry)
        self._aside.clear()

    def _drop(self, entry: Entry) -> int:
        """Returns where the entry stood among the sorted."""
        entry.alive = False
        line = self._lines[entry.priority]
        line.count -= 1
        if self.policy == "dfs-weight" and entry.draw != _LAST:
            line.placed -= 1
        if line.count:
            line.compact()
        else:
            del self._lines[entry.priority]
            self._best.remove(entry.priority)
        if not self._by_prefix:
            return -1
        namespace = entry.branch.program.namespace
        waiting = self._sorted[namespace]
        at = bisect_left(waiting, (entry.ids_key, entry.serial))
        assert waiting[at][2] is entry
        del waiting[at]
        if not waiting:
            del self._sorted[namespace]
        return at

    # -- the head --------------------------------------------------------------------------------------------------

    def head(self) -> Branch | None:
        """The branch to admit next, or None when none waits (or all are set aside)."""
        if not self._entries:
            return None
        if self._overtaken >= PRIORITY_SHARE - 1 and len(self._best) > 1:
            oldest = self._oldest()
            return oldest.branch if oldest is not None else None
        for priority in reversed(self._best):
            line = self._lines[priority]
            if self.policy == "dfs-weight" and (not line.placed or 4 * line.fresh >= line.placed):
                self._place_depth_first(line)
            entry = line.head(self._look)
            if entry is not None:
                return entry.branch
        return None

    def _place_depth_first(self, line: Line) -> None:
        """Give the longest waiting their places in the depth-first order of the prefix cache.

        The weight of a radix node is the number of waiting branches whose cached prefix ends in its subtree. A heavier
        child comes before a lighter one, those that end in the node itself come last.
        """
        own: dict[Any, list[Entry]] = {}
        below: dict[Any, list[Any]] = {}
        weight: dict[Any, int] = {}
        for entry in line.longest_waiting(SNAPSHOT):
            branch = entry.branch
            ids = branch.ids()
            node = self._cache.match(ids, self._limit(branch, len(ids)), branch.program.namespace).node
            own.setdefault(node, []).append(entry)
            while True:
                parent = None if node is None else node.parent
                if node not in weight:
                    weight[node] = 0
                    below.setdefault(parent, []).append(node)
                weight[node] += 1
                if parent is None:
                    break
                node = parent
        lighter_first = lambda nodes: sorted(nodes, key=lambda n: weight[n])  # noqa: E731
        stack = [(node, False) for node in lighter_first(below.pop(None, []))]
        place = 0
        while stack:
            node, done = stack.pop()
            if not done:
                stack.append((node, True))
                stack.extend((child, False) for child in lighter_first(below.get(node, [])))
                continue
            for entry in own.get(node, ()):
                line.placed += entry.draw == _LAST
                entry.draw = place = place + 1
                line.move(entry)
        line.fresh = 0

    def _oldest(self) -> Entry | None:
        found = [entry for line in self._lines.values() if (entry := line.oldest()) is not None]
        return min(found, key=lambda e: e.serial, default=None)

    def _look(self, entry: Entry) -> None:
        if self._by_prefix:
            branch = entry.branch
            ids = branch.ids()
            entry.matched = self._cache.match(ids, self._limit(branch, len(ids)), branch.program.namespace).length


def _new_tokens(branch: Branch) -> int:
    """Most tokens that a branch may still generate."""
    assert branch.work is not None
    return branch.work.limit - branch.length


def _program_key(entry: Entry) -> Key:
    branch = entry.branch
    program = branch.program
    work = program.left + branch.length - entry.matched
    if not program.ended:
        work += program.attained // ATTAINED_SHARE
    place = (program.serial + work // PER_ARRIVAL) // NEAR
    return (place, -(entry.matched // PREFIX_STEP), program.serial, entry.serial)
