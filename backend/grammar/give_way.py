"""Python work beside a thread that must not wait.

Threads share one interpreter: while one computes in Python, another gets its turn only every `sys.getswitchinterval()`
(5 ms), and must wait again after each operation for which it lets go, as tensor operations do. So background work
inside `giving_way` sleeps often enough that it takes a small share of the interpreter.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ALLOWANCE = 0.002  # seconds of work before the first rest; it grows again with time
SLICE = 0.0004  # seconds of work between two rests
REST = 0.0016

_lock = threading.Lock()
_credit = [ALLOWANCE, 0.0]  # seconds of work allowed, and when that was


@contextlib.contextmanager
def giving_way(busy: Callable[[], bool]) -> Iterator[None]:
    """While `busy()`, the calling thread rests REST after each SLICE of work, beyond an allowance that all such work of
    the process shares; one thread at a time. Rests fall on calls and returns of functions; if a profiler watches these,
    none do."""
    with _lock:
        if sys.getprofile() is not None:
            yield
            return
        begin = now = time.perf_counter()
        allowed = min(ALLOWANCE, _credit[0] + (now - _credit[1]) * SLICE / (SLICE + REST))
        until = now + max(allowed, SLICE)

        def on_call(frame: Any, event: str, arg: Any) -> None:
            nonlocal until
            if time.perf_counter() >= until:
                if busy():
                    time.sleep(REST)
                until = time.perf_counter() + SLICE

        sys.setprofile(on_call)
        try:
            yield
        finally:
            sys.setprofile(None)
            now = time.perf_counter()
            _credit[:] = max(0.0, allowed - (now - begin)), now
