"""Compiled for CPU: one pass over a row, noise only where it can decide.

In the exponential form the winner minimises E_v / w_v with w_v = exp(score_v - max). As E = -log(1 - u) >= u, a token
with u_v > best * w_v cannot win, and its logarithm is never taken.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from numba.np.numpy_support import carray
from torch import Tensor

from stemma.kernels.cpu import (
    SIGNATURE,
    compiled,
    exp_down,
    f32,
    get,
    highest,
    i64,
    launch,
    pack,
    thread_count,
    thread_index,
)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 2.0**-53
_SLACK = 1.0001  # exp_down and the bound are rounded: never drop a token that is this close


@njit(inline="always")
def _mix(x):
    x = (x ^ (x >> _S30)) * _MIX1
    x = (x ^ (x >> _S27)) * _MIX2
    return x ^ (x >> _S31)


@njit
def _draw_row(scores, at, size, seed, position):
    key = _mix(_mix(np.uint64(seed) + _GOLDEN) + np.uint64(position) * _GOLDEN)
    top = highest(scores, at, size)
    best, winner, bound = (-np.inf, 0, np.inf)
    for v in range(size):
        score = get(scores, at + v)
        if score == -np.inf:
            continue
        u = (np.float64(_mix(key + np.uint64(v + 1) * _GOLDEN) >> _S11) + 0.5) * _UNIT
        if u <= bound * exp_down(score - top):
            value = np.float64(score) - math.log(-math.log1p(-u))
            if value > best:
                best, winner = (value, v)
                bound = math.exp(min(700.0, np.float64(top) - value)) * _SLACK
    return winner


@compiled(SIGNATURE)
def _draw(raw):
    a = carray(raw, (6,), np.int64)
    rows, size = a[4], a[5]
    scores, seeds, positions, ids = f32(a[0], rows * size), i64(a[1], rows), i64(a[2], rows), i64(a[3], rows)
    team, me = thread_count(), thread_index()
    for i in range(rows * me // team, rows * (me + 1) // team):
        ids[i] = _draw_row(scores, i * size, size, seeds[i], positions[i])


def draw(scores: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """See the package docstring."""
    scores, seeds, positions = scores.contiguous(), seeds.contiguous(), positions.contiguous()
    rows, size = scores.shape
    ids = torch.empty(rows, dtype=torch.int64)
    launch(_draw, pack(scores.data_ptr(), seeds.data_ptr(), positions.data_ptr(), ids.data_ptr(), rows, size))
    return ids
