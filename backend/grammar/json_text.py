r"""How JSON spells characters: byte trees and literals for what stands between the quotes of a string.

Every spelling here decodes to the character it stands for, so a language of texts becomes a language of JSON strings
character by character, whatever escapes the model chooses. Free text may use any escape of JSON. Where a pattern asks
for particular characters, printable ASCII is written as itself, so that literal parts stay forced. Keys have even fewer
spellings (`strict`), so that no two of them are the same name.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.charset import ByteTree, Ranges, byte_tree

_PRINTABLE = (0x20, 0x7E)
_MUST_ESCAPE: Ranges = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_SHORT = {0x22: '"', 0x5C: "\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
_Spans = tuple[tuple[int, int, ByteTree | None], ...]  # (low, high, what follows)

QUOTE: ir.Node = ir.chars(((0x22, 0x22),))
STRICT, FREE = "strict", "free"


def intersect(a: Ranges, b: Ranges) -> Ranges:
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            found.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


@lru_cache(maxsize=2048)
def quoted_tree(of: Ranges, form: str = FREE) -> ByteTree:
    """The spellings of one character out of the set inside a JSON string: deterministic."""
    raw = intersect(of, charset.complement(_MUST_ESCAPE))
    edges = list(byte_tree(raw)) if raw else []
    escapes: list[tuple[int, int, ByteTree | None]] = [
        (ord(letter), ord(letter), None) for point, letter in _SHORT.items() if _holds(of, point)
    ]
    free = form == FREE and any(low <= _PRINTABLE[0] and high >= _PRINTABLE[1] for low, high in of)
    if free:
        escapes.append((0x2F, 0x2F, None))
        coded = of
    else:
        coded = intersect(of, charset.complement((_PRINTABLE,)))
    if form == STRICT:
        coded = intersect(coded, charset.complement(((8, 10), (12, 13))))
    if spans := _code_units(coded):
        escapes.append((0x75, 0x75, _hexadecimal(spans, 4, form == FREE)))
    if escapes:
        edges.append((0x5C, 0x5C, tuple(sorted(escapes, key=lambda edge: edge[0]))))
    return tuple(edges)


def _holds(of: Ranges, point: int) -> bool:
    return any(low <= point <= high for low, high in of)


def _code_units(of: Ranges) -> _Spans:
    """UTF-16: a character above U+FFFF is two escapes, the second of which follows the first."""
    spans: list[tuple[int, int, ByteTree | None]] = [(a, min(b, 0xFFFF), None) for a, b in of if a <= 0xFFFF]
    low_units: dict[int, list[tuple[int, int]]] = {}
    full: list[tuple[int, int]] = []
    for low, high in of:
        low, high = max(low, 0x10000) - 0x10000, high - 0x10000
        if high < low:
            continue
        first, last = low >> 10, high >> 10
        for unit in {first, last}:
            a = low & 0x3FF if unit == first else 0
            b = high & 0x3FF if unit == last else 0x3FF
            low_units.setdefault(unit, []).append((a, b))
        if last - first > 1:
            full.append((first + 1, last - 1))
    for unit, parts in low_units.items():
        spans.append((0xD800 + unit, 0xD800 + unit, _second_unit(tuple(sorted(parts)))))
    spans.extend((0xD800 + a, 0xD800 + b, _second_unit(((0, 0x3FF),))) for a, b in full)
    return tuple(sorted(spans, key=lambda span: span[0]))


def _second_unit(parts: Ranges) -> ByteTree:
    spans = tuple((0xDC00 + a, 0xDC00 + b, None) for a, b in parts)
    return ((0x5C, 0x5C, ((0x75, 0x75, _hexadecimal(spans, 4, True)),)),)


@lru_cache(maxsize=4096)
def _hexadecimal(spans: _Spans, digits: int, upper: bool) -> ByteTree:
    """The numbers of the spans in so many hexadecimal digits, each with what follows it."""
    shift = 4 * (digits - 1)
    below: dict[int, list[tuple[int, int, ByteTree | None]]] = {}
    for low, high, after in spans:
        for digit in range(low >> shift, (high >> shift) + 1):
            base = digit << shift
            a, b = max(low, base) - base, min(high, base + (1 << shift) - 1) - base
            below.setdefault(digit, []).append((a, b, after))
    edges: list[tuple[int, int, ByteTree | None]] = []
    for digit, parts in sorted(below.items()):
        child = parts[0][2] if digits == 1 else _hexadecimal(tuple(parts), digits - 1, upper)
        for letter in {f"{digit:x}", f"{digit:X}" if upper else f"{digit:x}"}:
            byte = ord(letter)
            edges.append((byte, byte, child))
    edges.sort(key=lambda edge: edge[0])
    merged: list[tuple[int, int, ByteTree | None]] = []
    for low, high, child in edges:
        if merged and merged[-1][1] == low - 1 and merged[-1][2] == child:
            merged[-1] = (merged[-1][0], high, child)
        else:
            merged.append((low, high, child))
    return tuple(merged)


def spellings(text: str) -> list[bytes]:
    """A fixed string inside its quotes: with its characters as they are, and with ASCII alone."""
    return [json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (False, True)]


def quoted(node: ir.Node, form: str = FREE) -> ir.Node:
    """The language of JSON strings, without their quotes, for a language of texts."""
    if isinstance(node, ir.Chars):
        return ir.Chars(node.ranges, form)
    if isinstance(node, ir.Words):
        return ir.words(spelling for word in node.words for spelling in spellings(word.decode()))
    if isinstance(node, ir.Seq):
        return ir.seq(quoted(part, form) for part in node.parts)
    if isinstance(node, ir.Alt):
        return ir.alt(quoted(option, form) for option in node.options)
    if isinstance(node, ir.Repeat):
        return ir.Repeat(quoted(node.node, form), node.low, node.high, node.size, node.nullable)
    if isinstance(node, ir.Graph):
        edges = [(source, quoted(label, form), target) for source, label, target in node.edges]
        return ir.graph(node.states, edges, node.finals)
    raise AssertionError(f"{type(node).__name__} is no text")


def strict_name(name: str) -> ir.Node:
    """Every spelling of a name that a strict key may have."""
    if name.isascii() and name.isprintable():
        return ir.words(spellings(name))
    return ir.seq(ir.Chars(((ord(c), ord(c)),), STRICT) for c in name)


def scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
