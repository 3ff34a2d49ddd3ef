"""Deadlines, bounded queues, a watchdog and an orderly end, of the engine as a library."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stemma.backend.engine import Engine
from stemma.backend.scheduler import pressure
from stemma.lang.errors import DeadlineError, EndpointError, EngineDeadError, RequestError

LONG = {"max_new_tokens": 200, "temperature": 0, "ignore_eos": True}


def slow_down(engine: Engine, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of this engine takes at least so long."""
    run = engine.runner.run

    def slow(plan: Any) -> Any:
        time.sleep(seconds)
        return run(plan)

    monkeypatch.setattr(engine.scheduler.runner, "run", slow, raising=False)


def submit(engine: Engine, delta: dict[str, Any]) -> queue.SimpleQueue[dict[str, Any]]:
    events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    engine.submit(delta, events.put)
    return events


def delta(program: str, *nodes: dict[str, Any], end: bool = True, **more: Any) -> dict[str, Any]:
    return {"program": program, "branches": [{"id": "r", "nodes": list(nodes)}], "end": end, **more}


def text(words: str = "hello") -> dict[str, Any]:
    return {"kind": "text", "text": words}


def gen(**more: Any) -> dict[str, Any]:
    return {"kind": "gen", "params": LONG, **more}


def idle(engine: Engine) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        state = engine.state()
        if not (state["running"] or state["waiting"] or state["unsettled"]):
            return state["error"] is None and state["rows_used"] == 0
        time.sleep(0.01)
    return False


def test_a_request_that_takes_longer_than_its_timeout_is_stopped(engine, monkeypatch):
    slow_down(engine, 0.01, monkeypatch)
    with pytest.raises(DeadlineError, match=r"longer than its timeout of 0.05 s") as caught:
        engine.generate("hello", LONG, timeout=0.05)
    assert isinstance(caught.value, TimeoutError) and caught.value.status == 408
    assert idle(engine)
    assert engine.generate("hello", {"max_new_tokens": 2}, timeout=30)["text"] is not None


def test_a_timeout_holds_for_those_that_wait_too(tiny_model: Path, monkeypatch):
    with Engine(tiny_model, load_format="dummy", max_total_tokens=1000, num_threads=1, max_running_requests=1) as one:
        slow_down(one, 0.005, monkeypatch)
        first = submit(one, delta("a", text(), gen()))
        late = submit(one, delta("b", text(), gen(), timeout=0.1))
        event = late.get(timeout=10)
        assert event["error"]["type"] == "DeadlineError" and event["error"]["status"] == 408
        assert first.get(timeout=30)["event"] == "done", "the one that runs does not notice"
        assert idle(one)


def test_the_timeout_of_a_gen_begins_when_its_turn_comes(engine, monkeypatch):
    slow_down(engine, 0.002, monkeypatch)
    events = submit(engine, delta("turns", text(), gen(), text("more"), gen(timeout=0.05), gen()))
    assert events.get(timeout=30)["event"] == "done", "0.4 s before the second gen began"
    second, third = events.get(timeout=10), events.get(timeout=10)
    assert [second["node"], third["node"]] == [3, 4]
    assert second["error"]["message"] == third["error"]["message"] == "it took longer than its timeout of 0.05 s"
    assert idle(engine)


def test_a_timeout_ends_a_gen_whose_grammar_is_still_being_made(engine, monkeypatch):
    monkeypatch.setattr(engine.scheduler.graph, "compile", lambda constraint, done: None)  # it never comes
    constraint = {"kind": "regex", "value": "a+"}
    event = submit(engine, delta("compiling", text(), gen(constraint=constraint, timeout=0.1))).get(timeout=5)
    assert event["error"]["type"] == "DeadlineError"
    assert idle(engine)


def test_deadlines_of_what_has_ended_take_no_memory(engine):
    deadlines = engine.scheduler.graph.deadlines
    for i in range(60):
        submit(engine, delta(f"quick {i}", text(), timeout=1000))
    assert idle(engine) and len(deadlines) >= 60
    with engine.scheduler.graph._lock:
        for _ in range(1100):
            deadlines.add(pressure_program(), (("r", 1),), 1000, time.monotonic())
        assert deadlines.take(time.monotonic(), {}) == [] and len(deadlines) == 0


