"""Shortest completions: exact in bytes, accepted token by token, from wherever a generation stands."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from stemma.backend.grammar.automaton import Dfa
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import compile_constraint, compile_schema
from stemma.backend.grammar.matcher import RegularGrammar
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint, ConstraintKind

BYTES = Vocabulary([*(bytes([b]) for b in range(256)), None], 257, frozenset([256]), lambda text: list(text.encode()))
WORDS = [b"name", b'{"', b'":', b'": ', b"null", b"true", b"[]", b"abc", b"ab", b"00", b'"}', b"}}", b" a"]


def words_vocab() -> Vocabulary:
    """All bytes, and some longer tokens; spelled longest first."""
    table: list[bytes | None] = [*(bytes([b]) for b in range(256)), *WORDS, None]
    ids = {text: i for i, text in enumerate(table) if text}

    def encode(text: str) -> list[int]:
        data, out = text.encode(), []
        while data:
            token = next(data[:k] for k in range(6, 0, -1) if data[:k] in ids)
            out.append(ids[token])
            data = data[len(token) :]
        return out

    return Vocabulary(table, len(table), frozenset([len(table) - 1]), encode)


TREE = {
    "type": "object",
    "properties": {"k": {"$ref": "#/$defs/t"}, "v": {"type": "boolean"}},
    "required": ["v"],
    "additionalProperties": False,
}
CASES: list[tuple[ConstraintKind, Any]] = [
    ("regex", r"(abc|[0-9]{4}|x{9})z?"),
    ("regex", r"[a-z]{3,50}-(é|東京)"),
    ("regex", r"(a|b)*abb"),
    ("regex", r"(\w+ ){2}\w{4}"),
    ("choices", ("red", "green", "blue green")),
    ("ebnf", 'root ::= "(" root ")" | "[" root "]" | "x" root | "end"'),
    ("ebnf", 'root ::= list\nlist ::= "[" (root ("," root){1,2})? "]"'),
    ("json_schema", {"type": "object", "properties": {"a": {"type": "string"}, "b": {"minimum": 100}}}),
    (
        "json_schema",
        {
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 7}, "n": {"type": "integer", "minimum": 1000}},
            "required": ["name", "n", "other"],
        },
    ),
    ("json_schema", {"type": "array", "items": {"enum": ["a", "bb", None]}, "minItems": 3}),
    ("json_schema", {"type": "string", "minLength": 40, "maxLength": 300}),
    ("json_schema", {"$ref": "#/$defs/t", "$defs": {"t": TREE}}),
    ("json_schema", {"type": "object", "propertyNames": {"pattern": "^x"}, "minProperties": 1}),
]  # fmt: skip


def constraint(kind: ConstraintKind, value: Any) -> Constraint:
    return Constraint(kind, json.dumps(value) if kind == "json_schema" else value)


def distance(dfa: Dfa, state: int, most: int) -> int:
    """Breadth first, without any bound."""
    layer, seen = {state}, {state}
    for length in range(most + 1):
        if any(dfa.accepting[s] for s in layer):
            return length
        layer = {int(after) for s in layer for after in dfa.row(s) if after >= 0} - seen
        seen |= layer
    raise AssertionError(f"no end within {most} bytes")


def walk(grammar: RegularGrammar, rng: random.Random, steps: int) -> Any:
    matcher = grammar.matcher()
    for _ in range(steps):
        row = matcher.mask().view(np.uint32)
        allowed = [i for i in range(grammar.vocab.size) if row[i >> 5] >> np.uint32(i & 31) & np.uint32(1)]
        texts = [i for i in allowed if i not in grammar.vocab.eos_ids]
        if not texts:
            break
        assert matcher.accept(rng.choice(texts))
    return matcher


@pytest.mark.parametrize("vocab", [BYTES, words_vocab()], ids=["bytes", "words"])
@pytest.mark.parametrize(("kind", "value"), CASES)
def test_completions_are_shortest_and_accepted(kind: ConstraintKind, value: Any, vocab: Vocabulary) -> None:
    grammar = compile_constraint(constraint(kind, value), vocab)
    rng = random.Random(0)
    for trial in range(12):
        matcher = walk(grammar, rng, rng.randint(0, 14) if trial else 0)
        state = matcher._position.state
        tokens = matcher.shortest_completion()
        text = b"".join(vocab.token_bytes[t] or b"" for t in tokens)
        assert len(text) == distance(grammar.dfa, state, 300)
        assert matcher.can_finish(len(tokens))
        assert not tokens or not matcher.can_finish(len(tokens) - 1)
        ahead = matcher.clone()
        for token in tokens:
            assert ahead.accept(token)
        assert ahead.is_complete()
        assert matcher._position.state == state


def test_long_tokens_are_used() -> None:
    vocab = words_vocab()
    grammar = compile_schema({"type": "object", "properties": {"name": {"type": "null"}}, "required": ["name"]}, vocab)
    spelled = [vocab.token_bytes[t] for t in grammar.matcher().shortest_completion()]
    assert spelled[:3] == [b'{"', b"name", b'":'] and b"null" in spelled and len(spelled) == 5


def test_a_vocabulary_that_cannot_spell_it_is_told_apart() -> None:
    vocab = Vocabulary([b"ab", b"ba", b"a", None], 4, frozenset([3]), lambda text: [])
    grammar = compile_constraint(Constraint("regex", "bab?a?|aaaaa"), vocab)
    assert grammar.matcher().shortest_completion() == [1]  # "ba"
    odd = compile_constraint(Constraint("regex", "(bab|aabaa)"), vocab)
    with pytest.raises(ConstraintError, match="cannot spell the shortest match"):
        odd.matcher().shortest_completion()


def test_a_match_too_far_away_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stemma.backend.grammar.shortest.MAX_EXPANDED", 20)
    grammar = compile_constraint(Constraint("regex", "[ab]{60}"), BYTES)
    with pytest.raises(ConstraintError, match="too far away"):
        grammar.matcher().shortest_completion()
