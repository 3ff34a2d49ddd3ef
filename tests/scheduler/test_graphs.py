"""Graph execution and scheduling against a model that would notice any wrong slot."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest

from stemma.backend.cache.host import LoadRule
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.branch import Branch, Program
from stemma.backend.scheduler.loop import Scheduler
from stemma.lang.errors import RequestError
from tests.scheduler.world import BOS, EOS, FakeRunner, FakeText, chain, next_token, no_compiler


def make(
    num_slots: int = 4000, context: int = 512, eos_every: int = 23, host_slots: int = 0, **options: Any
) -> Scheduler:
    runner = FakeRunner(num_slots, eos_every, host_slots)
    if not host_slots:
        return Scheduler(runner, FakeText(), no_compiler, context=context, **options)
    options.setdefault("load_rule", LoadRule(at_least=1, always=True))
    scheduler = Scheduler(runner, FakeText(), no_compiler, context=context, host=runner, **options)
    runner.scribble(scheduler)
    return scheduler


def run(scheduler: Scheduler, *deltas: dict[str, Any], steps: int = 100_000) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for delta in deltas:
        scheduler.submit(parse_delta(delta), events.append)()
    for _ in range(steps):
        if not scheduler.step():
            break
    else:
        raise AssertionError("never idle")
    scheduler.check()
    return events


def text(t: str) -> dict[str, Any]:
    return {"kind": "text", "text": t}


def gen(**params: Any) -> dict[str, Any]:
    params.setdefault("temperature", 0.0)
    return {"kind": "gen", "params": params}


def one(*nodes: dict[str, Any], program: str = "p", end: bool = True) -> dict[str, Any]:
    return {"program": program, "branches": [{"id": "r", "nodes": list(nodes)}], "end": end}


def expected(ids: list[int], n: int, eos_every: int = 23, seed: int | None = None) -> list[int]:
    """Plain decoding with the fake model."""
    ids, out = list(ids), []
    while len(out) < n:
        token = next_token(chain(ids), None if seed is None else seed + len(ids), eos_every)
        out.append(token)
        ids.append(token)
        if token == EOS:
            break
    return out


def ids_of(t: str) -> list[int]:
    return [BOS, *map(ord, t)]


def test_a_generation_equals_plain_decoding():
    (done,) = run(make(), one(text("hello"), gen(max_new_tokens=9)))
    assert done["ids"] == expected(ids_of("hello"), 9)
    assert done["meta"]["prompt_tokens"] == 6
    assert done["meta"]["computed_tokens"] == 6 + len(done["ids"]) - 1


def test_text_gen_text_gen_runs_without_the_client():
    first, second = run(
        make(eos_every=10**9), one(text("ab"), gen(max_new_tokens=3), text("cd"), gen(max_new_tokens=4))
    )
    a = expected(ids_of("ab"), 3, 10**9)
    assert first["ids"] == a
    assert second["ids"] == expected([*ids_of("ab"), *a, *map(ord, "cd")], 4, 10**9)
    assert second["meta"]["cached_tokens"] == 5  # BOS, a, b and the first two generated: the third was never run


def test_the_eos_token_is_reported_and_not_part_of_the_branch():
    events = run(make(eos_every=1), one(text("ab"), gen(), text("c"), gen()))
    assert [e["ids"] for e in events] == [[EOS], [EOS]]
    assert events[1]["meta"]["prompt_tokens"] == 4
    assert events[0]["meta"]["finish_reason"] == {"type": "stop", "matched": EOS}


def test_a_cold_fork_costs_one_prefill():
    scheduler = make()
    children = [
        {"id": f"c{i}", "parent": "r", "at": 1, "nodes": [text(chr(97 + i)), gen(max_new_tokens=1)]} for i in range(16)
    ]
    prefix = "x" * 400
    events = run(
        scheduler, {"program": "p", "branches": [{"id": "r", "nodes": [text(prefix)]}, *children], "end": True}
    )
    assert len(events) == 16
    computed = sum(e["meta"]["prompt_tokens"] - e["meta"]["cached_tokens"] for e in events)
    assert computed == 401 + 16
    for i, event in enumerate(sorted(events, key=lambda e: int(e["branch"][1:]))):
        assert event["ids"] == expected(ids_of(prefix + chr(97 + i)), 1)


def test_a_fork_after_a_generation_waits_for_it_and_inherits_it():
    child = {"id": "c", "parent": "r", "at": 2, "nodes": [text("!"), gen(max_new_tokens=3)]}
    delta = one(text("ab"), gen(max_new_tokens=3))
    delta["branches"].append(child)
    first, second = run(make(eos_every=10**9), delta)
    assert second["ids"] == expected([*ids_of("ab"), *first["ids"], ord("!")], 3, 10**9)
    assert second["meta"]["cached_tokens"] == 5


def test_later_deltas_continue_a_branch_from_its_lease():
    scheduler = make(eos_every=10**9)
    (first,) = run(scheduler, one(text("ab"), gen(max_new_tokens=3), end=False))
    (second,) = run(
        scheduler, {"program": "p", "branches": [{"id": "r", "first": 2, "nodes": [text("c"), gen(max_new_tokens=1)]}]}
    )
    assert second["ids"] == expected([*ids_of("ab"), *first["ids"], ord("c")], 1, 10**9)
    assert second["meta"]["cached_tokens"] == 5
    run(scheduler, {"program": "p", "end": True})
    assert not scheduler.graph.programs and not scheduler.memory.leases
    assert scheduler.flush_cache()
    assert scheduler.slots.free_count == scheduler.slots.total


def test_a_stop_string_cuts_the_branch_and_the_rest_is_retokenised():
    produced = expected(ids_of("ab"), 40, 10**9)
    stop = "".join(map(chr, produced[5:7]))
    first, second = run(make(eos_every=10**9), one(text("ab"), gen(stop=[stop]), text("Z"), gen(max_new_tokens=2)))
    shown = "".join(map(chr, produced))
    cut = shown.index(stop)
    assert first["text"] == shown[:cut]
    assert first["meta"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert second["ids"] == expected([*ids_of("ab" + shown[:cut] + "Z")], 2, 10**9)


def test_streamed_deltas_join_to_the_text_and_never_show_a_stop():
    produced = "".join(map(chr, expected(ids_of("ab"), 40, 10**9)))
    stop = produced[8:11]
    node = gen(stop=[stop])
    node["stream"] = True
    *deltas, done = run(make(eos_every=10**9), one(text("ab"), node))
    assert "".join(d["text"] for d in deltas) == done["text"] == produced[: produced.index(stop)]
    assert [t for d in deltas for t in d["ids"]] == done["ids"]


def test_select_takes_the_choice_with_the_best_mean():
    from tests.scheduler.world import logprob

    choices = ["red", "green", "blue"]
    (done,) = run(make(), one(text("a colour: "), {"kind": "select", "choices": choices}))
    means = []
    for choice in choices:
        ids = ids_of("a colour: ")
        values = []
        for c in choice:
            values.append(logprob(chain(ids), ord(c)))
            ids.append(ord(c))
        means.append(sum(values) / len(values))
    assert done["text"] == choices[means.index(max(means))]
    assert done["meta"]["scores"] == pytest.approx(means)


def test_a_generation_after_a_select_continues_the_choice():
    select, last = run(
        make(eos_every=10**9),
        one(text("q"), {"kind": "select", "choices": ["yes", "no"]}, text("."), gen(max_new_tokens=2)),
    )
    assert last["ids"] == expected(ids_of("q" + select["text"] + "."), 2, 10**9)


def test_an_error_in_a_node_reaches_it_and_the_later_ones_and_the_children():
    child = {"id": "c", "parent": "r", "at": 3, "nodes": [gen()]}
    delta = one(text("a"), gen(max_new_tokens=2), {"kind": "role_begin", "role": "pirate"}, gen())
    delta["branches"].append(child)
    events = run(make(), delta)
    assert [(e["event"], e["branch"], e["node"]) for e in events] == [
        ("done", "r", 1),
        ("error", "r", 2),
        ("error", "r", 3),
        ("error", "c", 0),
    ]
    assert "pirate" in events[1]["error"]["message"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([text("a" * 600), gen()], "longer than the model's context"),
        ([text("a"), gen(max_new_tokens=600)], "exceeds the model's maximum context length"),
        ([text("a"), gen(temperature=-1.0)], "temperature must be"),
        ([text("a"), gen(max_new_tokens=-5)], "max_new_tokens must be"),
        ([{"kind": "ids", "ids": [5, 9999]}, gen()], "9999"),
        ([text("a"), {"kind": "select", "choices": []}], "at least one choice"),
        ([text("a"), {"kind": "select", "choices": ["x", "x"]}], "must differ"),
    ],
)
def test_bad_nodes_are_errors_with_the_value_and_leak_nothing(nodes: list[dict[str, Any]], message: str):
    scheduler = make()
    events = run(scheduler, one(*nodes))
    assert events and all(e["event"] == "error" for e in events)
    assert message in events[-1]["error"]["message"]
    assert scheduler.flush_cache() and scheduler.slots.free_count == scheduler.slots.total


def test_deltas_that_do_not_fit_are_refused_at_once():
    scheduler = make()
    run(scheduler, one(text("a"), end=False))
    for branches, message in [
        ([{"id": "r", "first": 0, "nodes": []}], "first must be 1"),
        ([{"id": "x", "parent": "nobody"}], "unknown parent"),
        ([{"id": "x", "parent": "r", "at": 7}], r"at must be in \[0, 1\]"),
    ]:
        with pytest.raises(RequestError, match=message):
            scheduler.submit(parse_delta({"program": "p", "branches": branches}), lambda e: None)


def test_memory_pressure_retracts_and_never_changes_tokens():
    scheduler = make(num_slots=120, context=100, eos_every=10**9, conservativeness=0.0)
    deltas = [one(text(f"prompt {i} "), gen(max_new_tokens=60), program=f"p{i}") for i in range(8)]
    events = run(scheduler, *deltas)
    assert scheduler.memory.retractions > 0
    assert len(events) == 8
    for event in events:
        assert event["event"] == "done" and len(event["ids"]) == 60
    texts = {tuple(expected(ids_of(f"prompt {i} "), 60, 10**9)) for i in range(8)}
    assert {tuple(e["ids"]) for e in events} == texts


def test_cancel_ends_a_branch_with_its_children_and_frees_everything():
    scheduler = make(eos_every=10**9)
    events: list[dict[str, Any]] = []
    delta = one(text("ab"), gen(max_new_tokens=400), end=False)
    delta["branches"].append({"id": "c", "parent": "r", "at": 1, "nodes": [gen(max_new_tokens=400)]})
    scheduler.submit(parse_delta(delta), events.append)()
    for _ in range(5):
        scheduler.step()
    assert scheduler.graph.cancel("p")
    assert [e["error"]["type"] for e in events] == ["CancelledError", "CancelledError"]
    assert not scheduler.step()
    scheduler.check()
    assert not scheduler.graph.programs
    assert scheduler.flush_cache() and scheduler.slots.free_count == scheduler.slots.total


def test_cancelling_a_program_that_failed_before_forgets_it():
    scheduler = make()
    run(scheduler, one(text("a"), gen(temperature=-1.0), end=False))
    assert scheduler.graph.programs
    assert scheduler.graph.cancel("p") and not scheduler.graph.programs
    assert not scheduler.graph.cancel("p")


def test_a_prompt_equal_to_a_running_one_joins_it():
    scheduler = make(eos_every=10**9)
    events: list[dict[str, Any]] = []
    scheduler.submit(parse_delta(one(text("same words"), gen(max_new_tokens=20), program="a")), events.append)()
    for _ in range(4):
        scheduler.step()
    scheduler.submit(parse_delta(one(text("same words"), gen(max_new_tokens=20), program="b")), events.append)()
    while scheduler.step():
        scheduler.check()
    assert len(events) == 2 and events[0]["ids"] == events[1]["ids"]
    assert events[1]["meta"]["cached_tokens"] == 10


def test_a_listener_that_raises_harms_only_itself(caplog: pytest.LogCaptureFixture):
    scheduler = make()

    def broken(event: dict[str, Any]) -> None:
        raise ValueError("listener")

    scheduler.submit(parse_delta(one(text("a"), gen(max_new_tokens=2), program="bad")), broken)()
    (done,) = run(scheduler, one(text("ab"), gen(max_new_tokens=3)))
    assert done["ids"] == expected(ids_of("ab"), 3)
    assert "listener of program 'bad'" in caplog.text


def random_delta(rng: random.Random, name: str) -> dict[str, Any]:
    def nodes(depth: int) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            if kind < 0.4:
                out.append(
                    text(rng.choice(["shared prefix ", "shared other ", "x", "hello there "]) * rng.randint(1, 4))
                )
            elif kind < 0.85:
                params: dict[str, Any] = {"max_new_tokens": rng.randint(0, 12)}
                if rng.random() < 0.3:
                    params |= {"temperature": 1.0, "seed": rng.randint(0, 99)}
                if rng.random() < 0.3:
                    params["stop"] = [rng.choice("abcdefgh")]
                if rng.random() < 0.2:
                    params["ignore_eos"] = True
                node = gen(**params)
                node["stream"] = rng.random() < 0.2
                if rng.random() < 0.15:
                    node["logprobs"] = {"start": rng.choice([-1, 0]), "top": 0}
                out.append(node)
            else:
                out.append({"kind": "select", "choices": ["yes", "no", "yeah"]})
        return out

    branches: list[dict[str, Any]] = [{"id": "r", "nodes": [text("shared prefix for all "), *nodes(0)]}]
    for i in range(rng.randint(0, 5)):
        parent = rng.choice(branches)
        branches.append(
            {"id": f"b{i}", "parent": parent["id"], "at": rng.randint(0, len(parent["nodes"])), "nodes": nodes(1)}
        )
    return {"program": name, "branches": branches, "end": True}


def outcome(events: list[dict[str, Any]], program: str) -> dict[Any, Any]:
    done = [e for e in events if e["event"] in ("done", "error")]
    keys = [(e["branch"], e["node"]) for e in done]
    assert len(set(keys)) == len(keys), "a node was answered twice"
    return {
        (program, e["branch"], e["node"]): (
            e.get("text"),
            e.get("ids"),
            e.get("error"),
            (e.get("meta") or {}).get("finish_reason"),
            (e.get("meta") or {}).get("output_token_logprobs"),
            (e.get("meta") or {}).get("input_token_logprobs") if e["event"] == "done" else None,
        )
        for e in done
    }


@pytest.mark.parametrize("seed", range(60))
def test_no_option_changes_any_token(seed: int):
    """Random programs: the same answers alone or together, cached or not, in chunks, under memory pressure."""
    rng = random.Random(seed)
    deltas = [random_delta(rng, f"p{i}") for i in range(rng.randint(1, 6))]

    def play(together: bool, stagger: int = 0, **options: Any) -> dict[Any, Any]:
        scheduler = make(context=400, seed=1, **options)
        results: dict[Any, Any] = {}
        sinks: dict[str, list[dict[str, Any]]] = {d["program"]: [] for d in deltas}
        for delta in deltas:
            scheduler.submit(parse_delta(delta), sinks[delta["program"]].append)()
            for _ in range(stagger):
                scheduler.step()
            while not together and scheduler.step():
                pass
        for _ in range(100_000):
            if not scheduler.step():
                break
        scheduler.check()
        assert not scheduler.graph.programs
        assert scheduler.flush_cache() and scheduler.slots.free_count == scheduler.slots.total
        for program, events in sinks.items():
            results |= outcome(events, program)
        return results

    truth = play(False, radix=False, chunk=1000)
    assert len(truth) == sum(
        1 for d in deltas for b in d["branches"] for n in b["nodes"] if n["kind"] in ("gen", "select")
    )
    assert play(False) == truth
    assert play(True) == truth
    assert play(True, stagger=7) == truth
    assert play(True, stagger=3, chunk=7, policy="fcfs") == truth
    assert play(True, chunk=1) == truth
    assert play(True, max_rows=2) == truth
    assert play(True, num_slots=420, conservativeness=0.0) == truth
    assert play(True, num_slots=432, conservativeness=0.0, page_size=16, eviction="slru") == truth
    assert play(False, page_size=16, eviction="lfu", stagger=3) == truth
    assert play(True, num_slots=420, conservativeness=0.0, host_slots=500) == truth
    assert play(True, num_slots=432, conservativeness=0.0, host_slots=128, page_size=16, chunk=7) == truth
    assert play(True, num_slots=420, conservativeness=0.0, chunk=5, radix=False) == truth


def test_results_tell_the_ids_of_their_prompts_when_asked_and_each_only_once():
    scheduler = make(eos_every=10**9)
    root = [text("ab"), gen(max_new_tokens=3), text("cd"), gen(max_new_tokens=2), text("ef")]
    child = {"id": "c", "parent": "r", "at": 2, "nodes": [text("X"), {"kind": "select", "choices": ["yes", "no"]}]}
    grandchild = {"id": "d", "parent": "c", "at": 2, "nodes": [text("!"), gen(max_new_tokens=1)]}
    delta = {"program": "p", "branches": [{"id": "r", "nodes": root}, child, grandchild], "end": True, "tokens": True}
    told = {(e["branch"], e["node"]): e for e in run(scheduler, delta) if e["event"] == "done"}
    first = ids_of("ab") + told["r", 1]["ids"]
    assert told["r", 1]["meta"]["prompt_ids"] == {"start": 0, "ids": ids_of("ab")}
    assert told["r", 3]["meta"]["prompt_ids"] == {"start": 6, "ids": list(map(ord, "cd"))}
    assert told["c", 1]["meta"]["prompt_ids"] == {"start": 6, "ids": [ord("X")]}
    chosen = [*first, ord("X"), *told["c", 1]["ids"]]
    assert told["d", 1]["meta"]["prompt_ids"] == {"start": len(chosen), "ids": [ord("!")]}
    assert told["d", 1]["ids"] == expected([*chosen, ord("!")], 1, 10**9)
    (plain,) = run(scheduler, one(text("ab"), gen(max_new_tokens=3), program="q"))
    assert "prompt_ids" not in plain["meta"]


def test_a_select_counts_what_its_choices_share_as_computed_once():
    choices = {"kind": "select", "choices": ["yes", "no", "maybe"]}
    scheduler = make()
    (cold,) = run(scheduler, one(text("x" * 50), choices))
    (warm,) = run(scheduler, one(text("x" * 50), choices, program="q"))
    assert (cold["meta"]["cached_tokens"], warm["meta"]["cached_tokens"]) == (0, 50)
    assert cold["meta"]["prompt_tokens"] == warm["meta"]["prompt_tokens"] == 51


def test_literal_nodes_that_come_to_a_failed_branch_do_not_keep_its_program():
    scheduler = make()
    first = {"id": "r", "nodes": [text("a" * 600), gen(max_new_tokens=2)]}
    (failed,) = run(scheduler, {"program": "p", "branches": [first], "end": False})
    assert failed["event"] == "error"
    more = {"id": "r", "first": 2, "nodes": [text("more")]}
    assert run(scheduler, {"program": "p", "branches": [more], "end": True}) == []
    assert not scheduler.graph.programs


def test_an_ended_program_needs_no_garbage_collector():
    """It is set aside with all that lives while a grammar compiles: then the collector does not find it for long."""
    scheduler = make()
    child = {"parent": "r", "at": 2}
    branches: list[dict[str, Any]] = [{"id": "r", "nodes": [text("ab"), gen(max_new_tokens=2)]}]
    branches += [{"id": f"c{i}", "nodes": [text("x"), gen(max_new_tokens=3)], **child} for i in range(3)]
    branches.append({"id": "s", "nodes": [{"kind": "select", "choices": ["yes", "no", "yellow"]}], **child})
    ours = lambda: [o for o in gc.get_objects() if type(o) in (Branch, Program)]  # noqa: E731
    gc.collect()
    before = ours()
    gc.disable()
    try:
        run(scheduler, {"program": "p", "branches": branches, "end": True})
        left = [o for o in ours() if not any(o is known for known in before)]
    finally:
        gc.enable()
    assert not scheduler.graph.programs and not left, left
