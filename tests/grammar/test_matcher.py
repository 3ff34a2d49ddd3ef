"""One generation: accept, forced text, stopping, going back and branching."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from stemma.backend.grammar.base import Grammar, Matcher, Vocabulary
from stemma.backend.grammar.compiler import compile_constraint
from stemma.backend.grammar.matcher import RegularMatcher
from stemma.lang.params import Constraint

FORCED_PATTERNS = [
    r'\{"name": "[a-z]{1,8}", "order": \{"orderId": [0-9]{1,5}, "orderName": "(first|second)"\}, "ok": (true|false)\}',
    r"The quick brown fox jumps over the (lazy|quick) dog\.( The orders are ordered in order of orderliness\.)?",
    r"[0-9]{4}-01-[0-9]{2}T12:34:56Z",
    r"https://example\.org/path\?query=[0-9]+",
    r"(naïve|naïf) café Straße façade",
    r"東京都(日本語|日本)Ωμέγα",
    r"[😀-😎]{2}👍👍👍привет",
    r"(New York|New Jersey|Newark|New)",
    r"    return value  # indented\n\tif x == 1:\n",
    r"hello( hello){2,}",
    r"order(Id|Name|)",
    r"a{40}b{3}c?",
    r"  {3,6}x",
    r"([a-c]+;){3}end of the text",
    r"(yes|no|maybe)",
    r"abc",
]


def walk(matcher: Matcher, world, draw: random.Random, limit: int = 400) -> list[int]:
    """Decode with masks alone: a random allowed token, often EOS where it is legal."""
    tokens: list[int] = []
    (eos,) = world.bpe.eos_ids
    while len(tokens) < limit:
        allowed = sorted(world.mask_ids(matcher.mask()))
        assert (eos in allowed) == matcher.is_complete()
        assert allowed
        token = eos if eos in allowed and (len(allowed) == 1 or draw.random() < 0.3) else draw.choice(allowed)
        assert matcher.accept(token)
        tokens.append(token)
        if token == eos:
            break
    return tokens


def test_random_walks_end_in_a_whole_match(world, pattern: str) -> None:
    grammar = world.regex(pattern)
    for seed in range(4):
        tokens = walk(grammar.matcher(), world, random.Random(seed))
        if tokens[-1] in world.bpe.eos_ids:
            text = world.text(tokens).decode()
            assert re.fullmatch(pattern, text), text


def model(seed: int, step: int, greedy: bool, text: bytes) -> random.Random:
    """Scores that depend on the text so far, as a model's do."""
    return random.Random(repr((seed, greedy, text, 0 if greedy else step)))


def decode(grammar: Grammar, world, seed: int, *, jump: bool, greedy: bool) -> tuple[list[int], int]:
    """The ids of one generation, and how many of them the model had to be asked for."""
    matcher, tokens, asked = grammar.matcher(), [], 0
    (eos,) = world.bpe.eos_ids
    while len(tokens) < 300:
        if jump and (forced := matcher.forced()):
            for token in forced:
                assert matcher.accept(token)
            tokens.extend(forced)
            continue
        if matcher.is_finished():
            break
        allowed = sorted(world.mask_ids(matcher.mask()))
        asked += 1
        token = model(seed, len(tokens), greedy, world.text(tokens)).choice(allowed)
        assert matcher.accept(token)
        tokens.append(token)
        if token == eos:
            break
    return tokens[:300], asked


@pytest.mark.parametrize("pattern", FORCED_PATTERNS)
@pytest.mark.parametrize("greedy", [True, False])
def test_jumping_over_forced_text_gives_the_ids_of_plain_decoding(world, pattern: str, greedy: bool) -> None:
    for seed in range(6):
        plain, _ = decode(world.regex(pattern), world, seed, jump=False, greedy=greedy)
        jumped, _ = decode(world.regex(pattern), world, seed, jump=True, greedy=greedy)
        assert jumped == plain


@pytest.mark.parametrize("pattern", FORCED_PATTERNS)
def test_forced_is_what_single_bit_masks_give(world, pattern: str) -> None:
    grammar = world.regex(pattern)
    for seed in range(3):
        matcher, draw = grammar.matcher(), random.Random(seed)
        for _ in range(40):
            if matcher.is_finished():
                assert matcher.forced() == []
                break
            twin, expected = matcher.clone(), []
            while not twin.is_finished() and not twin.is_complete() and len(ids := world.mask_ids(twin.mask())) == 1:
                expected += ids
                assert twin.accept(expected[-1])
            assert matcher.forced() == expected
            allowed = sorted(world.mask_ids(matcher.mask()) - world.bpe.eos_ids)
            assert matcher.accept(draw.choice(allowed))


def test_forced_text_is_spelled_as_the_tokenizer_spells_it(world) -> None:
    text = '{"name": "Ada Lovelace", "order": {"orderId": 12345}}'
    matcher = world.regex(re.escape(text)).matcher()
    assert matcher.forced() == world.bpe.encode(text)


