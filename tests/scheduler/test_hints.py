"""Hints: priorities, expected lengths, and prefixes that stay pinned for forks to come."""

from __future__ import annotations

from typing import Any

import pytest

from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from stemma.lang.errors import RequestError
from tests.scheduler.world import FakeRunner, FakeText, no_compiler


def make(num_slots: int = 4000, **options: Any) -> Scheduler:
    return Scheduler(FakeRunner(num_slots, 10**9), FakeText(), no_compiler, context=1024, **options)


def gen(n: int) -> dict[str, Any]:
    return {"kind": "gen", "params": {"temperature": 0.0, "max_new_tokens": n}}


def text(t: str) -> dict[str, Any]:
    return {"kind": "text", "text": t}


def send(scheduler: Scheduler, delta: dict[str, Any], events: list[Any] | None = None) -> None:
    scheduler.submit(parse_delta(delta), (events if events is not None else []).append)()


def drain(scheduler: Scheduler) -> None:
    for _ in range(10_000):
        if not scheduler.step():
            break
    scheduler.check()


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        ({"hints": {"priority": 2**31}}, "2147483648"),
        ({"hints": {"priority": "high"}}, "hints.priority"),
        ({"hints": {"expected_len": -1}}, "got -1"),
        ({"hints": {"prioritty": 1}}, "prioritty"),
        ({"branches": [{"id": "r", "hints": {"expected_forks": -3}}]}, "got -3"),
        ({"branches": [{"id": "r", "hints": {"priority": 3}}]}, "priority"),
    ],
)
def test_wrong_hints_are_refused_with_their_value(delta: dict[str, Any], message: str):
    with pytest.raises(RequestError, match=message):
        parse_delta({"program": "p", **delta})


def test_a_program_of_higher_priority_goes_first():
    scheduler = make(max_rows=1)
    events: list[dict[str, Any]] = []
    for name, priority in (("low", -1), ("plain", None), ("high", 7)):
        hints = {} if priority is None else {"hints": {"priority": priority}}
        for k in range(2):
            branch = {"id": "r", "nodes": [text(f"{name} {k}"), gen(3)]}
            delta = {"program": f"{name}{k}", "branches": [branch], "end": True, **hints}
            send(scheduler, delta, events)
    order: list[str] = []
    while scheduler.step():
        order += [b.program.id for b in scheduler.memory.running if b.program.id not in order]
    assert order == ["high0", "high1", "plain0", "plain1", "low0", "low1"]


def fork(name: str, end: bool = True) -> dict[str, Any]:
    return {
        "program": "p",
        "branches": [{"id": name, "parent": "r", "at": 2, "nodes": [text("?"), gen(2)], "end": True}],
        "end": end,
    }


def parent(forks: int | None) -> dict[str, Any]:
    branch: dict[str, Any] = {"id": "r", "nodes": [text("x" * 200), gen(3)], "end": True}
    if forks is not None:
        branch["hints"] = {"expected_forks": forks}
    return {"program": "p", "branches": [branch]}


def other(scheduler: Scheduler) -> None:
    """Fill the pool with somebody else's prompts."""
    for k in range(8):
        branch = {"id": "r", "nodes": [text(chr(97 + k) * 150), gen(2)]}
        send(scheduler, {"program": f"q{k}", "branches": [branch], "end": True})
        drain(scheduler)


def computed_by_fork(forks: int | None) -> int:
    scheduler = make(num_slots=600)
    send(scheduler, parent(forks))
    drain(scheduler)
    other(scheduler)
    events: list[dict[str, Any]] = []
    send(scheduler, fork("c"), events)
    drain(scheduler)
    return events[-1]["meta"]["computed_tokens"]


def test_an_expected_fork_keeps_the_prefix_of_an_ended_branch():
    assert computed_by_fork(None) > 200
    assert computed_by_fork(1) <= 5


def test_the_last_expected_fork_ends_the_pin():
    scheduler = make()
    send(scheduler, parent(2))
    drain(scheduler)
    assert len(scheduler.memory.leases) == 1
    send(scheduler, fork("a", end=False))
    drain(scheduler)
    assert len(scheduler.memory.leases) == 1
    send(scheduler, fork("b", end=False))
    drain(scheduler)
    assert not scheduler.memory.leases
    assert scheduler.cache.evictable == scheduler.cache.size
    send(scheduler, {"program": "p", "end": True})
    drain(scheduler)
    assert not scheduler.graph.programs and scheduler.flush_cache()


def test_the_end_of_the_program_ends_the_pin():
    scheduler = make()
    send(scheduler, parent(5))
    drain(scheduler)
    send(scheduler, {"program": "p", "end": True})
    drain(scheduler)
    assert not scheduler.memory.leases and scheduler.flush_cache()
    assert scheduler.slots.free_count == scheduler.slots.total


def test_a_cancelled_fork_is_expected_no_longer():
    scheduler = make()
    send(scheduler, parent(1))
    drain(scheduler)
    send(scheduler, fork("a", end=False))
    scheduler.graph.cancel("p", ["a"])
    drain(scheduler)
    assert not scheduler.memory.leases


def test_the_pin_gives_way_to_running_branches():
    scheduler = make(num_slots=300)
    send(scheduler, parent(3))
    drain(scheduler)
    other(scheduler)
    assert not scheduler.memory.leases
    events: list[dict[str, Any]] = []
    send(scheduler, fork("c"), events)
    drain(scheduler)
    assert events[-1]["event"] == "done"


def test_an_expected_length_lets_more_branches_run_at_once():
    def rows_at_once(hint: int | None) -> int:
        scheduler = make(num_slots=1000)
        for k in range(20):
            branch = {
                "id": "r",
                "nodes": [text(f"{k:02}"), {"kind": "gen", "params": {"stop": ["zz"], "max_new_tokens": 900}}],
            }
            delta: dict[str, Any] = {"program": f"p{k}", "branches": [branch], "end": True}
            if hint is not None:
                delta["hints"] = {"expected_len": hint}
            send(scheduler, delta)
        scheduler.step()
        rows = len(scheduler.memory.running)
        drain(scheduler)
        return rows

    assert rows_at_once(None) == 2 and rows_at_once(30) == 20
