"""Which tokens may come next in an automaton state: rows of bits, worked out once per state and kept.

Two walkers give equal rows: the compiled one (numba), and numpy for machines without it. `STEMMA_GRAMMAR_WALKER`
("numba" or "numpy") picks one; the default is numba where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.automaton import UNKNOWN, Dfa
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.slices import LONGEST, TokenClass, token_classes
from stemma.backend.grammar.trie import TokenTrie, build_trie

Row = NDArray[np.int32]

SHORT = 16  # bytes; one token in fifty of a large vocabulary is longer


class Walker(Protocol):
    """Walks `trie`. `fill` adds to `row` (int32[row_words]) the tokens in the nodes [start, stop), siblings and what
    is below them, that the automaton allows when it is in `state` before `start`'s byte. `row` gives a new row with all
    tokens that are allowed in `state`."""

    trie: TokenTrie

    def automaton(self, *what: Any, **options: Any) -> Dfa:
        """A `Dfa` of the kind that this walker walks; the arguments are those of `Dfa`."""
        ...

    def fill(self, dfa: Dfa, state: int, start: int, stop: int, row: Row) -> None: ...

    def row(self, dfa: Dfa, state: int) -> Row: ...


class NumbaWalker:
    """Walks automata whose states are made by compiled code, and skips what the classes of `slices` answer."""

    def __init__(self, trie: TokenTrie, vocab: Vocabulary) -> None:
        from stemma.backend.grammar import compiled, walk

        self.trie = trie
        self._compiled = compiled
        self._walk = walk
        self.narrow = walk.NARROW
        self._all = walk.joined([(walk.PLAIN, False, trie)], [], trie.row_words)
        self._short, self._long = self._sorted(vocab, 1, SHORT), self._sorted(vocab, SHORT + 1, None)

    def _sorted(self, vocab: Vocabulary, shortest: int, longest: int | None) -> Any:
        classes = token_classes(vocab, shortest, longest, self._compiled.LONGEST_TOKEN)
        plain = frozenset[int]().union(*(known.ids for known in classes))
        outside: dict[int, list[int]] = {self._walk.CONTROL: [], self._walk.PLAIN: []}
        for i, text in enumerate(vocab.token_bytes):
            if text and shortest <= len(text) <= (longest or len(text)) and i not in plain:
                outside[self._walk.CONTROL if min(text) < 0x20 else self._walk.PLAIN].append(i)
        parts = [(known.number, known.spaced, build_trie(vocab, known.ids)) for known in classes]
        parts += [(kind, False, build_trie(vocab, frozenset(ids))) for kind, ids in outside.items()]
        return self._walk.joined(parts, [known.rows for known in classes], self.trie.row_words)

    def automaton(self, *what: Any, **options: Any) -> Dfa:
        return self._compiled.CompiledDfa(*what, **options)

    def fill(self, dfa: Dfa, state: int, start: int, stop: int, row: Row) -> None:
        row |= self._filled(dfa, state, self._walk.NODES, start, stop)

    def row(self, dfa: Dfa, state: int) -> Row:
        return self._filled(dfa, state, self._walk.AUTOMATIC, self.narrow)

    def short_row(self, dfa: Dfa, state: int) -> Row:
        """The tokens of up to SHORT bytes that are allowed in `state`."""
        return self._filled(dfa, state, self._walk.SHORT)

    def long_row(self, dfa: Dfa, state: int) -> Row:
        """The other tokens that are allowed in `state`."""
        return self._filled(dfa, state, self._walk.LONG)

    def _filled(self, dfa: Dfa, state: int, which: int, first: int = 0, last: int = 0) -> Row:
        assert isinstance(dfa, self._compiled.CompiledDfa)
        states = np.empty(self.trie.max_depth + 1, np.int32)
        with dfa.lock:
            while True:
                row = np.zeros(self.trie.row_words, np.int32)
                status = self._walk.fill(
                    dfa.arrays, dfa.column, self._all, self._short, self._long, which, first, last, state, states, row
                )
                if not status:
                    return row
                dfa.grow(status)


class NumpyWalker:
    """Depth by depth: all live nodes of one depth at once. Whole classes of `slices` are taken from their rows."""

    def __init__(self, trie: TokenTrie, vocab: Vocabulary, *, sliced: bool = True) -> None:
        self.trie = trie
        self._parts: list[tuple[TokenClass, NumpyWalker]] = []
        if sliced:
            classes = token_classes(vocab)
            plain = frozenset[int]().union(*(known.ids for known in classes))
            self._parts = [(of, NumpyWalker(build_trie(vocab, of.ids), vocab, sliced=False)) for of in classes]
            others = frozenset(range(vocab.size)) - plain
            self._outside = NumpyWalker(build_trie(vocab, others), vocab, sliced=False)
        self._order = np.argsort(trie.depth, kind="stable").astype(np.int32)
        bounds = np.searchsorted(trie.depth[self._order], np.arange(1, trie.max_depth + 2))
        total = len(trie.byte)
        self._children = np.zeros(total, np.int32)
        self._first_child = np.zeros(total, np.int32)  # an index into _order, where siblings are neighbours
        for depth in range(1, trie.max_depth):
            parents = self._order[bounds[depth - 1] : bounds[depth]]
            here = self._order[bounds[depth] : bounds[depth + 1]]
            parent_of = parents[np.searchsorted(parents, here) - 1]
            owners, firsts, counts = np.unique(parent_of, return_index=True, return_counts=True)
            self._children[owners] = counts
            self._first_child[owners] = bounds[depth] + firsts

    def automaton(self, *what: Any, **options: Any) -> Dfa:
        return Dfa(*what, **options)

    def row(self, dfa: Dfa, state: int) -> Row:
        row = np.zeros(self.trie.row_words, np.int32)
        covered = dfa.covered(state)
        if not covered or not self._parts:
            self.fill(dfa, state, 0, len(self.trie.byte), row)
            return row
        for known, walker in self._parts:
            room, exact = (
                dfa.room(state, known.number) if covered >> known.number & 1 and not known.spaced else (0, False)
            )
            if room >= LONGEST or exact:
                row |= known.rows[room]
            else:
                walker.fill(dfa, state, 0, len(walker.trie.byte), row)
        self._outside.fill(dfa, state, 0, len(self._outside.trie.byte), row)
        return row

    def fill(self, dfa: Dfa, state: int, start: int, stop: int, row: Row) -> None:
        if start >= stop:
            return
        t = self.trie
        allowed = np.zeros(t.row_words * 32, np.bool_)
        nodes = start + np.flatnonzero(t.depth[start:stop] == t.depth[start])
        states = np.full(len(nodes), state)
        with dfa.lock:
            while len(nodes):
                for unknown in np.unique(states[dfa.table[states, 0] == UNKNOWN]).tolist():
                    dfa.expand(unknown)
                after = dfa.table[states, dfa.column[t.byte[nodes]]]
                live = after >= 0
                nodes, after = nodes[live], after[live]
                allowed[t.tokens[_spans(t.first[nodes], t.first[nodes + 1] - t.first[nodes])]] = True
                counts = self._children[nodes]
                states = np.repeat(after, counts)
                nodes = self._order[_spans(self._first_child[nodes], counts)]
        row |= np.packbits(allowed, bitorder="little").view("<i4")


def _spans(starts: NDArray[np.int32], counts: NDArray[np.int32]) -> NDArray[np.int64]:
    """The indices start, start + 1, … of every span, one span behind the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


