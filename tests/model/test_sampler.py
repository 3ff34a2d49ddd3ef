"""Sampling: order of the steps, filters against numpy, independence of batch mates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stemma.backend.core import Plan, mask_words
from stemma.backend.executor.mask_table import MaskTable
from stemma.backend.executor.sampler import sample
from stemma.kernels.dispatch import resolve
from stemma.kernels.filter_scores import shortlist as by_shortlist
from stemma.kernels.filter_scores.shortlist import filter_scores

from plans import Sequences, sampling_arrays  # isort: skip

VOCAB = 100
KERNELS = resolve(torch.device("cpu"), torch.float32)


def plan_for(rows: int, history: int = 6, vocab: int = VOCAB, **sampling: Any) -> Plan:
    table = Sequences(vocab, max_rows=max(rows, 2), context=64)
    rng = np.random.default_rng(1)
    return table.extend([(row, rng.integers(0, vocab, history).tolist()) for row in range(rows)], **sampling)


def sampled(plan: Plan, logits: torch.Tensor, kernels: Any = KERNELS) -> list[int]:
    return sample(logits.clone(), plan, np.arange(len(plan.rows)), kernels).tolist()


def bitmask(allowed: list[int], vocab: int = VOCAB) -> np.ndarray:
    bits = np.zeros(mask_words(vocab) * 32, np.uint8)
    bits[allowed] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def numpy_filter(scores: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """One row, the plain way: -inf for what is dropped."""
    order = sorted(range(len(scores)), key=lambda v: (-scores[v], v))
    order = [v for v in order if np.isfinite(scores[v])][:top_k]
    weights = np.exp(scores[order].astype(np.float64) - scores[order[0]])
    probabilities = weights / weights.sum()
    before = np.concatenate(([0.0], np.cumsum(probabilities)[:-1]))
    kept = [
        v
        for k, v in enumerate(order)
        if k == 0 or ((before[k] < top_p or top_p >= 1) and weights[k] >= min_p * (1 - 1e-6))
    ]
    out = np.full_like(scores, -np.inf)
    out[kept] = scores[kept]
    return out


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[1, [40, 7, 90]] = 3.0
    assert sampled(plan_for(2), logits) == [0, 7]
    assert sampled(plan_for(2, temperature=[0.0, 1.0], seed=3), logits)[0] == 0


@pytest.mark.parametrize("shortlist", [4, 16, 512])
@pytest.mark.parametrize("ties", [False, True])
def test_filters_equal_numpy(shortlist: int, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_shortlist, "_SHORTLIST", shortlist)
    rng = np.random.default_rng(shortlist)
    rows = 60
    scores = (rng.standard_normal((rows, VOCAB)) * rng.uniform(0.1, 6, (rows, 1))).astype(np.float32)
    if ties:
        scores = np.round(scores)
    scores[::5, ::3] = -np.inf
    top_k = rng.choice([1, 2, 5, 20, VOCAB, 10**9], rows).astype(np.int32)
    top_p = rng.choice([0.0513, 0.5137, 0.9013, 0.991, 1.0], rows).astype(np.float32)
    min_p = rng.choice([0.0, 0.0, 0.01, 0.2, 1.0], rows).astype(np.float32)
    got = torch.from_numpy(scores.copy())
    filter_scores(got, *(torch.from_numpy(x) for x in (top_k, top_p, min_p)))
    for i in range(rows):
        wanted = numpy_filter(scores[i], int(top_k[i]), float(top_p[i]), float(min_p[i]))
        np.testing.assert_array_equal(got[i].numpy(), wanted, err_msg=f"row {i}: {top_k[i]} {top_p[i]} {min_p[i]}")


def test_penalties_follow_their_definitions() -> None:
    table = Sequences(VOCAB)
    ids = [5, 5, 8, 9, 9, 9, 5]
    plan = table.extend(
        [(0, ids), (1, ids)],
        prompt_len=[3, 3],
        repetition_penalty=[2.0, 1.0],
        frequency_penalty=[0.5, 0.0],
        presence_penalty=[0.25, 0.0],
    )
    logits = torch.linspace(-1, 1, VOCAB).repeat(2, 1)
    got = logits.clone()
    sample(got, plan, np.arange(2), KERNELS)
    wanted = logits[0].clone()
    for token in (5, 8, 9):  # the prompt counts for repetition
        wanted[token] = wanted[token] / 2 if wanted[token] > 0 else wanted[token] * 2
    wanted[9] -= 3 * 0.5 + 0.25  # only the output counts for the others
    wanted[5] -= 1 * 0.5 + 0.25
    torch.testing.assert_close(got[0], wanted)
    torch.testing.assert_close(got[1], logits[1])


def test_bias_comes_before_the_mask_and_the_mask_wins() -> None:
    logits = torch.zeros(3, VOCAB)
    plan = plan_for(3, bias=((0, ((50, 10.0), (60, 9.0))), (2, ((3, -5.0), (3, 1.0)))), masks=[(0, bitmask([60, 70]))])
    got = logits.clone()
    assert sample(got, plan, np.arange(3), KERNELS).tolist() == [60, 0, 0]
    assert got[0, 50] == float("-inf") and got[0, 60] == 9.0
    assert got[2, 3] == -4.0


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_masked_tokens_are_never_drawn(temperature: float) -> None:
    allowed = [31, 32, 63, 64, 99]
    plan = plan_for(40, temperature=temperature, seed=np.arange(40), masks=[(i, bitmask(allowed)) for i in range(40)])
    ids = sampled(plan, torch.randn(40, VOCAB) * 3)
    assert set(ids) <= set(allowed)
    assert len(set(ids)) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_that_allows_nothing_gives_minus_one_to_its_row_only(temperature: float) -> None:
    plan = plan_for(3, temperature=temperature, masks=[(1, bitmask([]))])
    ids = sampled(plan, torch.randn(3, VOCAB))
    assert ids[1] == -1 and ids[0] >= 0 and ids[2] >= 0


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("masked", [0, 7, 30])
def test_the_fused_mask_and_temperature_change_no_bit(kernels: str, masked: int) -> None:
    chosen = resolve(torch.device("cpu"), torch.float32, kernels)
    rng = np.random.default_rng(masked)
    temperature = rng.choice([0.0, 0.3, 0.7, 1.0, 1.9], 30).astype(np.float32)
    rows = [(int(i), bitmask(rng.permutation(VOCAB)[:20].tolist())) for i in rng.permutation(30)[:masked]]
    plan = plan_for(30, temperature=temperature, seed=np.arange(30), masks=rows)
    logits = torch.randn(30, VOCAB) * 3
    apart = logits.clone()
    for i, row in rows:
        allowed = np.unpackbits(row.view(np.uint8), bitorder="little", count=VOCAB)
        apart[i, torch.from_numpy(allowed == 0)] = float("-inf")
    drawn = np.flatnonzero(temperature)
    wanted = apart.argmax(dim=1)
    scores = apart[drawn] / torch.from_numpy(temperature[drawn])[:, None]
    positions = torch.from_numpy((plan.start + plan.n)[drawn].astype(np.int64))
    wanted[drawn] = chosen.draw(scores, torch.from_numpy(drawn.astype(np.int64)), positions)
    table = MaskTable(VOCAB, logits.device, capacity=10)
    for _ in range(2):
        assert sample(logits.clone(), plan, np.arange(30), chosen, table).tolist() == wanted.tolist()
    assert table.stats.uploads == masked


@pytest.mark.gpu
def test_masks_on_the_device_give_the_ids_of_the_host() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    device = torch.device("cuda")
    kernels, table = resolve(device, torch.float32), MaskTable(VOCAB, device)
    rng = np.random.default_rng(0)
    logits = torch.randn(30, VOCAB) * 3
    for step in range(20):
        rows = [(int(i), bitmask(rng.permutation(VOCAB)[: 1 + step].tolist())) for i in rng.permutation(30)[:20]]
        plan = plan_for(30, masks=rows)
        assert sample(logits.to(device), plan, np.arange(30), kernels, table).tolist() == sampled(plan, logits)
    assert kernels.chosen["apply_mask"] in ("triton", "reference")


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_a_draw_does_not_depend_on_batch_mates(kernels: str) -> None:
    chosen = resolve(torch.device("cpu"), torch.float32, kernels)
    logits = torch.randn(20, VOCAB)
    temperature = np.where(np.arange(20) % 4 == 0, 0.0, 0.5 + np.arange(20) / 10)
    top_p = np.where(np.arange(20) % 3 == 0, 0.8, 1.0)
    plan = plan_for(20, temperature=temperature, top_p=top_p, seed=np.arange(20) * 77)
    together = sampled(plan, logits, chosen)
    for i in range(20):
        table = Sequences(VOCAB)
        table.put(0, [1] * 4)  # the same length reached in other steps
        alone = table.extend([(0, [2, 3])], temperature=temperature[i], top_p=top_p[i], seed=i * 77)
        assert sample(logits[[i]].clone(), alone, np.arange(1), chosen).tolist() == [together[i]]


def test_seed_and_position_change_the_draw() -> None:
    logits = torch.zeros(50, VOCAB)
    by_seed = sampled(plan_for(50, temperature=1.0, seed=np.arange(50)), logits)
    assert len(set(by_seed)) > 20
    assert (
        sampled(plan_for(50, temperature=1.0, seed=9), logits)
        == [sampled(plan_for(1, temperature=1.0, seed=9), logits[:1])[0]] * 50
    )
    positions = [sampled(plan_for(1, history=h, temperature=1.0, seed=9), logits[:1])[0] for h in range(1, 40)]
    assert len(set(positions)) > 15


def test_temperature_shapes_the_distribution() -> None:
    rows = 20_000
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5]).repeat(rows, 1)
    table = Sequences(4, max_rows=2, context=8)
    plan = table.extend([(0, [1])] * 1)
    plan.rows = np.zeros(rows, np.int32)
    plan.start, plan.n = np.zeros(rows, np.int32), np.ones(rows, np.int32)
    plan.sampling = sampling_arrays(rows, 4, temperature=0.5, top_k=3, seed=np.arange(rows))
    found = np.bincount(sampled(plan, logits), minlength=4)
    weights = np.exp(np.array([2.0, 0.0, -np.inf, 1.0]))
    wanted = weights / weights.sum() * rows
    assert found[2] == 0
    assert ((found - wanted)[wanted > 0] ** 2 / wanted[wanted > 0]).sum() < 18.4  # 2 degrees of freedom, p = 0.0001
