"""The same programs through the server (front process, engine process, HTTP) and in process: equal answers."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import requests

from stemma.backend.engine import Engine
from tests.differential.cases import Delta, answerable, logprobs_of, mix, result_of

CASES = 40


def local(engine: Engine, delta: Delta) -> dict[Any, Delta]:
    wanted = answerable(delta)
    answers: dict[Any, Delta] = {}
    done = threading.Event()

    def take(event: dict[str, Any]) -> None:
        if event["event"] in ("done", "error"):
            answers[delta["program"], event["branch"], event["node"]] = event
            if wanted <= set(answers):
                done.set()

    engine.submit(delta, take)
    assert not wanted or done.wait(60)
    return answers


def remote(url: str, delta: Delta) -> dict[Any, Delta]:
    with requests.post(f"{url}/v1/graph", json=delta, stream=True, timeout=60) as answer:
        assert answer.status_code == 200, answer.text
        events = [json.loads(line) for line in answer.iter_lines() if line]
    final = [e for e in events if e["event"] in ("done", "error")]
    return {(delta["program"], e["branch"], e["node"]): e for e in final}


@pytest.mark.parametrize("block", range(0, CASES, 10))
def test_the_server_answers_as_the_library_does(engine: Engine, server: str, block: int):
    for seed in range(block, block + 10):
        for given in mix(seed + 5000):
            delta = {**given, "program": f"{seed}-{given['program']}"}  # the one before may still be settling
            here, there = local(engine, delta), remote(server, delta)
            assert set(here) == set(there)
            for key, event in here.items():
                assert result_of(there[key]) == result_of(event), (seed, key)
                assert logprobs_of(there[key]) == pytest.approx(logprobs_of(event), abs=2e-4)


def test_the_server_has_lost_nothing_afterwards(server: str):
    info: dict[str, Any] = {}
    for _ in range(200):
        info = requests.get(f"{server}/get_server_info", timeout=10).json()
        if not info["programs"]:
            break
    assert info["running"] == info["waiting"] == info["programs"] == 0
    assert requests.post(f"{server}/flush_cache", timeout=10).status_code == 200
    info = requests.get(f"{server}/get_server_info", timeout=10).json()
    assert info["free_slots"] == info["total_slots"] == 4000
