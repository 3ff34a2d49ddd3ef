"""Lookaround, word boundaries, anchors inside and possessive repeats: what Python's `re` says, text by text."""

from __future__ import annotations

import itertools
import random
import re
import time

import pytest

from stemma.backend.grammar.automaton import Dfa
from stemma.backend.grammar.chardfa import Language
from stemma.backend.grammar.compiler import compile_constraint, lower, matches
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.regex_search import parse_search
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

TEXTS = ["".join(t) for n in range(5) for t in itertools.product("abcx1 \n", repeat=n)]


def automaton(pattern: str) -> Dfa:
    deadline = Deadline(5.0, "regex")
    return Dfa(lower(Constraint("regex", pattern), deadline).node, deadline)


def accepts(dfa: Dfa, text: str) -> bool:
    state = dfa.run(0, text.encode())
    return state >= 0 and dfa.accepting[state]


@pytest.mark.parametrize(
    "pattern",
    [
        r"a(?=b)b|c(?!b)\w",
        r"(?!b)[a-c]+",
        r"(?=.*\d)(?=.*[a-c]).{2,6}",
        r"\bab?\b(?: \bcx\b)*",
        r"(a\b.?)+",
        r"(?<=a)b|ab(?<!b)c|a(?<=a)b",
        r"(?:a(?!b)|ab(?=c)|c)*",
        r"\w+(?<!ab)",
        r"(?:[ab]?+)*",
        r"a*+b|x{1,2}+x?b",
        r"a$\n?|b\Z",
        r"(?m)(?:^a$\n?)+",
        r"(?:\b|a)+x*\b",
        r"(?=(a|b(?!c)))\w+",
        r"(?!.*ax).*1",
        r"(?i)(?=A)a\b",
        r"\Ba|a\Bb",
        r"((?!a)[ab]|a(?=b))*",
        r"(?<![ab])c|a+(?<=aa)c",
        r"(^a|b)+$|(c$|x)+",
        r"(?s)(?!.*  ).*",
    ],
)
def test_a_condition_means_what_fullmatch_says(pattern: str) -> None:
    dfa, reference = automaton(pattern), re.compile(pattern)
    wrong = [t for t in TEXTS if accepts(dfa, t) != (reference.fullmatch(t) is not None)]
    assert wrong == []
    assert any(reference.fullmatch(t) for t in TEXTS)


def some(draw: random.Random, depth: int) -> str:
    kind = draw.randint(0, 12 if depth else 3)
    if kind <= 1:
        return draw.choice("abc ")
    if kind == 2:
        return draw.choice(["[ab]", "[^a]", ".", r"\w"])
    if kind == 3:
        return draw.choice(["", "a", "bc"])
    if kind == 4:
        return f"(?:{some(draw, depth - 1)}|{some(draw, depth - 1)})"
    if kind <= 7:
        return some(draw, depth - 1) + some(draw, depth - 1)
    if kind == 8:
        return draw.choice([r"\b", r"\B", "^", "$", r"\A", r"\Z"])
    if kind == 9:
        return f"(?{draw.choice('=!')}{some(draw, depth - 1)})"
    if kind == 10:
        return f"(?<{draw.choice('=!')}{draw.choice(['a', 'b ', '[ab]', 'a|b', 'ab'])})"
    return f"(?:{some(draw, depth - 1)}){draw.choice(['*', '+', '?', '{2}', '{0,2}', '*?'])}"


def test_random_conditions_mean_what_fullmatch_says() -> None:
    draw = random.Random(3)
    texts = ["".join(t) for n in range(1, 5) for t in itertools.product("abc \n", repeat=n)]  # `re` has its own idea
    compiled = 0  # of `\B` in an empty text
    for _ in range(500):
        pattern = some(draw, 5)
        reference, sample = re.compile(pattern), draw.sample(texts, 100)
        try:
            dfa = automaton(pattern)
        except ConstraintError as error:
            assert "matches nothing" in str(error), pattern
            assert not any(reference.fullmatch(t) for t in sample), pattern
            continue
        compiled += 1
        for text in sample:
            assert accepts(dfa, text) == (reference.fullmatch(text) is not None), (pattern, text)
    assert compiled > 200


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bab\b",
        r"a(?!b)",
        r"(?<!a)b",
        r"(a|^)b",
        r"a(b|$)",
        r"^(?!.*aa).*b$",
        r"(?<=b)c",
        r"(^a|b$){1,2}",
        r"x\b|(?!^)a",
    ],
)
def test_a_search_finds_what_python_finds(pattern: str) -> None:
    language = Language(pattern, parse_search(pattern, Deadline(5.0, "regex")))
    language.prepare(Deadline(5.0, "regex"))
    reference = re.compile(pattern.replace("$", r"\Z"))  # JavaScript's `$` is the end itself
    assert [t for t in TEXTS if language.accepts(t) != (reference.search(t) is not None)] == []


def test_masks_follow_conditions(world) -> None:
    grammar = compile_constraint(Constraint("regex", r"(?=.*\d)(?!.*00)[a-z0-9]{2,4}"), world.bpe)
    matcher = grammar.matcher()
    ids = {t: i for i, t in enumerate(world.bpe.token_bytes)}
    assert matcher.accept(ids[b"0"])
    assert not matcher.is_complete()
    assert not matcher.accept(ids[b"0"])
    assert matcher.accept(ids[b"a"]) and matcher.is_complete()


def test_many_conditions_are_refused_in_bounded_time() -> None:
    classes = "".join(f"(?=.*{c}.{{12}})" for c in "abcdefghijkl")
    with pytest.raises(ConstraintError, match=r"states|took longer"):
        matches(Constraint("regex", f"{classes}.*"), "a")


def test_a_condition_at_a_place_that_no_text_reaches_is_no_error() -> None:
    assert matches(Constraint("regex", r"a|b(?<=[^\s\S])c"), "a")
    assert matches(Constraint("regex", r"a(?<![^\s\S])b"), "ab")


@pytest.mark.parametrize(
    "pattern",
    [
        "(?!b)" * 3000 + "a",
        "".join(f"(?:(?=.*{c})|(?!.*{c}x))" for c in "abcdefghijklmnopqrst") + ".*",
        r"(?:(?=.{0,90}x)[a-z]){0,900}",
        r"(?:a(?=(?:a|b){25}a)|b)*",
        r"((\b.?){300}){300}",
    ],
    ids=lambda p: p[:24],
)
def test_hostile_conditions_are_refused_soon(pattern: str) -> None:
    start = time.thread_time()
    with pytest.raises(ConstraintError):
        lower(Constraint("regex", pattern), Deadline(0.3, "regex"))
    assert time.thread_time() - start < 1.0
