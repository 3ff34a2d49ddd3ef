"""An automaton as arrays is the automaton it was."""

from __future__ import annotations

import json
import random

import msgspec
import numpy as np
import pytest

from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import compile_constraint, lower, ready_grammar
from stemma.backend.grammar.flat import Flat, FlatNfa, dump
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.masks import index_of
from stemma.backend.grammar.matcher import RegularGrammar
from stemma.backend.grammar.nfa import Nfa
from stemma.lang.params import Constraint

OTHERS = [
    Constraint("choices", ("red", "redder", "green", "東京")),
    Constraint("ebnf", 'root ::= item+\nitem ::= "[" (item | "x"){0,3} "]"'),
    Constraint("ebnf", 'start: expr\nexpr: NUM | expr "+" expr | "(" expr ")"\nNUM: /[0-9]+/'),
    *(
        Constraint("json_schema", json.dumps(schema))
        for schema in (
            {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#"}}},
            {"type": "string", "minLength": 2, "maxLength": 5000},
            {"type": "object", "properties": {"n": {"type": "string", "maxLength": 40, "pattern": "^[a-c]+$"}}},
            {"type": "object", "patternProperties": {"^a": {"const": 1}}, "properties": {"ab": True}},
            {"items": {"enum": [1, "two", None]}, "minItems": 40, "maxItems": 60, "type": "array"},
            True,
        )
    ),
    Constraint(
        "structural_tag",
        json.dumps(
            {
                "type": "structural_tag",
                "structures": [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}],
                "triggers": ["<f"],
            }
        ),
    ),
]


def shipped(constraint: Constraint, vocab: Vocabulary) -> RegularGrammar:
    """Compiled by way of the arrays, as bytes."""
    tokens, deadline = index_of(vocab), Deadline(10.0, constraint.kind)
    lowered = lower(constraint, deadline)
    data = msgspec.msgpack.encode(
        dump(Nfa(lowered.node, deadline, tokens.trie.alphabet, lowered.rules, trim=lowered.trim))
    )
    nfa = FlatNfa(msgspec.msgpack.decode(data, type=Flat))
    return ready_grammar(tokens.automaton(nfa, deadline), vocab, tokens, lowered.warnings)


def assert_equal(one: RegularGrammar, other: RegularGrammar, seed: int) -> None:
    """All that can be seen along random walks."""
    draw, vocab = random.Random(seed), one.vocab
    for _ in range(4):
        a, b = one.matcher(), other.matcher()
        for _ in range(12):
            mask = a.mask()
            assert np.array_equal(mask, b.mask())
            assert (a.forced(), a.is_complete(), a.is_finished()) == (b.forced(), b.is_complete(), b.is_finished())
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[: vocab.size])
            if not len(allowed):
                break
            token = int(draw.choice(allowed.tolist()))
            assert a.accept(token) and b.accept(token)


def test_regexes(world, pattern: str) -> None:
    constraint = Constraint("regex", pattern)
    assert_equal(compile_constraint(constraint, world.bpe), shipped(constraint, world.bpe), 1)


@pytest.mark.parametrize("constraint", OTHERS, ids=lambda c: str(c.value)[:40])
def test_other_kinds(world, constraint: Constraint) -> None:
    assert_equal(compile_constraint(constraint, world.bpe), shipped(constraint, world.bpe), 2)


@pytest.mark.parametrize("constraint", OTHERS[3:6], ids=lambda c: str(c.value)[:40])
def test_a_vocabulary_without_all_bytes(world, constraint: Constraint) -> None:
    vocab = world.make_vocab([bytes([b]) for b in b'abcdefghij{}[]:, "0123456789'])
    assert_equal(compile_constraint(constraint, vocab), shipped(constraint, vocab), 3)


def test_the_lists_of_a_place_are_those_that_were_sent() -> None:
    deadline = Deadline(10.0, "regex")
    sent = Nfa(lower(Constraint("regex", r"(\w+|[a-f]{40,60}x?)*é"), deadline).node, deadline)
    nfa = FlatNfa(msgspec.msgpack.decode(msgspec.msgpack.encode(dump(sent)), type=Flat))
    assert list(nfa.edges) == sent.edges and list(nfa.empty) == sent.empty
    assert nfa.edges[3] is nfa.edges[3]
    assert len(nfa.edges) == len(sent.edges) and nfa.nbytes == sent.nbytes
    assert (nfa.trees, nfa.runs, nfa.covers, nfa.ends) == (sent.trees, sent.runs, sent.covers, sent.ends)
    with pytest.raises(IndexError):
        nfa.edges[len(sent.edges)]
