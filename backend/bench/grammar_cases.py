"""What `stemma bench grammar` runs when it is given nothing: ten regular expressions, twenty JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from stemma.backend.grammar.maskbench import Case
from stemma.lang.params import Constraint


class Pattern(NamedTuple):
    """A constraint, and whole matches of it."""

    name: str
    constraint: Constraint
    samples: tuple[str, ...]


def _regex(name: str, pattern: str, *samples: str) -> Pattern:
    return Pattern(name, Constraint("regex", pattern), samples)


_BYTE = "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
_PLACES = tuple(
    f"{size} {kind} of {town}"
    for size, kind, town in product(
        ["old", "new", "great", "little", "upper", "lower", "north", "south", "east", "west"],
        ["port", "bridge", "market", "castle", "abbey", "mill", "ford", "bay", "cross", "field"],
        ["Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Maple", "Oak", "Willow"],
    )
)
_ESCAPE = r"\\[\"\\/bfnrt]|\\u[0-9a-fA-F]{4}"

REGEXES = (
    _regex("date", r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", "2024-02-29", "1999-12-31"),
    _regex("email", r"[a-z0-9._%+-]{1,64}@([a-z0-9-]{1,63}\.){1,4}[a-z]{2,12}", "ada.l@maths.example.org", "x@y.io"),
    _regex("phone", r"(\+[0-9]{1,3} )?(\([0-9]{3}\) |[0-9]{3}-)[0-9]{3}-[0-9]{4}", "+1 (555) 010-9999", "555-010-1234"),
    _regex("ipv4", rf"({_BYTE}\.){{3}}{_BYTE}", "192.168.0.1", "8.8.8.8", "255.249.100.7"),
    _regex(
        "iso datetime",
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})",
        "2024-05-06T07:08:09Z",
        "2024-05-06T07:08:09.123456+02:00",
    ),
    _regex(
        "nested choice",
        r"(The (quick|slow|very (old|young)) )(fox|dog|bear( cub)?) (jumps|sleeps|(runs|walks) (home|away))( today)?\.",
        "The very old bear cub walks home today.",
        "The quick fox jumps.",
    ),
    Pattern("1000 choices", Constraint("choices", _PLACES), _PLACES[::111]),
    _regex("unicode", r"[α-ωά-ώ]{2,12} [ぁ-んァ-ヶ一-龠]{1,8} [а-яё]{2,12}", "λόγος 日本語 слово", "ωμέγα カナ мир"),
    _regex(
        "json string of 200",
        rf'"([^"\\\x00-\x1f]|{_ESCAPE}){{0,200}}"',
        '"A plain sentence, of middle length, without anything to escape in it."',
        r'"tab\t, quote \", \u00e9, naïve café and 東京"',
    ),
    _regex(
        "url",
        r"https?://([a-z0-9-]+\.)+[a-z]{2,6}(:[0-9]{2,5})?(/[A-Za-z0-9._~%-]*)*(\?[a-z]+=[A-Za-z0-9]+(&[a-z]+=[A-Za-z0-9]+)*)?",
        "https://docs.example.org/guide/index.html?page=2&lang=en",
        "http://localhost.test:8080/",
    ),
)

HOSTILE = next(pattern for pattern in REGEXES if pattern.name == "json string of 200")

_PROSE = 'It said: "naïve café, 東京"; then (slowly) 12 grey geese__flew 3.5 km.'

# States in which most of a vocabulary is allowed. Each is a grammar of its own: every state is met for the first time.
WIDE = (
    _regex("any text", r".*", _PROSE),
    _regex("any text but", r"[^%#]{0,90}\.", _PROSE),
    _regex("words", r"(\S+\s+)+\S+", _PROSE),
    _regex("ten words", r"(\S+\s+){0,20}\S+", _PROSE),
    _regex("letters", r"[a-z]+( [a-z]+)*", "grey geese flew over the house"),
    _regex("word characters", r"(?:\w+[ ,.!]{0,2})+", "naïve café, 東京 and grey_geese 12."),
    Pattern("json string", Constraint("json_schema", '{"type": "string"}'), (json.dumps(_PROSE),)),
    Pattern(
        "json string of 40", Constraint("json_schema", '{"type": "string", "maxLength": 40}'), ('"grey geese flew"',)
    ),
    Pattern("json keys", Constraint("json_schema", '{"type": "object"}'), ('{"grey geese": "flew", "a_b": {"c": 1}}',)),
    Pattern(
        "json keys but",
        Constraint("json_schema", '{"properties": {"grey": {"type": "integer"}, "geese": {"type": "integer"}}}'),
        ('{"grey": 1, "geese": 2, "greyish": 3}',),
    ),
    Pattern(
        "json with a pattern",
        Constraint("json_schema", '{"type": "string", "pattern": "geese|ducks"}'),
        ('"grey geese flew"',),
    ),
    HOSTILE,
)


def _object(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


_TEXT, _WHOLE, _NUMBER, _FLAG = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
_POINT = _object({"x": _NUMBER, "y": _NUMBER})

# name: (schema, valid instances, invalid instances)
_SCHEMAS: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "person": (
        _object({"name": _TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "email": _TEXT}, "email"),
        [{"name": "Ada Lovelace", "age": 36, "email": "ada@example.org"}, {"name": "Zoë", "age": 7}],
        [{"name": "Ada", "age": -1}, {"name": "Ada", "age": 151}, {"age": 3}],
    ),
    "weather call": (
        _object({"location": _TEXT, "unit": {"enum": ["celsius", "fahrenheit"]}, "days": _WHOLE}, "days"),
        [{"location": "Reykjavík, Iceland", "unit": "celsius", "days": 5}],
        [{"location": "Rome", "unit": "kelvin"}, {"location": 5, "unit": "celsius"}],
    ),
    "sentiment": (
        _object({"label": {"enum": ["positive", "negative", "neutral"]}, "score": {"type": "number", "maximum": 1}}),
        [{"label": "neutral", "score": 0.25}],
        [{"label": "neutral", "score": 1.5}, {"label": "mixed", "score": 0.5}],
    ),
    "booleans": (
        {"type": "array", "items": _FLAG, "minItems": 1, "maxItems": 4},
        [[True], [True, False, False, True]],
        [[], [True, True, True, True, True], [1]],
    ),
    "tags": (
        _object({"tags": {"type": "array", "items": {"type": "string", "minLength": 2, "maxLength": 12}}}),
        [{"tags": ["river", "stone bridge", "東京"]}, {"tags": []}],
        [{"tags": ["x"]}, {"tags": ["far too long for a tag"]}],
    ),
    "route": (
        _object({"path": {"type": "array", "items": _POINT, "minItems": 2}, "closed": _FLAG}),
        [{"path": [{"x": 0, "y": 1.5}, {"x": -2e3, "y": 0.25}], "closed": False}],
        [{"path": [{"x": 0, "y": 1}], "closed": True}, {"path": [{"x": 1}, {"y": 1}], "closed": True}],
    ),
    "order": (
        _object(
            {
                "orderId": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{6}$"},
                "orderName": _TEXT,
                "lines": {"type": "array", "items": _object({"sku": _TEXT, "quantity": _WHOLE, "price": _NUMBER})},
                "paid": _FLAG,
            }
        ),
        [
            {
                "orderId": "DE-004217",
                "orderName": "spring restock",
                "lines": [{"sku": "pen-blue", "quantity": 120, "price": 0.85}],
                "paid": True,
            }
        ],
        [{"orderId": "de-1", "orderName": "", "lines": [], "paid": True}],
    ),
    "event": (
        _object({"title": _TEXT, "start": {"type": "string", "format": "date-time"}, "day": {"format": "date"}}, "day"),
        [{"title": "Launch", "start": "2024-05-06T07:08:09Z"}],
        [{"title": "Launch", "start": "tomorrow"}],
    ),
    "identifiers": (
        _object({"id": {"type": "string", "format": "uuid"}, "host": {"type": "string", "format": "ipv4"}}),
        [{"id": "123e4567-e89b-12d3-a456-426614174000", "host": "10.0.0.1"}],
        [{"id": "123e4567", "host": "10.0.0.1"}, {"id": "123e4567-e89b-12d3-a456-426614174000", "host": "10.0.0"}],
    ),
    "shape": (
        {
            "anyOf": [
                _object({"kind": {"const": "circle"}, "radius": _NUMBER}),
                _object({"kind": {"const": "rectangle"}, "width": _NUMBER, "height": _NUMBER}),
            ]
        },
        [{"kind": "circle", "radius": 2.5}, {"kind": "rectangle", "width": 3, "height": 4}],
        [{"kind": "circle", "width": 3}, {"kind": "triangle"}],
    ),
    "nullable": (
        _object({"nickname": {"type": ["string", "null"]}, "born": {"type": ["integer", "null"]}}),
        [{"nickname": None, "born": 1815}, {"nickname": "Al", "born": None}],
        [{"nickname": 7, "born": 1815}],
    ),
    "settings": (
        {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
        [{"theme": "dark", "font size": 12, "beta": True}, {}],
        [{"theme": None}, {"theme": ["dark"]}],
    ),
    "tree": (
        {
            "$defs": {
                "node": _object({"value": _WHOLE, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}})
            },
            "$ref": "#/$defs/node",
        },
        [{"value": 1, "children": [{"value": 2, "children": []}, {"value": 3, "children": []}]}],
        [{"value": 1, "children": [{"value": "2", "children": []}]}],
    ),
    "matrix": (
        {"type": "array", "items": {"type": "array", "items": _NUMBER, "minItems": 3, "maxItems": 3}, "maxItems": 3},
        [[[1, 0, 0], [0, 1, 0], [0, 0, 1]], []],
        [[[1, 0]], [["1", 0, 0]]],
    ),
    "pair": (
        {"type": "array", "prefixItems": [_TEXT, _WHOLE], "items": False, "minItems": 2},
        [["apples", 3]],
        [["apples"], [3, "apples"], ["apples", 3, 4]],
    ),
    "grades": (
        _object({"student": _TEXT, "grade": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}}),
        [{"student": "Maryam", "grade": 95}],
        [{"student": "Maryam", "grade": 93}, {"student": "Maryam", "grade": 105}],
    ),
    "recipe": (
        _object(
            {
                "title": {"type": "string", "maxLength": 60},
                "difficulty": {"enum": ["easy", "medium", "hard"]},
                "ingredients": {"type": "array", "items": _object({"what": _TEXT, "grams": _NUMBER}), "minItems": 1},
                "steps": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 20},
                "vegetarian": _FLAG,
            },
            "vegetarian",
        ),
        [
            {
                "title": "Käsespätzle",
                "difficulty": "medium",
                "ingredients": [{"what": "flour", "grams": 400}, {"what": "cheese", "grams": 250}],
                "steps": ["Mix the dough.", "Scrape it into boiling water.", "Layer with cheese; fry \"onions\"."],
                "vegetarian": True,
            }
        ],
        [{"title": "x", "difficulty": "easy", "ingredients": [], "steps": ["Eat."]}],
    ),
    "tool calls": (
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    _object({"name": {"const": "search"}, "arguments": _object({"query": _TEXT, "n": _WHOLE}, "n")}),
                    _object({"name": {"const": "send_mail"}, "arguments": _object({"to": _TEXT, "body": _TEXT})}),
                ]
            },
        },
        [[{"name": "search", "arguments": {"query": "regex engines"}}]],
        [[{"name": "search", "arguments": {"to": "a", "body": "b"}}], []],
    ),
    "merged": (
        {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 20}]},
        [10, 15, 20],
        [9, 21, "15"],
    ),
    "log line": (
        _object(
            {
                "level": {"enum": ["debug", "info", "warning", "error"]},
                "code": {"type": "string", "pattern": "^E[0-9]{3}(\\.[0-9]+)?$"},
                "message": {"type": "string", "maxLength": 200},
                "count": {"type": "integer", "minimum": 1},
            },
            "count",
        ),
        [{"level": "warning", "code": "E042.7", "message": "disk \"sda1\" is nearly full", "count": 3}],
        [{"level": "warning", "code": "42", "message": ""}, {"level": "fatal", "code": "E001", "message": ""}],
    ),
}  # fmt: skip


def built_in_cases() -> Iterator[Case]:
    """The twenty schemas, as cases."""
    for name, (schema, valid, invalid) in _SCHEMAS.items():
        tests = [(instance, True) for instance in valid] + [(instance, False) for instance in invalid]
        yield Case(name, json.dumps(schema, ensure_ascii=False), tuple(tests))
