"""Classes of plain tokens, whose masks are known beforehand.

Inside free text (a JSON string, `.*`) nearly every token is allowed, and walking the trie to find that out takes
milliseconds. So the plain tokens of a vocabulary are sorted into classes; where an automaton state leads through
characters of a whole class as often as a token is long, the class's row is taken as it is, and only the other tokens
are walked.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar import charset
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.charset import Ranges

LONGEST = 24  # characters; up to so many the tokens of a class have a row for each number

_CONTROL = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_PYTHON_SPACE = ((0x85, 0x85),)


def _letters() -> Ranges:
    found = charset.of_category("L")
    assert found is not None
    return found


# From narrow to wide: small letters; letters, digits and "_"; letters of all scripts; no space; anything that a JSON
# string need not escape.
CLASSES: tuple[Ranges, ...] = (
    ((0x61, 0x7A),),
    charset.ASCII_WORD,
    _letters(),
    charset.complement(charset.ranges([*_CONTROL, *charset.ECMA_SPACE, *_PYTHON_SPACE])),
    charset.complement(_CONTROL),
)
# The bytes that a character of the class may begin with.
FIRST_BYTES = tuple(
    frozenset(chr(a).encode()[0] for a in range(0x80) if any(low <= a <= high for low, high in of))
    | (frozenset(range(0xC2, 0xF5)) if of[-1][1] > 0x7F else frozenset())
    for of in CLASSES
)


@lru_cache(maxsize=4096)
def covers(of: Ranges) -> int:
    """Which classes lie in the set: bit i for class i."""
    found = 0
    for i, wanted in enumerate(CLASSES):
        at, whole = 0, True
        for low, high in wanted:
            while at < len(of) and of[at][1] < low:
                at += 1
            if at == len(of) or of[at][0] > low or of[at][1] < high:
                whole = False
                break
        found |= whole << i
    return found


def touches(first: list[tuple[int, int]]) -> int:
    """Which classes have a character that begins with one of these bytes."""
    found = 0
    for low, high in first:
        found |= _touched(low, high)
    return found


@cache
def _touched(low: int, high: int) -> int:
    return sum(1 << i for i, known in enumerate(FIRST_BYTES) if any(low <= b <= high for b in known))


class TokenClass(NamedTuple):
    """`ids`: tokens of class `number`, all behind one space if `spaced`. `rows[n]`: int32[row_words], those of up to n
    characters (without that space), and behind `rows[LONGEST]` all."""

    number: int
    spaced: bool
    ids: frozenset[int]
    rows: tuple[NDArray[np.int32], ...]


def token_classes(
    vocab: Vocabulary, shortest: int = 1, longest: int | None = None, characters: int = LONGEST
) -> tuple[TokenClass, ...]:
    """Each plain token (of `shortest` to `longest` bytes) is in the narrowest class that has all its characters, or all
    behind its first space; but tokens of more than `characters` are in none."""
    points = ["".join(f"{_point(a)}-{_point(b)}" for a, b in of) for of in CLASSES]
    patterns = [re.compile(f"( ?)([{inside}]+)") for inside in points[:-1]] + [re.compile(f"()([{points[-1]}]+)")]
    members: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    for i, text in enumerate(vocab.token_bytes[: vocab.size]):
        if not text or i in vocab.eos_ids or len(text) < shortest or (longest is not None and len(text) > longest):
            continue
        try:
            plain = text.decode()
        except UnicodeDecodeError:
            continue
        for number, pattern in enumerate(patterns):
            if match := pattern.fullmatch(plain):
                length = match.end() - match.start(2)
                if length <= characters:
                    members.setdefault((number, match.end(1) > 0), []).append((i, length))
                break
    return tuple(_class(*key, members[key], (vocab.size + 31) // 32) for key in sorted(members))


def _point(point: int) -> str:
    return f"\\U{point:08x}"


def _class(number: int, spaced: bool, members: list[tuple[int, int]], words: int) -> TokenClass:
    by_length: list[list[int]] = [[] for _ in range(LONGEST + 2)]
    for token, length in members:
        by_length[min(length, LONGEST + 1)].append(token)
    rows, allowed = [], np.zeros(words * 32, np.bool_)
    for tokens in by_length:
        allowed[tokens] = True
        row = np.packbits(allowed, bitorder="little").view("<i4").astype(np.int32)
        row.flags.writeable = False
        rows.append(row)
    return TokenClass(number, spaced, frozenset(token for token, _ in members), tuple(rows))
