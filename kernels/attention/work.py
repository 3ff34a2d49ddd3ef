"""Work items of the Triton attention kernel: which program attends which queries to which keys.

An item is one tile: up to BM // G consecutive query tokens of one row (G query heads share a KV head, and all of them
are in the tile) against a span of keys. A row with many keys is cut into several items whose results are merged by
their log-sum-exp. Long before short, so that the last programs to start are the small ones.

The split rule (chunks of at least 128 keys, about two programs for each multiprocessor) and the longest-first order
follow flash decoding (Dao et al. 2023) and our own measurements on a Hopper GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stemma.kernels.attention import AttentionBatch

Int32 = NDArray[np.int32]

FIELDS = 8  # int32 words of an item
TOKEN, COUNT, REACH, FIRST, KEYS, PARTIAL = range(6)
# TOKEN: the first query token. COUNT: query tokens. REACH: the position of the first query minus that of the first
# key: query i sees the keys [0, REACH + i]. FIRST: index of the first key in `slots`. KEYS: how many; 0 is no work.
# PARTIAL: where the tile's partial results go, one row for each query token; -1 is straight to the output.

MERGE_FIELDS = 4  # of a merge: query token, its first partial row, how many, the distance between them
FEW = 16  # rows of a tile for few queries: the smallest that tensor cores take
MANY = 64  # rows of a tile otherwise
ALIGN = 64  # keys; parts begin at multiples of it
LEAST = 128  # keys of a part, at least
PROGRAMS = 264  # that are wanted at once: two for each multiprocessor of a large GPU


@dataclass(slots=True)
class Work:
    """A step's attention, over the slots of all rows, one row after the other (`gather_slots`)."""

    few: Int32  # [I, FIELDS], tiles of `FEW` rows
    many: Int32  # [J, FIELDS], tiles of `MANY` rows
    merges: Int32  # [K, MERGE_FIELDS]
    partials: int  # rows of partial results


def total_keys(batch: AttentionBatch) -> int:
    """How many slots `gather_slots` writes."""
    return int(batch.start.sum(dtype=np.int64) + batch.n.sum(dtype=np.int64))


def gather_slots(batch: AttentionBatch, out: Int32) -> None:
    """Writes the slots of all rows into out [total_keys]."""
    at, table = 0, batch.slot_table
    for row, length in zip(batch.rows.tolist(), (batch.start + batch.n).tolist(), strict=True):
        out[at : at + length] = table[row, :length]
        at += length


def _split(items: Int32, kv_heads: int, wave: float) -> tuple[Int32, NDArray[np.int64], Int32]:
    """Cuts tiles along their keys: (items with PARTIAL unset, the tile of each, parts of each tile)."""
    keys = items[:, KEYS]
    share = int(keys.sum(dtype=np.int64)) * kv_heads / (PROGRAMS * wave)
    chunk = max(LEAST, -(-int(share) // ALIGN) * ALIGN)
    parts = np.maximum(1, (keys + chunk // 2) // chunk)
    each = (keys + parts - 1) // parts
    each = (each + ALIGN - 1) // ALIGN * ALIGN
    parts = -(-keys // each)
    if (parts == 1).all():
        return items, np.arange(len(items)), parts
    tile = np.repeat(np.arange(len(items)), parts)
    first = np.cumsum(parts) - parts
    begin = (np.arange(len(tile)) - first[tile]) * each[tile]
    cut = items[tile]
    cut[:, KEYS] = np.minimum(each[tile], keys[tile] - begin)
    cut[:, REACH] -= begin
    cut[:, FIRST] += begin
    return cut, tile, parts


def _tiles(tokens: Int32, start: Int32, n: Int32, first: Int32, size: int) -> Int32:
    """Tiles of `size` query tokens. tokens, start, n, first [B]: of each row, the first token, its position, how many
    tokens there are, and where its slots begin."""
    count = -(-n // size)
    row = np.repeat(np.arange(len(n)), count)
    offset = (np.arange(len(row)) - (np.cumsum(count) - count)[row]) * size
    items = np.zeros((len(row), FIELDS), np.int32)
    items[:, TOKEN] = tokens[row] + offset
    items[:, COUNT] = np.minimum(n[row] - offset, size)
    items[:, REACH] = start[row] + offset
    items[:, FIRST] = first[row]
    items[:, KEYS] = items[:, REACH] + items[:, COUNT]
    return items


def make_work(batch: AttentionBatch, group: int, kv_heads: int) -> Work:
    """Plans a step. group: query heads that share a KV head."""
    ends = batch.start + batch.n
    first = (np.cumsum(ends) - ends).astype(np.int32)
    tokens = batch.offsets[:-1]
    small = batch.n * group <= FEW
    found: list[Int32] = []
    merges: list[Int32] = []
    partials = 0
    for chosen, rows in ((small, FEW), (~small, MANY)):
        if not chosen.any():
            found.append(np.zeros((0, FIELDS), np.int32))
            continue
        size = max(1, rows // group)
        if chosen.all():
            tiles = _tiles(tokens, batch.start, batch.n, first, size)
        else:
            tiles = _tiles(tokens[chosen], batch.start[chosen], batch.n[chosen], first[chosen], size)
        # tiles of many rows are work enough when there are some of them; small ones want two waves
        items, tile, parts = _split(tiles, kv_heads, 2.0 if rows == FEW and len(tiles) > PROGRAMS // kv_heads else 1.0)
        cut = parts > 1
        items[:, PARTIAL] = -1
        if cut.any():
            width = tiles[:, COUNT] * cut * parts  # partial rows of a tile
            base = partials + np.cumsum(width) - width
            index = np.arange(len(tile)) - (np.cumsum(parts) - parts)[tile]
            split = cut[tile]
            items[split, PARTIAL] = (base[tile] + index * tiles[tile, COUNT])[split]
            owner = np.repeat(np.flatnonzero(cut), tiles[cut, COUNT])
            at = np.arange(len(owner)) - np.repeat(np.cumsum(tiles[cut, COUNT]) - tiles[cut, COUNT], tiles[cut, COUNT])
            merge = np.empty((len(owner), MERGE_FIELDS), np.int32)
            merge[:, 0] = tiles[owner, TOKEN] + at
            merge[:, 1] = base[owner] + at
            merge[:, 2] = parts[owner]
            merge[:, 3] = tiles[owner, COUNT]
            merges.append(merge)
            partials += int(width.sum())
        order = np.argsort(-items[:, KEYS], kind="stable")
        found.append(items[order])
    merged = np.concatenate(merges) if merges else np.zeros((0, MERGE_FIELDS), np.int32)
    return Work(found[0], found[1], merged, partials)


def most_items(tokens: int, kv_heads: int) -> int:
    """Upper bound on the items of a step of that many query tokens, all in small tiles."""
    return tokens + 2 * PROGRAMS // kv_heads + 1


def most_partials(tokens: int, group: int, kv_heads: int) -> int:
    """Upper bound on the partial rows of such a step."""
    return tokens + max(1, FEW // group) * (2 * PROGRAMS // kv_heads + 1)


def most_merges(tokens: int, group: int, kv_heads: int) -> int:
    """Upper bound on the merges of such a step: a tile is cut when it has more keys than one and a half chunks."""
    return min(tokens, max(1, FEW // group) * (4 * PROGRAMS // (3 * kv_heads) + 1))
