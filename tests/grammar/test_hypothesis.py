"""Random regexes and schemas, texts that they allow and small changes of these, token by token, against other judges:
`re.fullmatch`, and a JSON Schema validator together with the policies that docs/constraints.md names."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from stemma.backend.grammar.matcher import RegularGrammar
from stemma.lang.errors import ConstraintError
from tests.grammar.test_json_schema_random import random_schema, random_value

pytest.importorskip("hypothesis", reason="hypothesis makes the examples")
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

steady = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
ALPHABET = "abcéx01 .-\n"


def wrapped(inner: st.SearchStrategy[str], conditions: bool) -> st.SearchStrategy[str]:
    kinds = [
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}?", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        inner.map(lambda body: f"(?i:{body})"),
    ]
    if conditions:
        kinds.append(inner.map(lambda body: f"(?={body})"))
        kinds.append(inner.map(lambda body: f"(?!{body})"))
    return st.one_of(kinds)


def regexes(*, conditions: bool) -> st.SearchStrategy[str]:
    leaves = ["a", "b", "c", "é", "ab", "01", " ", r"\.", "-", "[ab]", "[^a]", "[0-9]", r"\w", ".", "[a-cé]", r"\s"]
    if conditions:
        leaves += [r"\b", r"\B", r"(?<=a)", r"(?<![0-9])"]
    return st.recursive(st.sampled_from(leaves), lambda inner: wrapped(inner, conditions), max_leaves=8)


def accepted(grammar: RegularGrammar, text: str) -> bool:
    """Whether the text goes through as the tokenizer spells it, with EOS legal at its end."""
    matcher = grammar.matcher()
    return all(matcher.accept(token) for token in grammar.vocab.encode(text)) and matcher.is_complete()


def changed(draw: Any, text: str, alphabet: str) -> str:
    at = draw(st.integers(0, len(text)))
    char = draw(st.sampled_from(alphabet))
    return draw(
        st.sampled_from([text[:at] + char + text[at:], text[:at] + text[at + 1 :], text[:at] + char + text[at + 1 :]])
    )


@settings(steady, max_examples=60)
@given(data=st.data())
def test_samples_of_a_regex_are_accepted_and_changes_as_fullmatch_says(world, data) -> None:
    pattern = data.draw(regexes(conditions=False))
    reference, grammar = re.compile(pattern), world.regex(pattern)
    for _ in range(5):
        text = data.draw(st.from_regex(reference, fullmatch=True, alphabet=st.sampled_from(ALPHABET)))
        assume(len(text) < 60)
        assert accepted(grammar, text), (pattern, text)
        other = changed(data.draw, text, ALPHABET)
        assert accepted(grammar, other) == (reference.fullmatch(other) is not None), (pattern, other)


@settings(steady, max_examples=100)
@given(data=st.data())
def test_a_regex_with_conditions_accepts_what_fullmatch_accepts(world, data) -> None:
    pattern = data.draw(regexes(conditions=True))
    reference = re.compile(pattern)
    texts = [data.draw(st.text("ab0 é", min_size=1, max_size=5)) for _ in range(10)]
    try:
        grammar = world.regex(pattern)
    except ConstraintError as error:
        assert "matches nothing" in str(error), pattern
        assert not any(reference.fullmatch(text) for text in texts), pattern
        return
    for text in texts:
        assert accepted(grammar, text) == (reference.fullmatch(text) is not None), (pattern, text)


def orders(value: Any) -> Iterator[Any]:
    """The value with the members of its objects in every order; the grammar takes one or two of them."""
    if isinstance(value, list):
        for items in itertools.product(*(list(orders(item)) for item in value)):
            yield list(items)
    elif isinstance(value, dict):
        for names in itertools.permutations(value):
            for members in itertools.product(*(list(orders(value[name])) for name in names)):
                yield dict(zip(names, members, strict=True))
    else:
        yield value


def spellings(value: Any) -> list[str]:
    """All of them, or none where they are too many to be tried."""
    found = [json.dumps(one) for one in itertools.islice(orders(value), 301)]
    return found if len(found) <= 300 else []


def same(value: Any) -> Any:
    """As the grammar writes it: whole numbers without a point."""
    if isinstance(value, list):
        return [same(item) for item in value]
    if isinstance(value, dict):
        return {name: same(item) for name, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


@settings(steady, max_examples=150)
@given(seed=st.integers(0, 10**6))
def test_values_of_a_schema_are_accepted_exactly_when_a_validator_says_so(world, seed: int) -> None:
    draw = random.Random(seed)
    schema = random_schema(draw)
    validator = jsonschema.Draft202012Validator(schema)
    try:
        grammar = world.schema(schema)
    except ConstraintError as error:
        assume("no value" in str(error))
        assert not any(validator.is_valid(random_value(draw)) for _ in range(20)), schema
        return
    for _ in range(12):
        value = same(random_value(draw))
        texts = spellings(value)
        if not texts:
            continue
        found = any(accepted(grammar, text) for text in texts)
        valid = validator.is_valid(value)
        two_free_keys = "minProperties" in json.dumps(schema)  # the one policy besides order and spelling
        assert found == valid or (valid and two_free_keys), (schema, value)
