"""Many runs of one program: bounded concurrency, results in order, errors in their places, one line of progress.

One engine for both faces: a batch is an async iterator. `drive` runs it on the background loop for callers that have
no loop; sync bodies run in the batch's own threads, async ones as tasks.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from stemma.interpreter.background import background_loop, on_background_loop
from stemma.interpreter.branch_state import BranchState
from stemma.interpreter.budget import Budget
from stemma.interpreter.checkpoint import Checkpoint
from stemma.interpreter.endpoints.base import Endpoint
from stemma.interpreter.runtime import Run
from stemma.interpreter.state import ProgramState
from stemma.interpreter.wire import RunOptions
from stemma.lang.errors import CancelledError, ProgramError, RequestError

AUTO_THREADS = 64
AUTO_TASKS = 1024
CLOSE_SECONDS = 10.0  # how long an interrupted caller waits for the batch to clean up

OnError = Literal["raise", "return"]
Order = Literal["input", "completed"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """Everything that one run of a program was given."""

    endpoint: Endpoint
    options: RunOptions
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timeout: float | None = None
    budget: Budget | None = None
    use_thread: bool = True  # False: `run` waits for everything; a batch does so anyway


@dataclass(frozen=True, slots=True, eq=False)
class Started:
    """A run that has begun: the state that the body gets, and the one that others read."""

    call: Call
    run: Run
    inner: BranchState
    state: ProgramState


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch runs. `lazy`: start items only as the results are taken."""

    limit: int | Literal["auto"]
    progress_bar: bool | None
    on_error: OnError
    order: Order
    checkpoint: str | os.PathLike[str] | None
    lazy: bool

    def __post_init__(self) -> None:
        limit = self.limit
        if limit != "auto" and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise RequestError(f'num_threads must be "auto" or an integer >= 1, got {limit!r}', param="num_threads")
        if self.on_error not in ("raise", "return"):
            raise RequestError(f"on_error must be raise or return, got {self.on_error!r}", param="on_error")
        if self.order not in ("input", "completed"):
            raise RequestError(f"order must be input or completed, got {self.order!r}", param="order")


class Batch:
    """Runs of one program over many items. `await` it for the list of results, or iterate over it with `async for`."""

    def __init__(
        self,
        name: str,
        calls: Sequence[Call],
        options: BatchOptions,
        is_async: bool,
        begin: Callable[[Call], Started],
        finish: Callable[[Started, ThreadPoolExecutor], Coroutine[Any, Any, None]],
    ) -> None:
        auto = AUTO_TASKS if is_async else AUTO_THREADS
        self.options = options
        self._calls, self._begin, self._finish = calls, begin, finish
        self._limit = max(1, min(auto if options.limit == "auto" else options.limit, len(calls)))
        self._threads = self._limit if not is_async else 1
        self._checkpoint = None
        if options.checkpoint is not None:
            self._checkpoint = Checkpoint(options.checkpoint, name, [(call.args, call.kwargs) for call in calls])
        self._progress = _Progress(len(calls), options.progress_bar)
        self._running: set[Started] = set()
        self._items = self._iterate(ahead=2 * self._limit)

    def __len__(self) -> int:
        return len(self._calls)

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self.gather().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._items

    async def aclose(self) -> None:
        """Cancel what is outstanding, at the endpoint too."""
        await self._items.aclose()

    async def gather(self) -> list[Any]:
        """All results, in the items' order or as they complete. Raises `ProgramError` for the first failed item."""
        outcomes = [pair async for pair in self._outcomes(ahead=len(self._calls))]
        failed = sorted((i, outcome) for i, outcome in outcomes if isinstance(outcome, BaseException))
        if failed and self.options.on_error == "raise":
            raise _item_error(*failed[0], len(self._calls), len(failed) - 1)
        return outcomes if self.options.order == "completed" else [outcome for _, outcome in outcomes]

    async def _iterate(self, ahead: int) -> AsyncGenerator[Any, None]:
        outcomes = self._outcomes(ahead)
        try:
            async for i, outcome in outcomes:
                if isinstance(outcome, BaseException) and self.options.on_error == "raise":
                    raise _item_error(i, outcome, len(self._calls), 0)
                yield (i, outcome) if self.options.order == "completed" else outcome
        finally:
            await outcomes.aclose()

    async def _outcomes(self, ahead: int) -> AsyncGenerator[tuple[int, Any], None]:
        """(item, state or record or exception), in the order asked for; at most `ahead` of them untaken."""
        count = len(self._calls)
        done: dict[int, Any] = dict(self._checkpoint.kept) if self._checkpoint is not None else {}
        self._progress.skip(len(done))
        todo = iter([i for i in range(count) if i not in done])
        finished: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()
        pool = ThreadPoolExecutor(self._threads, "stemma-batch")
        started, taken, running = len(done), 0, 0
        try:
            while taken < count:
                while running < self._limit and started < min(count, taken + max(ahead, len(done) + 1)):
                    task = asyncio.create_task(self._one(next(todo), finished, pool))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    started += 1
                    running += 1
                ready = taken if self.options.order == "input" else next(iter(done), -1)
                if ready in done:
                    yield ready, done.pop(ready)
                    taken += 1
                else:
                    i, outcome = await self._next(finished)
                    done[i] = outcome
                    running -= 1
        finally:
            await self._close(tasks, pool)

    async def _next(self, finished: asyncio.Queue[tuple[int, Any]]) -> tuple[int, Any]:
        while True:
            try:
                async with asyncio.timeout(self._progress.seconds if self._progress.on else None):
                    i, outcome = await finished.get()
            except TimeoutError:
                self._progress.show()
                continue
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome  # not an item's failure: somebody wants to stop
            if isinstance(outcome, ProgramState) and self._checkpoint is not None:
                self._checkpoint.keep(i, outcome)
            self._progress.count(outcome if isinstance(outcome, ProgramState) else None)
            self._progress.show()
            return i, outcome

    async def _one(self, i: int, finished: asyncio.Queue[tuple[int, Any]], pool: ThreadPoolExecutor) -> None:
        """Run one item to its end. What it raises is its result."""
        started = None
        try:
            started = self._begin(self._calls[i])
            self._running.add(started)
            await self._finish(started, pool)
            started.state._sync_unseen()
            outcome: Any = started.state
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            outcome = CancelledError("the body raised asyncio.CancelledError")  # nobody cancelled it: it failed
            outcome.__cause__ = error
        except BaseException as error:
            outcome = error
        finally:
            if started is not None:
                self._running.discard(started)
        finished.put_nowait((i, outcome))

    async def _close(self, tasks: set[asyncio.Task[None]], pool: ThreadPoolExecutor) -> None:
        failed: list[Exception] = []
        for started in list(self._running):
            try:
                started.state.cancel()
            except Exception as error:  # an endpoint that cannot cancel must not keep the rest from ending
                failed.append(error)
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        pool.shutdown(wait=False, cancel_futures=True)
        if self._checkpoint is not None:
            self._checkpoint.close()
        self._progress.finish()
        if failed:
            raise failed[0]


