"""The options of JSON constraints: white space between the parts, and `lenient`; also inside structural tags."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stemma.backend.grammar.compiler import compile_constraint, matches
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"type": "integer"}},
        "b": {"const": {"x": [1, 2]}},
        "c": {"type": "array", "prefixItems": [{"type": "null"}], "contains": {"const": "q"}},
        "d": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
    },
    "required": ["a"],
    "additionalProperties": {"type": "boolean"},
}
VALUE = {"a": [1, 2, 3], "b": {"x": [1, 2]}, "c": [None, "q"], "d": [2, 1], "more": True}
TEXTS = {
    "compact": json.dumps(VALUE, separators=(",", ":")),
    "spaced": json.dumps(VALUE),
    "indented": json.dumps(VALUE, indent=4),
    "tabs": json.dumps(VALUE, indent="\t"),
    "empty array": '{"a":[]}',
    "space in brackets": '{"a":[ ]}',
    "spaces in brackets": '{"a":[  ]}',
    "space around colon": '{"a" : [] }',
    "64 blanks": '{"a":' + " " * 64 + "[]}",
    "65 blanks": '{"a":' + " " * 65 + "[]}",
    "before": ' {"a":[]}',
    "behind": '{"a":[]} ',
}
PLAIN = {"compact", "empty array"}


def accepted(whitespace: str | None) -> set[str]:
    constraint = Constraint("json_schema", json.dumps(SCHEMA), whitespace=whitespace)
    return {name for name, text in TEXTS.items() if matches(constraint, text)}


@pytest.mark.parametrize(
    ("whitespace", "expected"),
    [
        (None, PLAIN | {"spaced"}),
        ("compact", PLAIN),
        ("any", set(TEXTS) - {"65 blanks", "before", "behind"}),
        (" ?", PLAIN | {"spaced", "space in brackets", "space around colon"}),
        (r" {0,2}", PLAIN | {"spaced", "space in brackets", "space around colon", "spaces in brackets"}),
        (r"(\n *)?", PLAIN),
        (r"[ \t\n]*", set(TEXTS) - {"before", "behind"}),
    ],
)
def test_a_whitespace_policy_allows_its_blanks_between_parts(whitespace: str | None, expected: set[str]) -> None:
    assert accepted(whitespace) == expected


def test_a_policy_that_wants_blanks_gets_them() -> None:
    constraint = Constraint("json_schema", '{"type": "array", "items": {"const": 1}}', whitespace=" ")
    assert matches(constraint, "[ 1 , 1 ]") and matches(constraint, "[ ]")
    assert not matches(constraint, "[1]") and not matches(constraint, "[]")


def test_a_policy_changes_blanks_inside_structural_tags_only() -> None:
    tag = {"begin": "<f>", "schema": {"type": "array", "items": {"type": "integer"}}, "end": "</f>"}
    value = json.dumps({"structures": [tag], "triggers": ["<f>"]})
    text = "so  <f>[1,\n  2]</f>  and"
    assert matches(Constraint("structural_tag", value, whitespace="any"), text)
    assert not matches(Constraint("structural_tag", value), text)


@pytest.mark.parametrize(
    ("whitespace", "message"),
    [("[ x]", "also matches 'x'"), (r"\s", "also matches"), ("(", "never closed"), ("(?!)", "matches nothing")],
)
def test_a_pattern_that_is_no_white_space_is_refused(whitespace: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message) as caught:
        matches(Constraint("json_schema", "{}", whitespace=whitespace), "1")
    assert caught.value.param == "whitespace"


@pytest.mark.parametrize("policy", [None, "compact", "any", "[ ]?"])
def test_masks_follow_the_policy(world, policy: str | None) -> None:
    grammar = compile_constraint(Constraint("json_schema", json.dumps(SCHEMA), whitespace=policy), world.bpe)
    for name in ("compact", "spaced", "indented"):
        matcher = grammar.matcher()
        alone = world.bpe.encode(TEXTS[name])
        taken = all(matcher.accept(t) for t in alone) and matcher.is_complete()
        assert taken == (name in accepted(policy)), name


def test_lenient_is_an_option_of_the_constraint(world) -> None:
    value = json.dumps({"type": "string", "pattern": r"(.)\1"})
    with pytest.raises(ConstraintError, match="backreferences"):
        compile_constraint(Constraint("json_schema", value), world.bpe)
    grammar = compile_constraint(Constraint("json_schema", value, lenient=True), world.bpe)
    assert len(grammar.warnings) == 1 and "pattern at /" in grammar.warnings[0]
    assert not matches(Constraint("json_schema", value, lenient=True), "1")


def test_options_in_the_wire_form() -> None:
    plain = Constraint("json_schema", "{}")
    assert plain.to_dict() == {"kind": "json_schema", "value": "{}"}
    for constraint in (plain, Constraint("json_schema", "{}", True, "any"), Constraint("choices", ("a", "b"))):
        assert Constraint.from_dict(constraint.to_dict()) == constraint
        assert hash(Constraint.from_dict(constraint.to_dict())) == hash(constraint)
    with pytest.raises(ConstraintError, match="lenient"):
        Constraint.from_dict({"kind": "json_schema", "value": "{}", "lenient": 1})
    with pytest.raises(ConstraintError, match=r"kind.*value.*lenient"):
        Constraint.from_dict({"kind": "json_schema", "value": "{}", "strict": True})


@pytest.mark.parametrize("options", [{"lenient": True}, {"whitespace": "any"}])
def test_options_are_for_json_only(options: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError, match=r"is for json_schema and structural_tag, not for regex") as caught:
        Constraint("regex", "a", **options)
    assert caught.value.param == next(iter(options))


@pytest.mark.parametrize("whitespace", ["", 3])
def test_a_whitespace_that_is_no_text_is_refused(whitespace: Any) -> None:
    with pytest.raises(ConstraintError, match="whitespace must be"):
        Constraint("json_schema", "{}", whitespace=whitespace)
