"""Rotary embedding tables (Su et al. 2021; scaling rules after transformers' `modeling_rope_utils`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stemma.backend.layers.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """fp32 [head_dim / 2], in radians for each position."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / frequencies
        longest = rope.original_context / rope.low_freq_factor
        shortest = rope.original_context / rope.high_freq_factor
        blend = (rope.original_context / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blended = (1 - blend) * frequencies / rope.factor + blend * frequencies
        scaled = torch.where(wavelength > longest, frequencies / rope.factor, frequencies)
        return torch.where((wavelength <= longest) & (wavelength >= shortest), blended, scaled)
    return frequencies


class RotaryTable:
    """cos and sin for every position: fp32 [context, D / 2]."""

    def __init__(self, rope: RopeConfig, head_dim: int, context_length: int, device: torch.device) -> None:
        angles = torch.outer(torch.arange(context_length).float(), inverse_frequencies(rope, head_dim))
        self.cos = angles.cos().to(device)
        self.sin = angles.sin().to(device)
