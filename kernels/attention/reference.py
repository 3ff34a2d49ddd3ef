"""The definition, in plain torch: one query at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from stemma.kernels.attention import AttentionBatch


def attention(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, batch: AttentionBatch, scale: float, out: Tensor | None = None
) -> Tensor:
    """See the package docstring."""
    tokens, heads, dim = q.shape
    repeat = heads // k_pool.shape[1]
    result = torch.empty(tokens, heads, dim, dtype=q.dtype, device=q.device)
    for i, row in enumerate(batch.rows):
        for t in range(batch.offsets[i], batch.offsets[i + 1]):
            position = int(batch.start[i] + t - batch.offsets[i])
            slots = torch.tensor(batch.slot_table[row, : position + 1].tolist(), device=q.device)
            k = k_pool[slots].float().repeat_interleave(repeat, dim=1)  # [position + 1, Hq, D]
            v = v_pool[slots].float().repeat_interleave(repeat, dim=1)
            weights = torch.softmax(torch.einsum("hd,khd->hk", q[t].float(), k) * scale, dim=-1)
            result[t] = torch.einsum("hk,khd->hd", weights, v).to(q.dtype)
    flat = result.view(tokens, heads * dim)
    return flat if out is None else out.copy_(flat)
