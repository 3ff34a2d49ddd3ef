"""Where programs run beside their caller: one event loop in a thread of its own, and threads for sync bodies."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

BODY_THREADS = 64  # sync bodies that `arun` runs at a time

body_depth: contextvars.ContextVar[int] = contextvars.ContextVar("stemma_body_depth", default=0)

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop; started with the first use."""
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=run_always, args=(_loop,), name="stemma-programs", daemon=True)
            _thread.start()
        return _loop


def run_always(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until its thread dies with the process, whatever its tasks raise.

    A task that raises `SystemExit` or `KeyboardInterrupt` stops its loop as well. Whoever waits for the task is told by
    the loop, so it must go on.
    """
    while not loop.is_closed():
        try:
            loop.run_forever()
        except BaseException as error:
            if not isinstance(error, (SystemExit, KeyboardInterrupt)):
                raise


def on_background_loop() -> bool:
    """Whether the caller runs on that loop, and so must not block it."""
    return threading.current_thread() is _thread


def _restart_after_fork() -> None:
    global _loop, _thread, _lock
    _loop, _thread, _lock = None, None, threading.Lock()


os.register_at_fork(after_in_child=_restart_after_fork)


@functools.cache
def bodies(depth: int) -> ThreadPoolExecutor:
    """Threads for sync bodies. A body inside a body has others: those of its outer one may all be waiting for it."""
    return ThreadPoolExecutor(BODY_THREADS, "stemma-body")


os.register_at_fork(after_in_child=bodies.cache_clear)  # its threads are not in the child
