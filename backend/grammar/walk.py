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

from stemma.backend.grammar.arrays import CLASS_COUNT, CONTROLS, DEAD, DONE, ROOM, UNKNOWN, Arrays, compiled
from stemma.backend.grammar.charset import LAST
from stemma.backend.grammar.determinise import expand
from stemma.backend.grammar.rooms import INFINITE, INSIDE, MOST, SURE, room
from stemma.backend.grammar.slices import CLASSES, LONGEST
from stemma.backend.grammar.trie import TokenTrie

BYTE, DEPTH, SKIP, FIRST, CHARS, REST, BELOW = range(7)  # columns of `Tries.nodes`
NO_CLASS, NOTHING, PENDING = -1, -2, 16
PLAIN, CONTROL = -1, -2
NARROW = 6000  # nodes below the first bytes that are alive: so few are walked without sorting them into classes


class Tries(NamedTuple):
    """Several tries one behind the other; the arrays of `trie.TokenTrie`, and for each node and token its characters.

    `nodes`: int32[nodes + 1, 7]: byte, depth, the node behind its subtree, its first token, the characters that begin
    on the way to it; REST: the narrowest class of `slices` that all characters below it are in, NO_CLASS or NOTHING;
    with PENDING where the node's own character goes on; BELOW: the most characters of its tokens and of those below.
    `tokens`: int32[tokens, 2]: id, characters. `part`: int32[parts, 6], first node, stop, class (or none:
    PLAIN, or CONTROL for tokens with a byte below 0x20), whether its tokens all begin with a space (whose
    node is left out, and not counted as a character), first row of `rows`, the
    most characters of a token. `rows`: int32[.., row_words], for each class the tokens of up to 0, 1, … LONGEST
    characters, and all; at the end those of all classes.
    """

    nodes: NDArray[np.int32]
    tokens: NDArray[np.int32]
    part: NDArray[np.int32]
    rows: NDArray[np.int32]


