"""Lark is the judge: its Earley parser with the dynamic_complete lexer accepts exactly a grammar's language."""

from __future__ import annotations

import random

import lark
import pytest

from stemma.backend.grammar.compiler import matches
from stemma.lang.params import Constraint

GRAMMARS = [
    ('start: "a" start "b" | "c"', "abc"),
    ('start: e\ne: e "+" t | t\nt: "(" e ")" | /[0-9]/', "1+()2"),
    ('start: WORD ("," WORD)*\nWORD: /[ab]{1,2}/', "ab,"),
    ('start: (A | B)~2..3 "."?\nA: "x"i\nB: "xy"', "xXy."),
    ('start: pair+\npair: "[" [start] "]"', "[]"),
    ('start: _sep{A, ","} | "<" _sep{b, "-"} ">"\n_sep{x, by}: x (by x)*\nA: "a"\nb: "b" | A A', "ab,-<>"),
    ('?start: x | y\nx: "p" "q"* -> one\n!y: "q"+ "p"', "pq"),
]


@pytest.mark.parametrize(("grammar", "alphabet"), GRAMMARS, ids=range(len(GRAMMARS)))
def test_the_language_is_what_lark_parses(grammar: str, alphabet: str) -> None:
    parser = lark.Lark(grammar, parser="earley", lexer="dynamic_complete")

    def accepted(text: str) -> bool:
        try:
            parser.parse(text)
        except lark.exceptions.LarkError:
            return False
        return True

    rng = random.Random(0)
    texts = {"".join(rng.choice(alphabet) for _ in range(rng.randint(0, 7))) for _ in range(150)}
    verdicts = {text: matches(Constraint("ebnf", grammar), text) for text in texts}
    assert verdicts == {text: accepted(text) for text in texts}
    assert any(verdicts.values())
