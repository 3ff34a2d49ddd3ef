"""xgrammar (mlc-ai, Apache-2.0) behind our contract. Its EBNF is GBNF; a grammar with a `start` rule is read as Lark.

JSON schemas are compiled in its compliant setting: free white space, objects open unless the schema closes them. It
drops keywords that it does not know without a word, which is why it never decides alone what we accept.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
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

PACKAGE = "xgrammar"
CACHE_BYTES = 256 << 20  # of rules that it shares between grammars
CONTEXT_TOKENS = 3  # emitted tokens that are encoded again together with a forced text
MAX_TEXT = 256  # characters of forced text looked at in one go


def compile_constraint(
    constraint: Constraint, vocab: Vocabulary, *, narrow: bool = True, max_whitespace: int | None = None
) -> XgrammarGrammar:
    """Compile with xgrammar; ConstraintError carries its words. `narrow`: see `adapters.backend_named`.

    `max_whitespace` bounds the white space between two parts of JSON, at least 1; None leaves it free.
    """
    import_peer(PACKAGE)
    utf8(constraint)
    native_options(constraint, PACKAGE, ("any",) if constraint.kind == "json_schema" else ())
    refuse_after(PACKAGE, constraint)
    compiler = _compiler(vocab)
    try:
        compiled = _compile(compiler, constraint, max_whitespace)
    except ConstraintError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise refusal(PACKAGE, constraint, re.sub(r"^\[[\d:]+\] \S+?: ", "", str(error))) from None
    return XgrammarGrammar(compiled, peer_vocabulary(vocab), narrow)


def _compile(compiler: Any, constraint: Constraint, max_whitespace: int | None) -> Any:
    kind, value = constraint.kind, constraint.value
    if kind == "composed":
        raise ConstraintError("xgrammar has no composed constraints; use grammar_backend='native'", param="constraint")
    if kind == "choices":
        words = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value)
        return compiler.compile_grammar(f"root ::= {words}\n")
    assert isinstance(value, str)
    if kind == "regex":
        return compiler.compile_regex(value)
    if kind == "json_schema":
        return compiler.compile_json_schema(
            value, any_whitespace=True, strict_mode=False, max_whitespace_cnt=max_whitespace
        )
    if kind == "ebnf":
        lark = "::=" not in value and re.search(r"(?m)^\s*start\s*:", value)
        return compiler.compile_lark(value) if lark else compiler.compile_grammar(value)
    return compiler.compile_structural_tag(_structural_tag(constraint))


def _structural_tag(constraint: Constraint) -> str:
    tags = parse_tags(constraint)
    if tags is None:
        return str(constraint.value)  # a format of xgrammar's own
    form = {
        "type": "triggered_tags",
        "triggers": sorted({tag.trigger for tag in tags}),
        "tags": [{"type": "tag", "begin": t.begin, "content": t.content, "end": t.end} for t in tags],
    }
    return json.dumps({"type": "structural_tag", "format": form})


@lru_cache(maxsize=4)
def _compiler(vocab: Vocabulary) -> Any:
    """xgrammar's compiler with its tables for a vocabulary, with as many threads as it takes by default."""
    peer, shape = import_peer(PACKAGE), peer_vocabulary(vocab)
    texts = list(shape.texts)
    for i in shape.eos:
        texts[i] = b"<eos %d>" % i
    info = peer.TokenizerInfo(texts, peer.VocabType.RAW, vocab_size=shape.size, stop_token_ids=shape.eos)
    return peer.GrammarCompiler(info, cache_limit_bytes=CACHE_BYTES)


class XgrammarGrammar:
    """A compiled constraint."""

    def __init__(self, compiled: Any, vocab: PeerVocabulary, narrow: bool) -> None:
        self._compiled = compiled
        self._vocab = vocab
        self._narrow = narrow

    def matcher(self) -> XgrammarMatcher:
        return XgrammarMatcher(import_peer(PACKAGE).GrammarMatcher(self._compiled), self._vocab, self._narrow)


