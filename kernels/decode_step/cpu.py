"""Compiled for CPU, fp32. Outputs of every product are split over the threads; a barrier ends each phase."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numba.np.numpy_support import carray
from torch import Tensor

from stemma.kernels.attention import AttentionBatch
from stemma.kernels.attention.cpu import TILE, attend_direct, begin_query, end_query
from stemma.kernels.cpu import (
    FAST,
    SIGNATURE,
    barrier,
    compiled,
    f32,
    get,
    i32,
    i64,
    launch,
    norm_row,
    pack,
    put,
    rotate_row,
    silu,
    thread_count,
    thread_index,
    threads,
)
from stemma.kernels.decode_step import MAX_TOKENS, DecoderWeights

_ZERO = np.float32(0.0)
_POINTERS = 14  # of a layer: the fields of LayerWeights in order
_ARGUMENTS = 40


@njit(**FAST)
def _one(w, k, x, low, high, out):
    """out[low:high] = W[low:high] x for one token, four outputs at a time."""
    end = low + (high - low) // 4 * 4
    for i in range(low, end, 4):
        a, b, c, d = (_ZERO, _ZERO, _ZERO, _ZERO)
        at = i * k
        for j in range(k):
            xj = get(x, j)
            a += get(w, at + j) * xj
            b += get(w, at + k + j) * xj
            c += get(w, at + 2 * k + j) * xj
            d += get(w, at + 3 * k + j) * xj
        put(out, i, a)
        put(out, i + 1, b)
        put(out, i + 2, c)
        put(out, i + 3, d)
    for i in range(end, high):
        a = _ZERO
        for j in range(k):
            a += get(w, i * k + j) * get(x, j)
        put(out, i, a)


@njit(**FAST)
def _four(w, k, x, low, high, out, stride):
    """As `_one` for four tokens: x [4, k], out [4, stride]. Two outputs at a time."""
    end = low + (high - low) // 2 * 2
    for i in range(low, end, 2):
        a0, a1, a2, a3, b0, b1, b2, b3 = (_ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO)
        at = i * k
        for j in range(k):
            u, v = (get(w, at + j), get(w, at + k + j))
            x0, x1, x2, x3 = (get(x, j), get(x, k + j), get(x, 2 * k + j), get(x, 3 * k + j))
            a0 += u * x0
            a1 += u * x1
            a2 += u * x2
            a3 += u * x3
            b0 += v * x0
            b1 += v * x1
            b2 += v * x2
            b3 += v * x3
        put(out, i, a0)
        put(out, i + 1, b0)
        put(out, stride + i, a1)
        put(out, stride + i + 1, b1)
        put(out, 2 * stride + i, a2)
        put(out, 2 * stride + i + 1, b2)
        put(out, 3 * stride + i, a3)
        put(out, 3 * stride + i + 1, b3)
    for i in range(end, high):
        for r in range(4):
            a = _ZERO
            for j in range(k):
                a += get(w, i * k + j) * get(x, r * k + j)
            put(out, r * stride + i, a)


@njit(**FAST)
def _product(w_at, k, x, tokens, low, high, out, stride, bias_at):
    """out[t, low:high] = W[low:high] x[t] (+ bias) for every token; W [., k] at address w_at, in cache-sized bites."""
    w = f32(w_at, high * k)
    if tokens == 1:
        _one(w, k, x, low, high, out)
    else:
        bite = max(4, 16384 // k // 4 * 4)
        for a in range(low, high, bite):
            b = min(high, a + bite)
            t = 0
            while t + 4 <= tokens:
                _four(w, k, x[t * k :], a, b, out[t * stride :], stride)
                t += 4
            while t < tokens:
                _one(w, k, x[t * k :], a, b, out[t * stride :])
                t += 1
    if bias_at != 0:
        bias = f32(bias_at, high)
        for t in range(tokens):
            for i in range(low, high):
                put(out, t * stride + i, get(out, t * stride + i) + get(bias, i))


@njit(**FAST)
def _add(x, y, tokens, low, high, stride):
    for t in range(tokens):
        for i in range(t * stride + low, t * stride + high):
            put(x, i, get(x, i) + get(y, i))


@njit(**FAST)
def _activate(gate_up, tokens, size, low, high, out):
    for t in range(tokens):
        for i in range(low, high):
            put(out, t * size + i, silu(get(gate_up, t * 2 * size + i)) * get(gate_up, t * 2 * size + size + i))


@njit(**FAST)
def _copy(x, at, out, to, size):
    for j in range(size):
        put(out, to + j, get(x, at + j))


@njit
def _share(size, me, team):
    """The outputs of one thread, in multiples of four."""
    part = (size + 4 * team - 1) // (4 * team) * 4
    return min(size, me * part), min(size, (me + 1) * part)


@compiled(SIGNATURE)
def _decode(raw):
    a = carray(raw, (_ARGUMENTS,), np.int64)
    numbers = carray(raw, (_ARGUMENTS,), np.float64)
    eps, scale = numbers[38], np.float32(numbers[39])
    layers_total, hidden, heads, kv_heads, dim, inner = a[0], a[1], a[2], a[3], a[4], a[5]
    vocab, slots_total, context, each, tokens, rows_total = a[6], a[7], a[8], a[9], a[10], a[11]
    table_rows, table_stride, wanted_total = a[12], a[13], a[14]
    q_size, kv_size = heads * dim, kv_heads * dim
    width, repeat, half = q_size + 2 * kv_size, heads // kv_heads, dim // 2
    embedding, pointers = f32(a[15], vocab * hidden), i64(a[16], layers_total * _POINTERS)
    final_norm, cos, sin = f32(a[17], hidden), f32(a[19], context * half), f32(a[20], context * half)
    ids, positions, slots, wanted = i32(a[21], tokens), i32(a[22], tokens), i32(a[23], tokens), i32(a[24], wanted_total)
    table, rows = i32(a[25], table_rows * table_stride), i32(a[26], rows_total)
    offsets = i32(a[27], rows_total + 1)
    result, logits = f32(a[28], tokens * hidden), f32(a[29], wanted_total * vocab)
    team, me = np.int64(thread_count()), np.int64(thread_index())

    common = f32(a[30], tokens * (2 * hidden + width + q_size + 3 * inner))
    x = common[: tokens * hidden]
    y = common[tokens * hidden : 2 * tokens * hidden]
    qkv = common[2 * tokens * hidden : tokens * (2 * hidden + width)]
    rest = common[tokens * (2 * hidden + width) :]
    attended, gate_up = rest[: tokens * q_size], rest[tokens * q_size : tokens * (q_size + 2 * inner)]
    active = rest[tokens * (q_size + 2 * inner) :]
    own = f32(a[31] + me * each * 4, each)
    h = own[: MAX_TOKENS * hidden]
    rest = own[MAX_TOKENS * hidden :]
    queries, acc = rest[: repeat * dim], rest[repeat * dim : 2 * repeat * dim]
    rest = rest[2 * repeat * dim :]
    m, total, s = rest[:repeat], rest[repeat : 2 * repeat], rest[2 * repeat : 2 * repeat + TILE]

    meeting, goal = a[32], team
    for t in range(me, tokens, team):
        _copy(embedding, np.int64(ids[t]) * hidden, x, t * hidden, hidden)
    barrier(meeting, goal)
    goal += team
    for layer in range(layers_total):
        p = pointers[layer * _POINTERS : (layer + 1) * _POINTERS]
        k_pool, v_pool = f32(p[12], slots_total * kv_size), f32(p[13], slots_total * kv_size)
        weight = f32(p[0], hidden)
        for t in range(tokens):
            norm_row(x, t * hidden, weight, eps, h, t * hidden, hidden)
        low, high = _share(width, me, team)
        _product(p[1], hidden, h, tokens, low, high, qkv, width, p[2])
        barrier(meeting, goal)
        goal += team
        for item in range(me, tokens * kv_heads, team):
            t, g = item // kv_heads, item % kv_heads
            k_at, v_at = t * width + q_size + g * dim, t * width + q_size + kv_size + g * dim
            if p[3] != 0:
                weight = f32(p[3], dim)
                for j in range(g * repeat, (g + 1) * repeat):
                    norm_row(qkv, t * width + j * dim, weight, eps, qkv, t * width + j * dim, dim)
                norm_row(qkv, k_at, f32(p[4], dim), eps, qkv, k_at, dim)
            for j in range(g * repeat, (g + 1) * repeat):
                rotate_row(qkv, t * width + j * dim, cos, sin, np.int64(positions[t]), half)
            rotate_row(qkv, k_at, cos, sin, np.int64(positions[t]), half)
            at = np.int64(slots[t]) * kv_size + g * dim
            _copy(qkv, k_at, k_pool, at, dim)
            _copy(qkv, v_at, v_pool, at, dim)
        barrier(meeting, goal)
        goal += team
        for r in range(rows_total):
            base = np.int64(rows[r]) * table_stride
            for t in range(offsets[r], offsets[r + 1]):
                for g in range(kv_heads):
                    if (t * kv_heads + g) % team != me:
                        continue
                    for j in range(repeat):
                        at = (g * repeat + j) * dim
                        begin_query(qkv, t * width + at, scale, j, dim, queries, m, total, acc)
                        attend_direct(
                            queries, j, np.int64(positions[t]) + 1, 0, k_pool, v_pool, table, base, g, kv_heads, dim,
                            m, total, acc, s,
                        )  # fmt: skip
                        end_query(j, dim, total, acc, attended, t * q_size + at)
        barrier(meeting, goal)
        goal += team
        low, high = _share(hidden, me, team)
        _product(p[5], q_size, attended, tokens, low, high, y, hidden, p[6])
        _add(x, y, tokens, low, high, hidden)
        barrier(meeting, goal)
        goal += team
        weight = f32(p[7], hidden)
        for t in range(tokens):
            norm_row(x, t * hidden, weight, eps, h, t * hidden, hidden)
        low, high = _share(inner, me, team)
        _product(p[8], hidden, h, tokens, low, high, gate_up, 2 * inner, p[9])
        _product(p[8], hidden, h, tokens, inner + low, inner + high, gate_up, 2 * inner, p[9])
        _activate(gate_up, tokens, inner, low, high, active)
        barrier(meeting, goal)
        goal += team
        low, high = _share(hidden, me, team)
        _product(p[10], inner, active, tokens, low, high, y, hidden, p[11])
        _add(x, y, tokens, low, high, hidden)
        barrier(meeting, goal)
        goal += team
    for t in range(tokens):
        norm_row(x, t * hidden, final_norm, eps, h, t * hidden, hidden)
        if t % team == me:
            _copy(h, t * hidden, result, t * hidden, hidden)
    for n in range(wanted_total):  # wanted is ascending: moving rows down never overwrites one still needed
        if wanted[n] != n:
            _copy(h, np.int64(wanted[n]) * hidden, h, n * hidden, hidden)
    low, high = _share(vocab, me, team)
    if wanted_total > 0:
        _product(a[18], hidden, h, wanted_total, low, high, logits, vocab, 0)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _int32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.int32)


class FusedDecoder:
    """See the package docstring. Keeps the weights alive; buffers are made once. One caller at a time."""

    def __init__(self, weights: DecoderWeights) -> None:
        w = weights
        self.weights = w
        self.hidden, self.vocab = w.embedding.shape[1], w.embedding.shape[0]
        inner = w.layers[0].down.shape[1]
        q_size, kv_size = w.heads * w.dim, w.kv_heads * w.dim
        repeat = w.heads // w.kv_heads
        self._pointers = np.array([[self._pointer(layer, f) for f in layer.__slots__] for layer in w.layers], np.int64)
        # 16 spare floats keep the threads' buffers on separate cache lines
        each = MAX_TOKENS * self.hidden + 2 * repeat * w.dim + 2 * repeat + TILE + 16
        common = MAX_TOKENS * (2 * self.hidden + q_size + 2 * kv_size + q_size + 3 * inner)
        self._team = threads()
        self._buffers = (np.zeros(common, np.float32), np.zeros(each * self._team, np.float32))
        self._meeting = np.zeros(1, np.int64)
        self._arguments = pack(
            len(w.layers), self.hidden, w.heads, w.kv_heads, w.dim, inner, self.vocab, w.layers[0].keys.shape[0],
            w.cos.shape[0], each, 0, 0, 0, 0, 0, w.embedding.data_ptr(), _address(self._pointers), w.norm.data_ptr(),
            w.head.data_ptr(), w.cos.data_ptr(), w.sin.data_ptr(), 0, 0, 0, 0, 0, 0, 0, 0, 0,
            _address(self._buffers[0]), _address(self._buffers[1]), _address(self._meeting), 0, 0, 0, 0, 0,
            float(w.eps), float(w.scale),
        )  # fmt: skip

    @staticmethod
    def _pointer(layer: object, name: str) -> int:
        tensor = getattr(layer, name)
        if tensor is None:
            return 0
        assert tensor.is_contiguous() and tensor.dtype == torch.float32, name
        return tensor.data_ptr()

    def __call__(
        self, ids: np.ndarray, positions: np.ndarray, slots: np.ndarray, batch: AttentionBatch, wanted: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """See the package docstring."""
        tokens = len(ids)
        assert 0 < tokens <= MAX_TOKENS
        result, logits = torch.empty(tokens, self.hidden), torch.empty(len(wanted), self.vocab)
        arrays = [_int32(x) for x in (ids, positions, slots, wanted)]
        table = batch.slot_table
        tail = [_int32(x) for x in (batch.rows, batch.offsets)]
        a = self._arguments
        a[10:15] = tokens, len(batch.rows), table.shape[0], table.strides[0] // 4, len(wanted)
        a[21:30] = [
            *(_address(x) for x in arrays), _address(table), *(_address(x) for x in tail), result.data_ptr(),
            logits.data_ptr(),
        ]  # fmt: skip
        self._meeting[0] = 0
        launch(_decode, a, self._team)
        return result, logits
