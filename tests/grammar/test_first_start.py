"""Before the compiled code of the grammar engine is there, numpy makes the same masks, and nobody waits for long."""

from __future__ import annotations

import threading
import time

import numpy as np

from stemma.backend.grammar import service
from stemma.backend.grammar.base import Grammar
from stemma.backend.grammar.compiler import compile_constraint
from stemma.backend.grammar.masks import NumpyWalker
from stemma.backend.grammar.matcher import RegularGrammar
from stemma.backend.grammar.service import GrammarService
from stemma.lang.params import Constraint


def wait_for(constraint: Constraint, grammars: GrammarService) -> Grammar | Exception:
    made: list[Grammar | Exception] = []
    there = threading.Event()

    def done(result: Grammar | Exception) -> None:
        made.append(result)
        there.set()

    grammars.submit(constraint, done)
    assert there.wait(30)
    return made[0]


def test_the_first_constraints_do_not_wait_for_compiled_code(world, monkeypatch) -> None:
    monkeypatch.delenv("STEMMA_GRAMMAR_WALKER", raising=False)
    release = threading.Event()
    monkeypatch.setattr(service, "warm_up", lambda: release.wait(30))
    monkeypatch.setattr(service, "PATIENCE", (0.05, 0.05))
    grammars = GrammarService(world.bpe, "native", 1)
    constraint = Constraint("regex", "(yes|no)[a-z]{2,40}!")
    try:
        early = wait_for(constraint, grammars)
        assert isinstance(early, RegularGrammar) and isinstance(early.walker, NumpyWalker)
        truth = compile_constraint(constraint, world.bpe).matcher()
        matcher = early.matcher()
        for token in world.bpe.encode("yesindeed!"):
            assert np.array_equal(matcher.mask(), truth.mask())
            assert matcher.accept(token) and truth.accept(token)
        release.set()
        until = time.monotonic() + 20
        while grammars.cache.peek(constraint) is not None and time.monotonic() < until:
            time.sleep(0.01)
        late = wait_for(constraint, grammars)
        assert late is not early and isinstance(late, RegularGrammar)
        assert not isinstance(late.walker, NumpyWalker) or service.index_of(world.bpe) is late.walker
    finally:
        release.set()
        grammars.close()
