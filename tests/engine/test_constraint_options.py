"""finish_in_budget, constraint_after and drafts through the engine, the language and the request formats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import stemma
from stemma.backend.engine import Engine
from stemma.backend.requests import GenerateRequest
from stemma.backend.server.openai_format import parse_chat
from stemma.interpreter.endpoints.local import LocalEndpoint
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.params import Constraint

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"title": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
        "required": ["title", "tags"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("budget", [20, 33, 60])
def test_json_is_whole_within_any_budget(engine: Engine, budget: int):
    for seed in range(6):
        params = {"temperature": 1.0, "seed": seed, "max_new_tokens": budget, "json_schema": SCHEMA}
        result = engine.generate("go", params | {"finish_in_budget": True})
        value = json.loads(result["text"])
        assert set(value) == {"title", "tags"} and len(result["output_ids"]) <= budget
        assert result["meta_info"]["finish_reason"]["type"] == "stop"


def test_the_least_budget_is_named(engine: Engine):
    with pytest.raises(ConstraintError, match=r"takes \d+ tokens, and there is room for 3") as caught:
        engine.generate("go", {"max_new_tokens": 3, "json_schema": SCHEMA, "finish_in_budget": True})
    least = int(re.findall(r"takes (\d+) tokens", str(caught.value))[0])
    for budget, fits in ((least, True), (least - 1, False)):
        params = {"max_new_tokens": budget, "json_schema": SCHEMA, "finish_in_budget": True}
        if fits:
            assert json.loads(engine.generate("go", params)["text"]) == {"title": "", "tags": []}
        else:
            with pytest.raises(ConstraintError):
                engine.generate("go", params)


def test_drafts_change_no_token(engine: Engine, tiny_model: Path):
    options: Any = {"load_format": "dummy", "max_total_tokens": 4000, "num_threads": 1}
    with Engine(tiny_model, draft="forced", disable_jump_forward=True, **options) as drafting:
        drafted = 0
        for seed in range(6):
            params = {"temperature": 0.9 * (seed % 2), "seed": seed, "max_new_tokens": 60, "json_schema": SCHEMA}
            a, b = engine.generate("go", params), drafting.generate("go", params)
            assert a["output_ids"] == b["output_ids"] and a["text"] == b["text"]
            assert a["meta_info"]["draft_tokens"] == 0 and b["meta_info"]["forced_tokens"] == 0
            drafted += b["meta_info"]["accepted_draft_tokens"]
        assert drafted > 0
        drafting.check()


def test_a_draft_of_another_kind_is_refused():
    with pytest.raises(RequestError, match="draft must be one of off, forced, ngram, auto"):
        Engine(draft="eagle")


def test_the_constraint_begins_behind_the_marker(engine: Engine):
    for seed in range(4):
        params = {"temperature": 1.0, "seed": seed, "max_new_tokens": 60, "finish_in_budget": True}
        text = engine.generate("go", params | {"regex": "[0-9]{3}", "constraint_after": "</think>"})["text"]
        thought, _, answer = text.partition("</think>")
        assert thought and re.fullmatch("[0-9]{3}", answer)


def test_the_marker_may_be_a_special_token(engine: Engine):
    marker = engine.tokenizer.special_id("<|im_start|>")
    params = {"temperature": 1.0, "seed": 1, "max_new_tokens": 30, "finish_in_budget": True, "regex": "[0-9]{3}"}
    result = engine.generate("go", params | {"constraint_after": "<|im_start|>", "skip_special_tokens": False})
    at = result["output_ids"].index(marker)
    assert re.fullmatch("[0-9]{3}", engine.tokenizer.decode(result["output_ids"][at + 1 :]))
    assert re.search(r"<\|im_start\|>[0-9]{3}$", result["text"])


def test_the_language_says_both(engine: Engine):
    @stemma.function
    def think(s: Any) -> None:
        s += "Q: " + stemma.gen("answer", regex="[0-9]{2}", constraint_after="END", max_tokens=50)
        s += " " + stemma.gen("free", max_tokens=3)

    state = think.run(backend=LocalEndpoint(engine), finish_in_budget=True, temperature=1.0, seed=3)
    assert re.fullmatch("[0-9]{2}", state["answer"].partition("END")[2])
    assert state.get_meta_info("free")["finish_reason"]["type"] in ("stop", "length")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraint_after": "x"}, "needs a constraint"),
        ({"constraint_after": "x", "type": int}, "cannot be combined with type"),
        ({"constraint_after": "", "regex": "a"}, "1 to 1000 characters"),
    ],
)
def test_gen_refuses_a_marker_without_its_constraint(options: dict[str, Any], message: str):
    with pytest.raises(ConstraintError, match=message) as caught:
        stemma.gen("x", **options)
    assert caught.value.param == "constraint_after"


def test_bodies_carry_both():
    wanted = Constraint("regex", "a+", after="END")
    sampling = {"regex": "a+", "constraint_after": "END", "finish_in_budget": True}
    (item,) = GenerateRequest.parse({"text": "x", "sampling_params": sampling}).items
    assert item.constraint == wanted and item.params.finish_in_budget
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **sampling}
    (item,) = parse_chat(body).request.items
    assert item.constraint == wanted and item.params.finish_in_budget


def test_bodies_are_refused_where_they_make_no_sense():
    with pytest.raises(RequestError, match="constraint_after needs a constraint"):
        GenerateRequest.parse({"text": "x", "sampling_params": {"constraint_after": "END"}})
    with pytest.raises(RequestError, match="belongs inside sampling_params"):
        GenerateRequest.parse({"text": "x", "constraint_after": "END"})
    with pytest.raises(RequestError, match="finish_in_budget must be true or false"):
        GenerateRequest.parse({"text": "x", "sampling_params": {"finish_in_budget": 1, "regex": "a"}})


@pytest.mark.parametrize("backend", ["llguidance", "xgrammar"])
def test_other_engines_say_that_they_cannot(tiny_model: Path, backend: str):
    pytest.importorskip(backend)
    options: Any = {"load_format": "dummy", "max_total_tokens": 1000, "num_threads": 1}
    with Engine(tiny_model, grammar_backend=backend, **options) as engine:
        for more in ({"finish_in_budget": True}, {"constraint_after": "END"}):
            with pytest.raises(ConstraintError, match="native"):
                engine.generate("go", {"regex": "[0-9]{3}", "max_new_tokens": 9} | more)
        assert re.fullmatch("[0-9]{3}", engine.generate("go", {"regex": "[0-9]{3}"})["text"])
