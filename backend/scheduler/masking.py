"""Grammar masks of a step, worked out while the forward pass runs.

The mask for a row's next token depends on the token before it only, which is known when the step is planned; it is
needed when the logits are there. So a thread works out the masks from the moment the step is launched, and the runner
asks for them after the forward pass. What is not done by then, the asking thread helps with.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from queue import SimpleQueue

import numpy as np

from stemma.backend.core import Int32, mask_words
from stemma.backend.scheduler.branch import Work
from stemma.backend.scheduler.tools import Clock

WAITED = 50e-6  # seconds; a step that spent longer between logits and masks has waited for them


@dataclass(slots=True)
class MaskStats:
    """Counts since the scheduler was made, of steps that needed at least one mask."""

    mask_steps: int = 0
    mask_rows: int = 0
    mask_wait_steps: int = 0  # the masks were not ready when they were asked for, by more than WAITED
    mask_wait_seconds: float = 0.0  # between asking and having them, over all steps
    mask_seconds: float = 0.0  # processor time of working them out, in whichever thread


@dataclass(slots=True)
class Wanted:
    """A row of bits that a step needs.

    hold: the end is held back by min_new_tokens. known: the row is there already, nobody need ask the matcher.
    """

    index: int  # in the plan
    work: Work
    hold: bool
    known: Int32 | None = None


class StepMasks:
    """(plan index, row) pairs of one plan, in order. The first iteration waits until all are worked out.

    From `start` to `finish`, nobody else may touch the matchers of its rows.
    """

    def __init__(self, masker: Masker, wanted: list[Wanted]) -> None:
        self._masker = masker
        self._wanted = wanted
        self._todo = deque(range(len(wanted)))
        self._rows: list[Int32 | None] = [None] * len(wanted)
        self._lent = threading.Lock()  # held by the thread while it works on this step
        self._seconds = 0.0
        self.finished = False

    def __len__(self) -> int:
        return len(self._wanted)

    def __iter__(self) -> Iterator[tuple[int, Int32]]:
        self.finish()
        for wanted, row in zip(self._wanted, self._rows, strict=True):
            assert row is not None
            yield wanted.index, row

    def keep(self, chosen: Callable[[int], bool]) -> None:
        """Drop the rows whose plan index is not chosen: their draws do not matter any more. Before `start`."""
        self._wanted = [wanted for wanted in self._wanted if chosen(wanted.index)]
        self._todo = deque(range(len(self._wanted)))
        self._rows = [None] * len(self._wanted)

    def start(self) -> None:
        """Take the rows that are at hand, and let the thread begin with the rest, if there is to be one. The runner is
        about to launch the step."""
        rows, missing = self._rows, deque[int]()
        for k, wanted in enumerate(self._wanted):
            ready = wanted.work.ready
            if wanted.hold or wanted.known is not None or ready is None or (row := ready()) is None:
                missing.append(k)
            else:
                rows[k] = row
        self._todo = missing
        if missing:
            self._masker.lend(self)

    def finish(self) -> None:
        """Wait until all rows are worked out, and count the wait. In the thread that runs the step, or after it."""
        if self.finished:
            return
        begin = self._masker.clock()
        seconds = self._work()
        with self._lent:  # the thread may be at its last row
            seconds += self._seconds
        self.finished = True
        waited = self._masker.clock() - begin
        stats = self._masker.stats
        stats.mask_steps += 1
        stats.mask_rows += len(self._wanted)
        stats.mask_wait_steps += waited > WAITED
        stats.mask_wait_seconds += waited
        stats.mask_seconds += seconds

    def help(self) -> None:
        """The thread's part."""
        with self._lent:
            self._seconds += self._work()

    def _work(self) -> float:
        """Rows until none is left; returns the processor time."""
        todo = self._todo
        if not todo:
            return 0.0
        begin = time.thread_time()
        while todo:
            try:
                k = todo.popleft()
            except IndexError:  # the other one was faster
                break
            self._rows[k] = self._masker.row(self._wanted[k])
        return time.thread_time() - begin


class Masker:
    """Makes the masks of steps, in a thread of its own with `overlap`, else when they are asked for."""

    def __init__(
        self, vocab_size: int, eos_ids: frozenset[int], overlap: bool, clock: Clock = time.perf_counter
    ) -> None:
        self.stats = MaskStats()
        self._words = mask_words(vocab_size)
        self._eos_ids = eos_ids
        self._overlap = overlap
        self.clock = clock
        self._nothing = np.zeros(self._words, np.int32)
        self._nothing.flags.writeable = False
        self._queue: SimpleQueue[StepMasks | None] | None = None

    def step(self, wanted: list[Wanted]) -> StepMasks:
        """The masks of one step; nothing is worked out yet."""
        return StepMasks(self, wanted)

    def lend(self, masks: StepMasks) -> None:
        """Give a step to the thread."""
        if not self._overlap:
            return
        if self._queue is None:
            self._queue = SimpleQueue()
            threading.Thread(target=_serve, args=(self._queue,), name="stemma-masks", daemon=True).start()
            weakref.finalize(self, self._queue.put, None)  # the thread ends when nobody can ask it any more
        self._queue.put(masks)

    def figures(self) -> dict[str, int | float]:
        """The statistics, JSON-ready."""
        return asdict(self.stats)

    def row(self, wanted: Wanted) -> Int32:
        """int32[words], read-only or new. An error is left in `work` for `Output`, and the row allows nothing."""
        work, mask, matcher = wanted.work, wanted.known, wanted.work.matcher
        if mask is None and matcher is not None:
            try:
                mask = matcher.mask()
            except Exception as error:  # a grammar that grew too large fails its own branch only
                work.mask_error = error
                return self._nothing
        if not wanted.hold:
            assert mask is not None
            return mask
        held = np.full(self._words, -1, np.int32) if mask is None else mask.copy()
        for token in self._eos_ids | work.stop_ids:
            held[token >> 5] &= ~np.int32(np.uint32(1 << (token & 31)).astype(np.int32))
        # a grammar that allows only the end wins over min_new_tokens
        return held if mask is None or held.any() else mask


def _serve(queue: SimpleQueue[StepMasks | None]) -> None:
    while (masks := queue.get()) is not None:
        masks.help()
        del masks  # or it would keep the scheduler alive until the next step
