"""The Triton attention kernel: its work items, its log-sum-exp, and on a GPU its accuracy at real shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stemma.kernels.attention import AttentionBatch, reference
from stemma.kernels.attention import work as planning
from stemma.kernels.attention.work import (
    COUNT,
    FEW,
    FIRST,
    KEYS,
    MANY,
    PARTIAL,
    REACH,
    TOKEN,
    gather_slots,
    make_work,
    most_items,
    most_merges,
    most_partials,
    total_keys,
)

pytest.importorskip("triton")
from stemma.kernels.attention import triton as kernel

ROOT = Path(__file__).parent.parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ragged(rng: np.random.Generator, n: np.ndarray, start: np.ndarray, contiguous: bool = False) -> AttentionBatch:
    """Rows with random slots (or each row's in order, as with large pages)."""
    rows, context = len(n), int((start + n).max())
    every = np.arange(rows * context) if contiguous else rng.permutation(rows * context)
    offsets = np.concatenate(([0], np.cumsum(n)))
    kind = lambda x: np.asarray(x, np.int32)  # noqa: E731
    table = kind(every.reshape(rows, context))
    return AttentionBatch(table, kind(rng.permutation(rows)), kind(start), kind(n), kind(offsets))


@pytest.mark.parametrize("seed", range(40))
def test_every_query_meets_every_key_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, group, kv_heads = (
        int(rng.integers(1, 30)),
        int(rng.choice([1, 2, 3, 4, 7, 8, 16, 32])),
        int(rng.choice([1, 2, 8])),
    )
    n = np.where(rng.random(rows) < (0.6 if seed % 2 else 1.0), 1, rng.integers(1, 90, rows))
    batch = ragged(rng, n, rng.integers(0, 900, rows))
    made = make_work(batch, group, kv_heads)
    slots = np.empty(total_keys(batch), np.int32)
    gather_slots(batch, slots)
    seen: list[dict[int, int]] = [{} for _ in range(int(n.sum()))]
    parts: dict[int, int] = {}  # partial row -> token
    straight: set[int] = set()
    for items, tile in ((made.few, FEW), (made.many, MANY)):
        assert (np.diff(items[:, KEYS]) <= 0).all(), "long ones first"
        for item in items.tolist():
            assert item[COUNT] * group <= max(tile, group)
            for i in range(item[COUNT]):
                token = item[TOKEN] + i
                for key in range(min(item[KEYS], item[REACH] + i + 1)):
                    slot = int(slots[item[FIRST] + key])
                    seen[token][slot] = seen[token].get(slot, 0) + 1
                if item[PARTIAL] < 0:
                    assert token not in straight
                    straight.add(token)
                else:
                    assert item[PARTIAL] + i not in parts
                    parts[item[PARTIAL] + i] = token
    merged = {}
    for token, first, count, distance in made.merges.tolist():
        merged[token] = [first + k * distance for k in range(count)]
        assert all(parts.pop(row) == token for row in merged[token])
    assert not parts and straight.isdisjoint(merged) and len(straight) + len(merged) == n.sum()
    assert made.partials >= sum(len(rows) for rows in merged.values())
    for i, row in enumerate(batch.rows):
        for k in range(int(n[i])):
            wanted = batch.slot_table[row, : batch.start[i] + k + 1].tolist()
            assert seen[int(batch.offsets[i]) + k] == dict.fromkeys(wanted, 1)
    if (n * group <= FEW).all():
        assert len(made.few) <= most_items(int(n.sum()), kv_heads)
        assert made.partials <= most_partials(int(n.sum()), group, kv_heads)
        assert len(made.merges) <= most_merges(int(n.sum()), group, kv_heads)


@pytest.mark.parametrize("group", [3, 32])
def test_log_sum_exp_and_splits(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LEAST", 64)
    rng = np.random.default_rng(group)
    batch = ragged(rng, np.array([1, 3, 9, 1]), np.array([150, 70, 100, 0]))
    torch.manual_seed(group)
    kv_heads, dim, tokens = 1, 16, 14
    q = torch.randn(tokens, kv_heads * group, dim, device=DEVICE)
    keys, values = torch.randn(2, batch.slot_table.size, kv_heads, dim, device=DEVICE)
    wanted_lse, lse = torch.empty(2, tokens, kv_heads * group, device=DEVICE)
    wanted = reference.attention(q, keys, values, batch, 0.25, lse=wanted_lse)
    got = kernel.attention(q, keys, values, batch, 0.25, lse=lse)
    assert batch.prepared["triton"].merges.shape[0] > 0
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(lse, wanted_lse, rtol=1e-4, atol=2e-5)


def test_merging_parts_gives_the_whole() -> None:
    torch.manual_seed(0)
    partial, mass = torch.randn(60, 3, 20, device=DEVICE), torch.randn(60, 3, device=DEVICE) * 20
    mass[5], mass[40:43] = float("-inf"), float("-inf")  # a part that saw no key; a token of which no part did
    merges = torch.tensor([[2, 0, 20, 1], [0, 20, 5, 4], [1, 40, 3, 1], [3, 0, 0, 0]], dtype=torch.int32, device=DEVICE)
    outs, masses = torch.full((2, 4, 60), 7.0, device=DEVICE), torch.full((2, 4, 3), 7.0, device=DEVICE)
    for merge, out, lse in zip((kernel.merge_states, reference.merge_states), outs, masses, strict=True):
        merge(partial, mass, merges, out, lse)
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masses[0], masses[1], rtol=1e-5, atol=1e-5)
    assert (outs[:, 3] == 7).all() and (outs[:, 1] == 0).all() and masses[0, 1, 0] == float("-inf")


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    names = [
        "attend few bf16 128",
        "attend many bf16 128",
        "shares wide bf16 128",
        "lay",
        "family merge",
        "merge",
        "rope and store",
        "draw",
        "filter",
    ]
    command = [sys.executable, str(ROOT / "tests" / "kernels" / "compile_for_gpu.py"), *names]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = {line[:24].strip(): line[24:] for line in done.stdout.splitlines()}
    assert list(lines) == names
    assert "mma, cp.async" in lines["attend few bf16 128"] and "wgmma, cp.async" in lines["attend many bf16 128"]
    assert int(lines["shares wide bf16 128"].split()[2].rstrip(",")) <= 113 * 1024, "two programs on a multiprocessor"
    assert all(int(line.split()[2].rstrip(",")) <= 227 * 1024 for line in lines.values()), "shared memory of Hopper"


def in_float64(q: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, scale: float) -> Tensor:
    """Attention of every row in float64."""
    tokens, heads, dim = q.shape
    kv_heads = keys.shape[1]
    out = torch.empty(tokens, heads, dim, dtype=torch.float64, device=q.device)
    for i, row in enumerate(batch.rows):
        first, last, end = int(batch.offsets[i]), int(batch.offsets[i + 1]), int(batch.start[i] + batch.n[i])
        slots = torch.from_numpy(batch.slot_table[row, :end].astype(np.int64)).to(q.device)
        k, v = keys[slots].double(), values[slots].double()  # [end, Hkv, D]
        mine = q[first:last].double().view(last - first, kv_heads, heads // kv_heads, dim)
        scores = torch.einsum("tkgd,skd->tkgs", mine, k) * scale
        position = torch.arange(int(batch.start[i]), end, device=q.device)
        scores.masked_fill_(torch.arange(end, device=q.device) > position[:, None, None, None], float("-inf"))
        out[first:last] = torch.einsum("tkgs,skd->tkgd", scores.softmax(-1), v).reshape(last - first, heads, dim)
    return out.view(tokens, heads * dim)


@pytest.mark.gpu
@pytest.mark.parametrize("contiguous", [False, True], ids=["scattered", "contiguous"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float32, 2e-6)], ids=["bf16", "fp32"])
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_accuracy_at_real_shapes(group: int, dim: int, dtype: torch.dtype, tolerance: float, contiguous: bool) -> None:
    if DEVICE == "cpu":
        pytest.skip("needs an NVIDIA GPU")
    rng = np.random.default_rng(group * dim)
    kv_heads = 8 if group == 1 else 2
    shapes = [
        (np.ones(40, int), rng.integers(0, 1500, 40)),  # decode
        (np.ones(3, int), np.array([32767, 5, 9000])),
        (np.where(rng.random(12) < 0.5, 1, rng.integers(1, 300, 12)), rng.integers(0, 700, 12)),  # mixed
        (np.array([600, 2, 3, 4]), np.array([0, 8000, 127, 128])),
    ]
    for n, start in shapes:
        batch = ragged(rng, n, start, contiguous)
        q = torch.randn(int(n.sum()), (group + 2) * kv_heads, dim, device="cuda").to(dtype)[:, : group * kv_heads]
        pools = torch.randn(2, batch.slot_table.size, kv_heads, dim, device="cuda").to(dtype)
        out = torch.full((int(n.sum()), group * kv_heads * dim), float("nan"), device="cuda", dtype=dtype)
        got = kernel.attention(q, pools[0], pools[1], batch, dim**-0.5, out)
        wanted = in_float64(q, pools[0], pools[1], batch, dim**-0.5)
        error = float((got.double() - wanted).norm() / wanted.norm())
        assert error < tolerance, f"relative error {error:.2e} with n {n.tolist()[:5]}"
