"""Every keyword of draft 2020-12, from its metaschemas: enforced, refused by name or an annotation; and documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stemma.backend.grammar.compiler import compile_schema, matches
from stemma.backend.grammar.json_formats import PATTERNS
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

DOCS = Path(__file__).parents[2] / "docs" / "constraints.md"
VOCABULARIES = ("core", "applicator", "unevaluated", "validation", "meta-data", "format-annotation", "content")

# keyword: a schema, a valid instance, an invalid one
ENFORCED: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "$ref": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, None, 1),
    "$dynamicRef": ({"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a", "type": "null"}}}, None, 1),
    "$anchor": ({"$ref": "#a", "$defs": {"x": {"$anchor": "a", "type": "null"}}}, None, 1),
    "$dynamicAnchor": ({"$ref": "#a", "$defs": {"x": {"$dynamicAnchor": "a", "type": "null"}}}, None, 1),
    "$id": ({"$ref": "urn:x:y", "$defs": {"x": {"$id": "urn:x:y", "type": "null"}}}, None, 1),
    "$defs": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, None, 1),
    "definitions": ({"$ref": "#/definitions/a", "definitions": {"a": {"type": "null"}}}, None, 1),
    "prefixItems": ({"prefixItems": [{"type": "null"}]}, [None, 1], [1]),
    "items": ({"items": {"type": "null"}}, [None], [1]),
    "contains": ({"contains": {"type": "null"}}, [1, None], [1]),
    "additionalProperties": ({"additionalProperties": {"type": "null"}}, {"a": None}, {"a": 1}),
    "properties": ({"properties": {"a": {"type": "null"}}}, {"a": None}, {"a": 1}),
    "patternProperties": ({"patternProperties": {"^a": {"type": "null"}}}, {"ab": None}, {"ab": 1}),
    "dependentSchemas": ({"dependentSchemas": {"a": {"required": ["b"]}}}, {"a": 1, "b": 2}, {"a": 1}),
    "dependencies": ({"dependencies": {"a": ["b"]}}, {"a": 1, "b": 2}, {"a": 1}),
    "propertyNames": ({"propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}),
    "if": ({"if": {"type": "string"}, "then": {"minLength": 1}}, "a", ""),
    "then": ({"if": {"type": "string"}, "then": {"minLength": 1}}, 1, ""),
    "else": ({"if": {"type": "string"}, "else": {"type": "null"}}, None, 1),
    "allOf": ({"allOf": [{"type": "string"}, {"minLength": 1}]}, "a", ""),
    "anyOf": ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None, 1),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, 1, 2),
    "not": ({"not": {"type": "null"}}, 1, None),
    "unevaluatedItems": ({"prefixItems": [{}], "unevaluatedItems": False}, [1], [1, 2]),
    "unevaluatedProperties": ({"properties": {"a": {}}, "unevaluatedProperties": False}, {"a": 1}, {"b": 1}),
    "type": ({"type": "null"}, None, 1),
    "const": ({"const": {"a": [1]}}, {"a": [1]}, {"a": [2]}),
    "enum": ({"enum": [1, "a"]}, "a", "b"),
    "multipleOf": ({"type": "integer", "multipleOf": 3}, 9, 10),
    "maximum": ({"maximum": 3}, 3, 4),
    "exclusiveMaximum": ({"exclusiveMaximum": 3}, 2, 3),
    "minimum": ({"minimum": 3}, 3, 2),
    "exclusiveMinimum": ({"exclusiveMinimum": 3}, 4, 3),
    "maxLength": ({"maxLength": 1}, "é", "ab"),
    "minLength": ({"minLength": 1}, "a", ""),
    "pattern": ({"pattern": "^a"}, "ab", "ba"),
    "maxItems": ({"maxItems": 1}, [1], [1, 2]),
    "minItems": ({"minItems": 1}, [1], []),
    "uniqueItems": ({"items": {"enum": [1, 2]}, "uniqueItems": True}, [1, 2], [1, 1]),
    "maxContains": ({"contains": {"type": "null"}, "maxContains": 1}, [None], [None, None]),
    "minContains": ({"contains": {"type": "null"}, "minContains": 2}, [None, None], [None]),
    "maxProperties": ({"maxProperties": 1}, {"a": 1}, {"a": 1, "b": 1}),
    "minProperties": ({"minProperties": 1}, {"a": 1}, {}),
    "required": ({"required": ["a"]}, {"a": 1}, {}),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
    "format": ({"format": "ipv4"}, "1.2.3.4", "x"),
}
ANNOTATIONS: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$vocabulary": {},
    "$comment": "c",
    "$recursiveAnchor": False,
    "title": "t",
    "description": "d",
    "default": 5,
    "deprecated": True,
    "readOnly": True,
    "writeOnly": True,
    "examples": [5],
    "contentEncoding": "base64",
    "contentMediaType": "application/json",
    "contentSchema": {"type": "string"},
}
REFUSED: dict[str, Any] = {"$recursiveRef": "#", "disallow": "string", "extends": {}, "divisibleBy": 2}


def keywords_of_the_draft() -> set[str]:
    base = "https://json-schema.org/draft/2020-12/"
    registry = pytest.importorskip("jsonschema_specifications").REGISTRY
    metaschemas = [base + "schema", *(f"{base}meta/{name}" for name in VOCABULARIES)]
    return {keyword for url in metaschemas for keyword in registry.contents(url)["properties"]}


def accepts(schema: Any, value: Any) -> bool:
    return matches(Constraint("json_schema", json.dumps(schema)), json.dumps(value))


def test_every_keyword_of_the_draft_is_in_one_of_the_tables() -> None:
    tables = [set(ENFORCED), set(ANNOTATIONS), set(REFUSED)]
    assert keywords_of_the_draft() <= set().union(*tables)
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize("keyword", ENFORCED)
def test_a_keyword_is_enforced(keyword: str) -> None:
    schema, valid, invalid = ENFORCED[keyword]
    assert keyword in json.dumps(schema)
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    if keyword != "dependencies":  # of draft 7
        assert checker.is_valid(valid) and not checker.is_valid(invalid)
    assert accepts(schema, valid) and not accepts(schema, invalid)


@pytest.mark.parametrize("keyword", ANNOTATIONS)
def test_an_annotation_forbids_nothing_and_is_not_reported(world, keyword: str) -> None:
    schema = {"type": "integer", keyword: ANNOTATIONS[keyword]}
    assert accepts(schema, 7) and not accepts(schema, "a")
    assert compile_schema(schema, world.bpe).warnings == ()


@pytest.mark.parametrize("keyword", REFUSED)
def test_a_keyword_of_another_draft_is_refused_by_name(keyword: str) -> None:
    with pytest.raises(ConstraintError, match=rf"json_schema: {keyword.replace('$', '[$]')} at /"):
        accepts({keyword: REFUSED[keyword]}, 1)


def test_the_documentation_names_every_keyword_and_format() -> None:
    text = DOCS.read_text(encoding="utf-8")
    schema_part = text[text.index("## JSON Schema") : text.index("## EBNF")]
    words = set(schema_part.replace("`", " ").replace(",", " ").replace("/", " ").replace(";", " ").split())
    assert {*ENFORCED, *ANNOTATIONS, *REFUSED, *PATTERNS} - words == set()
