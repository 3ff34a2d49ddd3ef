"""For GPUs: a row is cut into blocks, each block finds its best, a second kernel the best of those. TRITON_INTERPRET=1
runs it on CPU tensors (tests)."""

# pyright: reportAttributeAccessIssue=false
# (Triton says that a minimum may be a tuple)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # scores of one program


@triton.jit
def _best(scores, best, best_id, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + row * vocab + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    top = tl.max(score, 0)
    found = tl.min(tl.where((score == top) & (token < vocab), token, vocab - 1), 0)
    at = row * tl.num_programs(1) + block
    tl.store(best + at, top)
    tl.store(best_id + at, found)


@triton.jit
def _best_of(best, best_id, ids, blocks, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    value = tl.load(best + row * blocks + n, mask=n < blocks, other=float("-inf"))
    token = tl.load(best_id + row * blocks + n, mask=n < blocks, other=vocab - 1)
    top = tl.max(value, 0)
    found = tl.min(tl.where(value == top, token, vocab - 1), 0)
    tl.store(ids + row, found.to(tl.int64))


def best_of(best: Tensor, best_id: Tensor, vocab: int) -> Tensor:
    """int64 [B]: the id of the largest of each row of best [B, N]; the lowest among equals."""
    rows, blocks = best.shape
    ids = torch.empty(rows, dtype=torch.int64, device=best.device)
    if rows:
        options: dict[str, Any] = {"BLOCK": triton.next_power_of_2(blocks), "num_warps": 1}
        _best_of[(rows,)](best, best_id, ids, blocks, vocab, **options)
    return ids


def argmax(scores: Tensor) -> Tensor:
    """See the package docstring."""
    rows, vocab = scores.shape
    blocks = triton.cdiv(vocab, BLOCK)
    best = torch.empty(rows, blocks, dtype=torch.float32, device=scores.device)
    best_id = torch.empty(rows, blocks, dtype=torch.int32, device=scores.device)
    if rows:
        options: dict[str, Any] = {"BLOCK": BLOCK}
        _best[(rows, blocks)](scores, best, best_id, vocab, **options)
    return best_of(best, best_id, vocab)
