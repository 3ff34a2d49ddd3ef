"""overlap_schedule through the engine's thread and through a server: the same answers, whatever comes in when."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from stemma.backend.engine import Engine
from stemma.lang.errors import RequestError
from tests.differential.cases import Delta, logprobs_of, mix, result_of
from tests.differential.test_server import local, remote

CASES = 12
OPTIONS: dict[str, Any] = {"load_format": "dummy", "max_total_tokens": 4000, "num_threads": 1}


@pytest.fixture(scope="module")
def ahead(tiny_model: Path):
    with Engine(tiny_model, overlap_schedule="on", chunked_prefill_size=32, **OPTIONS) as made:
        yield made
        made.check()


@pytest.fixture(scope="module")
def ahead_server(tiny_model: Path):
    command = [
        sys.executable, "-m", "stemma", "serve", "--model-path", str(tiny_model), "--load-format", "dummy", "--port",
        "0", "--max-total-tokens", "4000", "--num-threads", "1", "--overlap-schedule", "on",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"ready on (http://\S+)", line) for line in process.stdout)))
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield found.group(1)
        finally:
            process.terminate()
            assert process.wait(30) in (0, -15)


def named(seed: int) -> list[Delta]:
    return [{**given, "program": f"{seed}-{given['program']}"} for given in mix(seed + 7000)]


def same(a: dict[Any, Delta], b: dict[Any, Delta]) -> None:
    assert set(a) == set(b)
    for key, event in a.items():
        assert result_of(b[key]) == result_of(event), key
        assert logprobs_of(b[key]) == pytest.approx(logprobs_of(event), abs=2e-4), key


def test_the_engine_answers_as_without_it(engine: Engine, ahead: Engine) -> None:
    """All programs at once, from threads of their own."""
    deltas = [delta for seed in range(CASES) for delta in named(seed)]
    truth = {delta["program"]: local(engine, delta) for delta in deltas}
    found: dict[str, dict[Any, Delta]] = {}

    def play(delta: Delta) -> None:
        found[delta["program"]] = local(ahead, delta)

    threads = [threading.Thread(target=play, args=(delta,)) for delta in deltas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for program, answers in truth.items():
        same(answers, found[program])
    assert ahead.scheduler.overlap and not engine.scheduler.overlap
    assert ahead.load()["discarded_tokens"] > 0  # ends that were known a step late
    assert ahead.flush_cache()
    assert ahead.load()["free_slots"] == ahead.load()["total_slots"]


def test_a_server_answers_as_without_it(engine: Engine, ahead_server: str) -> None:
    for seed in range(CASES):
        for delta in named(seed + 100):
            same(local(engine, delta), remote(ahead_server, delta))


def test_what_is_left_in_the_middle_frees_everything(ahead: Engine) -> None:
    for _ in range(5):
        stream = ahead.generate("once upon a time", {"max_new_tokens": 200, "ignore_eos": True}, stream=True)
        next(stream)
        next(stream)
        stream.close()
    assert ahead.generate("hello", {"max_new_tokens": 3})["meta_info"]["completion_tokens"] <= 3
    while not ahead.flush_cache():
        pass
    load = ahead.load()
    assert load["free_slots"] == load["total_slots"] and load["running"] == load["waiting"] == 0


def test_the_cache_can_be_flushed_as_soon_as_the_last_answer_is_there(ahead: Engine) -> None:
    for seed in range(10):
        ahead.generate("The capital of France is", {"max_new_tokens": 9, "temperature": 1.0, "seed": seed})
        assert ahead.flush_cache()


def test_the_option_is_checked(tiny_model: Path) -> None:
    with pytest.raises(RequestError, match="overlap_schedule must be one of auto, on, off, got 'yes'"):
        Engine(tiny_model, overlap_schedule="yes", **OPTIONS)
