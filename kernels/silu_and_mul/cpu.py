"""Compiled for CPU, fp32."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numba.np.numpy_support import carray
from torch import Tensor

from stemma.kernels.cpu import (
    FAST,
    SIGNATURE,
    compiled,
    f32,
    get,
    launch,
    pack,
    put,
    silu,
    team_for,
    thread_count,
    thread_index,
)


@njit(**FAST)
def _row(x, at, out, to, size):
    for j in range(size):
        put(out, to + j, silu(get(x, at + j)) * get(x, at + size + j))


@compiled(SIGNATURE)
def _silu_and_mul(raw):
    a = carray(raw, (4,), np.int64)
    tokens, size = a[2], a[3]
    x, out = f32(a[0], tokens * 2 * size), f32(a[1], tokens * size)
    team, me = thread_count(), thread_index()
    for t in range(tokens * me // team, tokens * (me + 1) // team):
        _row(x, t * 2 * size, out, t * size, size)


def silu_and_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """See the package docstring."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, size) if out is None else out
    launch(_silu_and_mul, pack(gate_up.data_ptr(), out.data_ptr(), tokens, size), team_for(gate_up.numel()))
    return out
