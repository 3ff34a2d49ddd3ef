"""The OpenAI routes over a scripted engine."""

from __future__ import annotations

from typing import Any

import pytest

from stemma.backend.messages import IdsNode, RoleBeginNode, RoleEndNode, TextNode
from stemma.backend.server.openai_format import UNSUPPORTED_CHAT, UNSUPPORTED_COMPLETION, finish

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def chat(content: Any = "echo a b", **fields):
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


def prompt(text: Any = "echo a b", **fields):
    return {"model": "m", "prompt": text, **fields}


def gen_of(site):
    return site.engine.deltas[-1].branches[-1].nodes[-1]


def test_chat_completion(site):
    body = site.post(CHAT, chat()).json()
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion" and body["model"] == "m"
    assert body["choices"] == [
        {"index": 0, "finish_reason": "stop", "matched_stop": 0, "logprobs": None,
         "message": {"role": "assistant", "content": " a b", "reasoning_content": None, "tool_calls": None}}
    ]  # fmt: skip
    assert body["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 2,
        "total_tokens": 10,
        "prompt_tokens_details": None,
    }


def test_chat_is_lowered_to_roles(site):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "echo "}, {"type": "text", "text": "x"}]},
    ]
    site.post(CHAT, {"model": "m", "messages": messages})
    assert site.engine.deltas[0].branches[0].nodes[:-1] == [
        RoleBeginNode("system"), TextNode("be brief"), RoleEndNode("system"),
        RoleBeginNode("user"), TextNode("echo x"), RoleEndNode("user"), RoleBeginNode("assistant"),
    ]  # fmt: skip
    assert gen_of(site).params == {"temperature": 0.7, "max_new_tokens": None}


@pytest.mark.parametrize("extra", [{}, {"continue_final_message": True}])
def test_a_last_assistant_message_is_a_prefix(site, extra):
    messages = [{"role": "user", "content": "echo a"}, {"role": "assistant", "content": "Sure: "}]
    site.post(CHAT, {"model": "m", "messages": messages, **extra})
    assert site.engine.deltas[0].branches[0].nodes[-3:-1] == [RoleBeginNode("assistant"), TextNode("Sure: ")]


def test_every_parameter_reaches_the_engine(site):
    fields = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "max_tokens": 5, "min_tokens": 2, "stop": "x",
        "seed": 7,
        "stop_token_ids": [4], "frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.1,
        "logit_bias": {"5": 2}, "ignore_eos": True, "no_stop_trim": True, "skip_special_tokens": False,
    }  # fmt: skip
    expected = {k: v for k, v in fields.items() if k not in ("max_tokens", "min_tokens")}
    expected |= {"max_new_tokens": 5, "min_new_tokens": 2, "stop": ["x"], "logit_bias": {"5": 2.0}}
    for path, body in ((CHAT, chat(**fields)), (TEXT, prompt(**fields))):
        assert site.post(path, body).status_code == 200
        assert gen_of(site).params == expected
    site.post(CHAT, chat(max_tokens=5, max_completion_tokens=6))
    assert gen_of(site).params["max_new_tokens"] == 6


def test_completion_defaults(site):
    site.post(TEXT, prompt())
    assert gen_of(site).params == {"max_new_tokens": 16}


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"regex": "a+"}, "regex", "a+"),
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        ({"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": {"a": 1}}}},
         "json_schema", '{"a":1}'),
        ({"response_format": {"type": "structural_tag", "structures": [], "triggers": []}}, "structural_tag",
         '{"type":"structural_tag","structures":[],"triggers":[]}'),
    ],
)  # fmt: skip
def test_constraints(site, fields, kind, value):
    for path, body in ((CHAT, chat(**fields)), (TEXT, prompt(**fields))):
        assert site.post(path, body).status_code == 200
        assert gen_of(site).constraint == {"kind": kind, "value": value}


@pytest.mark.parametrize("strict", [None, False])
def test_without_strict_a_schema_is_followed_as_far_as_it_can_be(site, strict):
    given = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": strict}}
    site.post(CHAT, chat(response_format=given))
    assert gen_of(site).constraint == {"kind": "json_schema", "value": "{}", "lenient": True}


def test_warnings_are_in_the_choice():
    assert "constraint_warnings" not in finish({"finish_reason": {"type": "stop"}})
    assert finish({"constraint_warnings": ["w"]})["constraint_warnings"] == ["w"]


def test_response_format_text_is_no_constraint(site):
    site.post(CHAT, chat(response_format={"type": "text"}))
    assert gen_of(site).constraint is None


