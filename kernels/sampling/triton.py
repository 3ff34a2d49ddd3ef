"""For GPUs: the noise of every token is made where its score is read, in float64 as in the reference.

TRITON_INTERPRET=1 runs it on CPU tensors (tests)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stemma.kernels.argmax.triton import best_of

_BLOCK = 1024  # scores of one program

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * _MIX1
    x = (x ^ (x >> 27)) * _MIX2
    return x ^ (x >> 31)


@triton.jit
def _draw(scores, seeds, positions, best, best_id, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + row * vocab + token, mask=token < vocab, other=float("-inf"))
    seed = tl.load(seeds + row + tl.arange(0, 1)).to(tl.uint64)
    position = tl.load(positions + row + tl.arange(0, 1)).to(tl.uint64)
    key = _mix(_mix(seed + _GOLDEN) + position * _GOLDEN)
    bits = _mix(key + (token + 1).to(tl.uint64) * _GOLDEN) >> 11
    u = (bits.to(tl.int64).to(tl.float64) + 0.5) * 1.1102230246251565e-16
    # -log1p(-u); where 1 - u would round u's last digits away, its series
    exponential = tl.where(u < 1e-4, u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * 0.25))), -tl.log(1.0 - u))
    value = score.to(tl.float64) - tl.log(exponential)
    value = tl.where(score == float("-inf"), float("-inf"), value)
    top = tl.max(value, 0)
    found = tl.min(tl.where((value == top) & (token < vocab), token, vocab - 1), 0)
    at = row * tl.num_programs(1) + block
    tl.store(best + at, top)
    tl.store(best_id + at, found)


def draw(scores: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """See the package docstring."""
    scores, seeds, positions = scores.contiguous(), seeds.contiguous(), positions.contiguous()
    rows, vocab = scores.shape
    blocks = triton.cdiv(vocab, _BLOCK)
    best = torch.empty(rows, blocks, dtype=torch.float64, device=scores.device)
    best_id = torch.empty(rows, blocks, dtype=torch.int32, device=scores.device)
    if rows:
        options: dict[str, Any] = {"BLOCK": _BLOCK}
        _draw[(rows, blocks)](scores, seeds, positions, best, best_id, vocab, **options)
    return best_of(best, best_id, vocab)
