"""Who is let in, and who gives way: the forecast of the peak, lengths learnt, bounded retractions."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.admission import ENOUGH, KINDS, SEEN, Lengths, peak, seniority
from stemma.backend.scheduler.loop import Scheduler
from tests.scheduler.world import BOS, FakeRunner, FakeText, chain, next_token, no_compiler


def simulated_peak(held: list[int], left: list[int]) -> int:
    """Step by step: every row adds a token, and one that has added all is gone."""
    most, step = sum(held), 0
    while True:
        alive = [k for k in range(len(held)) if left[k] >= step]
        if not alive:
            return most
        most = max(most, sum(held[k] + step for k in alive))
        step += 1


@pytest.mark.parametrize("seed", range(50))
def test_the_peak_is_what_a_simulation_reaches(seed: int):
    rng = random.Random(seed)
    n = rng.randint(1, 12)
    held = [rng.randint(0, 60) for _ in range(n)]
    left = [rng.choice([0, rng.randint(0, 40)]) for _ in range(n)]
    assert peak(np.array(held, np.int64), np.array(left, np.int64)) == simulated_peak(held, left)


def test_no_rows_need_nothing():
    assert peak(np.empty(0, np.int64), np.empty(0, np.int64)) == 0


def test_lengths_are_learnt_by_kind():
    lengths = Lengths()
    assert lengths.expect(1, 0, 100) == 50  # nothing known: half of what is allowed
    for k in range(ENOUGH - 1):
        lengths.observe(1, 10 + k)
    assert lengths.expect(1, 0, 100) == 50
    lengths.observe(1, 20)
    assert lengths.expect(1, 0, 100) == 12  # three quarters of them are not longer, about
    assert lengths.expect(1, 15, 100) == 20  # of those that got so far
    assert lengths.expect(1, 40, 100) == 60  # longer than any
    assert lengths.expect(1, 0, 5) == 5 and lengths.expect(2, 0, 100) == 50
    for _ in range(SEEN):
        lengths.observe(1, 70)
    assert lengths.expect(1, 0, 100) == 70  # old ones are forgotten
    for kind in range(2, 2 + KINDS):
        lengths.observe(kind, 1)
    assert lengths.expect(1, 0, 100) == 50  # and kinds that were not seen for long


# -- in the scheduler -------------------------------------------------------------------------------------------------


def make(num_slots: int, eos_every: int = 10**9, context: int = 512, **options: Any) -> Scheduler:
    return Scheduler(FakeRunner(num_slots, eos_every), FakeText(), no_compiler, context=context, **options)


def one(name: str, prompt: str, n: int, **more: Any) -> dict[str, Any]:
    params = {"temperature": 0.0, "max_new_tokens": n}
    branch = {"id": "r", "nodes": [{"kind": "text", "text": prompt}, {"kind": "gen", "params": params}]}
    return {"program": name, "branches": [branch], "end": True, **more}


def start(scheduler: Scheduler, *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for delta in deltas:
        scheduler.submit(parse_delta(delta), events.append)()
    return events


def drain(scheduler: Scheduler, limit: int = 50_000) -> int:
    most = 0
    for _ in range(limit):
        if not scheduler.step():
            scheduler.check()
            return most
        most = max(most, len(scheduler.memory.running))
    raise AssertionError("never idle")


def expected(prompt: str, n: int) -> list[int]:
    ids = [BOS, *map(ord, prompt)]
    for _ in range(n):
        ids.append(next_token(chain(ids), None, 10**9))
    return ids[-n:]


def fill(scheduler: Scheduler) -> None:
    """Leave no slot free, and none that could be evicted."""
    memory = scheduler.memory
    memory.planned.clear()
    memory.cache.evict(memory.cache.evictable)
    memory.slots.allocate(memory.slots.free_count)


def test_a_shared_prefix_is_counted_once():
    """Thirty forks of 300 tokens: a slot for each would be nine pools."""
    prefix = "x" * 300
    scheduler = make(1000)
    events = start(scheduler, *(one(f"p{i}", prefix + f"{i:02}", 16) for i in range(30)))
    assert drain(scheduler) == 30
    assert scheduler.memory.retractions == 0 and len(events) == 30


def test_a_family_that_outlives_its_leader_keeps_its_prefix():
    """The leader ends first. What it shares must not be counted as given back."""
    prefix = "x" * 200
    scheduler = make(560, conservativeness=4.0)
    deltas = [one("leader", prefix + "l", 9), *(one(f"p{i}", prefix + f"{i}", 50) for i in range(6))]
    start(scheduler, *deltas)
    start(scheduler, *(one(f"q{i}", f"{i}" * 60, 50) for i in range(6)))
    drain(scheduler)
    assert scheduler.memory.retractions == 0


@pytest.mark.parametrize("radix", [True, False])
def test_exact_lengths_are_never_retracted(radix: bool):
    """Outputs as long as they may be, and as expected: the forecast is exact, and the pool is used to the full."""
    rng = random.Random(3)
    scheduler = make(700, radix=radix)
    lengths = [rng.randint(1, 120) for _ in range(60)]
    deltas = [one(f"p{i}", f"{i:03}" * rng.randint(1, 20), n, hints={"expected_len": n}) for i, n in enumerate(lengths)]
    events = start(scheduler, *deltas)
    most = drain(scheduler)
    assert len(events) == 60 and scheduler.memory.retractions == 0
    assert most >= 5


def test_learnt_lengths_let_more_branches_in():
    """max_new_tokens is 400 and texts end after 20: after a few of them the pool is no longer kept for 400."""
    scheduler = make(1500, eos_every=20)
    params = {"temperature": 1.0, "max_new_tokens": 400}
    branches = [
        {"id": "r", "nodes": [{"kind": "text", "text": f"{i:03}"}, {"kind": "gen", "params": {**params, "seed": i}}]}
        for i in range(80)
    ]
    deltas = [{"program": f"p{i}", "branches": [branch], "end": True} for i, branch in enumerate(branches)]
    start(scheduler, *deltas[:20])
    before = drain(scheduler)
    start(scheduler, *deltas[20:])
    assert drain(scheduler) > 2 * before


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", ["program", "lpm", "fcfs"])
def test_retractions_are_bounded_and_everything_ends(seed: int, policy: str):
    """Lengths that no forecast foresees: what was learnt is short, what comes is long; and nothing is kept free."""
    rng = random.Random(seed)
    scheduler = make(
        rng.choice([140, 300]), context=130, conservativeness=0.0, policy=policy, chunk=rng.choice([16, 512])
    )
    deltas = [one(f"p{i}", "ab"[i % 2] * rng.randint(1, 40) + f"{i:02}", 80) for i in range(24)]
    for k in range(40):
        scheduler.memory.admission.lengths.observe(0, k % 3)
    events = start(scheduler, *deltas)
    finished, retractions = 0, 0
    for _ in range(20_000):
        if not scheduler.step():
            break
        scheduler.check()
        # nobody is let in after one before a row has ended: so each end pays for what ran beside it, and no more
        assert scheduler.memory.retractions - retractions <= 23
        if len(events) > finished:
            finished, retractions = len(events), scheduler.memory.retractions
    assert len(events) == 24 and all(len(e["ids"]) == 80 for e in events)
    assert {e["meta"]["prompt_tokens"] for e in events} == {
        len(d["branches"][0]["nodes"][0]["text"]) + 1 for d in deltas
    }
    assert scheduler.memory.retractions > 0
    truth = {tuple(expected(d["branches"][0]["nodes"][0]["text"], 80)) for d in deltas}
    assert {tuple(e["ids"]) for e in events} == truth


def test_after_a_retraction_nobody_is_let_in_until_a_row_ends():
    scheduler = make(400, conservativeness=0.0)
    start(scheduler, *(one(f"p{i}", f"{i}" * 10, 100) for i in range(10)))
    events = start(scheduler)
    held = 0
    while scheduler.step():
        memory = scheduler.memory
        if memory.held_back and memory.running:
            held += 1
            names = {b.program.id for b in memory.running}
            queued = set(memory.waiting)
            scheduler.step()
            assert {b.program.id for b in memory.running} <= names or not memory.held_back
            assert queued <= set(memory.waiting) or not memory.held_back
    assert held and not events
    scheduler.check()


def test_the_row_with_the_least_of_its_own_gives_way():
    scheduler = make(4000)
    prefix = "x" * 100
    start(
        scheduler,
        one("senior", prefix + "s", 200),
        one("rich", prefix + "r" * 50, 200),
        one("poor", prefix + "p" * 10, 200),
        one("inner", prefix, 200),  # all that it has is also others', until it generates
    )
    for _ in range(3):
        scheduler.step()
    memory = scheduler.memory
    by_name = {b.program.id: b for b in memory.running}
    own = {name: memory.admission.own(b) for name, b in by_name.items()}
    assert own["inner"] < own["poor"] < own["rich"]
    assert min(by_name.values(), key=seniority) is by_name["senior"]
    gone = []
    for _ in range(3):
        fill(scheduler)
        before = set(memory.running)
        assert memory.make_room(1)
        gone += [b.program.id for b in before - set(memory.running)]
    fill(scheduler)
    assert gone == ["inner", "poor", "rich"]
    assert not memory.make_room(1) and [b.program.id for b in memory.running] == ["senior"]


def test_a_lower_priority_gives_way_first():
    scheduler = make(4000)
    start(
        scheduler,
        one("old and low", "a" * 90, 100, hints={"priority": -1}),
        one("plain", "b", 100),
        one("high", "c", 100, hints={"priority": 1}),
    )
    for _ in range(3):
        scheduler.step()
    memory = scheduler.memory
    fill(scheduler)
    before = set(memory.running)
    assert memory.make_room(1)
    assert [b.program.id for b in before - set(memory.running)] == ["old and low"]
    fill(scheduler)
    assert memory.make_room(1)
    assert [b.program.id for b in memory.running] == ["high"]
