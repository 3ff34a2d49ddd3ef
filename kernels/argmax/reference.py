"""The definition, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def argmax(scores: Tensor) -> Tensor:
    """See the package docstring."""
    ids = torch.arange(scores.shape[1], device=scores.device)
    best = scores == scores.amax(dim=-1, keepdim=True)
    return torch.where(best, ids, scores.shape[1]).amin(dim=-1).clamp_max(scores.shape[1] - 1)
