"""Bounds of the front process: timeouts, bytes of bodies, clients that do not read; and what can be seen of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgspec
import pytest

from stemma.backend.observe.metrics import Histogram, Metrics
from stemma.backend.observe.watchdog import Watchdog
from stemma.backend.requests import error_from_event
from stemma.backend.server.client import Inbox
from stemma.backend.server.limits import Limits
from stemma.backend.server.sse import ABORT, Stream
from stemma.interpreter.endpoints.runtime import RuntimeEndpoint
from stemma.interpreter.endpoints.web import http_error
from stemma.lang.errors import DeadlineError, EngineDeadError, RequestError

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "echo a"}]}


def test_a_timeout_reaches_the_engine_from_every_route(site):
    assert site.post("/generate", {"text": "echo a", "timeout": 2.5}).status_code == 200
    assert site.post("/v1/chat/completions", {**CHAT, "timeout": 3}).status_code == 200
    assert site.post("/v1/graph", {"program": "p", "timeout": 4, "branches": []}).status_code == 200
    assert [delta.timeout for delta in site.engine.deltas] == [2.5, 3, 4]


def test_the_server_has_a_default_and_a_longest_timeout(make_site):
    site = make_site(Limits(default_timeout=5, max_timeout=10))
    assert site.post("/generate", {"text": "echo a"}).status_code == 200
    assert site.post("/v1/graph", {"program": "p", "branches": []}).status_code == 200
    assert [delta.timeout for delta in site.engine.deltas] == [5, 5]
    for path, body in [("/generate", {"text": "echo a"}), ("/v1/graph", {"program": "q"}), ("/v1/completions", CHAT)]:
        asked = {**body, "timeout": 11, "prompt": "x"} if path == "/v1/completions" else {**body, "timeout": 11}
        refused = site.post(path, asked)
        assert refused.status_code == 400 and "at most 10 s" in refused.text
    assert Limits(max_timeout=7).timeout(None) == 7 and Limits().timeout(None) is None


@pytest.mark.parametrize("timeout", [0, -1, "x", True, 1e400])
def test_a_timeout_that_is_no_time_is_refused(site, timeout):
    body = json.dumps({"text": "x", "timeout": timeout}).replace("Infinity", "1e400").encode()
    assert site.post("/generate", body).status_code == 400


def test_bodies_together_are_bounded(make_site):
    site = make_site(Limits(max_inflight_bytes=1000))
    assert site.post("/generate", {"text": "echo " + "a" * 800}).status_code == 200
    assert site.post("/generate", {"text": "echo " + "a" * 800}).status_code == 200, "an answered one does not count"
    refused = site.post("/generate", {"text": "a" * 2000})
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1" and "1000 bytes" in refused.text


def test_a_body_that_does_not_come_is_not_waited_for(make_site):
    site = make_site(Limits(stall_seconds=0.05))

    async def halves():
        yield b'{"text": '
        await asyncio.sleep(5)
        yield b'"x"}'

    response = site.post("/generate", None, content=halves())
    assert response.status_code == 408 and "did not arrive" in response.text


def test_metrics_count_what_ran(site):
    site.post("/generate", {"text": "echo a b c"})
    site.post("/generate", {"text": "boom"})
    site.post("/generate", {"text": "echo a", "log_metrics": False})
    site.get("/health_generate")
    text = site.get("/metrics").text
    assert 'stemma_num_requests_total{model_name="fake"} 1\n' in text
    assert 'stemma_num_errors_total{model_name="fake"} 1\n' in text
    assert 'stemma_generation_tokens_total{model_name="fake"} 3\n' in text
    assert 'stemma_e2e_request_latency_seconds_bucket{model_name="fake",le="0.1"} 1\n' in text
    assert 'stemma_engine_up{model_name="fake"} 1\n' in text and text.endswith("\n")
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_metrics_may_have_other_names(make_site):
    assert 'sglang:num_requests_total{model_name="fake"} 0' in make_site(metrics_prefix="sglang:").get("/metrics").text


def test_a_histogram_counts_up_to_and_with_each_bound():
    histogram = Histogram((1, 2))
    for value, times in ((0.5, 1), (1, 2), (1.5, 1), (9, 1)):
        histogram.add(value, times)
    lines = list(histogram.lines("h", 'm="x"'))
    assert lines[:3] == ['h_bucket{m="x",le="1"} 3', 'h_bucket{m="x",le="2"} 4', 'h_bucket{m="x",le="+Inf"} 5']
    assert lines[3:] == ['h_sum{m="x"} 13.0', 'h_count{m="x"} 5']
    assert 'model_name="a\\"b\\\\"' in Metrics(model='a"b\\').render({"x": 1}, {})


def test_the_state_of_both_processes_can_be_seen(site):
    state = site.get("/debug/state").json()
    assert state["status"] == "ready" and state["front"]["inflight"] == 0 and state["engine"]["error"] is None


def test_a_reader_that_is_too_slow_is_disconnected():
    """The buffer fills while one piece waits to be taken; and one piece that is never taken is enough."""

    async def run(limit: int, stall: float, flood: bool) -> list[str]:
        said: list[str] = []
        inbox = Inbox(limit)
        left = asyncio.Event()

        async def chunks():
            yield b"first"
            await asyncio.sleep(60)

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                await asyncio.sleep(60)  # it does not read

        def abort() -> None:
            said.append("aborted")
            left.set()

        stream = Stream(
            chunks(), "text/plain", lambda: said.append("closed"), full=inbox.full, stall=stall,
            slow=lambda: said.append("slow"),
        )  # fmt: skip
        serving = asyncio.create_task(stream({"type": "http", "extensions": {ABORT: abort}}, receive, send))
        await asyncio.sleep(0.01)
        if flood:
            put = inbox.sink(0)
            for _ in range(50):
                put({"event": "delta", "text": "x" * 100, "ids": [1]})
        await asyncio.wait_for(serving, 5)
        return said

    for options in ((1000, 60.0, True), (10**9, 0.05, False)):
        said = asyncio.run(run(*options))
        assert said[:3] == ["closed", "slow", "aborted"]


def test_what_is_read_in_time_does_not_fill_the_buffer():
    async def run() -> bool:
        inbox = Inbox(1000)
        put = inbox.sink(0)
        for _ in range(50):
            put({"event": "delta", "text": "x" * 100, "ids": [1]})
            await inbox.take()
        return inbox.full.is_set()

    assert not asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "status", "made"), [("EngineDeadError", 500, EngineDeadError), ("DeadlineError", 408, DeadlineError)]
)
def test_the_client_makes_the_errors_of_the_server_again(kind, status, made):
    import requests

    given = {"type": kind, "message": "it is so", "param": None, "status": status}
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps({"error": given}).encode()
    assert isinstance(http_error(response, "POST x"), made)
    assert isinstance(error_from_event({"error": given}), made)


def test_a_refusal_tells_when_to_come_again_on_every_way():
    from stemma.backend.messages import error_object

    told = error_object(RequestError("full", status=429, retry_after=7.5))
    again = error_from_event({"error": msgspec.json.decode(msgspec.json.encode(told))})
    assert isinstance(again, RequestError) and (again.status, again.retry_after) == (429, 7.5)


def test_the_watchdog_counts_work_and_not_idleness():
    fired: list[str] = []
    dog = Watchdog(30.0, fired.append)
    dog.begin()
    dog.end()
    assert not dog.fired and not fired
    dog.close()


def test_a_program_of_a_dead_engine_is_reported_lost():
    """The server's answer, as the Python client sees it."""
    from tests.server.processes import TIMEOUT, serving, wait_until

    with serving() as running:
        lost = {"id": "r", "first": 1, "nodes": [{"kind": "text", "text": "must be known"}]}
        unknown = httpx.post(running.url + "/v1/graph", json={"program": "p", "branches": [lost]}, timeout=TIMEOUT)
        assert unknown.status_code == 410 and "is not known" in unknown.text
        assert httpx.post(running.url + "/generate", json={"text": "die"}, timeout=TIMEOUT).status_code == 500
        wait_until(lambda: httpx.get(running.url + "/health", timeout=TIMEOUT).status_code == 200)
        told = httpx.post(running.url + "/v1/graph", json={"program": "p", "branches": [lost]}, timeout=TIMEOUT)
        assert told.status_code == 500 and "program 'p' is lost: the engine was restarted after" in told.text
        endpoint = RuntimeEndpoint(running.url)
        events: list[dict[str, Any]] = []
        gen = {"id": "r", "parent": None, "at": 0, "first": 1, "nodes": [{"kind": "text", "text": "must be known"}, {
            "kind": "gen", "params": {}, "constraint": None, "logprobs": None, "stream": False}]}  # fmt: skip
        endpoint.submit({"program": "p", "branches": [gen], "end": False}, events.append)
        wait_until(lambda: bool(events))
        endpoint.close()
        assert events[0]["error"]["type"] == "EngineDeadError" and "is lost" in events[0]["error"]["message"]
