"""What is refused, by keyword and pointer; what `lenient` drops; and hostile schemas, in bounded time."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest

from stemma.backend.grammar.compiler import matches
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

REFUSED: list[tuple[Any, str]] = [
    ({"properties": {"a": {"format": 3}}}, "format at /properties/a"),
    ({"$ref": "http://example.org/x.json"}, "[$]ref at /"),
    ({"$ref": "#/$defs/none"}, "[$]ref at /"),
    ({"$ref": "#"}, "without end"),
    ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "without end"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"properties": {"a/b": {"pattern": r"(a)\1"}}}, "pattern at /properties/a~1b.*backreferences"),
    ({"pattern": "a(?=b)c"}, "matches nothing"),
    ({"pattern": "(?>a)b"}, "pattern at /.*atomic"),
    ({"type": "strnig"}, "type at /: unknown type 'strnig'"),
    ({"minLength": -1}, "minLength at /"),
    ({"multipleOf": 0}, "multipleOf at /"),
    ({"multipleOf": 0.123456789}, "multipleOf"),
    ({"properties": [1]}, "properties at /"),
    ({"items": "x"}, "items at /"),
    ({"minProperties": 2}, "minProperties"),
    ({"disallow": "string"}, "disallow at /"),
    ({"extends": {}}, "extends at /"),
    ({"$recursiveRef": "#"}, "[$]recursiveRef at /"),
    ({"allOf": [{"contains": {"minimum": 3}}], "unevaluatedItems": False}, "unevaluatedItems at /"),
    (False, "no value"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no value"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "no value"),
    ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "no value"),
    ({"type": "object", "required": ["a"], "additionalProperties": False}, "no value"),
]


@pytest.mark.parametrize(("schema", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
def test_a_refusal_names_keyword_and_place(schema: Any, problem: str) -> None:
    with pytest.raises(ConstraintError, match=problem) as caught:
        matches(Constraint("json_schema", json.dumps(schema)), "")
    assert caught.value.param == "json_schema"


@pytest.mark.parametrize("text", ["{", "[1,]", '{"minimum": NaN}', "1", '"x"', "null"])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(ConstraintError):
        matches(Constraint("json_schema", text), "")


def test_what_json_schema_does_not_know_says_nothing_and_is_reported(world) -> None:
    schema = {"items": {"format": "made-up", "minLenght": 3}, "x-mine": 1, "title": "t"}
    grammar = world.schema(schema)
    assert grammar.warnings == (
        "json_schema: format at /items: 'made-up' is not a known format, so it says nothing; write a 'pattern'",
        "json_schema: minLenght at /items: not a known keyword, so it says nothing",
    )
    many = world.schema({f"odd{i}": 1 for i in range(100)}).warnings
    assert len(many) == 65 and many[-1] == "json_schema: and 36 more"


def test_lenient_drops_and_says_so(world) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": r"(.)\1"}}, "mine": 1}
    grammar = world.schema(schema, lenient=True)
    assert any("pattern at /properties/a" in warning for warning in grammar.warnings)
    assert any("mine at /" in warning for warning in grammar.warnings)
    matcher = grammar.matcher()
    for token in world.bpe.encode('{"a": "anything"}'):
        assert matcher.accept(token)
    assert matcher.is_complete()
    assert world.schema({"type": "null"}).warnings == ()


def test_the_last_of_two_equal_keywords_counts() -> None:
    constraint = Constraint("json_schema", '{"maximum": 1, "type": "integer", "maximum": 9}')
    assert matches(constraint, "9") and not matches(constraint, "10")


def _chain(width: int) -> Any:
    parts = {f"p{i}": {"$ref": f"#/$defs/p{i + 1}"} for i in range(width)}
    return {"$defs": {**parts, f"p{width}": {"type": "null"}}, "$ref": "#/$defs/p0"}


HOSTILE: dict[str, Any] = {
    "a long chain of references": _chain(5000),
    "a huge enum": {"enum": [f"word {i}" for i in range(100_000)]},
    "a huge enum of objects": {"enum": [{"a": i} for i in range(20_000)]},
    "a counted array": {"items": {"type": "integer"}, "minItems": 100_000},
    "nested counted arrays": {"items": {"items": {"maxItems": 5000}, "maxItems": 5000}, "maxItems": 5000},
    "a huge length": {"type": "string", "maxLength": 10**9},
    "a huge least length": {"type": "string", "minLength": 10**9},
    "a length with a pattern": {"type": "string", "pattern": "(a|b|ab)*c", "maxLength": 100_000},
    "a counted pattern": {"pattern": "^(a{0,1000}){0,1000}$"},
    "many choices": {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(40)]},
    "many overlapping choices": {"oneOf": [{"properties": {f"a{i}": {"type": "null"}}} for i in range(60)]},
    "many dependencies": {"dependentRequired": {f"a{i}": [f"b{i}"] for i in range(60)}},
    "many patterns": {"patternProperties": {f"^.*{chr(97 + i)}.{{{i}}}": {"minimum": i} for i in range(20)}},
    "a large schema": {"properties": {f"name {i}": {"type": "string", "description": "x" * 400} for i in range(8000)}},
    "mutual recursion": {
        "$defs": {f"d{i}": {"properties": {f"p{j}": {"$ref": f"#/$defs/d{j}"} for j in range(60)}} for i in range(60)},
        "$ref": "#/$defs/d0",
    },
    "an opposite of much": {"not": {"anyOf": [{"properties": {f"p{i}": {"minimum": i}}} for i in range(300)]}},
    "large multiples": {"type": "integer", "allOf": [{"multipleOf": p} for p in (9973, 9967, 9949)]},
}


@pytest.mark.parametrize("depth", [150, 900, 5000, 300_000])
def test_deep_nesting_compiles_or_is_refused_soon(depth: int) -> None:
    start = time.process_time()
    text = '{"items":' * depth + "true" + "}" * depth
    with contextlib.suppress(ConstraintError):
        assert matches(Constraint("json_schema", text), "[[[]]]")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_compiles_or_is_refused_soon(world, name: str) -> None:
    start = time.process_time()
    try:
        matcher = world.schema(HOSTILE[name]).matcher()
        for _ in range(20):
            allowed = sorted(world.mask_ids(matcher.mask()))
            assert matcher.accept(allowed[len(allowed) // 2])
    except ConstraintError as error:
        assert len(str(error)) < 1000
    assert time.process_time() - start < 8
