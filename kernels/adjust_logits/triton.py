"""For GPUs. TRITON_INTERPRET=1 runs it on CPU tensors (tests)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


@triton.jit
def _adjust(logits, rows, ids, add, divide, minus, count, vocab, BLOCK: tl.constexpr):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < count
    row = tl.load(rows + e, mask=inside, other=0).to(tl.int64)
    at = logits + row * vocab + tl.load(ids + e, mask=inside, other=0)
    x = tl.load(at, mask=inside, other=0.0) + tl.load(add + e, mask=inside, other=0.0)
    by = tl.load(divide + e, mask=inside, other=1.0)
    x = tl.where(x > 0, tl.div_rn(x, by), x * by) - tl.load(minus + e, mask=inside, other=0.0)
    tl.store(at, x, mask=inside)


def adjust_logits(logits: Tensor, rows: Tensor, ids: Tensor, add: Tensor, divide: Tensor, minus: Tensor) -> None:
    """See the package docstring."""
    if not logits.is_contiguous():
        raise ValueError(f"logits must be contiguous, got strides {logits.stride()}")
    count = rows.shape[0]
    if count:
        grid = (triton.cdiv(count, _BLOCK),)
        # products are rounded before the subtraction, as on CPU
        options = {"BLOCK": _BLOCK, "enable_fp_fusion": False}
        _adjust[grid](logits, rows, ids, add, divide, minus, count, logits.shape[1], **options)
