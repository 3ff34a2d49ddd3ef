"""The KV pool: keys and values of every layer, addressed by slot."""

from __future__ import annotations

import torch
from torch import Tensor


class KVPool:
    """keys[layer] and values[layer] are [num_slots, Hkv, D]. Slot 0 is padding, never read.

    All layers of one kind share one allocation [layers, num_slots, Hkv, D], zero at the start.
    """

    def __init__(
        self, layers: int, num_slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, num_slots, kv_heads, head_dim)
        self.num_slots = num_slots
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self.keys: list[Tensor] = list(self._keys)
        self.values: list[Tensor] = list(self._values)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers, [layers, num_slots, Hkv, D] each."""
        return self._keys, self._values

    @staticmethod
    def bytes_per_slot(layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes that one token takes in all layers, keys and values together."""
        return 2 * layers * kv_heads * head_dim * dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Size of the pool in bytes."""
        return self._keys.nbytes + self._values.nbytes

    def clear(self) -> None:
        """Zeroes everything, as at the start."""
        self._keys.zero_()
        self._values.zero_()
