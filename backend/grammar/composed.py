"""Composed constraints: one grammar from a tree of literals, patterns, schemas, grammars, and where its captures are.

The tree's form and the rule for texts that can be read in several ways: `lang.spans`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from stemma.backend.grammar import ir
from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.json_schema import Lowered
from stemma.backend.grammar.limits import MAX_SIZE, Deadline
from stemma.backend.grammar.tags import _moved
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint
from stemma.lang.spans import LEAVES, Search, Tree, leaf_key, leaves, read_tree

INLINE = 24  # leaves up to this size, and without rules, are written out where they stand

LowerLeaf = Callable[[Constraint], Lowered]


def lower_composed(constraint: Constraint, deadline: Deadline, lower_leaf: LowerLeaf) -> Lowered:
    """The IR of the texts of the tree. ConstraintError names the place in the tree.

    `lower_leaf` is the front end for leaves, which come as constraints with this one's options.
    """
    assert isinstance(constraint.value, str)
    rules = _Rules(constraint, deadline, lower_leaf)
    node = rules.node(read_tree(constraint.value), "")
    size = node.size + sum(rule.size for rule in rules.rules)
    if size > MAX_SIZE:
        problem = f"it needs {size} characters when repeats are written out, the limit is {MAX_SIZE}"
        raise ConstraintError(f"composed: {problem}", param="constraint")
    return Lowered(node, tuple(rules.rules), tuple(dict.fromkeys(rules.warnings)), rules.trim)


def _leaf(constraint: Constraint, kind: str, value: Any) -> Constraint:
    """A leaf as a constraint; what the whole says about JSON holds for its JSON."""
    if kind == "json_schema":
        return replace(constraint, kind=kind, value=json.dumps(value, ensure_ascii=False))
    return Constraint(kind, value)  # type: ignore[arg-type]


def _bytes(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        problem = f"it holds a lone surrogate, which is no character: {text!r:.80}"
        raise ConstraintError(f"composed: {where}: {problem}", param="constraint") from None


@dataclass(slots=True)
class _Rules:
    """The rules of all leaves in one list; each distinct leaf is read once."""

    constraint: Constraint
    deadline: Deadline
    lower_leaf: LowerLeaf
    rules: list[ir.Node] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    trim: bool = False
    known: dict[str, ir.Node] = field(default_factory=dict)

    def node(self, tree: Tree, where: str) -> ir.Node:
        self.deadline.check()
        kind = next(kind for kind in (*LEAVES, "sequence", "choice", "repeat", "capture") if kind in tree)
        value, where = tree[kind], f"{where}.{kind}".lstrip(".")
        if kind == "literal":
            return ir.words([_bytes(value, where)])
        if kind == "sequence":
            return ir.seq([self.node(part, f"{where}[{i}]") for i, part in enumerate(value)])
        if kind == "choice":
            return ir.alt([self.node(part, f"{where}[{i}]") for i, part in enumerate(value)])
        if kind == "capture":
            return self.node(value, where)
        if kind == "repeat":
            return self._repeat(tree, where)
        key = leaf_key(tree)
        if key not in self.known:
            self.known[key] = self._leaf(kind, value, where)
        return self.known[key]

    def _repeat(self, tree: Tree, where: str) -> ir.Node:
        low, high = tree.get("min", 0), tree.get("max")
        item = self.node(tree["repeat"], where)
        if tree.get("separator") is None or high == 0:
            return ir.repeat(item, low, high)
        more = ir.seq([self.node(tree["separator"], f"{where}.separator"), item])
        some = ir.seq([item, ir.repeat(more, max(low - 1, 0), None if high is None else high - 1)])
        return some if low else ir.repeat(some, 0, 1)

    def _leaf(self, kind: str, value: Any, where: str) -> ir.Node:
        try:
            lowered = self.lower_leaf(_leaf(self.constraint, kind, value))
        except ConstraintError as error:
            if error.param == self.deadline.what:  # the time is up
                raise
            raise ConstraintError(f"composed: {where}: {error}", param="constraint") from None
        self.warnings.extend(f"composed: {where}: {warning}" for warning in lowered.warnings)
        self.trim = self.trim or lowered.trim
        node = lowered.node
        if (
            node.size <= INLINE
            and not lowered.rules
            and isinstance(node, ir.Chars | ir.Words | ir.Seq | ir.Alt | ir.Repeat)
        ):
            return node
        offset = len(self.rules)
        self.rules.extend(_moved(rule, offset) for rule in lowered.rules)
        self.rules.append(_moved(node, offset))
        return ir.Call(len(self.rules) - 1, nullable=node.nullable)


# -- captures


class CaptureFinder:
    """Finds the captures of one composed constraint in its texts, with an automaton for each leaf.

    Not thread-safe. `lower_leaf` takes a deadline too, which begins with each search.
    """

    def __init__(self, constraint: Constraint, lower_leaf: Callable[[Constraint, Deadline], Lowered]) -> None:
        assert isinstance(constraint.value, str)
        tree = read_tree(constraint.value)
        self._search = Search(tree)
        self._lower_leaf = lower_leaf
        self._leaves = [
            value.encode() if kind == "literal" else _leaf(constraint, kind, value) for kind, value in leaves(tree)
        ]
        self._automata: dict[int, Dfa] = {}

    @property
    def names(self) -> list[str]:
        return self._search.names

    def find(self, text: str, seconds: float) -> dict[str, list[list[int]]] | None:
        """Start and end (in characters) of each capture, in order; None if the text as a whole does not match.

        Raises ConstraintError when that takes longer than `seconds`, or too many steps.
        """
        data = text.encode()
        deadline = Deadline(seconds, "composed")
        spans = self._search.spans(len(data), lambda leaf, start: self._ends(leaf, data, start, deadline))
        if spans is None:
            return None
        if len(data) == len(text):
            return {name: [[a, b] for a, b in found] for name, found in spans.items()}
        at = lambda place: len(data[:place].decode())  # noqa: E731
        return {name: [[at(a), at(b)] for a, b in found] for name, found in spans.items()}

    def _ends(self, number: int, data: bytes, start: int, deadline: Deadline) -> list[int]:
        if time.monotonic() > deadline.until:
            raise ConstraintError(f"composed: finding the captures took longer than {deadline.seconds:g} s")
        leaf = self._leaves[number]
        if isinstance(leaf, bytes):
            return [start + len(leaf)] if data.startswith(leaf, start) else []
        dfa = self._automata.get(number)
        if dfa is None or dfa.crowded:
            lowered = self._lower_leaf(leaf, deadline)
            dfa = self._automata[number] = Dfa(lowered.node, deadline, rules=lowered.rules, trim=lowered.trim)
        return _match_ends(dfa, data, start)


def _match_ends(dfa: Dfa, data: bytes, start: int) -> list[int]:
    """Where the matches that begin at `start` end, the longest first."""
    found, state = [start] if dfa.accepting[0] else [], 0
    for place in range(start, len(data)):
        state = dfa.step(state, data[place])
        if state == DEAD:
            break
        if dfa.accepting[state]:
            found.append(place + 1)
    found.reverse()
    return found


@lru_cache(maxsize=64)
def finder_of(constraint: Constraint, lower_leaf: Callable[[Constraint, Deadline], Lowered]) -> CaptureFinder:
    """The finder of a constraint, kept for the next text."""
    return CaptureFinder(constraint, lower_leaf)
