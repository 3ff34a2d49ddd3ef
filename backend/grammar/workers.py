"""Compilation in processes of its own, so that no constraint can stall, crash or exhaust the engine.

A constraint gets `first_limit` seconds at first; one that needs more steps back behind all that have not had their
first try, and then gets the full limit. A process that does not answer in time is killed and replaced, and so is one
that has grown; who else waits does not notice.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import msgspec

import stemma
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import naming, ready_grammar, refuse_nothing
from stemma.backend.grammar.flat import FlatNfa
from stemma.backend.grammar.give_way import giving_way
from stemma.backend.grammar.limits import MAX_VALUE, MEMORY_LIMIT, SMALLER, TIME_LIMIT, Deadline
from stemma.backend.grammar.masks import index_of
from stemma.backend.grammar.matcher import RegularGrammar
from stemma.backend.grammar.worker import OUT_OF_MEMORY, Answer, Compiled, Ready, Refused, Task, receive, send, task_of
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

FIRST_LIMIT = 0.25  # seconds of the first try
PATIENCE = (
    2.0  # a process is killed after this many times its limit, which is of processor time and which it minds itself
)
GRACE = 0.25  # and as many seconds
START_LIMIT = 60.0
_MODULE = "stemma.backend.grammar.worker"
_DECODER = msgspec.msgpack.Decoder(Answer)


class Lost(Exception):
    """The process died; the message says how. `code`: its exit status, or minus the signal's number."""

    def __init__(self, code: int | None) -> None:
        self.code = code
        if code is None:
            super().__init__("it hung")
        else:
            super().__init__(f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")


class Overdue(Exception):
    """The process did not answer in time, and was killed."""


class Process:
    """One compiling process; starts again by itself after it was lost. For one thread at a time, but for `kill`."""

    def __init__(self, memory_limit: int = MEMORY_LIMIT) -> None:
        self._memory_limit = memory_limit
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False
        self._gate = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    def spawn(self) -> None:
        """Begin to start the process, if there is none. RuntimeError once `kill(for_good=True)` was called."""
        with self._gate:
            if self._closed:
                raise RuntimeError("the engine was shut down")
            if self._process is not None:
                return
            ours, theirs = socket.socketpair()
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(self._memory_limit)]
            root = str(Path(stemma.__file__).resolve().parent.parent)
            paths = [root, os.environ.get("PYTHONPATH", "")]
            environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)), OPENBLAS_NUM_THREADS="1")
            try:
                # A session of its own, so that Ctrl-C reaches only the engine, whose end then ends this process.
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise RuntimeError(f"the compiling process cannot be started: {error}; {_ALONE}") from None
            finally:
                theirs.close()
            self._socket, self._ready = ours, False

    def run(self, task: Task) -> Answer:
        """Raises Overdue or Lost, and RuntimeError when the process cannot be started."""
        self._start()
        try:
            until = time.monotonic() + PATIENCE * task.seconds + GRACE
            sock = self._socket
            assert sock is not None
            sock.settimeout(START_LIMIT)
            send(sock, task)
            sock.settimeout(max(until - time.monotonic(), 0.01))
            answer = _DECODER.decode(receive(sock))
        except TimeoutError:
            self.kill()
            raise Overdue from None
        except (EOFError, OSError, AssertionError):
            raise self._end() from None
        if getattr(answer, "last", False):
            self._end()
        return answer

    def _start(self) -> None:
        self.spawn()
        if self._ready:
            return
        sock = self._socket
        try:
            assert sock is not None
            sock.settimeout(START_LIMIT)
            if not isinstance(_DECODER.decode(receive(sock)), Ready):
                raise EOFError
        except (EOFError, OSError, AssertionError):
            raise RuntimeError(f"the compiling process did not start: {self._end()}; {_ALONE}") from None
        self._ready = True

    def _end(self) -> Lost:
        """Wait for a process that is going."""
        process = self._process
        code: int | None = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(1.0)
        self.kill()
        return Lost(code)

    def kill(self, *, for_good: bool = False) -> None:
        """End the process now. Whoever waits for it gets Lost."""
        with self._gate:
            self._closed = self._closed or for_good
            process, sock = self._process, self._socket
            self._process = self._socket = None
        if process is not None:
            process.kill()
            process.wait()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes who waits in `recv`, as `close` does not
            sock.close()


