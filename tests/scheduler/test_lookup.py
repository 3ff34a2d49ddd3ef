"""Drafts by prompt lookup: what the index finds, that no token changes, and that `auto` knows when to stop."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

from stemma.backend.core import Int32, Plan
from stemma.backend.scheduler.drafts import MAX_COPY, MAX_ROWS, Drafter, Ngrams
from stemma.backend.scheduler.loop import Scheduler
from tests.scheduler.test_drafts import gen, native, program, run, steps_of, without_costs
from tests.scheduler.world import EOS, FakeRunner, FakeText, next_token


def brute(ids: list[int]) -> tuple[int, int] | None:
    """(n, position): the longest run of 4 to 2 last tokens that occurs before, at its last occurrence."""
    for n in (4, 3, 2):
        for p in range(len(ids) - 1, n - 1, -1):
            if len(ids) >= n and ids[p - n : p] == ids[-n:]:
                return n, p
    return None


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_run_is_found_where_it_was_last(seed: int):
    rng = random.Random(seed)
    ids = [rng.randint(0, rng.choice([3, 30])) for _ in range(300)]
    table, at, array = Ngrams(bits=20), 0, np.array(ids, np.int32)
    while at < len(ids):
        end = min(at + rng.choice([1, 2, 40]), len(ids))
        table.add(array, at, end)
        at = end
        found = table.find(ids[max(at - 4, 0) : at], (array[:at],))
        assert (None if found is None else (found[0], found[2])) == brute(ids[:at])


def test_one_by_one_and_at_once_are_the_same_table():
    ids = np.random.default_rng(0).integers(0, 50, 400).astype(np.int32)
    single, whole = Ngrams(), Ngrams()
    for k in range(len(ids)):
        single.add(ids, k, k + 1, source=3)
    whole.add(ids, 0, len(ids), source=3)
    assert all((a == b).all() for a, b in zip(single._views, whole._views, strict=True))


def test_the_index_stays_as_large_as_it_is_and_as_quick():
    ids = np.random.default_rng(0).integers(0, 5000, 200_000).astype(np.int32)
    table = Ngrams()
    size = table.nbytes
    seconds = []
    for low in (0, 180_000):
        table.add(ids, low and low - 1, low + 10_000)
        begin = time.thread_time()
        for k in range(low + 10_000, low + 14_000):
            table.add(ids, k, k + 1)
        seconds.append(time.thread_time() - begin)
    assert table.nbytes == size < 100_000
    assert seconds[1] < 5 * seconds[0] + 0.01


def test_a_hit_whose_tokens_have_changed_is_none():
    ids = np.array([5, 6, 7, 8, 5, 6], np.int32)
    table = Ngrams()
    table.add(ids, 0, 6)
    assert table.find([5, 6], (ids,)) == (2, 0, 2)
    changed = ids.copy()
    changed[1] = 9
    assert table.find([5, 6], (changed,)) is None
    assert table.find([5, 6], (ids[:2],)) is None  # cut off meanwhile


class Echo(FakeRunner):
    """Says the alphabet over and over, but for a few tokens that depend on all tokens before: drafts are often right,
    and a wrong slot shows."""

    def __init__(self, num_slots: int, eos_every: int = 10**9, wild: int = 9) -> None:
        super().__init__(num_slots, eos_every)
        self.wild = wild

    def draw(self, plan: Plan, i: int, end: int, mask: Int32 | None) -> tuple[int, int]:
        last = self.pool[int(plan.slot_table[int(plan.rows[i]), end - 1])]
        if last // 7 % self.wild == 0 or mask is not None:
            return super().draw(plan, i, end, mask)
        if next_token(last, None, self.eos_every) == EOS:
            return EOS, last
        return 97 + end % 11, last


def free(**params: Any) -> dict[str, Any]:
    return {"kind": "gen", "params": {"temperature": 0.0, **params}}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("draft", ["ngram", "auto"])
def test_looked_up_drafts_change_nothing_but_the_steps(draft: str, seed: int):
    rng = random.Random(seed)

    def generation() -> dict[str, Any]:
        params: dict[str, Any] = {"max_new_tokens": rng.randint(1, 70)}
        if rng.random() < 0.4:
            params |= {"temperature": 1.0, "seed": rng.randint(0, 3)}
        if rng.random() < 0.3:
            params["stop"] = rng.sample(["cd", "gh", "xy", "bc"], 2)
        if rng.random() < 0.3:
            params["min_new_tokens"] = min(3, params["max_new_tokens"])
        if rng.random() < 0.2:
            params["stop_token_ids"] = [97 + rng.randint(0, 25)]
        made = gen("([a-k]{3}-){2,9}!", **params) if rng.random() < 0.3 else free(**params)
        if rng.random() < 0.15:
            made["logprobs"] = {"start": rng.choice([-1, 0]), "top": 0, "ids": None}
        return made | {"stream": rng.random() < 0.4}

    deltas = []
    for name in "abc":
        delta = program(generation(), {"kind": "text", "text": "and "}, generation(), name=name, text="abcdefghijk" * 2)
        for k in range(rng.choice([0, 3])):
            delta["branches"].append({"id": f"b{k}", "parent": "r", "at": 1, "nodes": [generation()]})
        deltas.append(delta)
    eos_every = rng.choice([60, 10**9])

    def play(**options: Any) -> list[dict[str, Any]]:
        slots = options.pop("slots", 2000)
        return run(Scheduler(Echo(slots, eos_every), FakeText(), native, context=512, **options), *deltas)

    truth = play()
    options: dict[str, Any] = {"chunk": rng.choice([4, 512]), "max_rows": rng.choice([1, 256])}
    if rng.random() < 0.3:
        options |= {"slots": 200, "conservativeness": 0.0}
    drafted = play(draft=draft, radix=rng.random() < 0.7, jump_forward=rng.random() < 0.7, **options)
    costs = ("num_retractions",)
    bare = lambda events: sorted(  # noqa: E731
        repr([part if not isinstance(part, dict) else {k: v for k, v in part.items() if k not in costs} for part in e])
        for e in without_costs(events)
    )
    assert bare(drafted) == bare(truth)
    metas = [e["meta"] for e in drafted if e["event"] == "done"]
    assert all(0 <= m["accepted_draft_tokens"] <= m["draft_tokens"] for m in metas)
    assert all("logprobs" not in m or not m["draft_tokens"] for m in metas)


@pytest.mark.parametrize("draft", ["ngram", "auto"])
def test_what_comes_again_takes_few_steps(draft: str):
    delta = program(free(max_new_tokens=120))
    truth = run(Scheduler(Echo(600, wild=10**9), FakeText(), native, context=512), delta)
    scheduler = Scheduler(Echo(600, wild=10**9), FakeText(), native, context=512, draft=draft)
    events = run(scheduler, delta)
    assert without_costs(events) == without_costs(truth)
    assert len(steps_of(scheduler)) < 40 and max(steps_of(scheduler)) <= 1 + MAX_COPY
    meta = events[0]["meta"]
    assert meta["accepted_draft_tokens"] > 80 and len(steps_of(scheduler)) == 120 - meta["accepted_draft_tokens"]


def test_a_branch_copies_what_its_siblings_said():
    """Siblings that say nothing twice: only what another has said can be looked up."""

    class Counter(FakeRunner):
        def draw(self, plan: Plan, i: int, end: int, mask: Int32 | None) -> tuple[int, int]:
            return 20 + end % 97, 0

    branches: list[Any] = [{"id": "r", "nodes": [{"kind": "text", "text": "prompt "}]}]
    branches += [{"id": f"b{k}", "parent": "r", "at": 1, "nodes": [free(max_new_tokens=60)]} for k in range(4)]
    steps = {}
    for siblings in (False, True):
        scheduler = Scheduler(Counter(900), FakeText(), native, context=512, draft="ngram", max_rows=1)
        scheduler.drafter.siblings = siblings
        run(scheduler, {"program": "p", "branches": branches, "end": True})
        steps[siblings] = len(steps_of(scheduler))
    assert steps[False] == 4 * 60 and steps[True] < 60 + 3 * 15


def test_auto_stops_drafting_what_is_seldom_right():
    class Liar(FakeRunner):
        """Every pair of its four letters comes again soon, and tells nothing about the next one."""

        def draw(self, plan: Plan, i: int, end: int, mask: Int32 | None) -> tuple[int, int]:
            last = self.pool[int(plan.slot_table[int(plan.rows[i]), end - 1])]
            return 97 + (last >> 20) % 4, last

    drafted = {}
    for draft in ("ngram", "auto"):
        scheduler = Scheduler(Liar(900), FakeText(), native, context=512, draft=draft)
        (event,) = run(scheduler, program(free(max_new_tokens=300)))
        drafted[draft] = event["meta"]["draft_tokens"]
    assert drafted["ngram"] > 200 and drafted["auto"] < 0.2 * drafted["ngram"]


def test_auto_leaves_large_batches_alone():
    deltas = [program(free(max_new_tokens=30), name=f"p{k}") for k in range(MAX_ROWS + 8)]
    scheduler = Scheduler(Echo(4000, wild=10**9), FakeText(), native, context=512, draft="auto")
    run(scheduler, *deltas)
    assert scheduler.drafter.drafted <= 4 * MAX_ROWS  # behind the first prompts only
    assert len(steps_of(scheduler)) >= 25


def test_drafts_go_where_they_are_worth_most():
    scheduler = Scheduler(Echo(900), FakeText(), native, context=512, draft="auto")
    drafter = Drafter(scheduler.memory, "auto", ((1, 1.0), (8, 1.7), (9, 90.0), (64, 300.0)))
    from stemma.backend.scheduler.branch import Branch, Program, Work

    branches = []
    for k, rate in enumerate((0.9, 0.2)):
        branch = Branch(Program("p", 1, scheduler.rows), f"b{k}", None, 0, k)
        branch.work = Work(node=0, params=None, prompt_len=1, limit=100, draft=[7] * 9, draft_rates=[rate] * 7)
        branches.append(branch)
    kept = drafter._worthwhile(branches, 2)
    assert kept == branches[:1] and branches[0].work.draft == [7] * 6  # up to what a step may cost, and no further
