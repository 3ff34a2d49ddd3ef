"""Family attention against the definition, on random trees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from stemma.kernels.attention import AttentionBatch
from stemma.kernels.attention.family import Family, family_attention, grid_shares, per_tile
from stemma.kernels.attention.family_plan import (
    FamilyPlan,
    common_of_segments,
    common_prefixes,
    line_up,
    plan_families,
)
from stemma.kernels.attention.reference import attention

ROOM = 64  # tokens that every row may grow by in these tests
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_tree(rng: np.random.Generator, rows: int, longest: int, depth: int = 3) -> list[list[int]]:
    """Slot lists of decode rows in depth-first order: rows of a node share the slots of its path, and no others."""
    free = iter(rng.permutation(np.arange(1, 1 + rows * longest * 2)).tolist())
    take = lambda n: [next(free) for _ in range(n)]  # noqa: E731

    def grow(count: int, path: list[int], level: int) -> list[list[int]]:
        if count == 1 or level == depth:
            return [path + take(int(rng.integers(1, max(2, longest // 3)))) for _ in range(count)]
        out: list[list[int]] = []
        while count:
            part = int(rng.integers(1, count + 1))
            shared = int(rng.choice([0, 3, 60, longest // 2])) if level else int(rng.choice([0, longest // 2]))
            out += grow(part, path + take(shared), level + 1)
            count -= part
        return out

    return grow(rows, [], 0)


def world(seed: int, rows: int, longest: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype):
    rng = np.random.default_rng(seed)
    lists = random_tree(rng, rows, longest)
    context = max(map(len, lists)) + ROOM
    table = np.zeros((rows + 3, context), np.int32)
    places = rng.permutation(rows + 3)[:rows].astype(np.int32)
    for row, slots in zip(places, lists, strict=True):
        table[row, : len(slots)] = slots
    lengths = np.array([len(x) for x in lists], np.int32)
    gen = torch.Generator().manual_seed(seed)
    pools = [torch.randn(int(table.max()) + 1, kv_heads, dim, generator=gen).to(DEVICE, dtype) for _ in range(2)]
    q = torch.randn(rows, heads, dim, generator=gen).to(DEVICE, dtype)
    return table, places, lengths, q, pools


def check_plan(plan: FamilyPlan, table: np.ndarray, places: np.ndarray, lengths: np.ndarray, shares: int) -> int:
    """Every row sees every one of its positions exactly once, and the parts cover the line. Returns its tokens."""
    seen = [np.zeros(int(n), int) for n in lengths]
    line = line_up(plan, lengths, shares)
    for group, first in enumerate(plan.group_first):
        for piece in range(plan.group_piece[group], plan.group_piece[group + 1]):
            row, at, end, who = (
                int(x[piece]) for x in (plan.piece_row, plan.piece_from, plan.piece_to, plan.piece_who)
            )
            stop = int(lengths[places.tolist().index(row)]) if end < 0 else end
            assert line.piece_start[piece + 1] - line.piece_start[piece] == stop - at
            for mine in range(first + (who & 0xFFFF), first + (who >> 16)):
                assert mine < first + plan.group_count[group]
                assert (table[places[mine], at:stop] == table[row, at:stop]).all(), "another row's slots"
                seen[mine][at:stop] += 1
    assert all((s == 1).all() for s in seen)
    covered = np.zeros(line.total, int)
    parts = set()
    for share in range(shares):
        for group in range(line.share_group[share], line.share_group[share + 1] + 1):
            low = max(share * line.length, line.group_start[group])
            high = min((share + 1) * line.length, line.group_start[group + 1])
            if high > low:
                covered[low:high] += 1
                assert share + group not in parts
                parts.add(share + group)
                first, last = line.group_start[group], line.group_start[group + 1] - 1
                assert first // line.length <= share <= last // line.length
    assert (covered == 1).all(), "a token is nobody's, or read twice"
    return line.total


@pytest.mark.parametrize("seed", range(12))
def test_the_plan_reads_every_token_of_every_row_once(seed: int):
    rng = np.random.default_rng(seed)
    table, places, lengths, _, _ = world(seed, int(rng.integers(1, 60)), 400, 4, 1, 16, torch.float32)
    common = common_prefixes(table, places, lengths)
    plan = plan_families(places, common, 4, 16)
    check_plan(plan, table, places, lengths, int(rng.integers(1, 40)))
    assert int(plan.group_count.sum()) == len(places)


def test_a_family_is_read_once_and_a_wide_one_in_few_groups():
    rows, shared, own = 64, 1000, 10
    table = np.zeros((rows, shared + own + ROOM), np.int32)
    table[:, :shared] = np.arange(1, shared + 1)
    table[:, shared : shared + own] = np.arange(shared + 1, shared + 1 + rows * own).reshape(rows, own)
    places, lengths = np.arange(rows, dtype=np.int32), np.full(rows, shared + own, np.int32)
    plan = plan_families(places, common_prefixes(table, places, lengths), 4, 16)
    assert check_plan(plan, table, places, lengths, 33) == 4 * shared + rows * own
    assert plan.group_count.tolist() == [16] * 4 and plan.widest == 16


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (2, 2), (8, 1), (14, 2)])
def test_equals_the_reference_on_random_trees(heads: int, kv_heads: int):
    for seed, size in ((0, 5), (3, 11)):
        table, places, lengths, q, (k, v) = world(seed, size, 260, heads, kv_heads, 16, torch.float32)
        common = common_prefixes(table, places, lengths)
        rows = per_tile(heads // kv_heads)
        family = Family(plan_families(places, common, rows, 4 * rows), DEVICE, 4000, 3)
        family.line_up(lengths, torch.from_numpy(table).to(DEVICE))
        lse = torch.empty(len(places), heads, device=DEVICE)
        got = family_attention(q, k, v, family, 0.25, lse=lse)
        ones = np.ones(len(places), np.int32)
        batch = AttentionBatch(table, places, lengths - 1, ones, np.arange(len(places) + 1, dtype=np.int32))
        want = attention(q, k, v, batch, 0.25)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
        for i in (0, len(places) - 1):
            slots = torch.from_numpy(table[places[i], : lengths[i]].astype(np.int64)).to(DEVICE)
            keys = k[slots].float().repeat_interleave(heads // kv_heads, dim=1)
            exact = torch.logsumexp(torch.einsum("hd,khd->hk", q[i].float(), keys) * 0.25, dim=-1)
            torch.testing.assert_close(lse[i], exact, atol=2e-5, rtol=1e-4)


def test_a_tree_tells_what_neighbours_have_in_common():
    tree = [(0, 5, 100), (0, 2, 150), (2, 3, 200), (3, 2, 260), (6, 2, 40)]
    assert common_of_segments(tree, 9).tolist() == [0, 150, 100, 200, 260, 0, 0, 40, 0]


def test_a_plan_serves_the_steps_after_it():
    table, places, lengths, q, (k, v) = world(5, 6, 200, 4, 1, 16, torch.float32)
    common = common_prefixes(table, places, lengths)
    family = Family(plan_families(places, common, 4, 16), DEVICE, 4000, 3)
    longer = lengths + np.array([1, 5, 0, 63, 20, 2], np.int32)
    for i, row in enumerate(places):
        table[row, lengths[i] : longer[i]] = 1 + i  # any slot will do
    family.line_up(longer, torch.from_numpy(table).to(DEVICE))
    got = family_attention(q, k, v, family, 0.25)
    ones = np.ones(len(places), np.int32)
    batch = AttentionBatch(table, places, longer - 1, ones, np.arange(len(places) + 1, dtype=np.int32))
    torch.testing.assert_close(got, attention(q, k, v, batch, 0.25), atol=2e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float32, 2e-6)], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (8, 8, 64), (16, 2, 256), (14, 2, 64)])
def test_accuracy_at_real_shapes(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, tolerance: float):
    if DEVICE.type == "cpu":
        pytest.skip("needs an NVIDIA GPU")
    ratio, scale = heads // kv_heads, dim**-0.5
    for seed, size, longest in ((1, 3, 9000), (2, 40, 1500), (3, 64, 4000)):
        table, places, lengths, q, (k, v) = world(seed, size, longest, heads, kv_heads, dim, dtype)
        common = common_prefixes(table, places, lengths)
        rows = per_tile(ratio)
        plan = plan_families(places, common, rows, 4 * rows)
        family = Family(plan, DEVICE, int(lengths.sum()) + 1, grid_shares(plan.widest, rows, kv_heads, 132))
        family.line_up(lengths, torch.from_numpy(table).to(DEVICE))
        got = family_attention(q, k, v, family, scale).view(size, kv_heads, ratio, dim).double()
        wanted = torch.empty_like(got)
        for i in range(size):
            slots = torch.from_numpy(table[places[i], : lengths[i]].astype(np.int64)).to(DEVICE)
            scores = torch.einsum("kgd,skd->kgs", q[i].view(kv_heads, ratio, dim).double(), k[slots].double()) * scale
            wanted[i] = torch.einsum("kgs,skd->kgd", scores.softmax(-1), v[slots].double())
        assert float((got - wanted).norm() / wanted.norm()) < tolerance
