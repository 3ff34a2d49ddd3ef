"""Compiled for CPU, fp32. Rows are split over the threads."""

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
    norm_row,
    pack,
    put,
    team_for,
    thread_count,
    thread_index,
)


@compiled(SIGNATURE)
def _norm(raw):
    a = carray(raw, (9,), np.int64)
    eps = carray(raw, (9,), np.float64)[8]
    tokens, groups, size, stride, out_stride = a[3], a[4], a[5], a[6], a[7]
    x, weight, out = f32(a[0], tokens * stride), f32(a[1], size), f32(a[2], tokens * out_stride)
    team, me = thread_count(), thread_index()
    for t in range(tokens * me // team, tokens * (me + 1) // team):
        for g in range(groups):
            norm_row(x, t * stride + g * size, weight, eps, out, t * out_stride + g * size, size)


@njit(**FAST)
def _add_row(x, residual, at, size):
    for j in range(at, at + size):
        put(residual, j, get(residual, j) + get(x, j))


@compiled(SIGNATURE)
def _add_norm(raw):
    a = carray(raw, (7,), np.int64)
    eps = carray(raw, (7,), np.float64)[6]
    tokens, size = a[4], a[5]
    x, residual = f32(a[0], tokens * size), f32(a[1], tokens * size)
    weight, out = f32(a[2], size), f32(a[3], tokens * size)
    team, me = thread_count(), thread_index()
    for t in range(tokens * me // team, tokens * (me + 1) // team):
        _add_row(x, residual, t * size, size)
        norm_row(residual, t * size, weight, eps, out, t * size, size)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """See the package docstring."""
    out = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    tokens, size = x.shape[0], x.shape[-1]
    groups = x[0].numel() // size if tokens else 0
    arguments = pack(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, groups, size, x.stride(0), out.stride(0), float(eps)
    )
    launch(_norm, arguments, team_for(x.numel()))
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """See the package docstring."""
    out = torch.empty_like(residual) if out is None else out
    tokens, size = x.shape
    launch(
        _add_norm,
        pack(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, size, float(eps)),
        team_for(x.numel()),
    )
    return out
