"""The host's part of family attention: which tokens of the KV pool are read once, for which rows, by whom.

Decode rows stand in depth-first order of their prefix tree, so the rows that share a prefix are neighbours, and the
tree is told by one number for each row: how many leading positions it has in common with the row before it. Neighbours
form groups, as many rows as the query heads of one tile hold. A group's tokens are a list of pieces: stretches that all
its rows share, those that some share, and each row's own. Every token of the list is read once, and knows which rows
may see it. The lists of all groups lie on one line, which is cut into shares of equal length for a grid of fixed size;
what a share has of one group is a part, and the parts of a group are merged by log-sum-exp. Part number s + g belongs
to share s and group g: going along the line, either the share or the group changes.

The pieces change only when rows come and go; the line grows with every step (`line_up`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]

LEAST = 48  # a common stretch shorter than this is read by each row for itself
FAMILY = 128  # a longer common prefix makes neighbours a family
SHORTEST_SHARE = 128  # tokens


@dataclass(slots=True)
class FamilyPlan:
    """G groups of B rows, N pieces.

    group_first, group_count: int32 [G], the rows (plan order) of each group. group_piece: int32 [G + 1]. row_group:
    int32 [B]. piece_leader: int32 [N], the row (plan order) whose slots they are. piece_row: int32 [N], its table row.
    piece_from: int32 [N], first position. piece_to: int32 [N], end position, -1: the row's length. piece_who: int32
    [N], the rows of the group that see it, as low | high << 16. widest: rows of the largest group.
    """

    group_first: Int32
    group_count: Int32
    group_piece: Int32
    row_group: Int32
    piece_leader: Int32
    piece_row: Int32
    piece_from: Int32
    piece_to: Int32
    piece_who: Int32
    widest: int


@dataclass(slots=True)
class Line:
    """One step of a plan. piece_start: int32 [N + 1], where each piece begins on the line. group_start: int32 [G + 1].
    share_group: int32 [S + 1], the group at the beginning of each share, and the last one. length: of a share."""

    piece_start: Int32
    group_start: Int32
    share_group: Int32
    length: int

    @property
    def total(self) -> int:
        return int(self.piece_start[-1])


def common_prefixes(slot_table: Int32, rows: Int32, lengths: Int32) -> Int32:
    """int32 [B]: leading positions of row i whose slots are those of row i - 1; 0 for the first.

    For tests and for callers that do not know the tree: it compares slots.
    """
    out = np.zeros(len(rows), np.int32)
    for i in range(1, len(rows)):
        n = int(min(lengths[i - 1], lengths[i]))
        differs = slot_table[rows[i - 1], :n] != slot_table[rows[i], :n]
        out[i] = int(differs.argmax()) if differs.any() else n
    return out


def common_of_segments(segments: Iterable[tuple[int, int, int]], rows: int) -> Int32:
    """As `common_prefixes`, from what is known: (first row, rows, end position) of every stretch that rows share, those
    that hold others before them."""
    out = np.zeros(rows, np.int32)
    for first, count, end in segments:
        out[first + 1 : first + count] = end
    return out


def plan_families(rows: Int32, common: Int32, per_tile: int, wide: int) -> FamilyPlan:
    """The plan of one decode batch.

    rows: int32 [B], table rows. common: int32 [B], see `common_prefixes`; what a row shares with its neighbour must not
    contain either's last token. per_tile: rows that the narrow tile holds. wide: rows of the widest tile.
    """
    firsts, counts = _groups(common, per_tile, wide)
    shared: list[tuple[int, int, int, int]] = []  # stretches that several rows share
    begins = np.zeros(len(rows), np.int32)  # where each row's own tokens begin
    shared_of = common.tolist()
    for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
        if count > 1:
            _walk(shared, begins, shared_of, first, count)
    row_group = np.repeat(np.arange(len(firsts), dtype=np.int32), counts)
    size = len(rows)
    pieces = np.array(shared, np.int32).reshape(-1, 4)
    inside = np.arange(size, dtype=np.int32) - firsts[row_group]
    leader = np.concatenate([pieces[:, 0], np.arange(size, dtype=np.int32)])
    order = np.argsort(row_group[leader], kind="stable")
    leader = leader[order]
    return FamilyPlan(
        group_first=firsts,
        group_count=counts,
        group_piece=np.searchsorted(row_group[leader], np.arange(len(firsts) + 1)).astype(np.int32),
        row_group=row_group,
        piece_leader=leader,
        piece_row=rows[leader],
        piece_from=np.concatenate([pieces[:, 1], begins])[order],
        piece_to=np.concatenate([pieces[:, 2], np.full(size, -1, np.int32)])[order],
        piece_who=np.concatenate([pieces[:, 3], inside | (inside + 1) << 16])[order],
        widest=int(counts.max()),
    )


def line_up(plan: FamilyPlan, lengths: Int32, shares: int) -> Line:
    """The line of one step. lengths: int32 [B], KV positions of each row, this step's token included."""
    ends = np.where(plan.piece_to < 0, lengths[plan.piece_leader], plan.piece_to)
    starts = np.zeros(len(ends) + 1, np.int32)
    np.cumsum(ends - plan.piece_from, out=starts[1:])
    groups = starts[plan.group_piece]
    length = max(SHORTEST_SHARE, -(-int(starts[-1]) // shares))
    cuts = np.minimum(np.arange(shares + 1, dtype=np.int64) * length, max(int(starts[-1]) - 1, 0))
    at = np.searchsorted(groups, cuts, side="right") - 1
    return Line(starts, groups, at.astype(np.int32), length)


def _groups(common: Int32, per_tile: int, wide: int) -> tuple[Int32, Int32]:
    """Neighbours, cut where a family ends; families of more rows than the widest tile holds are cut into equal parts,
    and small ones stand together in a narrow tile if they fit."""
    starts = np.flatnonzero(common < FAMILY)
    if not len(starts) or starts[0]:
        starts = np.concatenate([[0], starts])
    sizes = np.diff(np.append(starts, len(common))).tolist()
    firsts: list[int] = []
    counts: list[int] = []
    at = 0
    open_rows = 0  # of the narrow group that may still take another small family
    for size in sizes:
        if size < per_tile and open_rows and open_rows + size <= per_tile:
            counts[-1] += size
            open_rows += size
        elif size <= wide:
            firsts.append(at)
            counts.append(size)
            open_rows = size if size < per_tile else 0
        else:
            firsts_in, counts_in = _cut(common[at : at + size], wide)
            firsts.extend(at + f for f in firsts_in)
            counts.extend(counts_in)
            open_rows = 0
        at += size
    return np.array(firsts, np.int32), np.array(counts, np.int32)


def _cut(common: Int32, wide: int) -> tuple[list[int], list[int]]:
    """Cut a family that is too wide for one tile, at the seam of its sub-families where one is near."""
    firsts: list[int] = []
    counts: list[int] = []
    at, size = 0, len(common)
    while at < size:
        take = min(wide, size - at)
        if at + take < size:
            # of the cuts that keep at least three quarters of a tile, the one where the neighbours share least
            low = at + max(1, 3 * take // 4)
            seams = common[low : at + take + 1]
            take = low + int(len(seams) - 1 - np.argmin(seams[::-1])) - at
        firsts.append(at)
        counts.append(take)
        at += take
    return firsts, counts


def _walk(pieces: list[tuple[int, int, int, int]], begins: Int32, common: list[int], first: int, count: int) -> None:
    """What the rows of a group share: a walk over their tree. Adds (leader, from, to, who sees it) to `pieces`."""
    stack = [(first, first + count, 0)]
    while stack:
        a, b, done = stack.pop()
        between = common[a + 1 : b]
        shared = min(between)
        if shared - done >= LEAST:
            pieces.append((a, done, shared, (a - first) | (b - first) << 16))
            done = shared
        seams = [a, *(a + 1 + i for i, c in enumerate(between) if c == shared), b]
        for k in range(len(seams) - 1):
            low, high = seams[k], seams[k + 1]
            if high - low > 1:
                stack.append((low, high, done))
            else:
                begins[low] = done
