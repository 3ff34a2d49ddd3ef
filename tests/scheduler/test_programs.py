"""What the policies do to whole programs: how soon they end, and how much of them is computed twice."""

from __future__ import annotations

import random
from typing import Any

from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from tests.scheduler.world import FakeRunner, FakeText, no_compiler


def gen(n: int) -> dict[str, Any]:
    return {"kind": "gen", "params": {"temperature": 0.0, "max_new_tokens": n, "ignore_eos": True}}


def text(t: str) -> dict[str, Any]:
    return {"kind": "text", "text": t}


def tree(name: str, opening: str, turns: int, forks: int, new: int) -> dict[str, Any]:
    """Turns of a conversation, and forks behind it."""
    nodes: list[Any] = [text(opening + name)]
    for k in range(turns):
        nodes += [gen(new), text(f" turn {k} of {name} ")]
    children = [
        {"id": f"c{i}", "parent": "r", "at": len(nodes), "nodes": [text(f"way {i}"), gen(new)]} for i in range(forks)
    ]
    return {"program": name, "branches": [{"id": "r", "nodes": nodes}, *children], "end": True}


def chain(name: str, opening: str, turns: int, new: int) -> dict[str, Any]:
    """Each turn is a fork of the one before, and so has to queue."""
    branches: list[Any] = [{"id": "t0", "nodes": [text(opening + name), gen(new)]}]
    branches += [
        {"id": f"t{k}", "parent": f"t{k - 1}", "at": 2, "nodes": [text(f"turn {k} "), gen(new)]}
        for k in range(1, turns)
    ]
    return {"program": name, "branches": branches, "end": True}


def play(deltas: list[dict[str, Any]], *, slots: int, every: int = 0, **options: Any) -> tuple[dict[str, int], int]:
    """The step in which each program ended, and the tokens computed."""
    runner = FakeRunner(slots, 10**9)
    scheduler = Scheduler(runner, FakeText(), no_compiler, context=1500, **options)
    ended: dict[str, int] = {}
    to_send, step = list(deltas), 0
    while to_send or not scheduler.idle:
        for _ in range(len(to_send) if not every else 1 if step % every == 0 else 0):
            if to_send:
                delta = to_send.pop(0)
                scheduler.submit(parse_delta(delta), lambda event: None)()
        scheduler.step()
        step += 1
        for delta in deltas:
            name = delta["program"]
            if name not in ended and delta not in to_send and name not in scheduler.graph.programs:
                ended[name] = step
        assert step < 50_000
    scheduler.check()
    return ended, sum(runner.steps)


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_programs_of_a_like_size_end_one_after_the_other():
    """With first come first served, every turn of every program waits behind a turn of all the others."""
    deltas = [chain(f"p{i:02}", f"{i:02} " * 60, turns=4, new=10) for i in range(24)]
    by_program, _ = play(deltas, slots=3000, max_rows=4, policy="program")
    by_request, _ = play(deltas, slots=3000, max_rows=4, policy="fcfs")
    assert mean(by_program.values()) < 0.75 * mean(by_request.values())
    assert max(by_program.values()) <= 1.1 * max(by_request.values())


def test_a_huge_program_does_not_hold_up_small_ones():
    huge = tree("huge", "h" * 600, turns=1, forks=60, new=120)
    small = [tree(f"s{i:02}", f"{i:02} " * 10, turns=2, forks=2, new=8) for i in range(20)]
    mean_of = {}
    for policy in ("program", "fcfs", "lpm"):
        ended, _ = play([huge, *small], slots=20_000, every=20, max_rows=8, policy=policy)
        mean_of[policy] = mean(ended[d["program"]] for d in small), ended["huge"]
    assert mean_of["program"][0] < 0.7 * min(mean_of["fcfs"][0], mean_of["lpm"][0])
    assert mean_of["program"][1] < 1.3 * mean_of["fcfs"][1]  # and it ends hardly later


def test_the_hit_rate_stays_that_of_longest_prefix_first():
    """Forty families that arrive shuffled, and a pool for three of them."""
    rng = random.Random(5)
    names = [f"{f:02}" for f in range(40) for _ in range(5)]
    rng.shuffle(names)
    deltas = [tree(f"{i:03}", f"family {name} " * 25, 1, 0, 6) for i, name in enumerate(names)]
    policies = ("program", "lpm", "dfs-weight", "fcfs")
    computed = {policy: play(deltas, slots=1500, max_rows=4, policy=policy)[1] for policy in policies}
    assert computed["program"] <= 1.05 * computed["lpm"]
    assert max(computed["lpm"], computed["dfs-weight"]) < 0.6 * computed["fcfs"]
