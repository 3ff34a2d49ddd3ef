"""A mask allows exactly the tokens that keep a whole match reachable."""

from __future__ import annotations

import random
import sys
import threading

import numpy as np
import pytest

from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.masks import MaskCache, NumbaWalker, NumpyWalker, index_of
from stemma.backend.grammar.trie import build_trie


def brute_force(grammar, state: int) -> set[int]:
    """Every token tried byte by byte, EOS where the text may end."""
    vocab = grammar.vocab
    allowed = set(vocab.eos_ids) if grammar.dfa.accepting[state] else set()
    for token, text in enumerate(vocab.token_bytes):
        at = state
        for byte in text or b"":
            at = grammar.dfa.step(at, byte)
            if at < 0:
                break
        if text and at >= 0:
            allowed.add(token)
    return allowed


def visited_states(grammar, draw: random.Random, steps: int) -> list[int]:
    states, state = [0], 0
    for _ in range(steps):
        live = [b for b in range(256) if grammar.dfa.step(state, b) >= 0]
        if not live:
            break
        state = grammar.dfa.step(state, draw.choice(live))
        states.append(state)
    return states


def test_masks_equal_brute_force_with_both_walkers(world, pattern: str) -> None:
    vocab = world.random_vocab(len(pattern) % 5)
    grammars = [world.regex(pattern, vocab, walker=walker) for walker in ("numba", "numpy")]
    draw = random.Random(1)
    for state in visited_states(grammars[0], draw, 10):
        expected = brute_force(grammars[0], state)
        assert world.mask_ids(grammars[0].masks.row(state)) == expected
        assert grammars[0].masks.count(state) == len(expected - vocab.eos_ids)
        twin = MaskCache(grammars[0].dfa, vocab, index_of(vocab, "numpy"), 1 << 20)
        np.testing.assert_array_equal(twin.row(state), grammars[0].masks.row(state))
    np.testing.assert_array_equal(grammars[0].masks.row(0), grammars[1].masks.row(0))


@pytest.mark.parametrize("seed", range(3))
def test_masks_hold_with_a_vocabulary_that_lacks_bytes(world, pattern: str, seed: int) -> None:
    vocab = world.random_vocab(seed, all_bytes=False)
    try:
        grammar = world.regex(pattern, vocab)
    except ValueError as error:
        assert "cannot spell" in str(error)
        return
    for state in visited_states(grammar, random.Random(seed), 4):
        assert world.mask_ids(grammar.masks.row(state)) == brute_force(grammar, state)


def test_choices_that_cannot_be_spelled_are_never_begun(world) -> None:
    vocab = world.make_vocab([b"a", b"b", b"c"])
    assert world.mask_ids(world.regex("(a|bé)c", vocab).matcher().mask()) == {0}
    assert world.mask_ids(world.choices("bx", "ac", "b", vocab=vocab).matcher().mask()) == {0, 1}
    with pytest.raises(ValueError, match="cannot spell any match of 'éa'"):
        world.regex("éa", vocab)


def test_special_eos_and_padding_ids_are_never_allowed_as_text(world) -> None:
    vocab = Vocabulary([b"a", None, b"aa", b"", b"b", b"a"], 70, frozenset([2]), lambda text: [])
    matcher = world.regex("a*", vocab).matcher()
    assert world.mask_ids(matcher.mask()) == {0, 2, 5}
    assert len(matcher.mask()) == 3
    for token in (1, 3, 4, 6, 69, 70, 1000, -1):
        assert not matcher.accept(token)
    assert matcher.accept(5)


def test_token_ids_beyond_the_logits_are_ignored(world) -> None:
    vocab = Vocabulary([b"a", b"b", b"ab"], 2, frozenset([7]), lambda text: [])
    matcher = world.regex("(ab)+", vocab).matcher()
    assert world.mask_ids(matcher.mask()) == {0}
    assert not matcher.accept(2)
    assert not matcher.accept(7)


def test_the_bit_of_token_31_is_a_sign_bit(world) -> None:
    vocab = world.make_vocab([bytes([65 + i]) for i in range(40)], spare=60)
    row = world.regex("[A-z]", vocab).matcher().mask()
    assert row.dtype == np.int32
    assert row[0] == -1
    assert world.mask_ids(row) == set(range(40))
    assert world.mask_ids(world.regex(r"`", vocab).matcher().mask()) == {31}


