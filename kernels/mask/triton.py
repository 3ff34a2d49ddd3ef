"""For GPUs. With TRITON_INTERPRET=1 in the environment before this is imported, it runs on CPU tensors too (tests)."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # logits of one program


@triton.jit
def _apply(logits, table, row_ids, temperature, vocab, words, SCALED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(row_ids + row)
    by = tl.full([], 1.0, tl.float32)
    if SCALED:
        given = tl.load(temperature + row)
        by = tl.where(given == 0, 1.0, given)
    if (slot >= 0) | (by != 1.0):
        inside = token < vocab
        allowed = inside
        if slot >= 0:
            word = tl.load(table + slot.to(tl.int64) * words + (token >> 5), mask=inside, other=0)
            allowed = inside & (((word >> (token & 31)) & 1) != 0)
        at = logits + row.to(tl.int64) * vocab + token
        value = tl.load(at, mask=allowed, other=float("-inf"))  # what is forbidden is not even read
        if SCALED:
            value = tl.div_rn(value.to(tl.float32), by).to(value.dtype)
        tl.store(at, value, mask=inside)


def apply_mask(logits: Tensor, table: Tensor, row_ids: Tensor, temperature: Tensor | None) -> None:
    """See the package docstring."""
    if not logits.is_contiguous() or not table.is_contiguous():
        raise ValueError(f"logits and table must be contiguous, got strides {logits.stride()} and {table.stride()}")
    rows, vocab = logits.shape
    if not rows:
        return
    grid = (rows, triton.cdiv(vocab, _BLOCK))
    options: dict[str, Any] = {"SCALED": temperature is not None, "BLOCK": _BLOCK, "enable_fp_fusion": False}
    by = row_ids if temperature is None else temperature
    _apply[grid](logits, table, row_ids, by, vocab, table.shape[1], **options)
