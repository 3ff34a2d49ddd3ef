"""What the scheduler is given from outside: text tools, and a compiler of constraints. Protocols only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from stemma.backend.grammar.base import Grammar
from stemma.backend.scheduler.branch import TextOut
from stemma.lang.params import Constraint, SamplingParams

Compile = Callable[[Constraint, Callable[[Grammar | Exception], None]], None]
"""Make a grammar and hand it (or the error) to the callback, in the scheduler's thread, now or later."""
Clock = Callable[[], float]
"""Seconds that never go back. The simulator's is its own."""


class TokenizerLike(Protocol):
    @property
    def bos_id(self) -> int | None: ...
    @property
    def add_bos(self) -> bool: ...
    @property
    def eos_ids(self) -> frozenset[int]: ...

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]], *, start: bool = False) -> list[int]: ...
    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str: ...


class TextTools(Protocol):
    @property
    def tokenizer(self) -> TokenizerLike: ...

    def markers(self, role: str, previous: tuple[str, ...]) -> tuple[str, str]:
        """Text before and after a message of this role, as special-token text. RequestError for an unknown role."""
        ...

    def stream(self, params: SamplingParams) -> TextOut:
        """A fresh text stream for one generation."""
        ...
