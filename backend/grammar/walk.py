"""The walk over the token trie, compiled by numba. Import only where numba is installed.

The trie is walked depth-first with one automaton state per depth; a dead state skips its subtree. Tokens that lie in a
class of `slices` have a trie of their own, where a state that leads through any characters of the class skips its
subtree too: all below is allowed. There the walk starts from the row that holds most of the answer, the empty or the
full one, and only corrects it, so that a wide state costs no more than a narrow one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.determinise import (
    DEAD,
    DONE,
    INFINITE,
    INSIDE,
    UNKNOWN,
    Made,
    Net,
    Work,
    _compiled,
    expand,
    room,
)
from stemma.backend.grammar.slices import LONGEST
from stemma.backend.grammar.trie import TokenTrie

NARROW = 6000  # nodes below the first bytes that are alive: so few are walked without sorting them into classes


class Tries(NamedTuple):
    """Several tries one behind the other; the arrays of `trie.TokenTrie`, and for each node and token its characters.

    `part`: int32[parts, 5], first node, stop, class (-1: none), whether its tokens all begin with a space (whose
    node is left out, and not counted as a character), first row of `rows`. `rows`: int32[.., row_words], for each class the tokens of up to 0, 1, … LONGEST
    characters, and all.
    """

    byte: NDArray[np.uint8]
    depth: NDArray[np.int16]
    skip: NDArray[np.int32]
    first: NDArray[np.int32]
    tokens: NDArray[np.int32]
    chars: NDArray[np.uint8]
    token_chars: NDArray[np.uint8]
    part: NDArray[np.int32]
    rows: NDArray[np.int32]


@_compiled
def _walk(
    net: Net,
    made: Made,
    work: Work,
    column: NDArray[np.int16],
    tries: Tries,
    node: int,
    stop: int,
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """Set the bits in `row` of the allowed tokens in nodes [node, stop). `states[d]`: the state after d bytes. Returns
    a status."""
    table = made.table
    while node < stop:
        d = tries.depth[node]
        before = states[d - 1]
        after = table[before, column[tries.byte[node]]]
        if after == UNKNOWN:
            status = expand(net, made, work, before)
            if status:
                return status
            after = table[before, column[tries.byte[node]]]
        if after < 0:
            node = tries.skip[node]
            continue
        states[d] = after
        for i in range(tries.first[node], tries.first[node + 1]):
            token = tries.tokens[i]
            row[token >> 5] |= np.int32(1) << np.int32(token & 31)
        node += 1
    return DONE


@_compiled
def _correct(
    net: Net,
    made: Made,
    work: Work,
    column: NDArray[np.int16],
    tries: Tries,
    number: int,
    full: bool,
    node: int,
    stop: int,
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """As `_walk`, for tokens of class `number`. `full`: their bits are set in `row`, and those that are not allowed are
    cleared; else they are clear, and those that are allowed are set. Returns a status."""
    table, known = made.table, made.rooms
    while node < stop:
        d = tries.depth[node]
        before = states[d - 1]
        after = table[before, column[tries.byte[node]]]
        if after == UNKNOWN:
            status = expand(net, made, work, before)
            if status:
                return status
            after = table[before, column[tries.byte[node]]]
        if after < 0:
            if full:
                for i in range(tries.first[node], tries.first[tries.skip[node]]):
                    token = tries.tokens[i]
                    row[token >> 5] &= ~(np.int32(1) << np.int32(token & 31))
            node = tries.skip[node]
            continue
        rooms = np.int64(known[after, number])
        if rooms < 0:
            rooms = np.int64(room(net, made, after, number))
        sure, most = rooms & 0x7F, rooms >> 8
        if sure == INFINITE or sure == most:
            longest = 255 if sure == INFINITE else sure + np.int64(tries.chars[node])
            for i in range(tries.first[node], tries.first[tries.skip[node]]):
                if (tries.token_chars[i] <= longest) != full:
                    token = tries.tokens[i]
                    bit = np.int32(1) << np.int32(token & 31)
                    if full:
                        row[token >> 5] &= ~bit
                    else:
                        row[token >> 5] |= bit
                elif longest == 255 and full:
                    break
            node = tries.skip[node]
            continue
        states[d] = after
        if not full:
            for i in range(tries.first[node], tries.first[node + 1]):
                token = tries.tokens[i]
                row[token >> 5] |= np.int32(1) << np.int32(token & 31)
        node += 1
    return DONE


@_compiled
def fill_nodes(
    net: Net,
    made: Made,
    work: Work,
    column: NDArray[np.int16],
    tries: Tries,
    node: int,
    stop: int,
    state: int,
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """Set the bits of the allowed tokens in the nodes [node, stop), siblings and what is below them. A status."""
    if node >= stop:
        return DONE
    states[tries.depth[node] - 1] = state
    return _walk(net, made, work, column, tries, node, stop, states, row)


@_compiled
def fill_parts(
    net: Net,
    made: Made,
    work: Work,
    column: NDArray[np.int16],
    classes: Tries,
    state: int,
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """As `fill`, out of tokens that are sorted into classes."""
    status = expand(net, made, work, state)
    if status:
        return status
    table = made.table
    inside = room(net, made, state, 0) & INSIDE
    for p in range(len(classes.part)):
        node, stop, number, spaced, first_row = classes.part[p]
        if node >= stop:
            continue
        if number < 0:
            states[0] = state
            status = _walk(net, made, work, column, classes, node, stop, states, row)
            if status:
                return status
            continue
        if inside:
            continue  # of a character: no token of a class begins there
        begin = state
        if spaced:
            begin = table[state, column[32]]
            if begin == DEAD:
                continue
            status = expand(net, made, work, begin)
            if status:
                return status
        rooms = np.int64(room(net, made, begin, number))
        sure, most = rooms & 0x7F, rooms >> 8
        if sure == most or sure == INFINITE:
            held = classes.rows[first_row + min(sure, LONGEST + 1)]
            for i in range(len(row)):
                row[i] |= held[i]
            if LONGEST < sure < INFINITE:
                for i in range(classes.first[node], classes.first[stop]):
                    if classes.token_chars[i] > sure:
                        token = classes.tokens[i]
                        row[token >> 5] &= ~(np.int32(1) << np.int32(token & 31))
            continue
        allowed, at = 0, node
        while at < stop:
            after = table[begin, column[classes.byte[at]]]
            below = classes.first[classes.skip[at]] - classes.first[at]
            if after == DEAD:
                allowed -= below
            elif (room(net, made, after, number) & 0x7F) == INFINITE:
                allowed += below
            at = classes.skip[at]
        full = allowed > 0
        if full:
            held = classes.rows[first_row + LONGEST + 1]
            for i in range(len(row)):
                row[i] |= held[i]
        states[spaced] = begin
        status = _correct(net, made, work, column, classes, number, full, node, stop, states, row)
        if status:
            return status
    return DONE


@_compiled
def fill(
    net: Net,
    made: Made,
    work: Work,
    column: NDArray[np.int16],
    tries: Tries,
    short: Tries,
    long: Tries,
    narrow: int,
    state: int,
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """Set the bits of all tokens that may follow `state`, out of `tries` or, if more than `narrow` nodes lie there below
    the first bytes that are alive, out of `short` and `long` (the same tokens, sorted into classes). Returns a status:
    if it is not DONE, the same call again makes `row` complete."""
    status = expand(net, made, work, state)
    if status:
        return status
    table = made.table
    nodes, node = 0, 0
    while node < len(tries.byte):
        if table[state, column[tries.byte[node]]] >= 0:
            nodes += tries.skip[node] - node
        node = tries.skip[node]
    if nodes < narrow or room(net, made, state, 0) & INSIDE:
        states[0] = state
        return _walk(net, made, work, column, tries, 0, len(tries.byte), states, row)
    status = fill_parts(net, made, work, column, short, state, states, row)
    if status:
        return status
    return fill_parts(net, made, work, column, long, state, states, row)



def joined(parts: Sequence[tuple[int, bool, TokenTrie]], rows: Sequence[Sequence[NDArray[np.int32]]], words: int) -> Tries:
    """Tries of (class or -1, spaced, tokens) one behind the other; `rows` of each class, in the same order."""
    part, nodes, tokens, row = [], 0, 0, 0
    skip, first = [], []
    for i, (number, spaced, trie) in enumerate(parts):
        size = len(trie.byte)
        part.append((nodes + spaced, nodes + size, number, spaced, row))
        skip.append(trie.skip + nodes)
        first.append(trie.first[:-1] + tokens)
        nodes, tokens = nodes + size, tokens + len(trie.tokens)
        row += len(rows[i]) if i < len(rows) else 0
    tries = [trie for _, _, trie in parts]
    chars = [_characters(trie) - np.uint8(spaced) for _, spaced, trie in parts]
    ends = [np.repeat(of, np.diff(trie.first)) for of, trie in zip(chars, tries, strict=True)]
    held = [row for of in rows for row in of]
    return Tries(
        np.concatenate([trie.byte for trie in tries]),
        np.concatenate([trie.depth for trie in tries]),
        np.concatenate(skip).astype(np.int32),
        np.concatenate([*first, [tokens]]).astype(np.int32),
        np.concatenate([trie.tokens for trie in tries]),
        np.concatenate(chars),
        np.concatenate(ends),
        np.array(part, np.int32),
        np.array(held, np.int32) if held else np.zeros((0, words), np.int32),
    )


def _characters(trie: TokenTrie) -> NDArray[np.uint8]:
    """For each node how many characters begin on the way to it (255: that many or more)."""
    found, counts = [], [0] * (trie.max_depth + 1)
    for byte, depth in zip(trie.byte.tolist(), trie.depth.tolist(), strict=True):
        counts[depth] = count = min(counts[depth - 1] + (byte & 0xC0 != 0x80), 255)
        found.append(count)
    return np.array(found, np.uint8)
