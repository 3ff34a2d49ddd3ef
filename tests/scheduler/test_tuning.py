"""The options that change how a step is put together, and not what comes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from stemma.backend.config import EngineConfig
from stemma.backend.core import Plan, StepOutput
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.scheduler.policy import POLICIES, PREFIX_STEP
from stemma.lang.errors import RequestError
from tests.scheduler.world import FakeRunner, FakeText, no_compiler


class Recording(FakeRunner):
    """Remembers how many tokens each row of each step was extended by."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots, 10**9)
        self.plans: list[list[int]] = []

    def run(self, plan: Plan) -> StepOutput:
        self.plans.append(plan.n.tolist())
        return super().run(plan)


def play(prompts: Iterable[str], new: int = 1, **options: Any) -> Recording:
    runner = Recording(20_000)
    scheduler = Scheduler(runner, FakeText(), no_compiler, context=2048, **options)
    events: list[Any] = []
    count = 0
    for i, prompt in enumerate(prompts):
        node = {"kind": "gen", "params": {"temperature": 0.0, "max_new_tokens": new}}
        branch = {"id": "r", "nodes": [{"kind": "text", "text": prompt}, node]}
        scheduler.submit(parse_delta({"program": f"p{i}", "branches": [branch], "end": True}), events.append)()
        count += 1
    for _ in range(5000):
        if not scheduler.step():
            break
    scheduler.check()
    assert len(events) == count and all(e["event"] == "done" for e in events)
    return runner


FAMILY = ["x" * 500 + f"{i:02}" for i in range(30)]


@pytest.mark.parametrize("policy", POLICIES)
def test_without_same_step_sharing_followers_wait_for_the_prefix(policy: str):
    runner = play(FAMILY, policy=policy, same_step_sharing=False, chunk=100_000, max_prefill=100_000)
    union = 501 + 3 + 30
    if policy == "fcfs":
        assert runner.steps == [503 * 30]  # nobody may pass, so nobody waits: each computes its own
    else:
        assert runner.plans[0] == [503]
        assert union <= sum(runner.steps) <= 503 + 29 * 2  # short ends may be computed twice
        assert len(runner.steps) == 2


def test_with_it_they_use_it_at_once():
    runner = play(FAMILY, chunk=100_000, max_prefill=100_000)
    assert len(runner.steps) == 1 and sum(runner.steps) == 501 + 3 + 30


def test_others_pass_those_who_wait():
    runner = play([*FAMILY[:5], "another"], policy="lpm", same_step_sharing=False, chunk=4096)
    assert sorted(runner.plans[0]) == [8, 503]


def test_a_short_common_beginning_is_not_waited_for():
    prompts = ["y" * (PREFIX_STEP - 2) + f"{i}" * 50 for i in range(4)]
    assert len(play(prompts, same_step_sharing=False).steps) == 1
    assert len(play(["y" * PREFIX_STEP + f"{i}" * 50 for i in range(4)], same_step_sharing=False).steps) == 2


def test_followers_wait_for_a_leader_of_many_chunks():
    runner = play(FAMILY, policy="lpm", same_step_sharing=False, chunk=100)
    assert sum(runner.steps) <= 503 + 29 * 3 and runner.plans[:5] == [[100]] * 5


def test_a_step_admits_no_more_than_max_prefill_tokens():
    prompts = [chr(97 + i) * 99 for i in range(10)]
    runner = play(prompts, max_prefill=250, chunk=4096, new=3)
    assert max(sum(n for n in plan if n > 1) for plan in runner.plans) in (199, 200)
    longer = play(["z" * 400, *prompts[:2]], policy="fcfs", max_prefill=250, chunk=4096)
    assert [401] in longer.plans  # alone, but admitted


def test_cached_tokens_do_not_count_as_prefill():
    runner = play(FAMILY, max_prefill=600, chunk=4096)
    assert len(runner.steps) == 1


def test_without_mixing_prompts_come_first_and_alone():
    prompts = ["a" * 50, *(c * 600 for c in "bcd"), "e" * 700]
    mixed = play(prompts, new=6, chunk=128, policy="fcfs")
    apart = play(prompts, new=6, chunk=128, policy="fcfs", mixed_chunk=False)
    assert any(1 in plan and max(plan) > 1 for plan in mixed.plans)
    long = [plan for plan in apart.plans if max(plan) > 2]
    assert long and all(plan.count(1) == 0 for plan in long)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("schedule_policy", "lmp", "'lmp'"),
        ("schedule_conservativeness", -0.5, "-0.5"),
        ("schedule_conservativeness", float("nan"), "nan"),
        ("chunked_prefill_size", 0, "got 0"),
        ("chunked_prefill_size", -2, "got -2"),
        ("max_prefill_tokens", 0, "got 0"),
        ("mem_fraction_static", 1.0, "got 1.0"),
        ("mem_fraction_static", 0, "got 0"),
        ("mem_fraction_static", True, "got True"),
    ],
)
def test_wrong_values_are_named(option: str, value: Any, message: str):
    with pytest.raises(RequestError, match=message) as caught:
        EngineConfig(**{option: value})
    assert caught.value.param == option


def test_right_values_are_taken():
    config = EngineConfig(schedule_conservativeness=2, chunked_prefill_size=-1, mem_fraction_static=0.5)
    assert config.schedule_policy == "program" and config.max_prefill_tokens == 16384
