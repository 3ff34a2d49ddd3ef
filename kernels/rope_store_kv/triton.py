"""For GPUs: one program for each token and KV head, with the queries that share it; fp32 arithmetic, rounded once.

The same kernel rotates without storing and stores without rotating. TRITON_INTERPRET=1 runs it on CPU tensors (tests).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rope_store(
    q,
    k,
    v,
    cos,
    sin,
    slots,
    k_pool,
    v_pool,
    q_stride,
    k_stride,
    v_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    ROTATE: tl.constexpr,
    STORE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half: tl.constexpr = DIM // 2
    d = tl.arange(0, HALF_BLOCK)
    inside = d < half
    k_at = k + token * k_stride + head * DIM + d
    a = tl.load(k_at, mask=inside, other=0.0)
    b = tl.load(k_at + half, mask=inside, other=0.0)
    if ROTATE:
        c = tl.load(cos + token * half + d, mask=inside, other=0.0)
        s = tl.load(sin + token * half + d, mask=inside, other=0.0)
        g = tl.arange(0, GROUP_BLOCK)
        held = (g < GROUP)[:, None] & inside[None, :]
        q_at = q + token * q_stride + (head * GROUP + g)[:, None] * DIM + d[None, :]
        x = tl.load(q_at, mask=held, other=0.0)
        y = tl.load(q_at + half, mask=held, other=0.0)
        wide_x, wide_y = x.to(tl.float32), y.to(tl.float32)
        tl.store(q_at, (wide_x * c[None, :] - wide_y * s[None, :]).to(x.dtype), mask=held)
        tl.store(q_at + half, (wide_y * c[None, :] + wide_x * s[None, :]).to(x.dtype), mask=held)
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        a, b = (wide_a * c - wide_b * s).to(a.dtype), (wide_b * c + wide_a * s).to(a.dtype)
        if not STORE:
            tl.store(k_at, a, mask=inside)
            tl.store(k_at + half, b, mask=inside)
    if STORE:
        place = tl.load(slots + token).to(tl.int64) * (KV_HEADS * DIM) + head * DIM
        tl.store(k_pool + place + d, a, mask=inside)
        tl.store(k_pool + place + half + d, b, mask=inside)
        v_at = v + token * v_stride + head * DIM + d
        tl.store(v_pool + place + d, tl.load(v_at, mask=inside), mask=inside)
        tl.store(v_pool + place + half + d, tl.load(v_at + half, mask=inside), mask=inside)


def run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    rotate: bool,
    store: bool,
) -> None:
    """Launches the kernel with or without its two halves."""
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    if not tokens:
        return
    group = heads // kv_heads
    options: dict[str, Any] = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "GROUP_BLOCK": triton.next_power_of_2(group),
        "DIM": dim,
        "HALF_BLOCK": triton.next_power_of_2(dim // 2),
        "ROTATE": rotate,
        "STORE": store,
        "num_warps": 1 if group * dim <= 512 else 4,
    }
    strides = q.stride(0), k.stride(0), v.stride(0)
    _rope_store[(tokens, kv_heads)](q, k, v, cos, sin, slots, k_pool, v_pool, *strides, **options)


def rope_store_kv(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, k_pool: Tensor, v_pool: Tensor
) -> None:
    """See the package docstring."""
    run(q, k, v, cos, sin, slots, k_pool, v_pool, True, True)
