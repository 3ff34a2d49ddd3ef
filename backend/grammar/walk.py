"""The walk over the token trie, compiled by numba. Import only where numba is installed.

The trie is walked depth-first with one automaton state per depth; a dead state skips its subtree. Tokens that lie in a
class of `slices` have a trie of their own, where a state that leads through any characters of the class skips its
subtree too: all below is allowed. There the walk starts from the row that holds most of the answer, the empty or the
full one, and only corrects it, so that a wide state costs no more than a narrow one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.determinise import (
    DEAD,
    DONE,
    INFINITE,
    CONTROLS,
    INSIDE,
    MOST,
    SURE,
    UNKNOWN,
    Made,
    Net,
    Work,
    _compiled,
    expand,
    room,
)
from stemma.backend.grammar.charset import LAST
from stemma.backend.grammar.slices import CLASSES, LONGEST
from stemma.backend.grammar.trie import TokenTrie

CLASS_COUNT = len(CLASSES)
NO_CLASS, NOTHING, PENDING = -1, -2, 16
PLAIN, CONTROL = -1, -2
NARROW = 6000  # nodes below the first bytes that are alive: so few are walked without sorting them into classes


class Tries(NamedTuple):
    """Several tries one behind the other; the arrays of `trie.TokenTrie`, and for each node and token its characters.

    `rest`: of each node, the narrowest class of `slices` that all characters below it are in, NO_CLASS or NOTHING; with
    PENDING where the node's own character goes on. `part`: int32[parts, 5], first node, stop, class (or none:
    PLAIN, or CONTROL for tokens with a byte below 0x20), whether its tokens all begin with a space (whose
    node is left out, and not counted as a character), first row of `rows`. `rows`: int32[.., row_words], for each class the tokens of up to 0, 1, … LONGEST
    characters, and all.
    """

    byte: NDArray[np.uint8]
    depth: NDArray[np.int16]
    skip: NDArray[np.int32]
    first: NDArray[np.int32]
    tokens: NDArray[np.int32]
    chars: NDArray[np.uint8]
    rest: NDArray[np.int8]
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
    full: bool,
    node: int,
    stop: int,
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """As `_walk`, but takes what lies in a class and what the state allows of it at once. `full`: the tokens' bits are set in `row`, and those that are not allowed are
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
        number = np.int64(tries.rest[node])
        sure, most = np.int64(0), np.int64(1)
        if number >= 0:
            pending = number & PENDING
            number &= PENDING - 1
            rooms = np.int64(known[after, number])
            if rooms < 0:
                rooms = np.int64(room(net, made, after, number))
            if (pending != 0) == (rooms & INSIDE != 0):
                sure, most = rooms & SURE, rooms >> MOST
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
            if number == CONTROL and not work.numbers[CONTROLS]:
                continue
            states[0] = state
            status = _correct(net, made, work, column, classes, False, node, stop, states, row)
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
        sure, most = rooms & SURE, rooms >> MOST
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
            elif (room(net, made, after, number) & SURE) == INFINITE:
                allowed += below
            at = classes.skip[at]
        full = allowed > 0
        if full:
            held = classes.rows[first_row + LONGEST + 1]
            for i in range(len(row)):
                row[i] |= held[i]
        states[spaced] = begin
        status = _correct(net, made, work, column, classes, full, node, stop, states, row)
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
    chars, rest = [], []
    for _, spaced, trie in parts:
        counts, inside = np.zeros(len(trie.byte), np.uint8), np.zeros(len(trie.byte), np.int8)
        _characters(trie.byte, trie.depth, trie.first, _members(), spaced, counts, inside)
        chars.append(counts)
        rest.append(inside)
    ends = [np.repeat(of, np.diff(trie.first)) for of, trie in zip(chars, tries, strict=True)]
    held = [row for of in rows for row in of]
    return Tries(
        np.concatenate([trie.byte for trie in tries]),
        np.concatenate([trie.depth for trie in tries]),
        np.concatenate(skip).astype(np.int32),
        np.concatenate([*first, [tokens]]).astype(np.int32),
        np.concatenate([trie.tokens for trie in tries]),
        np.concatenate(chars),
        np.concatenate(rest),
        np.concatenate(ends),
        np.array(part, np.int32),
        np.array(held, np.int32) if held else np.zeros((0, words), np.int32),
    )


@lru_cache(maxsize=1)
def _members() -> NDArray[np.uint8]:
    """uint8[code points]: bit i for class i."""
    found = np.zeros(LAST + 1, np.uint8)
    for i, of in enumerate(CLASSES):
        for low, high in of:
            found[low : high + 1] |= 1 << i
    return found


@_compiled
def _characters(
    byte: NDArray[np.uint8],
    depth: NDArray[np.int16],
    first: NDArray[np.int32],
    members: NDArray[np.uint8],
    spaced: bool,
    chars: NDArray[np.uint8],
    rest: NDArray[np.int8],
) -> None:
    """Fill `chars`, the characters that begin on the way to each node (255: that many or more), and `rest`."""
    deepest = 0
    for node in range(len(byte)):
        deepest = max(deepest, np.int64(depth[node]))
    point, missing, length = np.zeros(deepest + 1, np.int64), np.zeros(deepest + 1, np.int64), np.zeros(deepest + 1, np.int64)
    count = np.zeros(deepest + 1, np.int64)
    own = np.zeros(len(byte), np.uint8)
    pending = np.zeros(len(byte), np.bool_)
    count[0] = -1 if spaced else 0
    for node in range(len(byte)):
        d, b = np.int64(depth[node]), np.int64(byte[node])
        count[d] = min(count[d - 1] + (b & 0xC0 != 0x80), 255)
        chars[node] = max(count[d], 0)
        point[d], missing[d], length[d] = 0, 0, 0
        if missing[d - 1]:
            if b & 0xC0 == 0x80:
                point[d] = point[d - 1] << 6 | b & 0x3F
                missing[d], length[d] = missing[d - 1] - 1, length[d - 1]
                least = 0x80 if length[d] == 2 else 0x800 if length[d] == 3 else 0x10000
                if not missing[d] and least <= point[d] < len(members):
                    own[node] = members[point[d]]
        elif b < 0x80:
            own[node] = members[b]
        elif 0xC2 <= b <= 0xDF:
            point[d], missing[d], length[d] = b & 0x1F, 1, 2
        elif 0xE0 <= b <= 0xEF:
            point[d], missing[d], length[d] = b & 0x0F, 2, 3
        elif 0xF0 <= b <= 0xF4:
            point[d], missing[d], length[d] = b & 0x07, 3, 4
        if missing[d]:
            pending[node] = True
            own[node] = 0 if first[node + 1] > first[node] else 255  # a token must not end there
    below = np.full(deepest + 2, 255, np.uint8)  # of the nodes of each depth since their parent: behind the node in hand
    for node in range(len(byte) - 1, -1, -1):
        d = np.int64(depth[node])
        inside = below[d + 1]
        below[d + 1] = 255
        below[d] &= own[node] & inside
        if node + 1 == len(byte) or depth[node + 1] <= d:
            rest[node] = NOTHING
            continue
        rest[node] = NO_CLASS
        for c in range(8):
            if inside >> c & 1 and c < CLASS_COUNT:
                rest[node] = c | (PENDING if pending[node] else 0)
                break
