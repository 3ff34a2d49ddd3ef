"""The definition, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_mask(logits: Tensor, table: Tensor, row_ids: Tensor, temperature: Tensor | None) -> None:
    """See the package docstring."""
    if temperature is not None:
        divisor = torch.where(temperature == 0, torch.ones_like(temperature), temperature)
        logits.copy_(logits.float() / divisor[:, None])
    masked = (row_ids >= 0).nonzero()[:, 0]
    if masked.numel():
        token = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
        words = table[row_ids[masked].long()][:, (token >> 5).long()]
        forbidden = ((words >> (token & 31)) & 1) == 0
        logits[masked] = logits[masked].masked_fill_(forbidden, float("-inf"))
