"""Typed results and captures in programs: on a fake, on an engine, on a real server."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from stemma import (
    ProgramState,
    Regex,
    RuntimeEndpoint,
    ScriptedEndpoint,
    TruncatedError,
    capture,
    choice,
    function,
    gen,
    json,
    optional,
    regex,
    repeat,
    user,
)
from stemma.interpreter.endpoints.base import Endpoint
from stemma.interpreter.endpoints.local import LocalEndpoint
from stemma.lang.errors import ConstraintError, ProgramError, RequestError


@dataclass
class Item:
    kind: Literal["tool", "toy"]
    size: Annotated[int, "of the item"]
    parts: list[Item] = field(default_factory=list)


FORM = (
    "Name: "
    + capture("name", regex("[A-Z][a-z]{1,5}"))
    + ", age: "
    + capture("age", regex("[1-9][0-9]?"))
    + ", ok: "
    + capture("ok", bool)
    + repeat(" #" + capture("tag", Literal["a", "bc"]), 1, 3)
    + optional(" (" + capture("note", json(list[int])) + ")")
    + "."
)
REPLY = "Name: Ada, age: 36, ok: true #a #bc."


@function
def fill(s: ProgramState):
    s += "Form. "
    s += gen("form", constraint=FORM, max_tokens=120)
    s += " Done."


def scripted(reply: str = REPLY) -> ScriptedEndpoint:
    return ScriptedEndpoint({"form": reply})


def test_captures_are_names_of_the_state_with_their_types():
    state = fill.run(backend=scripted())
    assert {name: state[name] for name in ("name", "age", "ok", "tag", "note")} == {
        "name": "Ada",
        "age": "36",
        "ok": True,
        "tag": ["a", "bc"],
        "note": None,
    }
    assert state["form"] == REPLY and state.text() == "Form. " + REPLY + " Done."
    assert state.raw("ok") == "true" and state.raw("tag") == ["a", "bc"] and state.raw("note") is None
    assert state.get_meta_info("form") == state.get_meta_info("ok")  # a capture is of its gen
    assert state.get_meta_info("form")["captures"]["tag"] == [[30, 31], [33, 35]]


def test_a_form_is_one_gen_and_a_part_may_be_appended_as_it_is():
    endpoint = ScriptedEndpoint(["x is 7, [1, 2]"])

    @function
    def program(s: ProgramState):
        s += user("x is " + capture("n", int) + ", " + capture("l", json(list[int])))
        return s["n"], s["l"]

    assert program.run(backend=endpoint).ret_value == (7, [1, 2])
    nodes = [node for delta in endpoint.deltas for entry in delta["branches"] for node in entry["nodes"]]
    assert [node["constraint"]["kind"] for node in nodes if node["kind"] == "gen"] == ["composed"]


def test_captures_of_forks_are_gathered_and_overwritten_names_are_the_last():
    @function
    def program(s: ProgramState):
        forks = s.fork(2)
        forks += gen("f", constraint="v=" + capture("v", int))
        forks.join()
        s += gen("g", constraint="w=" + capture("w", int)) + gen("h", constraint="w=" + capture("w", int))

    state = program.run(backend=ScriptedEndpoint({"f": ["v=1", "v=2"], "g": "w=3", "h": "w=4"}))
    assert (sorted(state["v"]), state["w"]) == ([1, 2], 4)


def test_a_capture_streams_when_it_is_whole():
    state = fill.run(backend=scripted(), stream=True)
    assert list(state.text_iter("age")) == ["36"]
    assert "".join(state.text_iter("form")) == REPLY


def test_a_scripted_reply_that_does_not_match_is_an_error():
    with pytest.raises(ProgramError, match="the scripted reply 'Name: ada' does not match the constraint"):
        fill.run(backend=scripted("Name: ada"))["name"]


def test_typed_values_of_every_sort():
    @function
    def program(s: ProgramState):
        s += gen("item", type=Item) + gen("many", type=list[Item | None])
        s += gen("code", type=Annotated[str, Regex("[A-Z]{2}")]) + gen("text", json_schema=Item)

    text = '{"kind": "toy", "size": 3, "parts": [{"kind": "tool", "size": 1}]}'
    toy = Item("toy", 3, [Item("tool", 1)])
    replies = {"item": text, "many": f"[null, {text}]", "code": "AB", "text": text}
    state = program.run(backend=ScriptedEndpoint(replies))
    assert state["item"] == toy and state["many"] == [None, toy] and state["code"] == "AB"
    assert state["text"] == state.raw("item") == text


def test_a_value_that_does_not_fit_names_the_line_and_the_place_in_it():
    @function
    def program(s: ProgramState):
        s += gen("item", type=Item)

    state = program.run(backend=ScriptedEndpoint({"item": '{"kind": "toy", "size": "x"}'}))
    message = r"gen 'item' at .*test_typed.py:\d+: .* is not a value of type Item: \.size must be an integer"
    with pytest.raises(ProgramError, match=message) as caught:
        state["item"]
    assert not isinstance(caught.value, TruncatedError)


# -- on engines


@pytest.fixture(scope="module", params=["engine", "server"])
def real(request) -> Iterator[Endpoint]:
    made = request.getfixturevalue(request.param)
    endpoint = LocalEndpoint(made) if request.param == "engine" else RuntimeEndpoint(made)
    yield endpoint
    endpoint.close()


@pytest.mark.parametrize("seed", range(3))
def test_an_engine_fills_the_form_and_tells_where_the_parts_are(real: Endpoint, seed: int):
    state = fill.run(backend=real, temperature=1.0, seed=seed)
    pattern = r"Name: ([A-Z][a-z]{1,5}), age: ([1-9]\d?), ok: (\w+)((?: #(?:a|bc)){1,3})(?: \((\[.*\])\))?\."
    match = re.fullmatch(pattern, state["form"])
    assert match, state["form"]
    assert (state["name"], state["age"], state.raw("ok")) == match.group(1, 2, 3)
    assert state["ok"] is (match[3].lower() == "true")
    assert state["tag"] == match[4].replace(" ", "").split("#")[1:]
    assert state.raw("note") == match[5]
    assert state.text() == "Form. " + state["form"] + " Done."


def test_text_cut_off_by_max_tokens_is_an_error_of_its_own(real: Endpoint):
    @function
    def program(s: ProgramState):
        s += gen("form", 8, constraint=FORM)

    state = program.run(backend=real, temperature=1.0, seed=1)
    with pytest.raises(TruncatedError, match=r"gen 'form' at .*: capture 'name' .*cut off by max_tokens=8") as caught:
        state["name"]
    assert (caught.value.limit, caught.value.tokens, caught.value.text) == (8, 8, state["form"])
    assert str(caught.value.where).endswith(str(program.func.__code__.co_firstlineno + 2))


def test_text_cut_by_a_stop_string_is_no_whole_match(real: Endpoint):
    @function
    def program(s: ProgramState):
        s += gen("form", 60, constraint=FORM, stop=", age")

    with pytest.raises(ProgramError, match="capture 'name' has no value: the text is no whole match") as caught:
        program.run(backend=real, temperature=0)["name"]
    assert not isinstance(caught.value, TruncatedError)


def test_typed_values_and_truncation_on_an_engine(real: Endpoint):
    @function
    def program(s: ProgramState):
        s += gen("kinds", 60, type=tuple[Literal["tool"], Literal["toy"] | None])
        s += gen("item", 6, type=Item)

    state = program.run(backend=real, temperature=0)
    assert state["kinds"] in (("tool", "toy"), ("tool", None))
    with pytest.raises(TruncatedError, match=r"is not a value of type Item: it is not JSON.*max_tokens=6"):
        state["item"]


def test_a_part_that_does_not_compile_fails_the_gen_by_name(real: Endpoint):
    @function
    def program(s: ProgramState):
        s += gen("x", constraint="a" + capture("b", regex("(")))

    with pytest.raises(ProgramError, match=r"gen 'x'.*composed: sequence\[1\].capture.regex: regex:") as caught:
        program.run(backend=real)["b"]
    assert isinstance(caught.value.__cause__, ConstraintError)


def test_forced_literals_are_not_sampled_and_jumping_forward_changes_no_token(tiny_model: Any):
    from stemma.backend.engine import Engine

    options = {"load_format": "dummy", "max_total_tokens": 2000, "num_threads": 1}
    results = []
    for off in (False, True):
        with Engine(tiny_model, disable_jump_forward=off, **options) as engine:
            metas = []
            for seed in range(4):
                state = fill.run(backend=engine, temperature=1.0, seed=seed)
                metas.append((state["form"], state.get_meta_info("form")))
            results.append(metas)
    jumped, plain = results
    assert [text for text, _ in jumped] == [text for text, _ in plain]
    assert [meta["captures"] for _, meta in jumped] == [meta["captures"] for _, meta in plain]
    assert all(meta["forced_tokens"] > 5 for _, meta in jumped)
    assert all(meta["forced_tokens"] == 0 for _, meta in plain)


def test_a_cancel_while_captures_are_found_leaves_nobody_waiting(engine: Any, monkeypatch: pytest.MonkeyPatch):
    from stemma.backend import captures

    begun, go = threading.Event(), threading.Event()
    find = captures.find_captures

    def slow(*args: Any) -> Any:
        begun.set()
        assert go.wait(10)
        return find(*args)

    monkeypatch.setattr(captures, "find_captures", slow)
    state = fill.run(backend=engine, temperature=0)
    assert begun.wait(10)
    state.cancel()
    with pytest.raises(ProgramError, match="cancelled"):
        state["name"]
    go.set()
    monkeypatch.undo()
    assert fill.run(backend=engine, temperature=0)["name"]


def test_a_fault_while_captures_are_found_reaches_the_reader(engine: Any, monkeypatch: pytest.MonkeyPatch):
    from stemma.backend import captures

    def broken(*args: Any) -> Any:
        raise AssertionError("oh")

    monkeypatch.setattr(captures, "find_captures", broken)
    state = fill.run(backend=engine, temperature=0)
    with pytest.raises(ProgramError, match="capture 'name' has no value: internal error: AssertionError: oh"):
        state["name"]
    assert state["form"].startswith("Name: ")


def test_gen_arguments_are_checked_where_they_are_written():
    with pytest.raises(RequestError, match="only one constraint may be given, got type and constraint"):
        gen("x", type=int, constraint=choice("a", "b"))
