"""Composing constraints: what is built, what goes on the wire, and what is refused at once."""

from __future__ import annotations

import json as stdlib_json
from typing import Any, Literal

import pytest

import stemma
from stemma import capture, choice, ebnf, gen, json, literal, optional, regex, repeat, sequence, user
from stemma.lang.compose import Part, as_part, captures_of, constraint_of
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.nodes import Gen, NodeList, Text, as_nodes
from stemma.lang.params import Constraint
from stemma.lang.spans import read_tree

INT = {"regex": r"-?(0|[1-9][0-9]{0,18})"}


def tree(part: Part) -> Any:
    constraint = constraint_of(part)
    assert constraint.kind == "composed"
    return read_tree(str(constraint.value))


@pytest.mark.parametrize(
    ("part", "wire"),
    [
        (regex("a+"), {"regex": "a+"}),
        (literal("a"), {"literal": "a"}),
        (ebnf('root ::= "a"'), {"ebnf": 'root ::= "a"'}),
        (json({"type": "object"}), {"json_schema": {"type": "object"}}),
        (json('{"type": "object"}'), {"json_schema": {"type": "object"}}),
        (json(Literal["a"]), {"json_schema": {"enum": ["a"]}}),
        (choice("a", regex("b")), {"choice": [{"literal": "a"}, {"regex": "b"}]}),
        (regex("a") | "b" | int, {"choice": [{"regex": "a"}, {"literal": "b"}, INT]}),
        ("a" | regex("b"), {"choice": [{"literal": "a"}, {"regex": "b"}]}),
        (choice("a"), {"literal": "a"}),
        (sequence("a", int), {"sequence": [{"literal": "a"}, INT]}),
        (sequence(), {"sequence": []}),
        ("a" + regex("b") + "c" + "d", {"sequence": [{"literal": "a"}, {"regex": "b"}, {"literal": "cd"}]}),
        (sequence("a", sequence("b", "c")), {"literal": "abc"}),
        (regex("a") + (regex("b") + "c"), {"sequence": [{"regex": "a"}, {"regex": "b"}, {"literal": "c"}]}),
        (repeat("a"), {"repeat": {"literal": "a"}, "min": 0, "max": None}),
        (
            repeat(int, 1, 3, separator=", "),
            {"repeat": INT, "min": 1, "max": 3, "separator": {"literal": ", "}},
        ),
        (optional("a"), {"repeat": {"literal": "a"}, "min": 0, "max": 1}),
        (capture("n", int), {"capture": INT, "name": "n"}),
        (as_part(Literal["a", "b"]), {"choice": [{"literal": "a"}, {"literal": "b"}]}),
        (as_part(list[int]), {"json_schema": {"type": "array", "items": {"type": "integer"}}}),
        (as_part(Constraint("regex", "a")), {"regex": "a"}),
    ],
)
def test_what_is_written_is_what_the_wire_gets(part, wire):
    assert tree(part) == wire


def test_equal_parts_are_equal_constraints():
    def make() -> Part:
        return "a" + capture("n", int) + repeat(json(list[str]), max=2)

    assert make() == make() and constraint_of(make()) == constraint_of(make())
    assert hash(constraint_of(make())) == hash(constraint_of(make()))


def test_a_part_is_appended_as_one_gen_that_knows_its_line():
    (node,) = as_nodes("Name: " + capture("name", regex("[A-Z]+")) + ".")
    assert isinstance(node, Gen) and node.name is None
    assert [c.name for c in node.captures] == ["name"]
    assert "test_compose.py:" in node.where


def test_parts_stand_between_other_nodes():
    nodes = "Q" + gen("x") + capture("n", int) + " more"
    assert isinstance(nodes, NodeList)
    assert [type(node) for node in nodes] == [Text, Gen, Gen, Text]
    assert [type(node) for node in capture("n", int) + gen("x")] == [Gen, Gen]
    assert len(user(capture("n", int))) == 3


def test_gen_takes_a_part_and_sampling_arguments():
    node = gen("form", 30, constraint="a" + capture("n", int), temperature=0.5)
    assert isinstance(node, Gen) and node.constraint is not None
    assert node.constraint.kind == "composed" and node.name == "form" and len(node.captures) == 1
    assert dict(node.overrides) == {"max_new_tokens": 30, "temperature": 0.5}
    plain = gen("x", constraint=Constraint("regex", "a"))
    assert isinstance(plain, Gen) and plain.constraint == Constraint("regex", "a")


