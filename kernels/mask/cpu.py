"""Compiled for CPU, fp32 logits."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numba.np.numpy_support import carray
from torch import Tensor

from stemma.kernels.cpu import (
    SIGNATURE,
    compiled,
    f32,
    get,
    i32,
    launch,
    pack,
    put,
    team_for,
    thread_count,
    thread_index,
)

_FORBIDDEN = np.float32(-np.inf)
_ONE = np.float32(1.0)


@njit
def _divide(x, at, size, by):
    for j in range(size):
        put(x, at + j, get(x, at + j) / by)


@njit
def _forbid(x, at, size, table, row):
    for w in range((size + 31) // 32):
        word = get(table, row + w)
        if word == -1:
            continue
        first = w * 32
        for bit in range(min(32, size - first)):
            if (word >> bit) & 1 == 0:
                put(x, at + first + bit, _FORBIDDEN)


@compiled(SIGNATURE)
def _apply_mask(raw):
    a = carray(raw, (8,), np.int64)
    rows, size, table_rows, words = a[4], a[5], a[6], a[7]
    logits, table, row_ids = f32(a[0], rows * size), i32(a[1], table_rows * words), i32(a[2], rows)
    temperature = f32(a[3], rows)
    team, me = thread_count(), thread_index()
    for i in range(rows * me // team, rows * (me + 1) // team):
        if a[3] != 0 and temperature[i] != 0 and temperature[i] != _ONE:
            _divide(logits, i * size, size, temperature[i])
        if row_ids[i] >= 0:
            _forbid(logits, i * size, size, table, np.int64(row_ids[i]) * words)


def apply_mask(logits: Tensor, table: Tensor, row_ids: Tensor, temperature: Tensor | None) -> None:
    """See the package docstring."""
    if not logits.is_contiguous() or logits.dtype != torch.float32:
        raise ValueError(f"logits must be contiguous fp32, got {logits.dtype} with strides {logits.stride()}")
    if not table.is_contiguous():
        raise ValueError(f"table must be contiguous, got strides {table.stride()}")
    rows, size = logits.shape
    table_rows, words = table.shape
    row_ids = row_ids.contiguous()
    by = None if temperature is None else temperature.contiguous()
    where = 0 if by is None else by.data_ptr()
    pointers = (logits.data_ptr(), table.data_ptr(), row_ids.data_ptr(), where)
    launch(_apply_mask, pack(*pointers, rows, size, table_rows, words), team_for(logits.numel()))
