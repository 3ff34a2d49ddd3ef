"""Python work beside a thread that must not wait.

Threads share one interpreter: while one computes in Python, another gets its turn only every `sys.getswitchinterval()`
(5 ms), and must wait again after each operation for which it lets go, as tensor operations do. So background work
inside `giving_way` sleeps often enough that it takes a small share of the interpreter.

The garbage collector stops all threads while it looks at every object: 100 ms in a process that has loaded torch, and
more with each grammar. So what lives long is set aside (`gc.freeze`) while the other thread is busy, and looked at when
it is not.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

ALLOWANCE = 0.002  # seconds of work before the first rest; it grows again with time
SLICE = 0.0004  # seconds of work between two rests
REST = 0.0016
SWITCH = 0.001  # the switch interval meanwhile, for loops without calls
MANY = 2_000  # new objects that are worth setting aside
LONGEST = 120.0  # seconds after which what was set aside is looked at, though somebody waits

_lock = threading.Lock()
_credit = [ALLOWANCE, 0.0]  # seconds of work allowed, and when that was
_ours = False  # it was us who set objects aside
_mixed = False  # garbage may be among them
_looked = time.monotonic()  # when everything was looked at last


@contextlib.contextmanager
def giving_way(busy: Callable[[], bool]) -> Iterator[None]:
    """While `busy()`, the calling thread rests REST after each SLICE of work, beyond an allowance that all such work of
    the process shares; one thread at a time. Rests fall on calls and returns of functions; if a profiler watches these,
    none do."""
    with _lock, not_collecting():
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

        interval = sys.getswitchinterval()
        sys.setswitchinterval(min(interval, SWITCH))
        sys.setprofile(on_call)
        try:
            yield
        finally:
            sys.setprofile(None)
            sys.setswitchinterval(interval)
            now = time.perf_counter()
            _credit[:] = max(0.0, allowed - (now - begin)), now


@contextlib.contextmanager
def not_collecting() -> Iterator[None]:
    """No collection in between; what was made in between is set aside if it is much."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] > MANY:
            set_aside()
        gc.enable()


def set_aside() -> None:
    """Spare the collector all that lives now. Takes no time. Not if the program does so itself."""
    global _ours, _mixed
    if _ours or not gc.get_freeze_count():
        gc.freeze()
        _ours = _mixed = True


def collect_all(busy: bool = False) -> None:
    """Collect the garbage in what was set aside; nothing if nothing was. Takes long (0.1 s and more): for when nobody
    waits. With `busy` it is only done if that has not been so for LONGEST."""
    global _mixed, _looked
    if busy and time.monotonic() - _looked < LONGEST:
        return
    _looked = time.monotonic()
    if _mixed:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        _mixed = False
