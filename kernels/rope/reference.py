"""The definition, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    a, b = x.chunk(2, dim=-1)
    c, s = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    x.copy_(torch.cat((a * c - b * s, b * c + a * s), dim=-1))


def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See the package docstring."""
    _rotate(q, cos, sin)
    _rotate(k, cos, sin)
