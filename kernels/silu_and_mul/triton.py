"""For GPUs. TRITON_INTERPRET=1 runs it on CPU tensors (tests)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _gate(gate_up, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_up + row * 2 * size + at, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * size + size + at, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    small = tl.exp(-tl.abs(wide))
    # the gate is rounded before it multiplies, as in plain torch
    silu = (wide * tl.where(wide >= 0, 1.0, small) / (1.0 + small)).to(gate.dtype).to(tl.float32)
    tl.store(out + row * size + at, (silu * up.to(tl.float32)).to(out.dtype.element_ty), mask=inside)


def silu_and_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """See the package docstring."""
    rows, double = gate_up.shape
    size = double // 2
    if out is None:
        out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    for first in range(0, rows, 65535):  # the second dimension of a grid ends there
        some = min(65535, rows - first)
        options: dict[str, Any] = {"BLOCK": _BLOCK}
        _gate[(triton.cdiv(size, _BLOCK), some)](gate_up[first:], out[first:], size, **options)
    return out
