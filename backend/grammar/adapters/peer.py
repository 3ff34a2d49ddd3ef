"""What the adapters share: the part of the Matcher contract that no peer has.

A peer knows its grammar; here are EOS, the bounds of the vocabulary, the narrowing of masks to the one canonical token
where the text is forced, and the rule that a refused token changes nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.base import Vocabulary
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

Row = NDArray[np.int32]

MAX_FORCED = 256  # tokens that one call of `forced` gives at most


def installed(package: str) -> bool:
    """Whether a peer's package can be found. Imports nothing."""
    return importlib.util.find_spec(package) is not None


def missing(package: str, reason: object = "") -> ConstraintError:
    """The error for a peer that cannot be imported."""
    return ConstraintError(
        f"grammar_backend {package!r} needs the package {package}{f' ({reason})' if reason else ''}. "
        f"Try: pip install 'stemma-lang[{package}]'",
        param="grammar_backend",
    )


def import_peer(package: str) -> Any:
    """The peer's module; ConstraintError naming our extra when it cannot be imported."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing(package, error) from None


def refusal(package: str, constraint: Constraint, words: object) -> ConstraintError:
    """The peer's own words, and what they are about."""
    text = " ".join(str(words).split())
    return ConstraintError(f"{package} refuses this {constraint.kind}: {text[:2000]}", param=constraint.kind)


def refuse_after(package: str, constraint: Constraint) -> None:
    """Raises ConstraintError for a constraint that begins behind a marker."""
    if constraint.after is not None:
        raise ConstraintError(
            f"constraint_after={constraint.after!r} is not supported with grammar_backend={package!r}; "
            "use grammar_backend='native'",
            param="constraint_after",
        )


def utf8(constraint: Constraint) -> None:
    """Raises ConstraintError for a value with a lone surrogate, which is no character."""
    texts = (constraint.value,) if isinstance(constraint.value, str) else constraint.value
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConstraintError(
                f"{constraint.kind} holds a lone surrogate, which is no character: {text[:80]!r}", param=constraint.kind
            ) from None


def native_options(constraint: Constraint, package: str, known: tuple[str, ...] = ()) -> None:
    """Raises ConstraintError for an option that only the native engine has; `known` are the white space policies that
    the peer has too."""
    if constraint.lenient:
        raise ConstraintError(
            f"lenient is an option of the native engine; {package} does not say what it drops", param="lenient"
        )
    if constraint.whitespace is not None and constraint.whitespace not in known:
        given, have = constraint.whitespace, " and ".join(map(repr, known)) or "none"
        raise ConstraintError(f"{package} has not the whitespace policy {given!r}; it has {have}", param="whitespace")


class PeerVocabulary:
    """A vocabulary as the peers want it: exactly `size` tokens, b"" for what no text may match."""

    def __init__(self, vocab: Vocabulary) -> None:
        self.vocab = vocab
        self.size = vocab.size
        self.width = (vocab.size + 31) // 32
        self.eos = sorted(i for i in vocab.eos_ids if 0 <= i < vocab.size)
        texts = [token or b"" for token in vocab.token_bytes[: vocab.size]]
        self.texts = texts + [b""] * (vocab.size - len(texts))
        for i in self.eos:
            self.texts[i] = b""
        self.eos_row = self._with_bits(self.eos)
        self.last_word = np.uint32((1 << (self.size % 32)) - 1 if self.size % 32 else 0xFFFF_FFFF).view(np.int32)

    def only(self, token: int) -> Row:
        """The row that allows just this token."""
        return self._with_bits([token])

    def is_text(self, token: int) -> bool:
        return 0 <= token < self.size and bool(self.texts[token])

    def _with_bits(self, ids: list[int]) -> Row:
        row = np.zeros(self.width, np.uint32)
        for i in ids:
            row[i >> 5] |= np.uint32(1 << (i & 31))
        row.flags.writeable = False
        return row.view(np.int32)


@lru_cache(maxsize=4)
def peer_vocabulary(vocab: Vocabulary) -> PeerVocabulary:
    return PeerVocabulary(vocab)


