"""Random schemas against a validator: what the grammar accepts is valid, and what it spells itself is too."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.compiler import lower
from stemma.backend.grammar.limits import Deadline
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

LONG_NUMBER = re.compile(r"\d{12}|\.\d{9}")  # the validator's floats would round it
NAMES = ["a", "b", "ab", "c"]
LEAVES = [None, True, False, 0, 1, 2, -3, 1.5, 12, "", "a", "ab", "ba", "abc", 'q"']


def random_value(draw: random.Random, depth: int = 2) -> Any:
    kind = draw.randint(0, 5) if depth else 0
    if kind < 3:
        return draw.choice(LEAVES)
    if kind == 3:
        return [random_value(draw, depth - 1) for _ in range(draw.randint(0, 3))]
    names = [name for name in NAMES if draw.random() < 0.5]
    return {name: random_value(draw, depth - 1) for name in names}


def random_schema(draw: random.Random, depth: int = 3) -> Any:
    if depth == 0 or draw.random() < 0.1:
        return draw.choice([True, True, False, {"type": "integer"}, {"type": "string"}, {"const": draw.choice(LEAVES)}])

    def sub() -> Any:
        return random_schema(draw, depth - 1)

    def some(low: int = 1, high: int = 3) -> list[Any]:
        return [sub() for _ in range(draw.randint(low, high))]

    def names() -> list[str]:
        return [name for name in NAMES if draw.random() < 0.5]

    makers = {
        "type": lambda: draw.sample(
            ["null", "boolean", "integer", "number", "string", "array", "object"], draw.randint(1, 4)
        ),
        "enum": lambda: [random_value(draw, 1) for _ in range(draw.randint(1, 4))],
        "const": lambda: random_value(draw, 1),
        "minimum": lambda: draw.choice([-3, 0, 1.5, 2]),
        "exclusiveMaximum": lambda: draw.choice([-1, 2, 12, 12.5]),
        "multipleOf": lambda: draw.choice([2, 3, 0.5]),
        "minLength": lambda: draw.randint(0, 2),
        "maxLength": lambda: draw.randint(0, 3),
        "pattern": lambda: draw.choice(["a", "^a", "b$", "^(ab|c)*$", "[^a]"]),
        "items": sub,
        "prefixItems": some,
        "minItems": lambda: draw.randint(0, 2),
        "maxItems": lambda: draw.randint(0, 3),
        "contains": sub,
        "maxContains": lambda: draw.randint(1, 2),
        "uniqueItems": lambda: True,
        "properties": lambda: {name: sub() for name in names()},
        "required": names,
        "patternProperties": lambda: {draw.choice(["a", "^b", "c$"]): sub()},
        "additionalProperties": sub,
        "propertyNames": lambda: draw.choice([{"pattern": "^a"}, {"enum": ["a", "b"]}, {"maxLength": 1}]),
        "minProperties": lambda: draw.randint(0, 2),
        "maxProperties": lambda: draw.randint(0, 3),
        "dependentRequired": lambda: {draw.choice(NAMES): names()},
        "dependentSchemas": lambda: {draw.choice(NAMES): sub()},
        "anyOf": some,
        "oneOf": some,
        "allOf": some,
        "not": sub,
        "if": sub,
        "then": sub,
        "else": sub,
        "unevaluatedProperties": lambda: False,
        "unevaluatedItems": lambda: False,
    }
    return {keyword: makers[keyword]() for keyword in draw.sample(sorted(makers), draw.randint(1, 3))}


def in_order(dfa: Dfa, value: Any) -> bool:
    state = dfa.run(0, json.dumps(value).encode())
    return state != DEAD and dfa.accepting[state]


def spelled(dfa: Dfa, draw: random.Random) -> str | None:
    """A text of the grammar, byte by byte; None if it grows long."""
    state, text = 0, bytearray()
    while len(text) < 80:
        following = [b for b in range(256) if dfa.step(state, b) != DEAD]
        if dfa.accepting[state] and (not following or draw.random() < 0.5):
            return text.decode()
        assert following, bytes(text)  # no dead ends
        plain = [b for b in following if b in b'{}[]",: abc0123truefalsn-.']
        byte = draw.choice(plain or following)
        text.append(byte)
        state = dfa.step(state, byte)
    return None


@pytest.mark.parametrize("seed", range(8))
def test_random_schemas_agree_with_a_validator(seed: int) -> None:
    draw = random.Random(seed)
    compiled = 0
    for _ in range(40):
        schema = random_schema(draw)
        validator = jsonschema.Draft202012Validator(schema)
        values = [random_value(draw) for _ in range(40)]
        try:
            deadline = Deadline(5.0, "json_schema")
            lowered = lower(Constraint("json_schema", json.dumps(schema)), deadline)
        except ConstraintError as error:
            if "no value" in str(error):
                assert not any(validator.is_valid(value) for value in values), schema
            continue
        dfa = Dfa(lowered.node, deadline, rules=lowered.rules, trim=lowered.trim)
        assert not dfa.matches_nothing, schema
        compiled += 1
        for value in values:
            valid = validator.is_valid(value)
            if in_order(dfa, value):
                assert valid, (schema, value)
            elif valid and not isinstance(value, dict | list):
                assert isinstance(value, float), (schema, value)  # whole numbers are written without a point
        for _ in range(5):
            text = spelled(dfa, draw)
            if text is not None and not _repeats_a_key(text) and not LONG_NUMBER.search(text):
                assert validator.is_valid(json.loads(text)), (schema, text)
    assert compiled >= 15


def _repeats_a_key(text: str) -> bool:
    """Keys that the schema does not name may be repeated, which a validator cannot see."""
    repeated = False

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        repeated = repeated or len({key for key, _ in found}) < len(found)
        return dict(found)

    json.loads(text, object_pairs_hook=pairs)
    return repeated
