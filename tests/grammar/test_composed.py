"""Composed constraints as grammars: the language, and the captures, against Python's regular expressions."""

from __future__ import annotations

import json as stdlib_json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma import capture, choice, ebnf, json, literal, optional, regex, repeat, sequence
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import compile_constraint, find_captures, matches
from stemma.interpreter.endpoints.composed import scripted_captures
from stemma.lang.compose import Part, constraint_of
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

TOKENS = [bytes([i]) for i in range(128)]
VOCABULARY = Vocabulary([*TOKENS, None], 129, frozenset([128]), lambda text: list(text.encode()))
LEAVES = ["a", "b", "ab", "[ab]*", "[ab]+", "a?", "b{1,2}", "c", "(?:[abc]{30})?[ab]*"]  # the last is a rule of its own


class Pair:
    """A part, and the regular expression that says the same; `nullable`: it matches the empty text."""

    def __init__(self, part: Part, pattern: str, names: frozenset[str] = frozenset()) -> None:
        self.part, self.pattern, self.names = part, pattern, names
        self.nullable = re.fullmatch(pattern, "") is not None


def captured(name: str, one: Pair) -> Pair:
    return Pair(capture(name, one.part), f"(?P<{name}>{one.pattern})", one.names | {name})


def parts(pairs: list[Pair]) -> list[Part]:
    return [pair.part for pair in pairs]


def names(pairs: list[Pair]) -> frozenset[str]:
    return frozenset().union(*(pair.names for pair in pairs))


def separated(item: Pair, separator: Pair, low: int, high: int | None) -> Pair:
    more = f"(?:{separator.pattern}{item.pattern}){{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
    pattern = f"(?:{item.pattern}{more}){'' if low else '?'}"
    return Pair(repeat(item.part, low, high, separator=separator.part), pattern)


def grown(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    several = st.lists(inner, min_size=2, max_size=3).filter(lambda ps: sum(len(p.names) for p in ps) == len(names(ps)))
    return st.one_of(
        several.map(lambda ps: Pair(sequence(*parts(ps)), "".join(p.pattern for p in ps), names(ps))),
        several.map(lambda ps: Pair(choice(*parts(ps)), f"(?:{'|'.join(p.pattern for p in ps)})", names(ps))),
        inner.filter(lambda p: not p.nullable).flatmap(
            lambda p: st.sampled_from([(0, None), (1, None), (0, 1), (1, 2), (2, 3)]).map(
                lambda b: Pair(
                    repeat(p.part, *b), f"(?:{p.pattern}){{{b[0]},{'' if b[1] is None else b[1]}}}", p.names
                )
            )
        ),
        st.builds(
            lambda item, separator, bounds: separated(item, separator, *bounds),
            inner.filter(lambda p: not p.names),
            inner.filter(lambda p: not p.names),
            st.sampled_from([(0, None), (1, None), (0, 1), (0, 2), (2, 3)]),
        ),
        st.tuples(st.sampled_from(["x", "y", "z"]), inner).filter(lambda t: t[0] not in t[1].names).map(
            lambda t: captured(*t)
        ),
    )  # fmt: skip


PAIRS = st.recursive(
    st.sampled_from(LEAVES).map(lambda p: Pair(literal(p) if p.isalpha() else regex(p), f"(?:{p})")),
    grown,
    max_leaves=7,
)


@settings(max_examples=250, deadline=None)
@given(st.data(), PAIRS, st.text("abc", max_size=7))
def test_language_and_captures_are_those_of_the_regular_expression(data, pair, text):
    inside = st.from_regex(re.compile(pair.pattern), fullmatch=True).filter(lambda drawn: len(drawn) < 12)
    text = data.draw(inside) if data.draw(st.booleans()) else text
    constraint, match = constraint_of(pair.part), re.fullmatch(pair.pattern, text)
    assert matches(constraint, text) == (match is not None)
    found = find_captures(constraint, text)
    assert found == scripted_captures(str(constraint.value), text)
    if match is None:
        assert found is None
        return
    assert found is not None and found.keys() == pair.names
    for name in pair.names:
        last = found[name][-1] if found[name] else [-1, -1]  # a group keeps its last match
        assert list(match.span(name)) == last


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.recursive(st.integers(-(10**20), 10**20) | st.text(max_size=3) | st.none(), st.lists, max_leaves=4),
        max_size=3,
    )
)
def test_json_parts_are_found_whatever_they_hold(values):
    part = "[" + repeat(capture("v", json({})), separator=" | ") + "]"
    text = "[" + " | ".join(stdlib_json.dumps(value) for value in values) + "]"
    found = find_captures(constraint_of(part), text)
    assert found is not None and found == scripted_captures(str(constraint_of(part).value), text)
    assert [stdlib_json.loads(text[a:b]) for a, b in found["v"]] == values


