"""`cache_salt` on its way from a body to the program."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from stemma.backend.messages import parse_delta
from stemma.backend.requests import GenerateRequest
from stemma.backend.server.openai_format import parse_chat, parse_completion
from stemma.lang.errors import RequestError

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def salts(request: GenerateRequest) -> list[str | None]:
    return [parse_delta(delta).cache_salt for delta in request.deltas()]


def test_every_form_of_request_carries_its_salt():
    assert salts(GenerateRequest.parse({"text": "a", "cache_salt": "s"})) == ["s"]
    assert salts(GenerateRequest.parse({"text": ["a", "b"], "cache_salt": "s"})) == ["s", "s"]
    assert salts(GenerateRequest.parse({"text": ["a", "b"], "cache_salt": ["s", None]})) == ["s", None]
    assert salts(GenerateRequest.parse({"text": "a"})) == [None]
    assert salts(parse_chat({**CHAT, "cache_salt": "s"}).request) == ["s"]
    assert salts(parse_completion({"model": "m", "prompt": ["a", "b"], "cache_salt": "s"}).request) == ["s", "s"]
    assert parse_delta(b'{"program": "p", "cache_salt": "s"}').cache_salt == "s"


@pytest.mark.parametrize("wrong", ["", "x" * 1025, 7, True, {"a": 1}])
def test_a_salt_is_a_string_that_is_not_empty(wrong: Any):
    for parse in (
        lambda: GenerateRequest.parse({"text": "a", "cache_salt": wrong}),
        lambda: parse_chat({**CHAT, "cache_salt": wrong}),
        lambda: parse_completion({"model": "m", "prompt": "a", "cache_salt": wrong}),
    ):
        with pytest.raises(RequestError, match="cache_salt"):
            parse()


def test_a_list_of_salts_has_one_for_each_prompt():
    with pytest.raises(RequestError, match="cache_salt has 1 entries for 2 prompts"):
        GenerateRequest.parse({"text": ["a", "b"], "cache_salt": ["s"]})


def test_a_server_keeps_salts_apart(server: str):
    def cached(salt: str | None) -> int:
        body = {
            "text": "a long prompt that two tenants have",
            "sampling_params": {"max_new_tokens": 1},
            "cache_salt": salt,
        }
        return requests.post(f"{server}/generate", json=body, timeout=60).json()["meta_info"]["cached_tokens"]

    # other tests may have left the beginning of some prompt
    assert [cached(s) > 4 for s in ("x", "y", "x", "y", None)] == [False, False, True, True, False]
    info = requests.get(f"{server}/get_server_info", timeout=10).json()
    assert info["page_size"] == 1 and info["cache_hit_tokens"] > 0 and info["cache_nodes"] > 0
