"""Made-up tokens: each key names an endless sequence, so equal keys are equal prefixes.

What a generation will say is packed into the seed of its sampling parameters, which every plan carries: the runner
needs no table, and one numpy expression answers a whole step.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np

from stemma.backend.core import Int32, Int64

KEY_BITS, LENGTH_BITS = 40, 20
MAX_LENGTH = (1 << LENGTH_BITS) - 1
_EOS, _RECORDED = 1 << (KEY_BITS + LENGTH_BITS), 1 << (KEY_BITS + LENGTH_BITS + 1)


@lru_cache(maxsize=4096)
def key_number(key: str) -> int:
    """40 bits of a key's hash."""
    return int.from_bytes(blake2b(key.encode(), digest_size=KEY_BITS // 8).digest(), "big")


def stream(keys: np.ndarray | int, positions: np.ndarray, vocab: int) -> Int32:
    """The tokens of keys at positions (broadcast), in [0, vocab). splitmix64 of both."""
    with np.errstate(over="ignore"):
        x = np.asarray(keys, np.uint64) * np.uint64(0xD1342543DE82EF95) + np.asarray(positions, np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x ^ (x >> np.uint64(31))) % np.uint64(vocab)).astype(np.int32)


class Outputs:
    """What every generation says. `vocab` is the number of ordinary tokens; the end token is the id behind them."""

    def __init__(self, vocab: int) -> None:
        self.vocab, self.eos = vocab, vocab
        self._recorded = np.zeros(1 << 12, np.int32)
        self._used = 0

    def seed(self, key: int, length: int, eos: bool, ids: list[int] | None = None) -> int:
        """The seed of a generation of `length` tokens, the last of which is the end token if `eos`."""
        if not 1 <= length <= MAX_LENGTH:
            raise ValueError(f"the length of an output must be in [1, {MAX_LENGTH}], got {length}")
        flags = _EOS if eos else 0
        if ids:
            flags |= _RECORDED
            key = self._record(ids)
        return flags | length << KEY_BITS | key

    def _record(self, ids: list[int]) -> int:
        at, self._used = self._used, self._used + len(ids)
        if self._used > len(self._recorded):
            self._recorded = np.concatenate([self._recorded, np.zeros(max(self._used, len(self._recorded)), np.int32)])
        self._recorded[at : self._used] = ids
        return at

    @staticmethod
    def lengths(seeds: Int64) -> Int64:
        return (seeds >> KEY_BITS) & MAX_LENGTH

    def tokens(self, seeds: Int64, at: np.ndarray) -> Int32:
        """Output tokens number `at` (0 is the first) of the generations with these seeds (broadcast)."""
        keys = seeds & ((1 << KEY_BITS) - 1)
        out = stream(keys, at, self.vocab)
        recorded = (seeds & _RECORDED) != 0
        if recorded.any():
            where = np.minimum(np.where(recorded, keys + at, 0), len(self._recorded) - 1)
            out = np.where(recorded, self._recorded[where], out)
        return np.where(((seeds & _EOS) != 0) & (at == self.lengths(seeds) - 1), np.int32(self.eos), out)
