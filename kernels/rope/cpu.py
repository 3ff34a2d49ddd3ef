"""Compiled for CPU, fp32."""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray
from torch import Tensor

from stemma.kernels.cpu import SIGNATURE, compiled, f32, launch, pack, rotate_row, team_for, thread_count, thread_index


@compiled(SIGNATURE)
def _rope(raw):
    a = carray(raw, (10,), np.int64)
    tokens, heads, kv_heads, half, q_stride, k_stride = a[4], a[5], a[6], a[7], a[8], a[9]
    q, k = f32(a[0], tokens * q_stride), f32(a[1], tokens * k_stride)
    cos, sin = f32(a[2], tokens * half), f32(a[3], tokens * half)
    team, me = thread_count(), thread_index()
    for t in range(tokens * me // team, tokens * (me + 1) // team):
        for h in range(heads):
            rotate_row(q, t * q_stride + h * 2 * half, cos, sin, t, half)
        for h in range(kv_heads):
            rotate_row(k, t * k_stride + h * 2 * half, cos, sin, t, half)


def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See the package docstring."""
    tokens, heads, dim = q.shape
    pointers = (q.data_ptr(), k.data_ptr(), cos.data_ptr(), sin.data_ptr())
    launch(_rope, pack(*pointers, tokens, heads, k.shape[1], dim // 2, q.stride(0), k.stride(0)), team_for(q.numel()))
