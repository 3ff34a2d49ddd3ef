"""Family attention for decode rows: what rows share in the KV pool is read once for all of them.

One launch of a fixed grid (so that CUDA graphs can hold it) in which every program takes an equal share of the tokens
that `family_plan` lines up, then a merge of the parts by log-sum-exp. A batch without families is the case of families
of one. The decomposition is exact (Hydragen, arXiv 2402.05099; cascade inference in FlashInfer); a row's own tokens in
the tile of its family, masked, and the equal shares are ours.

Shapes: q [B, Hq, D] with contiguous last two dimensions; pools [num_slots, Hkv, D]; slot_table int32 [max_rows,
context] on the device; out [B, Hq * D]. Hq / Hkv at most 16, D a power of two.

family = Family(plan_families(rows, common, ...), device, capacity, shares)  # when rows come or go
family.line_up(lengths, slot_table)                                          # every step
family_attention(q, k_pool, v_pool, family, scale)                           # every layer

In a CUDA graph, `FamilyTensors` at fixed addresses take the place of `Family`: the graph's rows may be more than the
step's (their `row_group` is -1), and `lay` makes the line from slots that are on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from stemma.kernels.attention.family_plan import FamilyPlan, line_up

LOG2E = 1.4426950408889634


@triton.jit
def _fill(table, piece_row, piece_from, piece_who, piece_start, line_slot, line_who, stride_table, BLOCK: tl.constexpr):
    """Once a step: slot and viewers of every token of the line, piece by piece."""
    piece = tl.program_id(0)
    row = tl.load(piece_row + piece).to(tl.int64)
    first = tl.load(piece_from + piece)
    who = tl.load(piece_who + piece)
    begin, end = tl.load(piece_start + piece), tl.load(piece_start + piece + 1)
    for at in range(tl.program_id(1) * BLOCK, end - begin, tl.num_programs(1) * BLOCK):
        offs = at + tl.arange(0, BLOCK)
        inside = offs < end - begin
        slots = tl.load(table + row * stride_table + first + offs, mask=inside)
        tl.store(line_slot + begin + offs, slots, mask=inside)
        tl.store(line_who + begin + offs, tl.zeros([BLOCK], tl.int32) + who, mask=inside)


@triton.jit
def _lay(
    store, piece_at, piece_own, piece_who, piece_start, out_slots, line_slot, line_who, BLOCK: tl.constexpr
):  # fmt: skip
    """Once a step: slot and viewers of every token of the line, from `store`; the newest token of a row is added."""
    piece = tl.program_id(0)
    begin = tl.load(piece_start + piece)
    count = tl.load(piece_start + piece + 1) - begin
    if tl.program_id(1) * BLOCK >= count:
        return
    at = tl.load(piece_at + piece)
    own = tl.load(piece_own + piece)
    last = tl.where(own >= 0, count - 1, -1)
    who = tl.load(piece_who + piece)
    fresh = tl.load(out_slots + tl.maximum(own, 0))
    for offset in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        offs = offset + tl.arange(0, BLOCK)
        inside = offs < count
        newest = offs == last
        slots = tl.load(store + at + offs, mask=inside, other=0)
        slots = tl.where(newest, fresh, slots)
        tl.store(store + at + offs, slots, mask=newest)
        tl.store(line_slot + begin + offs, slots, mask=inside)
        tl.store(line_who + begin + offs, tl.zeros([BLOCK], tl.int32) + who, mask=inside)


@triton.jit
def _part(
    q,
    k_pool,
    v_pool,
    line_slot,
    line_who,
    part_out,
    part_lse,
    part,
    first_row,
    rows,
    t0,
    t1,
    head,
    scale,
    stride_q,
    stride_slot,
    KV_HEADS: tl.constexpr,
    RATIO: tl.constexpr,
    RATIO_PAD: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BM_MAX: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    m_at = tl.arange(0, BM)
    inside = m_at // RATIO_PAD  # row within the group
    lane = m_at % RATIO_PAD
    live = (inside < rows) & (lane < RATIO)
    d_at = tl.arange(0, D)
    n_at = tl.arange(0, BN)
    q_at = (first_row + inside).to(tl.int64) * stride_q + (head * RATIO + lane) * D
    query = tl.load(q + q_at[:, None] + d_at[None, :], mask=live[:, None], other=0.0)
    best = tl.full([BM], -1.0e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    slots = tl.load(line_slot + t0 + n_at, mask=t0 + n_at < t1, other=-1)
    who = tl.load(line_who + t0 + n_at, mask=t0 + n_at < t1, other=0)
    for t in tl.range(t0, t1, BN, num_stages=STAGES):
        there = slots >= 0
        at = slots.to(tl.int64) * stride_slot + head * D
        k = tl.load(k_pool + at[None, :] + d_at[:, None], mask=there[None, :], other=0.0)
        v = tl.load(v_pool + at[:, None] + d_at[None, :], mask=there[:, None], other=0.0)
        # nobody sees what is not there: its low and high are 0
        valid = (inside[:, None] >= (who & 0xFFFF)[None, :]) & (inside[:, None] < (who >> 16)[None, :])
        # the next tile's slots now, so that the loop's loads do not depend on a load of the same turn
        after = t + BN + n_at
        slots = tl.load(line_slot + after, mask=after < t1, other=-1)
        who = tl.load(line_who + after, mask=after < t1, other=0)
        s = tl.dot(query, k, input_precision=PRECISION) * scale
        s = tl.where(valid, s, float("-inf"))
        higher = tl.maximum(best, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        keep = tl.exp2(best - higher)
        total = total * keep + tl.sum(p, 1)
        acc = acc * keep[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        best = higher
    to = (part * KV_HEADS + head) * BM_MAX + m_at
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    tl.store(part_out + to[:, None] * D + d_at[None, :], acc / total[:, None], mask=live[:, None])
    tl.store(part_lse + to, tl.where(nothing, float("-inf"), best + tl.log2(total)), mask=live)


@triton.jit
def _shares(
    q,
    k_pool,
    v_pool,
    line_slot,
    line_who,
    group_first,
    group_count,
    group_start,
    share_group,
    length,
    part_out,
    part_lse,
    scale,
    stride_q,
    stride_slot,
    KV_HEADS: tl.constexpr,
    RATIO: tl.constexpr,
    RATIO_PAD: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BM_WIDE: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    STAGES_WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head = tl.program_id(0) % KV_HEADS
    share = tl.program_id(0) // KV_HEADS
    each = tl.load(length)
    begin, end = share * each, (share + 1) * each
    for group in range(tl.load(share_group + share), tl.load(share_group + share + 1) + 1):
        t0, t1 = tl.maximum(begin, tl.load(group_start + group)), tl.minimum(end, tl.load(group_start + group + 1))
        first_row, rows = tl.load(group_first + group), tl.load(group_count + group)
        part = share + group
        if t1 <= t0:
            pass
        elif BM_WIDE > BM and rows * RATIO_PAD > BM:
            _part(
                q, k_pool, v_pool, line_slot, line_who, part_out, part_lse, part, first_row, rows, t0, t1, head, scale,
                stride_q, stride_slot, KV_HEADS, RATIO, RATIO_PAD, D, BM_WIDE, BM_WIDE, BN, STAGES_WIDE,
                PRECISION,
            )  # fmt: skip
        else:
            _part(
                q, k_pool, v_pool, line_slot, line_who, part_out, part_lse, part, first_row, rows, t0, t1, head, scale,
                stride_q, stride_slot, KV_HEADS, RATIO, RATIO_PAD, D, BM, BM_WIDE, BN, STAGES, PRECISION,
            )  # fmt: skip


@triton.jit
def _merge(
    part_out,
    part_lse,
    row_group,
    group_first,
    group_start,
    length,
    out,
    lse_out,
    stride_out,
    KV_HEADS: tl.constexpr,
    RATIO: tl.constexpr,
    RATIO_PAD: tl.constexpr,
    D: tl.constexpr,
    BM_MAX: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LSE: tl.constexpr,
):
    """One row and query head: its parts, weighted by their share of the sum of exponentials."""
    row, query_head = tl.program_id(0), tl.program_id(1)
    head, lane = query_head // RATIO, query_head % RATIO
    group = tl.load(row_group + row)
    if group < 0:
        return
    each = tl.load(length)
    m_at = (row - tl.load(group_first + group)) * RATIO_PAD + lane
    first = group + tl.load(group_start + group) // each
    end = group + (tl.load(group_start + group + 1) - 1) // each + 1
    d_at = tl.arange(0, D)
    best = tl.full([], -1.0e30, tl.float32)
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([D], tl.float32)
    for at in range(first, end, AT_ONCE):
        part = at + tl.arange(0, AT_ONCE)
        to = (part * KV_HEADS + head) * BM_MAX + m_at
        lse = tl.load(part_lse + to, mask=part < end, other=float("-inf"))
        value = tl.load(part_out + to[:, None] * D + d_at[None, :], mask=(part < end)[:, None], other=0.0)
        higher = tl.maximum(best, tl.max(lse, 0))
        keep, weight = tl.exp2(best - higher), tl.exp2(lse - higher)
        acc = acc * keep + tl.sum(value * weight[:, None], 0)
        total = total * keep + tl.sum(weight, 0)
        best = higher
    value = acc / total
    tl.store(out + row.to(tl.int64) * stride_out + query_head * D + d_at, value.to(out.dtype.element_ty))
    if LSE:
        tl.store(lse_out + row * KV_HEADS * RATIO + query_head, (best + tl.log2(total)) * 0.6931471805599453)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the kernels are compiled: tokens of a tile, pipeline stages of the narrow and the wide tile, warps, the most
    registers of a thread (0: as many as the compiler likes); of the merge, parts at once and warps."""

    stages: int = 2
    stages_wide: int = 3
    warps: int = 4
    tile: int = 64
    registers: int = 0
    at_once: int = 4
    merge_warps: int = 1


