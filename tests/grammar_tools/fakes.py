"""A scripted engine, small vocabularies, and handlers that a worker process can import."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stemma.backend.grammar.base import Vocabulary
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint


def byte_vocabulary(*words: str, size: int | None = None) -> Vocabulary:
    """All bytes, then `words`, then EOS. Encodes greedily, the longest first."""
    table: list[bytes | None] = [*(bytes([b]) for b in range(256)), *(word.encode() for word in words), None]
    eos = len(table) - 1
    return Vocabulary(table, size or len(table), frozenset([eos]), _greedy({t: i for i, t in enumerate(table) if t}))


def _greedy(ids: dict[bytes, int]) -> Callable[[str], list[int]]:
    def encode(text: str) -> list[int]:
        data, out = text.encode(), []
        while data:
            word = next(data[:n] for n in range(len(data), 0, -1) if data[:n] in ids)
            out.append(ids[word])
            data = data[len(word) :]
        return out

    return encode


class FixedTexts:
    """A grammar of finitely many texts, byte by byte; a text that may end allows EOS. The slow and obvious engine."""

    def __init__(self, vocab: Vocabulary, texts: list[str], spans: dict[str, list[int]] | None = None) -> None:
        self.vocab = vocab
        self.texts = [text.encode() for text in texts]
        self.spans = spans or {}

    def matcher(self) -> FixedMatcher:
        return FixedMatcher(self)


class FixedMatcher:
    def __init__(self, grammar: FixedTexts, before: bytes = b"") -> None:
        self.grammar = grammar
        self.before = before

    def _allowed(self, token: int) -> bool:
        if token in self.grammar.vocab.eos_ids:
            return self.is_complete()
        text = self.grammar.vocab.token_bytes[token]
        return bool(text) and any(t.startswith(self.before + (text or b"")) for t in self.grammar.texts)

    def mask(self) -> np.ndarray:
        bits = np.zeros((self.grammar.vocab.size + 31) // 32 * 32, np.bool_)
        bits[[i for i in range(len(self.grammar.vocab.token_bytes)) if self._allowed(i)]] = True
        return np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token_id: int) -> bool:
        if not self._allowed(token_id):
            return False
        self.before += self.grammar.vocab.token_bytes[token_id] or b""
        return True

    def forced(self) -> list[int]:
        return self.grammar.spans.get(self.before.decode("utf-8", "replace"), [])

    def draft(self) -> list[int]:
        raise AssertionError("not used here")

    def shortest_completion(self) -> list[int]:
        raise AssertionError("not used here")

    def can_finish(self, tokens: int) -> bool:
        raise AssertionError("not used here")

    def is_complete(self) -> bool:
        return self.before in self.grammar.texts

    def is_finished(self) -> bool:
        return self.is_complete() and not any(len(t) > len(self.before) for t in self.grammar.texts)

    def rollback(self, n: int) -> None:
        raise NotImplementedError

    def clone(self) -> FixedMatcher:
        return FixedMatcher(self.grammar, self.before)


def scripted(constraint: Constraint, vocab: Vocabulary) -> FixedTexts:
    """Compiles {"texts": […]}; refuses a schema with "refuse"; "hang" and "crash" do as they say."""
    schema = json.loads(str(constraint.value))
    if "refuse" in schema:
        raise ConstraintError(schema["refuse"])
    if "crash" in schema:
        os._exit(7)
    if "hang" in schema:
        time.sleep(60)
    if "bug" in schema:
        raise ZeroDivisionError("a bug of the engine")
    return FixedTexts(vocab, schema["texts"], schema.get("spans"))


def scripted_handler() -> Callable[[Any], Iterator[Any]]:
    from stemma.backend.grammar.maskbench import run_case

    return lambda case: run_case(case, scripted, byte_vocabulary())


def failing_setup() -> Callable[[Any], Iterator[Any]]:
    raise ConstraintError("no such engine here", param="grammar_backend")


def counting() -> Callable[[Any], Iterator[Any]]:
    return lambda n: iter(range(n))
