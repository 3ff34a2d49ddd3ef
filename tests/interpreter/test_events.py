"""The events of a program: complete, in order, for any reader, whatever becomes of the program."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

import stemma
from stemma import (
    AsyncProgramState,
    Event,
    Forked,
    Joined,
    NodeDelta,
    NodeEvent,
    NodeFailed,
    NodeFinished,
    NodeStarted,
    ProgramEnded,
    ProgramState,
    RequestError,
    ScriptedEndpoint,
    ToolFinished,
    ToolStarted,
    function,
    gen,
    select,
    user,
)
from stemma.lang.errors import CancelledError

E = TypeVar("E", bound=Event)


def of(kind: type[E], events: Iterable[Event]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def rest(state: Any) -> list[Event]:
    return list(state.events(timeout=5))


def check(state: ProgramState, events: list[Event]) -> None:
    """What holds for every stream of events: one end, each node once, and the texts are the program's."""
    assert [type(e) for e in events].count(ProgramEnded) == 1 and isinstance(events[-1], ProgramEnded)
    branches = state.graph().branches.values()
    ended = [(e.branch_id, e.index) for e in events if isinstance(e, (NodeFinished, NodeFailed))]
    assert sorted(ended) == sorted((b.id, n.index) for b in branches for n in b.nodes)
    texts = {(e.branch_id, e.index): e.text for e in of(NodeFinished, events)}
    assert texts == {(b.id, n.index): n.text for b in branches for n in b.nodes if n.text is not None}
    written: dict[Any, str] = {}
    seen: set[Any] = set()
    for event in events:
        if not isinstance(event, NodeEvent) or event.kind not in ("gen", "select"):
            continue
        place = (event.branch_id, event.index)
        if isinstance(event, NodeStarted):
            assert place not in seen
            seen.add(place)
        elif isinstance(event, NodeDelta):
            assert place in seen
            written[place] = written.get(place, "") + event.text
        elif isinstance(event, NodeFinished):
            assert place in seen and texts[place].startswith(written.get(place, ""))
    at = {type(e).__name__ + e.branch_id: i for i, e in enumerate(events) if isinstance(e, Forked)}
    for i, event in enumerate(events):  # nothing happens in a branch before it is forked
        if isinstance(event, NodeEvent) and event.branch_id != "r":
            assert at["Forked" + event.branch_id.rpartition(".")[0]] < i or event.branch_id.count(".") > 1


@function
def tree(s: ProgramState):
    s += user("Go.") + gen("a")
    forks = s.fork(2)
    forks += lambda i: f"{i}: " + gen("b") + select("c", ["yes", "no"])
    forks.join()
    s += "Then " + s.ref("b", 0) + gen("d")


@pytest.mark.parametrize("stream", [False, True])
def test_a_program_with_forks_tells_everything(stream: bool):
    state = tree.run(backend=ScriptedEndpoint({"a": "one two", "b": "three", "d": "four"}), stream=stream)
    events = rest(state)
    check(state, events)
    (forked,), (joined,) = of(Forked, events), of(Joined, events)
    assert (forked.branch, forked.forks, forked.fork_ids) == ("", ("fork 0/2", "fork 1/2"), ("r.0", "r.1"))
    assert (joined.branch, joined.forks) == ("", forked.forks)
    assert [e.text for e in of(NodeDelta, events) if e.name == "a"] == (["one", " two"] if stream else [])
    started = [(e.name, e.branch) for e in of(NodeStarted, events)]
    assert started[0] == ("a", "") and started[-1] == ("d", "") and len(started) == 6
    assert "gen 'b' at" in of(NodeStarted, events)[1].node and "fork" in of(NodeStarted, events)[1].node
    assert events[-1] == ProgramEnded("", "r", None)