def fitting(dim: int, size: int) -> Tuning:
    """A tuning whose tiles fit into the shared memory of an Ampere or newer GPU. size: bytes of a pool's element."""
    if dim * size <= 256:
        return Tuning()
    return Tuning(tile=32) if dim * size <= 512 else Tuning(tile=32, stages_wide=2)


_STEADY = ("group_first", "group_count", "row_group", "piece_row", "piece_from", "piece_who")


class Family:
    """A plan on the device, and the line of the step. The addresses of its tensors do not change from step to step."""

    def __init__(self, plan: FamilyPlan, device: torch.device, capacity: int, shares: int) -> None:
        """capacity: tokens that the line may have. shares: programs of the grid for each KV head."""
        self.plan, self.shares, self.capacity = plan, shares, capacity
        arrays = [getattr(plan, name) for name in _STEADY]
        flat = torch.from_numpy(np.concatenate(arrays)).to(device)
        steady = dict(zip(_STEADY, flat.split([len(a) for a in arrays]), strict=True))
        self.group_first, self.group_count = steady["group_first"], steady["group_count"]
        self.row_group = steady["row_group"]
        self._pieces = steady["piece_row"], steady["piece_from"], steady["piece_who"]
        pieces, groups = len(plan.piece_row), len(plan.group_first)
        self._sizes = [pieces + 1, groups + 1, shares + 1, 1]
        self._moving = torch.empty(sum(self._sizes), dtype=torch.int32, device=device)
        self.piece_start, self.group_start, self.share_group, self.length = self._moving.split(self._sizes)
        self.line_slot, self.line_who = torch.empty(2, capacity, dtype=torch.int32, device=device)
        self.parts = shares + groups

    @property
    def widest(self) -> int:
        """Rows of the largest group."""
        return self.plan.widest

    def line_up(self, lengths: np.ndarray, slot_table: Tensor) -> None:
        """Before the layers of a step: copy the line's few numbers to the device, and look up its slots there."""
        line = line_up(self.plan, lengths, self.shares)
        if line.total > self.capacity:
            raise ValueError(f"the line has {line.total} tokens, its memory {self.capacity}")
        numbers = [line.piece_start, line.group_start, line.share_group, np.array([line.length], np.int32)]
        self._moving.copy_(torch.from_numpy(np.concatenate(numbers)))
        _fill[(len(self.plan.piece_row), 4)](
            slot_table, *self._pieces, self.piece_start, self.line_slot, self.line_who, slot_table.stride(0),
            BLOCK=512, num_warps=4,
        )  # fmt: skip


