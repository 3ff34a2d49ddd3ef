"""When deltas leave and what is in them; how events find their readers."""

import threading
from typing import Any

import pytest

from stemma import ProgramState, ScriptedEndpoint, assistant, function, gen, select, user
from stemma.interpreter.endpoints.base import Endpoint
from stemma.interpreter.runtime import Run
from stemma.interpreter.state import ProgramState as State
from stemma.interpreter.wire import RunOptions, error_from_wire, error_to_wire
from stemma.lang.errors import CancelledError, EndpointError, EngineDeadError, ProgramError, RequestError


class Silent(Endpoint):
    """Keeps what it is sent; answers only when told to."""

    quiet_seconds: float | None = None

    def __init__(self) -> None:
        self.deltas: list[dict[str, Any]] = []
        self.cancels: list[Any] = []
        self.came = threading.Event()
        self.on_event: Any = None

    def submit(self, delta, on_event):
        self.deltas.append(delta)
        self.on_event = on_event
        self.came.set()

    def cancel(self, program, branches=None):
        self.cancels.append(branches)

    def done(self, branch: str, node: int, text: str = "text") -> None:
        self.on_event({"event": "done", "branch": branch, "node": node, "text": text, "ids": [], "meta": {}})


def begin(endpoint: Endpoint, **options: Any) -> ProgramState:
    """A state whose body is the test."""
    run = Run(endpoint, RunOptions.of(options))
    return State(run, run.graph.root)


def kinds(delta: dict[str, Any]) -> dict[str, list[str]]:
    return {b["id"]: [n["kind"] for n in b["nodes"]] for b in delta["branches"]}


def test_a_straight_run_of_text_and_gens_is_one_delta():
    @function
    def program(s: ProgramState):
        s += "a" + gen("x")
        s += "b"
        s += gen("y", stop=".") + "c"

    endpoint = ScriptedEndpoint()
    program.run(backend=endpoint).sync()
    (delta,) = endpoint.deltas
    assert kinds(delta) == {"r": ["text", "gen", "text", "gen", "text"]}
    assert (delta["end"], delta["branches"][0]["end"]) == (True, True)


def test_the_siblings_of_a_fork_and_nested_forks_are_one_delta():
    @function
    def program(s: ProgramState):
        s += "a"
        forks = s.fork(2)
        forks += gen("x")
        for fork in forks:
            for inner in fork.fork(2):
                inner += gen("y")
        forks.join()
        return s["x"]

    endpoint = ScriptedEndpoint()
    program.run(backend=endpoint).sync()
    first, last = endpoint.deltas
    assert list(kinds(first)) == ["r", "r.0", "r.1", "r.0.0", "r.0.1", "r.1.0", "r.1.1"]
    assert [b["end"] for b in first["branches"]] == [False, *[True] * 6]
    assert [(b["parent"], b["at"]) for b in first["branches"][1:4]] == [("r", 1), ("r", 1), ("r.0", 1)]
    assert last == {"program": first["program"], "branches": [], "end": True}
    assert endpoint.open_branches == set()


def test_a_node_on_the_wire_has_exactly_the_fields_of_the_contract():
    endpoint = Silent()
    s = begin(endpoint)
    s += user("q") + gen("x", 4, regex="a+", return_logprob=True) + select("y", choices=["u"])
    s._run.flush()
    assert endpoint.deltas[0]["branches"] == [
        {
            "id": "r",
            "parent": None,
            "at": 0,
            "first": 0,
            "nodes": [
                {"kind": "role_begin", "role": "user"},
                {"kind": "text", "text": "q"},
                {"kind": "role_end", "role": "user"},
                {
                    "kind": "gen",
                    "params": {"max_new_tokens": 4},
                    "constraint": {"kind": "regex", "value": "a+"},
                    "logprobs": {"start": -1, "top": 0, "ids": None},
                    "stream": False,
                },
                {
                    "kind": "select",
                    "choices": ["u"],
                    "method": "token_length_normalized",
                    "temperature": 0.0,
                    "seed": None,
                },
            ],
            "end": False,
        }
    ]


def test_later_deltas_name_the_number_of_nodes_sent_before():
    endpoint = Silent()
    s = begin(endpoint)
    s += "a" + gen("x")
    s._run.flush()
    (child,) = s.fork()
    s += "b"
    child += "c"
    s._run.flush()
    s._run.flush()  # nothing new: nothing sent
    assert [(b["id"], b["first"]) for d in endpoint.deltas for b in d["branches"]] == [("r", 0), ("r", 2), ("r.0", 0)]
    assert endpoint.deltas[1]["branches"][1]["at"] == 2


