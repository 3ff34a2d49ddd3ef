"""Real processes: the front process, its engine process (with the scripted engine), and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from tests.server.processes import (
    TIMEOUT,
    Running,
    gone,
    post_in_background,
    serving,
    wait_for_request,
    wait_until,
)


def test_serves_and_ends_in_order_on_sigterm():
    with serving("--served-model-name", "mine", "--api-key", "k", "--drain-timeout", "0.2") as running:
        headers = {"Authorization": "Bearer k"}
        assert running.ready.rstrip().endswith("(model mine)")
        engine = running.engine_pid
        with httpx.Client(base_url=running.url, headers=headers, timeout=TIMEOUT) as client:
            assert client.get("/health").status_code == 200
            assert httpx.get(running.url + "/v1/models").status_code == 401
            assert client.post("/generate", json={"text": "echo a b"}).json()["text"] == " a b"
            chat = {"model": "mine", "messages": [{"role": "user", "content": "slow echo a b"}], "stream": True}
            assert client.post("/v1/chat/completions", json=chat).text.endswith("data: [DONE]\n\n")
            graph = {
                "program": "p",
                "branches": [{"id": "r", "nodes": [{"kind": "text", "text": "echo a"}, {"kind": "gen"}]}],
            }
            assert json.loads(client.post("/v1/graph", json=graph).text)["text"] == " a"
            assert client.post("/generate", json={"text": "a", "sampling_params": {"top_p": 9}}).status_code == 400
            assert (
                client.post("/generate", json={"text": "refuse"}).json()["error"]["message"]
                == "the engine refuses this"
            )
            info = client.get("/get_server_info").json()
            assert info["served_model_name"] == "mine" and "api_key" not in info and "k" not in info.values()
            assert running.url.endswith(f":{info['port']}") and info["port"] != 0
            assert client.post("/flush_cache").status_code == 200
            with client.stream("POST", "/generate", json={"text": "hang", "stream": True}) as response:
                running.process.send_signal(signal.SIGTERM)
                body = response.read().decode()
        assert "the server is shutting down" in body and body.endswith("data: [DONE]\n\n")
        code, stderr = running.end()
        assert code == 0 and "finishing 1 request, at most 0.2 s" in stderr
        assert gone(engine)


def test_a_killed_engine_is_reported_to_everyone_who_waits():
    with serving("--max-engine-restarts", "0") as running:
        plain, answers = post_in_background(running.url + "/generate", {"text": "hang"})
        streamed, events = post_in_background(
            running.url + "/v1/completions", {"model": "m", "prompt": "hang", "stream": True}
        )
        wait_for_request(running, 2)
        os.kill(running.engine_pid, signal.SIGKILL)
        plain.join(TIMEOUT)
        streamed.join(TIMEOUT)
        code, stderr = running.end()
        assert answers[0].status_code == 500
        assert "killed by signal SIGKILL" in answers[0].json()["error"]["message"]
        assert "killed by signal SIGKILL" in events[0].text
        if events[0].status_code == 200:  # the stream had begun when the engine died
            assert events[0].text.endswith("data: [DONE]\n\n")
        else:
            assert events[0].status_code == 500
        assert code == 1 and "the engine died: killed by signal SIGKILL" in stderr


def test_an_engine_that_exits_by_itself_is_reported_with_its_status():
    with serving("--max-engine-restarts", "0") as running:
        response = httpx.post(running.url + "/generate", json={"text": "die"}, timeout=TIMEOUT)
        assert response.status_code == 500 and "exited with status 7" in response.text
        with contextlib.suppress(httpx.TransportError):  # it may have ended already
            assert httpx.get(running.url + "/health").status_code == 503
        assert running.end()[0] == 1


def test_an_engine_whose_thread_stopped_ends_the_server_with_the_cause():
    with serving("--max-engine-restarts", "0") as running:
        response = httpx.post(running.url + "/generate", json={"text": "stopped"}, timeout=TIMEOUT)
        assert response.status_code == 500 and response.json()["error"]["type"] == "EngineDeadError"
        assert running.end() == (1, "stemma serve: the engine stopped: KeyError: 5\n")


def test_the_engine_does_not_outlive_a_killed_front_process():
    with serving() as running:
        engine = running.engine_pid
        running.process.kill()
        assert gone(engine)


def test_ctrl_c_ends_in_order_too():
    with serving() as running:
        engine = running.engine_pid
        plain, answers = post_in_background(running.url + "/generate", {"text": "hang"})
        wait_for_request(running)
        running.process.send_signal(signal.SIGINT)
        wait_until(lambda: httpx.get(running.url + "/health").status_code == 503)
        running.process.send_signal(signal.SIGINT)  # once more: at once
        plain.join(TIMEOUT)
        assert running.end()[0] == 0 and gone(engine)
        assert answers[0].status_code == 500 and "shutting down" in answers[0].text


def test_a_server_told_to_stop_while_loading_stops():
    running = Running("--port", "0", "--served-model-name", "slow-to-load", expect_ready=False)
    deadline = time.monotonic() + 10
    engine = None
    while engine is None and time.monotonic() < deadline:
        with contextlib.suppress(IndexError):
            engine = running.engine_pid
        time.sleep(0.05)
    assert engine is not None
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == (0, "") and gone(engine)


def test_a_model_that_cannot_be_loaded_is_said_in_one_line():
    running = Running("--port", "0", "--served-model-name", "unloadable", expect_ready=False)
    assert running.end() == (1, "stemma serve: the weights of 'unloadable' are missing\n")


def test_a_port_in_use_is_said_before_the_model_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        running = Running("--port", str(taken.getsockname()[1]), expect_ready=False)
        code, stderr = running.end()
    assert code == 1 and "cannot listen on 127.0.0.1" in stderr and "0 for a free one" in stderr


def test_the_front_process_imports_no_torch():
    probe = "import sys, stemma.backend.server.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--port", "70000"], "port must be in [0, 65535], got 70000"),
        (["--max-n", "0"], "max_n must be >= 1"),
        (["--lease-seconds", "0"], "lease_seconds must be > 0"),
        (["--engine-factory", "nonsense", "--port", "0"], "engine_factory must be"),
    ],
)
def test_wrong_options_are_said_in_one_line(options, reason, capsys):
    from stemma.backend.server.launch import main

    assert main(options) == 1
    assert reason in capsys.readouterr().err


def test_options_come_from_the_configurations(capsys):
    from dataclasses import fields

    from stemma.backend.config import EngineConfig
    from stemma.backend.server.launch import ServerConfig, configs, parser

    server, engine = configs(parser().parse_args([]))
    assert (server, engine) == (ServerConfig(), EngineConfig())
    options = ["--max-total-tokens", "99", "--disable-radix-cache", "--schedule-policy", "fcfs", "--api-key", "k"]
    server, engine = configs(parser().parse_args(options))
    assert (engine.max_total_tokens, engine.disable_radix_cache, engine.schedule_policy) == (99, True, "fcfs")
    assert server.api_key == "k"
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert all("--" + f.name.replace("_", "-") in text for f in (*fields(ServerConfig), *fields(EngineConfig)))
    assert "engine-factory" not in text