class PeerMatcher(ABC):
    """See `base.Matcher`. A subclass gives the peer's part: the methods below the line."""

    def __init__(self, vocab: PeerVocabulary, narrow: bool) -> None:
        self.vocab = vocab
        self._narrow = narrow
        self._tokens: tuple[int, tuple] | tuple[()] = ()  # the accepted ones, last first, shared by clones
        self._length = 0
        self._ended = 0  # how many of them are EOS
        self._row: Row | None = None  # the peer's row here, once it was asked for

    def mask(self) -> Row:
        if self._ended:
            return self.vocab.eos_row
        must = self._canonical_here() if self._narrow else -1
        return self.vocab.only(must) if must >= 0 else self._own_row()

    def accept(self, token_id: int) -> bool:
        if token_id in self.vocab.vocab.eos_ids:
            if not 0 <= token_id < self.vocab.size or not self.is_complete():
                return False
            self._ended += 1
        elif self._ended or not self.vocab.is_text(token_id):
            return False
        else:
            must = self._canonical_here() if self._narrow else -1
            if (must >= 0 and token_id != must) or not self._step(token_id):
                return False
        self._tokens = (token_id, self._tokens)
        self._length += 1
        self._row = None
        return True

    def forced(self) -> list[int]:
        found: list[int] = []
        ahead = self.clone()
        while len(found) < MAX_FORCED and (token := ahead._only_token()) >= 0:
            found.append(token)
            if not ahead.accept(token):
                raise RuntimeError(f"{type(self).__name__} forces token {token} and refuses it")
        return found

    def draft(self) -> list[int]:
        return []

    def shortest_completion(self) -> list[int]:
        raise ConstraintError(
            f"finish_in_budget: {type(self).__name__.removesuffix('Matcher').lower()} does not tell how a text can be "
            "finished; use grammar_backend='native'",
            param="finish_in_budget",
        )

    def can_finish(self, tokens: int) -> bool:
        return len(self.shortest_completion()) <= tokens

    def is_complete(self) -> bool:
        return self._ended > 0 or self._accepting()

    def is_finished(self) -> bool:
        return self._ended > 0 or not (self._own_row() & ~self.vocab.eos_row).any()

    def rollback(self, n: int) -> None:
        if not 0 <= n <= self._length:
            raise ValueError(f"cannot roll back {n} tokens; {self._length} were accepted")
        for _ in range(n):
            assert self._tokens
            self._tokens = self._tokens[1]
        self._length -= n
        self._row = None
        ends = min(n, self._ended)
        self._ended -= ends
        if n > ends:
            self._back(n - ends)

    def clone(self) -> PeerMatcher:
        twin = self._copy()
        twin._tokens, twin._length, twin._ended = self._tokens, self._length, self._ended
        twin._row = self._row
        return twin

    def last_tokens(self, n: int) -> list[int]:
        """Up to n accepted tokens, in order."""
        out: list[int] = []
        at = self._tokens
        while at and len(out) < n:
            out.append(at[0])
            at = at[1]
        return out[::-1]

    def _own_row(self) -> Row:
        if self._row is None:
            row = self._fill()
            if self.vocab.size % 32:
                row[-1] &= self.vocab.last_word
            row.flags.writeable = False
            self._row = row
        return self._row

    def _canonical_here(self) -> int:
        return -1 if self._ended or self._accepting() else self._canonical()

    def _only_token(self) -> int:
        """The token that masked decoding must emit here, or -1: there is a choice, or the text may end."""
        if self._ended or self._accepting():
            return -1
        token = self._canonical()
        if token >= 0:
            return token
        row = self._own_row().view(np.uint32)
        words = np.flatnonzero(row)
        if len(words) != 1 or int(row[words[0]]).bit_count() != 1:
            return -1
        return 32 * int(words[0]) + int(row[words[0]]).bit_length() - 1

    # The peer's part -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _fill(self) -> Row:
        """A new row with the peer's mask, EOS among it where the text may end. No EOS was accepted."""

    @abstractmethod
    def _step(self, token: int) -> bool:
        """Advance by a text token; False, and no change, if the grammar does not allow it."""

    @abstractmethod
    def _accepting(self) -> bool:
        """The text so far is a whole match."""

    @abstractmethod
    def _canonical(self) -> int:
        """The token that spells the forced text from here canonically, or -1 when none is certain."""

    @abstractmethod
    def _back(self, n: int) -> None:
        """Take back n text tokens; `last_tokens` has those that stay."""

    @abstractmethod
    def _copy(self) -> PeerMatcher: ...
