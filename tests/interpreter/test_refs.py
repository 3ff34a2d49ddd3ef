"""What a program quotes of its other branches: found by the engine where it can, with nothing else changed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

import stemma
from stemma import (
    ProgramState,
    ReplayEndpoint,
    RuntimeEndpoint,
    ScriptedEndpoint,
    assistant,
    function,
    gen,
    select,
    token_length_normalized,
    user,
)
from stemma.interpreter.endpoints.local import LocalEndpoint
from stemma.interpreter.trace import Trace
from stemma.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from stemma.lang.errors import CancelledError, EndpointError, ProgramError

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine():
    with stemma.Engine(num_threads=1) as made:
        yield made
        made.check()


class Counting(LocalEndpoint):
    """Keeps the deltas; sends nothing before it must, as if the body took no time."""

    quiet_seconds = None

    def __init__(self, engine: Any, refs: bool = True) -> None:
        super().__init__(engine)
        self.refs = refs
        self.seen: list[Any] = []

    def resolves_refs(self) -> bool:
        return self.refs and super().resolves_refs()

    def submit(self, delta: Any, on_event: Any) -> None:
        self.seen.append(json.loads(json.dumps(delta)))
        super().submit(delta, on_event)

    @property
    def kinds(self) -> set[str]:
        return {node["kind"] for delta in self.seen for branch in delta["branches"] for node in branch["nodes"]}


class First(ChoicesSamplingMethod):
    def __call__(self, *, choices: list[str], **scores: Any) -> ChoicesDecision:
        return ChoicesDecision(choices[0])


@function
def tree_of_thought(s: ProgramState):
    s += "Question: what is a river?\n"
    forks = s.fork(4)
    forks += lambda i: f"Idea {i}:" + gen("idea")
    forks.join()
    for i in range(4):
        s += f"{i}. " + s.ref("idea", i) + "\n"
    s += "Best:" + gen("best")


@function
def nested(s: ProgramState):
    """Three thoughts, three steps under each; every level is joined into the one above."""
    s += "Think.\n"
    outer = s.fork(3)
    for i, thought in enumerate(outer):
        thought += f"Thought {i}:" + gen("thought")
        steps = thought.fork(3)
        steps += lambda k: f" step {k}:" + gen("step")
        steps.join("concate_and_append")
        thought += " so" + gen("sum")
    outer.join()
    s += "In all: " + s.ref("sum", 0) + s.ref("sum", 1) + s.ref("sum", 2) + gen("all")


@function
def chat(s: ProgramState):
    s += user("Say a word.")
    with s.assistant(), s.var_scope("said"):
        s += gen("word") + " or " + select("other", ["this", "that"])
    (child,) = s.fork()
    child += user("You said: " + s.ref("said")) + assistant(gen("more"))
    s += user("And: " + child.ref("more") + s.ref("word")) + assistant(gen("end"))


@function
def samples(s: ProgramState):
    s += "A name:" + gen("name", n=3, temperature=0.9, seed=5)
    s += "\nAll: " + s.ref("name", 1) + ", " + s.ref("name", 2) + "." + gen("end")


@function
def looking(s: ProgramState):
    s += "One:"
    forks = s.fork(2)
    forks += gen("x")
    s += forks[0]["x"] + gen("y")
    s += forks[1].ref("x") + gen("z")


@function
def decided(s: ProgramState):
    s += "Which? " + select("which", ["red", "blue"], choices_method=First()) + gen("why")
    (child,) = s.fork()
    child += "Not " + s.ref("which") + "," + s.ref("why") + gen("end")


PROGRAMS = [(tree_of_thought, 1), (nested, 1), (chat, 1), (samples, 1), (looking, 2), (decided, None)]


def rounded(value: Any) -> Any:
    """Log-probabilities differ in their last digits when a prompt is cached."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def account(state: ProgramState) -> Any:
    """Everything that a user can see, without times."""
    graph = state.graph()
    record = graph.to_dict()
    nodes = [node for branch in graph.branches.values() for node in branch.nodes]
    times = ("queue_time", "ttft", "e2e_latency")
    for branch in record["branches"]:
        for entry in branch["nodes"]:
            entry.pop("times", None)
            for name in (*times, "cached_tokens", "computed_tokens"):
                entry.get("meta", {}).pop(name, None)
    record.pop("program")
    record = rounded(record)
    said = state.messages() if any(n.kind == "role_begin" for n in nodes) else None
    return state.text(), said, record, [n.meta.get("prompt_ids") for n in nodes], state.explain().to_dict()


