"""Every implementation of every operation, held to its plain torch reference."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from stemma.kernels.attention import AttentionBatch
from stemma.kernels.dispatch import OPERATIONS, has_numba, has_triton, reasons, resolve

CUDA = torch.cuda.is_available()
CPU = torch.device("cpu")
FAST = [
    (operation, package, name)
    for operation, (package, names) in OPERATIONS.items()
    for name in names
    if name != "reference"
]


def through_the_gpu(function):
    """The function on copies of its tensors on the GPU; what it writes into them is copied back."""

    def call(*arguments):
        moved = [x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments]
        for x in moved:
            if isinstance(x, AttentionBatch):
                x.prepared.clear()
        result = function(*moved)
        for given, x in zip(arguments, moved, strict=True):
            if isinstance(given, torch.Tensor):
                given.copy_(x)
        return result.cpu() if isinstance(result, torch.Tensor) else result

    return call


def pair(operation: str, package: str, name: str):
    """(implementation, reference) of an operation; both take CPU tensors."""
    if name == "cpu" and not has_numba():
        pytest.skip("numba is not installed")
    if name == "triton" and not has_triton():
        pytest.skip("triton is not installed")
    load = lambda which: getattr(importlib.import_module(f"stemma.kernels.{package}.{which}"), operation)  # noqa: E731
    fast = load(name)
    return (through_the_gpu(fast) if name == "triton" and CUDA else fast), load("reference")


def implementations(operation: str) -> list[str]:
    return [name for found, _, name in FAST if found == operation]


def test_every_operation_has_a_reference() -> None:
    for operation, (package, names) in OPERATIONS.items():
        assert names[-1] == "reference"
        assert callable(getattr(importlib.import_module(f"stemma.kernels.{package}.reference"), operation))


def test_the_table_names_every_choice() -> None:
    table = resolve(CPU, torch.bfloat16).table()
    assert len(table.splitlines()) == len(OPERATIONS)
    assert "sdpa" in table and "cpu" not in table and "triton" not in table
    assert set(resolve(CPU, torch.float32, "reference").chosen.values()) == {"reference"}


def test_every_choice_has_a_reason() -> None:
    found = {operation: (name, why) for operation, name, why in reasons(torch.device("cuda"), torch.bfloat16)}
    assert set(found) == set(OPERATIONS)
    if has_triton():
        assert {name for name, _ in found.values()} == {"triton"}
    by_cpu = {operation: (name, why) for operation, name, why in reasons(CPU, torch.bfloat16)}
    assert by_cpu["attention"] == ("sdpa", "not triton: needs a GPU; not cpu: fp32 on CPU only")


@pytest.mark.parametrize("name", implementations("rms_norm"))
@pytest.mark.parametrize("shape", [(1, 48), (7, 256), (33, 5, 16), (0, 32), (3, 2, 100)])
def test_rms_norm(name: str, shape: tuple[int, ...]) -> None:
    fast, reference = pair("rms_norm", "rmsnorm", name)
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    torch.testing.assert_close(fast(x, weight, 1e-5), reference(x, weight, 1e-5), rtol=1e-5, atol=1e-6)
    if len(shape) == 3:  # a strided view, normalised in place
        wide = torch.randn(shape[0], shape[1] * shape[2] + 24)
        view = wide[:, 8 : 8 + shape[1] * shape[2]].view(shape)
        wanted = reference(view, weight, 1e-5)
        before = wide[:, :8].clone()
        fast(view, weight, 1e-5, view)
        torch.testing.assert_close(view, wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(wide[:, :8], before)


@pytest.mark.parametrize("name", implementations("add_rms_norm"))
@pytest.mark.parametrize("shape", [(1, 48), (9, 256), (70, 100)])
def test_add_rms_norm(name: str, shape: tuple[int, int]) -> None:
    fast, reference = pair("add_rms_norm", "rmsnorm", name)
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[1])
    other = residual.clone()
    torch.testing.assert_close(fast(x, residual, weight, 1e-6), reference(x, other, weight, 1e-6), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(residual, other)


@pytest.mark.parametrize("name", implementations("apply_rope"))
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim"), [(1, 4, 2, 16), (37, 8, 8, 32), (5, 6, 1, 24)])
def test_apply_rope(name: str, tokens: int, heads: int, kv_heads: int, dim: int) -> None:
    fast, reference = pair("apply_rope", "rope", name)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    angles = torch.randn(tokens, dim // 2) * 10
    copies = qkv.clone(), qkv.clone()
    for copy, function in zip(copies, (fast, reference), strict=True):
        q = copy[:, : heads * dim].view(tokens, heads, dim)
        k = copy[:, heads * dim : (heads + kv_heads) * dim].view(tokens, kv_heads, dim)
        function(q, k, angles.cos(), angles.sin())
    torch.testing.assert_close(*copies, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", implementations("silu_and_mul"))
@pytest.mark.parametrize("shape", [(1, 8), (40, 704), (3, 33)])
def test_silu_and_mul(name: str, shape: tuple[int, int]) -> None:
    fast, reference = pair("silu_and_mul", "silu_and_mul", name)
    x = torch.randn(shape[0], 2 * shape[1]) * 30
    x[0, :4] = torch.tensor([100.0, -100.0, 0.0, -1e4])
    torch.testing.assert_close(fast(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", implementations("store_kv"))
def test_store_kv(name: str) -> None:
    fast, reference = pair("store_kv", "store_kv", name)
    wide = torch.randn(19, 100)
    k, v = wide[:, :32].view(19, 2, 16), wide[:, 40:72].view(19, 2, 16)
    slots = torch.randperm(50)[:19]
    pools = [torch.zeros(2, 50, 2, 16) for _ in range(2)]
    for pool, function in zip(pools, (fast, reference), strict=True):
        function(k, v, slots, pool[0], pool[1])
    assert torch.equal(*pools)


def random_batch(
    seed: int, rows: int, longest: int, most_new: int, groups: list[tuple[int, int, int]]
) -> AttentionBatch:
    """Rows with random lengths; the rows of a group share the slots of their first positions (which may be computed
    in this very step by the first of them)."""
    rng = np.random.default_rng(seed)
    n = rng.integers(1, most_new + 1, rows)
    start = rng.integers(0, longest, rows)
    table_rows = rng.permutation(rows + 3)[:rows]
    context = longest + most_new + 300
    table = rng.permutation((rows + 3) * context).reshape(rows + 3, context).astype(np.int32)
    for first, count, shared in groups:
        start[first + 1 : first + count] = np.maximum(start[first + 1 : first + count], shared)
        table[table_rows[first : first + count], :shared] = table[table_rows[first], :shared]
        n[first] = max(n[first], shared - start[first])  # the leader computes what is not there yet
    kind = lambda x: np.asarray(x, np.int32)  # noqa: E731
    offsets = np.concatenate(([0], np.cumsum(n)))
    return AttentionBatch(table, kind(table_rows), kind(start), kind(n), kind(offsets), groups)


@pytest.mark.parametrize("name", implementations("attention"))
@pytest.mark.parametrize(
    ("rows", "longest", "most_new", "groups"),
    [
        (1, 1, 1, []),
        (1, 200, 1, []),
        (1, 50, 150, []),
        (5, 130, 1, []),
        (6, 64, 9, []),
        (20, 40, 3, [(2, 5, 64), (10, 10, 65)]),
        (7, 20, 30, [(0, 7, 90)]),
        (12, 70, 1, [(0, 2, 1), (4, 3, 63), (7, 5, 70)]),
    ],
)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (8, 1, 32), (3, 3, 20), (4, 2, 64), (2, 1, 6)])
def test_attention(
    name: str,
    rows: int,
    longest: int,
    most_new: int,
    groups: list[tuple[int, int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
) -> None:
    if name == "triton" and not CUDA and dim not in (16, 20):
        pytest.skip("interpreted kernels are slow: two shapes do")
    fast, reference = pair("attention", "attention", name)
    batch = random_batch(rows * 1000 + dim, rows, longest, most_new, groups)
    tokens = int(batch.offsets[-1])
    torch.manual_seed(dim)
    wide = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    q = wide[:, : heads * dim].view(tokens, heads, dim)
    k_pool, v_pool = torch.randn(2, batch.slot_table.size, kv_heads, dim)
    wanted = reference(q, k_pool, v_pool, batch, dim**-0.5)
    for _ in range(2):  # what was prepared serves the next layer
        got = fast(q, k_pool, v_pool, batch, dim**-0.5)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", implementations("attention"))
def test_attention_survives_large_scores(name: str) -> None:
    fast, reference = pair("attention", "attention", name)
    batch = random_batch(1, 3, 100, 4, [])
    q = torch.randn(int(batch.offsets[-1]), 2, 16) * 60
    k_pool, v_pool = torch.randn(2, batch.slot_table.size, 1, 16) * 5
    got = fast(q, k_pool, v_pool, batch, 1.0)
    torch.testing.assert_close(got, reference(q, k_pool, v_pool, batch, 1.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", implementations("rope_store_kv"))
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim"), [(1, 4, 2, 16), (13, 6, 2, 32), (5, 3, 1, 24)])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_rope_store_kv(name: str, tokens: int, heads: int, kv_heads: int, dim: int, kind: torch.dtype) -> None:
    fast, reference = pair("rope_store_kv", "rope_store_kv", name)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    angles = torch.randn(tokens, dim // 2) * 10
    slots = torch.randperm(30)[:tokens].to(kind)
    results = []
    for function in (fast, reference):
        copy, pools = qkv.clone(), torch.zeros(2, 30, kv_heads, dim)
        q, k, v = (
            part.view(tokens, -1, dim) for part in copy.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=1)
        )
        function(q, k, v, angles.cos(), angles.sin(), slots, pools[0], pools[1])
        results.append((q, pools))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", implementations("argmax"))
@pytest.mark.parametrize("vocab", [1, 7, 4096, 9001])
def test_argmax_takes_the_lowest_of_equal_ids(name: str, vocab: int) -> None:
    fast, reference = pair("argmax", "argmax", name)
    torch.manual_seed(vocab)
    scores = torch.randn(9, vocab).mul(3).round()  # many ties
    scores[3] = float("-inf")
    scores[4, : vocab // 2] = float("-inf")
    assert torch.equal(fast(scores), reference(scores))
    assert reference(scores)[3] == 0
    assert torch.equal(fast(scores), torch.from_numpy(scores.numpy().argmax(1)))


@pytest.mark.parametrize("name", implementations("adjust_logits"))
def test_adjust_logits(name: str) -> None:
    fast, reference = pair("adjust_logits", "adjust_logits", name)
    torch.manual_seed(0)
    logits = torch.randn(6, 501) * 4
    chosen = torch.randperm(logits.numel())[:700]
    rows, ids = (chosen // 501).int(), (chosen % 501).int()
    add = torch.randn(700) * (torch.rand(700) < 0.3)
    divide, minus = torch.rand(700) * 2 + 0.5, torch.randn(700) * (torch.rand(700) < 0.5)
    got, wanted = logits.clone(), logits.clone()
    fast(got, rows, ids, add, divide, minus)
    reference(wanted, rows, ids, add, divide, minus)
    assert torch.equal(got, wanted)
    untouched = torch.ones(logits.numel(), dtype=torch.bool)
    untouched[chosen] = False
    assert torch.equal(got.view(-1)[untouched], logits.view(-1)[untouched])


@pytest.mark.parametrize("name", implementations("filter_scores"))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("vocab", [1, 90, 5000])
def test_filter_scores(name: str, ties: bool, vocab: int) -> None:
    fast, reference = pair("filter_scores", "filter_scores", name)
    rng = np.random.default_rng(vocab + ties)
    rows = 6 if name == "triton" and not CUDA else 40  # the interpreter is slow
    scores = torch.from_numpy((rng.standard_normal((rows, vocab)) * rng.uniform(0.1, 6, (rows, 1))).astype(np.float32))
    if ties:
        scores = scores.round()
    scores[::5, 1::3] = float("-inf")
    top_k = torch.from_numpy(rng.choice([1, 2, 5, 20, vocab, 2**31 - 1], rows).astype(np.int32))
    top_p = torch.from_numpy(rng.choice([0.0513, 0.5137, 0.9013, 0.991, 1.0], rows).astype(np.float32))
    min_p = torch.from_numpy(rng.choice([0.0, 0.0, 0.01, 0.2, 1.0], rows).astype(np.float32))
    got, wanted = scores.clone(), scores.clone()
    fast(got, top_k, top_p, min_p)
    reference(wanted, top_k, top_p, min_p)
    for i in range(rows):
        assert torch.equal(got[i], wanted[i]), f"row {i}: {top_k[i]} {top_p[i]} {min_p[i]}"


@pytest.mark.parametrize("name", implementations("draw"))
@pytest.mark.parametrize("vocab", [1, 5, 307, 5000])
def test_draw_equals_the_reference(name: str, vocab: int) -> None:
    fast, reference = pair("draw", "sampling", name)
    torch.manual_seed(vocab)
    rows = 20 if name == "triton" and not CUDA else 200  # the interpreter is slow
    scores = torch.randn(rows, vocab) * torch.logspace(-2, 1.5, rows)[:, None]
    scores[::3] = scores[::3].masked_fill(torch.rand(len(scores[::3]), vocab) < 0.5, float("-inf"))
    scores[:, 0] = scores[:, 0].clamp_min(-50.0)
    seeds, positions = torch.randint(0, 1 << 62, (rows,)), torch.randint(0, 5000, (rows,))
    assert torch.equal(fast(scores, seeds, positions), reference(scores, seeds, positions))


@pytest.mark.parametrize("name", [*implementations("draw"), "reference"])
def test_draws_follow_the_distribution(name: str) -> None:
    fast, _ = pair("draw", "sampling", name)
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf"), 1.5, -3.0])
    if name == "triton" and not CUDA:
        pytest.skip("the interpreter takes minutes; the draws are those of the reference")
    count = 40_000
    ids = torch.cat(
        [
            fast(scores.repeat(count // 2, 1), torch.full((count // 2,), 7), torch.arange(count // 2)),  # positions
            fast(scores.repeat(count // 2, 1), torch.arange(count // 2), torch.full((count // 2,), 3)),  # seeds
        ]
    )
    found = torch.bincount(ids, minlength=7).double()
    wanted = torch.softmax(scores.double(), 0) * count
    assert found[4] == 0
    keep = wanted > 0
    chi_square = float(((found - wanted)[keep] ** 2 / wanted[keep]).sum())
    assert chi_square < 22.5  # 5 degrees of freedom, p = 0.0004


def test_exp_is_accurate() -> None:
    if not has_numba():
        pytest.skip("numba is not installed")
    from numba import njit

    from stemma.kernels.cpu import exp_down

    @njit
    def apply(x, out):
        for i in range(x.size):
            out[i] = exp_down(x[i])

    x = -np.concatenate([np.linspace(0, 1, 5000), np.linspace(0, 86.9, 5000), np.geomspace(1e-30, 1, 100)])
    x = x.astype(np.float32)
    out = np.empty_like(x)
    apply(x, out)
    assert np.abs(out / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