def pressure_program() -> Any:
    from stemma.backend.scheduler.branch import Program

    return Program("gone", 1, None)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), "soon", True])
def test_a_timeout_must_be_seconds(engine, timeout):
    with pytest.raises(RequestError, match="timeout"):
        engine.generate("hello", timeout=timeout)


def test_too_many_that_wait_are_refused_with_a_time_to_come_again(tiny_model: Path, monkeypatch):
    options = {"max_total_tokens": 1000, "num_threads": 1, "max_running_requests": 1, "max_queued_requests": 2}
    with Engine(tiny_model, load_format="dummy", **options) as small:
        slow_down(small, 0.005, monkeypatch)
        kept = [submit(small, delta(f"{i}", text(), gen(), end=False)) for i in range(3)]  # one runs, two wait
        with pytest.raises(
            RequestError, match=r"too many requests: \d are waiting \(max_queued_requests is 2\)"
        ) as full:
            submit(small, delta("one more", text(), gen()))
        assert full.value.status == 429 and full.value.retry_after is not None and full.value.retry_after >= 1
        more = {"program": "0", "branches": [{"id": "r", "first": 2, "nodes": [gen()]}], "end": True}
        assert submit(small, more).get(timeout=30)["event"] == "done", "a program under way goes on"
        assert [events.get(timeout=30)["event"] for events in kept] == ["done"] * 3
        with pytest.raises(RequestError, match=r"9 branches in one delta are more than can wait"):
            small.generate(["x"] * 2, {"n": 8, "max_new_tokens": 1})
        for i in range(3):
            small.cancel(f"{i}")
        assert idle(small) and small.state()["refused"] == 1
        assert small.generate("hello", {"max_new_tokens": 1})["meta_info"]["completion_tokens"] == 1


def test_a_pause_is_what_the_queue_takes_at_the_rate_of_late():
    now = 100.0
    made = pressure.Pressure(4, 1, clock=lambda: now)
    made.unsettled = 8
    for now in (101.0, 102.0, 103.0, 104.0):  # noqa: B007
        made.settled()
    now = 105.0
    assert made.rate() == pytest.approx(1.0)
    from stemma.backend.messages import parse_delta

    with pytest.raises(RequestError) as refused:
        made.check(parse_delta(delta("p", text())), None, waiting=30, programs=1)
    assert refused.value.retry_after == pytest.approx(30.0)


def test_a_program_that_is_gone_says_why(engine):
    submit(engine, delta("cut", text(), end=False))
    engine.cancel("cut")
    assert idle(engine)
    with pytest.raises(RequestError, match=r"the program was ended: cancelled") as gone:
        submit(engine, {"program": "cut", "branches": [{"id": "r", "first": 1, "nodes": [gen()]}]})
    assert (gone.value.status, gone.value.param) == (410, None)
    with pytest.raises(RequestError, match=r"unknown parent 'r'; the program is not known") as unknown:
        submit(engine, {"program": "never", "branches": [{"id": "r.0", "parent": "r", "nodes": [gen()]}]})
    assert (unknown.value.status, unknown.value.param) == (410, "program")


