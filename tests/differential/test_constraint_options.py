"""`lenient` and `whitespace` through the whole house: the language, in process and on a server, and both HTTP forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

import stemma
from stemma import gen
from stemma.backend.engine import Engine
from stemma.lang.errors import ProgramError

SCHEMA = {"type": "array", "items": {"enum": ["aa"], "pattern": r"(.)\1"}, "minItems": 2, "maxItems": 2}


@stemma.function
def pair(s: Any, lenient: bool) -> None:
    s += "go" + gen("x", max_tokens=60, temperature=0, json_schema=SCHEMA, lenient=lenient, whitespace=" ")


def answer(url: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    got = requests.post(url + path, json=body, timeout=60)
    return got.status_code, got.json()


@pytest.mark.parametrize("place", ["in process", "on a server"])
def test_a_program_sees_what_was_dropped(engine: Engine, server: str, place: str) -> None:
    backend = engine if place == "in process" else stemma.RuntimeEndpoint(server)
    state = pair.run(lenient=True, backend=backend)
    assert state["x"] == '[ "aa" , "aa" ]'
    (warning,) = state.get_meta_info("x")["constraint_warnings"]
    assert "pattern at /items" in warning
    with pytest.raises(ProgramError, match="backreferences"):
        pair.run(lenient=False, backend=backend)["x"]


def test_the_native_route_tells_what_was_dropped(server: str) -> None:
    params = {"max_new_tokens": 60, "temperature": 0, "json_schema": json.dumps(SCHEMA), "whitespace": "compact"}
    status, got = answer(server, "/generate", {"text": "go", "sampling_params": {**params, "lenient": True}})
    assert status == 200 and got["text"] == '["aa","aa"]'
    assert "pattern at /items" in got["meta_info"]["constraint_warnings"][0]
    status, got = answer(server, "/generate", {"text": "go", "sampling_params": params})
    assert status == 400 and "backreferences" in got["error"]["message"]


def test_strict_refuses_and_its_absence_tells(server: str) -> None:
    def body(**given: Any) -> dict[str, Any]:
        form = {"type": "json_schema", "json_schema": {"name": "pair", "schema": SCHEMA, **given}}
        return {"model": "m", "prompt": "go", "max_tokens": 60, "temperature": 0, "response_format": form}

    status, got = answer(server, "/v1/completions", body())
    (choice,) = got["choices"]
    assert status == 200 and json.loads(choice["text"]) == ["aa", "aa"]
    assert "pattern at /items" in choice["constraint_warnings"][0]
    status, got = answer(server, "/v1/completions", body(strict=True))
    assert status == 400 and "backreferences" in got["message"]
