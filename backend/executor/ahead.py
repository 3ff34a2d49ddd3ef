"""Steps that run in a thread of their own, one after the other, while the scheduler plans the next one.

For runners whose device does not run by itself, as a GPU does: the products of a CPU step release the interpreter's
lock, so the thread that launched it can go on.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np

from stemma.backend.core import Int32, Plan, StepOutput

Forward = Callable[[Plan], Any]  # the part of a step before sampling; must not touch masks or id_table of a late plan
Finish = Callable[[Plan, Any], StepOutput]  # the rest, given what `Forward` returned

_NO_TABLE: Int32 = np.zeros((0, 0), np.int32)


class LaunchedStep:
    """See `core.Launched`. Owns copies of what it reads of the scheduler's tables."""

    def __init__(self, plan: Plan) -> None:
        reads_ids = bool(plan.logprobs) or plan.sampling.any_penalty
        self._table, self._rows = plan.id_table, plan.rows
        end = int((plan.start + plan.n).max())
        width = min(end + 1, plan.id_table.shape[1])  # log-probabilities may ask for the token behind the last position
        self._ids = np.zeros((len(plan.rows), width), np.int32) if reads_ids else _NO_TABLE
        self.plan = replace(
            plan,
            rows=np.arange(len(plan.rows), dtype=np.int32),
            slot_table=np.ascontiguousarray(plan.slot_table[plan.rows, :end]),
            id_table=self._ids,
        )
        self._may_sample, self.ended = threading.Event(), threading.Event()
        self._output: StepOutput | None = None
        self._error: BaseException | None = None
        if not plan.late:
            self.sample()

    def sample(self) -> None:
        rows, width = self._ids.shape
        if rows:
            self._ids[:] = self._table[self._rows, :width]
        self._may_sample.set()

    def go_on(self) -> None:
        """Do not wait for `sample` any more."""
        self._may_sample.set()

    def result(self) -> StepOutput:
        self.ended.wait()
        if self._error is not None:
            raise self._error
        assert self._output is not None
        return self._output

    def run(self, forward: Forward, finish: Finish, drawn: Int32, failed: BaseException | None = None) -> Int32:
        """In the thread. drawn: `next_ids` of the step before; returns this one's. failed: what went wrong before."""
        try:
            if failed is not None:
                raise failed
            plan = self.plan
            if len(plan.relay_to):
                plan.ids = plan.ids.copy()
                plan.ids[plan.relay_to] = np.maximum(drawn[plan.relay_from], 0)
            state = forward(plan)
            self._may_sample.wait()
            self._output = finish(plan, state)
            return self._output.next_ids
        except BaseException as error:
            self._error = error
            return drawn
        finally:
            self.ended.set()


Item = tuple[LaunchedStep, Forward, Finish] | Callable[[], None]


class Ahead:
    """Launches the steps of a runner. The thread begins with the first one and ends with this object."""

    def __init__(self, forward: Forward, finish: Finish) -> None:
        """The functions must not keep this object alive (a bound method of its owner does)."""
        self._forward, self._finish = forward, finish
        self._queue: SimpleQueue[Item | None] | None = None
        self._last: LaunchedStep | None = None
        self._calls: deque[threading.Event] = deque()  # ends of the calls that may not be done

    def launch(self, plan: Plan) -> LaunchedStep:
        if self._queue is None:
            self._queue = SimpleQueue()
            threading.Thread(target=_serve, args=(self._queue,), name="stemma-steps", daemon=True).start()
            weakref.finalize(self, self._queue.put, None).atexit = False  # engines are shut down at the exit, after it
        step = self._last = LaunchedStep(plan)
        self._queue.put((step, self._forward, self._finish))
        return step

    def in_order(self, call: Callable[[], None]) -> None:
        """Run a call after the steps launched so far and before those launched later. What it raises, the next step
        does."""
        if self._queue is None or self._done():
            call()
        else:
            self._calls.append(ended := threading.Event())
            self._queue.put(lambda: _and_then(call, ended))

    def wait(self) -> None:
        """Until all that was given is done."""
        if self._last is not None:
            self._last.ended.wait()
        while self._calls:
            self._calls.popleft().wait()

    def abandon(self) -> None:
        """Let what was launched come to its end; nobody will look at the results. A process that ends while a step runs
        would be aborted."""
        if self._last is not None:
            self._last.go_on()
        self.wait()

    def _done(self) -> bool:
        while self._calls and self._calls[0].is_set():
            self._calls.popleft()
        return not self._calls and (self._last is None or self._last.ended.is_set())


def _and_then(call: Callable[[], None], ended: threading.Event) -> None:
    try:
        call()
    finally:
        ended.set()


def _serve(queue: SimpleQueue[Item | None]) -> None:
    drawn: Int32 = np.empty(0, np.int32)
    failed: BaseException | None = None
    while (item := queue.get()) is not None:
        if isinstance(item, tuple):
            step, forward, finish = item
            drawn = step.run(forward, finish, drawn, failed)
            failed = None
            del step, forward, finish
        else:
            try:
                item()
            except BaseException as error:
                failed = error
        del item  # or it would keep the runner alive until the next step
