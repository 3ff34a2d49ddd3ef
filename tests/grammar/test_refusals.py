"""What is not supported or too large is refused, soon, with the value, the place and what to do."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from stemma.backend.grammar.compiler import compile_constraint, matches
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.params import Constraint


@pytest.mark.parametrize(
    ("pattern", "position", "word"),
    [
        (r"(a)\1", 3, "backreferences"),
        (r"(?P<x>a)(?P=x)", 8, "backreference"),
        (r"(?>a)b", 0, "atomic"),
        (r"(a)(?(1)b|c)", 3, "conditional"),
        (r"^*a", 1, "anchor"),
        (r"\b+a", 2, "boundary"),
        (r"(?=a)*a", 5, "lookahead"),
        (r"(?<=(?=a)b)c", 0, "inside a lookbehind"),
        (r"x(?<!^a)c", 1, "inside a lookbehind"),
        (r"(ab)++c", 5, "possessive"),
        (r"a**", 2, "repeat"),
        (r"*a", 0, "nothing to repeat"),
        (r"(+a)", 1, "nothing to repeat"),
        (r"a{3,2}", 1, "least count"),
        (r"a{9999999999}", 1, "too large"),
        (r"(ab", 0, "never closed"),
        (r"(?#ab", 0, "never closed"),
        (r"ab)", 2, "unbalanced"),
        (r"x[ab", 1, "never closed"),
        (r"[b-a]", 1, "range"),
        (r"[a-\w]", 1, "range"),
        (r"[[:alpha:]]", 1, "POSIX"),
        (r"[a-z&&[aeiou]]", 4, "intersection"),
        (r"\ud800", 0, "surrogate"),
        ("a\ud800", 1, "surrogate"),
        (r"\u12g4", 0, "hexadecimal"),
        (r"ab\q", 2, "unknown escape"),
        ("ab\\", 2, "lone"),
        (r"\777", 0, "octal"),
        (r"\p{Klingon}", 0, "'Klingon'"),
        (r"a\p{scx=Greek}", 1, "'scx=Greek'"),
        (r"\p{Emoji}", 0, "'Emoji'"),
        (r"\p", 0, "name"),
        (r"\N{no such name}", 0, "name"),
        (r"(?x)a b", 0, "flag"),
        (r"a(?i)b", 1, "start"),
        (r"(?i-s)b", 0, "switched off"),
        (r"(?Qa)", 0, "flag"),
        (r"(?*a)", 0, "group"),
    ],
)
def test_a_refusal_shows_the_place_under_a_caret(pattern: str, position: int, word: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        matches(Constraint("regex", pattern), "")
    message = str(caught.value)
    assert word in message
    assert f"(position {position})" in message
    assert caught.value.param == "regex"
    assert isinstance(caught.value, RequestError)
    shown, caret = message.split("\n")[-2:]
    assert len(caret) - 1 == position + 2
    assert len(shown) >= position + 2


def test_the_caret_points_into_a_window_of_a_long_pattern() -> None:
    with pytest.raises(ConstraintError) as caught:
        matches(Constraint("regex", "x" * 5000 + r"\y" + "y" * 5000), "")
    shown, caret = str(caught.value).split("\n")[-2:]
    assert len(shown) < 100
    assert shown[len(caret) - 1 :].startswith(r"\y")


@pytest.mark.parametrize(
    "pattern",
    [
        r"[^\x00-\U0010ffff]",
        r"a[^\s\S]",
        r"(a|b)[^\w\W]+",
        r"a^b",
        r"a$b",
        r"a(?=b)",
        r"(?<=a)b",
        r"a*+a",
        r"(?!a)a+",
        r"a\bb",
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ConstraintError, match="matches nothing"):
        matches(Constraint("regex", pattern), "")


def test_an_empty_class_beside_a_live_option_is_no_error() -> None:
    assert matches(Constraint("regex", r"a|b[^\s\S]"), "a")
    assert matches(Constraint("regex", r"a([^\s\S])*"), "a")


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a{1000}){1000}",
        r"((a{100}){100}){100}",
        r"(a|b|c){0,100000}",
        r"a{999999999}",
        "(" * 10_000 + "a" + ")" * 10_000,
        "(" * 10_000,
        "a" * 1_000_000,
        "(a|" * 300_000,
        "[" * 50_000,
        "|".join(f"word{i}" for i in range(100_000)),
        "|".join(f"[a-{c}]{{{n}}}" for c in "bcdefg" for n in range(1, 900)),
        "(a?){99999}" * 50,
        "\\w{50000}|\\W{60000}",
        "{" * 90_000 + "[",
    ],
    ids=lambda p: p[:24],
)
def test_a_hostile_pattern_is_refused_soon(pattern: str) -> None:
    start = time.process_time()
    with pytest.raises(ConstraintError) as caught:
        matches(Constraint("regex", pattern), "")
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(a+)+b", "a" * 3000),
        (r"(a|a)*b", "a" * 3000),
        (r"(a|aa)+b", "a" * 3000),
        (r"(.*)*(.*)*!", "x" * 3000),
        (r"(a?){200}a{200}", "a" * 3000),
        (r"(a?b?){0,2000}", "ab" * 3000),
        (r"(a*b*){0,2000}c", "ab" * 3000),
        (r"(\w+\s?)+x", "word " * 600),
        (r"([ab]?[bc]?[cd]?){0,1000}!", "abcd" * 800),
    ],
)
def test_backtracking_traps_run_in_linear_time(pattern: str, text: str) -> None:
    start = time.process_time()
    assert not matches(Constraint("regex", pattern), text)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "pattern",
    [
        ("(a?b?c?" * 49 + ")*" * 49) * 60,
        r"\w?" * 20_000,
        "(" * 15 + "a?" + "){2}" * 15,
        "(a)" * 20_000,
        "a*+b*+" * 10_000,
        "(?i)[" + "".join(chr(0x100 + 2 * i) for i in range(20_000)) + "]",
    ],
    ids=["nested stars", "many optional", "nested repeats", "many groups", "possessive", "wide class"],
)
def test_a_heavy_pattern_compiles_or_is_refused_soon(pattern: str) -> None:
    start = time.process_time()
    with contextlib.suppress(ConstraintError):
        matches(Constraint("regex", pattern), "a" * 50)
    assert time.process_time() - start < 8


def test_an_automaton_that_explodes_is_stopped_while_it_grows(world) -> None:
    matcher, draw = world.regex(r"(a|b)*a(a|b){24}").matcher(), random.Random(0)
    start = time.process_time()
    with pytest.raises(ConstraintError, match="automaton grew over its limit"):
        for _ in range(60_000):
            assert matcher.accept(world.bpe.token_bytes.index(draw.choice([b"a", b"b"])))
    assert time.process_time() - start < 10


def test_compilation_stops_at_its_time_limit(world) -> None:
    pattern = "|".join(f"(x{i}{chr(0x4E00 + i)}|[a-f]{{3}})" for i in range(5000))
    start = time.process_time()
    with pytest.raises(ConstraintError, match="took longer than"):
        compile_constraint(Constraint("regex", pattern), world.bpe, time_limit=0.01)
    assert time.process_time() - start < 3


def test_too_many_choices_are_refused() -> None:
    values = tuple(f"{i:0100d}" for i in range(2000))
    with pytest.raises(ConstraintError, match=r"200000 bytes in 2000 strings, the limit is 100000"):
        matches(Constraint("choices", values), "")


def test_a_choice_with_a_lone_surrogate_is_named() -> None:
    with pytest.raises(ConstraintError, match=r"choices\[1\] holds a lone surrogate"):
        matches(Constraint("choices", ("a", "\udc00")), "a")