def test_samples_and_usage_count_the_prompt_once(make_site):
    site = make_site(enable_cache_report=True)
    body = site.post(CHAT, chat(n=3, seed=1)).json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14,
                             "prompt_tokens_details": {"cached_tokens": 2}}  # fmt: skip


def test_chat_logprobs(site):
    content = site.post(CHAT, chat("echo a", logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    assert content == [
        {"token": "A", "bytes": [65], "logprob": -0.5, "top_logprobs": [
            {"token": "A", "bytes": [65], "logprob": -0.5}, {"token": "B", "bytes": [66], "logprob": -1.5}]}
    ]  # fmt: skip


def test_completion_logprobs(site):
    logprobs = site.post(TEXT, prompt("echo a b", logprobs=2)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["A", "B"] and logprobs["token_logprobs"] == [-0.5, -0.5]
    assert logprobs["top_logprobs"][0] == {"A": -0.5, "B": -1.5} and logprobs["text_offset"] == [-1, -1]


def test_chat_stream(site, events):
    chunks = events(site.post(CHAT, chat("slow echo a b", stream=True, stream_options={"include_usage": True})))
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
    choices = [c["choices"][0] for c in chunks[:-1]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert "".join(c["delta"].get("content", "") for c in choices) == " a b"
    assert choices[-1]["finish_reason"] == "stop" and choices[-1]["delta"] == {}
    assert all(c["finish_reason"] is None for c in choices[:-1]) and all(c["usage"] is None for c in chunks[:-1])
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 2


def test_stream_of_several_samples_opens_and_closes_each(site, events):
    chunks = events(site.post(CHAT, chat("echo a", stream=True, n=2)))
    for i in range(2):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == i]
        assert mine[0]["delta"].get("role") == "assistant" and mine[-1]["finish_reason"] == "stop"


def test_stream_carries_every_logprob_once(site, events):
    chunks = events(site.post(CHAT, chat("slow echo a b c", stream=True, logprobs=True)))
    seen = [t["token"] for c in chunks if c["choices"][0]["logprobs"] for t in c["choices"][0]["logprobs"]["content"]]
    assert seen == ["A", "B", "C"]


def test_completion_stream(site, events):
    chunks = events(site.post(TEXT, prompt("slow echo a b", stream=True)))
    assert "".join(c["choices"][0]["text"] for c in chunks) == " a b"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and chunks[0]["object"] == "text_completion"


@pytest.mark.parametrize(
    ("given", "texts", "node"),
    [
        ("echo a", [" a"], TextNode("echo a")),
        (["echo a", "echo b"], [" a", " b"], TextNode("echo b")),
        (list(b"echo a"), [" a"], IdsNode(list(b"echo a"))),
        ([list(b"echo a"), list(b"echo b")], [" a", " b"], IdsNode(list(b"echo b"))),
    ],
)
def test_completion_prompts(site, given, texts, node):
    body = site.post(TEXT, prompt(given)).json()
    assert [c["text"] for c in body["choices"]] == texts
    assert node in [d.branches[0].nodes[0] for d in site.engine.deltas]


def test_errors_have_the_openai_form(site, events):
    response = site.post(CHAT, chat("boom"))
    assert response.status_code == 400
    assert response.json() == {"object": "error", "message": "the prompt is too long", "type": "BadRequestError",
                               "param": "text", "code": 400}  # fmt: skip
    assert events(site.post(CHAT, chat("boom", stream=True)))[-1] == {"error": response.json()}
    assert site.post(CHAT, chat("refuse", stream=True)).status_code == 400
    assert site.get(CHAT).json()["code"] == 405


BAD_CHAT = [
    ({"messages": [{"role": "user", "content": "a"}]}, "model must be"),
    ({"model": "m"}, "messages must be a list"),
    (chat(messages=[]), "messages must be a list"),
    (chat(messages=["hi"]), "messages[0] must be an object"),
    (chat(messages=[{"content": "a"}]), "messages[0].role"),
    (chat(messages=[{"role": "user"}]), "messages[0].content must be"),
    (chat(messages=[{"role": "user", "content": None}]), "messages[0].content must be"),
    (chat([{"type": "image_url", "image_url": {"url": "x"}}]), "image_url is not supported by this version"),
    (chat([{"type": "text"}]), "messages[0].content[0] must be"),
    (chat(messages=[{"role": "user", "content": "a", "name": "Bob"}]), "messages[0].name is not supported"),
    (chat(messages=[{"role": "assistant", "content": "a", "tool_calls": [{}]}]), "messages[0].tool_calls is not"),
    (chat(continue_final_message=True), "continue_final_message needs"),
    (chat(tools=[{"type": "function"}]), "tools is not supported by this version"),
    (chat(tool_choice="required"), "tool_choice is not supported by this version"),
    (chat(top_logprobs=2), "top_logprobs needs logprobs"),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs must be an integer in [0, 20]"),
    (chat(logprobs=3), "logprobs must be true or false"),
    (chat(stream_options={"include_usage": True}), "stream_options needs stream"),
    (chat(stream=True, stream_options=3), "stream_options must be an object"),
    (chat(max_tokens=-1), "max_tokens must be an integer >= 0, got -1"),
    (chat(max_completion_tokens="x"), "max_completion_tokens must be an integer"),
    (chat(max_tokens=2, min_tokens=3), "min_tokens must be at most max_tokens"),
    (chat(temperature="hot"), "temperature must be a number"),
    (chat(logit_bias=[1]), "logit_bias must be an object"),
    (chat(logit_bias={"x": 1}), "logit_bias keys must be token ids"),
    (chat(response_format={"type": "xml"}), "response_format.type must be"),
    (chat(response_format={"type": "json_schema"}), "response_format.json_schema.schema must be"),
    (chat(response_format={"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}), "strict must be true"),
    (chat(response_format={"type": "json_object"}, regex="a"), "Only one of regex, json_schema, or ebnf can be set."),
    (chat(user=3), "user must be a string"),
    (chat(n=0), "n must be an integer"),
]


@pytest.mark.parametrize(("body", "reason"), BAD_CHAT, ids=[r for _, r in BAD_CHAT])
def test_bad_chat_bodies(site, body, reason):
    response = site.post(CHAT, body)
    assert response.status_code == 400 and reason in response.json()["message"]


BAD_TEXT = [
    ({"model": "m"}, "prompt must be"),
    (prompt([]), "prompt must be"),
    (prompt(["a", 1]), "prompt must be"),
    (prompt([[1], "a"]), "prompt must be a list of token ids"),
    (prompt([[]]), "prompt must not be empty"),
    (prompt(echo=True), "echo is not supported by this version"),
    (prompt(suffix="x"), "suffix is not supported by this version"),
    (prompt(best_of=3), "best_of is not supported by this version"),
    (prompt(logprobs=-1), "logprobs must be an integer in [0, 20]"),
    (prompt(max_tokens=-1), "max_tokens must be an integer"),
    (prompt(json_schema=3), "json_schema must be a string"),
    (prompt(json_schema="{}", response_format={"type": "json_object"}), "cannot be combined"),
]


@pytest.mark.parametrize(("body", "reason"), BAD_TEXT, ids=[r for _, r in BAD_TEXT])
def test_bad_completion_bodies(site, body, reason):
    response = site.post(TEXT, body)
    assert response.status_code == 400 and reason in response.json()["message"]


@pytest.mark.parametrize(
    ("path", "field"), [*((CHAT, f) for f in UNSUPPORTED_CHAT), *((TEXT, f) for f in UNSUPPORTED_COMPLETION)]
)
def test_unsupported_fields_are_refused_by_name_but_may_be_null(site, path, field):
    base = chat() if path == CHAT else prompt()
    assert site.post(path, {**base, field: None}).status_code == 200
    response = site.post(path, {**base, field: {"type": "something"}})
    assert response.status_code == 400 and response.json()["message"].startswith(f"{field} is not supported")


EVERY = [
    "model", "messages", "prompt", "temperature", "top_p", "max_tokens", "max_completion_tokens", "n", "stop", "stream",
    "stream_options", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs",
    "response_format",
    "seed", "user", "top_k", "min_p", "min_tokens", "repetition_penalty", "regex", "ebnf", "stop_token_ids",
    "no_stop_trim", "ignore_eos", "skip_special_tokens", "separate_reasoning", "stream_reasoning", "rid",
    "continue_final_message", "best_of", "json_schema",
]  # fmt: skip


@pytest.mark.parametrize("field", EVERY)
def test_wrong_types_are_400_never_500(site, field):
    for value in (True, -3, 2.5, "s", [], [None], [1, "a"], {}, {"a": 1}, [{}], 10**30):
        for path, base in ((CHAT, chat("echo a")), (TEXT, prompt("echo a"))):
            assert site.post(path, {**base, field: value}).status_code in (200, 400), (path, value)
    assert site.post(CHAT, chat("echo a")).status_code == 200


def test_ignored_fields_do_no_harm(site):
    fields = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "tools": None}
    assert site.post(CHAT, chat(**fields)).status_code == 200


def test_models(site):
    (card,) = site.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("fake", "model", 128)
    assert site.get("/v1/models/fake").json() == card
    missing = site.get("/v1/models/other")
    assert missing.status_code == 404 and missing.json()["type"] == "NotFoundError"
