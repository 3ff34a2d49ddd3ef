"""Each way to fail × each kind of node × each way to read: an error that names the user's line, and never a hang."""

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from stemma import AsyncProgramState, ProgramState, RuntimeEndpoint, ScriptedEndpoint, function, gen, select, user
from stemma.interpreter.endpoints.base import Endpoint
from stemma.lang.errors import CancelledError, ProgramError

SECONDS = 10.0  # the watchdog of a cell: a hang becomes a TimeoutError, which no cell expects
KINDS = ("gen", "select", "role_begin", "role_end")
FAULTS = ("endpoint error", "endpoint raises", "timeout", "server killed", "cancelled", "exception in body")


class Faulty(Endpoint):
    """Answers every node but those of one kind: these fail, or nothing is ever heard of them."""

    quiet_seconds = None

    def __init__(self, kind: str, how: str) -> None:
        self.kind, self.how = kind, how
        self.stopped: set[tuple[str, str]] = set()

    def submit(self, delta, on_event):
        nodes = [(b["id"], i, n) for b in delta["branches"] for i, n in enumerate(b["nodes"], b["first"])]
        if self.how == "raise" and any(node["kind"] == self.kind for _, _, node in nodes):
            raise ConnectionError("boom")
        for branch, index, node in nodes:
            self._node((delta["program"], branch), index, node, on_event)

    def _node(self, branch, index, node, on_event):
        at = {"branch": branch[1], "node": index}
        if node["kind"] == self.kind or branch in self.stopped:
            self.stopped.add(branch)
            if self.how == "fail" and node["kind"] != "text":
                on_event({"event": "error", **at, "error": {"type": "EndpointError", "message": "boom"}})
        elif node["kind"] in ("gen", "select"):
            on_event({"event": "done", **at, "text": "ok", "ids": [], "meta": {}})
        elif node["kind"] != "text":
            on_event({"event": "text", **at, "text": ""})

    def cancel(self, program, branches=None):
        return None


def say(s: Any) -> None:
    s += user("q" + gen("g") + select("c", choices=["ok"]))
    s += user(gen("last"))


async def _async_iterate(s: ProgramState) -> list[str]:
    return [piece async for piece in s.text_async_iter(timeout=SECONDS)]


READERS: dict[str, Callable[[ProgramState], Any]] = {
    "item": lambda s: s["last"],
    "text": lambda s: s.text(SECONDS),
    "iterate": lambda s: list(s.text_iter(timeout=SECONDS)),
    "async iterate": lambda s: asyncio.run(_async_iterate(s)),
    "messages": lambda s: s.messages(SECONDS),
}
ASYNC_READERS: dict[str, Callable[[AsyncProgramState], Any]] = {
    "item": lambda s: s["last"],
    "text": lambda s: s.text(SECONDS),
    "iterate": lambda s: _collect(s),
    "messages": lambda s: s.messages(SECONDS),
}


async def _collect(s: AsyncProgramState) -> list[str]:
    return [piece async for piece in s.text_iter()]


@pytest.fixture
def faulty(serve, request) -> Callable[[str, str], tuple[Endpoint, dict[str, Any]]]:
    """The endpoint of a fault, and what `run` is told besides."""

    def kills(kind: str) -> Callable[[Any], bool]:
        def handle(handler: Any) -> bool:
            nodes = [n for b in (handler.body or {}).get("branches") or () if isinstance(b, dict) for n in b["nodes"]]
            if not any(node["kind"] == kind for node in nodes):
                return False
            handler.close_connection = True
            handler.begin_stream()
            handler.connection.close()
            return True

        return handle

    def make(fault: str, kind: str) -> tuple[Endpoint, dict[str, Any]]:
        if fault == "endpoint error":
            return Faulty(kind, "fail"), {}
        if fault == "endpoint raises":
            return Faulty(kind, "raise"), {}
        if fault == "timeout":
            return Faulty(kind, "silence"), {"timeout": 0.1}
        if fault == "cancelled":
            return Faulty(kind, "silence"), {}
        if fault == "server killed":
            endpoint = RuntimeEndpoint(serve(ScriptedEndpoint(), kills(kind)).url)
            request.addfinalizer(endpoint.close)
            return endpoint, {}
        return ScriptedEndpoint(lambda prompt, node: "ok"), {}

    return make


def expect(fault: str, reader: Callable[[], Any]) -> None:
    """The reader raises a `ProgramError` with the user's line, in time."""
    caught: list[BaseException] = []

    def read() -> None:
        try:
            reader()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "hangs"
    assert caught, "swallowed"
    error = caught[0]
    assert isinstance(error, ProgramError), error
    if fault == "exception in body":
        assert "LookupError: mine" in str(error)
    else:
        assert re.search(r"test_fault_matrix\.py:\d+", str(error)), error
    assert error.__cause__ is not None


def start(fault: str, kind: str, faulty: Any, body: Callable[..., Any]) -> ProgramState:
    endpoint, options = faulty(fault, kind)
    state = function(body).run(backend=endpoint, stream=True, **options)
    if fault == "cancelled":
        threading.Timer(0.05, state.cancel).start()
    return state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_outside(fault, reader, kind, faulty):
    def body(s: ProgramState):
        say(s)
        if fault == "exception in body":
            raise LookupError("mine")

    state = start(fault, kind, faulty, body)
    if fault == "exception in body" and reader in ("item", "messages"):
        # a value that was there before the body raised may be read; the program as a whole has failed
        expect(fault, lambda: state.ret_value)
    else:
        expect(fault, lambda: READERS[reader](state))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", ASYNC_READERS)
@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "exception in body"])
def test_inside_an_async_program(fault, reader, kind, faulty):
    async def body(s: AsyncProgramState):
        say(s)
        await ASYNC_READERS[reader](s)

    endpoint, options = faulty(fault, kind)

    async def main() -> None:
        state = await function(body).arun(backend=endpoint, stream=True, **options)
        if fault == "cancelled":
            asyncio.get_running_loop().call_later(0.05, state.cancel)
        async with asyncio.timeout(SECONDS):
            await _async_iterate(state)

    expect(fault, lambda: asyncio.run(main()))


@pytest.mark.parametrize("mode", ["gather_variable", "concate_and_append"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_join(fault, kind, mode, faulty):
    def body(s: ProgramState):
        s += "start "
        forks = s.fork(2)
        for fork in forks:
            say(fork)
        if fault == "exception in body":
            raise LookupError("mine")
        forks.join(mode)
        return s["last"] if mode == "gather_variable" else s.text()

    state = start(fault, kind, faulty, body)
    expect(fault, lambda: state.ret_value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_batch(fault, kind, faulty):
    endpoint, options = faulty(fault, kind)
    states: list[Any] = []

    @function
    def program(s: ProgramState, i: int):
        states.append(s)
        if fault == "cancelled":
            threading.Timer(0.05, s.cancel).start()
        say(s)
        if fault == "exception in body":
            raise LookupError("mine")

    expect(fault, lambda: program.run_batch([(0,), (1,)], backend=endpoint, **options))
    if fault == "cancelled":
        assert isinstance(states[0].error(1).__cause__, CancelledError)
