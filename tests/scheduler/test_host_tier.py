"""The host tier under the scheduler, against a model that is a hash of its KV pool."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stemma.backend.cache.host import LoadRule
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from tests.scheduler.test_graphs import expected, gen, ids_of, make, one, outcome, random_delta, run, text

FOREVER = 10**9


def rounds(scheduler: Scheduler, prompts: list[str], times: int) -> list[int]:
    """Ask for all prompts, again and again; the tokens computed in each round."""
    computed = []
    for k in range(times):
        before = scheduler.tokens_computed
        for i, prompt in enumerate(prompts):
            (done,) = run(scheduler, one(text(prompt), gen(max_new_tokens=2), program=f"{k}.{i}"))
            assert done["ids"] == expected(ids_of(prompt), 2, FOREVER)
        computed.append(scheduler.tokens_computed - before)
    return computed


@pytest.mark.parametrize("page", [1, 16])
def test_a_working_set_three_times_the_pool_is_computed_once(page: int):
    prompts = [f"{i:02}" + "abcdefgh" * 25 for i in range(12)]  # 203 tokens each with BOS, 2436 in all
    options: dict[str, Any] = {"num_slots": 816, "eos_every": FOREVER, "page_size": page}
    without = rounds(make(**options), prompts, 4)
    scheduler = make(host_slots=3200, **options)
    with_host = rounds(scheduler, prompts, 4)
    assert all(n >= without[0] - 2 for n in without)  # an LRU pool that is too small for a loop hits nothing but BOS
    assert with_host[0] == without[0]
    assert all(n <= 12 * (page + 12) for n in with_host[1:])
    load = scheduler.load()
    assert load["host_cached_tokens"] > 1500 and load["cache_host_hit_tokens"] > 3 * 12 * 170
    assert load["cache_host_hit_tokens"] <= load["cache_hit_tokens"]


def test_what_came_back_counts_as_cached():
    scheduler = make(num_slots=120, eos_every=FOREVER, host_slots=400)
    prompt = "a prompt that is evicted " * 3
    run(scheduler, one(text(prompt), gen(max_new_tokens=1)))
    run(scheduler, one(text("x" * 100), gen(max_new_tokens=1), program="q"))
    (done,) = run(scheduler, one(text(prompt), gen(max_new_tokens=1), program="r"))
    assert done["meta"]["cached_tokens"] == len(prompt) == done["meta"]["prompt_tokens"] - 1
    assert done["meta"]["computed_tokens"] == 1


def test_short_prefixes_are_not_worth_a_copy():
    scheduler = make(num_slots=105, eos_every=FOREVER, host_slots=400, load_rule=LoadRule())
    for k, prompt in enumerate(["short", "x" * 100, "short"]):
        run(scheduler, one(text(prompt), gen(max_new_tokens=1), program=str(k)))
    assert scheduler.cache.stats.host_loads == 0 and scheduler.cache.stats.host_stored_tokens > 0


def test_siblings_share_what_their_leader_brings_back():
    scheduler = make(num_slots=400, eos_every=FOREVER, host_slots=800)
    run(scheduler, one(text("p" * 200), gen(max_new_tokens=1)))
    run(scheduler, one(text("x" * 390), gen(max_new_tokens=1), program="q"))
    before = scheduler.tokens_computed
    run(scheduler, *[one(text("p" * 200 + c), gen(max_new_tokens=1), program=c) for c in "abcdefgh"])
    assert scheduler.cache.stats.host_loads == 1 and scheduler.cache.stats.host_hit_tokens == 200
    assert scheduler.tokens_computed - before == 8


def test_flush_empties_both_tiers():
    scheduler = make(num_slots=120, eos_every=FOREVER, host_slots=400)
    rounds(scheduler, ["a" * 80, "b" * 80, "c" * 80], 1)
    assert scheduler.load()["host_cached_tokens"] > 100
    assert scheduler.flush_cache()
    load = scheduler.load()
    assert load["host_cached_tokens"] == load["cached_slots"] == load["cache_nodes"] == 0
    (done,) = run(scheduler, one(text("a" * 80), gen(max_new_tokens=1), program="z"))
    assert done["meta"]["cached_tokens"] == 0


def test_salts_are_apart_on_the_host():
    scheduler = make(num_slots=120, eos_every=FOREVER, host_slots=800)
    for k, (salt, letter) in enumerate([("a", "p"), ("a", "x"), ("b", "p"), ("b", "x"), ("a", "p")]):
        delta = {**one(text(letter * 80), gen(max_new_tokens=1), program=str(k)), "cache_salt": salt}
        (done,) = run(scheduler, delta)
        assert done["meta"]["cached_tokens"] == (80 if k == 4 else k % 2)  # the second of a salt shares its BOS


def test_a_wrong_byte_would_show():
    """The world above is worth something: lose the order of copies, and tokens change."""
    scheduler = make(num_slots=120, eos_every=FOREVER, host_slots=400)
    runner: Any = scheduler.runner
    copy_in = runner.copy_in
    runner.copy_in = lambda host, slots: copy_in(host[::-1], slots)
    prompt = "a prompt that is evicted " * 3
    run(scheduler, one(text(prompt), gen(max_new_tokens=8)))
    run(scheduler, one(text("x" * 100), gen(max_new_tokens=1), program="q"))
    (done,) = run(scheduler, one(text(prompt), gen(max_new_tokens=8), program="r"))
    assert done["ids"] != expected(ids_of(prompt), 8, FOREVER)


@pytest.mark.parametrize("seed", range(20))
def test_random_programs_with_prefixes_that_come_and_go(seed: int):
    rng = random.Random(seed)
    deltas = [random_delta(rng, f"p{i}") for i in range(rng.randint(1, 6))]

    def play(evict: int = 0, retract: int = 0, **options: Any) -> tuple[dict[Any, Any], int]:
        scheduler = make(context=400, seed=1, **options)
        results: dict[Any, Any] = {}
        events: dict[str, list[Any]] = {delta["program"]: [] for delta in deltas}
        for delta in deltas:
            scheduler.submit(parse_delta(delta), events[delta["program"]].append)()
        steps = 0
        while scheduler.step():
            steps += 1
            assert steps < 20_000
            if evict and steps % evict == 0:
                scheduler.cache.evict(60)
            if retract and steps % retract == 0 and steps < 150 and scheduler.memory.running:
                scheduler.memory.retract(scheduler.memory.running[steps % len(scheduler.memory.running)])
            if steps % 7 == 0:
                scheduler.check()
        scheduler.check()
        assert scheduler.flush_cache() and scheduler.slots.free_count == scheduler.slots.total
        for program, given in events.items():
            results |= outcome(given, program)
        return results, scheduler.cache.stats.host_loads

    truth, _ = play(radix=False)
    loads = 0
    for options in (
        {"host_slots": 2000, "evict": 2, "retract": 3},
        {"host_slots": 128, "evict": 1, "retract": 2, "page_size": 16, "eviction": "lfu"},
        {"host_slots": 600, "evict": 1, "retract": 3, "chunk": 5, "eviction": "slru", "num_slots": 420},
    ):
        played, loaded = play(**options)
        assert played == truth, options
        loads += loaded
    assert loads
