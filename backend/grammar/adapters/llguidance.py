"""llguidance (guidance-ai, MIT) behind our contract. Its EBNF is its Lark dialect; GBNF is translated by it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.adapters.peer import (
    PeerMatcher,
    PeerVocabulary,
    Row,
    import_peer,
    native_options,
    peer_vocabulary,
    refusal,
    refuse_after,
    utf8,
)
from stemma.backend.grammar.adapters.tags import parse_tags
from stemma.backend.grammar.base import Vocabulary
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

PACKAGE = "llguidance"


def compile_constraint(
    constraint: Constraint, vocab: Vocabulary, *, narrow: bool = True, whitespace: bool = True
) -> LlguidanceGrammar:
    """Compile with llguidance; ConstraintError carries its words. `narrow`: see `adapters.backend_named`.

    `whitespace=False` allows none between the parts of JSON; with True it is free, as llguidance has it. So do the
    constraint's policies "compact" and "any", which is not bounded here.
    """
    peer = import_peer(PACKAGE)
    utf8(constraint)
    native_options(constraint, PACKAGE, ("any", "compact") if constraint.kind == "json_schema" else ())
    whitespace = whitespace if constraint.whitespace is None else constraint.whitespace == "any"
    refuse_after(PACKAGE, constraint)
    tokenizer = _tokenizer(vocab)
    try:
        matcher = peer.LLMatcher(tokenizer, _grammar_text(peer, constraint, whitespace), log_level=0)
    except ConstraintError:
        raise
    except (ValueError, RuntimeError) as error:
        raise refusal(PACKAGE, constraint, error) from None
    if matcher.is_error():
        raise refusal(PACKAGE, constraint, matcher.get_error())
    return LlguidanceGrammar(matcher, peer_vocabulary(vocab), narrow)


def _grammar_text(peer: Any, constraint: Constraint, whitespace: bool) -> str:
    kind, value = constraint.kind, constraint.value
    if kind == "composed":
        raise ConstraintError(
            "llguidance has no composed constraints; use grammar_backend='native'", param="constraint"
        )
    if kind == "choices":
        words = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value)
        return peer.LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {words}\n")
    if kind == "regex":
        return peer.LLMatcher.grammar_from_regex(value)
    if kind == "json_schema":
        return peer.LLMatcher.grammar_from_json_schema(value, overrides={"whitespace_flexible": whitespace})
    if kind == "ebnf":
        return peer.grammar_from("ebnf", value)
    tags = parse_tags(constraint)
    if tags is None:
        raise ConstraintError("llguidance has structural tags with triggers only", param="structural_tag")
    structures = [
        peer.StructTag(trigger=t.trigger, begin=t.begin, grammar=_tag_grammar(peer, t.content), end=t.end) for t in tags
    ]
    return peer.StructTag.to_grammar(structures, assume_special=False)


def _tag_grammar(peer: Any, content: dict[str, Any]) -> str | dict[str, Any]:
    kind = content.get("type")
    if kind == "json_schema" and isinstance(content.get("json_schema"), dict):
        return content["json_schema"]
    if kind == "grammar" and isinstance(content.get("grammar"), str):
        return _as_lark(content["grammar"])
    raise ConstraintError(
        f"llguidance has tags with a json_schema or a grammar, got {content!r:.80}", param="structural_tag"
    )


def _as_lark(grammar: str) -> str:
    try:
        return import_peer("llguidance.gbnf_to_lark").any_to_lark(grammar)
    except Exception as error:  # its translator raises plain Exception
        raise ConstraintError(f"llguidance cannot read the grammar: {error}", param="structural_tag") from None


class _Tokenizer:
    """What LLTokenizer asks of a tokenizer. Special tokens but EOS have no text, and so are never matched."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocab: PeerVocabulary) -> None:
        self._encode = vocab.vocab.encode
        self.tokens = list(vocab.texts)
        self._id_of = {text: i for i, text in reversed(list(enumerate(vocab.texts))) if text}
        eos = vocab.eos or [len(self.tokens)]  # one is demanded; an id beyond the logits stands in
        if not vocab.eos:
            self.tokens.append(b"")
        for i in eos:
            self.tokens[i] = b"<eos %d>" % i
        self.eos = eos
        self.eos_token_id = eos[0]
        self.special_token_ids = eos

    def __call__(self, text: str) -> list[int]:
        ids = self._encode(text)
        spelled = b"".join(self.tokens[i] for i in ids if 0 <= i < len(self.tokens))
        return ids if spelled == text.encode() else self._longest_first(text.encode())

    def _longest_first(self, data: bytes) -> list[int]:
        """For a vocabulary that cannot spell every text; llguidance wants some token for every byte that has one."""
        at, ids = 0, []
        while at < len(data):
            end = next((end for end in range(len(data), at, -1) if data[at:end] in self._id_of), at + 1)
            ids += [self._id_of[data[at:end]]] if data[at:end] in self._id_of else []
            at = end
        return ids


