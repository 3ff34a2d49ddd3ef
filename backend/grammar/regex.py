"""The regex front end: a pattern becomes IR.

Python's syntax and meaning, matched against the whole text, with these choices: `\\d` is ASCII, `\\w` and `\\s` are
Unicode (ASCII under `(?a)`), lazy repeats mean the same as greedy ones, `\\p{L}`, `\\p{Greek}` are categories and
scripts. Anchors, lookaround, word boundaries and possessive repeats mean what they say, wherever they stand
(`regex_assert`). Refused, with the position: backreferences, atomic groups, possessive repeats of a group, and
conditions inside a lookbehind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# The tree's classes are private to interegular, hence imported by name here and nowhere else.
from interegular.patterns import (
    InvalidSyntax,
    Pattern,
    Unsupported,
    _CharGroup,
    _Concatenation,
    _Repeated,
    parse_pattern,
)

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.limits import MAX_SIZE, Deadline
from stemma.backend.grammar.regex_assert import Assertions, NeedsContext
from stemma.backend.grammar.regex_scan import FIRST_PLACEHOLDER, Anchor, Atom, Boundary, Look, Possessive, Scanned, scan
from stemma.lang.errors import ConstraintError


def parse_regex(pattern: str, deadline: Deadline) -> ir.Node:
    """The IR of a regex. Raises ConstraintError (see `scan`), also when it is too large or matches nothing."""
    scanned = scan(pattern)
    tree = parse_tree(pattern, scanned)
    deadline.check()
    lowering = Lowering(pattern, scanned, deadline)
    try:
        node = lowering.pattern(tree, True, True)
    except NeedsContext:
        node = lowering.conditional(tree, search=False)
    return checked(pattern, node)


def parse_tree(pattern: str, scanned: Scanned) -> Pattern:
    try:
        return parse_pattern(scanned.text)
    except (InvalidSyntax, Unsupported, RecursionError) as error:  # the scanner has checked: only depth is left
        raise ConstraintError(f"regex: cannot parse {pattern[:80]!r}: {error!r}", param="regex") from error


def checked(pattern: str, node: ir.Node) -> ir.Node:
    """The node, unless it is too large or matches nothing."""
    if node.size > MAX_SIZE:
        raise ConstraintError(
            f"regex: {pattern[:80]!r} needs {node.size} characters when its repeats are written out, the limit is "
            f"{MAX_SIZE}; lower the repeat counts or use an unbounded one ('*', '+')",
            param="regex",
        )
    if node == ir.NOTHING:
        raise ConstraintError(f"regex: {pattern[:80]!r} matches nothing", param="regex")
    return node


class Lowering:
    """From the parser's tree to IR. `first` (`last`): nothing but empty text can stand before (behind) this part."""

    def __init__(self, pattern: str, scanned: Scanned, deadline: Deadline, *, ecma: bool = False) -> None:
        self.source = pattern
        self._atoms = scanned.atoms
        self._deadline = deadline
        self._ecma = ecma

    def conditional(self, tree: Pattern, *, search: bool) -> ir.Node:
        """The whole pattern, where some part of it asks what stands around it."""
        plain = lambda part: self.part(part, False, False)  # noqa: E731
        machine = Assertions(self.source, self._atoms, plain, self._deadline, search=search, ecma=self._ecma)
        return machine.node(tree)

    def pattern(self, tree: Pattern, first: bool, last: bool) -> ir.Node:
        return ir.alt([self._row(option, first, last) for option in tree.options])

    def _row(self, tree: Any, first: bool, last: bool) -> ir.Node:
        self._deadline.check()
        parts: Sequence[Any] = tree.parts if isinstance(tree, _Concatenation) else (tree,)
        empty = [self.only_anchors(part) for part in parts]
        solid = [i for i, is_empty in enumerate(empty) if not is_empty]
        begin, end = (solid[0], solid[-1]) if solid else (len(parts), -1)
        nodes = [self.part(p, first and i <= begin, last and i >= end) for i, p in enumerate(parts)]
        if any(isinstance(p, _CharGroup) and isinstance(self.atom(p), Possessive) for p in parts):
            self._check_possessive(parts, nodes, last)
        return ir.seq(nodes)

    def _check_possessive(self, parts: Sequence[Any], nodes: list[ir.Node], last: bool) -> None:
        """Possessive repeats give nothing back; that changes nothing if what follows begins with other characters."""
        following, nullable = (), True  # what the parts to the right begin with, and whether they may be empty
        for part, node in zip(reversed(parts), reversed(nodes), strict=True):
            self._deadline.check()
            atom = self.atom(part) if isinstance(part, _CharGroup) else None
            if isinstance(atom, Possessive) and (
                (nullable and not last) or charset.overlap(atom.ranges, charset.ranges(following))
            ):
                raise NeedsContext
            first = ir.first_characters(node)
            following = charset.ranges([*first, *following]) if node.nullable else first
            nullable = nullable and node.nullable

    def part(self, tree: Any, first: bool, last: bool) -> ir.Node:
        if isinstance(tree, Pattern):
            return self.pattern(tree, first, last)
        if isinstance(tree, _Repeated):
            once = tree.max == 1
            inner = self.part(tree.base, first and once, last and once)
            return ir.repeat(inner, tree.min, tree.max)
        if isinstance(tree, _CharGroup):
            return self._leaf(tree, first, last)
        raise AssertionError(f"unexpected {type(tree).__name__} in the tree of {self.source[:80]!r}")

    def _leaf(self, tree: _CharGroup, first: bool, last: bool) -> ir.Node:
        atom = self.atom(tree)
        if isinstance(atom, Possessive):
            return ir.repeat(ir.chars(atom.ranges), atom.low, atom.high)
        if isinstance(atom, Look | Boundary):
            raise NeedsContext
        if not isinstance(atom, Anchor):
            return ir.words([atom]) if isinstance(atom, bytes) else ir.chars(atom)
        if not (first if atom.start else last):
            raise NeedsContext
        return ir.EMPTY

    def only_anchors(self, tree: Any) -> bool:
        if isinstance(tree, _CharGroup):
            return isinstance(self.atom(tree), Anchor)
        if isinstance(tree, _Repeated):
            return tree.max == 0 or self.only_anchors(tree.base)
        parts = tree.options if isinstance(tree, Pattern) else tree.parts
        return all(self.only_anchors(part) for part in parts)

    def atom(self, tree: _CharGroup) -> Atom:
        (mark,) = tree.chars
        return self._atoms[ord(mark) - FIRST_PLACEHOLDER]
