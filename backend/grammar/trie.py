"""The vocabulary as a trie in flat arrays, in the order of a depth-first walk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.base import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class TokenTrie:
    """Node i stands for a byte string; its children follow it. N nodes, T tokens.

    `byte` uint8[N], `depth` int16[N] (1 for the first byte), `skip` int32[N]: the node behind i's subtree.
    `tokens` int32[T] sorted by their bytes; those that end at node i are `tokens[first[i]:first[i + 1]]` (several ids
    may share their bytes). `max_depth` is the longest token. `alphabet`: the bytes that occur in tokens;
    `single_bytes`: those that are tokens by themselves; `children`: of the nodes that were asked for.
    `row_words`: the width of a mask row.
    Special tokens, EOS ids, empty tokens and ids outside the logits are not in it.
    """

    byte: NDArray[np.uint8]
    depth: NDArray[np.int16]
    skip: NDArray[np.int32]
    first: NDArray[np.int32]
    tokens: NDArray[np.int32]
    max_depth: int
    row_words: int
    alphabet: frozenset[int]
    single_bytes: frozenset[int]
    children: dict[int, dict[int, int]]

    def child(self, node: int, byte: int) -> int:
        """The node one byte on, or -1. Node -1 is the root."""
        children = self.children.get(node)
        if children is None:
            children = {}
            at, end = node + 1, int(self.skip[node])
            while at < end:
                children[int(self.byte[at])] = at
                at = int(self.skip[at])
            self.children[node] = children
        return children.get(byte, -1)


def build_trie(vocab: Vocabulary, only: frozenset[int] | None = None) -> TokenTrie:
    """The trie of the vocabulary's tokens, or of those in `only`."""
    table, size = vocab.token_bytes, min(vocab.size, len(vocab.token_bytes))
    ids = range(size) if only is None else [i for i in only if i < size]
    entries = [(text, i) for i in ids if (text := table[i]) and i not in vocab.eos_ids]
    entries.sort()
    texts = [text for text, _ in entries]
    lengths = np.fromiter(map(len, texts), np.int32, len(texts))
    shared = _shared_prefixes(texts, lengths)
    new = lengths - shared  # nodes that each token adds; none for a repeated byte string
    total, max_depth = int(new.sum()), int(lengths.max(initial=0))
    owner = np.repeat(np.arange(len(texts)), new)
    last = np.cumsum(new)
    depth = (np.arange(total) - np.repeat(last - new, new) + np.repeat(shared, new) + 1).astype(np.int16)
    offsets = np.cumsum(lengths) - lengths
    flat = np.frombuffer(b"".join(texts), np.uint8)
    byte = flat[offsets[owner] + depth - 1] if total else np.zeros(0, np.uint8)
    # A token ends at the last node added up to it: its own, or that of an equal string before it.
    ends = np.bincount(last - 1, minlength=total) if total else np.zeros(0, np.int64)
    return TokenTrie(
        byte=byte,
        depth=depth,
        skip=_skips(depth.tolist(), max_depth),
        first=np.concatenate(([0], np.cumsum(ends))).astype(np.int32),
        tokens=np.array([i for _, i in entries], np.int32),
        max_depth=max_depth,
        row_words=(vocab.size + 31) // 32,
        alphabet=frozenset(np.unique(byte).tolist()),
        single_bytes=frozenset(text[0] for text in texts if len(text) == 1),
        children={-1: {int(byte[i]): i for i in np.flatnonzero(depth == 1).tolist()}},
    )


def _shared_prefixes(texts: list[bytes], lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """int32[T]: how many leading bytes each text has in common with the one before it."""
    shared = np.zeros(len(texts), np.int32)
    chunk = 8192
    for start in range(1, len(texts), chunk):
        stop = min(start + chunk, len(texts))
        width = int(lengths[start - 1 : stop].max())
        padded = b"".join([text.ljust(width, b"\0") for text in texts[start - 1 : stop]])
        block = np.frombuffer(padded, np.uint8).reshape(-1, width)
        differs = block[1:] != block[:-1]
        at = np.where(differs.any(axis=1), differs.argmax(axis=1), width)
        shared[start:stop] = np.minimum(at, np.minimum(lengths[start:stop], lengths[start - 1 : stop - 1]))
    return shared


def _skips(depths: list[int], max_depth: int) -> NDArray[np.int32]:
    """int32[N]: for each node the next one that is not deeper, else N."""
    skip = [len(depths)] * len(depths)
    open_at = [0] * (max_depth + 2)  # the node that is open at each depth
    before = 0
    for node, depth in enumerate(depths):
        for closed in range(depth, before + 1):
            skip[open_at[closed]] = node
        open_at[depth] = node
        before = depth
    return np.array(skip, np.int32)