def test_a_silent_parent_is_introduced_with_its_child():
    endpoint = Silent()
    s = begin(endpoint)
    (child,) = s.fork()
    (grandchild,) = child.fork()
    s.fork(2)
    grandchild += gen("x")
    s._run.flush()
    assert [b["id"] for b in endpoint.deltas[0]["branches"]] == ["r", "r.0", "r.0.0"]


def test_a_program_that_says_nothing_sends_nothing():
    endpoint = ScriptedEndpoint()
    function(lambda s: None).run(backend=endpoint)
    assert endpoint.deltas == []


def test_forking_and_joining_neither_sends_nor_waits():
    endpoint = Silent()
    s = begin(endpoint)
    s += "a" + gen("x")
    forks = s.fork(3)
    forks += gen("y")
    forks.join()
    assert endpoint.deltas == []
    assert "y" in s


def test_a_moment_of_quiet_sends_what_was_said():
    endpoint = Silent()
    endpoint.quiet_seconds = 0.001
    s = begin(endpoint)
    s += "a" + gen("x")
    assert endpoint.came.wait(5)
    assert kinds(endpoint.deltas[0]) == {"r": ["text", "gen"]}
    assert endpoint.deltas[0]["end"] is False


def test_one_thread_serves_the_quiet_of_all_programs():
    endpoints = [Silent() for _ in range(20)]
    for endpoint in endpoints:
        endpoint.quiet_seconds = 0.001
        begin(endpoint).append(gen("x"))
    assert all(endpoint.came.wait(5) for endpoint in endpoints)
    assert sum(thread.name == "stemma-quiet" for thread in threading.enumerate()) == 1


def test_a_reader_wakes_when_its_value_comes_and_times_out_when_not():
    endpoint = Silent()
    s = begin(endpoint)
    s += gen("x") + gen("y")
    with pytest.raises(TimeoutError, match=r"gen 'x' at .*test_runtime.py:\d+ was not ready in time"):
        s.get_var("x", timeout=0.001)
    for read in (s.text, s.messages, s.sync, s.usage):
        with pytest.raises(TimeoutError):
            read(timeout=0.001)
    with pytest.raises(TimeoutError):
        next(s.text_iter(timeout=0.001))
    endpoint.done("r", 0, "one")
    assert s["x"] == "one"
    with pytest.raises(TimeoutError):
        s.get_meta_info("y", timeout=0.001)


def test_events_about_settled_or_unknown_nodes_change_nothing():
    endpoint = Silent()
    s = begin(endpoint)
    s += gen("x")
    s._run.flush()
    endpoint.done("r", 0, "one")
    endpoint.done("r", 0, "two")
    endpoint.done("nowhere", 3)
    endpoint.on_event({"event": "error", "branch": "r", "node": 0, "error": {"type": "EndpointError", "message": "!"}})
    assert s["x"] == "one"


def test_an_error_without_an_address_fails_all_that_is_unfinished():
    endpoint = Silent()
    s = begin(endpoint)
    s += gen("x") + gen("y")
    s._run.flush()
    endpoint.done("r", 0, "one")
    endpoint.on_event({"event": "error", "error": {"type": "EngineDeadError", "message": "gone"}})
    assert s["x"] == "one"
    with pytest.raises(ProgramError, match="the endpoint refused the program: gone") as caught:
        s["y"]
    assert isinstance(caught.value.__cause__, EngineDeadError)


def test_an_error_fails_what_hangs_from_the_node_and_nothing_else():
    endpoint = Silent()
    s = begin(endpoint)
    s += "a"
    (before,) = s.fork()
    s += gen("x")
    (after,) = s.fork()
    before += gen("y")
    after += gen("z")
    s += gen("later")
    s._run.flush()
    error = {"type": "RequestError", "message": "too long", "param": "stop", "status": 400}
    endpoint.on_event({"event": "error", "branch": "r", "node": 1, "error": error})
    endpoint.done("r.0", 0, "fine")
    assert before["y"] == "fine"
    for state, name in ((s, "x"), (s, "later"), (after, "z")):
        with pytest.raises(ProgramError, match=r"gen 'x' at .*: too long") as caught:
            state[name]
        assert caught.value.where and "test_runtime.py" in caught.value.where
        assert isinstance(caught.value.__cause__, RequestError) and caught.value.__cause__.param == "stop"
    with pytest.raises(ProgramError, match="too long"):
        after.append("x")


def test_an_error_reaches_a_grandchild_whose_parent_never_said_anything():
    endpoint = Silent()
    s = begin(endpoint)
    (sibling,) = s.fork()
    s += gen("x")
    (child,) = s.fork()
    (grandchild,) = child.fork()
    grandchild += gen("y")
    sibling += gen("z")
    s._run.flush()
    endpoint.on_event({"event": "error", "branch": "r", "node": 0, "error": {"type": "EndpointError", "message": "no"}})
    with pytest.raises(ProgramError, match=r"gen 'y' at .* because of gen 'x' at .*: no"):
        grandchild.get_var("y", timeout=5)
    endpoint.done("r.0", 0, "fine")
    assert sibling["z"] == "fine"


