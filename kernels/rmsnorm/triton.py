"""For GPUs: one program for each normalised row. TRITON_INTERPRET=1 runs it on CPU tensors (tests)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm(
    x,
    residual,
    weight,
    out,
    inner,
    x_stride,
    out_stride,
    eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    row = tl.program_id(0)
    outer = (row // inner).to(tl.int64)
    at = (row % inner) * DIM
    d = tl.arange(0, BLOCK)
    inside = d < DIM
    scale = tl.load(weight + d, mask=inside, other=0.0)
    value = tl.load(x + outer * x_stride + at + d, mask=inside, other=0.0)
    if ADD:  # x and residual are contiguous
        old = tl.load(residual + outer * DIM + d, mask=inside, other=0.0)
        value = (value.to(tl.float32) + old.to(tl.float32)).to(old.dtype)
        tl.store(residual + outer * DIM + d, value, mask=inside)
    wide = value.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, 0) / DIM + eps)
    result = normed.to(value.dtype).to(tl.float32) * scale.to(tl.float32)
    tl.store(out + outer * out_stride + at + d, result.to(out.dtype.element_ty), mask=inside)


def _options(dim: int, add: bool) -> dict[str, Any]:
    block = triton.next_power_of_2(dim)
    return {"DIM": dim, "BLOCK": block, "ADD": add, "num_warps": min(16, max(1, block // 512))}


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """See the package docstring."""
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dim = x.shape[-1]
    inner = x.shape[1] if x.dim() == 3 else 1
    rows = x.shape[0] * inner
    if rows:
        _norm[(rows,)](
            x,
            x,
            weight,
            out,
            inner,
            x.stride(0),
            out.stride(0),
            eps,
            **_options(dim, False),
        )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """See the package docstring."""
    if out is None:
        out = torch.empty_like(residual)
    rows, dim = x.shape
    if rows:
        _norm[(rows,)](
            x,
            residual,
            weight,
            out,
            1,
            x.stride(0),
            out.stride(0),
            eps,
            **_options(dim, True),
        )
    return out