class XgrammarMatcher(PeerMatcher):
    def __init__(self, matcher: Any, vocab: PeerVocabulary, narrow: bool) -> None:
        super().__init__(vocab, narrow)
        self.own = matcher

    def _fill(self) -> Row:
        row = np.empty(self.vocab.width, np.int32)
        if not self.own.fill_next_token_bitmask(row):
            row.fill(-1)  # "no need to apply": it leaves the row as it was
        return row

    def _step(self, token: int) -> bool:
        return self.own.accept_token(token)

    def _accepting(self) -> bool:
        return self.own.is_completed()

    def _canonical(self) -> int:
        try:
            text = self.own.find_jump_forward_string()[:MAX_TEXT].encode()
        except UnicodeDecodeError:  # it ends, or begins, inside a character
            return -1
        return self._first_certain(text) if text else -1

    def _first_certain(self, text: bytes) -> int:
        """The first token of the canonical spelling of `text`, unless what follows could change it."""
        tokens = _spelled_after(self.vocab, self.last_tokens(CONTEXT_TOKENS), text)
        if not tokens:
            return -1
        end = len(self.vocab.texts[tokens[0]])
        return tokens[0] if 0 < end <= self._certain_length(text) else -1

    def _certain_length(self, text: bytes) -> int:
        """Up to where no token starts that runs over the end of `text`, as far as the next byte tells."""
        words = _sorted_words(self.vocab)
        following = self._bytes_after(text)
        for start in range(max(0, len(text) - words.longest + 1), len(text)):
            if any(words.has_prefix(text[start:] + byte) for byte in following):
                return start
        return len(text)

    def _bytes_after(self, text: bytes) -> list[bytes]:
        """The bytes that may follow `text`; a byte that is no token is taken to be allowed."""
        after = self.own.fork()
        if not after.accept_string(text):
            raise RuntimeError(f"xgrammar forces {text!r} and refuses it")
        row = np.empty(self.vocab.width, np.int32)
        if not after.fill_next_token_bitmask(row):
            row.fill(-1)
        token_of = _sorted_words(self.vocab).bytes
        allowed = lambda token: token < 0 or int(row[token >> 5]) >> (token & 31) & 1  # noqa: E731
        return [bytes([b]) for b in range(256) if allowed(token_of[b])]

    def _back(self, n: int) -> None:
        self.own.rollback(n)

    def _copy(self) -> XgrammarMatcher:
        return XgrammarMatcher(self.own.fork(), self.vocab, self._narrow)


def _spelled_after(vocab: PeerVocabulary, context: list[int], text: bytes) -> list[int]:
    """The canonical tokens of `text` behind the emitted `context`, [] if they would change the emitted ones."""
    for start in range(len(context) + 1):
        kept = context[start:]
        if context and not kept:
            return []
        before = b"".join(vocab.texts[token] for token in kept)
        try:
            tokens = vocab.vocab.encode((before + text).decode())
        except UnicodeDecodeError:  # the context begins inside a character
            continue
        exact = b"".join(vocab.texts[token] for token in tokens) == before + text
        return tokens[len(kept) :] if exact and tokens[: len(kept)] == kept else []
    return []


class _Words:
    """The texts of a vocabulary, sorted, and the token of each single byte (-1: none)."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._sorted = sorted({text for text in texts if text})
        self.longest = max(map(len, self._sorted), default=0)
        ids = {text: i for i, text in enumerate(texts) if len(text) == 1}
        self.bytes = [ids.get(bytes([b]), -1) for b in range(256)]

    def has_prefix(self, prefix: bytes) -> bool:
        at = bisect_left(self._sorted, prefix)
        return at < len(self._sorted) and self._sorted[at].startswith(prefix)


@lru_cache(maxsize=4)
def _sorted_words(vocab: PeerVocabulary) -> _Words:
    return _Words(vocab.texts)


@lru_cache(maxsize=1)
def _batch() -> Any:
    return import_peer(PACKAGE).BatchGrammarMatcher()


def fill(matchers: Sequence[XgrammarMatcher], rows: NDArray[np.int32]) -> None:
    """The peer's own masks of many matchers, in its threads. Nothing is narrowed."""
    _batch().batch_fill_next_token_bitmask([matcher.own for matcher in matchers], rows)