def test_a_forced_span_stops_where_a_longer_token_may_cover_it(world) -> None:
    """Both names start with `order`; forcing that token would forbid a token such as `orderI`."""
    matcher = world.regex(r'"(orderId|orderName)"').matcher()
    for token in matcher.forced():
        assert matcher.accept(token)
    for text in ('"orderId"', '"orderName"'):
        ids = world.bpe.encode(text)
        twin = world.regex(r'"(orderId|orderName)"').matcher()
        assert all(twin.accept(token) for token in ids), text


def test_every_canonical_spelling_of_a_match_is_accepted(world) -> None:
    """The singleton masks never cut off the tokenizer's own spelling of a whole text."""
    for pattern, text in [
        (r"(New York|New Jersey|Newark|New)", "Newark"),
        (r"(New York|New Jersey|Newark|New)", "New Jersey"),
        (r"hello( hello){2,}", "hello hello hello hello"),
        (r"  {3,6}x", "     x"),
        (r"[0-9]{4}-01-[0-9]{2}T12:34:56Z", "2024-01-31T12:34:56Z"),
        (r"(naïve|naïf) café Straße façade", "naïve café Straße façade"),
        (r"東京都(日本語|日本)Ωμέγα", "東京都日本語Ωμέγα"),
        (r"[😀-😎]{2}👍👍👍привет", "😀😀👍👍👍привет"),
    ]:
        matcher = world.regex(pattern).matcher()
        for token in world.bpe.encode(text):
            assert matcher.accept(token), (pattern, text, world.bpe.token_bytes[token])
        assert matcher.is_complete()


@pytest.mark.parametrize("seed", range(4))
def test_forced_is_exact_for_any_vocabulary(world, seed: int) -> None:
    vocab = world.random_vocab(seed, all_bytes=seed % 2 == 0)
    for pattern in [r"abcabc-(ab|cd)+", r"a-0123(4|5)?", r"(ab){3}", r"[ab]cde(fg)?h", r"ab c,1\.2"]:
        try:
            grammar = world.regex(pattern, vocab)
        except ValueError:
            continue
        matcher, draw = grammar.matcher(), random.Random(seed)
        for _ in range(30):
            forced = matcher.forced()
            if forced:
                assert world.mask_ids(matcher.mask()) == {forced[0]}
            if matcher.is_finished():
                assert forced == []
                break
            assert matcher.accept(draw.choice(sorted(world.mask_ids(matcher.mask()) - vocab.eos_ids)))


def test_an_encoder_that_adds_a_space_forces_nothing_wrong(world) -> None:
    def spaced(text: str) -> list[int]:
        return world.bpe.encode(" " + text)

    vocab = type(world.bpe)(world.bpe.token_bytes, world.bpe.size, world.bpe.eos_ids, spaced)
    matcher = world.regex("(ab|cd)The quick brown", vocab).matcher()
    tokens: list[int] = []
    while not matcher.is_finished():
        tokens.append(min(world.mask_ids(matcher.mask())))
        assert matcher.accept(tokens[-1])
    assert re.fullmatch("(ab|cd)The quick brown", world.text(tokens).decode())


def test_alternatives_that_continue_one_another(world) -> None:
    for pattern, text in [("ab|abc", "abc"), ("(ab)+", "ababab"), ("a(b|bc)(d|)", "abcd")]:
        matcher = world.regex(pattern).matcher()
        for i, byte in enumerate(text.encode()):
            token = world.bpe.token_bytes.index(bytes([byte]))
            assert token in world.mask_ids(matcher.mask()), (pattern, i)
            assert matcher.accept(token)
        assert matcher.is_complete()


def test_a_choice_that_begins_another_may_stop_or_go_on(world) -> None:
    matcher = world.choices("New", "New York", "Newark").matcher()
    for token in world.bpe.encode("New"):
        assert matcher.accept(token)
    assert matcher.is_complete()
    assert not matcher.is_finished()
    assert matcher.forced() == []
    allowed = {world.bpe.token_bytes[t] for t in world.mask_ids(matcher.mask())}
    assert {None, b" ", b"a"} <= allowed
    assert not any(text and text[:1] not in (b" ", b"a") for text in allowed)


def test_eos_is_legal_exactly_at_a_whole_match(world) -> None:
    matcher = world.regex("ab?").matcher()
    (eos,) = world.bpe.eos_ids
    assert not matcher.accept(eos)
    assert matcher.accept(world.bpe.token_bytes.index(b"a"))
    assert matcher.is_complete()
    assert not matcher.is_finished()
    assert matcher.accept(eos)
    assert matcher.is_finished()
    assert matcher.is_complete()
    assert matcher.forced() == []
    assert world.mask_ids(matcher.mask()) == {eos}
    assert not matcher.accept(world.bpe.token_bytes.index(b"b"))
    matcher.rollback(1)
    assert not matcher.is_finished()
    assert matcher.accept(world.bpe.token_bytes.index(b"b"))
    assert matcher.is_finished()


