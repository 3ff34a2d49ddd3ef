"""For GPUs: the fused kernel of `stemma.kernels.rope_store_kv`, without its store."""

from __future__ import annotations

from torch import Tensor

from stemma.kernels.rope_store_kv.triton import run


def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See the package docstring."""
    run(q, k, k, cos, sin, q, k, k, True, False)
