"""The bound on the length of a match: never too short, and tight where it can be."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from stemma.backend.grammar.compiler import compile_constraint, lower
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.longest import longest_text
from stemma.lang.params import Constraint
from tests.scheduler.test_drafts import VOCABULARY


def bound(kind: Any, value: Any) -> int | None:
    lowered = lower(Constraint(kind, value), Deadline(10.0, kind))
    return longest_text(lowered.node, lowered.rules)


@pytest.mark.parametrize(
    ("pattern", "bytes_"),
    [
        ("abc", 3),
        ("[0-9]{1,4}", 4),
        ("(yes|no|maybe) sir", 9),
        ("a*", None),
        ("a{2,}", None),
        ("(ab?){3}c", 7),
        ("é|ü{2}", 4),
    ],
)
def test_bounds_of_patterns(pattern: str, bytes_: int | None):
    assert bound("regex", pattern) == bytes_


def test_choices_and_grammars():
    assert bound("choices", ("red", "green", "blue")) == 5
    assert bound("ebnf", 'root ::= "(" root* ")"') is None
    assert bound("ebnf", 'root ::= two " " two\ntwo ::= "a" | "bcd"') == 7


SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"enum": ["red", 3, None]},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "yy"]}}, "required": ["a"],
     "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}}, "required": ["name"],
     "additionalProperties": False},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_no_match_of_a_schema_is_longer(schema: dict[str, Any]):
    """Random walks through the grammar, one byte a token."""
    grammar = compile_constraint(Constraint("json_schema", json.dumps(schema)), VOCABULARY)
    rng = random.Random(1)
    longest = 0
    for _ in range(60):
        matcher, n = grammar.matcher(), 0
        while not matcher.is_finished() and n < 300:
            row = matcher.mask()
            allowed = [t for t in range(3, 128) if (int(row[t >> 5]) >> (t & 31)) & 1]
            if not allowed or (matcher.is_complete() and rng.random() < 0.05):
                break
            assert matcher.accept(rng.choice(allowed))
            n += 1
        longest = max(longest, n)
    assert grammar.longest is None or longest <= grammar.longest
    if schema != SCHEMAS[4]:
        assert grammar.longest is not None and grammar.longest <= 60


def test_an_engine_keeps_no_memory_for_more():
    from stemma.backend.messages import parse_delta
    from tests.scheduler.test_drafts import gen, make, program

    def rows_at_once(pattern: str) -> int:
        scheduler = make(num_slots=600)
        for i in range(12):
            delta = program(gen(pattern, max_new_tokens=400), name=f"p{i}", text=f"{i:02}")
            scheduler.submit(parse_delta(delta), lambda event: None)()
        scheduler.step()
        return len(scheduler.memory.running)

    assert rows_at_once("[a-z]+") < 4
    assert rows_at_once("[a-z]{10}") == 12
