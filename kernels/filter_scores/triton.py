"""For GPUs, without a sort: bisect for the score at which each filter cuts, as SciPy would for a root.

One program for each row. Scores become integers of the same order (the bits of a float, with the negative ones
flipped), and at most 33 halvings of their range find the largest one at which enough tokens, or enough probability, lie
at or above it. Tokens equal to it are kept by id. TRITON_INTERPRET=1 runs it on CPU tensors (tests).
"""

# pyright: reportOperatorIssue=false
# (Triton says that a sum may be a tuple)

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _ordered(x):
    """int32 keys in the order of fp32 x; -0.0 is 0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _at_least(row, vocab, key, top, BLOCK: tl.constexpr):
    """(how many scores of the row are >= key, their mass relative to the best)."""
    count = tl.zeros([1], tl.int32)
    mass = tl.zeros([1], tl.float64)
    for at in range(0, vocab, BLOCK):
        token = at + tl.arange(0, BLOCK)
        x = tl.load(row + token, mask=token < vocab, other=float("-inf"))
        hit = (_ordered(x) >= key) & (x > float("-inf"))
        count += tl.sum(hit.to(tl.int32), 0)
        mass += tl.sum(tl.where(hit, tl.exp(x - top), 0.0), 0).to(tl.float64)
    return count, mass


@triton.jit
def _filter(scores, top_k, top_p, min_p, vocab, BLOCK: tl.constexpr):
    one = tl.arange(0, 1)
    row = scores + tl.program_id(0).to(tl.int64) * vocab
    k = tl.load(top_k + tl.program_id(0) + one)
    p = tl.load(top_p + tl.program_id(0) + one)
    least = tl.load(min_p + tl.program_id(0) + one)
    by_k = tl.sum((k < vocab).to(tl.int32), 0) > 0
    by_p = tl.sum((p < 1).to(tl.int32), 0) > 0
    by_least = tl.sum((least > 0).to(tl.int32), 0) > 0
    if by_k | by_p | by_least:
        best = tl.full([BLOCK], float("-inf"), tl.float32)
        for at in range(0, vocab, BLOCK):
            token = at + tl.arange(0, BLOCK)
            best = tl.maximum(best, tl.load(row + token, mask=token < vocab, other=float("-inf")))
        top = tl.max(best, 0) + tl.zeros([1], tl.float32)
        worst = _ordered(tl.full([1], -3.4028234663852886e38, tl.float32))
        cut = worst  # kept: all above the cut, and the first `ties` equal to it
        ties = tl.zeros([1], tl.int32) + vocab
        highest = _ordered(top)
        count, total = _at_least(row, vocab, worst, top, BLOCK)

        if by_k:
            low, high = worst.to(tl.int64), highest.to(tl.int64) + 1  # count(low) >= k > count(high)
            above, above_mass = tl.zeros([1], tl.int32), tl.zeros([1], tl.float64)
            at_low = count
            if tl.sum((count > k).to(tl.int32), 0) > 0:
                while tl.sum((high - low > 1).to(tl.int32) & (at_low - above > 1).to(tl.int32), 0) > 0:
                    middle = (low + high) >> 1
                    here, mass = _at_least(row, vocab, middle.to(tl.int32), top, BLOCK)
                    enough = here >= k
                    low = tl.where(enough, middle, low)
                    at_low = tl.where(enough, here, at_low)
                    total = tl.where(enough, mass, total)
                    high = tl.where(enough, high, middle)
                    above = tl.where(enough, above, here)
                    above_mass = tl.where(enough, above_mass, mass)
                # either the cut's value is found, or a single token is left in [low, high)
                each = (total - above_mass) / (at_low - above)
                cut = low.to(tl.int32)
                ties = k - above
                total = above_mass + each * ties
        if by_p:
            wanted = p.to(tl.float64) * total
            low, high = cut.to(tl.int64), highest.to(tl.int64) + 1  # mass(low) >= wanted > mass(high)
            above, above_mass = tl.zeros([1], tl.int32), tl.zeros([1], tl.float64)
            at_low, mass_low = _at_least(row, vocab, cut, top, BLOCK)
            while tl.sum((high - low > 1).to(tl.int32) & (at_low - above > 1).to(tl.int32), 0) > 0:
                middle = (low + high) >> 1
                here, mass = _at_least(row, vocab, middle.to(tl.int32), top, BLOCK)
                enough = mass >= wanted
                low = tl.where(enough, middle, low)
                at_low = tl.where(enough, here, at_low)
                mass_low = tl.where(enough, mass, mass_low)
                high = tl.where(enough, high, middle)
                above = tl.where(enough, above, here)
                above_mass = tl.where(enough, above_mass, mass)
            each = (mass_low - above_mass) / tl.maximum(at_low - above, 1)
            # a token is kept while the mass before it is less than what is wanted; the first always
            fitting = tl.ceil((wanted - above_mass) / each).to(tl.int32)
            fitting = tl.maximum(fitting, (above == 0).to(tl.int32))
            lower = low.to(tl.int32) > cut
            ties = tl.where(lower, fitting, tl.minimum(ties, fitting))
            cut = low.to(tl.int32)
        if by_least:
            bound = _ordered(top + tl.log(least))
            ties = tl.where(bound > cut, vocab, ties)
            cut = tl.maximum(cut, bound)

        seen = tl.zeros([1], tl.int32)
        for at in range(0, vocab, BLOCK):
            token = at + tl.arange(0, BLOCK)
            inside = token < vocab
            x = tl.load(row + token, mask=inside, other=float("-inf"))
            key = _ordered(x)
            equal = (key == cut) & inside
            rank = seen + tl.cumsum(equal.to(tl.int32), 0)
            keep = (key > cut) | (equal & (rank <= ties))
            tl.store(row + token, tl.where(keep, x, float("-inf")), mask=inside)
            seen += tl.sum(equal.to(tl.int32), 0)


def filter_scores(scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """See the package docstring."""
    if not scores.is_contiguous():
        raise ValueError(f"scores must be contiguous, got strides {scores.stride()}")
    rows, vocab = scores.shape
    if rows:
        options: dict[str, Any] = {"BLOCK": _BLOCK, "num_warps": 8}
        _filter[(rows,)](scores, top_k, top_p, min_p, vocab, **options)
