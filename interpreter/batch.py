"""Many runs of one program: bounded concurrency, results in order, errors in their places, one line of progress."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal

from stemma.interpreter.state import ProgramState
from stemma.lang.errors import ProgramError, RequestError

AUTO_THREADS = 64

Start = Callable[[Callable[[ProgramState], None]], ProgramState]  # is told the state before the body begins


def run_batch(
    starts: Sequence[Start],
    num_threads: int | Literal["auto"],
    progress_bar: bool | None,
    generator_style: bool,
    on_error: Literal["raise", "return"],
) -> list[Any] | Iterator[Any]:
    """Run every start to completion and give back the states in order; see `Program.run_batch`."""
    if num_threads != "auto" and (isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1):
        raise RequestError(f'num_threads must be "auto" or an integer >= 1, got {num_threads!r}', param="num_threads")
    threads = max(1, min(AUTO_THREADS if num_threads == "auto" else num_threads, len(starts)))
    batch = _Batch(starts, threads, _Progress(len(starts), progress_bar))
    results = batch.results()
    if generator_style:
        return _raising(results, len(starts)) if on_error == "raise" else results
    gathered = list(results)
    failed = [i for i, result in enumerate(gathered) if isinstance(result, BaseException)]
    if failed and on_error == "raise":
        raise _item_error(failed[0], gathered[failed[0]], len(starts), len(failed) - 1)
    return gathered


def _raising(results: Iterator[Any], count: int) -> Iterator[Any]:
    for i, result in enumerate(results):
        if isinstance(result, BaseException):
            raise _item_error(i, result, count, 0)
        yield result


def _item_error(index: int, cause: BaseException, count: int, others: int) -> ProgramError:
    more = f" (and {others} more failed)" if others else ""
    shown = str(cause) if isinstance(cause, ProgramError) else f"{type(cause).__name__}: {cause}"
    error = ProgramError(
        f"item {index} of {count}{more}: {shown}",
        where=getattr(cause, "where", None),
        node=getattr(cause, "node", None),
    )
    error.__cause__ = cause
    return error


class _Batch:
    """Keeps at most `threads` items running and at most as many finished ones waiting for the consumer."""

    def __init__(self, starts: Sequence[Start], threads: int, progress: _Progress) -> None:
        self._starts = starts
        self._threads = threads
        self._progress = progress
        self._running: set[ProgramState] = set()
        self._lock = threading.Lock()
        self._closed = False

    def results(self) -> Iterator[Any]:
        """A state, or the exception that it ended with, per item, in order. Closing early cancels the rest."""
        if not self._starts:
            return
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="stemma-batch")
        futures: list[Future[Any]] = []
        try:
            for i in range(len(self._starts)):
                self._fill(pool, futures, i)
                yield self._await(futures[i])
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._progress.finish()

    def _fill(self, pool: ThreadPoolExecutor, futures: list[Future[Any]], consumed: int) -> None:
        """Submit up to two rounds ahead of the consumer, so that one slow item does not idle the others."""
        while len(futures) < min(len(self._starts), consumed + 2 * self._threads):
            futures.append(pool.submit(self._one, self._starts[len(futures)]))

    def _await(self, future: Future[Any]) -> Any:
        while not wait([future], self._progress.seconds, FIRST_COMPLETED).done:
            self._progress.show()
        self._progress.show()
        return future.result()

    def _one(self, start: Start) -> ProgramState | BaseException:
        """Run one item to its end. What it raises is its result."""
        if self._closed:
            return ProgramError("the batch was closed before this item ran")
        mine: list[ProgramState] = []

        def created(state: ProgramState) -> None:
            mine.append(state)
            with self._lock:
                self._running.add(state)
                closed = self._closed
            if closed:
                state.cancel()

        try:
            state = start(created)
            state._sync_unseen()
            self._progress.count(state)
            return state
        except Exception as error:
            self._progress.count(None)
            return error
        finally:
            with self._lock:
                self._running.difference_update(mine)

    def _stop(self) -> None:
        with self._lock:
            self._closed = True
            running = list(self._running)
        for state in running:
            state.cancel()


class _Progress:
    """One line on stderr: done/total, tokens per second, time left. Nothing unless asked for or on a terminal."""

    seconds = 0.2

    def __init__(self, total: int, wanted: bool | None) -> None:
        self._on = sys.stderr.isatty() if wanted is None else wanted
        self._total = total
        self._done = 0
        self._tokens = 0.0
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def count(self, state: ProgramState | None) -> None:
        with self._lock:
            self._done += 1
            self._tokens += state.usage()["completion_tokens"] if state is not None else 0

    def show(self, end: str = "") -> None:
        if not self._on:
            return
        spent = max(time.monotonic() - self._start, 1e-9)
        left = spent / self._done * (self._total - self._done) if self._done else 0.0
        line = f"{self._done}/{self._total} programs, {self._tokens / spent:.0f} tokens/s, {left:.0f} s left"
        width = os.get_terminal_size().columns - 1 if sys.stderr.isatty() else 79
        sys.stderr.write(f"\r{line[:width]:<{min(width, 60)}}{end}")
        sys.stderr.flush()

    def finish(self) -> None:
        self.show("\n")
