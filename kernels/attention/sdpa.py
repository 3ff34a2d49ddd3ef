"""Row by row with `torch.scaled_dot_product_attention` on gathered keys and values: portable, any dtype.

Plain decode rows of similar length are padded together, so a step of many one-token rows costs one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.kernels.attention import AttentionBatch


@dataclass(slots=True)
class _Piece:
    """Rows with an equal number of new tokens, computed in one call: m rows x n tokens on `slots` [m * length]."""

    tokens: Tensor  # [m * n] flat token index
    slots: Tensor  # [m * length]
    mask: Tensor | None  # [m, 1, n, length] additive, None when everything is visible
    rows: int
    n: int


def _pieces(batch: AttentionBatch, dtype: torch.dtype, device: torch.device) -> list[_Piece]:
    ends = batch.start + batch.n
    order = sorted(range(len(batch.rows)), key=lambda i: (int(batch.n[i]), int(ends[i])))
    pieces: list[_Piece] = []
    members: list[int] = []

    def close() -> None:
        n, length = int(batch.n[members[0]]), int(max(ends[i] for i in members))
        slots = np.zeros((len(members), length), np.int64)
        for k, i in enumerate(members):
            slots[k, : ends[i]] = batch.slot_table[batch.rows[i], : ends[i]]
        positions = batch.start[members, None] + np.arange(n, dtype=np.int32)  # [m, n]
        visible = np.arange(length) <= positions[:, :, None]
        mask = None
        if not visible.all():
            mask = torch.zeros(len(members), 1, n, length, dtype=dtype)
            mask.masked_fill_(torch.from_numpy(~visible)[:, None], float("-inf"))
        tokens = batch.offsets[members, None].astype(np.int64) + np.arange(n)
        pieces.append(
            _Piece(
                torch.from_numpy(tokens.reshape(-1)).to(device),
                torch.from_numpy(slots.reshape(-1)).to(device),
                mask if mask is None else mask.to(device),
                len(members),
                n,
            )
        )

    for i in order:
        alike = members and batch.n[i] == batch.n[members[0]] and ends[i] <= 2 * ends[members[0]]
        if members and not (alike and len(members) * batch.n[i] < 256):
            close()
            members = []
        members.append(i)
    if members:
        close()
    return pieces


def attention(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, batch: AttentionBatch, scale: float, out: Tensor | None = None
) -> Tensor:
    """See the package docstring."""
    tokens, heads, dim = q.shape
    kv_heads = k_pool.shape[1]
    if out is None:
        out = torch.empty(tokens, heads * dim, dtype=q.dtype, device=q.device)
    pieces = batch.prepared.get("sdpa")
    if pieces is None:
        pieces = batch.prepared["sdpa"] = _pieces(batch, q.dtype, q.device)
    for piece in pieces:
        shape = (piece.rows, -1, kv_heads, dim)
        k = k_pool.index_select(0, piece.slots).view(shape).transpose(1, 2)
        v = v_pool.index_select(0, piece.slots).view(shape).transpose(1, 2)
        queries = q.index_select(0, piece.tokens).view(piece.rows, piece.n, heads, dim).transpose(1, 2)
        result = F.scaled_dot_product_attention(
            queries, k, v, attn_mask=piece.mask, scale=scale, enable_gqa=heads != kv_heads
        )
        out.index_copy_(0, piece.tokens, result.transpose(1, 2).reshape(-1, heads * dim))
    return out