@pytest.mark.parametrize(("program", "submissions"), PROGRAMS, ids=lambda p: getattr(p, "__name__", ""))
def test_nothing_but_the_round_trips_changes(engine: Any, program: Any, submissions: int | None):
    found = []
    for refs in (False, True):
        endpoint = Counting(engine, refs)
        state = program.run(backend=endpoint, trace=True, **GREEDY)
        state.sync(30)
        found.append(account(state))
        assert refs or "ref" not in endpoint.kinds
        assert "ref" in endpoint.kinds or not refs or submissions != 1  # one that looks may find the text there
        if refs and submissions is not None:
            assert len(endpoint.seen) == submissions
        assert "ref" not in json.dumps([n.wire["kind"] for b in state.graph().branches.values() for n in b.nodes])
    for off, on in zip(*found, strict=True):
        assert on == off


def test_a_program_of_three_stages_is_one_request_over_http(serve: Callable[..., Any], engine: Any):
    server = serve(LocalEndpoint(engine))

    class Patient(RuntimeEndpoint):
        quiet_seconds = None

    endpoint = Patient(server.url)
    states = [program.run(backend=endpoint, **GREEDY) for program in (tree_of_thought, nested)]
    for state in states:
        state.sync(30)
    endpoint.close()
    asked = [path for _, path, *_ in server.requests]
    assert sorted(asked) == ["/get_model_info", "/v1/graph", "/v1/graph"]
    assert states[0]["best"] == tree_of_thought.run(backend=Counting(engine, False), **GREEDY)["best"]


def test_a_server_that_does_not_say_so_gets_no_references(serve: Callable[..., Any]):
    server = serve(ScriptedEndpoint(lambda prompt, node: f"<{len(prompt)}>"))
    endpoint = RuntimeEndpoint(server.url)
    states = [tree_of_thought.run(backend=endpoint) for _ in range(3)]
    texts = {state.text() for state in states}
    endpoint.close()
    assert len(texts) == 1
    sent = [body for _, path, body, _ in server.requests if path == "/v1/graph"]
    kinds = {node["kind"] for body in sent for branch in body["branches"] for node in branch["nodes"]}
    assert "ref" not in kinds
    assert sum(path == "/get_model_info" for _, path, *_ in server.requests) == 1


def test_a_server_that_cannot_answer_is_asked_again_later(serve: Callable[..., Any]):
    def refuse(handler: Any) -> bool:
        if handler.path == "/get_model_info":
            handler.answer(503, {"error": "not yet"})
        return handler.path == "/get_model_info"

    server = serve(ScriptedEndpoint(), refuse)
    endpoint = RuntimeEndpoint(server.url)
    assert endpoint.resolves_refs() is False and endpoint.resolves_refs() is False
    assert len(server.requests) == 1  # not at once
    endpoint._ask_refs_at = 0.0
    assert endpoint.resolves_refs() is False
    assert len(server.requests) == 2
    endpoint.close()


def test_an_event_loop_never_waits_for_the_answer(serve: Callable[..., Any], engine: Any):
    server = serve(LocalEndpoint(engine))
    endpoint = RuntimeEndpoint(server.url)

    @function
    async def joined(s: stemma.AsyncProgramState):
        forks = s.fork(2)
        forks += "A:" + gen("a")
        forks.join()
        s += s.ref("a", 0) + s.ref("a", 1) + gen("b")

    async def both() -> set[str]:
        return {(await joined.arun(backend=endpoint, **GREEDY)).text() for _ in range(2)}

    assert len(asyncio.run(both())) == 1
    assert sum(path == "/get_model_info" for _, path, *_ in server.requests) <= 1
    endpoint.close()


# -- failures


@function
def failing(s: ProgramState):
    s += "Go."
    forks = s.fork(2)
    forks[0] += "a" + gen("x", max_tokens=99_999)
    forks[1] += "b" + gen("x")
    s += "Joined: " + forks[0].ref("x") + gen("end")
    (after,) = s.fork()
    after += gen("after")


def test_a_failure_reads_the_same(engine: Any):
    said = []
    for refs in (False, True):
        state = failing.run(backend=Counting(engine, refs), **GREEDY)
        with pytest.raises(ProgramError) as caught:
            state["end"]
        assert "99999 for the completion" in str(caught.value)
        graph = state.graph()
        with pytest.raises(ProgramError):
            state.sync(20)
        said.append([str(caught.value), *(str(n.failure) for b in graph.branches.values() for n in b.nodes)])
    assert said[0] == said[1]