@compiled
def _walk(
    dfa: Arrays,
    column: NDArray[np.int16],
    tries: Tries,
    sorted_: bool,
    full: bool,
    node: int,
    stop: int,
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """Set in `row` the bits of the tokens in nodes [node, stop) that are allowed; or with `full`, when all of them are
    set, clear the others. `states[d]`: the state after d bytes. `sorted_`: what lies in a class of which the state
    allows any text, or all up to some length, is taken at once.

    Returns `stop`, or the node to go on at when the row of `states[depth - 1]` is known.
    """
    table = dfa.table
    while node < stop:
        d = tries.nodes[node, DEPTH]
        after = table[states[d - 1], column[tries.nodes[node, BYTE]]]
        if after == UNKNOWN:
            return node
        skip = tries.nodes[node, SKIP]
        number = np.int64(tries.nodes[node, REST]) if sorted_ else np.int64(NO_CLASS)
        sure, most, longest = np.int64(-256), np.int64(1), np.int64(-1)  # longest: -1: walk on; -2: dead
        if after < 0:
            longest = -2
        elif number >= 0:
            pending = number & PENDING
            number &= PENDING - 1
            rooms = dfa.states[after, ROOM + number]
            if rooms < 0:
                rooms = room(dfa, after, number)
            if (pending != 0) == (rooms & INSIDE != 0):
                sure, most = rooms & SURE, rooms >> MOST
            if sure + tries.nodes[node, CHARS] >= tries.nodes[node, BELOW]:
                longest = INFINITE
            elif sure == most:
                longest = sure + tries.nodes[node, CHARS]
        if longest == -1:
            states[d] = after
            if not full:
                for i in range(tries.nodes[node, FIRST], tries.nodes[node + 1, FIRST]):
                    token = tries.tokens[i, 0]
                    row[token >> 5] |= np.int32(1) << np.int32(token & 31)
            node += 1
            continue
        if longest != INFINITE if full else after >= 0:
            for i in range(tries.nodes[node, FIRST], tries.nodes[skip, FIRST]):
                if (tries.tokens[i, 1] <= longest) != full:
                    token = tries.tokens[i, 0]
                    row[token >> 5] ^= np.int32(1) << np.int32(token & 31)
        node = skip
    return stop


AUTOMATIC, NODES, SHORT, LONG = 0, 1, 2, 4  # of `fill`: which tokens


@compiled
def fill(
    dfa: Arrays,
    column: NDArray[np.int16],
    tries: Tries,
    short: Tries,
    long: Tries,
    which: int,
    first: int,
    last: int,
    state: int,
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """Set in `row` the bits of tokens that may follow `state`. Before, they are clear.

    `which`: NODES: the nodes [first, last) of `tries`, siblings and what is below them; SHORT, LONG: the tokens of
    these, which are sorted into classes; AUTOMATIC: all tokens, as NODES if there are less than `first` nodes below the
    first bytes that are alive, else as SHORT and LONG. Returns a status; if it is not DONE, clear `row` and call again.
    """
    table = dfa.table
    if which == AUTOMATIC:
        status = expand(dfa, state)
        if status:
            return status
        nodes, node = 0, 0
        while node < len(tries.nodes) - 1:
            if table[state, column[tries.nodes[node, BYTE]]] >= 0:
                nodes += tries.nodes[node, SKIP] - node
            node = tries.nodes[node, SKIP]
        which = SHORT | LONG
        if nodes < first:
            which, first, last = NODES, 0, len(tries.nodes) - 1
    for kind in range(3):
        if not which >> kind & 1:
            continue
        part = tries if kind == 0 else short if kind == 1 else long
        plain = False  # the tokens of all classes are allowed
        if len(part.rows):
            status = expand(dfa, np.int64(state))
            if status:
                return status
            rooms = room(dfa, np.int64(state), CLASS_COUNT - 1)
            longest = 0
            for p in range(len(part.part)):
                longest = max(longest, part.part[p, 5] + part.part[p, 3])
            plain = not rooms & INSIDE and rooms & SURE >= longest
            if plain:
                held = part.rows[len(part.rows) - 1]
                for i in range(len(row)):
                    row[i] |= held[i]
        for p in range(len(part.part)):
            node, stop, number, spaced, rows, longest = part.part[p]
            begin, full = np.int64(state), False
            if kind == 0:
                node, stop = first, last
            if node >= stop or (number == CONTROL and not dfa.numbers[CONTROLS]) or (plain and number >= 0):
                continue
            status = expand(dfa, begin)
            if status:
                return status
            if number >= 0:
                if room(dfa, begin, 0) & INSIDE:
                    continue  # of a character: no token of a class begins there
                if spaced:
                    begin = np.int64(table[begin, column[32]])
                    if begin == DEAD:
                        continue
                    status = expand(dfa, begin)
                    if status:
                        return status
                rooms = room(dfa, begin, number)
                sure, most = rooms & SURE, rooms >> MOST
                if sure >= longest:
                    sure = np.int64(INFINITE)
                weight, at = 0, node  # of tokens below bytes behind which all is allowed, minus those that are dead
                if sure != most and sure != INFINITE:
                    while at < stop:
                        after = table[begin, column[part.nodes[at, BYTE]]]
                        below = part.nodes[part.nodes[at, SKIP], FIRST] - part.nodes[at, FIRST]
                        if after == DEAD:
                            weight -= below
                        elif room(dfa, after, number) & SURE >= longest:
                            weight += below
                        at = part.nodes[at, SKIP]
                    sure, full = np.int64(INFINITE), weight > 0
                if at == node or full:
                    held = part.rows[rows + min(sure, LONGEST + 1)]
                    for i in range(len(row)):
                        row[i] |= held[i]
                if at == node:
                    if LONGEST < sure < INFINITE:
                        for i in range(part.nodes[node, FIRST], part.nodes[stop, FIRST]):
                            if part.tokens[i, 1] > sure:
                                row[part.tokens[i, 0] >> 5] ^= np.int32(1) << np.int32(part.tokens[i, 0] & 31)
                    continue
            states[part.nodes[node, DEPTH] - 1] = begin
            while True:
                node = _walk(dfa, column, part, kind > 0, full, node, stop, states, row)
                if node == stop:
                    break
                status = expand(dfa, states[part.nodes[node, DEPTH] - 1])
                if status:
                    return status
    return DONE


def joined(
    parts: Sequence[tuple[int, bool, TokenTrie]], rows: Sequence[Sequence[NDArray[np.int32]]], words: int
) -> Tries:
    """Tries of (class or -1, spaced, tokens) one behind the other; `rows` of each class, in the same order."""
    part, nodes, tokens, row = [], 0, 0, 0
    skip, first = [], []
    for i, (number, spaced, trie) in enumerate(parts):
        size = len(trie.byte)
        part.append([nodes + spaced, nodes + size, number, spaced, row])
        skip.append(trie.skip + nodes)
        first.append(trie.first[:-1] + tokens)
        nodes, tokens = nodes + size, tokens + len(trie.tokens)
        row += len(rows[i]) if i < len(rows) else 0
    tries = [trie for _, _, trie in parts]
    chars, rest, below = [], [], []
    for _, spaced, trie in parts:
        counts, most = np.zeros(len(trie.byte), np.uint8), np.zeros(len(trie.byte), np.uint8)
        inside = np.zeros(len(trie.byte), np.int8)
        _characters(trie.byte, trie.depth, trie.first, _members(), spaced, counts, inside, most)
        chars.append(counts)
        rest.append(inside)
        below.append(most)
    ends = [np.repeat(of, np.diff(trie.first)) for of, trie in zip(chars, tries, strict=True)]
    held = [row for of in rows for row in of]
    if rows:
        held.append(np.bitwise_or.reduce([of[-1] for of in rows]))
    for numbers, of in zip(part, below, strict=True):
        numbers.append(of.max(initial=0))
    columns = [[trie.byte for trie in tries], [trie.depth for trie in tries], skip, first, chars, rest, below]
    table = np.zeros((nodes + 1, len(columns)), np.int32)
    for column, of in enumerate(columns):
        table[:nodes, column] = np.concatenate(of)
    table[nodes, FIRST] = tokens
    ids = np.concatenate([trie.tokens for trie in tries])
    return Tries(
        table,
        np.stack([ids, np.concatenate(ends)], axis=1).astype(np.int32),
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


@compiled
def _characters(
    byte: NDArray[np.uint8],
    depth: NDArray[np.int16],
    first: NDArray[np.int32],
    members: NDArray[np.uint8],
    spaced: bool,
    chars: NDArray[np.uint8],
    rest: NDArray[np.int8],
    most: NDArray[np.uint8],
) -> None:
    """Fill `chars`, the characters that begin on the way to each node (255: that many or more), `rest`,
    and `most`: of the tokens at or below it the most characters."""
    deepest = 0
    for node in range(len(byte)):
        deepest = max(deepest, np.int64(depth[node]))
    point, missing, length = (
        np.zeros(deepest + 1, np.int64),
        np.zeros(deepest + 1, np.int64),
        np.zeros(deepest + 1, np.int64),
    )
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
    below = np.full(
        deepest + 2, 255, np.uint8
    )  # of the nodes of each depth since their parent: behind the node in hand
    longest = np.zeros(deepest + 2, np.uint8)
    for node in range(len(byte) - 1, -1, -1):
        d = np.int64(depth[node])
        inside = below[d + 1]
        below[d + 1] = 255
        if first[node + 1] > first[node]:
            longest[d] = max(longest[d], chars[node])
        longest[d] = max(longest[d], longest[d + 1])
        most[node] = longest[d + 1] if first[node + 1] == first[node] else max(longest[d + 1], chars[node])
        longest[d + 1] = 0
        below[d] &= own[node] & inside
        if node + 1 == len(byte) or depth[node + 1] <= d:
            rest[node] = NOTHING
            continue
        rest[node] = NO_CLASS
        for c in range(8):
            if inside >> c & 1 and c < CLASS_COUNT:
                rest[node] = c | (PENDING if pending[node] else 0)
                break
