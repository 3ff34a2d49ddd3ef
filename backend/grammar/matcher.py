"""A compiled constraint and the position of one generation in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.forcing import CONTEXT_TOKENS, MAX_TEXT, canonical_tokens, likely_tokens
from stemma.backend.grammar.masks import MaskCache, Walker
from stemma.backend.grammar.shortest import ShortestTexts, fewest_tokens, unspellable

FINISHED = -3  # the state behind EOS
MAX_FORCED = 256  # tokens that one call of `forced` gives at most
_MEMO_SIZE = 200_000


class Position(NamedTuple):
    """One step of a generation; the steps before it are shared by all that were cloned from it."""

    state: int
    token: int
    length: int
    before: Position | None


class RegularGrammar:
    """A constraint compiled to one byte automaton. Its caches are shared by all matchers, in any thread."""

    def __init__(
        self, dfa: Dfa, vocab: Vocabulary, walker: Walker, mask_bytes: int, warnings: tuple[str, ...] = ()
    ) -> None:
        self.dfa = dfa
        self.warnings = warnings
        self.longest: int | None = None  # no match has more bytes than that, where it is known
        self.vocab = vocab
        self.walker = walker
        self.masks = MaskCache(dfa, vocab, walker, mask_bytes)
        self.covers_bytes = len(walker.trie.single_bytes) == 256
        self._steps: dict[tuple[int, int], int] = {}
        self._forced_bytes: dict[int, bytes] = {}
        self._canonical: dict[tuple[int, tuple[int, ...]], int] = {}
        self._completions: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}
        self._shortest: ShortestTexts | None = None
        self._drafts: dict[tuple[int, tuple[int, ...]], list[int]] = {}

    def matcher(self) -> RegularMatcher:
        return RegularMatcher(self, Position(0, -1, 0, None))

    @property
    def nbytes(self) -> int:
        """About how much memory the grammar and its caches hold now."""
        memos = 120 * len(self._steps) + 100 * len(self._forced_bytes)
        memos += 250 * (len(self._canonical) + len(self._drafts) + 4 * len(self._completions))
        shortest = self._shortest.nbytes if self._shortest else 0
        return self.dfa.nbytes + self.masks.nbytes + memos + shortest

    def advance(self, state: int, token: int) -> int:
        """The state after a token, or DEAD. EOS is no token here."""
        key = (state, token)
        after = self._steps.get(key)
        if after is None:
            text = self._text(token)
            after = self.dfa.run(state, text) if text else DEAD
            _remember(self._steps, key, after)
        return after

    def _text(self, token: int) -> bytes | None:
        vocab = self.vocab
        if not 0 <= token < min(vocab.size, len(vocab.token_bytes)) or token in vocab.eos_ids:
            return None
        return vocab.token_bytes[token]

    def canonical_token(self, position: Position) -> int:
        """The token that spells the forced text from here canonically, or -1 when no token is certain."""
        state = position.state
        text = self._forced_from(state)
        if not text:
            return -1
        context = _last_tokens(position)
        key = (state, context)
        token = self._canonical.get(key)
        if token is None:
            tokens = canonical_tokens(self.dfa, self.vocab, self.walker, state, text, context)
            token = tokens[0] if tokens and self.advance(state, tokens[0]) != DEAD else -1
            _remember(self._canonical, key, token)
        return token

    def draft(self, position: Position) -> list[int]:
        """See `base.Matcher.draft`."""
        state = position.state
        if state == FINISHED or not (text := self._forced_from(state)):
            return []
        context = _last_tokens(position)
        key = (state, context)
        tokens = self._drafts.get(key)
        if tokens is None:
            tokens = []
            for token in likely_tokens(self.vocab, text, context):
                state = self.advance(state, token)
                if state == DEAD:
                    break
                tokens.append(token)
            _remember(self._drafts, key, tokens)
        return list(tokens)

    def completion(self, position: Position) -> tuple[int, ...]:
        """See `base.Matcher.shortest_completion`."""
        if self.is_complete(position.state):
            return ()
        key = (position.state, _last_tokens(position))
        tokens = self._completions.get(key)
        if tokens is None:
            tokens = tuple(self._spelled(position, self.shortest_text(position.state)))
            _remember(self._completions, key, tokens)
        return tokens

    def _spelled(self, position: Position, text: bytes) -> Iterator[int]:
        """Tokens of a shortest text that the masks allow one after the other."""
        fewest = fewest_tokens(self.walker.trie, text)
        at = 0
        while at < len(text):
            must = self.canonical_token(position)
            token = must if must >= 0 else fewest[at]
            after = self.advance(position.state, token)
            if token < 0 or after == DEAD:
                raise unspellable()
            at += len(self.vocab.token_bytes[token] or b"")
            position = Position(after, token, position.length + 1, position)
            yield token
        if not self.is_complete(position.state):
            raise unspellable()

    def shortest_text(self, state: int) -> bytes:
        """The fewest bytes that lead from `state` to a whole match."""
        if self._shortest is None:
            self._shortest = ShortestTexts(self.dfa)
        with self.dfa.lock:
            return self._shortest.text(state)

    def is_complete(self, state: int) -> bool:
        return state == FINISHED or self.dfa.accepting[state]

    def _forced_from(self, state: int) -> bytes:
        text = self._forced_bytes.get(state)
        if text is None:
            text = self.dfa.forced_bytes(state, MAX_TEXT)
            _remember(self._forced_bytes, state, text)
        return text

    def only_token(self, position: Position) -> int:
        """The token that masked decoding must emit here, or -1: there is a choice, or the text may end."""
        if position.state == FINISHED or self.dfa.accepting[position.state]:
            return -1
        token = self.canonical_token(position)
        if token >= 0 or (self.covers_bytes and self.dfa.only_byte(position.state) < 0):
            return token  # with every byte a token, two live bytes are two tokens
        return self.masks.only_token(position.state) if self.masks.count(position.state) == 1 else -1


def _remember(memo: dict, key: object, value: object) -> None:
    if len(memo) >= _MEMO_SIZE:
        memo.clear()
    memo[key] = value


def _last_tokens(position: Position) -> tuple[int, ...]:
    tokens: list[int] = []
    at: Position | None = position
    while at is not None and at.before is not None and len(tokens) < CONTEXT_TOKENS:
        tokens.append(at.token)
        at = at.before
    return tuple(reversed(tokens))


class RegularMatcher:
    """See `base.Matcher`. If the vocabulary cannot spell what must follow, the matcher is finished and not complete."""

    __slots__ = ("_grammar", "_position")

    def __init__(self, grammar: RegularGrammar, position: Position) -> None:
        self._grammar = grammar
        self._position = position

    def mask(self) -> NDArray[np.int32]:
        grammar, state = self._grammar, self._position.state
        if state == FINISHED:
            return grammar.masks.eos_row
        token = grammar.canonical_token(self._position)
        return grammar.masks.row(state) if token < 0 else grammar.masks.only(token)

    def accept(self, token_id: int) -> bool:
        grammar, position = self._grammar, self._position
        state = position.state
        if token_id in grammar.vocab.eos_ids:
            if not self.is_complete() or not 0 <= token_id < grammar.vocab.size:
                return False
            after = FINISHED
        elif state == FINISHED:
            return False
        else:
            must = grammar.canonical_token(position)
            if must >= 0 and token_id != must:
                return False
            after = grammar.advance(state, token_id)
            if after == DEAD:
                return False
        self._position = Position(after, token_id, position.length + 1, position)
        return True

    def forced(self) -> list[int]:
        grammar, position = self._grammar, self._position
        tokens: list[int] = []
        while len(tokens) < MAX_FORCED and (token := grammar.only_token(position)) >= 0:
            tokens.append(token)
            position = Position(grammar.advance(position.state, token), token, position.length + 1, position)
        return tokens

    def draft(self) -> list[int]:
        return self._grammar.draft(self._position)

    def shortest_completion(self) -> list[int]:
        return list(self._grammar.completion(self._position))

    def can_finish(self, tokens: int) -> bool:
        grammar, state = self._grammar, self._position.state
        if grammar.is_complete(state):
            return tokens >= 0
        text = grammar.shortest_text(state)
        if grammar.covers_bytes and len(text) <= tokens:
            return True
        if len(text) > tokens * grammar.walker.trie.max_depth:
            return False
        return len(grammar.completion(self._position)) <= tokens

    def is_complete(self) -> bool:
        return self._grammar.is_complete(self._position.state)

    def is_finished(self) -> bool:
        grammar, state = self._grammar, self._position.state
        if state == FINISHED:
            return True
        if grammar.covers_bytes:
            return grammar.dfa.accepting[state] and not grammar.dfa.has_next(state)
        return grammar.masks.count(state) == 0

    def rollback(self, n: int) -> None:
        position = self._position
        if not 0 <= n <= position.length:
            raise ValueError(f"cannot roll back {n} tokens; {position.length} were accepted")
        for _ in range(n):
            assert position.before is not None
            position = position.before
        self._position = position

    def clone(self) -> RegularMatcher:
        return RegularMatcher(self._grammar, self._position)
