"""For GPUs: the fused kernel of `stemma.kernels.rope_store_kv`, without its rotation."""

from __future__ import annotations

from torch import Tensor

from stemma.kernels.rope_store_kv.triton import run


def store_kv(k: Tensor, v: Tensor, slots: Tensor, k_pool: Tensor, v_pool: Tensor) -> None:
    """See the package docstring."""
    run(k, k, v, k, k, slots, k_pool, v_pool, False, True)