def test_a_cancelled_branch_fails_who_quotes_it(engine: Any):
    @function
    def cancelling(s: ProgramState):
        forks = s.fork(2)
        forks += lambda i: f"{i}" + gen("x", max_tokens=1500)
        s += forks[0].ref("x") + gen("end")
        s._run.flush()
        forks[0].cancel()
        return forks[1].ref("x").name

    state = cancelling.run(backend=Counting(engine), temperature=0.0, ignore_eos=True)
    with pytest.raises(ProgramError) as caught:
        state["end"]
    assert isinstance(caught.value.__cause__, CancelledError)
    state.cancel()


def test_an_endpoint_that_dies_fails_what_waits():
    class Dying(ScriptedEndpoint):
        capabilities = ScriptedEndpoint.capabilities | {"refs"}

        def submit(self, delta: Any, on_event: Any) -> None:
            raise EndpointError("gone")

    state = tree_of_thought.run(backend=Dying())
    with pytest.raises(ProgramError, match="gone"):
        state["best"]


# -- with the other ways to run


def test_a_record_of_a_run_with_references_replays(engine: Any):
    state = nested.run(backend=Counting(engine), **GREEDY)
    record = state.record()
    again = nested.run(backend=ReplayEndpoint(record), **GREEDY)
    assert again.text() == state.text() and again["all"] == state["all"]


def test_graphs_and_traces_say_what_is_quoted(engine: Any):
    state = tree_of_thought.run(backend=Counting(engine), **GREEDY)
    state.sync(20)
    root = state.graph().root.nodes
    assert [node.quotes for node in root if node.quotes] == [[f"r.{i}:1"] for i in range(4)]
    record = state.graph().to_dict()
    again = type(state.graph()).from_dict(record)
    assert again.to_dict() == record
    shown = state.trace().data["nodes"]
    assert [node["quotes"] for node in shown if "quotes" in node] == [[f"r.{i}:1"] for i in range(4)]
    assert [node["quotes"] for node in Trace.of(again).data["nodes"] if "quotes" in node] == [
        n.quotes for n in root if n.quotes
    ]


def test_merged_programs_are_not_given_references(engine: Any):
    endpoint = Counting(engine)
    state = tree_of_thought.run(backend=endpoint, merge_identical=True, **GREEDY)
    assert state["best"] == tree_of_thought.run(backend=Counting(engine), **GREEDY)["best"]
    assert "ref" not in endpoint.kinds


def test_streams_tell_the_quoted_text(engine: Any):
    seen = []
    for refs in (False, True):
        state = tree_of_thought.run(backend=Counting(engine, refs), stream=True, **GREEDY)
        seen.append("".join(state.text_iter()))
        assert seen[-1] == state.text()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_are_the_same(engine: Any, seed: int):
    """Forks, gens and quotes of anything said before, in any order."""

    def body(s: ProgramState) -> None:
        draw = random.Random(seed)
        states, names = [s], []
        for k in range(draw.randint(10, 40)):
            state = draw.choice(states)
            what = draw.random()
            if what < 0.3:
                state += draw.choice(["One ", "river", "\n", " and", "é"]) * draw.randint(1, 3)
            elif what < 0.6:
                state += gen(f"g{k}", max_tokens=draw.randint(1, 5))
                names.append((state, f"g{k}"))
            elif what < 0.65:
                state += select(f"g{k}", ["yes", "no"], choices_method=token_length_normalized)
                names.append((state, f"g{k}"))
            elif what < 0.85 and names:
                source, name = draw.choice(names)
                state += source.ref(name)
            elif len(states) < 8:
                states += list(state.fork(draw.randint(1, 3)))

    texts, ids, deltas = [], [], []
    for refs in (False, True):
        endpoint = Counting(engine, refs)
        state = function(body).run(backend=endpoint, temperature=0.0, ignore_eos=True, trace=True)
        state.sync(30)
        nodes = [node for branch in state.graph().branches.values() for node in branch.nodes]
        texts.append([node.text for node in nodes])
        ids.append([(node.ids, node.meta.get("prompt_ids")) for node in nodes])
        deltas.append(len(endpoint.seen))
    assert texts[0] == texts[1] and ids[0] == ids[1]
    assert deltas[1] <= 1
