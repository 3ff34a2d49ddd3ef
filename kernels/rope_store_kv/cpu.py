"""Compiled for CPU, fp32: one after the other, since the keys are still in the cache."""

from __future__ import annotations

from torch import Tensor

from stemma.kernels.rope.cpu import apply_rope
from stemma.kernels.store_kv.cpu import store_kv


def rope_store_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, k_pool: Tensor, v_pool: Tensor
) -> None:
    """See the package docstring."""
    apply_rope(q, k, cos, sin)
    store_kv(k, v, slots.long(), k_pool, v_pool)
