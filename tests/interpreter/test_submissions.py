"""How often a program goes to its endpoint: once, unless it reads."""

from __future__ import annotations

from typing import Any

import pytest

import stemma
from stemma import ProgramState, RuntimeEndpoint, ScriptedEndpoint, function, gen, user
from stemma.interpreter.endpoints.local import LocalEndpoint


@function
def straight(s: ProgramState):
    for i in range(6):
        s += f"{i}: " + gen(f"x{i}", max_tokens=4)


@function
def forked(s: ProgramState):
    s += user("Go.")
    forks = s.fork(8)
    forks += lambda i: f"{i}: " + gen("x", max_tokens=4)
    forks.join()


@function
def staged(s: ProgramState):
    s += gen("a", max_tokens=4)
    s["a"]
    s += gen("b", max_tokens=4)


PROGRAMS = [(straight, 1, 6), (forked, 1, 8), (staged, 2, 2)]


def gens(deltas: list[Any]) -> int:
    return sum(node["kind"] == "gen" for delta in deltas for branch in delta["branches"] for node in branch["nodes"])


@pytest.mark.parametrize(("program", "submissions", "count"), PROGRAMS)
def test_one_submission_in_process(engine: Any, program: Any, submissions: int, count: int):
    seen: list[Any] = []

    class Counting(LocalEndpoint):
        quiet_seconds = None  # as if the body took no time, however busy the machine is

        def submit(self, delta: Any, on_event: Any) -> None:
            seen.append(delta)
            super().submit(delta, on_event)

    state = program.run(backend=Counting(engine))
    state.sync(20)
    assert (len([d for d in seen if d["branches"]]), gens(seen)) == (submissions, count)
    assert len(seen) == submissions


@pytest.mark.parametrize(("program", "submissions", "count"), PROGRAMS)
def test_one_request_over_http(serve: Any, program: Any, submissions: int, count: int):
    server = serve(ScriptedEndpoint())

    class Patient(RuntimeEndpoint):
        quiet_seconds = None

    endpoint = Patient(server.url)
    program.run(backend=endpoint).sync(20)
    endpoint.close()
    bodies = [body for _, path, body, _ in server.requests if path == "/v1/graph"]
    assert (len(bodies), gens(bodies)) == (submissions, count)
    assert len(server.requests) == submissions


def test_one_request_over_http_to_the_engine(serve: Any, engine: Any):
    server = serve(LocalEndpoint(engine))

    class Patient(RuntimeEndpoint):
        quiet_seconds = None

    endpoint = Patient(server.url)
    states = [program.run(backend=endpoint, temperature=0) for program, _, _ in PROGRAMS]
    assert all(isinstance(straight_text, str) for straight_text in [states[0][f"x{i}"] for i in range(6)])
    assert len(states[1]["x"]) == 8 and isinstance(states[2]["b"], str)
    endpoint.close()
    assert len(server.requests) == sum(submissions for _, submissions, _ in PROGRAMS)


def test_a_batch_submits_each_program_once():
    endpoint = ScriptedEndpoint()
    states = straight.run_batch([{}] * 5, backend=endpoint)
    for state in states:
        state.sync(5)
    assert len(endpoint.deltas) == 5


@pytest.fixture(scope="module")
def engine():
    with stemma.Engine(num_threads=1) as made:
        yield made
        made.check()
