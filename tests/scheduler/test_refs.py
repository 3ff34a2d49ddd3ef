"""References between branches: every order of events, every kind of source, and nothing that waits for ever."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from stemma.lang.errors import RequestError
from tests.scheduler.test_graphs import expected, gen, ids_of, make, run, text

NEVER = 10**9


def ref(branch: str, node: int, **more: Any) -> dict[str, Any]:
    return {"kind": "ref", "branch": branch, "node": node, **more}


def branch(id: str, *nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": id, "nodes": list(nodes), **more}


def delta(*branches: dict[str, Any], end: bool = True, program: str = "p") -> dict[str, Any]:
    return {"program": program, "branches": list(branches), "end": end}


def letters(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def result(events: list[dict[str, Any]], id: str, node: int) -> dict[str, Any]:
    (found,) = [e for e in events if (e["branch"], e["node"]) == (id, node) and e["event"] in ("done", "text", "error")]
    return found


def fork_and_join(first_tokens: int = 4, second_tokens: int = 6) -> dict[str, Any]:
    """Two children with a gen each; the parent quotes both and goes on."""
    return delta(
        branch("r", text("ab"), text("["), ref("c0", 1), text("|"), ref("c1", 1), text("]"), gen(max_new_tokens=3)),
        branch("c0", text("x"), gen(max_new_tokens=first_tokens), parent="r", at=1, end=True),
        branch("c1", text("y"), gen(max_new_tokens=second_tokens), parent="r", at=1, end=True),
    )


def test_three_stages_are_one_submission():
    events = run(make(eos_every=NEVER), fork_and_join())
    a, b = (expected(ids_of(f"ab{c}"), n, NEVER) for c, n in (("x", 4), ("y", 6)))
    assert result(events, "c0", 1)["ids"] == a and result(events, "c1", 1)["ids"] == b
    joined = result(events, "r", 6)
    assert joined["ids"] == expected(ids_of(f"ab[{letters(a)}|{letters(b)}]"), 3, NEVER)
    assert [e["branch"] for e in events] == ["c0", "c1", "r"]


def test_a_resolved_reference_is_the_text_that_the_client_would_have_sent():
    a, b = (letters(expected(ids_of(f"ab{c}"), n, NEVER)) for c, n in (("x", 4), ("y", 6)))
    by_hand = make(eos_every=NEVER)
    asked = {"program": "p", "tokens": True, "end": True}
    (plain,) = run(by_hand, {**asked, "branches": [branch("r", text(f"ab[{a}|{b}]"), gen(max_new_tokens=3))]})
    joined = result(run(make(eos_every=NEVER), {**fork_and_join(), "tokens": True}), "r", 6)
    assert joined["meta"]["prompt_ids"] == plain["meta"]["prompt_ids"]
    assert joined["ids"] == plain["ids"]


def test_no_step_is_idle_between_stages():
    scheduler = make(eos_every=NEVER)
    run(scheduler, fork_and_join(first_tokens=4, second_tokens=6))
    assert len(scheduler.runner.steps) == 6 + 3  # type: ignore[attr-defined]
    scheduler = make(eos_every=NEVER)
    run(scheduler, delta(branch("r", text("ab"), gen(max_new_tokens=4), text("cd"), gen(max_new_tokens=5))))
    assert len(scheduler.runner.steps) == 4 + 5  # type: ignore[attr-defined]


def test_a_reference_may_come_after_its_source_has_finished():
    scheduler = make(eos_every=NEVER)
    (first,) = run(scheduler, delta(branch("a", text("ab"), gen(max_new_tokens=4), end=True), end=False))
    (second,) = run(scheduler, delta(branch("b", text("q"), ref("a", 1), gen(max_new_tokens=2))))
    assert second["ids"] == expected(ids_of("q" + letters(first["ids"])), 2, NEVER)
    assert not scheduler.graph.programs


def test_a_reference_may_come_while_its_source_runs():
    scheduler = make(eos_every=NEVER)
    events: list[dict[str, Any]] = []
    scheduler.submit(parse_delta(delta(branch("a", text("ab"), gen(max_new_tokens=9)), end=False)), events.append)()
    for _ in range(3):
        scheduler.step()
    events += run(scheduler, delta(branch("b", text("q"), ref("a", 1), gen(max_new_tokens=2))))
    a = letters(expected(ids_of("ab"), 9, NEVER))
    assert result(events, "b", 2)["ids"] == expected(ids_of("q" + a), 2, NEVER)


@pytest.mark.parametrize("reverse", [False, True])
def test_every_kind_of_source(reverse: bool):
    select = {"kind": "select", "choices": ["yes", "no"]}
    source = branch(
        "a",
        {"kind": "role_begin", "role": "user"},
        text("hm"),
        {"kind": "role_end", "role": "user"},
        select,
        gen(max_new_tokens=3),
        ref("a", 1),
    )
    reader = branch("b", text("q:"), ref("a", 0, count=6), ref("a", 0, count=6, part="none"), gen(max_new_tokens=2))
    order = [reader, source] if reverse else [source, reader]
    events = run(make(eos_every=NEVER), {**delta(*order), "tokens": True})
    chosen, made = result(events, "a", 3)["text"], result(events, "a", 4)["text"]
    told = result(events, "b", 3)
    assert letters(told["meta"]["prompt_ids"]["ids"][1:]) == f"q:<user>hm</>\n{chosen}{made}hm"


def test_a_stop_string_is_not_quoted():
    produced = letters(expected(ids_of("ab"), 40, NEVER))
    stop = produced[5:7]
    nodes = delta(branch("a", text("ab"), gen(stop=[stop])), branch("b", text("q"), ref("a", 1), gen(max_new_tokens=1)))
    events = run(make(eos_every=NEVER), {**nodes, "tokens": True})
    assert letters(result(events, "b", 2)["meta"]["prompt_ids"]["ids"][1:]) == "q" + produced[: produced.index(stop)]


def test_chains_of_references_and_forks_behind_them():
    count = 30
    chain = [
        branch(f"b{i}", text("s"), *([ref(f"b{i + 1}", 2)] if i + 1 < count else [text("z")]), gen(max_new_tokens=2))
        for i in range(count)
    ]
    leaf = branch("leaf", text("!"), gen(max_new_tokens=1), parent="b0", at=3)
    events = run(make(eos_every=NEVER), delta(*chain, leaf))
    assert len(events) == count + 1 and all(e["event"] == "done" for e in events)
    assert [e["branch"] for e in events][:2] == [f"b{count - 1}", f"b{count - 2}"]


# -- failures


BAD_GEN = gen(logit_bias={"5000": 1.0})


def test_the_error_of_the_source_reaches_who_refers_to_it():
    events = run(
        make(),
        delta(
            branch("a", text("ab"), BAD_GEN, gen()),
            branch("b", text("q"), ref("a", 1), gen(max_new_tokens=2), gen()),
            branch("c", gen(max_new_tokens=1), parent="b", at=2),
            branch("d", text("ok"), gen(max_new_tokens=2)),
        ),
    )
    errors = {(e["branch"], e["node"]): e["error"] for e in events if e["event"] == "error"}
    assert set(errors) == {("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3), ("c", 0)}
    told = errors["b", 1]
    assert told["type"] == "RequestError" and "node 1 of branch 'a'" in told["message"]
    assert "logit_bias" in told["message"]
    assert result(events, "d", 1)["event"] == "done"


def test_a_node_before_the_failed_one_can_be_quoted():
    events = run(
        make(eos_every=NEVER),
        delta(branch("a", text("ab"), gen(max_new_tokens=2), BAD_GEN), branch("b", ref("a", 1), gen(max_new_tokens=2))),
    )
    assert result(events, "b", 1)["event"] == "done"


def test_a_late_reference_to_a_failed_node():
    scheduler = make()
    run(scheduler, delta(branch("a", text("ab"), BAD_GEN), end=False))
    events = run(scheduler, delta(branch("b", ref("a", 1), gen(max_new_tokens=2)), end=False))
    assert "branch 'a'" in result(events, "b", 1)["error"]["message"]


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_cancelling_the_source_ends_who_waits_for_it(steps: int, whole: bool):
    scheduler = make(eos_every=NEVER)
    events: list[dict[str, Any]] = []
    nodes = fork_and_join(50, 60)
    scheduler.submit(parse_delta(nodes), events.append)()
    for _ in range(steps):
        scheduler.step()
    assert scheduler.graph.cancel("p", None if whole else ["c1"])
    while scheduler.step():
        pass
    scheduler.check()
    error = result(events, "r", 6)["error"]
    assert error["type"] == "CancelledError" and ("branch 'r'" if whole else "branch 'c1'") in error["message"]
    assert result(events, "c0", 1)["event"] == ("error" if whole else "done")
    assert not scheduler.graph.programs and not scheduler.memory.leases


def test_cancelling_who_waits_leaves_the_source_alone():
    scheduler = make(eos_every=NEVER)
    events: list[dict[str, Any]] = []
    nodes = delta(branch("a", text("ab"), gen(max_new_tokens=8)), branch("b", text("q"), ref("a", 1), gen()))
    scheduler.submit(parse_delta(nodes), events.append)()
    scheduler.step()
    scheduler.graph.cancel("p", ["b"])
    while scheduler.step():
        pass
    assert result(events, "a", 1)["event"] == "done" and result(events, "b", 2)["error"]["type"] == "CancelledError"
    assert not scheduler.graph.programs


def test_who_waits_gives_its_row_and_its_memory_to_the_source():
    """Parents with long prefixes wait; their sources need more room than is left beside them."""
    scheduler = make(num_slots=260, max_rows=2, eos_every=NEVER)
    parents = [
        branch(f"r{i}", text(chr(65 + i) * 60), gen(max_new_tokens=2), ref(f"c{i}", 1), gen(max_new_tokens=2))
        for i in range(3)
    ]
    sources = [branch(f"c{i}", text(chr(97 + i) * 90), gen(max_new_tokens=100)) for i in range(3)]
    events = run(scheduler, delta(*parents, *sources))
    assert sum(e["event"] == "done" for e in events) == 9
    for i in range(3):
        first = expected(ids_of(chr(65 + i) * 60), 2, NEVER)
        source = expected(ids_of(chr(97 + i) * 90), 100, NEVER)
        prompt = chr(65 + i) * 60 + letters(first) + letters(source)
        assert result(events, f"r{i}", 3)["ids"] == expected(ids_of(prompt), 2, NEVER)


def test_a_retracted_source_is_quoted_all_the_same():
    scheduler = make(num_slots=150, conservativeness=0.0, eos_every=NEVER)
    sources = [branch(f"c{i}", text(chr(97 + i) * 20), gen(max_new_tokens=60)) for i in range(3)]
    reader = branch("r", *[ref(f"c{i}", 1) for i in range(2)], text("."), gen(max_new_tokens=1))
    events = run(scheduler, delta(reader, *sources))
    assert scheduler.memory.retractions > 0
    a, b = (letters(expected(ids_of(chr(97 + i) * 20), 60, NEVER)) for i in range(2))
    assert result(events, "r", 3)["ids"] == expected(ids_of(f"{a}{b}."), 1, NEVER)


def test_a_text_too_long_to_be_quoted_is_an_error():
    events = run(
        make(context=64, eos_every=NEVER),
        delta(branch("a", text("ab"), gen(max_new_tokens=50)), branch("b", text("q" * 30), ref("a", 1), gen())),
    )
    assert "context length" in result(events, "b", 2)["error"]["message"]


# -- refusals


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([branch("a", ref("x", 0))], "unknown branch 'x'"),
        ([branch("a", text("t"), ref("a", 1))], "circle"),
        ([branch("a", text("t"), ref("a", 5))], "has 2 nodes"),
        ([branch("a", ref("b", 0)), branch("b", ref("a", 0))], "circle"),
        ([branch("a", ref("b", 1), gen()), branch("b", gen(), ref("c", 0)), branch("c", ref("a", 1))], "circle"),
        ([branch("a", text("t"), ref("b", 0)), branch("b", gen(), parent="a", at=2)], "circle"),
        ([branch("a", {"kind": "ids", "ids": [70]}), branch("b", ref("a", 0))], "is ids and has no text"),
        ([branch("a", text("t"), ref("a", -1))], "nodes"),
        ([branch("a", text("t"), ref("a", 0, count=0))], "count"),
        ([branch("a", text("t"), ref("a", 0, part="ids"))], "part"),
        ([branch("a", text("t"), ref("a", 0, index=1))], "index"),
    ],
)
def test_what_is_refused(nodes: list[dict[str, Any]], says: str):
    scheduler = make()
    with pytest.raises(RequestError, match=says):
        scheduler.submit(parse_delta(delta(*nodes)), lambda event: None)
    assert not scheduler.graph.programs


def test_a_reference_to_what_comes_later_is_refused_and_changes_nothing():
    scheduler = make(eos_every=NEVER)
    run(scheduler, delta(branch("a", text("ab"), gen(max_new_tokens=2)), end=False))
    with pytest.raises(RequestError, match="node 2 of branch 'a', which has 2 nodes; send those nodes before"):
        scheduler.submit(parse_delta(delta(branch("b", ref("a", 2), gen()))), lambda event: None)
    more = {"id": "a", "first": 2, "nodes": [gen(max_new_tokens=2)]}
    events = run(scheduler, delta(branch("b", ref("a", 2), gen(max_new_tokens=1)), more))
    assert result(events, "b", 1)["event"] == "done"


def test_ids_can_be_waited_for():
    source = branch("a", {"kind": "ids", "ids": [70]}, gen(max_new_tokens=2))
    reader = branch("b", ref("a", 0, count=2, part="none"), text("q"), gen(max_new_tokens=1))
    events = run(make(eos_every=NEVER), delta(source, reader))
    assert [e["branch"] for e in events] == ["a", "b"]
    assert events[1]["ids"] == expected(ids_of("q"), 1, NEVER)


# -- a model of it


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_equal_the_texts_sent_by_hand(seed: int):
    """Any acyclic graph of references, in any split into deltas, with little memory: each prompt is what the client
    would have written."""
    draw = random.Random(seed)
    small = draw.random() < 0.5
    scheduler = make(num_slots=400 if small else 4000, context=256, max_rows=draw.choice([1, 2, 8]), eos_every=NEVER)
    names = [f"b{i}" for i in range(draw.randint(2, 7))]
    nodes: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    meant: dict[tuple[str, int], str] = {}  # text of each node
    said: dict[str, str] = dict.fromkeys(names, "")
    order: list[str] = []
    for _ in range(draw.randint(8, 30)):
        name = draw.choice(names)
        place = (name, len(nodes[name]))
        kind = draw.random()
        if kind < 0.4 or not meant or len(said[name]) > 120:
            meant[place] = draw.choice("klmnop") * draw.randint(0, 3)
            nodes[name].append(text(meant[place]))
        elif kind < 0.7:
            source = draw.choice(list(meant))
            if len(said[name]) + len(meant[source]) > 150:
                continue
            meant[place] = meant[source]
            nodes[name].append(ref(*source))
        else:
            n = draw.randint(1, 5)
            meant[place] = letters(expected(ids_of(said[name]), n, NEVER))
            nodes[name].append(gen(max_new_tokens=n))
        said[name] += meant[place]
        order.append(name)
    events: list[dict[str, Any]] = []
    sent = dict.fromkeys(names, 0)
    done = 0
    while done < len(order):
        size = draw.randint(1, len(order) - done)
        wanted = {n: order[done : done + size].count(n) for n in names}
        done += size
        chosen = [n for n in names if wanted[n]]
        draw.shuffle(chosen)
        parts = [{"id": n, "first": sent[n], "nodes": nodes[n][sent[n] : sent[n] + wanted[n]]} for n in chosen]
        for n in chosen:
            sent[n] += wanted[n]
        scheduler.submit(parse_delta(delta(*parts, end=done == len(order))), events.append)()
        for _ in range(draw.randint(0, 4)):
            scheduler.step()
    while scheduler.step():
        pass
    scheduler.check()
    gens = {(n, k) for n in names for k, node in enumerate(nodes[n]) if node["kind"] == "gen"}
    assert {(e["branch"], e["node"]): e.get("text") for e in events} == {place: meant[place] for place in gens}
    assert not scheduler.graph.programs and not scheduler.memory.leases


# -- leases


def test_a_lease_runs_out_and_the_text_can_still_be_referred_to():
    scheduler = make(eos_every=NEVER, lease=10.0)
    (first,) = run(scheduler, delta(branch("a", text("ab" * 20), gen(max_new_tokens=4)), end=False))
    program = scheduler.graph.programs["p"]
    scheduler.graph.expire(program.touched + 9.0)
    assert len(scheduler.memory.leases) == 1
    scheduler.graph.expire(program.touched + 11.0)
    assert not scheduler.memory.leases and scheduler.cache.evictable == scheduler.cache.size
    assert scheduler.flush_cache()
    more = {"id": "a", "first": 2, "nodes": [text("c"), gen(max_new_tokens=2)]}
    events = run(scheduler, delta(more, branch("b", ref("a", 1), gen(max_new_tokens=2))))
    said = letters(first["ids"])
    assert result(events, "a", 3)["ids"] == expected(ids_of("ab" * 20 + said + "c"), 2, NEVER)
    assert result(events, "b", 1)["ids"] == expected(ids_of(said), 2, NEVER)


def test_a_program_that_is_silent_for_very_long_is_forgotten():
    scheduler = make(eos_every=NEVER, lease=10.0)
    run(scheduler, delta(branch("a", text("ab"), gen(max_new_tokens=4)), end=False))
    scheduler.graph.expire(scheduler.graph.programs["p"].touched + 601.0)
    assert not scheduler.graph.programs
    with pytest.raises(RequestError, match="unknown branch 'a'"):
        scheduler.submit(parse_delta(delta(branch("b", ref("a", 1)))), lambda event: None)


def test_who_waits_does_not_expire_while_its_source_runs():
    scheduler = make(eos_every=NEVER, lease=10.0)
    events: list[dict[str, Any]] = []
    reader = branch("b", text("q" * 40), gen(max_new_tokens=1), ref("a", 1), gen(max_new_tokens=2))
    nodes = delta(branch("a", text("ab"), gen(max_new_tokens=30)), reader, end=False)
    scheduler.submit(parse_delta(nodes), events.append)()
    for _ in range(5):
        scheduler.step()
    assert len(scheduler.memory.leases) == 1
    scheduler.graph.expire(scheduler.graph.programs["p"].touched + 10_000.0)
    while scheduler.step():
        pass
    assert result(events, "b", 3)["event"] == "done"


# -- forks


def test_children_share_the_ids_of_a_parent_without_a_row():
    scheduler = make()
    prefix = [{"kind": "ids", "ids": [97] * 400}]
    children = [{"id": f"c{i}", "parent": "r", "at": 1, "nodes": []} for i in range(50)]
    scheduler.submit(parse_delta({"program": "p", "branches": [{"id": "r", "nodes": prefix}, *children]}), print)()
    branches = scheduler.graph.programs["p"].branches
    assert all(branches[f"c{i}"].ids().base is not None for i in range(50))
    assert all(branches[f"c{i}"].ids().tolist() == [97] * 400 for i in range(50))


def test_a_cancelled_subtree_ends_and_its_siblings_go_on():
    scheduler: Scheduler = make(eos_every=NEVER)
    tree = [
        branch("r", text("ab"), gen(max_new_tokens=2)),
        *[branch(f"c{i}", text("x"), gen(max_new_tokens=30), parent="r", at=2) for i in range(2)],
        *[
            branch(f"c{i}.{k}", text("y"), gen(max_new_tokens=30), parent=f"c{i}", at=2)
            for i in range(2)
            for k in (0, 1)
        ],
    ]
    events: list[dict[str, Any]] = []
    scheduler.submit(parse_delta(delta(*tree)), events.append)()
    for _ in range(5):
        scheduler.step()
    scheduler.graph.cancel("p", ["c0"])
    while scheduler.step():
        pass
    scheduler.check()
    ended = {e["branch"]: e["event"] for e in events}
    assert ended == {"r": "done", "c1": "done", "c1.0": "done", "c1.1": "done"} | dict.fromkeys(
        ("c0", "c0.0", "c0.1"), "error"
    )
    assert not scheduler.graph.programs and scheduler.flush_cache()