def test_captures_are_in_characters():
    part = "«" + capture("x", regex("[é😀]+")) + "»" + capture("y", regex("."))
    assert find_captures(constraint_of(part), "«é😀»ü") == {"x": [[1, 3]], "y": [[4, 5]]}


def test_every_kind_of_leaf_is_one_grammar():
    part = (
        "Name: "
        + capture("name", regex("[A-Z][a-z]+"))
        + "\n"
        + capture("tags", json(list[int]))
        + capture("sum", ebnf('root ::= n ("+" n)*\nn ::= [0-9]+'))
        + optional("!")
    )
    constraint = constraint_of(part)
    for text, good in [
        ('Name: Ada\n[1, 2]3+4', True),
        ('Name: Ada\n[1, 2]3+4!', True),
        ('Name: ada\n[1]3', False),
        ('Name: Ada\n["x"]3', False),
        ('Name: Ada\n[1]3+', False),
    ]:  # fmt: skip
        assert matches(constraint, text) is good, text
    assert find_captures(constraint, "Name: Ada\n[1]3+4") == {"name": [[6, 9]], "tags": [[10, 13]], "sum": [[13, 16]]}


def test_a_schema_that_recurses_may_stand_in_many_places():
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}
    part = repeat(capture("t", json(tree)), 2, 2, separator=" ") + json(tree)
    assert matches(constraint_of(part), "[[]] [[], []][]")
    assert not matches(constraint_of(part), "[[]] [[], [][]")


def test_forced_text_is_given_at_once_and_the_mask_obeys():
    matcher = compile_constraint(constraint_of("Name: " + capture("n", regex("[AB]+")) + "."), VOCABULARY).matcher()
    assert bytes(matcher.forced()) == b"Name: "
    assert all(matcher.accept(token) for token in b"Name: ")
    assert not matcher.accept(ord(".")) and matcher.accept(ord("B")) and matcher.accept(ord("."))
    assert matcher.is_finished()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (sequence("a", regex("(")), r"composed: sequence\[1\].regex: regex: "),
        (
            repeat(json({"type": "integer", "multipleOf": "x"})),
            "composed: repeat.json_schema: json_schema: multipleOf at /",
        ),
        (sequence("a", choice("b", ebnf("root ::= x"))), r"composed: sequence\[1\].choice\[1\].ebnf: ebnf: "),
        (repeat("ab" * 20, 5000, 5000), "when repeats are written out, the limit is"),
        (literal("\ud800"), "lone surrogate"),
    ],
)
def test_a_part_that_does_not_compile_is_named(part, message):
    with pytest.raises(ConstraintError, match=message):
        compile_constraint(constraint_of(part), VOCABULARY)


def test_lenient_reaches_the_leaves():
    part = "a" + json({"type": "string", "pattern": r"(.)\1"})
    with pytest.raises(ConstraintError, match="backreferences"):
        compile_constraint(constraint_of(part), VOCABULARY)
    grammar = compile_constraint(constraint_of(part), VOCABULARY, lenient=True)
    assert any("composed: sequence[1].json_schema: json_schema" in warning for warning in grammar.warnings)


def test_a_hostile_search_ends_in_time():
    part = repeat(repeat(regex("[ab]{1,9}"), 1, 9) + regex("[ab]{1,9}"), 50, 900) + capture("x", "c")
    begin = time.monotonic()
    with pytest.raises(ConstraintError, match=r"captures took longer than 0.3 s|too many ways"):
        find_captures(constraint_of(part), "ab" * 3000 + "d", seconds=0.3)
    assert time.monotonic() - begin < 2


def test_a_long_text_with_clear_parts_is_searched_in_a_moment():
    part = repeat("- " + capture("item", regex(r"[^\n]*")) + "\n")
    text = "".join(f"- item number {i}\n" for i in range(2000))
    begin = time.thread_time()
    found = find_captures(constraint_of(part), text, seconds=10)
    assert time.thread_time() - begin < 3
    assert found is not None and len(found["item"]) == 2000
    assert [text[a:b] for a, b in found["item"]][1999] == "item number 1999"


@pytest.mark.parametrize("name", ["llguidance", "xgrammar"])
def test_other_engines_refuse_composed_constraints_by_name(name):
    from stemma.backend.grammar.adapters import backend_named
    from stemma.backend.grammar.adapters.peer import installed

    if not installed(name):
        pytest.skip(f"{name} is not installed")
    with pytest.raises(ConstraintError, match=f"{name} has no composed constraints"):
        backend_named(name).compile(Constraint("composed", '{"literal": "a"}'), VOCABULARY)
