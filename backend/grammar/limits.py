"""Bounds that keep a hostile constraint from taking time or memory, and the clock that compilation looks at."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from stemma.lang.errors import ConstraintError

MAX_PATTERN = 100_000  # characters of regex source
MAX_DEPTH = 50  # nested groups; the parser is recursive
MAX_ATOMS = 50_000  # distinct literals and classes in one regex
MAX_SIZE = 100_000  # characters and bytes of the language after repeats are written out
MAX_STATES = 100_000  # determinised states of one grammar
MAX_ITEMS = 2_000_000  # members of all determinised states together
MAX_WORK = 10_000_000  # empty moves followed for all of them: seconds of work
MAX_NODES = 200_000  # parts of one JSON schema
MAX_NESTING = 200  # of its parts in each other
MAX_TEXT = 4_000_000  # characters of one JSON schema
MAX_PRODUCT = 20_000  # states of intersected and complemented patterns
MAX_PUSHES = 20_000  # calls entered without reading a byte
TIME_LIMIT = 2.0  # seconds for one compilation
MEMORY_LIMIT = 512 << 20  # bytes that a compiling process may hold
MAX_FLAT = 8 << 20  # bytes of one automaton as arrays
MAX_CLASS_EDGES = 50_000  # of the byte trees of its character classes
MAX_VALUE = 16 << 20  # bytes of a constraint that is looked at at all

SMALLER = "make it smaller: lower its repeat counts, use fewer alternatives, or split it over several generations"


@dataclass(slots=True)
class Deadline:
    """A compilation's clock. Long loops call `check`; it raises ConstraintError once the time is up.

    `clock`: `time.process_time` in a process that does nothing else: a busy machine then refuses no more than others.
    """

    seconds: float
    what: str
    until: float = 0.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.until = self.clock() + self.seconds

    @property
    def over(self) -> bool:
        return self.clock() > self.until

    def check(self) -> None:
        if self.over:
            raise ConstraintError(
                f"{self.what} took longer than {self.seconds:g} s to compile; {SMALLER}", param=self.what
            )
