"""What bounds waiting and memory: deadlines of gens and deltas, the length of the queue, programs that lie idle."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stemma.backend.messages import GraphDelta, IdsNode, Node, TextNode
from stemma.lang.errors import RequestError

if TYPE_CHECKING:
    from stemma.backend.scheduler.branch import Branch, Program

MAX_PROGRAMS = 16_384  # that lie idle between deltas, when the queue is bounded; the longest idle are ended first
MAX_TEXT = 512 << 20  # bytes that programs hold between deltas, the same
NODE_BYTES = 512  # what a node costs beside its text
REMEMBERED = 4096  # programs that were ended before their time, and why
LONGEST_PAUSE = 60.0  # seconds of a Retry-After


Entry = tuple[float, int, str, int, tuple[tuple[str, int], ...], float]


class Deadlines:
    """Nodes and when they must be done. A heap; entries of what ended earlier are dropped now and then.

    Not thread-safe: under the graph's lock.
    """

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._order = itertools.count()
        self._kept = 0  # entries after the last clearing

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float | None:
        """When the next one is due."""
        return self._heap[0][0] if self._heap else None

    def add(self, program: Program, ends: tuple[tuple[str, int], ...], seconds: float, now: float) -> None:
        """Of each (branch, n), the first n nodes must be done in so many seconds."""
        heapq.heappush(self._heap, (now + seconds, next(self._order), program.id, program.serial, ends, seconds))

    def take(self, now: float, programs: Mapping[str, Program]) -> list[tuple[Branch, float]]:
        """The branches that are overdue now, with the seconds that they had."""
        overdue: list[tuple[Branch, float]] = []
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            overdue += [(branch, entry[5]) for branch in _unfinished(entry, programs)]
        if len(self._heap) > 1024 + 2 * self._kept:
            self._heap = [entry for entry in self._heap if _unfinished(entry, programs)]
            heapq.heapify(self._heap)
            self._kept = len(self._heap)
        return overdue


def _unfinished(entry: Entry, programs: Mapping[str, Program]) -> list[Branch]:
    _, _, id, serial, ends, _ = entry
    program = programs.get(id)
    if program is None or program.serial != serial:
        return []
    found = ((program.branches.get(branch), count) for branch, count in ends)
    return [branch for branch, count in found if branch and branch.cursor < count and branch.error is None]


class Pressure:
    """How much waits, how fast it is worked off, and when that is too much. `limit`: branches; None for no limit.

    A new program is refused when `limit` branches wait for a row, or would with its own; one under way goes on until
    there are twice as many, since its end frees more than its refusal. Not thread-safe: under the graph's lock.
    """

    def __init__(self, limit: int | None, max_rows: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.limit, self.max_rows = limit, max_rows
        self.unsettled = 0  # branches with something to do, of all programs
        self.refused = 0
        self.gone: OrderedDict[str, str] = OrderedDict()  # programs that were ended before their time: why
        self._clock = clock
        self._settled: deque[float] = deque(maxlen=256)

    def settled(self) -> None:
        """A branch has nothing left to do."""
        self.unsettled -= 1
        self._settled.append(self._clock())

    def rate(self) -> float:
        """Branches worked off in a second, lately. 0 when nothing is known."""
        times = self._settled
        span = self._clock() - times[0] if times else 0.0
        return len(times) / span if span > 0 else 0.0

    def check(self, delta: GraphDelta, program: Program | None, waiting: int, programs: int) -> None:
        """RequestError of status 429 if the delta would make the queue too long."""
        if self.limit is None:
            return
        branches = {} if program is None else program.branches
        new = sum((b := branches.get(given.id)) is None or b.settled for given in delta.branches)
        factor = 1 if program is None else 2
        limit = self.limit * factor
        room = limit + self.max_rows - self.unsettled
        if not new or (waiting < limit and new <= room and programs < 2 * MAX_PROGRAMS):
            return
        if new > self.limit * factor + self.max_rows:
            raise RequestError(
                f"{new} branches in one delta are more than can wait ({limit}) and run ({self.max_rows}); send fewer, "
                "or start the engine with a larger max_queued_requests",
                param="branches",
            )
        self.refused += 1
        queue = max(waiting, self.unsettled - self.max_rows, 1)
        rate = self.rate()
        pause = min(max(queue / rate, 1.0), LONGEST_PAUSE) if rate else 1.0
        raise RequestError(
            f"too many requests: {queue} are waiting (max_queued_requests is {self.limit}); try again after "
            f"{pause:.0f} s",
            status=429,
            retry_after=pause,
        )

    def forget(self, program: str, reason: str) -> None:
        """Remember why a program was ended before its time."""
        self.gone[program] = reason
        self.gone.move_to_end(program)
        while len(self.gone) > REMEMBERED:
            self.gone.popitem(last=False)

    def surplus(self, programs: list[Program]) -> list[Program]:
        """Idle programs that hold too much together, the longest idle first."""
        if self.limit is None:
            return []
        count, size = len(programs), sum(p.size for p in programs)
        ended: list[Program] = []
        if count > MAX_PROGRAMS or size > MAX_TEXT:
            for program in sorted((p for p in programs if not p.unsettled), key=lambda p: p.touched):
                if count <= MAX_PROGRAMS and size <= MAX_TEXT:
                    break
                ended.append(program)
                count, size = count - 1, size - program.size
        return ended


def size_of(nodes: Sequence[Node]) -> int:
    """About how many bytes the literals of some nodes hold."""
    total = NODE_BYTES * len(nodes)
    for node in nodes:
        if isinstance(node, TextNode):
            total += len(node.text)
        elif isinstance(node, IdsNode):
            total += 8 * len(node.ids)
    return total


def check_known(delta: GraphDelta, gone: Mapping[str, str]) -> None:
    """RequestError of status 410 if a delta goes on with a program that is not there: with the reason, or, where none
    is remembered, with "program" as the field to blame."""
    given = {branch.id for branch in delta.branches}
    for branch in delta.branches:
        wrong = ""
        if branch.first > 0:
            wrong = f"first must be 0, got {branch.first}"
        elif branch.parent is not None and branch.parent not in given:
            wrong = f"unknown parent {branch.parent!r}"
        if wrong:
            reason = gone.get(delta.program)
            known = "is not known: it has ended, or it never began" if reason is None else f"was ended: {reason}"
            raise RequestError(
                f"branch {branch.id!r} of program {delta.program!r}: {wrong}; the program {known}",
                param="program" if reason is None else None,
                status=410,
            )
