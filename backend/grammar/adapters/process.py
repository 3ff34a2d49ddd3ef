"""A process of its own for an engine, so that one that hangs or crashes can be stopped.

An engine compiles in machine code that no thread can interrupt; only the end of its process ends it.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from stemma.lang.errors import StemmaError

Handler = Callable[[Any], Iterable[Any]]


class Lost(Exception):
    """The process took too long or died; the message says which. The next job starts a new one."""


class Worker:
    """Runs jobs, one at a time, in a process. Use as a context manager.

    `setup` runs there first and returns the handler of jobs; both must be picklable by name, as `spawn` demands. What
    setup or the handler raise is raised here. Each of the handler's answers may take `limit` seconds.
    """

    def __init__(self, setup: Callable[[], Handler], *, limit: float = 20.0, setup_limit: float = 300.0) -> None:
        self._setup = setup
        self._limit = limit
        self._setup_limit = setup_limit
        self._process: Any = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it is set up; nothing if it runs. Raises Lost, or what `setup` raised."""
        if self._pipe is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._setup), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._answer(self._setup_limit, "to start")
        except BaseException:
            self.stop()
            raise

    def run(self, job: Any) -> Iterator[Any]:
        """The handler's answers, as they come. Raises Lost, or what the handler raised.

        A caller that stops listening ends the process: answers to come would be taken for those of the next job.
        """
        self.start()
        assert self._pipe is not None
        self._pipe.send(job)
        try:
            while (answer := self._answer(self._limit, "")) is not None:
                yield answer[0]
        except GeneratorExit:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _answer(self, limit: float, doing: str) -> tuple[Any] | None:
        assert self._pipe is not None
        try:
            if not self._pipe.poll(limit):
                self.stop()
                raise Lost(f"took longer than {limit:g} s{doing and ' '}{doing}")
            error, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            code = self._process.exitcode
            self.stop()
            raise Lost(f"its process died (exit status {code})") from None
        if error is not None:
            raise error
        return answer


def _serve(pipe: Connection, setup: Callable[[], Handler]) -> None:
    """The other end: answers are (error, None), (None, (answer,)) and, at the end of a job, (None, None)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        handler = setup()
    except Exception as error:
        pipe.send((_portable(error), None))
        return
    pipe.send((None, None))
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            for answer in handler(job):
                pipe.send((None, (answer,)))
            pipe.send((None, None))
        except Exception as error:
            pipe.send((_portable(error), None))


def _portable(error: Exception) -> Exception:
    """The error itself if it is ours; others need not survive the pipe."""
    return error if isinstance(error, StemmaError) else RuntimeError(f"{type(error).__name__}: {error}")
