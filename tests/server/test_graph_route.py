"""POST /v1/graph: deltas in, NDJSON events out."""

from __future__ import annotations

import asyncio
import json

import pytest

GEN = {"kind": "gen", "stream": True}


def delta(*nodes, program="p", **branch):
    return {"program": program, "branches": [{"id": "r", "nodes": list(nodes), **branch}]}


def text(value):
    return {"kind": "text", "text": value}


def lines(response):
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_events_of_a_program(site):
    got = lines(site.post("/v1/graph", delta({"kind": "role_begin", "role": "user"}, text("echo a b"), GEN, GEN)))
    assert [(e["event"], e["node"]) for e in got[:4]] == [("text", 0), ("delta", 2), ("delta", 2), ("done", 2)]
    assert got[-1]["event"] == "done" and got[-1]["node"] == 3 and not site.engine.cancelled


def test_select_settles_too(site):
    (event,) = lines(site.post("/v1/graph", delta({"kind": "select", "choices": ["x", "y"]})))
    assert (event["event"], event["text"]) == ("done", "x")


def test_nodes_are_counted_from_first(site):
    site.post("/v1/graph", delta(text("echo a"), GEN))
    got = lines(site.post("/v1/graph", delta(text("echo b"), {"kind": "gen"}, first=2)))
    assert [(e["event"], e["node"]) for e in got] == [("done", 3)]


def test_a_delta_without_generations_ends_at_once(site):
    assert lines(site.post("/v1/graph", delta(text("only text")))) == []
    assert len(site.engine.deltas) == 1


def test_a_failed_node_is_an_event(site):
    got = lines(site.post("/v1/graph", delta(text("boom"), GEN)))
    error = {"type": "RequestError", "message": "the prompt is too long", "param": "text", "status": 400}
    assert got == [{"event": "error", "branch": "r", "node": 1, "error": error}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "program"),
        ({"program": 3}, "$.program"),
        ({"program": "p", "nonsense": 1}, "nonsense"),
        ({"program": "p", "branches": [{"id": "r", "nodes": [{"kind": "dance"}]}]}, "dance"),
        ({"program": "p", "branches": [{"id": "r", "nodes": [{"kind": "text"}]}]}, "$.branches[0].nodes[0]"),
        (delta(text("refuse"), GEN), "the engine refuses this"),
        (delta(text("a"), {"kind": "gen", "params": {"top_p": 7}}), "top_p must be in"),
    ],
)
def test_a_wrong_delta_is_400_with_the_place(site, body, reason):
    response = site.post("/v1/graph", body)
    assert response.status_code == 400 and reason in response.json()["error"]["message"]
    assert site.service.flight.count == 0 and not site.service.graphs


def test_headers_are_sent_when_the_delta_is_accepted(site, visit):
    async def work():
        caller = visit(site.app, "/v1/graph", delta(text("hang"), GEN))
        await caller.started.wait()
        assert caller.sent[0]["status"] == 200 and len(caller.sent) == 1
        await caller.leave()

    site.run(work)
    assert site.engine.cancelled == [("p", None)]
    assert site.service.flight.count == 0 and not site.service.graphs


def test_cancel_settles_the_stream(site, visit):
    async def work():
        caller = visit(site.app, "/v1/graph", delta(text("hang"), GEN))
        await caller.started.wait()
        await visit(site.app, "/v1/graph/cancel", {"program": "p", "branches": ["r"]}).task
        await caller.task
        return json.loads(caller.sent[1]["body"])

    assert site.run(work)["error"]["type"] == "CancelledError"
    assert site.engine.cancelled[0] == ("p", ["r"])


@pytest.mark.parametrize(
    "body", [{}, {"program": 1}, {"program": "p", "branches": "r"}, {"program": "p", "branch": "r"}]
)
def test_cancel_checks_its_body(site, body):
    assert site.post("/v1/graph/cancel", body).status_code == 400


def test_abort_all_reaches_graphs(site, visit):
    async def work():
        caller = visit(site.app, "/v1/graph", delta(text("hang"), GEN))
        await caller.started.wait()
        await asyncio.gather(visit(site.app, "/abort_request", {"abort_all": True}).task, caller.task)

    site.run(work)
    assert ("p", None) in site.engine.cancelled


def test_what_token_ids_stand_for(site):
    answer = site.post("/v1/graph/tokens", {"ids": [3, 999_999]})
    assert answer.status_code == 200 and set(answer.json()["bytes"]) == {"3", "999999"}
    assert answer.json()["bytes"]["999999"] == ""


@pytest.mark.parametrize(
    ("body", "param"), [({}, "ids"), ({"ids": []}, "ids"), ({"ids": ["a"]}, "ids"), ({"ids": [1], "x": 1}, "x")]
)
def test_a_wrong_question_about_tokens_is_refused(site, body, param):
    answer = site.post("/v1/graph/tokens", body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
