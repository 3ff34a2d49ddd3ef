"""Compiled for CPU, fp32."""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.np.numpy_support import carray
from torch import Tensor

from stemma.kernels.cpu import (
    FAST,
    SIGNATURE,
    compiled,
    f32,
    get,
    i64,
    launch,
    pack,
    put,
    team_for,
    thread_count,
    thread_index,
)


@njit(**FAST)
def _copy(x, at, out, to, size):
    for j in range(size):
        put(out, to + j, get(x, at + j))


@compiled(SIGNATURE)
def _store(raw):
    a = carray(raw, (10,), np.int64)
    tokens, size, k_stride, v_stride, slots_total = a[5], a[6], a[7], a[8], a[9]
    k, v, slots = f32(a[0], tokens * k_stride), f32(a[1], tokens * v_stride), i64(a[2], tokens)
    k_pool, v_pool = f32(a[3], slots_total * size), f32(a[4], slots_total * size)
    team, me = thread_count(), thread_index()
    for t in range(tokens * me // team, tokens * (me + 1) // team):
        _copy(k, t * k_stride, k_pool, slots[t] * size, size)
        _copy(v, t * v_stride, v_pool, slots[t] * size, size)


def store_kv(k: Tensor, v: Tensor, slots: Tensor, k_pool: Tensor, v_pool: Tensor) -> None:
    """See the package docstring."""
    tokens, heads, dim = k.shape
    pointers = (k.data_ptr(), v.data_ptr(), slots.data_ptr(), k_pool.data_ptr(), v_pool.data_ptr())
    launch(
        _store, pack(*pointers, tokens, heads * dim, k.stride(0), v.stride(0), k_pool.shape[0]), team_for(2 * k.numel())
    )
