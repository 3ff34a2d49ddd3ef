"""An engine that dies or hangs is replaced; a server that is told to stop finishes what runs. Real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from stemma.backend.config import EngineConfig
from stemma.backend.server import remote
from stemma.backend.server.supervisor import Restarts
from stemma.lang.errors import EngineDeadError, RequestError
from tests.server.processes import TIMEOUT, alive, gone, post_in_background, serving, wait_for_request, wait_until

GRAPH = {"program": "p", "branches": [{"id": "r", "nodes": [{"kind": "text", "text": "echo a"}, {"kind": "gen"}]}]}


def health(url: str) -> dict:
    return httpx.get(url + "/health", timeout=TIMEOUT).json()


def test_a_killed_engine_is_replaced_and_its_programs_are_told():
    with serving() as running, httpx.Client(base_url=running.url, timeout=TIMEOUT) as client:
        assert client.get("/health").json()["status"] == "ready"
        assert client.post("/v1/graph", json=GRAPH).status_code == 200
        waiting, answers = post_in_background(running.url + "/generate", {"text": "hang"})
        wait_for_request(running)
        old = running.engine_pid
        os.kill(old, signal.SIGKILL)
        waiting.join(TIMEOUT)
        assert answers[0].status_code == 500 and "SIGKILL" in answers[0].json()["error"]["message"]

        wait_until(lambda: health(running.url)["status"] != "ready" or health(running.url)["restarts"] == 1)
        refused = client.post("/generate", json={"text": "echo a"})  # while it restarts, or already after
        if refused.status_code != 200:
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert "restarting after: the engine died: killed by signal SIGKILL" in refused.text
        wait_until(lambda: health(running.url)["status"] == "ready")

        assert client.post("/generate", json={"text": "echo a b"}).json()["text"] == " a b"
        told = health(running.url)
        assert told["restarts"] == 1 and "SIGKILL" in told["last_failure"]
        assert 'stemma_engine_restarts_total{model_name="stemma-demo"} 1' in client.get("/metrics").text
        assert running.engine_pid != old and gone(old)


def test_an_engine_that_dies_too_often_ends_the_server():
    with serving("--max-engine-restarts", "1") as running:
        for _ in range(2):
            wait_until(lambda: health(running.url)["status"] == "ready")
            assert httpx.post(running.url + "/generate", json={"text": "die"}, timeout=TIMEOUT).status_code == 500
        code, stderr = running.end()
    assert code == 1 and "the engine died 2 times within 600 s and is given up" in stderr


def test_pauses_between_restarts_grow_up_to_a_bound():
    pauses = [Restarts().pause(n) for n in range(1, 12)]
    assert pauses[:4] == [0, 0.5, 1, 2] and pauses[-1] == 30


def test_a_signal_while_it_restarts_ends_the_server(monkeypatch, tmp_path):
    monkeypatch.setenv("STEMMA_TEST_MARK", str(tmp_path / "mark"))
    with serving("--served-model-name", "slow-second-load") as running:
        os.kill(running.engine_pid, signal.SIGKILL)
        wait_until(lambda: health(running.url)["status"] == "restarting")
        refused = httpx.post(running.url + "/generate", json={"text": "echo a"}, timeout=TIMEOUT)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert httpx.get(running.url + "/metrics", timeout=TIMEOUT).text.count("stemma_engine_up") == 2
        wait_until(lambda: bool(running.engines))
        second = running.engines[0]
        running.process.send_signal(signal.SIGINT)
        assert running.end()[0] == 0 and gone(second)


def test_running_requests_finish_after_sigterm_and_new_ones_are_refused():
    with serving() as running, httpx.Client(base_url=running.url, timeout=TIMEOUT) as client:
        engine = running.engine_pid
        slow = "slow echo " + "a " * 120
        plain, answers = post_in_background(running.url + "/generate", {"text": slow})
        streamed, events = post_in_background(running.url + "/v1/graph", _delta("s", slow, end=False))
        wait_for_request(running, 2)
        running.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/health").status_code == 503)
        refused = client.post("/generate", json={"text": "echo a"})
        assert refused.status_code == 503 and "retry-after" in refused.headers and "shutting down" in refused.text
        more = {"id": "r", "first": 2, "nodes": [{"kind": "gen"}], "end": True}  # a program under way goes on
        assert client.post("/v1/graph", json={"program": "s", "branches": [more]}).status_code == 200
        plain.join(TIMEOUT)
        streamed.join(TIMEOUT)
        assert answers[0].status_code == 200 and answers[0].json()["text"].count("a") == 120
        assert events[0].status_code == 200 and json.loads(events[0].text.splitlines()[-1])["event"] == "done"
        assert running.end()[0] == 0 and gone(engine)


def _delta(program: str, text: str, end: bool) -> dict:
    nodes = [{"kind": "text", "text": text}, {"kind": "gen"}]
    return {"program": program, "branches": [{"id": "r", "nodes": nodes, "end": end}]}


def test_a_hanging_engine_says_where_and_is_replaced():
    options = ["--engine-factory", "hanging_engine:make", "--num-threads", "1", "--watchdog-timeout", "3"]
    with serving(*options) as running:
        old = running.engine_pid
        hanging, answers = post_in_background(running.url + "/generate", {"text": "hang"})
        hanging.join(60)
        why = "a step has not come back for 3 s"
        assert answers[0].status_code == 500 and why in answers[0].json()["error"]["message"]
        wait_until(lambda: health(running.url)["status"] == "ready" and health(running.url)["restarts"] == 1, 60)
        assert why in health(running.url)["last_failure"] and not alive(old)
        body = {"text": "echo a", "sampling_params": {"max_new_tokens": 1}}
        assert httpx.post(running.url + "/generate", json=body, timeout=60).status_code == 200
        running.process.send_signal(signal.SIGTERM)
        code, stderr = running.end()
        assert code == 0 and "hanging_run" in stderr and "hanging_engine.py" in stderr


def test_an_engine_process_that_is_frozen_is_ended(monkeypatch):
    """It cannot notice by itself; the front process does."""
    monkeypatch.setattr(remote, "KILL_AFTER", 3.0)  # longer than the pause between heartbeats
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))

    async def run() -> str | None:
        config = EngineConfig(watchdog_timeout=0.1)
        client, _ = await remote.RemoteClient.start(config, "fake_engine:FakeEngine")
        died = asyncio.Event()
        client.on_death = died.set
        process = client.process
        try:
            os.kill(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)  # or a thread of it may still answer
            with pytest.raises(EngineDeadError, match=r"silent for 3.1 s"):
                await client.info()
            await asyncio.wait_for(died.wait(), 30)
            await client.stop()
        finally:
            if process.poll() is None:  # a frozen process outlives everybody
                process.kill()
        return client.death

    assert "was silent for 3.1 s and was ended" in (asyncio.run(run()) or "")


def test_a_client_that_does_not_read_is_disconnected():
    options = ("--max-client-buffer-kb", "64", "--client-stall-timeout", "1")
    with serving(*options) as running, socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = running.url.removeprefix("http://").split(":")
        lazy.connect((host, int(port)))
        body = json.dumps({"text": "flood", "stream": True}).encode()
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        lazy.sendall(head + body)
        url = running.url + "/metrics"
        wait_until(lambda: 'stemma_slow_clients_total{model_name="stemma-demo"} 1' in httpx.get(url).text, 30)
        wait_until(lambda: httpx.get(running.url + "/get_server_info").json()["inflight_requests"] == 0)
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := lazy.recv(1 << 16):
                received += piece
        assert not received.endswith(b"0\r\n\r\n"), "an aborted stream has no end"


def test_many_requests_at_once_are_told_when_to_come_again():
    with serving("--max-inflight", "2") as running:
        threads = [post_in_background(running.url + "/generate", {"text": "hang"}) for _ in range(2)]
        wait_for_request(running, 2)
        refused = httpx.post(running.url + "/generate", json={"text": "echo"}, timeout=TIMEOUT)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert httpx.get(running.url + "/health", timeout=TIMEOUT).status_code == 200  # needs no free place
        assert httpx.post(running.url + "/abort_request", json={"abort_all": True}, timeout=TIMEOUT).status_code == 200
        for thread, _ in threads:
            thread.join(TIMEOUT)


def test_the_server_survives_threads_of_clients_while_its_engine_dies():
    answers: list[int] = []

    def ask() -> None:
        for _ in range(15):
            answers.append(httpx.post(running.url + "/generate", json={"text": "echo a"}, timeout=TIMEOUT).status_code)
            time.sleep(0.02)

    with serving() as running:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        os.kill(running.engine_pid, signal.SIGKILL)
        for thread in threads:
            thread.join(TIMEOUT)
        wait_until(lambda: health(running.url)["status"] == "ready")
        state = httpx.get(running.url + "/debug/state", timeout=TIMEOUT).json()
    assert len(answers) == 60 and set(answers) <= {200, 500, 503} and 200 in answers
    assert state["front"]["inflight"] == state["front"]["running"] == 0


@pytest.mark.parametrize(
    ("name", "value"), [("watchdog_timeout", -1), ("drain_timeout", True), ("max_queued_requests", -1)]
)
def test_options_are_checked(name, value):
    with pytest.raises(RequestError, match=name):
        EngineConfig(**{name: value})