@lru_cache(maxsize=8)
def _index(vocab: Vocabulary, kind: str) -> Walker:
    return (NumbaWalker if kind == "numba" else NumpyWalker)(build_trie(vocab), vocab)


_building = {"numba": threading.Lock(), "numpy": threading.Lock()}  # one may be slow: it compiles its code


def index_of(vocab: Vocabulary, kind: str | None = None) -> Walker:
    """The walker of a vocabulary, built once for each. `kind`: "numba", "numpy" or None for the default."""
    kind = kind or os.environ.get("STEMMA_GRAMMAR_WALKER") or _default_kind()
    if kind not in ("numba", "numpy"):
        raise ValueError(f"STEMMA_GRAMMAR_WALKER must be 'numba' or 'numpy', got {kind!r}")
    with _building[kind]:
        return _index(vocab, kind)


@lru_cache(maxsize=1)
def _default_kind() -> str:
    return "numba" if importlib.util.find_spec("numba") else "numpy"


class MaskCache:
    """The rows of one automaton, least recently used first to go. Rows are read-only and may be held for ever.

    States that agree for the length of the longest token share a row (`Dfa.shape`). Nearly all tokens are short, so
    where states are counted a row is made from the row of the short ones, shared by the many more states that agree for
    SHORT bytes, and a walk over the few long ones.
    """

    def __init__(self, dfa: Dfa, vocab: Vocabulary, walker: Walker, max_bytes: int) -> None:
        self._dfa = dfa
        self._walker = walker
        self._width = walker.trie.row_words
        self._eos = [i for i in vocab.eos_ids if 0 <= i < vocab.size]
        self._rows: OrderedDict[tuple[str, int], Row] = OrderedDict()
        self._shapes: dict[int, tuple[str, int]] = {}
        self._counts: dict[tuple[str, int], int] = {}
        self._kept = max(2, max_bytes // max(4 * self._width, 1))
        self._lock = threading.Lock()
        self.eos_row = self._with_bits(self._eos)

    @property
    def nbytes(self) -> int:
        return len(self._rows) * 4 * self._width

    def row(self, state: int) -> Row:
        """The tokens that may follow, EOS among them if the text may end here."""
        key = self._key(state)
        row = self._find(key)
        return self._keep(key, self._compute(key[1])) if row is None else row

    def only(self, token: int) -> Row:
        """The row that allows just this token."""
        row = self._find(("only", token))
        return self._keep(("only", token), self._with_bits([token])) if row is None else row

    def count(self, state: int) -> int:
        """How many tokens may follow, EOS aside."""
        key = self._key(state)
        count = self._counts.get(key)
        if count is None:
            count = int(np.bitwise_count(self.row(state).view(np.uint32)).sum())
            count -= len(self._eos) if self._dfa.accepting[state] else 0
            self._counts[key] = count
        return count

    def only_token(self, state: int) -> int:
        """The one token that may follow, for a state whose count is 1 and that is not accepting."""
        row = self.row(state).view(np.uint32)
        word = int(np.flatnonzero(row)[0])
        return 32 * word + int(row[word]).bit_length() - 1

    def _key(self, state: int) -> tuple[str, int]:
        key = self._shapes.get(state)
        if key is None:
            key = self._shapes[state] = ("all", self._dfa.shape(state, self._walker.trie.max_depth))
        return key

    def _compute(self, state: int) -> Row:
        row = self._folded(state) if self._dfa.has_runs else None
        if row is None:
            row = self._walker.row(self._dfa, state)
        if self._dfa.accepting[state]:
            row |= self.eos_row
        return row

    def _folded(self, state: int) -> Row | None:
        """The row by way of that of a state which agrees for short tokens, where there is one that stands for many."""
        if not isinstance(self._walker, NumbaWalker) or (shape := self._dfa.shape(state, SHORT)) == state:
            return None
        row = self._find(("short", shape))
        if row is None:
            row = self._keep(("short", shape), self._walker.short_row(self._dfa, shape))
        return row | self._walker.long_row(self._dfa, state)

    def _with_bits(self, ids: list[int]) -> Row:
        row = np.zeros(self._width, np.uint32)
        for i in ids:
            row[i >> 5] |= np.uint32(1 << (i & 31))
        row.flags.writeable = False
        return row.view(np.int32)

    def _find(self, key: tuple[str, int]) -> Row | None:
        with self._lock:
            row = self._rows.get(key)
            if row is not None:
                self._rows.move_to_end(key)
            return row

    def _keep(self, key: tuple[str, int], row: Row) -> Row:
        row.flags.writeable = False
        with self._lock:
            self._rows[key] = row
            while len(self._rows) > self._kept:
                self._rows.popitem(last=False)
        return row
