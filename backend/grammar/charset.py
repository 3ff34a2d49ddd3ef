"""Sets of characters as code-point ranges, and their UTF-8 form as byte trees.

A set is a sorted tuple of inclusive, disjoint, non-adjacent (low, high) pairs. Surrogates are in no set: they cannot be
written in UTF-8.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

Ranges = tuple[tuple[int, int], ...]
# Edges (low byte, high byte, what follows); None: the character ends here. Shared subtrees are the same object.
ByteTree = tuple[tuple[int, int, "ByteTree | None"], ...]

LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_CASED_END = 0x1F000  # no cased character lies above

ALL: Ranges = ((0, 0xD7FF), (0xE000, LAST))
DIGITS: Ranges = ((0x30, 0x39),)
ASCII_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
ASCII_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
ECMA_SPACE: Ranges = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
    *((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)


def ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted, merged, and without surrogates."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(_without_surrogates(pairs)):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _without_surrogates(pairs: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    first, last = _SURROGATES
    for low, high in pairs:
        if high < first or low > last:
            yield low, high
            continue
        if low < first:
            yield low, first - 1
        if high > last:
            yield last + 1, high


def complement(of: Ranges) -> Ranges:
    gaps, start = [], 0
    for low, high in of:
        if low > start:
            gaps.append((start, low - 1))
        start = high + 1
    if start <= LAST:
        gaps.append((start, LAST))
    return ranges(gaps)


def overlap(a: Ranges, b: Ranges) -> bool:
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i][1] < b[j][0]:
            i += 1
        elif b[j][1] < a[i][0]:
            j += 1
        else:
            return True
    return False


@lru_cache(maxsize=64)
def of_regex(simple_class: str) -> Ranges:
    r"""The characters that Python's `re` gives to a class escape such as `\w`."""
    spans = (m.span() for m in re.finditer(simple_class + "+", _every_character()))
    return ranges((a, b - 1) for a, b in spans)


def _every_character() -> str:
    return np.arange(LAST + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


@lru_cache(maxsize=64)
def of_category(name: str) -> Ranges | None:
    """A Unicode general category ("Lu") or a group of them ("L"); None if there is no such category."""
    names, of_point = _categories()
    wanted = [i for i, category in enumerate(names) if category.startswith(name)]
    points = np.flatnonzero(np.isin(of_point, wanted))
    if not len(points) or name.startswith("Cs"):
        return None
    breaks = np.flatnonzero(np.diff(points) > 1)
    starts, ends = np.append(0, breaks + 1), np.append(breaks, len(points) - 1)
    return ranges(zip(points[starts].tolist(), points[ends].tolist(), strict=True))


@lru_cache(maxsize=1)
def _categories() -> tuple[list[str], np.ndarray]:
    """The general categories, and for each code point the number of its own, uint8[LAST + 1]."""
    found = list(map(unicodedata.category, _every_character()))
    names = sorted(set(found))
    number = {name: i for i, name in enumerate(names)}
    return names, np.fromiter((number[name] for name in found), np.uint8, len(found))


@lru_cache(maxsize=1)
def _case_groups() -> dict[int, tuple[int, ...]]:
    """Code point -> all that match it when case is ignored, for the characters that have such partners."""
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for point in range(_CASED_END):
        char = chr(point)
        lower, upper = char.lower(), char.upper()
        for other in (lower, upper):
            if len(other) == 1 and other != char:
                parent[root(point)] = root(ord(other))
    parent[root(0x130)] = root(ord("i"))  # its lower case is two characters long; `re` takes the first
    parent[root(0x3B0)], parent[root(0x390)] = root(0x1FE3), root(0x1FD3)  # equal but for canonical order, as in `re`
    parent[root(0xFB05)] = root(0xFB06)
    groups: dict[int, list[int]] = {}
    for point in list(parent):
        groups.setdefault(root(point), []).append(point)
    return {point: tuple(sorted(group)) for group in groups.values() for point in group if len(group) > 1}


@lru_cache(maxsize=256)
def ignoring_case(of: Ranges) -> Ranges:
    """The set with every character that differs from a member only in case."""
    groups = _case_groups()
    starts = [low for low, _ in of]
    points = [p for p in groups if (at := bisect.bisect_right(starts, p)) and p <= of[at - 1][1]]
    return ranges([*of, *((p, p) for point in points for p in groups[point])])


@lru_cache(maxsize=512)
def byte_tree(of: Ranges) -> ByteTree:
    """The UTF-8 encodings of the set: deterministic, with equal subtrees shared."""
    edges: list[tuple[int, int, ByteTree | None]] = [(a, b, None) for a, b in _clip(of, 0, 0x7F)]
    for tail, first, last, lead in ((1, 0x80, 0x7FF, 0xC0), (2, 0x800, 0xFFFF, 0xE0), (3, 0x10000, LAST, 0xF0)):
        if part := _clip(of, first, last):
            edges.extend(_split(part, tail, lead))
    return tuple(edges)


def _clip(of: Ranges, first: int, last: int) -> Ranges:
    return tuple((max(a, first), min(b, last)) for a, b in of if a <= last and b >= first)


@lru_cache(maxsize=4096)
def _split(of: Ranges, tail: int, lead: int) -> ByteTree:
    """Values of `6 * tail` bits and a few more: one edge per run of lead bytes with the same continuations."""
    shift = 6 * tail
    if tail == 0:
        return tuple((lead | a, lead | b, None) for a, b in of)
    full = (1 << shift) - 1
    below: dict[int, list[tuple[int, int]]] = {}
    for low, high in of:
        for byte in range(low >> shift, (high >> shift) + 1):
            a = low & full if byte == low >> shift else 0
            b = high & full if byte == high >> shift else full
            below.setdefault(byte, []).append((a, b))
    edges: list[tuple[int, int, ByteTree | None]] = []
    for byte, rest in below.items():
        child = _split(tuple(rest), tail - 1, 0x80)
        if edges and edges[-1][1] == (lead | byte) - 1 and edges[-1][2] is child:
            edges[-1] = (edges[-1][0], lead | byte, child)
        else:
            edges.append((lead | byte, lead | byte, child))
    return tuple(edges)
