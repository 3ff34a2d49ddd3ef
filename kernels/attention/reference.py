"""The definition, in plain torch: one query at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from stemma.kernels.attention import AttentionBatch


def attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    batch: AttentionBatch,
    scale: float,
    out: Tensor | None = None,
    lse: Tensor | None = None,
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
            scores = torch.einsum("hd,khd->hk", q[t].float(), k) * scale
            weights = torch.softmax(scores, dim=-1)
            if lse is not None:
                lse[t] = torch.logsumexp(scores, dim=-1)
            result[t] = torch.einsum("hk,khd->hd", weights, v).to(q.dtype)
    flat = result.view(tokens, heads * dim)
    return flat if out is None else out.copy_(flat)


def merge_states(
    partial: Tensor, partial_lse: Tensor, merges: Tensor, out: Tensor, lse: Tensor | None = None
) -> Tensor:
    """See the package docstring."""
    flat = out.view(-1, *partial.shape[1:])
    for token, first, count, distance in merges.tolist():
        if not count:
            continue
        rows = first + distance * torch.arange(count, device=partial.device)
        mass = torch.logsumexp(partial_lse[rows], dim=0)  # [Hq]
        weight = torch.exp(partial_lse[rows] - mass).nan_to_num(0.0)  # nothing seen by any part: -inf - -inf
        flat[token] = (weight[:, :, None] * partial[rows]).sum(0).to(out.dtype)
        if lse is not None:
            lse[token] = mass
    return out
