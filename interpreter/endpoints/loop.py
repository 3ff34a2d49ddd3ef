"""One event loop on one background thread, shared by every endpoint of the process that lowers programs to requests.

Thousands of programs wait here as tasks, not as threads. Nothing of the user's runs on it: a program that blocks its
own loop holds nobody's requests up.
"""

from __future__ import annotations

import asyncio
import os
import threading

from stemma.interpreter.background import run_always

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """The running loop; started at the first call, and again in a forked child."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=run_always, args=(_loop,), name="stemma-requests", daemon=True).start()
        return _loop


def _restart_after_fork() -> None:
    global _loop, _lock
    _loop, _lock = None, threading.Lock()  # the parent's thread does not exist here


os.register_at_fork(after_in_child=_restart_after_fork)
