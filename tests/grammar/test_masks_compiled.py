"""The compiled automaton and walk against the plain ones: every token of sampled states, byte by byte."""

from __future__ import annotations

import random

import numpy as np
import pytest

from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import lower
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.masks import NumbaWalker, index_of
from stemma.lang.params import Constraint

WORDS = [
    "a",
    "the",
    "name",
    "Order",
    "straße",
    "naïve",
    "東京",
    "привет",
    "x1",
    "__init__",
    "e9",
    "u0041",
    "...",
    "--",
    "==",
]
PIECES = [
    *WORDS,
    '"',
    "\\",
    '\\"',
    "\\u",
    '", "',
    '":',
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\n",
    "\t",
    " ",
    "  ",
    "😀",
    "é",
    "12",
    "-",
]


@pytest.fixture(scope="module")
def tokens() -> Vocabulary:
    """All bytes; words with and without a space; joined pieces; runs of up to 130 characters; broken characters."""
    draw = random.Random(7)
    found = [bytes([b]) for b in range(256)]
    found += [(space + word).encode() for word in WORDS for space in ("", " ", "  ")]
    found += ["".join(draw.choices(PIECES, k=draw.randint(2, 5))).encode() for _ in range(900)]
    found += [
        piece.encode() * n
        for piece in (" ", "-", "é", "ab", "東", "\n")
        for n in (2, 3, 5, 8, 16, 23, 24, 25, 26, 60, 130)
    ]
    found += [
        text.encode()[draw.randint(0, 2) : draw.randint(3, 7)] or b"?" for text in ("東京日本", "😀😎", "été") * 12
    ]
    found = sorted(set(found), key=lambda text: draw.random())
    return Vocabulary([*found, None], len(found) + 9, frozenset([len(found)]), lambda text: [])


class Twins:
    """One constraint in both automata. States are reached by the same bytes, since their numbers differ."""

    def __init__(self, constraint: Constraint, vocab: Vocabulary) -> None:
        self.vocab = vocab
        walker = index_of(vocab, "numba")
        assert isinstance(walker, NumbaWalker)
        self.walker = walker
        lowered = lower(constraint, Deadline(30, "test"))
        what = (lowered.node, Deadline(30, "test"), self.walker.trie.alphabet, lowered.rules)
        self.plain, self.compiled = Dfa(*what, trim=lowered.trim), self.walker.automaton(*what, trim=lowered.trim)

    def check(self, text: bytes) -> None:
        plain, state = self.plain.run(0, text), self.compiled.run(0, text)
        assert self.plain.accepting[plain] == self.compiled.accepting[state]
        allowed = {
            i for i, token in enumerate(self.vocab.token_bytes) if token and self.plain.run(plain, token) != DEAD
        }
        for row in [*self.rows(state), index_of(self.vocab, "numpy").row(self.plain, plain)]:
            assert set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()) == allowed, text

    def rows(self, state: int) -> list[np.ndarray]:
        walker = self.walker
        shape = self.compiled.shape(state, 16)
        rows = [walker.short_row(self.compiled, shape) | walker.long_row(self.compiled, state)]
        for narrow in (0, 1 << 30):
            walker.narrow = narrow
            rows.append(walker.row(self.compiled, state))
        return rows

    def texts(self, draw: random.Random, steps: int) -> list[bytes]:
        """Beginnings of one way through the language, by tokens and single bytes."""
        texts, state, text = [b""], 0, b""
        for _ in range(steps):
            options = [t for t in draw.sample(self.vocab.token_bytes, 60) if t and self.plain.run(state, t) != DEAD]
            options += [bytes([b]) for b in range(256) if self.plain.step(state, b) != DEAD][:: draw.randint(1, 9)]
            if not options:
                break
            token = draw.choice(options)
            state, text = self.plain.run(state, token), text + token
            texts.append(text)
        return texts


@pytest.mark.parametrize(
    "pattern",
    [
        r".*",
        r"\S+\s+",
        r"(\S+\s+){0,9}\S+",
        r"\w+( \w+)*",
        r"[a-z]{0,40}|[A-Z]\w{3,30}",
        r"(\p{L}+[ -]?){2,5}\.",
        r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-f]{4}){0,200}"',
        r"[^é]{0,130}x",
        r"(?s)(.{1,3}é)*[^a-f]{5,}",
        r"([a-c]|\\[nt]){0,300}|[a-z]{100,}!",
        r"(?i)(true|false|naïve|straße)+",
        r"x{200}y{0,200}",
        r"[^東]*京|[\u4e00-\u9fff]{1,30}",
    ],
)
def test_regexes(tokens: Vocabulary, pattern: str) -> None:
    twins, draw = Twins(Constraint("regex", pattern), tokens), random.Random(len(pattern))
    for text in twins.texts(draw, 14):
        twins.check(text)


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "object"}',
        '{"type": "object", "properties": {"name": {"type": "string"}, "order": {}}, "required": ["name"]}',
        '{"type": "array", "items": {"type": "string", "maxLength": 40, "pattern": "^(\\\\S+\\\\s+){0,9}\\\\S+$"}}',
        '{"type": "string", "minLength": 36, "maxLength": 36}',
        '{"type": "string", "maxLength": 5}',
        '{"type": "object", "patternProperties": {"^x": {"type": "integer"}, "name$": {"type": "boolean"}}}',
        '{"type": "object", "propertyNames": {"maxLength": 20}, "properties": {"name": true, "nam": true}}',
        '{"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"items": {"$ref": "#/$defs/a"}}, {"const": "é\\n"}]}}}',
        '{"type": "string", "format": "email"}',
        '{"type": "string", "pattern": "order|name"}',
        '{"not": {"type": "object", "required": ["name"], "properties": {"name": {"pattern": "x"}}}}',
    ],
)
def test_schemas(tokens: Vocabulary, schema: str) -> None:
    twins, draw = Twins(Constraint("json_schema", schema), tokens), random.Random(len(schema))
    for _ in range(2):
        for text in twins.texts(draw, 9):
            twins.check(text)