def test_forks_a_thousand_deep_are_no_problem():
    endpoint = Silent()
    s = begin(endpoint)
    for _ in range(2000):
        s += "a"
        (s,) = s.fork()
    s += gen("x")
    s._run.flush()
    assert len(s._branch.lineage()) == 2001
    s._run.fail(EndpointError("no"))
    with pytest.raises(ProgramError):
        s.text(5)


def test_a_failure_read_after_the_program_stays_an_error():
    endpoint = Silent()
    s = begin(endpoint)
    (child,) = s.fork()
    child += gen("x")
    s._run.finish(None)
    endpoint.on_event(
        {"event": "error", "branch": "r.0", "node": 0, "error": {"type": "EndpointError", "message": "no"}}
    )
    assert s.error(5) is not None and s.error(5) is not None


def test_an_error_on_a_literal_node_fails_the_branch():
    endpoint = Silent()
    s = begin(endpoint)
    s += "a"
    s._run.flush()
    endpoint.on_event({"event": "error", "branch": "r", "node": 0, "error": {"type": "RequestError", "message": "no"}})
    for read in (s.text, s.messages, s.sync, lambda: list(s.text_iter())):
        with pytest.raises(ProgramError, match=r"text at .*: no"):
            read()


def test_an_endpoint_that_raises_fails_the_nodes_of_the_delta():
    class Broken(Silent):
        def submit(self, delta, on_event):
            raise OSError("no line")

    s = begin(Broken())
    s += "a" + gen("x")
    with pytest.raises(ProgramError, match=r"gen 'x' at .* because of the endpoint failed: OSError: no line") as caught:
        s["x"]
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ProgramError):
        s += "b"


def test_role_markers_come_from_the_endpoint():
    endpoint = Silent()
    s = begin(endpoint)
    s += assistant("hi")
    s._run.flush()
    endpoint.on_event({"event": "text", "branch": "r", "node": 0, "text": "<|a|>"})
    endpoint.on_event({"event": "text", "branch": "r", "node": 2, "text": "<|end|>"})
    assert s.text() == "<|a|>hi<|end|>"


def test_cancelling_wakes_readers_at_once_and_tells_the_endpoint():
    endpoint = Silent()
    s = begin(endpoint)
    s += gen("x")
    forks = s.fork(2)
    forks += gen("y")
    s._run.flush()
    endpoint.done("r", 0, "kept")
    forks[0].cancel()
    s.cancel()
    assert endpoint.cancels == [["r.0"], None]
    assert s["x"] == "kept"
    with pytest.raises(ProgramError, match="the program was cancelled") as caught:
        forks[1]["y"]
    assert isinstance(caught.value.__cause__, CancelledError)
    with pytest.raises(ProgramError, match="cancelled"):
        s += "more"
    s._run.finish(None)
    assert len(endpoint.deltas) == 1  # a cancelled program needs no goodbye


def test_cancelling_what_was_never_sent_tells_nobody():
    endpoint = Silent()
    s = begin(endpoint)
    s += gen("x")
    s.cancel()
    assert (endpoint.cancels, endpoint.deltas) == ([], [])
    with pytest.raises(ProgramError, match="cancelled"):
        s["x"]


def test_cancelling_a_program_that_is_done_loses_nothing():
    endpoint = ScriptedEndpoint()
    state = function(lambda s: s.append(gen("x"))).run(backend=endpoint)
    state.sync()
    state.cancel()
    assert state.text() == "x"


@pytest.mark.parametrize(
    "error", [RequestError("a", param="p"), EndpointError("b", status=503), EngineDeadError("c"), CancelledError("d")]
)
def test_errors_cross_the_wire_with_type_message_and_field(error):
    back = error_from_wire(error_to_wire(error))
    assert type(back) is type(error) and str(back) == str(error)
    assert getattr(back, "param", None) == getattr(error, "param", None)


def test_an_unknown_error_type_becomes_an_endpoint_error_that_names_it():
    assert str(error_from_wire({"type": "OutOfMemory", "message": "no slots"})) == "OutOfMemory: no slots"
    assert str(error_from_wire(error_to_wire(KeyError("k")))) == "KeyError: 'k'"


def test_forked_processes_have_a_quiet_timer_of_their_own():
    from stemma.interpreter import timers

    before = timers._quiet
    timers._restart_after_fork()
    assert timers._quiet is not before and timers._quiet._thread is None
    timers._quiet = before
