"""numpy's argmax is vectorised on CPU, torch's is not."""

from __future__ import annotations

import torch
from torch import Tensor


def argmax(scores: Tensor) -> Tensor:
    """See the package docstring."""
    return torch.from_numpy(scores.numpy().argmax(axis=1))
