"""The lowering itself, over a service that is a coroutine: order, forks, limits, cancelling, retries."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from stemma import ProgramState, function, gen, user
from stemma.interpreter.endpoints import retry
from stemma.interpreter.endpoints.asking import Answer
from stemma.interpreter.endpoints.loop import background_loop
from stemma.interpreter.endpoints.lowering import LoweredEndpoint
from stemma.interpreter.endpoints.retry import Failed
from stemma.lang.errors import CancelledError, EndpointError, ProgramError, RequestError
from tests.interpreter.test_endpoints import Events, branch, root, send

GEN = {"kind": "gen", "params": {}, "constraint": None, "logprobs": None, "stream": False}


def text(value: str) -> dict[str, Any]:
    return {"kind": "text", "text": value}


class Busy(Exception):
    def __init__(self, again: bool = True, retry_after: float | None = 0.0) -> None:
        super().__init__("busy")
        self.failed = Failed(EndpointError("busy", status=429), again, retry_after)


class Fake(LoweredEndpoint):
    """Answers each prompt with its length; `before` may wait or raise first, and may pass text on."""

    def __init__(self, before: Callable[..., Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.before = before
        self.prompts: list[str] = []
        self.running = self.most = 0
        self.stopped = 0

    def check(self, node, asked, shape, speculative):
        if asked is not None and asked.params.top_k != -1:
            raise RequestError("no top_k here", param="top_k")

    async def generate(self, prompt, asked, call):
        written = prompt.as_text(self.marker)

        async def ask() -> Answer:
            self.prompts.append(written)
            if self.before is not None:
                await self.before(written, call)
            return Answer(f"<{len(written)}>", {"type": "stop", "matched": None}, 3, 1)

        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await call.send(ask)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            self.running -= 1

    def failed(self, error):
        return error.failed if isinstance(error, Busy) else Failed(EndpointError(f"broke: {error}"))


@pytest.fixture
def fake():
    made: list[Fake] = []

    def make(*args: Any, **options: Any) -> Fake:
        made.append(Fake(*args, **options))
        return made[-1]

    yield make
    for endpoint in made:
        endpoint.close()


def test_gens_of_a_branch_run_in_order_and_see_all_text_before_them(fake):
    endpoint = fake()
    state = function(lambda s: s.append("ab" + gen("x") + "cd" + gen("y"))).run(backend=endpoint)
    assert state.text() == "ab<2>cd<7>" and endpoint.prompts == ["ab", "ab<2>cd"]
    assert state.get_meta_info("x")["retries"] == 0
    assert state.usage()["prompt_tokens"] == 6 and endpoint.token_usage.prompt_tokens == 6


def test_forks_start_where_they_were_forked_and_run_side_by_side(fake):
    together = asyncio.Event()

    async def wait(prompt, call):
        if prompt.startswith("root|"):
            if endpoint.running == 4:
                together.set()
            await asyncio.wait_for(together.wait(), 5)

    endpoint = fake(wait)

    @function
    def program(s: ProgramState):
        s += "root|"
        forks = s.fork(4)
        for i, fork in enumerate(forks):
            fork += f"{i}" + gen("x")
        forks.join()
        return s["x"]

    assert program.run(backend=endpoint).ret_value == ["<6>"] * 4
    assert endpoint.most == 4


def test_a_fork_after_a_gen_waits_for_it_and_one_before_does_not(fake):
    events = send(
        endpoint := fake(),
        "p",
        root([text("a"), GEN, text("b")]),
        branch("r.0", [GEN], parent="r", at=3),
        branch("r.1", [text("c"), GEN], parent="r", at=1),
    ).until(3)
    assert sorted(e["text"] for e in events) == ["<1>", "<2>", "<5>"]
    assert set(endpoint.prompts) == {"a", "ac", "a<1>b"}


def test_a_fork_of_a_later_delta_starts_where_its_parent_has_been(fake):
    endpoint = fake()
    send(endpoint, "p", root([text("a"), GEN, text("b")], end=False), end=False).until(1)
    forks = [branch(f"r.{at}", [GEN], parent="r", at=at) for at in (1, 2, 3)]
    send(endpoint, "p", *forks).until(3)
    assert sorted(endpoint.prompts) == ["a", "a", "a<1>", "a<1>b"]


def test_no_more_requests_are_out_than_max_in_flight(fake):
    async def wait(prompt, call):
        await asyncio.sleep(0.002)

    endpoint = fake(wait, max_in_flight=3)

    @function
    def program(s: ProgramState):
        forks = s.fork(20)
        forks += "q" + gen("x")
        forks.join()
        return len(s["x"])

    assert program.run(backend=endpoint).ret_value == 20
    assert endpoint.most == 3


def test_thousands_of_programs_wait_as_tasks_and_not_as_threads(fake):
    gate = asyncio.Event()

    async def wait(prompt, call):
        await gate.wait()

    endpoint = fake(wait, max_in_flight=5000)
    before = threading.active_count()
    events = [send(endpoint, f"p{i}", root([text("q"), GEN])) for i in range(2000)]
    until = time.monotonic() + 10
    while endpoint.running < 2000 and time.monotonic() < until:
        time.sleep(0.01)
    assert endpoint.running == 2000 and threading.active_count() <= before + 1
    background_loop().call_soon_threadsafe(gate.set)
    assert all(e.until(1)[0]["text"] == "<1>" for e in events)
    assert not endpoint._programs


def test_what_cannot_be_done_fails_before_anything_is_asked_and_only_from_there_on(fake):
    endpoint = fake()
    bad = {**GEN, "params": {"top_k": 5}}
    late = branch("r.0", [text("x"), GEN], parent="r", at=4)
    events = send(endpoint, "p", root([text("a"), GEN, text("b"), bad, GEN]), late).until(4)
    assert [(e["event"], e["branch"], e["node"]) for e in events] == [
        ("error", "r", 3),
        ("error", "r", 4),
        ("error", "r.0", 1),
        ("done", "r", 1),
    ]
    assert endpoint.prompts == ["a"]


def test_a_later_delta_to_a_failed_branch_fails_once(fake):
    endpoint = fake()
    bad = {**GEN, "params": {"top_k": 5}}
    send(endpoint, "p", root([bad], end=False), end=False).until(1)
    events = send(endpoint, "p", branch("r", [text("t"), GEN], first=1), branch("r.0", [GEN], parent="r", at=2))
    assert [(e["branch"], e["node"]) for e in events.until(2)] == [("r", 2), ("r.0", 0)]


def test_an_exception_of_the_service_is_an_error_at_the_node(fake):
    async def broken(prompt, call):
        raise ValueError("strange")

    with pytest.raises(ProgramError, match=r"gen 'x' at .*test_lowering.py:\d+: broke: strange"):
        function(lambda s: s.append("a" + gen("x"))).run(backend=fake(broken))["x"]


def test_an_unknown_kind_of_node_is_an_error_at_that_node(fake):
    events = send(fake(), "p", root([text("a"), {"kind": "ids", "ids": [1]}, GEN])).until(2)
    assert [(e["event"], e["node"]) for e in events] == [("error", 1), ("error", 2)]
    assert "'ids' node" in events[0]["error"]["message"]


def test_a_field_that_nobody_here_knows_is_an_error_and_not_ignored(fake):
    (event,) = send(fake(), "p", root([text("a"), {**GEN, "tools": ["t"], "other": None}])).until(1)
    assert "cannot run a gen with tools" in event["error"]["message"]


@pytest.mark.parametrize("wrong", [{"kind": "text"}, {"kind": "role_begin", "role": 3}, {}])
def test_a_malformed_node_is_an_error_and_never_silence(fake, wrong):
    events = send(fake(), "p", root([wrong, GEN])).until(1)
    assert events[-1]["event"] == "error"


def test_cancelling_a_branch_stops_its_request_and_leaves_the_others(fake):
    gate = asyncio.Event()

    async def wait(prompt, call):
        if "stop" in prompt:
            await gate.wait()

    endpoint = fake(wait)

    @function
    def program(s: ProgramState):
        one, two = s.fork(2)
        one += "stop" + gen("x")
        two += "go on" + gen("x")
        assert two["x"] == "<5>"
        one.cancel()
        with pytest.raises(ProgramError, match="cancelled"):
            one["x"]
        return True

    assert program.run(backend=endpoint).ret_value
    until = time.monotonic() + 5
    while not endpoint.stopped and time.monotonic() < until:
        time.sleep(0.005)
    assert endpoint.stopped == 1 and endpoint.running == 0


def test_a_program_cancelled_while_it_waits_for_its_turn_is_settled_and_forgotten(fake):
    gate = asyncio.Event()

    async def wait(prompt, call):
        await gate.wait()

    endpoint = fake(wait, max_in_flight=1)
    first = send(endpoint, "first", root([text("a"), GEN]))
    events = Events()
    endpoint.submit({"program": "p", "branches": [root([text("b"), GEN, GEN], end=False)], "end": False}, events.take)
    endpoint.cancel("p")
    assert [e["error"]["type"] for e in events.until(2)] == [CancelledError.__name__] * 2
    background_loop().call_soon_threadsafe(gate.set)
    assert first.until(1)[0]["event"] == "done" and endpoint.prompts == ["a"]
    until = time.monotonic() + 5
    while endpoint._programs and time.monotonic() < until:
        time.sleep(0.005)
    assert not endpoint._programs and not endpoint.open_branches


def test_closing_fails_what_is_unfinished_and_what_comes_later(fake):
    async def wait(prompt, call):
        await asyncio.sleep(30)

    endpoint = fake(wait)
    events = send(endpoint, "p", root([text("a"), GEN]))
    until = time.monotonic() + 5
    while not endpoint.running and time.monotonic() < until:
        time.sleep(0.005)
    endpoint.close()
    endpoint.close()
    assert "was closed" in events.until(1)[0]["error"]["message"]
    assert "is closed" in send(endpoint, "p2", root([GEN])).until(1)[0]["error"]["message"]


# --- retries


def failing(*faults: BaseException):
    left = list(faults)

    async def before(prompt, call):
        if left:
            raise left.pop(0)

    return before


def test_a_busy_service_is_asked_again_and_the_retries_are_counted(fake):
    endpoint = fake(failing(Busy(), Busy()))
    state = function(lambda s: s.append("a" + gen("x"))).run(backend=endpoint)
    assert state["x"] == "<1>" and state.get_meta_info("x")["retries"] == 2


def test_retries_end(fake):
    endpoint = fake(failing(Busy(), Busy(), Busy()), max_retries=1)
    with pytest.raises(ProgramError, match="busy"):
        function(lambda s: s.append("a" + gen("x"))).run(backend=endpoint)["x"]
    assert len(endpoint.prompts) == 2


@pytest.mark.parametrize("fault", [Busy(again=False), Busy(retry_after=61.0), ValueError("other")])
def test_what_may_have_run_or_would_wait_too_long_is_not_asked_again(fake, fault):
    endpoint = fake(failing(fault))
    with pytest.raises(ProgramError):
        function(lambda s: s.append("a" + gen("x"))).run(backend=endpoint)["x"]
    assert len(endpoint.prompts) == 1


def test_nothing_is_asked_again_after_a_piece_of_the_answer_came(fake):
    async def half(prompt, call):
        call.text("half")
        raise Busy()

    endpoint = fake(half)
    state = function(lambda s: s.append("a" + gen("x"))).run(backend=endpoint, stream=True)
    pieces = state.text_iter("x")
    assert next(pieces) == "half"
    with pytest.raises(ProgramError, match="busy"):
        next(pieces)
    assert len(endpoint.prompts) == 1


def test_pauses_double_with_jitter_and_have_a_limit(monkeypatch):
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: 1.0)
    again = Failed(EndpointError("x"), again=True)
    assert [retry.pause_before(i, again, 99) for i in (0, 1, 2, 9)] == [0.25, 0.5, 1.0, 8.0]
    assert retry.pause_before(2, again, 2) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    assert retry.retry_after(headers) == seconds


@pytest.mark.parametrize("option", [{"max_in_flight": 0}, {"max_retries": -1}, {"timeout": 0}, {"max_retries": True}])
def test_options_are_checked(option):
    with pytest.raises(RequestError, match=next(iter(option))):
        Fake(**option)


def test_role_markers_are_readable(fake):
    state = function(lambda s: s.append(user("hi" + gen("x")))).run(backend=fake())
    assert state.text() == "user: hi<8>\n"
