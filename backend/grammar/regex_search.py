"""Patterns that are searched for, as JSON Schema's are: a text matches when some part of it does.

That is the language "anything, a match, anything" of whole texts, where an anchor takes the "anything" on its side
away; lookahead right behind a leading `^`, positive or negative, is a second condition on the same text. What asks for
its surroundings in other places is left to `regex_assert`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interegular.patterns import Pattern, _CharGroup, _Concatenation, _Repeated

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.regex import Lowering, checked, parse_tree
from stemma.backend.grammar.regex_assert import NeedsContext
from stemma.backend.grammar.regex_scan import Anchor, scan

ANYTHING = ir.repeat(ir.chars(charset.ALL), 0, None)


def parse_search(pattern: str, deadline: Deadline) -> ir.Node:
    """The texts in which the pattern is found, in JavaScript's dialect. Raises as `parse_regex` does."""
    scanned = scan(pattern, ecma=True)
    tree = parse_tree(pattern, scanned)
    deadline.check()
    lowering = _Search(pattern, scanned, deadline, ecma=True)
    try:
        node = lowering.search([tree], True, True)
    except NeedsContext:
        node = lowering.conditional(tree, search=True)
    return checked(pattern, node)


def parse_whole(pattern: str, deadline: Deadline) -> ir.Node:
    """The texts that the pattern matches as a whole, in the same dialect."""
    scanned = scan(pattern, ecma=True)
    lowering = Lowering(pattern, scanned, deadline, ecma=True)
    return checked(pattern, lowering.pattern(parse_tree(pattern, scanned), True, True))


def split_lookahead(pattern: str) -> tuple[str, list[tuple[bool, str]]]:
    """`^(?!a)(?=b)c` as `^c` and the conditions (not, `^(?:a)`), (yes, `^(?:b)`); other patterns as they are."""
    rest, conditions = pattern, []
    while rest.startswith(("^(?!", "^(?=")):
        end = _closing(rest, 1)
        if end < 0 or _has_bar(rest[end + 1 :]):
            return pattern, []
        conditions.append((rest[3] == "=", f"^(?:{rest[4:end]})"))
        rest = "^" + rest[end + 1 :]
    return rest, conditions


def _closing(pattern: str, start: int) -> int:
    """Where the group that opens at `start` closes, or -1."""
    depth = 0
    for at, char in _plain(pattern):
        if at >= start:
            depth += (char == "(") - (char == ")")
            if depth == 0:
                return at
    return -1


def _has_bar(pattern: str) -> bool:
    depth = 0
    for _, char in _plain(pattern):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            return True
    return False


def _plain(pattern: str) -> Sequence[tuple[int, str]]:
    """The characters outside of classes and escapes, with their positions."""
    found, at, inside = [], 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 2
            continue
        if inside:
            inside = char != "]"
        elif char == "[":
            inside = True
            at += pattern.startswith("^", at + 1)
        else:
            found.append((at, char))
        at += 1
    return found


class _Search(Lowering):
    def search(self, parts: Sequence[Any], left: bool, right: bool) -> ir.Node:
        """A row of parts; `left` (`right`): anything may stand before (behind) it."""
        self._deadline.check()
        parts = list(parts)
        while parts and isinstance(parts[0], _Concatenation):
            parts[:1] = parts[0].parts
        while parts and isinstance(parts[-1], _Concatenation):
            parts[-1:] = parts[-1].parts
        while left and parts and self._is_anchor(parts[0], True):
            del parts[0]
            if not parts or not self._is_anchor(parts[0], True):
                return self.search(parts, False, right)
        while right and parts and self._is_anchor(parts[-1], False):
            del parts[-1]
            if not parts or not self._is_anchor(parts[-1], False):
                return self.search(parts, left, False)
        if left and parts and self._has_anchor(parts[0], True):
            return ir.alt([self.search([*option, *parts[1:]], left, right) for option in self._options(parts[0])])
        if right and parts and self._has_anchor(parts[-1], False):
            return ir.alt([self.search([*parts[:-1], *option], left, right) for option in self._options(parts[-1])])
        nodes = [self.part(part, False, False) for part in parts]
        if not nodes and left and right:
            return ANYTHING
        return ir.seq([ANYTHING] * left + nodes + [ANYTHING] * right)

    def _options(self, part: Any) -> list[list[Any]]:
        if isinstance(part, Pattern):
            return [[option] for option in part.options]
        if isinstance(part, _Repeated) and part.max == 1:
            return [[part.base]] + ([[]] if part.min == 0 else [])
        raise NeedsContext

    def _is_anchor(self, part: Any, start: bool) -> bool:
        atom = self.atom(part) if isinstance(part, _CharGroup) else None
        if isinstance(atom, Anchor) and atom.lines:
            raise NeedsContext
        return isinstance(atom, Anchor) and atom.start == start

    def _has_anchor(self, part: Any, start: bool) -> bool:
        if isinstance(part, _CharGroup):
            return self._is_anchor(part, start)
        if isinstance(part, _Repeated):
            return self._has_anchor(part.base, start)
        parts = part.options if isinstance(part, Pattern) else part.parts
        return any(self._has_anchor(inner, start) for inner in parts)
