"""Records and their replay."""

import json
from pathlib import Path
from typing import Any

import pytest

from stemma import (
    ProgramError,
    ProgramGraph,
    ProgramState,
    Record,
    ReplayEndpoint,
    ReplayError,
    RequestError,
    ScriptedEndpoint,
    assistant,
    function,
    gen,
    select,
    user,
)
from stemma.backend.engine import Engine


@function
def program(s: ProgramState, who: str = "Ada", count: int = 3, length: int = 5):
    s += user(f"Hello {who}.")
    forks = s.fork(count)
    forks += assistant(gen("x", max_tokens=4))
    for i, fork in enumerate(forks):
        fork += user(f"And {i}?") + assistant(gen("y", max_tokens=length))
    forks.join()
    s += assistant(select("z", choices=["yes", "no"]))


def said(state: ProgramState) -> Any:
    """Everything but times and lines."""
    branches = state.graph().to_dict()["branches"]
    return [
        [{k: v for k, v in n.items() if k not in ("times", "where", "pieces")} for n in b["nodes"]] for b in branches
    ]


@pytest.fixture(scope="module")
def recorded(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[ProgramState, Path]:
    state = program.run(backend=engine, temperature=1.0, return_logprob=True)
    return state, state.save(tmp_path_factory.mktemp("record") / "run.json")


def test_a_replay_says_the_same_byte_for_byte(recorded: tuple[ProgramState, Path]):
    state, path = recorded
    endpoint = ReplayEndpoint.load(path)
    again = program.run(backend=endpoint, temperature=1.0, return_logprob=True)
    assert [again[n] for n in "xyz"] == [state[n] for n in "xyz"]
    assert again.text() == state.text() and again.get_meta_info("z") == state.get_meta_info("z")
    assert said(again) == said(state)
    endpoint.check()


def test_other_deltas_make_no_difference(recorded: tuple[ProgramState, Path]):
    """The record is of the program, not of how it was sent: here every value is read at once."""
    state, path = recorded

    @function
    def eager(s):
        s += user("Hello Ada.")
        forks = s.fork(3)
        for fork in reversed(list(forks)):
            fork += assistant(gen("x", max_tokens=4))
            fork["x"]
        for i, fork in enumerate(forks):
            fork += user(f"And {i}?") + assistant(gen("y", max_tokens=5))
            fork["y"]
        forks.join()
        s += assistant(select("z", choices=["yes", "no"]))

    again = eager.run(backend=ReplayEndpoint.load(path), temperature=1.0, return_logprob=True)
    assert said(again) == said(state)


@pytest.mark.parametrize(
    ("arguments", "options", "shows"),
    [
        ({"who": "Bob"}, {}, ["text 'Hello Ada.' at", "text 'Hello Bob.' at", "from character 6 on"]),
        ({"length": 7}, {}, ["gen 'y' at", "params.max_new_tokens: 5 -> 7"]),
        ({}, {"temperature": 0.5}, ["params.temperature: 'not given' -> 0.5"]),
        ({}, {"return_logprob": False}, ["logprobs"]),
        ({"count": 4}, {}, ["forked a branch r.3 that the record does not have"]),
    ],
)
def test_the_first_divergence_is_an_error_with_both_sides(
    recorded: tuple[ProgramState, Path], arguments: dict[str, Any], options: dict[str, Any], shows: list[str]
):
    endpoint = ReplayEndpoint.load(recorded[1])
    state = program.run(backend=endpoint, **{"temperature": 1.0, "return_logprob": True, **options}, **arguments)
    with pytest.raises(ProgramError, match=r"test_replay.py:\d+") as caught:
        state["y"]
    assert isinstance(caught.value.__cause__, ReplayError)
    for text in shows:
        assert text in str(caught.value)
    with pytest.raises(ReplayError, match="diverges from its record"):
        endpoint.check()


def test_a_program_that_stops_early_or_goes_on_is_told():
    @function
    def lines(s, count):
        for i in range(count):
            s += f"{i}" + gen(f"x{i}")

    record = lines.run(2, backend=ScriptedEndpoint()).record()
    shorter = ReplayEndpoint(record)
    lines.run(1, backend=shorter).sync()
    with pytest.raises(
        ReplayError, match=r"the record goes on where the program stopped: gen 'x1' at .*test_replay.py"
    ):
        shorter.check()
    longer = lines.run(3, backend=ReplayEndpoint(record))
    assert longer["x1"] == "x1"
    with pytest.raises(ProgramError, match="the record ends here, the program goes on"):
        longer["x2"]


def test_long_texts_are_compared_line_by_line():
    @function
    def page(s, lines):
        s += "\n".join(lines) + gen("x")

    texts = [f"line {i}" for i in range(30)]
    record = page.run(texts, backend=ScriptedEndpoint()).record()
    state = page.run([*texts[:20], "another", *texts[21:]], backend=ReplayEndpoint(record))
    with pytest.raises(ProgramError) as caught:
        state["x"]
    assert "-line 20" in str(caught.value) and "+another" in str(caught.value) and "line 3\n" not in str(caught.value)


def test_a_recorded_failure_fails_again():
    @function
    def failing(s):
        good, bad = s.fork(2)
        good += gen("good")
        bad += gen("bad") + gen("after")

    state = failing.run(backend=ScriptedEndpoint({"good": "fine", "bad": RequestError("no such thing")}))
    endpoint = ReplayEndpoint(state.record())
    again = failing.run(backend=endpoint)
    error = again.error()
    assert error is not None and "gen 'bad'" in str(error) and "no such thing" in str(error)
    assert isinstance(error.__cause__, RequestError)


def test_a_streamed_run_replays_its_pieces():
    chat = function(lambda s: s.append(gen("x")))
    state = chat.run(backend=ScriptedEndpoint({"x": "one two three"}), stream=True)
    assert state["x"] == "one two three"
    again = chat.run(backend=ReplayEndpoint(state.record()), stream=True)
    assert list(again.text_iter("x")) == ["one", " two", " three"]
    assert chat.run(backend=ReplayEndpoint(state.record()))["x"] == "one two three"


def test_a_batch_replays_item_by_item_even_with_equal_inputs(tmp_path: Path):
    chat = function(lambda s, q: s.append(q + gen("x")))
    numbers = iter(range(100))
    endpoint = ScriptedEndpoint(lambda prompt, node: f"{prompt}{next(numbers)}")
    items = [{"q": q} for q in ("a", "b", "a", "a", "c", "b") * 4]
    states = chat.run_batch(items, backend=endpoint)
    path = Record.of(states).save(tmp_path / "batch.json")
    replaying = ReplayEndpoint.load(path)
    again = chat.run_batch(items, backend=replaying)
    assert [s["x"] for s in again] == [s["x"] for s in states]
    replaying.check()
    with pytest.raises(ProgramError, match="item 24 has no run in the record, which holds 24"):
        chat.run_batch([*items, {"q": "d"}], backend=ReplayEndpoint.load(path))


def test_single_programs_find_their_run_by_what_they_say():
    chat = function(lambda s, q: s.append(q + gen("x")))
    states = [chat.run(q, backend=ScriptedEndpoint({"x": q.upper()})) for q in ("a", "b", "c")]
    endpoint = ReplayEndpoint(Record.of(states))
    assert [chat.run(q, backend=endpoint)["x"] for q in ("c", "a", "b")] == ["C", "A", "B"]
    with pytest.raises(ProgramError, match="all 3 runs of the record were replayed already"):
        chat.run("a", backend=endpoint)["x"]


def test_optimisations_do_not_change_what_a_record_answers():
    @function
    def twins(s):
        forks = s.fork(2)
        forks += "a" + gen("x")
        forks.join()

    state = twins.run(backend=ScriptedEndpoint(), temperature=0, merge_identical=True)
    for merge in (False, True):
        again = twins.run(backend=ReplayEndpoint(state.record()), temperature=0, merge_identical=merge)
        assert again["x"] == ["x", "x"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "stemma record", "version": 99, "runs": []}', "nonsense"])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RequestError, match="is no record"):
        ReplayEndpoint.load(path)


def test_a_record_holds_graphs_that_can_be_looked_at(recorded: tuple[ProgramState, Path]):
    (graph,) = Record.load(recorded[1]).graphs()
    assert isinstance(graph, ProgramGraph) and graph.name == "program"
    assert graph.explain().nodes == 7
    assert json.loads(recorded[1].read_text())["version"] == 1


def test_a_replay_costs_what_the_run_cost():
    chat = function(lambda s: s.append("a" + gen("x")))
    state = chat.run(backend=ScriptedEndpoint())
    prices = {"scripted": {"input": 1.0, "output": 2.0}}
    again = chat.run(backend=ReplayEndpoint(state.record()))
    assert again.usage(prices=prices)["cost"] == state.usage(prices=prices)["cost"] > 0