def test_rows_are_shared_and_read_only(world) -> None:
    grammar = world.regex("[a-z]*")
    row = grammar.matcher().mask()
    assert row is grammar.matcher().mask()
    for each in (row, grammar.masks.eos_row, world.regex("abc").matcher().mask()):
        with pytest.raises(ValueError, match="read-only"):
            each[0] = 1


def test_the_cache_forgets_the_oldest_rows_and_makes_them_again(world) -> None:
    grammar = world.regex("[a-z]{20}[0-9]{20}")
    width = 4 * index_of(world.bpe).trie.row_words
    cache = MaskCache(grammar.dfa, world.bpe, index_of(world.bpe), 3 * width)
    states = visited_states(grammar, random.Random(0), 20)
    first = cache.row(0)
    for state in states:
        cache.row(state)
        assert cache.nbytes <= 3 * width
    assert cache.row(0) is not first
    np.testing.assert_array_equal(cache.row(0), first)


@pytest.mark.parametrize(
    "pattern", [r"[^é]{0,400}", r"x{200}y{0,200}", r"([a-c]|\\[nt]){0,300}|[a-z]{100,}!", r"(\w{2}-?){60}"]
)
def test_masks_that_long_repeats_share_are_those_of_each_state(world, pattern: str) -> None:
    vocab = world.random_vocab(2)
    grammar = world.regex(pattern, vocab)
    states = visited_states(grammar, random.Random(4), 600)
    for state in states[::17] + states[-12:]:
        assert world.mask_ids(grammar.masks.row(state)) == brute_force(grammar, state)
    own_rows = [key for key in grammar.masks._rows if key[0] == "all"]
    assert len(own_rows) < len(states[::17]) + 12


def test_threads_that_share_a_grammar_see_the_same_masks(world) -> None:
    shared, alone = world.regex(r"(\w+[ ,.-]?){0,40}!"), world.regex(r"(\w+[ ,.-]?){0,40}!")
    errors: list[BaseException] = []

    def generate(seed: int) -> None:
        try:
            draw, matcher, tokens = random.Random(seed), shared.matcher(), []
            for _ in range(25):
                options = sorted(world.mask_ids(matcher.mask()) - world.bpe.eos_ids)
                if not options:
                    break
                tokens.append(draw.choice(options))
                assert matcher.accept(tokens[-1])
            twin = alone.matcher()
            for token in tokens:
                assert world.mask_ids(twin.mask()) >= {token}
                assert twin.accept(token)
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=generate, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors, errors


def test_the_trie_lists_every_token_in_depth_first_order(world) -> None:
    for seed in range(3):
        vocab = world.random_vocab(seed)
        trie = build_trie(vocab)
        path: list[int] = []
        found = {}
        for node in range(len(trie.byte)):
            depth = int(trie.depth[node])
            del path[depth - 1 :]
            path.append(int(trie.byte[node]))
            below = next((n for n in range(node + 1, len(trie.byte)) if trie.depth[n] <= depth), len(trie.byte))
            assert trie.skip[node] == below
            for token in trie.tokens[trie.first[node] : trie.first[node + 1]].tolist():
                found[token] = bytes(path)
        assert found == {i: b for i, b in enumerate(vocab.token_bytes) if b}


def test_an_empty_vocabulary_has_an_empty_trie(world) -> None:
    for walker in ("numba", "numpy"):
        trie = index_of(Vocabulary([None], 1, frozenset([0]), lambda text: []), walker).trie
        assert len(trie.byte) == 0


def test_an_unknown_walker_is_named(world) -> None:
    with pytest.raises(ValueError, match="must be 'numba' or 'numpy', got 'cuda'"):
        index_of(world.bpe, "cuda")


def test_the_environment_picks_the_walker(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_GRAMMAR_WALKER", "numpy")
    assert isinstance(index_of(world.bpe), NumpyWalker)
    monkeypatch.setenv("STEMMA_GRAMMAR_WALKER", "numba")
    assert isinstance(index_of(world.bpe), NumbaWalker)
