"""Schemas in the matcher: masks, forced tokens, recursion, going back and branching."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from stemma.backend.grammar.base import Vocabulary

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "order": {
            "type": "object",
            "properties": {"orderId": {"type": "integer"}, "orderName": {"enum": ["first", "second"]}},
        },
        "ok": {"type": "boolean"},
    },
    "required": ["name", "order", "ok"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"n": {"enum": [1, 12]}, "l": {"$ref": "#"}, "r": {"$ref": "#"}},
    "required": ["n"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "closed object": PERSON,
    "tree": TREE,
    "open object": {"properties": {"a": {"type": "integer"}, "ab": {"type": "null"}}, "type": "object"},
    "counted text": {"type": "string", "minLength": 1, "maxLength": 40},
    "counted words": {"type": "string", "pattern": r"^([a-c]+ ){0,6}[a-c]+$", "maxLength": 25},
    "free text": {"type": "string"},
    "array": {
        "type": "array",
        "items": {"type": "integer", "minimum": -20, "maximum": 250},
        "minItems": 1,
        "maxItems": 3,
    },
    "any": {"maxProperties": 1, "maxItems": 2},
    "alternatives": {"oneOf": [PERSON, {"type": "array", "items": PERSON}]},
    "formats": {
        "prefixItems": [{"type": "string", "format": "date"}, {"type": "string", "format": "uuid"}],
        "minItems": 2,
        "type": "array",
        "items": False,
    },
}


@pytest.fixture(params=SCHEMAS)
def schema(request: pytest.FixtureRequest) -> Any:
    return SCHEMAS[request.param]


def decode(grammar: Any, vocab: Vocabulary, world: Any, seed: int, *, jump: bool) -> list[int]:
    matcher, tokens = grammar.matcher(), []
    (eos,) = vocab.eos_ids
    while len(tokens) < 120:
        if jump and (forced := matcher.forced()):
            for token in forced:
                assert matcher.accept(token)
            tokens.extend(forced)
            continue
        if jump and matcher.is_finished():
            break
        allowed = sorted(world.mask_ids(matcher.mask()))
        assert allowed and (eos in allowed) == matcher.is_complete()
        draw = random.Random(repr((seed, tokens)))
        short = [t for t in allowed if t == eos or len(vocab.token_bytes[t] or b"") > draw.randint(0, 2)]
        token = eos if eos in allowed else draw.choice(short or allowed)
        assert matcher.accept(token)
        if token == eos:
            break
        tokens.append(token)
    return tokens


def test_masked_decoding_ends_in_valid_instances(world, schema: Any) -> None:
    grammar = world.schema(schema)
    finished = 0
    for seed in range(12):
        tokens = decode(grammar, world.bpe, world, seed, jump=False)
        if len(tokens) < 120:
            finished += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(world.text(tokens)))
    assert finished


def test_jumping_forward_changes_no_token(world, schema: Any) -> None:
    grammar = world.schema(schema)
    for seed in range(12):
        plain = decode(grammar, world.bpe, world, seed, jump=False)
        assert decode(grammar, world.bpe, world, seed, jump=True)[:120] == plain[:120]


def test_forced_tokens_are_those_of_singleton_masks(world, schema: Any) -> None:
    grammar = world.schema(schema)
    for seed in range(4):
        matcher, draw = grammar.matcher(), random.Random(seed)
        for _ in range(40):
            forced, follower, repeated = matcher.forced(), matcher.clone(), []
            while len(repeated) < len(forced) + 1 and not follower.is_complete():
                allowed = world.mask_ids(follower.mask())
                if len(allowed) > 1:
                    break
                repeated += list(allowed)
                assert follower.accept(repeated[-1])
            assert repeated[: len(forced)] == forced
            assert len(repeated) == len(forced)
            allowed = sorted(world.mask_ids(matcher.mask()))
            if not allowed or not matcher.accept(draw.choice(allowed)) or matcher.is_finished():
                break


def test_keys_are_forced_where_there_is_no_choice(world) -> None:
    matcher = world.schema({**PERSON, "properties": {**PERSON["properties"], "ok": {"const": True}}}).matcher()
    assert world.text(matcher.forced()).startswith(b'{"name":')


@pytest.mark.parametrize("walker", ["numba", "numpy"])
def test_masks_hold_exactly_the_tokens_that_fit(world, schema: Any, walker: str) -> None:
    vocab = world.random_vocab(5)
    grammar = world.schema(schema, vocab, walker=walker)
    draw = random.Random(1)
    for _ in range(3):
        state = 0
        for _ in range(15):
            expected = {
                token
                for token, text in enumerate(vocab.token_bytes)
                if text and token not in vocab.eos_ids and grammar.dfa.run(state, text) >= 0
            }
            if grammar.dfa.accepting[state]:
                expected |= vocab.eos_ids
            assert world.mask_ids(grammar.masks.row(state)) == expected
            following = [t for t in expected if t not in vocab.eos_ids]
            if not following:
                break
            state = grammar.dfa.run(state, vocab.token_bytes[draw.choice(sorted(following))] or b"")


def test_a_vocabulary_without_all_bytes_leads_into_no_dead_end(world) -> None:
    vocab = world.make_vocab([bytes([b]) for b in b'{}":,an1 ' if b != ord(",")])
    grammar = world.schema({"properties": {"a": {"$ref": "#"}, "n": {"type": "integer"}}, "type": "object"}, vocab)
    draw = random.Random(0)
    for _ in range(20):
        matcher = grammar.matcher()
        for _ in range(60):
            allowed = sorted(world.mask_ids(matcher.mask()))
            assert allowed
            assert matcher.accept(draw.choice(allowed))
            if matcher.is_finished():
                break


def test_recursion_comes_back_from_any_depth(world) -> None:
    grammar = world.schema(TREE)
    for depth in (1, 5, 60):
        text = '{"n":1,"l":' * depth + '{"n":12}' + "}" * depth
        inner = grammar.dfa.run(0, text.encode())
        assert grammar.dfa.accepting[inner] and not grammar.dfa.has_next(inner)
        assert grammar.dfa.run(0, (text + "}").encode()) < 0


def test_rollback_and_clone_return_to_the_same_masks(world, schema: Any) -> None:
    matcher, draw = world.schema(schema).matcher(), random.Random(3)
    masks, steps = [matcher.mask()], 0
    while steps < 25 and not matcher.is_finished():
        allowed = sorted(world.mask_ids(matcher.mask()) - world.bpe.eos_ids)
        assert matcher.clone().accept(draw.choice(allowed))
        assert matcher.accept(draw.choice(allowed))
        masks.append(matcher.mask())
        steps += 1
    for back in range(steps + 1):
        branch = matcher.clone()
        branch.rollback(back)
        assert (branch.mask() == masks[steps - back]).all()
    with pytest.raises(ValueError):
        matcher.rollback(steps + 1)


def test_long_texts_share_their_masks(world) -> None:
    grammar = world.schema({"type": "string", "maxLength": 5000})
    rows = {id(grammar.masks.row(grammar.dfa.run(0, b'"' + b"x" * n))) for n in range(1, 3000, 100)}
    assert len(rows) == 1


@pytest.mark.parametrize("walker", ["numba", "numpy"])
def test_a_key_that_may_not_stand_here_is_never_closed(world, walker: str) -> None:
    vocab = world.make_vocab([*(bytes([b]) for b in range(128)), b'a"', b'"a"', b'ab"'])
    schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"}
    grammar = world.schema(schema, vocab, walker=walker)
    dfa = grammar.dfa
    before = dfa.run(0, b'{"a":1,')
    assert world.mask_ids(grammar.masks.row(before)) & {ord('"'), 128, 129, 130} == {ord('"')}
    inside = dfa.step(before, ord('"'))
    assert world.mask_ids(grammar.masks.row(inside)) & {ord('"'), ord("a"), 128, 130} == {ord('"'), ord("a"), 130}
    assert ord('"') not in world.mask_ids(grammar.masks.row(dfa.step(inside, ord("a"))))