def drive(batch: Batch) -> list[Any] | Generator[Any, None, None]:
    """The results of a batch for a caller without a loop: a list, or an iterator if the batch is lazy."""
    if on_background_loop():
        raise RequestError("run_batch would wait inside an async program; await abatch(…) instead")
    return _each(batch) if batch.options.lazy else _wait(batch.gather())


def _each(batch: Batch) -> Generator[Any, None, None]:
    items = aiter(batch)
    nothing = object()
    try:
        while (item := _wait(_anext(items, nothing))) is not nothing:
            yield item
    finally:
        _wait(batch.aclose())


async def _anext(items: AsyncIterator[T], default: T) -> T:
    return await anext(items, default)


def _wait(work: Coroutine[Any, Any, T]) -> T:
    """Run on the background loop and wait. An interrupted wait cancels the work and waits for it to clean up."""
    ended = threading.Event()

    async def watched() -> T:
        try:
            return await work
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(watched(), background_loop())
    try:
        return future.result()
    except BaseException:
        if future.cancel():
            ended.wait(CLOSE_SECONDS)
        raise


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


class _Progress:
    """One line on stderr: done/total, tokens per second, time left. Nothing unless asked for or on a terminal."""

    seconds = 0.2

    def __init__(self, total: int, wanted: bool | None) -> None:
        self.on = sys.stderr.isatty() if wanted is None else wanted
        self._total = total
        self._done = 0
        self._tokens = 0.0
        self._ran = 0
        self._start = time.monotonic()

    def skip(self, count: int) -> None:
        """So many items were done by an earlier run."""
        self._done += count

    def count(self, state: ProgramState | None) -> None:
        self._done += 1
        self._ran += 1
        self._tokens += state.usage()["completion_tokens"] if state is not None else 0

    def show(self, end: str = "") -> None:
        if not self.on:
            return
        spent = max(time.monotonic() - self._start, 1e-9)
        left = spent / self._ran * (self._total - self._done) if self._ran else 0.0
        line = f"{self._done}/{self._total} programs, {self._tokens / spent:.0f} tokens/s, {left:.0f} s left"
        width = os.get_terminal_size().columns - 1 if sys.stderr.isatty() else 79
        sys.stderr.write(f"\r{line[:width]:<{min(width, 60)}}{end}")
        sys.stderr.flush()

    def finish(self) -> None:
        self.show("\n")
