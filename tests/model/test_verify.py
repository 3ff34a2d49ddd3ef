"""Drafts on the runner: every draw inside a draft is what the step by step draw would be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.backend.core import Follower, LogprobRequest, Plan, Verify, mask_words
from stemma.backend.executor.runner import ModelRunner

from plans import Sequences, sampling_arrays  # isort: skip

VOCAB = 307
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "seed": 5},
    "filtered": {"temperature": 1.2, "seed": 6, "top_p": 0.8, "top_k": 20, "min_p": 0.01},
    "penalised": {"repetition_penalty": 1.5, "frequency_penalty": 0.7, "presence_penalty": 0.3},
    "biased": {"bias": [(1, ((17, 100.0),))], "temperature": 0.5, "seed": 2},
}


@pytest.fixture
def runner(tiny_dir: Callable[..., Path]) -> ModelRunner:
    return ModelRunner(tiny_dir(), load_format="dummy", max_total_tokens=2100)


def row_mask(rng: np.random.Generator) -> np.ndarray:
    allowed = np.zeros(mask_words(VOCAB) * 32, np.uint8)
    allowed[rng.integers(0, VOCAB, 60)] = 1
    return np.packbits(allowed, bitorder="little").view(np.int32)


def with_drafts(plan: Plan, verify: Sequence[Verify]) -> Plan:
    return replace(plan, verify=verify)


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("prompt", [3, 12])  # the fused step, and the model operation by operation
def test_draws_inside_a_draft_equal_single_draws(kind: str, prompt: int, runner: ModelRunner) -> None:
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, VOCAB, n).tolist() for n in (prompt, 3, 2)]
    draft = rng.integers(0, VOCAB, 4).tolist()
    masks = [row_mask(rng), None, row_mask(rng), None, row_mask(rng)]  # of the draws of row 1
    params: dict[str, Any] = PARAMS[kind] | {"prompt_len": [len(ids) for ids in rows]}
    logprobs = [LogprobRequest(2, output=True)]

    table = Sequences(VOCAB)
    pieces = [(0, rows[0]), (1, [*rows[1], *draft]), (2, rows[2])]
    last = [(1, masks[4])]
    plan = table.extend(pieces, masks=last, logprobs=logprobs, **params)
    out = runner.run(with_drafts(plan, [Verify(1, 4, masks[:4])]))

    single, wanted = Sequences(VOCAB), []
    for k in range(5):
        ids = rows[1] if k == 0 else [draft[k - 1]]
        pieces = [(0, rows[0]), (1, ids), (2, rows[2])] if k == 0 else [(1, ids)]
        at = 1 if k == 0 else 0
        given: dict[str, Any] = params if k == 0 else params | {"prompt_len": [3]}
        if "bias" in given and k:
            given = given | {"bias": [(0, given["bias"][0][1])]}
        mask = masks[k]
        plan = single.extend(pieces, masks=[] if mask is None else [(at, mask)], logprobs=logprobs[: k == 0], **given)
        step = runner.run(plan)
        wanted.append(int(step.next_ids[at]))
        if k == 0:
            assert out.next_ids[[0, 2]].tolist() == step.next_ids[[0, 2]].tolist()
            assert out.logprobs[2].output == pytest.approx(step.logprobs[2].output, abs=1e-5)
    assert [*out.verified[1].tolist(), int(out.next_ids[1])] == wanted


def test_a_mask_that_allows_nothing_is_told_inside_a_draft(runner: ModelRunner) -> None:
    nothing = np.zeros(mask_words(VOCAB), np.int32)
    plan = Sequences(VOCAB).extend([(0, [5, 6, 7])])
    out = runner.run(with_drafts(plan, [Verify(0, 2, [nothing, None])]))
    assert out.verified[0][0] == -1 and out.verified[0][1] >= 0 and out.next_ids[0] >= 0


def test_several_rows_have_drafts(runner: ModelRunner) -> None:
    table = Sequences(VOCAB)
    plan = table.extend([(0, [5, 6, 7]), (1, [9]), (2, [8, 1, 2, 3])], sample=[True, False, True])
    out = runner.run(with_drafts(plan, [Verify(2, 3, [None] * 3), Verify(0, 1, [None])]))
    alone = [runner.run(Sequences(VOCAB).extend([(0, ids)])).next_ids[0] for ids in ([5, 6], [8], [8, 1], [8, 1, 2])]
    assert out.verified[0].tolist() == alone[:1] and out.verified[2].tolist() == alone[1:]
    assert out.next_ids[1] == -1 and set(out.verified) == {0, 2}


@pytest.mark.parametrize("drafted", [0, 3])
def test_followers_draw_what_rows_of_their_own_would(drafted: int, runner: ModelRunner) -> None:
    """A leader, another row, and three followers with parameters, masks and log-probabilities of their own."""
    rng = np.random.default_rng(2)
    prompt, other, draft = rng.integers(0, VOCAB, 9).tolist(), [4, 5], rng.integers(0, VOCAB, 3).tolist()[:drafted]
    mask = row_mask(rng)
    params: dict[str, Any] = {
        "temperature": [0.0, 0.8, 0.9, 0.0, 1.3],
        "seed": [0, 1, 7, 0, 9],
        "top_p": [1.0, 1.0, 0.7, 1.0, 1.0],
        "repetition_penalty": [1.0, 1.0, 1.0, 1.6, 1.0],
        "frequency_penalty": [0.0, 0.0, 0.0, 0.5, 0.0],
        "bias": [(4, ((17, 3.0),))],
    }
    prompt_len = [9, 2, 9, 6, 9]
    table = Sequences(VOCAB)
    plan = table.extend([(0, [*prompt, *draft]), (1, other)], masks=[(3, mask)])
    plan.sampling = sampling_arrays(5, VOCAB, prompt_len, **params)
    plan.logprobs = [LogprobRequest(1, output=True), LogprobRequest(2, output=True, top=2, ids=(5,))]
    plan.followers = [Follower(0, 8, key) for key in (11, 12, 13)]
    if drafted:
        plan.verify = [Verify(0, drafted, [None] * drafted)]
    out = runner.run(plan)

    apart = Sequences(VOCAB)
    each = apart.extend([(0, prompt), (1, other), *((k, prompt) for k in (2, 3, 4))], masks=[(3, mask)])
    each.sampling = sampling_arrays(5, VOCAB, prompt_len, **params)
    each.logprobs = plan.logprobs
    alone = runner.run(each)
    assert out.followed.tolist() == alone.next_ids[2:].tolist()
    assert len(set(alone.next_ids[[0, 2, 3, 4]].tolist())) > 2
    assert (out.verified[0][0] if drafted else out.next_ids[0]) == alone.next_ids[0]
    assert out.next_ids[1] == alone.next_ids[1]
    for k in (1, 2):
        assert out.logprobs[k].output == pytest.approx(alone.logprobs[k].output, abs=1e-5)
    assert [t for _, t in out.logprobs[2].output_top or []] == [t for _, t in alone.logprobs[2].output_top or []]