@lru_cache(maxsize=4)
def _tokenizer(vocab: Vocabulary) -> Any:
    """llguidance's own tables for a vocabulary: about a second for 200,000 tokens."""
    shape = _Tokenizer(peer_vocabulary(vocab))
    return import_peer(PACKAGE).LLTokenizer(shape, n_vocab=len(shape.tokens), eos_token=shape.eos)


class LlguidanceGrammar:
    """A compiled constraint: a matcher at the beginning, copied for every generation."""

    def __init__(self, matcher: Any, vocab: PeerVocabulary, narrow: bool) -> None:
        self.vocab = vocab
        self.narrow = narrow
        self._first = matcher
        self._lock = threading.Lock()  # a matcher must not be used by two threads, not even to copy it

    def matcher(self) -> LlguidanceMatcher:
        return LlguidanceMatcher(self, self.start())

    def start(self) -> Any:
        """llguidance's matcher at the beginning."""
        with self._lock:
            return self._first.deep_copy()


class LlguidanceMatcher(PeerMatcher):
    """Raises ConstraintError from `mask` when llguidance gives up: a limit of its parser was hit."""

    def __init__(self, grammar: LlguidanceGrammar, matcher: Any) -> None:
        super().__init__(grammar.vocab, grammar.narrow)
        self._grammar = grammar
        self.own = matcher

    def _fill(self) -> Row:
        vocab, own = self.vocab, self.own
        row = np.empty(vocab.width if vocab.eos else (vocab.size + 32) // 32, np.int32)  # see _Tokenizer
        own.unsafe_compute_mask_ptr(row.__array_interface__["data"][0], row.nbytes)
        if own.is_stopped():
            if own.is_error() and not own.get_error().startswith("NoExtensionBias"):  # that is a dead end
                raise ConstraintError(f"llguidance gave up: {own.get_error()[:2000]}", param="grammar_backend")
            return vocab.eos_row.copy() if own.is_accepting() else np.zeros_like(vocab.eos_row)
        return row[: vocab.width]

    def _step(self, token: int) -> bool:
        return self.own.try_consume_tokens([token]) == 1

    def _accepting(self) -> bool:
        return self.own.is_accepting()

    def _canonical(self) -> int:
        tokens = self.own.compute_ff_tokens()
        return tokens[0] if tokens else -1

    def _back(self, n: int) -> None:
        if not self.own.is_error() and self.own.rollback(n):
            return
        self.own = self._grammar.start()  # one that met a dead end does not come back
        if not self.own.consume_tokens(self.last_tokens(sys.maxsize)):
            raise RuntimeError(f"llguidance cannot repeat what it accepted: {self.own.get_error()}")

    def _copy(self) -> LlguidanceMatcher:
        return LlguidanceMatcher(self._grammar, self.own.deep_copy())


@lru_cache(maxsize=1)
def _executor() -> Any:
    return import_peer(PACKAGE).LLExecutor()


def fill(matchers: Sequence[LlguidanceMatcher], rows: NDArray[np.int32]) -> None:
    """The peer's own masks of many matchers, in its threads. Nothing is narrowed."""
    pairs = [(matcher.own, i) for i, matcher in enumerate(matchers)]
    _executor().unsafe_compute_mask_ptr(pairs, rows.ctypes.data, rows.strides[0], len(rows))
