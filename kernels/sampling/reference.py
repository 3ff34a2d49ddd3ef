"""The definition, in plain torch (int64 arithmetic wraps; shifts are made logical by masking)."""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def exponentials(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """E [B, V] in float64, > 0."""
    key = mix(mix(seeds + GOLDEN) + positions * GOLDEN)
    ids = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=seeds.device)
    uniform = (_shift(mix(key[:, None] + ids * GOLDEN), 11).double() + 0.5) * 2.0**-53
    return -torch.log1p(-uniform)


def draw(scores: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """See the package docstring."""
    noise = exponentials(seeds, positions, scores.shape[1])
    return torch.argmax(scores.double() - torch.log(noise), dim=-1)
