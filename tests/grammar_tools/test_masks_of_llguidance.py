"""Our masks beside llguidance's, along texts that both allow: equal, but for differences that are named here.

What is compared is the walk over the vocabulary (`MaskCache.row`): where the text is forced, our matcher narrows it to
the canonical token, and llguidance narrows in places of its own choice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stemma.backend.grammar.adapters import backend_named
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import compile_constraint
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

pytest.importorskip("llguidance", reason="its masks are compared with ours")
pytest.importorskip("hypothesis", reason="hypothesis makes the examples")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.grammar.conftest import train_bpe
from tests.grammar.test_hypothesis import ALPHABET, regexes

SAMPLES = {
    r"[a-z]{2,5}@[a-z]+\.(org|com)": "ab@c.org",
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}": "2024-01-31T10:20",
    r"(yes|no|maybe)( [a-z]+)*": "yes order order",
    r'"([^"\\]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"': '"a\\n\\u00e9é"',
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?": "-12.5e3",
    r"(?i)hello world": "HeLLo World",
    r"\p{Lu}\p{Ll}+": "Éléa",
    r"[\p{Greek}\p{Script=Han}]+": "αβ東京",
    r".*": "any é 東",
    r"(?s).{0,5}": "a\nb",
    r"[^\x00-\x7f]+": "é東😀",
    r"(a|ab)(c|bcd)(d*)": "abcd",
    r"a{3,17}b{0,2}": "aaaaab",
    r"(naïve|nation|été|東京|東北)": "東京",
    r"(|a|ab)(c|)": "abc",
}
CLOSED: dict[str, Any] = {"type": "object", "additionalProperties": False}
TREE = {
    "$defs": {
        "t": {
            **CLOSED,
            "properties": {"v": {"type": "null"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}},
            "required": ["v"],
        }
    },
    "$ref": "#/$defs/t",
}
VALUES: list[tuple[dict[str, Any], Any]] = [
    ({"type": "string"}, 'aé\n"x'),
    ({"type": "integer"}, -12),
    ({"type": "number"}, -1.5),
    ({"type": "boolean"}, True),
    ({"enum": ["north", "south", 1, None]}, "north"),
    ({"enum": ["north", "south", 1, None]}, None),
    ({"const": {"a": [1, "x"]}}, {"a": [1, "x"]}),
    (
        {**CLOSED, "properties": {"name": {"type": "string"}, "ok": {"type": "boolean"}}, "required": ["name", "ok"]},
        {"name": "Ada", "ok": True},
    ),
    (
        {**CLOSED, "properties": {"name": {"type": "string"}, "ok": {"type": "boolean"}}, "required": ["ok"]},
        {"ok": False},
    ),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}, [True, False]),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False}, [None, True]),
    ({"type": "string", "pattern": "^[a-z]+$"}, "abc"),
    ({"type": "string", "minLength": 1, "maxLength": 3}, "ab"),
    ({"type": "integer", "minimum": 18, "maximum": 120}, 42),
    ({"type": "string", "format": "date"}, "2024-01-31"),
    ({"type": "string", "format": "uuid"}, "123e4567-e89b-12d3-a456-426614174000"),
    ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "a"),
    ({"type": "object"}, {"a": {"b": []}}),
    ({"type": "object", "additionalProperties": {"type": "boolean"}}, {"ab": True}),
    (TREE, {"v": None, "kids": [{"v": None}]}),
]


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return train_bpe()


def bits(row: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def side_by_side(
    ours: Constraint, theirs: Constraint, vocab: Vocabulary, text: str
) -> Iterator[tuple[set[int], set[int], set[int]]]:
    """At each token of the text and at its end: the tokens that our walk allows, our matcher, and llguidance."""
    grammar = compile_constraint(ours, vocab)
    peer = backend_named("llguidance", narrow=False).compile(theirs, vocab).matcher()
    matcher, state = grammar.matcher(), 0
    for token in [*vocab.encode(text), None]:
        yield bits(grammar.masks.row(state)), bits(matcher.mask()), bits(peer.mask())
        if token is not None:
            assert matcher.accept(token), f"we reject {vocab.token_bytes[token]!r} of {text!r}"
            assert peer.accept(token), f"llguidance rejects {vocab.token_bytes[token]!r} of {text!r}"
            state = grammar.dfa.run(state, vocab.token_bytes[token] or b"")


@pytest.mark.parametrize("regex", SAMPLES)
def test_masks_of_a_regex_are_equal(vocab: Vocabulary, regex: str) -> None:
    constraint = Constraint("regex", regex)
    for walk, narrowed, theirs in side_by_side(constraint, constraint, vocab, SAMPLES[regex]):
        assert walk == theirs
        assert narrowed == walk or (len(narrowed) == 1 and narrowed < walk)


@settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(data=st.data())
def test_masks_of_random_regexes_are_equal(vocab: Vocabulary, data: st.DataObject) -> None:
    regex = data.draw(regexes(conditions=False))
    assume(not re.search(r"\\[ws]|\(\?i", regex))  # see the next test
    text = data.draw(st.from_regex(re.compile(regex), fullmatch=True, alphabet=st.sampled_from(ALPHABET)))
    assume(len(text) < 30)
    constraint = Constraint("regex", regex)
    for walk, narrowed, theirs in side_by_side(constraint, constraint, vocab, text):
        assert walk == theirs or (len(theirs) == 1 and theirs == narrowed), (regex, text)


def test_where_regexes_differ(vocab: Vocabulary) -> None:
    """`\\d` is Unicode there and ASCII here; `\\s` is that of Python here, `\\w` that of another Unicode version."""
    for regex, ours, theirs in ((r"\d", "٣", False), (r"\s", "\x1c", True)):
        grammar = compile_constraint(Constraint("regex", regex), vocab)
        peer = backend_named("llguidance").compile(Constraint("regex", regex), vocab)
        token = vocab.encode(ours)[0]
        assert (grammar.matcher().accept(token), peer.matcher().accept(token)) == (theirs, not theirs)
    lookahead = Constraint("regex", r"a(?!b).")
    compile_constraint(lookahead, vocab)
    with pytest.raises(ConstraintError):
        backend_named("llguidance").compile(lookahead, vocab)


@pytest.mark.parametrize("whitespace", ["compact", "any"])
@pytest.mark.parametrize(("schema", "value"), VALUES, ids=lambda x: json.dumps(x)[:40])
def test_masks_of_a_schema_are_equal_but_for_what_is_named(
    vocab: Vocabulary, schema: Any, value: Any, whitespace: str
) -> None:
    """They narrow forced text to one token earlier. U+007F and escapes of characters that need none are allowed here
    only; `-0` is an integer there only. (Numbers are of any length there.)"""
    text = json.dumps(schema)
    constraint = Constraint("json_schema", text, whitespace=whitespace)
    of_ours = {i for i, t in enumerate(vocab.token_bytes) if t and (b"\x7f" in t or t[:1] == b"/" or t == b"ue")}
    of_theirs = {i for i, token in enumerate(vocab.token_bytes) if token == b"0" and schema == {"type": "integer"}}
    spelled = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for walk, narrowed, peer in side_by_side(constraint, constraint, vocab, spelled):
        assert peer - walk <= of_theirs
        assert walk - peer <= of_ours or (len(peer) == 1 and peer == narrowed), (walk - peer, peer - walk)
