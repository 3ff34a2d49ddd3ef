"""For GPUs: one kernel for decode, small extends and prefill; it follows the work items of `work.py`.

Each program keeps one tile of queries (all heads that share a KV head) and walks its span of keys with the online
softmax of FlashAttention (Dao et al. 2022). What the keys' slots are is loaded one block ahead: were a slot loaded in
the iteration that uses it, the compiler would wait for all copies in flight. With TRITON_INTERPRET=1 in the environment
before this is imported, it runs on CPU tensors too (tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from stemma.kernels.attention import AttentionBatch
from stemma.kernels.attention.family import FamilyTensors, family_attention
from stemma.kernels.attention.work import FEW, FIELDS, MANY, MERGE_FIELDS, Work, gather_slots, make_work, total_keys

_LOG2E = 1.4426950408889634
_PARTS = 16  # partial results that a merging program takes at once


@triton.jit
def _attend(
    q,
    keys,
    values,
    slots,
    items,
    out,
    lse,
    partial,
    partial_lse,
    scale,
    q_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WITH_LSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(0)
    item = items + tl.program_id(1) * 8
    count = tl.load(item + 4)
    if count == 0:
        return
    token = tl.load(item)
    queries = tl.load(item + 1)
    reach = tl.load(item + 2)
    first = tl.load(item + 3)
    to_partial = tl.load(item + 5)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    mine = m // GROUP  # the query token of each row of the tile
    q_head = head * GROUP + m % GROUP
    inside = mine < queries
    held = inside[:, None] & (d < DIM)[None, :]
    q_at = (token + mine).to(tl.int64) * q_stride + q_head * DIM
    tile = tl.load(q + q_at[:, None] + d[None, :], mask=held, other=0.0)
    visible = tl.minimum(reach + mine, count - 1)  # the last key that each row sees, negative for none

    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    stride = (HEADS // GROUP) * DIM
    slot = tl.load(slots + first + tl.minimum(n, count - 1))
    for at in range(0, count, BLOCK_N):
        place = slot.to(tl.int64) * stride + head * DIM
        if BLOCK_D == DIM:
            k = tl.load(keys + place[None, :] + d[:, None])
            v = tl.load(values + place[:, None] + d[None, :])
        else:
            k = tl.load(keys + place[None, :] + d[:, None], mask=(d < DIM)[:, None], other=0.0)
            v = tl.load(values + place[:, None] + d[None, :], mask=(d < DIM)[None, :], other=0.0)
        slot = tl.load(slots + first + tl.minimum(at + BLOCK_N + n, count - 1))
        score = tl.dot(tile, k, input_precision=PRECISION) * scale
        score = tl.where((at + n)[None, :] <= visible[:, None], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weight, 1)
        acc = acc * fade[:, None]
        acc = tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)
        top = higher

    some = total > 0
    acc = acc / tl.where(some, total, 1.0)[:, None]
    if (to_partial >= 0) | WITH_LSE:
        mass = tl.where(some, (top + tl.log2(tl.where(some, total, 1.0))) * 0.6931471805599453, float("-inf"))
        if to_partial >= 0:
            row = (to_partial + mine).to(tl.int64) * HEADS + q_head
            tl.store(partial + row[:, None] * DIM + d[None, :], acc, mask=held)
            tl.store(partial_lse + row, mass, mask=inside)
        else:
            tl.store(lse + (token + mine).to(tl.int64) * HEADS + q_head, mass, mask=inside)
    if to_partial < 0:
        row = (token + mine).to(tl.int64) * HEADS + q_head
        tl.store(out + row[:, None] * DIM + d[None, :], acc.to(out.dtype.element_ty), mask=held)


@triton.jit
def _merge(
    partial,
    partial_lse,
    merges,
    out,
    lse,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    entry = merges + tl.program_id(1) * 4
    count = tl.load(entry + 2)
    if count == 0:
        return
    head = tl.program_id(0)
    token = tl.load(entry)
    first = tl.load(entry + 1)
    stride = tl.load(entry + 3)
    d = tl.arange(0, BLOCK_D)
    p = tl.arange(0, PARTS)
    top = tl.full([1], -1e30, tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([BLOCK_D], tl.float32)
    for at in range(0, count, PARTS):
        here = at + p < count
        row = (first + (at + p) * stride).to(tl.int64) * HEADS + head
        mass = tl.load(partial_lse + row, mask=here, other=float("-inf"))
        o = tl.load(partial + row[:, None] * DIM + d[None, :], mask=here[:, None] & (d < DIM)[None, :], other=0.0)
        higher = tl.maximum(top, tl.max(mass, 0))
        weight = tl.exp(mass - higher)
        fade = tl.exp(top - higher)
        acc = acc * fade + tl.sum(weight[:, None] * o, 0)
        total = total * fade + tl.sum(weight, 0)
        top = higher
    some = total > 0
    place = token.to(tl.int64) * HEADS + head
    acc = acc / tl.where(some, total, 1.0)
    tl.store(out + place * DIM + d, acc.to(out.dtype.element_ty), mask=d < DIM)
    if WITH_LSE:
        mass = tl.where(some, top + tl.log(tl.where(some, total, 1.0)), float("-inf"))
        tl.store(lse + place + tl.arange(0, 1), mass)


@dataclass(slots=True)
class DeviceWork:
    """`Work` on the device. Items and merges with no keys or no parts are skipped, so the arrays may be padded."""

    slots: Tensor
    few: Tensor  # int32 [I, FIELDS]
    many: Tensor
    merges: Tensor  # int32 [K, MERGE_FIELDS]
    partial: Tensor  # fp32 [rows, Hq, D]
    partial_lse: Tensor  # fp32 [rows, Hq]

    @classmethod
    def upload(cls, batch: AttentionBatch, work: Work, heads: int, dim: int, device: torch.device) -> DeviceWork:
        slots = np.empty(total_keys(batch), np.int32)
        gather_slots(batch, slots)
        move = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
        partial = torch.empty(work.partials, heads, dim, dtype=torch.float32, device=device)
        lse = torch.empty(work.partials, heads, dtype=torch.float32, device=device)
        return cls(move(slots), move(work.few), move(work.many), move(work.merges), partial, lse)


def _shape(rows: int, group: int, block_d: int, size: int) -> dict[str, Any]:
    """Tile and launch options that fit into shared memory. size: bytes of an element of the pool."""
    wide = block_d * size  # bytes of a key
    block_n = 64 if wide <= 512 else 32
    stages = 2 if rows == FEW or wide > 256 else 3
    block_m = rows if rows == FEW else max(rows, triton.next_power_of_2(group))
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": 4, "num_stages": stages}


def attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    batch: AttentionBatch,
    scale: float,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """See the package docstring. `batch.prepared["triton"]` may hold the step's `DeviceWork`, or
    `batch.prepared["family"]` the `FamilyTensors` of a step that decodes."""
    family: FamilyTensors | None = batch.prepared.get("family")
    if family is not None:
        return family_attention(q, k_pool, v_pool, family, scale, out, lse, family.workspace)
    tokens, heads, dim = q.shape
    kv_heads = k_pool.shape[1]
    if out is None:
        out = torch.empty(tokens, heads * dim, dtype=q.dtype, device=q.device)
    work: DeviceWork | None = batch.prepared.get("triton")
    if work is None:
        made = make_work(batch, heads // kv_heads, kv_heads)
        work = batch.prepared["triton"] = DeviceWork.upload(batch, made, heads, dim, q.device)
    block_d = max(16, triton.next_power_of_2(dim))
    options: dict[str, Any] = {
        "HEADS": heads,
        "GROUP": heads // kv_heads,
        "DIM": dim,
        "BLOCK_D": block_d,
        "WITH_LSE": lse is not None,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }
    given_lse = work.partial_lse if lse is None else lse
    for items, rows in ((work.many, MANY), (work.few, FEW)):
        if items.shape[0]:
            _attend[(kv_heads, items.shape[0])](
                q,
                k_pool,
                v_pool,
                work.slots,
                items,
                out,
                given_lse,
                work.partial,
                work.partial_lse,
                scale * _LOG2E,
                q.stride(0),
                **options,
                **_shape(rows, heads // kv_heads, block_d, q.element_size()),
            )
    if work.merges.shape[0]:
        merge_states(work.partial, work.partial_lse, work.merges, out, lse)
    return out


def merge_states(
    partial: Tensor, partial_lse: Tensor, merges: Tensor, out: Tensor, lse: Tensor | None = None
) -> Tensor:
    """See the package docstring."""
    _, heads, dim = partial.shape
    options: dict[str, Any] = {
        "HEADS": heads,
        "DIM": dim,
        "BLOCK_D": triton.next_power_of_2(dim),
        "PARTS": _PARTS,
        "WITH_LSE": lse is not None,
        "num_warps": 2,
    }
    given_lse = partial_lse if lse is None else lse
    _merge[(heads, merges.shape[0])](partial, partial_lse, merges, out, given_lse, **options)
    return out


assert FIELDS == 8 and MERGE_FIELDS == 4, "the kernels count in these"
