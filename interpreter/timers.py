"""Things that happen a moment later, on one daemon thread for the whole process.

`call_later` is for deadlines. `Quiet` flushes runs that have said nothing for a moment, so that their work starts
while user code goes on. What is called here must be quick; what it raises is its own affair and is logged.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stemma.interpreter.runtime import Run

_log = logging.getLogger("stemma")


class Timer:
    """A call that is due at some time (monotonic). `cancel` it when it is not wanted any more."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class _Timers:
    """The calls that are due, in order of time. The thread starts with the first."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._some = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, seconds: float, call: Callable[[], object]) -> Timer:
        timer = Timer(call)
        with self._some:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), timer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="stemma-timers", daemon=True)
                self._thread.start()
            if self._due[0][2] is timer:
                self._some.notify()
        return timer

    def _serve(self) -> None:
        while True:
            with self._some:
                while not self._due:
                    self._some.wait()
                left = self._due[0][0] - time.monotonic()
                if left > 0:
                    self._some.wait(left)
                    continue
                call = heapq.heappop(self._due)[2].call
            if call is None:
                continue
            try:
                call()
            except BaseException:  # one bad call must not stop the others
                _log.exception("a timed call failed")


class _Quiet:
    """Flushes runs that have said nothing for a moment."""

    def __init__(self) -> None:
        self._waiting: deque[Run] = deque()
        self._some = threading.Condition()
        self._thread: threading.Thread | None = None

    def touch(self, run: Run) -> None:
        """The run has just said something."""
        if run.endpoint.quiet_seconds is None:
            return
        run.touched_at = time.monotonic()
        self._queue(run)

    def flush_soon(self, run: Run) -> None:
        """Flush the run on the quiet thread, whatever its endpoint's habits: something it waited for has come."""
        self._queue(run)

    def _queue(self, run: Run) -> None:
        if run.in_quiet_queue:
            return
        with self._some:
            if run.in_quiet_queue:
                return
            run.in_quiet_queue = True
            self._waiting.append(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="stemma-quiet", daemon=True)
                self._thread.start()
            self._some.notify()

    def _serve(self) -> None:
        while True:
            with self._some:
                while not self._waiting:
                    self._some.wait()
                run = self._waiting.popleft()
            left = run.touched_at + (run.endpoint.quiet_seconds or 0.0) - time.monotonic()
            if left > 0:
                time.sleep(left)
            with self._some:
                if time.monotonic() - run.touched_at < (run.endpoint.quiet_seconds or 0.0):
                    self._waiting.append(run)
                    continue
                run.in_quiet_queue = False
            try:
                run.flush()
            except BaseException as error:  # a fault of ours must reach the readers, and not stop this thread
                run.fail(error)


def call_later(seconds: float, call: Callable[[], object]) -> Timer:
    """Call it once, on the timer thread, after so many seconds."""
    return _timers.add(seconds, call)


def touch(run: Run) -> None:
    """The run has just said something: flush it after its endpoint's moment of quiet."""
    _quiet.touch(run)


def flush_soon(run: Run) -> None:
    """Flush the run from another thread, as soon as that can be."""
    _quiet.flush_soon(run)


def _restart_after_fork() -> None:
    global _quiet, _timers
    _quiet, _timers = _Quiet(), _Timers()


_quiet, _timers = _Quiet(), _Timers()
os.register_at_fork(after_in_child=_restart_after_fork)