_ALONE = "grammar_workers=0 compiles in the engine's own process"


class Workers:
    """A few compiling processes. `compile` may be called from any number of threads; each waits for its turn.

    `busy`: whether another thread needs the interpreter now, see `giving_way`.
    """

    def __init__(
        self,
        count: int,
        *,
        time_limit: float = TIME_LIMIT,
        first_limit: float = FIRST_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
        busy: Callable[[], bool] = lambda: True,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        self._busy = busy
        self._memory_limit = memory_limit
        self._limits = (min(first_limit, time_limit), time_limit)
        self.processes = [Process(memory_limit) for _ in range(count)]
        self._idle = list(self.processes)
        self._waiting: list[tuple[int, int, Future[Process]]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Begin to start the processes, so that the first constraint need not wait for that. Returns at once."""
        for process in self.processes:
            with contextlib.suppress(RuntimeError):  # said again to who needs the process
                process.spawn()

    def compile(
        self, constraint: Constraint, vocab: Vocabulary, *, lenient: bool = False, walker: str | None = None
    ) -> RegularGrammar:
        """See `compiler.compile_constraint`. RuntimeError when there is no process and none can be started."""
        value = constraint.value
        size = len(value) if isinstance(value, str) else sum(map(len, value))  # lang bounds the number of choices
        if size > MAX_VALUE:
            raise ConstraintError(
                f"{constraint.kind} holds {size} characters, the limit is {MAX_VALUE}; {SMALLER}",
                param=constraint.kind,
            )
        tokens = index_of(vocab, walker)
        done = self._compiled(constraint, tokens.trie.alphabet, lenient)
        with giving_way(self._busy), naming(constraint.kind):
            dfa = tokens.automaton(FlatNfa(done.nfa), Deadline(self._limits[1], constraint.kind))
            refuse_nothing(dfa, constraint)
            return ready_grammar(dfa, vocab, tokens, done.warnings, done.longest)

    def _compiled(self, constraint: Constraint, alphabet: frozenset[int], lenient: bool) -> Compiled:
        for rank, seconds in enumerate(self._limits):
            task = task_of(constraint, alphabet, seconds, lenient)
            try:
                answer = self._run(task, rank)
            except Overdue:
                continue
            if isinstance(answer, Compiled):
                return answer
            if not isinstance(answer, Refused):
                raise RuntimeError(f"compiling this {constraint.kind} failed: {getattr(answer, 'message', answer)}")
            if not answer.slow or seconds == self._limits[1]:
                raise ConstraintError(answer.message, param=answer.param)
        raise ConstraintError(
            f"{constraint.kind} took longer than {self._limits[1]:g} s to compile; {SMALLER}", param=constraint.kind
        )

    def _run(self, task: Task, rank: int) -> Answer:
        """In the next free process. One that dies might have been killed from outside: once is no proof."""
        process = self._take(rank)
        try:
            try:
                return process.run(task)
            except Lost as lost:
                if lost.code == OUT_OF_MEMORY:
                    raise
                return process.run(task)
        except Lost as lost:
            if self._closed:
                raise RuntimeError("the engine was shut down") from None
            if lost.code == OUT_OF_MEMORY:
                raise ConstraintError(
                    f"{task.kind} needs more than {self._memory_limit >> 20} MiB to compile; {SMALLER}", param=task.kind
                ) from None
            raise ConstraintError(
                f"compiling this {task.kind} ends the process that tries ({lost}); {SMALLER}", param=task.kind
            ) from None
        finally:
            with contextlib.suppress(RuntimeError):
                process.spawn()
            self._give(process)

    def _take(self, rank: int) -> Process:
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine was shut down")
            if self._idle:
                return self._idle.pop()
            turn = Future[Process]()
            heapq.heappush(self._waiting, (rank, next(self._numbers), turn))
        return turn.result()

    def _give(self, process: Process) -> None:
        with self._lock:
            if self._waiting:
                heapq.heappop(self._waiting)[2].set_result(process)
            else:
                self._idle.append(process)

    def close(self) -> None:
        """End the processes. Who waits gets a RuntimeError."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
        for _, _, turn in waiting:
            turn.set_exception(RuntimeError("the engine was shut down"))
        for process in self.processes:
            process.kill(for_good=True)