def test_events_are_frozen():
    event = ProgramEnded("", "r", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.branch = "other"  # type: ignore[misc]


def test_a_gen_starts_when_what_is_before_it_is_there():
    endpoint = ScriptedEndpoint({"x": "1", "y": "2"}, latency=0.05)
    state = function(lambda s: s.append("q" + gen("x") + "!" + gen("y"))).run(backend=endpoint, stream=True)
    kinds = [(type(e), e.name) for e in rest(state) if isinstance(e, NodeEvent) and e.kind == "gen"]
    assert [k for k in kinds if k[0] is not NodeDelta] == [
        (NodeStarted, "x"), (NodeFinished, "x"), (NodeStarted, "y"), (NodeFinished, "y"),
    ]  # fmt: skip


def test_events_come_as_they_happen_and_a_late_reader_misses_nothing():
    go = threading.Event()

    def second(prompt: str, node: Any) -> str:
        go.wait(5)
        return "two"

    @function
    def program(s: ProgramState):
        s += gen("first")
        assert s["first"]
        s += gen("second")

    state = program.run(backend=ScriptedEndpoint({"first": "one", "second": second}), stream=True)
    live = state.events(timeout=5)
    before = []
    for event in live:
        before.append(event)
        if isinstance(event, NodeFinished):
            break
    assert [e.text for e in of(NodeFinished, before)] == ["one"]  # the program has not ended
    go.set()
    whole = before + list(live)
    check(state, whole)
    assert rest(state) == whole == rest(state)


def test_readers_in_several_threads_see_the_same():
    state = tree.run(backend=ScriptedEndpoint(latency=0.005), stream=True)
    seen: list[list[Event]] = [[] for _ in range(6)]
    threads = [threading.Thread(target=lambda into=into: into.extend(state.events(timeout=5))) for into in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    check(state, seen[0])
    assert all(one == seen[0] for one in seen)


def test_a_failure_is_an_event_of_each_node_that_it_reaches():
    endpoint = ScriptedEndpoint({"a": "one", "b": ValueError("no luck"), "c": "x", "d": "y"})

    @function
    def program(s: ProgramState):
        s += gen("a")
        forks = s.fork(2)
        forks[0] += gen("b") + gen("c")
        forks[1] += gen("d")

    state = program.run(backend=endpoint, stream=True)
    events = rest(state)
    check(state, events)
    failed = of(NodeFailed, events)
    assert [(e.name, e.branch) for e in failed] == [("b", "fork 0/2"), ("c", "fork 0/2")]
    assert all("no luck" in str(e.error) and "gen 'b' at" in e.message for e in failed)
    assert {e.name for e in of(NodeFinished, events)} == {"a", "d"}
    assert events[-1] == ProgramEnded("", "r", None)  # the body itself returned
    with pytest.raises(stemma.ProgramError):
        state.sync()  # reading events tells nobody


def test_a_body_that_raises_ends_the_events():
    @function
    def program(s: ProgramState):
        s += gen("a")
        s += str(1 // len(s["a"]) // 0)

    state = program.run(backend=ScriptedEndpoint(), stream=True)
    events = rest(state)
    check(state, events)
    end = events[-1]
    assert isinstance(end, ProgramEnded) and isinstance(end.error, ZeroDivisionError)


def test_cancelling_ends_the_events():
    state = function(lambda s: s.append(gen("a") + gen("b"))).run(backend=ScriptedEndpoint(latency=30), stream=True)
    live = state.events(timeout=5)
    assert isinstance(next(live), NodeStarted)
    state.cancel()
    events = list(live)
    assert [e.name for e in of(NodeFailed, events)] == ["a", "b"]
    assert all(isinstance(e.error, CancelledError) for e in of(NodeFailed, events))
    assert isinstance(events[-1], ProgramEnded)


def test_a_race_cancels_the_losers_and_says_so():
    @function
    def program(s: ProgramState):
        forks = s.fork(2)
        forks += lambda i: gen(f"x{i}")
        return forks.race()["x1"]

    state = program.run(backend=ScriptedEndpoint(latency=lambda prompt, node: 20 * (node["name"] == "x0")))
    events = rest(state)
    check(state, events)
    assert [e.name for e in of(NodeFailed, events)] == ["x0"] and [e.name for e in of(NodeFinished, events)] == ["x1"]


def test_a_timeout_of_the_reader():
    state = function(lambda s: s.append(gen("a"))).run(backend=ScriptedEndpoint(latency=30), stream=True)
    began = time.perf_counter()
    with pytest.raises(TimeoutError, match="the next event was not ready in time"):
        list(state.events(timeout=0.05))
    assert time.perf_counter() - began < 5
    state.cancel()


def test_tool_calls_are_events():
    def double(n: int) -> int:
        return n * 2

    def broken(n: int) -> int:
        raise OSError("gone")

    @function
    def program(s: ProgramState):
        s += gen("one", tools=[double])
        s["one"].run()
        s += gen("two", tools=[broken])
        s["two"].run(on_error="return")

    replies = ['{"name": "double", "arguments": {"n": 4}}', '{"name": "broken", "arguments": {"n": 4}}']
    state = program.run(backend=ScriptedEndpoint(replies), stream=True)
    events = rest(state)
    check(state, events)
    assert [(e.tool, e.arguments, e.name) for e in of(ToolStarted, events)] == [
        ("double", {"n": 4}, "one"),
        ("broken", {"n": 4}, "two"),
    ]
    assert [(e.result, e.error) for e in of(ToolFinished, events)] == [("8", None), (None, "OSError: gone")]


def test_coroutines_read_them_and_two_readers_share_a_loop():
    @function
    async def program(s: AsyncProgramState):
        s += gen("a")
        forks = s.fork(2)
        forks += gen("b")
        forks.join()
        await s.get_var("b")

    async def read(state: ProgramState) -> list[Event]:
        return [event async for event in state.events_async(timeout=5)]

    async def main() -> tuple[ProgramState, list[list[Event]]]:
        state = await program.arun(backend=ScriptedEndpoint(latency=0.005), stream=True)
        return state, list(await asyncio.gather(read(state), read(state)))

    state, (first, second) = asyncio.run(main())
    check(state, first)
    assert first == second == rest(state)


def refused(read: Callable[[Any], Any]) -> None:
    @function
    def program(s: ProgramState):
        s += "x"
        read(s)

    with pytest.raises(RequestError, match="read them from outside"):
        program.run(backend=ScriptedEndpoint())


def test_a_body_cannot_wait_for_its_own_end():
    refused(lambda s: s.events())
    refused(lambda s: s.events_async())


def test_the_log_holds_no_text():
    words = " ".join(f"w{i}" for i in range(500))
    state = function(lambda s: s.append(gen("a"))).run(backend=ScriptedEndpoint({"a": words}), stream=True)
    assert len(of(NodeDelta, rest(state))) == 500
    log = state._run.log
    assert len(log) == 502  # started, 500 pieces, finished
    assert sum(entry is state.graph().root.nodes[0] for entry in log._entries) == 500


def test_a_program_that_says_nothing_ends():
    state = function(lambda s: None).run(backend=ScriptedEndpoint())
    assert rest(state) == [ProgramEnded("", "r", None)]


def test_on_the_engine(engine: Any):
    state = tree.run(backend=engine, stream=True, max_new_tokens=8, temperature=0)
    events = rest(state)
    check(state, events)
    assert "".join(e.text for e in of(NodeDelta, events) if e.name == "a") == state["a"]


@pytest.fixture(scope="module")
def engine():
    with stemma.Engine(num_threads=1) as made:
        yield made
        made.check()
