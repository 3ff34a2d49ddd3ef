"""A nondeterministic automaton as a few flat arrays: what a compiling process sends to its engine.

`dump` costs time in proportion to the automaton. `FlatNfa` reads the arrays where they lie and builds the lists of a
place when it is first asked for them, so that taking over 100,000 places costs as little as taking over ten.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from stemma.backend.grammar.charset import ByteTree, Ranges
from stemma.backend.grammar.nfa import Bound, Nfa, Run


class FlatBound(msgspec.Struct, array_like=True):
    """A `Bound` with its places; `to_end[i]` is that of `places[i]`."""

    high: int
    longest: int
    any_text: bool
    places: memoryview
    to_end: memoryview


class Flat(msgspec.Struct, array_like=True):
    """Arrays of int32 in the machine's byte order. `*_start[i] : *_start[i + 1]` are the entries of place (or tree) i.

    A tree's edges are (low byte, high byte, number of the subtree or -1). All subtrees are numbered.
    """

    edge_start: memoryview
    edge_tree: memoryview
    edge_target: memoryview
    empty_start: memoryview
    empty_target: memoryview
    tree_start: memoryview
    tree_low: memoryview
    tree_high: memoryview
    tree_rest: memoryview
    calls: memoryview  # (place, start of the rule, place to come back to)
    blocks: memoryview  # (blocking place, blocked place)
    ends: memoryview
    covers: memoryview  # (tree, classes)
    runs: memoryview  # (first, stop, stride, optional)
    rule_spans: memoryview  # (first place, last place) of each rule
    range_trees: memoryview  # trees that stand for characters
    range_start: memoryview  # of these, in the order of `range_trees`
    range_low: memoryview
    range_high: memoryview
    bounds: list[FlatBound]

    @property
    def nbytes(self) -> int:
        parts = [part for part in msgspec.structs.astuple(self) if isinstance(part, memoryview)]
        return sum(part.nbytes for part in parts) + sum(b.places.nbytes + b.to_end.nbytes for b in self.bounds)


def dump(nfa: Nfa) -> Flat:
    """The automaton as arrays. Gives all its subtrees numbers."""
    for tree in nfa.trees:  # grows while it is walked
        for _, _, rest in tree:
            if rest is not None:
                nfa.tree(rest)
    edge_start, edge_tree, edge_target = array("i", [0]), array("i"), array("i")
    for edges in nfa.edges:
        for tree, target in edges:
            edge_tree.append(tree)
            edge_target.append(target)
        edge_start.append(len(edge_tree))
    empty_start, empty_target = array("i", [0]), array("i")
    for targets in nfa.empty:
        empty_target.extend(targets)
        empty_start.append(len(empty_target))
    ranges = nfa.ranges_of
    tree_start, low, high, rests = array("i", [0]), array("i"), array("i"), array("i")
    for tree in nfa.trees:
        for a, b, rest in tree:
            low.append(a)
            high.append(b)
            rests.append(-1 if rest is None else nfa.tree(rest))
        tree_start.append(len(low))
    return Flat(
        memoryview(edge_start),
        memoryview(edge_tree),
        memoryview(edge_target),
        memoryview(empty_start),
        memoryview(empty_target),
        memoryview(tree_start),
        memoryview(low),
        memoryview(high),
        memoryview(rests),
        _ints(x for place, calls in nfa.calls.items() for start, back in calls for x in (place, start, back)),
        _ints(x for pair in nfa.blocks.items() for x in pair),
        _ints(nfa.ends),
        _ints(x for pair in nfa.covers.items() for x in pair),
        _ints(int(x) for run in nfa.runs for x in run),
        _ints(x for span in nfa.rule_spans for x in span),
        _ints(ranges),
        _ints(itertools.accumulate((len(of) for of in ranges.values()), initial=0)),
        _ints(low for of in ranges.values() for low, _ in of),
        _ints(high for of in ranges.values() for _, high in of),
        _flat_bounds(nfa.bounds),
    )


def _ints(values: Iterable[int]) -> memoryview:
    return memoryview(array("i", values))


def _flat_bounds(bounds: dict[int, Bound]) -> list[FlatBound]:
    """Places share the bound of their rule, as one object."""
    places: dict[int, list[int]] = {}
    of: dict[int, Bound] = {}
    for place, bound in bounds.items():
        places.setdefault(id(bound), []).append(place)
        of[id(bound)] = bound
    return [
        FlatBound(
            bound.high,
            bound.longest,
            bound.any_text,
            _ints(places[key]),
            _ints(bound.to_end[place] for place in places[key]),
        )
        for key, bound in of.items()
    ]


class _Rows(dict[int, Any]):
    """A list of lists, each made when it is first looked at: a lookup that finds nothing makes it."""

    def __init__(self, start: Sequence[int], columns: tuple[Sequence[int], ...]) -> None:
        self._start = start
        self._columns = columns

    def __missing__(self, at: int) -> list[Any]:
        if at >= len(self):
            raise IndexError(at)
        a, b = self._start[at], self._start[at + 1]
        parts = [column[a:b].tolist() for column in self._columns]  # type: ignore[attr-defined]
        row = self[at] = parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
        return row

    def __len__(self) -> int:
        return len(self._start) - 1

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))


class _Ranges(dict[int, Ranges]):
    """The characters of trees, each worked out when it is first asked for."""

    def __init__(self, trees: memoryview, start: memoryview, low: memoryview, high: memoryview) -> None:
        self._at = {tree: i for i, tree in enumerate(trees.tolist())}
        self._start, self._low, self._high = start, low, high

    def __contains__(self, tree: object) -> bool:
        return tree in self._at

    def __missing__(self, tree: int) -> Ranges:
        at = self._at[tree]
        a, b = self._start[at], self._start[at + 1]
        found = self[tree] = tuple(zip(self._low[a:b].tolist(), self._high[a:b].tolist(), strict=True))
        return found


class FlatNfa(Nfa):
    """The automaton of these arrays, as it was before `dump`; to be read, not to be built on."""

    def __init__(self, flat: Flat) -> None:
        def ints(view: memoryview) -> memoryview:
            return view.cast("B").cast("i")

        def rows(view: memoryview, width: int) -> list[list[int]]:
            values = ints(view).tolist()
            return [values[i : i + width] for i in range(0, len(values), width)]

        def pairs(view: memoryview) -> dict[int, int]:
            values = ints(view).tolist()
            return dict(zip(values[::2], values[1::2], strict=True))

        self.edges = _Rows(ints(flat.edge_start), (ints(flat.edge_tree), ints(flat.edge_target)))  # type: ignore[assignment]
        self.empty = _Rows(ints(flat.empty_start), (ints(flat.empty_target),))  # type: ignore[assignment]
        self.calls = {}
        for place, start, back in rows(flat.calls, 3):
            self.calls.setdefault(place, []).append((start, back))
        self.blocks = pairs(flat.blocks)
        self.ends = frozenset(ints(flat.ends).tolist())
        self.covers = pairs(flat.covers)
        self.runs = [Run(first, stop, stride, bool(optional)) for first, stop, stride, optional in rows(flat.runs, 4)]
        self.rule_spans = [(first, last) for first, last in rows(flat.rule_spans, 2)]
        self.ranges_of = _Ranges(*map(ints, (flat.range_trees, flat.range_start, flat.range_low, flat.range_high)))
        self.together = {}
        self.bounds = {}
        for bound in flat.bounds:
            places = ints(bound.places).tolist()
            to_end = dict(zip(places, ints(bound.to_end).tolist(), strict=True))
            self.bounds.update(dict.fromkeys(places, Bound(bound.high, to_end, bound.longest, bound.any_text)))
        self.trees = _trees(
            ints(flat.tree_start).tolist(),
            list(zip(ints(flat.tree_low), ints(flat.tree_high), ints(flat.tree_rest), strict=True)),
        )
        self._tree_ids = {id(tree): i for i, tree in enumerate(self.trees)}


def _trees(start: list[int], edges: list[tuple[int, int, int]]) -> list[ByteTree]:
    """Each tree a tuple of its own, however equal; trees that share a subtree share the object."""
    made: list[ByteTree | None] = [None] * (len(start) - 1)

    def make(number: int) -> ByteTree:
        known = made[number]
        if known is None:
            own = [
                (low, high, None if rest < 0 else make(rest))
                for low, high, rest in edges[start[number] : start[number + 1]]
            ]
            known = made[number] = tuple(own)
        return known

    return [make(number) for number in range(len(made))]
