"""A thread that notices when another one does not come back."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable


class Watchdog:
    """Watches stretches of work: `begin`, then `end`. Idle time between them does not count.

    When a stretch lasts longer than `timeout` seconds, the stacks of all threads go to stderr and `hangs` is called
    once, with the cause, in the watchdog's thread. timeout 0: nobody watches.
    """

    def __init__(self, timeout: float, hangs: Callable[[str], None]) -> None:
        self.timeout = timeout
        self.fired = False
        self.cause = ""
        self._hangs = hangs
        self._since: float | None = None
        self._closed = threading.Event()
        if timeout > 0:
            threading.Thread(target=self._watch, name="stemma-watchdog", daemon=True).start()

    def begin(self) -> None:
        self._since = time.monotonic()

    def end(self) -> None:
        self._since = None

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        pause = min(max(self.timeout / 8, 0.005), 1.0)
        while not self._closed.wait(pause):
            since = self._since
            if since is None or time.monotonic() - since <= self.timeout:
                continue
            self.fired = True
            self.cause = f"the engine stopped: a step has not come back for {self.timeout:g} s (watchdog_timeout)"
            dump_stacks(self.cause)
            self._hangs(self.cause)
            return


def dump_stacks(why: str) -> None:
    """The stacks of all threads, to stderr."""
    print(f"stemma: {why}; all threads:", file=sys.stderr, flush=True)
    try:
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    except (OSError, ValueError, AttributeError):  # a stderr without a file behind it
        faulthandler.dump_traceback(2, all_threads=True)
