"""A constraint that begins behind a marker which the model has as one special token.

Text constraints know no special tokens (`backend.grammar.after` is for markers that are text), but as a special token
stands alone, it is enough to watch for it: before it nothing is asked, behind it the grammar's own matcher decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from stemma.backend.core import Int32, mask_words
from stemma.backend.grammar.base import Matcher


@lru_cache(maxsize=16)
def all_but(tokens: frozenset[int], vocab_size: int) -> Int32:
    """The bitmask row of all tokens except these."""
    row = np.zeros(mask_words(vocab_size) * 32, np.uint8)
    row[:vocab_size] = 1
    row[[token for token in tokens if token < vocab_size]] = 0
    packed = np.packbits(row, bitorder="little").view(np.int32)
    packed.flags.writeable = False
    return packed


class AfterToken:
    """See `grammar.base.Matcher`. Any token but EOS may come before `marker`, then what `inner` allows."""

    __slots__ = ("_eos", "_free", "_inner", "_inside", "_marker", "_vocab_size")

    def __init__(self, inner: Matcher, marker: int, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._inner, self._marker, self._vocab_size = inner, marker, vocab_size
        self._eos = frozenset(eos_ids)
        self._free = 0  # tokens accepted before the marker, and the marker
        self._inside = -1  # tokens accepted behind it; -1: it has not come yet

    def mask(self) -> Int32:
        return self._inner.mask() if self._inside >= 0 else all_but(self._eos, self._vocab_size)

    def accept(self, token_id: int) -> bool:
        if self._inside >= 0:
            return self._accept_inside(token_id)
        if token_id in self._eos or not 0 <= token_id < self._vocab_size:
            return False
        self._free += 1
        self._inside = 0 if token_id == self._marker else -1
        return True

    def forced(self) -> list[int]:
        return self._inner.forced() if self._inside >= 0 else []

    def draft(self) -> list[int]:
        return self._inner.draft() if self._inside >= 0 else []

    def shortest_completion(self) -> list[int]:
        return [*([self._marker] if self._inside < 0 else []), *self._inner.shortest_completion()]

    def can_finish(self, tokens: int) -> bool:
        return self._inner.can_finish(tokens - (self._inside < 0))

    def is_complete(self) -> bool:
        return self._inside >= 0 and self._inner.is_complete()

    def is_finished(self) -> bool:
        return self._inside >= 0 and self._inner.is_finished()

    def rollback(self, n: int) -> None:
        inside = max(self._inside, 0)
        if not 0 <= n <= inside + self._free:
            raise ValueError(f"cannot roll back {n} tokens; {inside + self._free} were accepted")
        if n <= inside:
            self._inner.rollback(n)
            self._inside -= n if self._inside >= 0 else 0
            return
        self._inner.rollback(inside)
        self._free -= n - inside
        self._inside = -1

    def clone(self) -> AfterToken:
        twin = AfterToken(self._inner.clone(), self._marker, self._vocab_size, self._eos)
        twin._free, twin._inside = self._free, self._inside
        return twin

    def _accept_inside(self, token_id: int) -> bool:
        taken = self._inner.accept(token_id)
        self._inside += taken
        return taken
