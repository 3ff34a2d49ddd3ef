"""The prefix cache as the scheduler uses it: pages, salts, counters, the integrity check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from stemma.lang.errors import RequestError
from tests.scheduler.test_graphs import expected, gen, ids_of, make, one, run, text
from tests.scheduler.world import FakeText, no_compiler

FOREVER = 10**9


def fork(prefix: str, count: int, **options: Any) -> Scheduler:
    """A cold fork of `count` children behind one prefix, run to its end."""
    scheduler = make(num_slots=8192, context=2048, eos_every=FOREVER, max_rows=count + 1, **options)
    children = [
        {"id": f"c{i:02}", "parent": "r", "at": 1, "nodes": [text(f"-{i:02}"), gen(max_new_tokens=1)]}
        for i in range(count)
    ]
    delta = {"program": "p", "branches": [{"id": "r", "nodes": [text(prefix)]}, *children], "end": True}
    events = run(scheduler, delta)
    for i in range(count):
        (event,) = [e for e in events if e["branch"] == f"c{i:02}"]
        assert event["ids"] == expected(ids_of(f"{prefix}-{i:02}"), 1, FOREVER)
    return scheduler


def test_a_cold_fork_of_64_computes_the_union_of_its_prompts():
    prefix = "x" * 999  # 1000 tokens with BOS
    scheduler = fork(prefix, 64, chunk=512)
    assert scheduler.tokens_computed == 1000 + 1 + 7 + 64  # the dash, and 7 first digits: the trie of all prompts
    assert scheduler.load()["cache_hit_rate"] > 0.98


def test_with_pages_a_cold_fork_shares_all_whole_pages():
    scheduler = fork("x" * 999, 64, chunk=512, page_size=16)
    assert scheduler.tokens_computed == 992 + 64 * (8 + 3)
    assert scheduler.load()["cached_slots"] == 992


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_equal_cold_requests_cost_one_prefill_and_their_last_page(policy: str):
    for page, own in ((1, 1), (16, 9)):  # of 1001 tokens; the logits of the last are needed by each
        scheduler = make(num_slots=8192, context=2048, eos_every=FOREVER, policy=policy, page_size=page, chunk=4096)
        deltas = [one(text("y" * 1000), gen(max_new_tokens=1), program=f"p{i}") for i in range(64)]
        events = run(scheduler, *deltas)
        assert len(events) == 64
        assert scheduler.tokens_computed == 1001 + 63 * own


def test_what_is_past_the_last_whole_page_is_computed_again():
    scheduler = make(eos_every=FOREVER, page_size=16)
    (first,) = run(scheduler, one(text("a" * 39), gen(max_new_tokens=4)))
    (again,) = run(scheduler, one(text("a" * 39), gen(max_new_tokens=4), program="q"))
    assert first["ids"] == again["ids"] == expected(ids_of("a" * 39), 4, FOREVER)
    assert first["meta"]["cached_tokens"] == 0 and again["meta"]["cached_tokens"] == 32


def test_a_branch_with_a_row_goes_on_inside_its_page():
    a, b = run(make(eos_every=FOREVER, page_size=16), one(text("ab"), gen(max_new_tokens=3), text("cd"), gen()))
    assert b["meta"]["cached_tokens"] == 5 and len(a["ids"]) == 3


def test_memory_is_counted_in_pages_and_pressure_changes_no_token():
    scheduler = make(num_slots=160, context=100, eos_every=FOREVER, conservativeness=0.0, page_size=16)
    assert scheduler.load()["total_slots"] == 144
    deltas = [one(text(f"prompt {i} "), gen(max_new_tokens=60), program=f"p{i}") for i in range(8)]
    events = run(scheduler, *deltas)
    assert scheduler.memory.retractions > 0
    texts = {tuple(expected(ids_of(f"prompt {i} "), 60, FOREVER)) for i in range(8)}
    assert {tuple(e["ids"]) for e in events} == texts


def test_a_prompt_that_fills_the_pool_runs_and_a_longer_one_names_the_option():
    for page in (1, 16):
        scheduler = make(num_slots=64 + page, context=512, page_size=page)
        (ok,) = run(scheduler, one(text("a" * 62), gen(max_new_tokens=5), program="a"))
        assert ok["meta"]["prompt_tokens"] == 63 and len(ok["ids"]) == 1
        (bad,) = run(scheduler, one(text("a" * 64), gen(max_new_tokens=5), program="b"))
        assert r"exceeds the maximum allowed length (64 tokens)" in bad["error"]["message"]


def test_a_wrong_page_size_or_policy_is_refused():
    with pytest.raises(ValueError, match="page_size must be a power of two"):
        make(page_size=3)
    with pytest.raises(ValueError, match="eviction policy"):
        make(eviction="newest")


# -- salts ---------------------------------------------------------------------------------------------------------


def salted(salt: str | None, program: str, prompt: str = "the same long prompt") -> dict[str, Any]:
    return {**one(text(prompt), gen(max_new_tokens=4), program=program), "cache_salt": salt}


def test_equal_prompts_of_different_salts_share_nothing():
    for page in (1, 4):
        scheduler = make(eos_every=FOREVER, page_size=page)
        cost = []
        for k, salt in enumerate(["a", "b", None, "a", "b", None, "('salt', 'a')"]):
            before = scheduler.tokens_computed
            (done,) = run(scheduler, salted(salt, f"p{k}"))
            assert done["ids"] == expected(ids_of("the same long prompt"), 4, FOREVER)
            cost.append((scheduler.tokens_computed - before, done["meta"]["cached_tokens"] > 0))
        full = 21 + 3
        assert [c for c, _ in cost[:3]] == [full] * 3 and cost[6] == (full, False)
        assert all(c < 10 and hit for c, hit in cost[3:6])


def test_salts_share_nothing_in_one_step_either():
    scheduler = make(eos_every=FOREVER)
    run(scheduler, *[salted(salt, f"p{k}{salt}") for k in range(4) for salt in ("a", "b")])
    assert (
        scheduler.tokens_computed == 2 * (21 + 3 * 1) + 8 * 3
    )  # two leaders; their followers' last prompt token; decoding


def test_a_fork_and_a_select_stay_within_their_programs_salt():
    scheduler = make(eos_every=FOREVER)
    nodes = [text("the same long prompt"), {"kind": "select", "choices": ["yes", "no"]}, gen(max_new_tokens=2)]
    child = {"id": "c", "parent": "r", "at": 1, "nodes": [gen(max_new_tokens=2)]}

    def program(name: str, salt: str) -> dict[str, Any]:
        return {**one(*nodes, program=name), "branches": [{"id": "r", "nodes": nodes}, child], "cache_salt": salt}

    run(scheduler, program("p", "a"))
    first = scheduler.tokens_computed
    run(scheduler, program("q", "b"))
    assert scheduler.tokens_computed == 2 * first


def test_the_salt_of_a_program_is_set_once():
    scheduler = make()
    run(scheduler, {**one(text("a"), end=False), "cache_salt": "s"})
    more = {"program": "p", "branches": [{"id": "r", "first": 1, "nodes": []}]}
    scheduler.submit(parse_delta({**more, "cache_salt": "s"}), lambda e: None)
    scheduler.submit(parse_delta(more), lambda e: None)
    for wrong in ({**more, "cache_salt": "t"}, {**salted("", "q")}, {**salted("x" * 2000, "q")}):
        with pytest.raises(RequestError, match="cache_salt"):
            scheduler.submit(parse_delta(wrong), lambda e: None)


def test_salts_that_are_gone_leave_nothing_behind():
    scheduler = make(num_slots=200, eos_every=FOREVER)
    for k in range(60):
        run(scheduler, salted(str(k), f"p{k}"))
    assert scheduler.load()["cache_nodes"] < 20
    assert scheduler.flush_cache()
    assert scheduler.load()["cache_nodes"] == 0


# -- counters and the check ------------------------------------------------------------------------------------------


def test_the_load_tells_what_the_cache_did():
    scheduler = make(num_slots=101, eos_every=FOREVER)
    for k, letter in enumerate("aab"):
        run(scheduler, one(text(letter * 59), gen(max_new_tokens=1), program=f"p{k}"))
    load = scheduler.load()
    assert load["cache_lookup_tokens"] == 180 and load["cache_hit_tokens"] == 59 + 1
    assert load["cache_hit_rate"] == round(60 / 180, 4)
    assert load["cache_inserted_tokens"] == 60 + 59 and load["cache_evicted_tokens"] == 59
    assert load["cached_slots"] == 60 and load["cache_nodes"] == 2


def test_waiting_in_the_queue_is_no_use_of_the_cache():
    scheduler = make(num_slots=200, eos_every=FOREVER, max_rows=1, policy="lpm")
    run(scheduler, one(text("a" * 20), gen(max_new_tokens=1), program="w"))
    deltas = [one(text("a" * 20 + c), gen(max_new_tokens=9), program=c) for c in "bcd"]
    run(scheduler, *deltas)
    assert scheduler.cache.stats.lookup_tokens == 21 + 3 * 22


def test_an_idle_engine_finds_a_broken_invariant_and_says_which():
    now = [1000.0]
    scheduler = make(eos_every=FOREVER, clock=lambda: now[0])
    run(scheduler, one(text("abc"), gen(max_new_tokens=1)))
    scheduler.slots.allocate(1)  # a leak
    now[0] += 100.0
    assert not scheduler.step()  # nothing has run since the last check
    scheduler.submit(parse_delta(one(text("xyz"), gen(max_new_tokens=1), program="r")), lambda e: None)()
    with pytest.raises(RuntimeError, match=r"integrity check of the KV cache failed: .* slots accounted for"):
        while scheduler.step():
            pass


def test_a_torn_page_in_a_row_is_found():
    scheduler = make(eos_every=FOREVER, page_size=16)
    scheduler.submit(parse_delta(one(text("abc"), gen(max_new_tokens=50))), lambda e: None)()
    for _ in range(3):
        scheduler.step()
    scheduler.check()
    row = scheduler.memory.running[0].row
    scheduler.rows.slots[row, 1] += 1
    with pytest.raises(AssertionError, match="torn"):
        scheduler.check()


def test_checks_are_rarer_when_they_take_long():
    now = [1000.0]
    scheduler = make(check_every=30.0, clock=lambda: now[0])
    checks: list[float] = []

    def check() -> None:
        checks.append(now[0])
        now[0] += 0.5

    scheduler.check = check  # type: ignore[method-assign]
    for k in range(300):
        scheduler.submit(parse_delta(one(text("a"), gen(max_new_tokens=1), program=f"p{k}")), lambda e: None)()
        while scheduler.step():
            pass
        now[0] += 1.0
    assert len(checks) == 3 and np.diff(checks).min() >= 100.0  # half a second is half a percent of that


def test_no_cache_counts_its_lookups():
    scheduler = make(radix=False, eos_every=FOREVER, page_size=16)
    run(scheduler, one(text("abc"), gen(max_new_tokens=1)))
    assert scheduler.load()["cache_lookup_tokens"] == 4 and scheduler.load()["cache_hit_tokens"] == 0
    assert Scheduler(scheduler.runner, FakeText(), no_compiler, context=64, radix=False).flush_cache()