def test_the_empty_text_is_complete_at_once(world) -> None:
    matcher = world.regex("").matcher()
    assert matcher.is_complete()
    assert matcher.is_finished()
    assert world.mask_ids(matcher.mask()) == set(world.bpe.eos_ids)


def test_a_refused_token_changes_nothing(world) -> None:
    matcher = world.regex("[a-c]{5}").matcher()
    before = matcher.mask()
    assert not matcher.accept(world.bpe.token_bytes.index(b"z"))
    assert matcher.mask() is before
    with pytest.raises(ValueError, match="cannot roll back 1 tokens; 0 were accepted"):
        matcher.rollback(1)


def test_a_vocabulary_that_is_stuck_finishes_without_being_complete(world) -> None:
    vocab = world.make_vocab([b"ab", b"b", b"cc"])
    matcher = world.regex("abcb?", vocab).matcher()
    assert matcher.accept(0)
    assert matcher.is_finished()
    assert not matcher.is_complete()
    assert world.mask_ids(matcher.mask()) == set()
    assert matcher.forced() == []


def test_only_eos_left_by_the_vocabulary_is_finished(world) -> None:
    vocab = world.make_vocab([b"a", b"bc"])
    matcher = world.regex("a(bbc|bd)?c?", world.make_vocab([b"a", b"bcd", b"c", b"d", b"bb"])).matcher()
    assert matcher.accept(0)
    assert not matcher.is_finished()
    other = world.regex("ab*", vocab).matcher()
    assert other.accept(0)
    assert other.is_complete()
    assert other.is_finished()


def test_rollback_and_clone_agree_with_replaying(world, pattern: str) -> None:
    grammar, draw = world.regex(pattern), random.Random(3)
    matcher: Matcher = grammar.matcher()
    accepted: list[int] = []
    branches: list[tuple[Matcher, list[int]]] = []
    for _ in range(25):
        kind = draw.random()
        options = sorted(world.mask_ids(matcher.mask()))
        if kind < 0.25 and accepted:
            n = draw.randint(1, len(accepted))
            matcher.rollback(n)
            del accepted[-n:]
        elif kind < 0.4:
            branches.append((matcher.clone(), list(accepted)))
        elif options and not (accepted and accepted[-1] in world.bpe.eos_ids):
            accepted.append(draw.choice(options))
            assert matcher.accept(accepted[-1])
    for branch, tokens in [*branches, (matcher, accepted)]:
        replay = grammar.matcher()
        for token in tokens:
            assert replay.accept(token)
        assert (replay.mask() == branch.mask()).all()
        assert replay.forced() == branch.forced()
        assert replay.is_complete() == branch.is_complete()
        assert replay.is_finished() == branch.is_finished()


STEP_PATTERNS = ["[a-z ]+", "(yes|no|maybe) sir", "[0-9]{1,4}", "a{3}b*", r"x[^y]*y", "(ab|ac)+d?", "q"]


@pytest.mark.parametrize("pattern", STEP_PATTERNS)
@pytest.mark.parametrize("every_byte", [True, False])
def test_a_plain_step_is_an_accept_with_nothing_forced_and_nothing_ended(pattern: str, every_byte: bool):
    """`step` says yes only where `accept` would, leaves the same position, and there is nothing else to ask there."""
    texts: list[bytes | None] = [None, b"ab", b"ac", b"yes", b" sir", b"12", b"xx", b"y", b"aa", b"q", b"no"]
    texts += [bytes([b]) for b in range(256)] if every_byte else [b"a", b"b", b"x", b"0", b"may", b"be", b"s", b" "]
    vocab = Vocabulary(texts, len(texts) + 3, frozenset({0}), lambda text: [])
    grammar = compile_constraint(Constraint("regex", pattern), vocab)
    rng = random.Random(pattern)
    stepped = 0
    for _ in range(60):
        quick, slow = grammar.matcher(), grammar.matcher()
        assert isinstance(quick, RegularMatcher)
        for _ in range(12):
            allowed = np.flatnonzero(np.unpackbits(slow.mask().view(np.uint8), bitorder="little")).tolist()
            token = rng.choice(allowed) if allowed and rng.random() < 0.9 else rng.randrange(len(texts))
            ok = slow.accept(token)
            forced, finished = slow.forced(), slow.is_finished()
            if quick.step(token):
                stepped += 1
                assert ok and not forced and not finished
            else:
                assert quick.accept(token) == ok
            assert (quick.mask() == slow.mask()).all()
            assert quick.forced() == forced and quick.is_finished() == finished
            if not ok or finished:
                break
    assert stepped or pattern in ("(yes|no|maybe) sir", "q", "a{3}b*")
