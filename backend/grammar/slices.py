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

LONGEST = 24  # characters; longer tokens are in no class

_CONTROL = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_PYTHON_SPACE = ((0x85, 0x85),)

# From narrow to wide: letters, digits and "_"; no space; anything that a JSON string need not escape.
CLASSES: tuple[Ranges, ...] = (
    charset.ASCII_WORD,
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
    """`rows[n]`: int32[row_words], the tokens of up to n characters; `ids`: all of them."""

    ids: frozenset[int]
    rows: tuple[NDArray[np.int32], ...]


def token_classes(vocab: Vocabulary) -> tuple[TokenClass, ...]:
    """Each plain token is in the narrowest class that has all its characters."""
    patterns = [re.compile(f"[{''.join(f'{_point(a)}-{_point(b)}' for a, b in of)}]+") for of in CLASSES]
    members: list[list[tuple[int, int]]] = [[] for _ in CLASSES]
    for i, text in enumerate(vocab.token_bytes[: vocab.size]):
        if not text or i in vocab.eos_ids:
            continue
        try:
            plain = text.decode()
        except UnicodeDecodeError:
            continue
        if len(plain) <= LONGEST:
            for number, pattern in enumerate(patterns):
                if pattern.fullmatch(plain):
                    members[number].append((i, len(plain)))
                    break
    return tuple(_class(found, (vocab.size + 31) // 32) for found in members)


def _point(point: int) -> str:
    return f"\\U{point:08x}"


def _class(members: list[tuple[int, int]], words: int) -> TokenClass:
    allowed = np.zeros(words * 32, np.bool_)
    rows = []
    by_length: dict[int, list[int]] = {}
    for token, length in members:
        by_length.setdefault(length, []).append(token)
    for length in range(LONGEST + 1):
        allowed[by_length.get(length, [])] = True
        row = np.packbits(allowed, bitorder="little").view("<i4").astype(np.int32)
        row.flags.writeable = False
        rows.append(row)
    return TokenClass(frozenset(token for token, _ in members), tuple(rows))
