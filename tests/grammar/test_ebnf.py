"""Grammars in GBNF and Lark notation: the texts that they allow, and the errors."""

from __future__ import annotations

import pytest

from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.ebnf import parse_ebnf
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.masks import index_of
from stemma.backend.grammar.matcher import RegularGrammar
from stemma.lang.errors import ConstraintError


def accepts(grammar: str, text: str) -> bool:
    deadline = Deadline(10.0, "ebnf")
    lowered = parse_ebnf(grammar, deadline)
    dfa = Dfa(lowered.node, deadline, rules=lowered.rules, trim=lowered.trim)
    state = dfa.run(0, text.encode())
    return state != DEAD and dfa.accepting[state]


# grammar, accepted, rejected
TABLE: dict[str, tuple[str, list[str], list[str]]] = {
    "gbnf literals": (r'root ::= "a\n\x41" | "\u00e9\"" # end', ["a\nA", 'é"'], ["a", "A", ""]),
    "gbnf classes": (r"root ::= [a-c\]] [^a-c] .", ["a\n]", "]dé"], ["aaa", "ab"]),
    "gbnf repeats": ('root ::= "a"{2} "b"{1,} ("c" |\n "d"){0,2}', ["aab", "aabbcd"], ["ab", "aabccc"]),
    "parentheses": ('root ::= "(" root ")" root | ""', ["", "(())()"], ["(", "())"]),
    "left recursion": ('root ::= root "+" t | t\nt ::= [0-9] | "(" root ")"', ["1", "1+(2+3)+4"], ["1+", "+1"]),
    "cycle": ('root ::= b "x" | "y"\nb ::= root "z" | ""', ["y", "x", "yzx", "xzxzx"], ["yx", "z"]),
    "empty head": ('root ::= ws root "w" | "y"\nws ::= " " ws | ""', ["y", "yw", "  y" + "w" * 2], [" y", "w"]),
    "lark sum": (
        '?start: p | start "+" p -> add\np: NUMBER | "(" start ")"\n%import common.NUMBER\n%ignore " "',
        ["1", " 1 + (2.5+3) "],
        ["1+", "(1"],
    ),
    "lark templates": (
        'start: sep{A, ","} | "<" sep{sep{A, "-"}, ";"} ">"\nsep{x, by}.2: x (by x)* // a list\nA: "a"+\n%ignore " "',
        ["a", "aa, a", "< a-a;a >"],
        ["a,", ",a", "<a,a>", "a-a"],
    ),
    "lark recursive templates": ('start: nest{"x"}\n!nest{y}: "(" nest{y} ")" | y', ["x", "((x))"], ["(x", ""]),
    "lark terminals": ('start: A~2..3 [B] // note\nA: "a"i | "0".."3"\nB: /x\\/y+/i', ["aA", "0a3X/YY"], ["a", "aax"]),
}


@pytest.mark.parametrize("name", TABLE)
def test_grammar_allows_its_texts_and_no_others(name: str) -> None:
    grammar, accepted, rejected = TABLE[name]
    assert [t for t in accepted if not accepts(grammar, t)] == []
    assert [t for t in rejected if accepts(grammar, t)] == []


def test_shared_beginnings_keep_deep_calls_few() -> None:
    grammar = 'root ::= add | sub | t\nadd ::= t "+" root\nsub ::= t "-" root\nt ::= "(" root ")" | "x"'
    assert accepts(grammar, "(" * 40 + "x" + ")" * 40)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= "a"\n  other', "'other' is not defined (line 2, column 3)\n    other\n    ^"),
        ('root ::= "a', "never closed"),
        ('root ::= ("a"', r"expected '\)'"),
        ('other ::= "a"', "begins with the rule 'root'"),
        ('rule: "a"', "begins with the rule 'start'"),
        ("root ::= root", "matches no text"),
        ('start: a{"x"}', "the template 'a' is not defined (line 1, column 8)"),
        ('start: a{"x", "y"}\na{x}: x', "'a' takes 1 arguments, got 2"),
        ('start: a{"x"}\na{x}: a{b{x}}\nb{x}: x "c"', "too many different arguments"),
        ('start: a{"x"\na{x}: x', "expected ',' or '}'"),
        ('start: A\nA: a{"x"}\na{x}: x', "the terminal 'A' uses the template 'a'"),
        ("start: a{}\na{x}: x", "expected an argument of 'a'"),
        ('start: a{"x"}\na{x}: x\na{y}: y', "defined twice"),
        ('start: "a" }', "expected a rule"),
        ("start: /a\\b/", "a word boundary in a terminal"),
        ("start: /a(?=b)/", "lookahead"),
        ('start: "a"\n%declare X', "'%declare' is not supported"),
        ("%import common.NOPE\nstart: NOPE", "no terminal 'NOPE'"),
        ("root ::= *", "nothing to repeat"),
    ],
)
def test_errors_say_what_and_where(grammar: str, message: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        parse_ebnf(grammar, Deadline(10.0, "ebnf"))
    assert message.replace("\\", "") in str(caught.value)


def test_masks_allow_exactly_the_tokens_that_can_go_on(world) -> None:
    tokens = [b"(", b")", b"()", b"((", b"))", b"x", b")(", b"(x", b"x)"]
    vocab = world.make_vocab(tokens)
    deadline = Deadline(10.0, "ebnf")
    lowered = parse_ebnf('root ::= root root | "(" root ")" | "x"', deadline)
    walker = index_of(vocab)
    dfa = walker.automaton(lowered.node, deadline, walker.trie.alphabet, lowered.rules, trim=lowered.trim)
    for prefix in ([], [0], [5], [3, 5], [7, 1], [7, 6], [3, 8]):
        matcher = RegularGrammar(dfa, vocab, walker, 1 << 20, ()).matcher()
        assert all(matcher.accept(token) for token in prefix)
        state = dfa.run(0, b"".join(tokens[i] for i in prefix))
        allowed = {i for i, token in enumerate(tokens) if dfa.run(state, token) != DEAD}
        assert world.mask_ids(matcher.mask()) - vocab.eos_ids == allowed
        assert matcher.is_complete() == dfa.accepting[state]
