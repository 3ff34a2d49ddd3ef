"""n samples and drafts on a real (tiny) model: what separate requests say, with one prefill and fewer steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stemma.backend.engine import Engine
from stemma.backend.messages import parse_delta
from stemma.lang.errors import RequestError

PROMPT = "once upon a time yes no maybe " * 4
SHAPE = json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})
VARIANTS: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 1.2},
    "filtered": {"temperature": 1.1, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "greedy": {"temperature": 0.0},
    "penalised": {"temperature": 1.0, "repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    "held": {"temperature": 1.0, "min_new_tokens": 3, "logit_bias": {"17": 3.0}},
    "stopped": {"temperature": 1.3, "stop": ["a", "e"]},
    "shaped": {"temperature": 1.0, "json_schema": SHAPE, "max_new_tokens": 30},
    "regex": {"temperature": 1.0, "regex": "[a-z]{1,9}"},
    "one": {"temperature": 1.0, "max_new_tokens": 1},
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_n_samples_are_n_requests_with_the_same_seeds(engine: Engine, kind: str):
    params = {"max_new_tokens": 8, **VARIANTS[kind]}
    engine.flush_cache()
    before = engine.load()["tokens_computed"]
    fields: dict[str, Any] = {"return_logprob": True} if kind in ("sampled", "one") else {}
    samples = engine.generate(PROMPT, {**params, "n": 12, "seed": 40}, **fields)
    computed = engine.load()["tokens_computed"] - before
    for k, sample in enumerate(samples):
        alone = engine.generate(PROMPT, {**params, "seed": 40 + k}, **fields)
        assert (sample["text"], sample["output_ids"]) == (alone["text"], alone["output_ids"])
        assert sample["meta_info"]["finish_reason"] == alone["meta_info"]["finish_reason"]
        if fields:
            got, want = (r["meta_info"]["output_token_logprobs"] for r in (sample, alone))
            assert [e[1] for e in got] == [e[1] for e in want]
            assert [e[0] for e in got] == pytest.approx([e[0] for e in want], abs=1e-4)
    assert computed == sum(sample["meta_info"]["computed_tokens"] for sample in samples)
    if kind not in ("shaped", "regex"):  # there forced tokens come besides
        prompt = samples[0]["meta_info"]["prompt_tokens"]
        assert computed == prompt + sum(len(sample["output_ids"]) - 1 for sample in samples)


def test_streamed_samples_begin_with_their_first_token(engine: Engine):
    engine.flush_cache()
    params = {"temperature": 1.0, "max_new_tokens": 5, "seed": 3, "n": 4, "ignore_eos": True}
    last: dict[int, Any] = {}
    lengths: dict[int, list[int]] = {}
    for item in engine.generate(PROMPT, params, stream=True):
        last[item["index"]] = item
        lengths.setdefault(item["index"], []).append(len(item["output_ids"]))
    whole = engine.generate(PROMPT, params)
    assert [last[k]["output_ids"] for k in range(4)] == [item["output_ids"] for item in whole]
    assert all(seen[0] == 1 and seen == sorted(seen) for seen in lengths.values())


@pytest.mark.parametrize("draft", ["ngram", "auto"])
def test_looked_up_drafts_change_no_token(engine: Engine, tiny_model: Path, draft: str):
    options: Any = {"load_format": "dummy", "max_total_tokens": 4000, "num_threads": 1}
    with Engine(tiny_model, draft=draft, **options) as drafting:
        right = 0
        for kind, params in VARIANTS.items():
            for bias in ({}, {"logit_bias": {"30": 9.0, "31": 8.0}}):  # text that comes again
                given = {**params, **bias, "max_new_tokens": 40, "seed": 9}
                a, b = (each.generate([PROMPT, "go", "go on"], given) for each in (engine, drafting))
                for x, y in zip(a, b, strict=True):
                    assert (x["output_ids"], x["text"]) == (y["output_ids"], y["text"]), kind
                    right += y["meta_info"]["accepted_draft_tokens"]
        assert right > 25  # the equality above says something only if drafts were taken
        assert drafting.scheduler.drafter.confirmed == right
        drafting.check()


def test_log_probabilities_of_chosen_ids_stand_beside_the_others(engine: Engine):
    result = engine.generate(
        "yes no maybe", {"max_new_tokens": 3, "temperature": 0.0}, return_logprob=True, logprob_start_len=0,
        top_logprobs_num=3, token_ids_logprob=[7, 300],
    )  # fmt: skip
    meta = result["meta_info"]
    for side in ("input", "output"):
        rows = zip(
            *(meta[f"{side}_{name}"] for name in ("token_logprobs", "top_logprobs", "token_ids_logprobs")), strict=True
        )
        for chosen, top, ids in rows:
            if chosen[0] is None:  # nothing stands before the first token
                continue
            assert [e[1] for e in ids] == [7, 300]
            known = {e[1]: e[0] for e in [*top, chosen]}
            assert all(e[0] == pytest.approx(known[e[1]], abs=1e-5) for e in ids if e[1] in known)
            assert all(e[0] <= top[0][0] for e in [*ids, chosen])


def test_too_many_log_probabilities_are_refused_by_name(engine: Engine):
    asked: dict[str, Any] = {"return_logprob": True, "logprob_start_len": 0}
    params = {"max_new_tokens": 1}
    with pytest.raises(RequestError, match=r"top_logprobs_num must be in \[0, 256\], got 300"):
        engine.generate("yes", params, **asked, top_logprobs_num=300)
    with pytest.raises(RequestError, match="1024 token_ids_logprob at a position"):
        engine.generate("yes", params, **asked, token_ids_logprob=[5] * 1100)
    with pytest.raises(RequestError, match=r"must be in \[0, "):
        engine.generate("yes", params, **asked, token_ids_logprob=[10**6])


def test_a_prompt_with_too_many_entries_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stemma.backend.scheduler.gens.MAX_PROMPT_LOGPROBS", 50)
    with pytest.raises(RequestError, match="the most are 50 for a prompt") as caught:
        engine.generate(PROMPT, {"max_new_tokens": 1}, return_logprob=True, logprob_start_len=0, top_logprobs_num=20)
    assert caught.value.param == "logprob_start_len"
    engine.generate("yes", {"max_new_tokens": 1}, return_logprob=True, logprob_start_len=0, top_logprobs_num=2)


def test_choices_are_scored_with_few_tokens(engine: Engine):
    engine.flush_cache()
    events: list[Any] = []
    nodes = [{"kind": "text", "text": PROMPT}, {"kind": "select", "choices": [str(k) for k in range(8)]}]
    delta = {"program": "few", "branches": [{"id": "r", "nodes": nodes}], "end": True}
    engine.submit(parse_delta(delta), events.append)
    while not any(e["event"] in ("done", "error") for e in events):
        engine.load()
    meta = events[-1]["meta"]
    assert meta["computed_tokens"] <= meta["prompt_tokens"] + 8
    assert len({tuple(map(tuple, row)) for row in meta["input_token_logprobs"]}) == 8