def test_a_program_whose_client_is_silent_for_long_is_forgotten(tiny_model: Path):
    with Engine(tiny_model, load_format="dummy", max_total_tokens=1000, num_threads=1, lease_seconds=0.005) as hasty:
        submit(hasty, delta("silent", text(), {"kind": "gen", "params": {"max_new_tokens": 1}}, end=False))
        deadline = time.monotonic() + 10
        while hasty.state()["programs"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(RequestError, match=r"was ended: no delta came for \d+ s"):
            submit(hasty, {"program": "silent", "branches": [{"id": "r", "first": 2, "nodes": [gen()]}]})


def test_programs_that_lie_idle_are_bounded(tiny_model: Path, monkeypatch):
    monkeypatch.setattr(pressure, "MAX_TEXT", 50_000)
    monkeypatch.setattr(pressure, "MAX_PROGRAMS", 8)
    options = {"max_total_tokens": 1000, "num_threads": 1, "max_queued_requests": 100}
    with Engine(tiny_model, load_format="dummy", **options) as bounded:
        for i in range(12):
            submit(bounded, delta(f"idle {i}", text("x"), end=False))
        deadline = time.monotonic() + 10
        while bounded.state()["programs"] > 8:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        submit(bounded, {"program": "idle 11", "branches": [{"id": "r", "first": 1, "nodes": [text()]}]})
        with pytest.raises(RequestError, match="too many programs lay idle"):
            submit(bounded, {"program": "idle 0", "branches": [{"id": "r", "first": 1, "nodes": [text()]}]})
        submit(bounded, delta("large", text("y" * 60_000), end=False))
        while bounded.state()["programs"] > 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_hanging_step_is_reported_to_everybody_and_ends_the_engine(tiny_model: Path, monkeypatch, capfd):
    stuck = Engine(tiny_model, load_format="dummy", max_total_tokens=1000, num_threads=1, watchdog_timeout=3.0)
    try:
        assert stuck.generate("hello", {"max_new_tokens": 2})
        time.sleep(3.3)  # idle: nothing happens
        assert stuck.generate("hello", {"max_new_tokens": 2})
        back = threading.Event()
        died: queue.SimpleQueue[str] = queue.SimpleQueue()
        stuck.on_death = died.put
        run = stuck.runner.run

        inside = threading.Event()

        def hang(plan: Any) -> Any:
            inside.set()
            back.wait(20)
            return run(plan)

        monkeypatch.setattr(stuck.scheduler.runner, "run", hang, raising=False)
        events = submit(stuck, delta("hangs", text(), gen(), gen()))
        asked: list[BaseException] = []

        def ask() -> None:
            try:
                stuck.load()
            except EngineDeadError as error:
                asked.append(error)

        assert inside.wait(10)
        waiting = threading.Thread(target=ask)
        waiting.start()
        told = [events.get(timeout=10), events.get(timeout=10)]
        assert all("a step has not come back for 3 s" in event["error"]["message"] for event in told)
        waiting.join(10)
        assert asked and "watchdog_timeout" in died.get(timeout=10)
        with pytest.raises(EngineDeadError, match="has not come back"):
            stuck.generate("hello")
        back.set()
        stuck._thread.join(10)
        assert not stuck._thread.is_alive() and events.empty(), "no node is answered twice"
    finally:
        stuck.shutdown()
    said = capfd.readouterr().err
    assert "test_bounds.py" in said and "in hang" in said, "the stacks tell where"


def test_drain_lets_programs_finish_and_takes_no_new_ones(tiny_model: Path, monkeypatch):
    with Engine(tiny_model, load_format="dummy", max_total_tokens=1000, num_threads=1) as ending:
        slow_down(ending, 0.003, monkeypatch)
        events = submit(ending, delta("last", text(), gen(), end=False))
        assert not ending.drain(timeout=0.01)
        with pytest.raises(EndpointError, match="takes no new programs") as refused:
            ending.generate("hello")
        assert refused.value.status == 503
        more = {"program": "last", "branches": [{"id": "r", "first": 2, "nodes": [gen()]}], "end": True}
        later = submit(ending, more)
        assert ending.drain()
        assert events.get(timeout=1)["event"] == later.get(timeout=1)["event"] == "done"


def test_a_watchdog_of_zero_is_none(tiny_model: Path):
    def watchdogs() -> int:
        return sum(thread.name == "stemma-watchdog" for thread in threading.enumerate())

    before = watchdogs()
    with Engine(tiny_model, load_format="dummy", max_total_tokens=500, num_threads=1, watchdog_timeout=0) as engine:
        assert engine.generate("hello", {"max_new_tokens": 1})
        assert watchdogs() == before
