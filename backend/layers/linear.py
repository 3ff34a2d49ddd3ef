"""Linear: y = x W^T + b."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.backend.layers.pages import place


class Linear:
    """weight [out, in], bias [out] or None. Several projections of one input are one `Linear` (`fused`)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = place(weight)
        self.bias = bias

    @classmethod
    def fused(cls, weights: list[Tensor], biases: list[Tensor] | None = None) -> Linear:
        """Stacks projections along their outputs."""
        return cls(torch.cat(weights), torch.cat(biases) if biases else None)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
