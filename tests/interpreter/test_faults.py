"""The fault matrix: fail each kind of node, read it in every way. An error at the reader each time, never a hang."""

from collections.abc import Callable
from typing import Any

import pytest

from stemma import ProgramState, ScriptedEndpoint, function, gen, select, user
from stemma.interpreter.endpoints.base import Endpoint
from stemma.lang.errors import EndpointError, ProgramError

SECONDS = 5.0  # far more than it takes; a hang would raise TimeoutError, which no test expects


class Failing(Endpoint):
    """Settles every node but the one that it is told to fail, and what comes after it in the branch."""

    quiet_seconds = None

    def __init__(self, kind: str, after_a_piece: bool = False) -> None:
        self.kind = kind
        self.after_a_piece = after_a_piece
        self.failed: set[tuple[str, str]] = set()

    def submit(self, delta, on_event):
        for branch in delta["branches"]:
            for index, node in enumerate(branch["nodes"], branch["first"]):
                self._node((delta["program"], branch["id"]), index, node, on_event)

    def _node(self, branch, index, node, on_event):
        at = {"branch": branch[1], "node": index}
        if node["kind"] == self.kind or branch in self.failed:
            if self.after_a_piece and branch not in self.failed:
                on_event({"event": "delta", **at, "text": "piece", "ids": []})
            self.failed.add(branch)
            if node["kind"] != "text":
                on_event({"event": "error", **at, "error": {"type": "EndpointError", "message": "boom"}})
        elif node["kind"] in ("gen", "select"):
            on_event({"event": "done", **at, "text": "ok", "ids": [], "meta": {}})
        elif node["kind"] != "text":
            on_event({"event": "text", **at, "text": ""})

    def cancel(self, program, branches=None):
        return None


def said(s: ProgramState) -> None:
    s += user("q" + gen("g") + select("c", choices=["ok"]))
    s += user(gen("last"))


KINDS = ("gen", "select", "role_begin", "role_end")
READERS: dict[str, Callable[[ProgramState], Any]] = {
    "s[x]": lambda s: s.get_var("last", SECONDS),
    "raw": lambda s: s.raw("last", SECONDS),
    "get_meta_info": lambda s: s.get_meta_info("last", SECONDS),
    "text": lambda s: s.text(SECONDS),
    "messages": lambda s: s.messages(SECONDS),
    "sync": lambda s: s.sync(SECONDS),
    "text_iter": lambda s: list(s.text_iter(timeout=SECONDS)),
    "text_iter(x)": lambda s: list(s.text_iter("last", timeout=SECONDS)),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_node_is_an_error_at_every_reader_outside(kind, reader, stream):
    state = function(said).run(backend=Failing(kind), stream=stream)
    with pytest.raises(ProgramError, match=rf"{kind}.* at .*test_faults.py:\d+.*boom") as caught:
        READERS[reader](state)
    assert isinstance(caught.value.__cause__, EndpointError)
    assert caught.value.where and "test_faults.py" in caught.value.where


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_node_is_an_error_at_every_reader_inside_and_leaves_the_program(kind, reader):
    def body(s):
        said(s)
        READERS[reader](s)

    with pytest.raises(ProgramError, match="boom"):
        function(body).run(backend=Failing(kind))


@pytest.mark.parametrize("mode", ["gather_variable", "concate_and_append"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_node_in_a_fork_is_an_error_at_join_or_at_the_joined_value(kind, mode):
    def body(s):
        s += "a"
        forks = s.fork(2)
        for fork in forks:
            said(fork)
        forks.join(mode)
        return s["last"] if mode == "gather_variable" else s.text()

    with pytest.raises(ProgramError, match=r"fork \d/2.*boom"):
        function(body).run(backend=Failing(kind))


def test_joining_a_fork_that_is_known_to_have_failed_raises_in_join():
    def body(s):
        forks = s.fork(2)
        forks += gen("x")
        with pytest.raises(ProgramError):
            forks[1].sync()
        forks.join()

    with pytest.raises(ProgramError, match=r"fork .*boom"):
        function(body).run(backend=Failing("gen"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_node_is_an_error_of_its_batch_item(kind):
    batch = [{}, {}]
    with pytest.raises(ProgramError, match=rf"item 0 of 2 \(and 1 more failed\): {kind}.*boom"):
        function(said).run_batch(batch, backend=Failing(kind))
    results = function(said).run_batch(batch, backend=Failing(kind), on_error="return")
    assert [type(result) for result in results] == [ProgramError, ProgramError]


def test_a_failure_in_an_unread_fork_is_an_error_of_the_batch_item_and_of_sync():
    def body(s):
        s.fork(2).__iadd__(gen("x"))

    (result,) = function(body).run_batch([{}], backend=Failing("gen"), on_error="return")
    assert "fork 0/2" in str(result)
    with pytest.raises(ProgramError, match="fork 0/2"):
        function(body).run(backend=Failing("gen")).sync(SECONDS)


def test_a_failure_that_the_program_dealt_with_is_no_error_of_the_batch_item():
    def body(s):
        (fork,) = s.fork(1)
        fork += gen("x")
        try:
            return fork["x"]
        except ProgramError:
            return "instead"

    (state,) = function(body).run_batch([{}], backend=Failing("gen"))
    assert state.ret_value == "instead"


def test_a_stream_gives_its_pieces_and_then_the_error():
    state = function(lambda s: s.append(gen("x"))).run(backend=Failing("gen", after_a_piece=True), stream=True)
    pieces = state.text_iter("x", timeout=SECONDS)
    assert next(pieces) == "piece"
    with pytest.raises(ProgramError, match="boom"):
        next(pieces)


def test_error_returns_the_error_and_usage_still_counts():
    state = function(said).run(backend=Failing("select"))
    assert "boom" in str(state.error(SECONDS))
    assert state.usage(SECONDS)["completion_tokens"] == 0


def test_an_unknown_name_after_a_failure_shows_the_failure():
    def body(s):
        s += gen("x")
        if s["x"]:
            s += gen("never")

    state = function(body).run(backend=Failing("gen"), stream=True)
    with pytest.raises(ProgramError, match=r"gen 'x' at .*boom"):
        state.get_var("never", SECONDS)


@pytest.mark.parametrize("reader", READERS)
def test_a_body_that_raises_while_streaming_is_an_error_at_every_reader(reader):
    def body(s):
        s += user(gen("last"))
        raise LookupError("mine")

    state = function(body).run(backend=ScriptedEndpoint(), stream=True)
    with pytest.raises(ProgramError, match="LookupError: mine") as caught:
        READERS[reader](state)
    assert isinstance(caught.value.__cause__, LookupError)
