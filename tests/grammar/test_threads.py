"""One grammar, many threads: its caches give every thread the masks that one thread alone would get."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import compile_constraint
from stemma.lang.params import Constraint

PIECES = [
    "ab",
    "abc",
    "a a",
    '{"',
    '":',
    '",',
    '"}',
    "12",
    "the",
    "the ",
    '["',
    '"]',
    "},",
    "true",
    "null",
    "éa",
    "\\n",
]
TOKENS = [bytes([i]) for i in range(256)] + [piece.encode() for piece in PIECES]
EOS = len(TOKENS)
VOCAB = Vocabulary([*TOKENS, None], EOS + 1, frozenset([EOS]), lambda text: list(text.encode()))
NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 300},
        "note": {"type": "string", "minLength": 2, "maxLength": 90},
        "kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 4},
        "n": {"type": "integer", "minimum": -5, "maximum": 123456},
    },
    "required": ["name"],
}
CONSTRAINTS = [
    Constraint("json_schema", json.dumps(NESTED)),
    Constraint("regex", r'"([^"\\]|\\[nt"]){0,200}"( (the|ab){1,40})?'),
    Constraint("ebnf", 'root ::= "(" (root | [a-z]{1,50}) ("," root)* ")"'),
]


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as the interpreter can let them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def walk(grammar, seed: int, steps: int) -> list[tuple[bytes, int, list[int]]]:
    """A random walk: the mask of every step, the token taken, and what was forced."""
    rng = random.Random(seed)
    matcher, seen = grammar.matcher(), []
    for _ in range(steps):
        row = matcher.mask()
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        token = int(rng.choice(allowed))
        seen.append((row.tobytes(), token, matcher.forced()))
        assert matcher.accept(token)
        if matcher.is_finished():
            matcher = grammar.matcher()
    return seen


@pytest.mark.parametrize("walker", ["numba", "numpy"])
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda c: c.kind)
def test_threads_do_not_disturb_each_other(constraint: Constraint, walker: str, restless: None) -> None:
    threads, steps = 4, 60
    truth = [walk(compile_constraint(constraint, VOCAB, walker=walker), seed, steps) for seed in range(threads)]
    for _ in range(3):  # a fresh grammar each time: cold caches are what threads could spoil
        grammar = compile_constraint(constraint, VOCAB, walker=walker)
        found: dict[int, object] = {}
        start = threading.Barrier(threads)

        def run(seed: int, grammar=grammar, found=found, start=start) -> None:
            start.wait()
            try:
                found[seed] = walk(grammar, seed, steps)
            except BaseException as error:
                found[seed] = error

        running = [threading.Thread(target=run, args=(seed,)) for seed in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(60)
        for seed in range(threads):
            assert found[seed] == truth[seed], f"walk {seed}"


def test_an_automaton_grows_under_its_lock_only() -> None:
    text = b'{"name": "abc'
    grammar = compile_constraint(CONSTRAINTS[0], VOCAB)
    dfa = grammar.dfa
    assert dfa.has_runs
    state = dfa.run(0, text)
    size = lambda: dfa.nbytes  # noqa: E731
    before = size()
    shape: list[int] = []
    other = threading.Thread(target=lambda: shape.append(dfa.shape(state, 9)))
    with dfa.lock:
        other.start()
        other.join(0.1)
        assert not shape and size() == before
    other.join(20)
    assert shape and size() > before  # it had something to add
