"""Policies, priorities and tuning options through the engine, with a real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stemma.backend.engine import Engine
from stemma.backend.executor.runner import ModelRunner
from stemma.backend.requests import GenerateRequest
from stemma.backend.scheduler.policy import POLICIES
from stemma.backend.server.openai_format import parse_chat, parse_completion
from stemma.interpreter import program as programs
from stemma.interpreter.endpoints.local import LocalEndpoint
from stemma.interpreter.endpoints.scripted import ScriptedEndpoint
from stemma.lang.api import gen
from stemma.lang.errors import RequestError
from tests.tiny import write_tiny_model

GREEDY = {"temperature": 0.0, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_model(path)
    return path


def engine(path: Path, **options: Any) -> Engine:
    settings = {"load_format": "dummy", "max_total_tokens": 4000, "num_threads": 1, "grammar_workers": 0, **options}
    return Engine(path, **settings)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cold_family_is_computed_once(tiny: Path, policy: str):
    with engine(tiny, schedule_policy=policy) as made:
        ids = [5 + i % 200 for i in range(100)]
        prompts = [[*ids, 7, 10 + i] for i in range(16)]
        together = made.generate(input_ids=prompts, sampling_params=GREEDY)
        computed = sum(r["meta_info"]["prompt_tokens"] - r["meta_info"]["cached_tokens"] for r in together)
        assert computed == 101 + 16
        assert made.flush_cache()
        made.check()
        alone = [made.generate(input_ids=p, sampling_params=GREEDY) for p in prompts]
        assert [r["output_ids"] for r in alone] == [r["output_ids"] for r in together]


def test_family_attention_can_be_switched_off(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    found, grouped = [], []
    table = ModelRunner._table
    note = lambda runner, plan: (made := table(runner, plan), grouped.append(len(made.groups) > 0))[0]  # noqa: E731
    monkeypatch.setattr(ModelRunner, "_table", note)
    for off in (False, True):
        grouped.clear()
        with engine(tiny, disable_family_attention=off) as made:
            prompts = [[*(5 + i % 200 for i in range(100)), 7, 10 + i] for i in range(6)]
            found.append([r["output_ids"] for r in made.generate(input_ids=prompts, sampling_params=GREEDY)])
        assert any(grouped) is not off
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def made(tiny: Path) -> Iterator[Engine]:
    with engine(tiny, chunked_prefill_size=-1, disable_same_step_sharing=True, disable_mixed_chunk=True) as made:
        yield made


def test_a_priority_is_taken_everywhere(made: Engine):
    plain = made.generate("once upon a time", GREEDY)
    assert made.generate("once upon a time", GREEDY, priority=3)["output_ids"] == plain["output_ids"]
    batch = made.generate(["a", "b"], GREEDY, priority=[1, None])
    assert len(batch) == 2
    request = GenerateRequest.parse({"text": ["a", "b"], "priority": [1, None]})
    assert [d.hints.priority if d.hints else None for d in request.deltas()] == [1, None]
    for wrong in ("high", 1.5, True, 2**31, [1]):
        with pytest.raises(RequestError, match="priority"):
            made.generate("a", GREEDY, priority=wrong)
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "priority": -4}
    assert parse_chat(chat).request.items[0].priority == -4
    assert parse_completion({"model": "m", "prompt": "hi"}).request.items[0].priority is None
    with pytest.raises(RequestError, match=r"priority must be an integer.*'x'"):
        parse_completion({"model": "m", "prompt": "hi", "priority": "x"})


@programs.function
def tell(s: Any) -> None:
    s += "one two"
    s += gen("x", max_tokens=3, temperature=0)


def test_a_program_has_a_priority(made: Engine):
    seen: list[Any] = []

    class Watching(LocalEndpoint):
        def submit(self, delta: Any, on_event: Any) -> None:
            seen.append(delta.get("hints"))
            super().submit(delta, on_event)

    endpoint = Watching(made)
    text = tell.run(backend=endpoint)["x"]
    assert tell.run(backend=endpoint, priority=2)["x"] == text
    assert tell.bind(priority=-1).run(backend=endpoint)["x"] == text
    assert [s["x"] for s in tell.run_batch([{}, {}], backend=endpoint, priority=5)] == [text, text]
    said = [hints["priority"] if hints else None for hints in seen]
    assert {None, 2, -1, 5} == set(said)
    with pytest.raises(RequestError, match=r"priority must be an integer.*'high'"):
        tell.run(backend=endpoint, priority="high")


def test_an_endpoint_without_a_queue_refuses_a_priority():
    with pytest.raises(RequestError, match="priority=2: ScriptedEndpoint"):
        tell.run(backend=ScriptedEndpoint(["x"]), priority=2)


def test_too_small_a_share_of_memory_says_what_is_needed(tiny: Path):
    with pytest.raises(RequestError, match=r"mem_fraction_static=1e-07 of .*one sequence of") as caught:
        engine(tiny, max_total_tokens=None, mem_fraction_static=1e-7)
    assert caught.value.param == "mem_fraction_static"


def test_a_share_of_memory_sizes_the_pool(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    from stemma.backend.executor import runner

    monkeypatch.setattr(runner, "_free_memory", lambda: 64 << 20)
    slots = []
    for share in (0.1, 0.2):
        with engine(tiny, max_total_tokens=None, mem_fraction_static=share) as made:
            info = made.info()
            slots.append(info["num_slots"])
            assert info["mem_fraction_static"] == share
            used = info["kv_pool_bytes"] + made.runner.parameters * 4
            assert used <= share * (64 << 20) + made.runner.parameters * 4
    assert slots[0] < slots[1]
