"""The engine as a library: requests in every form, errors at the caller, an end for everyone."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from stemma.backend.engine import Engine
from stemma.lang.errors import ConstraintError, EngineDeadError, RequestError

GREEDY = {"temperature": 0.0, "max_new_tokens": 12}


def test_text_and_ids_give_the_same(engine: Engine):
    ids = [engine.tokenizer.bos_id, *engine.tokenizer.encode("The capital of")]
    a = engine.generate("The capital of", GREEDY)
    b = engine.generate(input_ids=ids, sampling_params=GREEDY)
    assert a["output_ids"] == b["output_ids"] and a["text"] == b["text"]
    assert a["meta_info"]["prompt_tokens"] == len(ids)
    assert a["meta_info"]["finish_reason"]["type"] in ("stop", "length")
    assert b["meta_info"]["cached_tokens"] == len(ids) - 1


def test_a_batch_answers_in_order_and_equals_one_by_one(engine: Engine):
    prompts = ["red green", "Name: Ada", "What is 12 + 30?"]
    batch = engine.generate(prompts, GREEDY)
    assert [r["output_ids"] for r in batch] == [engine.generate(p, GREEDY)["output_ids"] for p in prompts]


def test_n_samples_are_seeded_and_repeatable(engine: Engine):
    params = {"temperature": 1.0, "n": 3, "seed": 5, "max_new_tokens": 8}
    first = engine.generate("hello", params)
    again = engine.generate("hello", params)
    assert len(first) == 3
    assert [r["output_ids"] for r in first] == [r["output_ids"] for r in again]
    assert len({tuple(r["output_ids"]) for r in first}) > 1


def test_a_stream_grows_to_the_plain_answer(engine: Engine):
    plain = engine.generate("once upon", GREEDY)
    items = list(engine.generate("once upon", GREEDY, stream=True))
    assert items[-1]["text"] == plain["text"] and items[-1]["meta_info"]["finish_reason"]
    texts = [i["text"] for i in items]
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    assert items[0]["meta_info"]["prompt_tokens"] == plain["meta_info"]["prompt_tokens"]


def test_closing_a_stream_aborts_its_work(engine: Engine):
    stream = engine.generate("once upon", {"max_new_tokens": 400, "ignore_eos": True}, stream=True)
    next(stream)
    stream.close()
    for _ in range(1000):
        if not engine.load()["programs"]:
            break
    assert engine.load()["running"] == 0
    engine.check()


def test_async_generate_runs_side_by_side(engine: Engine):
    async def play() -> Any:
        async def stream() -> str:
            last = ""
            async for item in await engine.async_generate("once upon", GREEDY, stream=True):
                last = item["text"]
            return last

        return await asyncio.gather(engine.async_generate("once upon", GREEDY), stream())

    plain, streamed = asyncio.run(play())
    assert plain["text"] == streamed


def test_a_json_schema_holds(engine: Engine):
    schema = {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Rome"]},
            "ok": {"type": "boolean"},
            "n": {"type": "integer", "maximum": 9},
        },
        "required": ["city", "ok", "n"],
        "additionalProperties": False,
    }
    for seed in range(5):
        params = {"temperature": 1.0, "seed": seed, "max_new_tokens": 200, "json_schema": json.dumps(schema)}
        result = engine.generate("go", params)
        value = json.loads(result["text"])
        assert value["city"] in ("Paris", "Rome") and isinstance(value["ok"], bool) and value["n"] <= 9
        assert result["meta_info"]["forced_tokens"] > 0


def test_what_a_schema_says_in_vain_is_in_the_answer(engine: Engine):
    schema = {"type": "object", "properties": {"a": {"enum": [1], "pattern": r"(.)\1"}}, "required": ["a"], "shy": 1}
    params = {"temperature": 0.0, "max_new_tokens": 60, "json_schema": json.dumps(schema), "lenient": True}
    result = engine.generate("go", params)
    first, second = sorted(result["meta_info"]["constraint_warnings"])
    assert "pattern at /properties/a" in first and "shy at /" in second
    with pytest.raises(ConstraintError, match="backreferences"):
        engine.generate("go", {**params, "lenient": False})
    plain = engine.generate("go", {**params, "json_schema": '{"type": "null"}'})
    assert "constraint_warnings" not in plain["meta_info"]


def test_a_whitespace_policy_holds(engine: Engine):
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    params = {"temperature": 0.0, "max_new_tokens": 60, "json_schema": json.dumps(schema)}
    assert engine.generate("go", {**params, "whitespace": "compact"})["text"] == "[1,1]"
    assert engine.generate("go", {**params, "whitespace": " "})["text"] == "[ 1 , 1 ]"


def test_an_ebnf_grammar_holds(engine: Engine):
    for seed in range(3):
        params = {"temperature": 1.0, "seed": seed, "max_new_tokens": 60, "ebnf": 'root ::= "(" root? ")" | [0-9]'}
        text = engine.generate("go", params)["text"]
        assert text.count("(") == text.count(")") or len(text) >= 60


def test_a_regex_holds_and_forced_tokens_are_counted(engine: Engine):
    result = engine.generate("go", {"temperature": 0.0, "regex": r"The capital of (France|Italy)\."})
    assert result["text"] in ("The capital of France.", "The capital of Italy.")
    assert result["meta_info"]["forced_tokens"] > 0
    assert result["meta_info"]["finish_reason"]["type"] == "stop"


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ("x", {"max_new_tokens": -1}, RequestError, "max_new_tokens must be an integer >= 0, got -1"),
        ("x", {"temprature": 0.5}, RequestError, "did you mean 'temperature'"),
        ("x", {"regex": "(("}, ConstraintError, "never closed"),
        ("x", {"json_schema": '{"type": "text"}'}, ConstraintError, "type"),
        ("x", {"ebnf": "root ::= missing"}, ConstraintError, "missing"),
        ("x " * 600, {}, RequestError, "longer than the model's context length"),
        ("x", {"max_new_tokens": 100_000}, RequestError, "maximum context length"),
        ("x", {"regex": "a", "ebnf": "b"}, RequestError, "Only one of regex, json_schema, or ebnf can be set."),
        (7, {}, RequestError, "text must be a string"),
        ("x", {"stop": 5}, RequestError, "stop must be"),
    ],
)
def test_bad_requests_name_the_value_and_harm_nobody(
    engine: Engine, prompt: Any, params: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        engine.generate(prompt, params)
    assert engine.generate("still here", GREEDY)["output_ids"]
    engine.check()


def test_a_seeded_draw_does_not_depend_on_the_batch(engine: Engine):
    params = {"temperature": 1.2, "top_p": 0.9, "seed": 11, "max_new_tokens": 10}
    alone = engine.generate("Name:", params)["output_ids"]
    others = [{"temperature": 1.0, "seed": i, "max_new_tokens": 10} for i in range(6)]
    together = engine.generate(["Name:"] + [f"other {i}" for i in range(6)], [params, *others])
    assert together[0]["output_ids"] == alone


def test_logprobs_cover_the_prompt_and_the_output(engine: Engine):
    result = engine.generate("yes no maybe", GREEDY, return_logprob=True, logprob_start_len=0, top_logprobs_num=2)
    meta = result["meta_info"]
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]
    assert meta["input_token_logprobs"][0][0] is None
    assert [t[1] for t in meta["output_token_logprobs"]] == result["output_ids"]
    for row, best in zip(meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True):
        assert best[0][1] == row[1] and best[0][0] == pytest.approx(row[0], abs=1e-5)


def test_flush_and_info(engine: Engine):
    engine.generate("warm", GREEDY)
    assert engine.load()["cached_slots"] > 0
    assert engine.flush_cache()
    assert engine.load()["cached_slots"] == 0
    info = engine.info()
    assert info["architectures"] == ["LlamaForCausalLM"] and info["max_total_num_tokens"] == 4000


def test_unknown_options_and_missing_models_are_named(tmp_path: Path):
    with pytest.raises(RequestError, match="did you mean 'max_total_tokens'"):
        Engine(max_total_token=5)
    with pytest.raises(RequestError, match="nowhere"):
        Engine(tmp_path / "nowhere")


def test_when_the_runner_breaks_every_caller_is_told(tiny_model: Path):
    engine = Engine(tiny_model, load_format="dummy", max_total_tokens=600, num_threads=1)
    steps = threading.Event()
    real = engine.runner.run

    def broken(plan: Any) -> Any:
        if steps.is_set():
            raise MemoryError("no more of it")
        steps.set()
        return real(plan)

    engine.runner.run = broken  # type: ignore[method-assign]
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        with pytest.raises(EngineDeadError, match="MemoryError: no more of it"):
            engine.generate(["a", "b"], {"max_new_tokens": 50, "ignore_eos": True})
        with pytest.raises(EngineDeadError):
            engine.generate("c")
        with pytest.raises(EngineDeadError):
            engine.flush_cache()
    finally:
        engine.shutdown()
        threading.excepthook = hook


def test_shutdown_answers_who_still_waits(tiny_model: Path):
    engine = Engine(tiny_model, load_format="dummy", max_total_tokens=600, num_threads=1)
    stream = engine.generate("a", {"max_new_tokens": 500, "ignore_eos": True}, stream=True)
    next(stream)
    engine.shutdown()
    engine.shutdown()
    with pytest.raises(EngineDeadError):
        for _ in stream:
            pass


def test_a_fork_of_sixteen_computes_its_prefix_once(engine: Engine):
    """The accounting in the results shows at most 1.05 × the distinct-prefix lower bound."""
    engine.flush_cache()
    prefix = "once upon a time there was a small program " * 9
    done: list[dict[str, Any]] = []
    ready = threading.Event()

    def take(event: dict[str, Any]) -> None:
        if event["event"] in ("done", "error"):
            done.append(event)
            if len(done) == 16:
                ready.set()

    questions = [f"What is {i} + 30?" for i in range(16)]
    children = [
        {"id": f"c{i}", "parent": "r", "at": 1,
         "nodes": [{"kind": "text", "text": q}, {"kind": "gen", "params": {"max_new_tokens": 4, "temperature": 0.0}}]}
        for i, q in enumerate(questions)
    ]  # fmt: skip
    root = {"id": "r", "nodes": [{"kind": "text", "text": prefix}]}
    engine.submit({"program": "fork16", "branches": [root, *children], "end": True}, take)
    assert ready.wait(60)
    sequences = [[engine.tokenizer.bos_id, *engine.tokenizer.encode(prefix + q)] for q in questions]
    trie = {tuple(ids[: k + 1]) for ids in sequences for k in range(len(ids))}
    shared = len([1 for column in zip(*sequences, strict=False) if len(set(column)) == 1])
    assert shared >= 100
    computed = sum(e["meta"]["prompt_tokens"] - e["meta"]["cached_tokens"] for e in done)
    assert len(trie) <= computed <= 1.05 * len(trie)
