"""A constraint that begins behind a marker: any text up to the marker's first occurrence, then the constraint."""

from __future__ import annotations

from stemma.backend.grammar import charset, ir


def behind(marker: str, node: ir.Node) -> ir.Node:
    """Free text that ends with the first occurrence of `marker`, and then `node`.

    The free text has a state for each proper beginning of the marker: the longest that it ends with (Knuth, Morris and
    Pratt).
    """
    shorter = _shorter(marker)
    edges: list[tuple[int, ir.Node, int]] = []
    for state in range(len(marker)):
        moves: dict[str, int] = {}
        at = state
        while True:
            moves.setdefault(marker[at], at + 1)
            if at == 0:
                break
            at = shorter[at]
        others = charset.complement(charset.ranges((ord(char), ord(char)) for char in moves))
        edges.append((state, ir.chars(others), 0))
        edges.extend((state, ir.chars(((ord(char), ord(char)),)), to) for char, to in moves.items())
    return ir.seq([ir.graph(len(marker) + 1, edges, [len(marker)]), node])


def _shorter(marker: str) -> list[int]:
    """For each beginning of the marker, by its length, the length of the longest other beginning that it ends with."""
    found = [0, 0]
    for char in marker[1:]:
        at = found[-1]
        while at and marker[at] != char:
            at = found[at]
        found.append(at + 1 if marker[at] == char else 0)
    return found