@pytest.mark.parametrize(
    ("part", "many"),
    [
        (capture("x", int), False),
        (optional(capture("x", int)), False),
        (capture("x", int) | capture("x", int) + "b", False),
        (repeat(capture("x", int), max=1), False),
        (repeat(capture("x", int)), True),
        (repeat(capture("x", int), 2, 2), True),
        (capture("x", int) + "," + capture("x", int), True),
        (choice("a", capture("x", int) + capture("x", int)), True),
        (repeat("a", max=3, separator=capture("x", int)), True),
        (repeat("a", max=2, separator=capture("x", int)), False),
        (capture("y", repeat(capture("x", int))), True),
    ],
)
def test_a_name_that_may_be_captured_twice_gives_a_list(part, many):
    found = {one.name: one.many for one in captures_of(part)}
    assert found["x"] is many and not found.get("y", False)


def test_a_capture_has_the_type_of_a_type_and_of_json():
    found = captures_of(
        capture("a", int)
        + capture("b", json(list[int]))
        + capture("c", Literal["u", "v"])
        + capture("d", regex("x") + "y")
        + capture("e", json({"type": "null"}))
    )
    assert [one.type and one.type.name for one in found] == ["int", "list[int]", "Literal['u', 'v']", None, None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regex(3), "regex must be a string, got 3"),  # type: ignore[arg-type]
        (lambda: literal(None), "literal must be a string"),  # type: ignore[arg-type]
        (lambda: json("{"), "json takes a schema or a type"),
        (lambda: json(complex), "type must be made of"),
        (lambda: choice(), "at least one option"),
        (lambda: choice(["a", "b"]), r"choice\(\*\['a', 'b'\]\)"),
        (lambda: sequence("a", gen("x")), "capture.name, …. stands for gen"),
        (lambda: sequence("a", 3), "got 3"),
        (lambda: sequence("a", None), "got None"),
        (lambda: as_part(Constraint("structural_tag", "{}")), "cannot be a part"),
        (lambda: repeat("a", -1), "min must be an integer >= 0, got -1"),
        (lambda: repeat("a", 0, True), "max must be an integer >= 0, got True"),
        (lambda: repeat("a", 3, 2), r"max must be at least min \(3\), got 2"),
        (lambda: capture("", int), "a capture needs a name, got ''"),
        (lambda: capture("x", complex), "type must be made of"),
        (lambda: gen("x", constraint=capture("x", int)), "the capture 'x' has the name of its gen"),
        (lambda: captures_of(capture("x", int) | capture("x", bool)), "two types, int and bool"),
        (lambda: gen("x", constraint="a" + regex("b"), regex="c"), "only one constraint may be given"),
        (lambda: gen("x", constraint=3), "got 3"),  # type: ignore[arg-type]
        (lambda: stemma.gen_int("x", constraint=regex("b")), "gen_int fixes the type"),
    ],
)
def test_what_cannot_be_composed_is_an_error_at_the_call(make, message):
    with pytest.raises(RequestError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object with one of literal, regex"),
        ('{"literal": "a", "regex": "b"}', "with one of"),
        ('{"literal": 3}', "literal: must be a string, got 3"),
        ('{"sequence": [{"regex": "a"}, {"choice": []}]}', r"sequence\[1\].choice: must be a list of at least one"),
        ('{"repeat": {"literal": "a"}, "min": 2, "max": 1}', "repeat: needs 0 <= min <= max, got 2 and 1"),
        ('{"repeat": {"literal": "a"}, "times": 3}', "'times' is not a field of a repeat"),
        ('{"repeat": {"literal": "a"}, "separator": {"x": 1}}', "repeat.separator: must be an object"),
        ('{"capture": {"literal": "a"}}', "capture: a capture needs a name, got None"),
        ('{"json_schema": "{}"}', "json_schema: must be a schema"),
        ('{"capture":' * 200 + "1", "not JSON"),
        ('{"sequence": [' * 150 + '{"literal": "a"}' + "]}" * 150, "nested more than 100 deep"),
        ('{"sequence": [' + ",".join(['{"literal": "a"}'] * 10_000) + "]}", "more than 10000 parts"),
    ],
)
def test_a_malformed_tree_is_an_error_naming_the_place(text, message):
    with pytest.raises(ConstraintError, match=message):
        read_tree(text)


def test_a_star_import_does_not_hide_the_json_module():
    names: dict[str, Any] = {"json": stdlib_json}
    exec("from stemma import *", names)
    assert names["json"] is stdlib_json and names["capture"] is capture
    assert stemma.json is json
