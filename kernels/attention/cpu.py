"""Compiled for CPU, fp32: online softmax (Milakov & Gimelshein 2018) over tiles of keys read straight from the pool.

The work is cut into tasks: the queries of one group (or of one row) for one KV head. A task first walks the positions
that its group shares, once for all its queries, then each row's own positions. Many queries: a tile of keys is gathered
transposed, so that scores vectorise over keys. Few queries (decode): keys are used where they lie. Tasks are taken from
a counter, heaviest first.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numba.np.numpy_support import carray
from torch import Tensor

from stemma.kernels.attention import AttentionBatch
from stemma.kernels.cpu import (
    FAST,
    SIGNATURE,
    compiled,
    exp_down,
    f32,
    fetch_add,
    get,
    highest,
    i32,
    i64,
    launch,
    pack,
    prefetch,
    put,
    thread_index,
    threads,
)

TILE = 64  # keys of a tile
QUERIES = 128  # most queries (tokens x heads of a KV head) of a task
LINE = 16  # floats of a cache line
AHEAD = 8  # positions to prefetch ahead
_START = np.float32(-1e30)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)


@njit(**FAST)
def _gather(k_pool, v_pool, table, base, low, count, head, heads, dim, kt, vt):
    """Keys of `count` positions transposed to kt [dim, TILE], values to vt [TILE, dim]; zero beyond `count`."""
    for t in range(count):
        at = (np.int64(get(table, base + low + t)) * heads + head) * dim
        ahead = (np.int64(get(table, base + low + min(t + AHEAD, count - 1))) * heads + head) * dim
        for d in range(0, dim, LINE):
            prefetch(k_pool, ahead + d)
            prefetch(v_pool, ahead + d)
        for d in range(dim):
            put(kt, d * TILE + t, get(k_pool, at + d))
        for d in range(dim):
            put(vt, t * dim + d, get(v_pool, at + d))
    for t in range(count, TILE):
        for d in range(dim):
            put(kt, d * TILE + t, _ZERO)
            put(vt, t * dim + d, _ZERO)


@njit(**FAST)
def _score_tile(q, at, kt, dim, s):
    """s[t] = q . k_t for a whole tile."""
    for t in range(TILE):
        put(s, t, _ZERO)
    for d in range(0, dim - 3, 4):
        q0, q1, q2, q3 = (get(q, at + d), get(q, at + d + 1), get(q, at + d + 2), get(q, at + d + 3))
        b = d * TILE
        for t in range(TILE):
            ab = q0 * get(kt, b + t) + q1 * get(kt, b + TILE + t)
            cd = q2 * get(kt, b + 2 * TILE + t) + q3 * get(kt, b + 3 * TILE + t)
            put(s, t, get(s, t) + (ab + cd))
    for d in range(dim - dim % 4, dim):
        for t in range(TILE):
            put(s, t, get(s, t) + get(q, at + d) * get(kt, d * TILE + t))


@njit(**FAST)
def _weigh(s, count, i, m, total, acc, dim):
    """Turns scores s[:count] into softmax weights relative to the running maximum; rescales what query i has so far."""
    for t in range(count, TILE):
        put(s, t, _START)
    top = highest(s, 0, TILE)
    if top > get(m, i):
        factor = exp_down(get(m, i) - top)
        put(m, i, top)
        put(total, i, get(total, i) * factor)
        for d in range(i * dim, i * dim + dim):
            put(acc, d, get(acc, d) * factor)
    top = get(m, i)
    for t in range(TILE):
        put(s, t, exp_down(get(s, t) - top))
    for t in range(count, TILE):
        put(s, t, _ZERO)
    added = _ZERO
    for t in range(TILE):
        added += get(s, t)
    put(total, i, get(total, i) + added)


@njit(**FAST)
def _add_tile(s, count, vt, acc, at, dim):
    """acc += sum_t s[t] v_t for a whole tile."""
    for t in range(0, count, 4):
        p0, p1, p2, p3 = get(s, t), get(s, t + 1), get(s, t + 2), get(s, t + 3)
        b = t * dim
        for d in range(dim):
            ab = p0 * get(vt, b + d) + p1 * get(vt, b + dim + d)
            cd = p2 * get(vt, b + 2 * dim + d) + p3 * get(vt, b + 3 * dim + d)
            put(acc, at + d, get(acc, at + d) + (ab + cd))


@njit(**FAST)
def attend_direct(q, i, limit, low, k_pool, v_pool, table, base, head, heads, dim, m, total, acc, s):
    """Query i over positions [low, limit), keys and values where they lie in the pool."""
    at = i * dim
    for first in range(low, limit, TILE):
        count = min(TILE, limit - first)
        for t in range(count):
            ahead = (np.int64(get(table, base + min(first + t + AHEAD, limit - 1))) * heads + head) * dim
            here = (np.int64(get(table, base + first + t)) * heads + head) * dim
            for d in range(0, dim, LINE):
                prefetch(k_pool, ahead + d)
                prefetch(v_pool, here + d)
            dot = _ZERO
            for d in range(dim):
                dot += get(q, at + d) * get(k_pool, here + d)
            put(s, t, dot)
        _weigh(s, count, i, m, total, acc, dim)
        for t in range(count):
            v = (np.int64(get(table, base + first + t)) * heads + head) * dim
            p = get(s, t)
            for d in range(dim):
                put(acc, at + d, get(acc, at + d) + p * get(v_pool, v + d))


@njit(**FAST)
def begin_query(q, at, scale, i, dim, queries, m, total, acc):
    """Starts query i with the head at q[at:]."""
    put(m, i, _START)
    put(total, i, _ZERO)
    for d in range(dim):
        put(queries, i * dim + d, get(q, at + d) * scale)
        put(acc, i * dim + d, _ZERO)


@njit(**FAST)
def end_query(i, dim, total, acc, out, at):
    """Writes the result of query i to out[at:]."""
    factor = _ONE / get(total, i)
    for d in range(dim):
        put(out, at + d, get(acc, i * dim + d) * factor)


@njit(**FAST)
def _tiles(low, end, a, b, base, head, heads, dim, k_pool, v_pool, table, limits, queries, m, total, acc, kt, vt, s):
    """Queries [a, b) over positions [low, end) of one slot row."""
    for first in range(low, end, TILE):
        width = min(TILE, end - first)
        _gather(k_pool, v_pool, table, base, first, width, head, heads, dim, kt, vt)
        for i in range(a, b):
            count = min(width, limits[i] - first)
            if count > 0:
                _score_tile(queries, i * dim, kt, dim, s)
                _weigh(s, count, i, m, total, acc, dim)
                _add_tile(s, count, vt, acc, i * dim, dim)


@compiled(SIGNATURE)
def _attention(raw):
    a = carray(raw, (25,), np.int64)
    scale = np.float32(carray(raw, (25,), np.float64)[24])
    q_stride, all_heads, heads, dim = a[12], a[13], a[14], a[15]
    table_stride, tasks_total, slots_total, tokens, rows_total = a[16], a[17], a[18], a[19], a[20]
    table_rows, each, direct = a[21], a[22], a[23]
    q, out = f32(a[0], tokens * q_stride), f32(a[9], tokens * all_heads * dim)
    k_pool, v_pool = f32(a[1], slots_total * heads * dim), f32(a[2], slots_total * heads * dim)
    table, rows = i32(a[3], table_rows * table_stride), i32(a[4], rows_total)
    start, offsets = i32(a[5], rows_total), i32(a[6], rows_total + 1)
    tasks = i64(a[8], tasks_total * 5)
    repeat = all_heads // heads
    me = thread_index()
    scratch = f32(a[11] + me * each * 4, each)
    queries, acc = scratch[: QUERIES * dim], scratch[QUERIES * dim : 2 * QUERIES * dim]
    rest = scratch[2 * QUERIES * dim :]
    m, total, s = rest[:QUERIES], rest[QUERIES : 2 * QUERIES], rest[2 * QUERIES : 2 * QUERIES + TILE]
    kt = rest[2 * QUERIES + TILE : 2 * QUERIES + TILE + TILE * dim]
    vt = rest[2 * QUERIES + TILE + TILE * dim : 2 * QUERIES + TILE + 2 * TILE * dim]
    limits = i64(a[7] + me * QUERIES * 8, QUERIES)
    while True:
        taken = fetch_add(a[10], 1)
        if taken >= tasks_total * heads:
            break
        head = taken % heads
        task = tasks[taken // heads * 5 : taken // heads * 5 + 5]
        first, last, shared, low, high = task[0], task[1], task[2], task[3], task[4]
        found, longest = 0, 0
        for r in range(first, last):
            for t in range(max(low, offsets[r]), min(high, offsets[r + 1])):
                limit = np.int64(start[r]) + t - offsets[r] + 1
                longest = max(longest, limit)
                for j in range(repeat):
                    begin_query(q, t * q_stride + (head * repeat + j) * dim, scale, found, dim, queries, m, total, acc)
                    limits[found] = limit
                    found += 1
        _tiles(
            0, min(shared, longest), 0, found, np.int64(rows[first]) * table_stride, head, heads, dim,
            k_pool, v_pool, table, limits, queries, m, total, acc, kt, vt, s,
        )  # fmt: skip
        done = 0
        for r in range(first, last):
            mine = max(0, min(high, offsets[r + 1]) - max(low, offsets[r])) * repeat
            base = np.int64(rows[r]) * table_stride
            if mine > direct:
                _tiles(
                    shared, limits[done + mine - 1], done, done + mine, base, head, heads, dim,
                    k_pool, v_pool, table, limits, queries, m, total, acc, kt, vt, s,
                )  # fmt: skip
            else:
                for i in range(done, done + mine):
                    attend_direct(
                        queries, i, limits[i], shared, k_pool, v_pool, table, base, head, heads, dim, m, total, acc, s
                    )
            done += mine
        done = 0
        for t in range(low, high):
            for j in range(repeat):
                end_query(done, dim, total, acc, out, (t * all_heads + head * repeat + j) * dim)
                done += 1


def _tasks(batch: AttentionBatch, most_tokens: int) -> np.ndarray:
    """int64 [N, 5]: first row, last row + 1, shared positions, first token, last token + 1; heaviest first."""
    starts, offsets = batch.start.tolist(), batch.offsets.tolist()
    tasks: list[tuple[int, int, int, int, int]] = []
    costs: list[int] = []

    def add(first: int, last: int, shared: int) -> None:
        low, end = offsets[first], offsets[last]
        row = first
        while low < end:
            high = min(low + most_tokens, end)
            while offsets[row + 1] <= low:
                row += 1
            past = row
            while past < last and offsets[past] < high:
                past += 1
            tasks.append((row, past, shared, low, high))
            costs.append((high - low) * (starts[past - 1] + high - offsets[past - 1]))
            low = high

    row = 0
    for first, count, shared in batch.groups:
        for single in range(row, first):
            add(single, single + 1, 0)
        add(first, first + count, shared)
        row = first + count
    for single in range(row, len(starts)):
        add(single, single + 1, 0)
    order = np.argsort(-np.array(costs, np.int64), kind="stable")
    return np.ascontiguousarray(np.array(tasks, np.int64).reshape(-1, 5)[order])


def attention(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, batch: AttentionBatch, scale: float, out: Tensor | None = None
) -> Tensor:
    """See the package docstring."""
    tokens, all_heads, dim = q.shape
    slots_total, heads = k_pool.shape[0], k_pool.shape[1]
    repeat = all_heads // heads
    if repeat > QUERIES:
        raise ValueError(f"at most {QUERIES} query heads can share a KV head, got {repeat}")
    if out is None:
        out = torch.empty(tokens, all_heads * dim)
    ready = batch.prepared.get("cpu")
    if ready is None:
        tasks = _tasks(batch, QUERIES // repeat)
        each = 2 * QUERIES * dim + 2 * QUERIES + TILE + 2 * TILE * dim
        scratch = np.empty(each * threads(), np.float32)
        counts = np.zeros(1 + QUERIES * threads(), np.int64)  # the task counter, then limits of each thread
        parts = [np.ascontiguousarray(x) for x in (batch.rows, batch.start, batch.offsets)]
        address = lambda x: x.__array_interface__["data"][0]  # noqa: E731
        table = batch.slot_table
        arguments = pack(
            0, 0, 0, address(table), *(address(x) for x in parts), address(counts) + 8, address(tasks), 0,
            address(counts), address(scratch), 0, 0, 0, 0, table.strides[0] // 4, len(tasks), 0, 0, len(batch.rows),
            table.shape[0], each, 4 if dim < 64 else 8, 0.0,
        )  # fmt: skip
        ready = batch.prepared["cpu"] = (arguments, counts, (tasks, scratch, parts))
    arguments, counts, _ = ready
    arguments[[0, 1, 2, 9]] = q.data_ptr(), k_pool.data_ptr(), v_pool.data_ptr(), out.data_ptr()
    arguments[[12, 13, 14, 15]] = q.stride(0), all_heads, heads, dim
    arguments[[18, 19]] = slots_total, tokens
    arguments.view(np.float64)[24] = scale
    counts[0] = 0
    launch(_attention, arguments)
    return out
