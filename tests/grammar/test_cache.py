"""The cache of grammars: one compilation per constraint, bounded, and failures remembered."""

from __future__ import annotations

import threading

import pytest

from stemma.backend.grammar import matcher as matcher_module
from stemma.backend.grammar.arrays import EFFORT
from stemma.backend.grammar.compiled import CompiledDfa
from stemma.backend.grammar.compiler import GrammarCache, compile_constraint, warm_up
from stemma.backend.grammar.limits import MAX_WORK
from stemma.backend.grammar.matcher import RegularGrammar
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint


class Counting:
    def __init__(self) -> None:
        self.compiled: list[Constraint] = []

    def __call__(self, constraint, vocab):
        self.compiled.append(constraint)
        return compile_constraint(constraint, vocab)


def test_a_constraint_is_compiled_once(world) -> None:
    counting = Counting()
    cache = GrammarCache(world.bpe, compile=counting)
    first = cache.get(Constraint("regex", "a+"))
    assert cache.get(Constraint("regex", "a+")) is first
    assert cache.get(Constraint("choices", ("a+",))) is not first
    assert len(counting.compiled) == 2


def test_a_failure_is_remembered_and_raised_again(world) -> None:
    counting = Counting()
    cache = GrammarCache(world.bpe, compile=counting, max_failures=2)
    messages = []
    for _ in range(2):
        with pytest.raises(ConstraintError, match="never closed") as caught:
            cache.get(Constraint("regex", "(a"))
        messages.append((str(caught.value), caught.value.param))
    assert messages[0] == messages[1]
    assert len(counting.compiled) == 1
    for pattern in ("(b", "(c", "(a"):
        with pytest.raises(ConstraintError):
            cache.get(Constraint("regex", pattern))
    assert len(counting.compiled) == 4


def test_messages_of_failures_are_bounded_in_bytes_and_keep_their_field(world) -> None:
    counting = Counting()
    cache = GrammarCache(world.bpe, compile=counting, max_failure_bytes=300)
    for i in range(8):
        with pytest.raises(ConstraintError) as caught:
            cache.get(Constraint("regex", f"({i}"))
        assert caught.value.param == "regex"
    assert 0 < cache._failure_bytes <= 300
    with pytest.raises(ConstraintError):
        cache.get(Constraint("regex", "(0"))
    assert len(counting.compiled) == 9


def test_a_constraints_own_text_counts(world) -> None:
    counting = Counting()
    cache = GrammarCache(world.bpe, max_bytes=1 << 20, compile=counting)
    padded = [Constraint("json_schema", '{"const": 1}' + " " * 400_000 + " " * i) for i in range(4)]
    for constraint in [*padded, padded[0]]:
        cache.get(constraint)
    assert len(counting.compiled) == 5


def test_grammars_that_grow_in_use_make_room(world) -> None:
    counting = Counting()
    cache = GrammarCache(world.bpe, compile=counting)
    first, second = Constraint("regex", "a+b"), Constraint("regex", "[a-z]{50}")
    cache.get(first)
    matcher = cache.get(second).matcher()
    cache._max_bytes = sum(g.nbytes for g in cache._grammars.values() if isinstance(g, RegularGrammar)) + 2000
    for _ in range(30):
        assert matcher.accept(world.bpe.token_bytes.index(b"a"))
        matcher.mask()
    for _ in range(64):
        assert cache.peek(second) is not None
    assert cache.peek(first) is None


def test_the_least_recently_used_go_when_it_is_full(world) -> None:
    counting = Counting()
    cache = GrammarCache(
        world.bpe, max_bytes=3 * compile_constraint(Constraint("regex", "x[0-9]"), world.bpe).nbytes, compile=counting
    )
    for digit in "0123":
        cache.get(Constraint("regex", f"x[{digit}-9]"))
        cache.get(Constraint("regex", "x[0-9]"))
    assert counting.compiled.count(Constraint("regex", "x[0-9]")) == 1
    cache.get(Constraint("regex", "x[1-9]"))
    assert counting.compiled.count(Constraint("regex", "x[1-9]")) == 2


def test_a_grammar_larger_than_the_cache_still_works(world) -> None:
    cache = GrammarCache(world.bpe, max_bytes=1)
    grammar = cache.get(Constraint("regex", "a+"))
    assert cache.get(Constraint("regex", "a+")) is grammar


def test_threads_that_ask_at_once_share_one_compilation(world) -> None:
    started, release, compiled, found = threading.Event(), threading.Event(), [], []

    def slow(constraint, vocab):
        compiled.append(constraint)
        started.set()
        assert release.wait(10)
        return compile_constraint(constraint, vocab)

    cache = GrammarCache(world.bpe, compile=slow)
    threads = [threading.Thread(target=lambda: found.append(cache.get(Constraint("regex", "a+")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    release.set()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1
    assert len({id(grammar) for grammar in found}) == 1


def test_those_who_wait_for_a_failing_compilation_get_its_error(world) -> None:
    started, release, errors = threading.Event(), threading.Event(), []

    def slow(constraint, vocab):
        started.set()
        assert release.wait(10)
        return compile_constraint(constraint, vocab)

    cache = GrammarCache(world.bpe, compile=slow)

    def ask() -> None:
        try:
            cache.get(Constraint("regex", "(a"))
        except ConstraintError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    release.set()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert len(set(errors)) == 1


def test_the_plain_automaton_tells_when_it_is_crowded(world) -> None:
    dfa = world.regex("a+b", walker="numpy").dfa
    assert not dfa.crowded
    dfa._work = MAX_WORK
    assert dfa.crowded


def test_a_crowded_automaton_is_replaced_for_new_users(world) -> None:
    cache = GrammarCache(world.bpe)
    constraint = Constraint("regex", "a+b")
    old = cache.get(constraint)
    assert isinstance(old, RegularGrammar)
    assert isinstance(old.dfa, CompiledDfa)
    old.dfa.arrays.numbers[EFFORT] = MAX_WORK
    fresh = cache.get(constraint)
    assert fresh is not old
    assert cache.get(constraint) is fresh
    assert (old.matcher().mask() == fresh.matcher().mask()).all()


def test_memos_are_bounded(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matcher_module, "_MEMO_SIZE", 3)
    matcher = world.regex("[a-z]{20}").matcher()
    for byte in b"abcdefghij":
        assert matcher.accept(world.bpe.token_bytes.index(bytes([byte])))


def test_warm_up_may_run_more_than_once() -> None:
    warm_up()
    warm_up()


def test_a_refusal_is_of_a_constraint_with_its_options(world) -> None:
    cache = GrammarCache(world.bpe)
    schema = '{"type": "string", "pattern": "(.)\\\\1"}'
    with pytest.raises(ConstraintError, match="backreferences"):
        cache.get(Constraint("json_schema", schema))
    assert cache.get(Constraint("json_schema", schema, lenient=True)).matcher()
    with pytest.raises(ConstraintError, match="backreferences"):
        cache.get(Constraint("json_schema", schema, after="END"))
