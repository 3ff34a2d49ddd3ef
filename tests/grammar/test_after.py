"""Constraints that begin behind a marker."""

from __future__ import annotations

import random

import pytest

from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import compile_constraint, matches
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

BYTES = Vocabulary([*(bytes([b]) for b in range(256)), None], 257, frozenset([256]), lambda text: list(text.encode()))


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("</think>42", True),
        ("a < b </ thin</thinkk</</think>42", True),
        ("</think></think>42", False),
        ("</think>42</think>", False),
        ("42", False),
        ("", False),
        ("é東 \n</think>", False),
        ("é東 \n</think>7", True),
    ],
)
def test_text_is_free_up_to_the_first_marker(text: str, legal: bool) -> None:
    assert matches(Constraint("regex", "[0-9]+", after="</think>"), text) == legal


@pytest.mark.parametrize("marker", ["a", "aa", "aab", "abab", "abaabab", "é東é"])
def test_the_first_occurrence_counts_whatever_overlaps(marker: str) -> None:
    rng = random.Random(3)
    constraint = Constraint("regex", "(a|ba)?", after=marker)
    letters = sorted(set(marker) | {"a", "b"})
    for _ in range(300):
        text = "".join(rng.choices(letters, k=rng.randint(0, 9)))
        _, found, rest = text.partition(marker)
        assert matches(constraint, text) == (bool(found) and rest in ("a", "ba", "")), text


def test_schemas_and_grammars_follow_a_marker_too() -> None:
    schema = Constraint(
        "json_schema", '{"type": "object", "properties": {"n": {"type": "integer"}}}', after="</think>\n"
    )
    assert matches(schema, 'hm {"n": "x"}</think>\n{"n": 3}') and not matches(schema, '</think>{"n": 3}')
    ebnf = Constraint("ebnf", 'root ::= "(" root? ")"', after="::")
    assert matches(ebnf, "a:b:::(())".replace(":::", "::")) and not matches(ebnf, "a::(()")


def test_what_is_forced_behind_the_marker_is_forced() -> None:
    grammar = compile_constraint(Constraint("regex", "answer: [0-9]", after="END"), BYTES)
    matcher = grammar.matcher()
    assert matcher.forced() == []
    for token in b"E ENEND":
        assert matcher.accept(token)
    assert bytes(matcher.forced()) == b"answer: "
    assert bytes(grammar.matcher().shortest_completion())[:11] == b"ENDanswer: "


@pytest.mark.parametrize("marker", ["", "x" * 1001, 3, "\ud800"])
def test_a_wrong_marker_is_an_error(marker) -> None:
    with pytest.raises(ConstraintError) as caught:
        Constraint("regex", "a", after=marker)
    assert caught.value.param == "constraint_after"


def test_it_crosses_the_wire() -> None:
    constraint = Constraint("choices", ("a", "b"), after="END")
    assert Constraint.from_dict(constraint.to_dict()) == constraint
    assert Constraint("regex", "a").to_dict() == {"kind": "regex", "value": "a"}
