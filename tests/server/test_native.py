"""The native routes over a scripted engine."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from stemma.backend.requests import FIELDS, UNSUPPORTED
from stemma.backend.server.limits import Limits
from stemma.backend.server.native import UNSUPPORTED as MISSING_ROUTES


def message(response) -> str:
    return response.json()["error"]["message"]


def test_generate(site):
    body = site.post("/generate", {"text": "echo a b c", "rid": "q"}).json()
    assert body["text"] == " a b c" and body["output_ids"] == [65, 66, 67]
    meta = body["meta_info"]
    assert (meta["id"], meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == ("q", 10, 3, 2)
    assert meta["finish_reason"] == {"type": "stop", "matched": 0}


def test_generate_by_put_and_with_ids(site):
    response = site.call("PUT", "/generate", {"input_ids": list(b"echo a"), "sampling_params": {"max_new_tokens": 1}})
    assert response.json()["text"] == " a"
    assert response.json()["meta_info"]["finish_reason"] == {"type": "length", "length": 1}


def test_batch_with_samples(site):
    body = site.post("/generate", {"text": ["echo a", "echo b"], "sampling_params": {"n": 2}}).json()
    assert [item["text"] for item in body] == [" a", " a", " b", " b"]


def test_stream_is_cumulative_and_ends_with_done(site, events):
    items = events(site.post("/generate", {"text": "slow echo a b c", "stream": True}))
    texts = [item["text"] for item in items]
    assert texts[-1] == " a b c" and all(b.startswith(a) for a, b in itertools.pairwise(texts))
    assert len(texts) > 1 and items[0]["meta_info"]["finish_reason"] is None
    assert items[-1]["meta_info"]["finish_reason"]["type"] == "stop" and "index" not in items[0]


def test_batch_stream_carries_indexes(site, events):
    items = events(site.post("/generate", {"text": ["echo a", "echo b"], "stream": True}))
    last = {item["index"]: item["text"] for item in items}
    assert last == {0: " a", 1: " b"}


def test_logprobs_with_text(site):
    body = {"text": "echo a", "return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True}
    meta = site.post("/generate", body).json()["meta_info"]
    assert meta["output_token_logprobs"] == [[-0.5, 65, "A"]]
    assert meta["output_top_logprobs"] == [[[-0.5, 65, "A"], [-1.5, 66, "B"]]]


def test_parameters_reach_the_engine(site):
    params = {"temperature": 0, "stop": ["x"], "seed": 3, "json_schema": "{}", "max_new_tokens": None}
    site.post(
        "/generate", {"text": "echo a", "sampling_params": params, "return_logprob": True, "logprob_start_len": 0}
    )
    gen = site.engine.deltas[0].branches[0].nodes[1]
    assert gen.params == {"temperature": 0.0, "stop": ["x"], "seed": 3, "max_new_tokens": None}
    assert gen.constraint == {"kind": "json_schema", "value": "{}"} and gen.logprobs.start == 0


def test_options_of_a_constraint_reach_the_engine(site):
    params = {"json_schema": "{}", "lenient": True, "whitespace": "any", "max_new_tokens": 3}
    site.post("/generate", {"text": "echo a", "sampling_params": params})
    gen = site.engine.deltas[0].branches[0].nodes[1]
    assert gen.constraint == {"kind": "json_schema", "value": "{}", "lenient": True, "whitespace": "any"}


@pytest.mark.parametrize("prompt", ["refuse", "boom"])
def test_engine_errors_are_400_with_the_reason(site, prompt):
    response = site.post("/generate", {"text": prompt})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "RequestError" and message(response)


def test_a_refused_constraint_is_400(site):
    response = site.post("/generate", {"text": "a", "sampling_params": {"ebnf": "root ::="}})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "ConstraintError")


def test_an_error_in_a_stream_is_an_event(site, events):
    assert events(site.post("/generate", {"text": "boom", "stream": True})) == [
        {"error": {"message": "the prompt is too long", "type": "RequestError", "param": "text"}}
    ]


def test_one_failed_prompt_fails_the_batch_and_cancels_the_rest(site):
    assert site.post("/generate", {"text": ["hang", "boom"]}).status_code == 400
    assert [c[0] for c in site.engine.cancelled] == [site.engine.deltas[0].program]
    assert site.service.flight.count == 0 and not site.service.running


def test_a_refused_prompt_takes_back_the_others(site):
    assert site.post("/generate", {"text": ["hang", "refuse"]}).status_code == 400
    assert site.engine.deltas[0].program in [c[0] for c in site.engine.cancelled]
    assert site.service.flight.count == 0 and not site.service.running


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"3",
    b'"x"',
    b"null",
    b"\xff\xfe",
    b'{"text": NaN}',
    b"[" * 100_000,
    b'{"text": "\\ud800"}',
]


@pytest.mark.parametrize(
    "path", ["/generate", "/v1/graph", "/v1/chat/completions", "/v1/completions", "/abort_request"]
)
@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_bodies_are_400_and_the_server_goes_on(site, path, body):
    response = site.post(path, body)
    error = response.json()
    assert response.status_code == 400
    assert error["error"]["message"] if "error" in error else error["message"]
    assert site.get("/health").status_code == 200


JUNK = [True, -3, 2.5, "s", [], [None], [1, "a"], {}, {"a": 1}, [{}], 10**30]


@pytest.mark.parametrize("field", [*FIELDS, *UNSUPPORTED])
def test_wrong_types_are_400_with_a_reason_never_500(site, field):
    refused = 0
    for value in JUNK:
        base = {} if field == "input_ids" else {"text": "echo a"}
        response = site.post("/generate", {**base, field: value})
        assert response.status_code in (200, 400), (value, response.text)
        if response.status_code == 400:
            refused += 1
            assert message(response)
    assert refused
    assert site.post("/generate", {"text": "echo a"}).status_code == 200


def test_unknown_route_and_method(site):
    response = site.get("/nowhere")
    assert response.status_code == 404 and message(response) == "no such route: /nowhere"
    response = site.get("/generate")
    assert (
        response.status_code == 405
        and "GET is not allowed" in message(response)
        and "POST" in response.headers["allow"]
    )
    assert site.get("/v1/nowhere").json()["object"] == "error"


@pytest.mark.parametrize("path", MISSING_ROUTES)
def test_documented_routes_that_are_not_offered_say_so(site, path):
    response = site.post(path, {})
    assert response.status_code == 501 and "not supported by this version" in response.text


def test_api_key(make_site):
    site = make_site(api_key="secret")
    assert site.get("/get_model_info").json() == {"error": "Unauthorized"}
    for headers in (
        {"Authorization": "Bearer wrong"},
        {"Authorization": "secret"},
        {"Authorization": "Bearer sécret".encode()},
    ):
        assert site.get("/get_model_info", headers=headers).status_code == 401
    assert site.get("/get_model_info", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert site.get("/health").status_code == 200
    preflight = {"Origin": "http://x", "Access-Control-Request-Method": "POST"}
    assert site.call("OPTIONS", "/generate", headers=preflight).status_code == 200


def test_cors(site):
    assert site.get("/health", headers={"Origin": "http://x"}).headers["access-control-allow-origin"] == "*"


def test_health_turns_503_when_the_engine_has_a_problem(site, monkeypatch):
    assert (site.get("/health").status_code, site.get("/health").json()["status"]) == (200, "ready")
    monkeypatch.setattr(type(site.client), "problem", "the engine died: out of memory")
    assert (site.get("/health").status_code, site.get("/health").json()["status"]) == (503, "failed")
    assert "out of memory" in site.get("/health").json()["problem"]
    response = site.post("/generate", {"text": "a"})
    assert response.status_code == 503 and "out of memory" in message(response)


def test_health_generate(site):
    assert site.get("/health_generate").status_code == 200


def test_model_and_server_info(make_site):
    site = make_site(max_n=4)
    for path in ("/get_model_info", "/model_info"):
        info = site.get(path).json()
        assert (info["model_path"], info["tokenizer_path"], info["is_generation"]) == ("fake/path", "fake/path", True)
    for path in ("/get_server_info", "/server_info"):
        info = site.get(path).json()
        assert (info["status"], info["max_req_input_len"], info["max_n"]) == ("ready", 94, 4)
        assert info["use_mla_backend"] is False and info["max_total_num_tokens"] == 100 and info["version"]


def test_flush_cache(site):
    assert site.get("/flush_cache").text.startswith("Cache flushed.\n")
    site.engine.busy = True
    response = site.post("/flush_cache?timeout=0.1")
    assert response.status_code == 400 and "running or waiting" in message(response)
    assert site.engine.flushes > 2
    assert site.post("/flush_cache?timeout=soon").status_code == 400


@pytest.mark.parametrize("body", [{}, {"rid": 3}, {"rid": ""}, {"abort_all": "yes"}, {"abort_all": 1}])
def test_abort_request_checks_its_body(site, body):
    assert site.post("/abort_request", body).status_code == 400


def test_abort_of_an_unknown_rid_is_fine(site):
    assert site.post("/abort_request", {"rid": "nobody"}).status_code == 200


@pytest.mark.parametrize("abort", [{"rid": "q"}, {"abort_all": True}])
def test_abort_ends_a_request_with_reason_abort(site, visit, abort):
    async def work():
        waiting = visit(site.app, "/generate", {"text": "hang", "rid": "q"})
        while "q" not in site.service.running:
            await asyncio.sleep(0.001)
        stopper = visit(site.app, "/abort_request", abort)
        await asyncio.gather(waiting.task, stopper.task)
        return json.loads(waiting.sent[1]["body"])

    assert site.run(work)["meta_info"]["finish_reason"]["type"] == "abort"


def test_a_rid_in_use_is_refused_and_free_again_afterwards(site, visit):
    async def work():
        first = visit(site.app, "/generate", {"text": "hang", "rid": "q"})
        while "q" not in site.service.running:
            await asyncio.sleep(0.001)
        second = visit(site.app, "/generate", {"text": "echo a", "rid": "q"})
        await second.task
        await first.leave()
        return second.sent[0]["status"], json.loads(second.sent[1]["body"])["error"]["message"]

    assert site.run(work) == (400, "rid 'q' is already running")
    assert site.post("/generate", {"text": "echo a", "rid": "q"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_client_that_leaves_cancels_its_program(site, visit, path, stream):
    async def work():
        body = {"text": "hang"} if path == "/generate" else {"prompt": "hang", "model": "m"}
        caller = visit(site.app, path, {**body, "stream": stream})
        while not site.engine.deltas:
            await asyncio.sleep(0.001)
        await caller.leave()

    site.run(work)
    assert [c[0] for c in site.engine.cancelled] == [site.engine.deltas[0].program]
    assert site.service.flight.count == 0 and not site.service.running


def test_a_finished_request_cancels_nothing(site):
    site.post("/generate", {"text": "echo a", "stream": True})
    site.post("/generate", {"text": "echo a"})
    assert not site.engine.cancelled and site.service.flight.count == 0


def test_limits(make_site):
    site = make_site(Limits(max_body_bytes=200, max_batch_items=2, max_n=3))
    assert site.post("/generate", {"text": "x" * 300}).status_code == 413
    assert site.post("/v1/completions", {"model": "m", "prompt": "x" * 300}).json()["code"] == 413
    assert "at most 2 prompts" in message(site.post("/generate", {"text": ["a"] * 3}))
    assert "n must be at most 3" in message(site.post("/generate", {"text": "a", "sampling_params": {"n": 4}}))


def test_a_chunked_body_is_limited_too(make_site):
    site = make_site(Limits(max_body_bytes=100))

    async def parts():
        for _ in range(50):
            yield b"x" * 10

    assert site.call("POST", "/generate", content=parts()).status_code == 413


def test_too_many_in_flight_is_429_with_retry_after(make_site, visit):
    site = make_site(Limits(max_inflight=1))

    async def work():
        first = visit(site.app, "/generate", {"text": "hang"})
        while not site.engine.deltas:
            await asyncio.sleep(0.001)
        second = visit(site.app, "/generate", {"text": "echo a"})
        await second.task
        await first.leave()
        return second.sent[0]

    start = site.run(work)
    assert start["status"] == 429 and (b"retry-after", b"1") in start["headers"]
    assert site.post("/generate", {"text": "echo a"}).status_code == 200