@dataclass(slots=True)
class FamilyTensors:
    """What the kernels read, at addresses that stay: int32 on the device, sized for the most rows B of a graph.

    group_first, group_count, row_group [B] (-1: no row), group_start [B + 1], share_group [shares + 1], length [1]: see
    `family_plan`. piece_* [2 B]: at, where a piece's slots begin in `store`; own, whose newest slot ends it (-1: it
    does not grow); who. piece_start [2 B + 1] repeats its last number. out_slots [B]: this step's. widest: a group has
    no more rows.
    """

    shares: int
    widest: int
    group_first: Tensor
    group_count: Tensor
    row_group: Tensor
    piece_at: Tensor
    piece_own: Tensor
    piece_who: Tensor
    piece_start: Tensor
    group_start: Tensor
    share_group: Tensor
    length: Tensor
    store: Tensor
    out_slots: Tensor
    line_slot: Tensor
    line_who: Tensor
    workspace: tuple[Tensor, Tensor]

    @property
    def parts(self) -> int:
        return self.shares + len(self.group_first)

    def lay(self) -> None:
        """Before the layers of a step."""
        rows = len(self.row_group)
        _lay[(2 * rows, max(4, 32 // rows))](
            self.store, self.piece_at, self.piece_own, self.piece_who, self.piece_start, self.out_slots,
            self.line_slot, self.line_who, BLOCK=512, num_warps=4,
        )  # fmt: skip


def ratio_pad(ratio: int) -> int:
    """Lanes of a tile that one row takes: query heads of a KV head, rounded up to a power of two."""
    return triton.next_power_of_2(ratio)


def per_tile(ratio: int) -> int:
    """Rows that the narrow tile (16 lanes, the least that matrix units take) holds."""
    return max(1, 16 // ratio_pad(ratio))


def grid_shares(widest: int, rows_per_tile: int, kv_heads: int, multiprocessors: int) -> int:
    """Programs of the grid for each KV head: as many as are resident at once, two on a multiprocessor with wide tiles
    (shared memory bounds them), four without."""
    resident = 2 if widest > rows_per_tile else 4
    return max(1, resident * multiprocessors // kv_heads)


def family_attention(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    family: Family | FamilyTensors,
    scale: float,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    workspace: tuple[Tensor, Tensor] | None = None,
    tuning: Tuning | None = None,
) -> Tensor:
    """Decode attention of B rows. `lse` (fp32 [B, Hq], natural log) is filled if given; see `make_workspace`."""
    batch, heads, dim = q.shape
    kv_heads = k_pool.shape[1]
    ratio = heads // kv_heads
    pad = ratio_pad(ratio)
    narrow = max(16, pad)
    wide = max(narrow, triton.next_power_of_2(family.widest * pad))
    if out is None:
        out = torch.empty(batch, heads * dim, dtype=q.dtype, device=q.device)
    part_out, part_lse = workspace or make_workspace(family.parts, kv_heads, wide, dim, q.device)
    tuning = tuning or fitting(dim, k_pool.element_size())
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    options: dict[str, Any] = {"maxnreg": tuning.registers} if tuning.registers else {}
    _shares[(family.shares * kv_heads,)](
        q, k_pool, v_pool, family.line_slot, family.line_who, family.group_first, family.group_count,
        family.group_start, family.share_group, family.length, part_out, part_lse, scale * LOG2E, q.stride(0),
        k_pool.stride(0), KV_HEADS=kv_heads, RATIO=ratio, RATIO_PAD=pad, D=dim, BM=narrow, BM_WIDE=wide,
        BN=tuning.tile, STAGES=tuning.stages, STAGES_WIDE=tuning.stages_wide, PRECISION=precision,
        num_warps=tuning.warps, **options,
    )  # fmt: skip
    _merge[(batch, heads)](
        part_out, part_lse, family.row_group, family.group_first, family.group_start, family.length, out,
        out if lse is None else lse, out.stride(0), KV_HEADS=kv_heads, RATIO=ratio, RATIO_PAD=pad, D=dim,
        BM_MAX=wide, AT_ONCE=tuning.at_once, LSE=lse is not None, num_warps=tuning.merge_warps,
    )  # fmt: skip
    return out


def make_workspace(parts: int, kv_heads: int, lanes: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for partial results: `parts` of at most `lanes` lanes (16, 32 or 64) each."""
    shape = (parts, kv_heads, lanes)
    return torch.empty(*shape, dim, device=device), torch.empty(shape, device=device)
