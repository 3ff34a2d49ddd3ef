"""The grammars of one engine: found in the cache, or compiled away from the engine's thread."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable

from stemma.backend.grammar.adapters import backend_named
from stemma.backend.grammar.base import Grammar, Vocabulary
from stemma.backend.grammar.compiler import GrammarCache, warm_up
from stemma.backend.grammar.masks import index_of
from stemma.backend.grammar.workers import Workers
from stemma.lang.params import Constraint

PATIENCE = 1.0, 3.0  # seconds from the start in which the first constraints wait for the compiled code: of a small and
SMALL = 50_000  # of a large vocabulary
LARGE = 100_000  # characters; looking up a longer constraint takes milliseconds
MAX_THREADS = 64  # constraints that wait for a process at a time; others wait for a thread


class GrammarService:
    """Compiles constraints for one vocabulary.

    `workers`: processes for the native backend; with 0, and for other backends, one thread compiles. `busy`: whether
    somebody waits for the interpreter, so that work in this process is done in small pieces.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        backend: str,
        workers: int,
        busy: Callable[[], bool] = lambda: True,
        cache_bytes: int = 256 << 20,
    ) -> None:
        self._workers = Workers(workers, busy=busy) if backend == "native" and workers else None
        compile = self._compile if self._workers else backend_named(backend).compile
        self.cache = GrammarCache(vocab, cache_bytes, compile=compile)
        self._warm = threading.Event()
        self._patient_until = time.monotonic() + PATIENCE[vocab.size > SMALL]
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._max_threads = MAX_THREADS if self._workers else 1
        self._threads = 0
        self._idle = 0  # threads
        self._closed = False
        if self._workers:
            self._workers.start()
        self._tasks.put(lambda: self._warm_up(vocab))
        self._start_thread()

    @property
    def pids(self) -> list[int]:
        """The compiling processes that run now."""
        return [] if self._workers is None else [p.pid for p in self._workers.processes if p.pid is not None]

    def peek(self, constraint: Constraint) -> Grammar | None:
        """The grammar if it is here and quickly found. Never waits."""
        value = constraint.value
        return self.cache.peek(constraint) if (len(value) if isinstance(value, str) else 0) < LARGE else None

    def submit(
        self,
        constraint: Constraint,
        done: Callable[[Grammar | Exception], None],
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`done` gets the grammar, or why there is none, in another thread; never, if `close` comes before, or if
        nobody wants it any more when its turn comes. Takes no time."""

        def work() -> None:
            if not wanted():
                return
            try:
                made: Grammar | Exception = self.cache.get(constraint)
            except Exception as error:
                made = error
            done(made)

        self._tasks.put(work)

    def close(self) -> None:
        """End processes and threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads = self._threads
        if self._workers is not None:
            self._workers.close()
        for _ in range(threads):
            self._tasks.put(None)

    def _warm_up(self, vocab: Vocabulary) -> None:
        try:
            with contextlib.suppress(Exception):  # met again, and told, by the first constraint
                warm_up()
                index_of(vocab)
        finally:
            self._warm.set()
        self.cache.clear()  # of grammars that were made without the compiled code

    def _compile(self, constraint: Constraint, vocab: Vocabulary) -> Grammar:
        """At the first start on a machine the compiled code takes long to make: until then numpy makes equal masks."""
        assert self._workers is not None
        ready = self._warm.wait(max(0.0, self._patient_until - time.monotonic()))
        plain = not ready and "STEMMA_GRAMMAR_WALKER" not in os.environ
        return self._workers.compile(constraint, vocab, walker="numpy" if plain else None)

    def _start_thread(self) -> None:
        """Starting one takes its time, so it is done by the thread that becomes busy, not by who has the task."""
        with self._lock:
            if self._closed or self._threads == self._max_threads:
                return
            self._threads += 1
            self._idle += 1
        # A daemon, so that the end of the program does not wait for what nobody waits for.
        threading.Thread(target=self._loop, name="stemma-grammar", daemon=True).start()

    def _loop(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            with self._lock:
                self._idle -= 1
                last = not self._idle
            if last:
                self._start_thread()
            try:
                task()
            finally:
                with self._lock:
                    self._idle += 1
            del task
