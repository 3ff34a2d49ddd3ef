"""The tree of a composed constraint, and where the parts of a text that it matched are.

    {"literal": text}   {"regex": pattern}   {"ebnf": grammar}   {"json_schema": schema}
    {"sequence": [tree, …]}   {"choice": [tree, …]}   {"capture": tree, "name": text}
    {"repeat": tree, "min": 0, "max": null, "separator": tree}      (the last three may be left out)

A text can often be read in several ways. The rule is that of regular expressions: from left to right, a choice takes
its first option, a repeat goes on as long as it can, a leaf takes as much as it can, each as far as the rest still
matches. The search is a backtracking one that never tries the same place of the tree at the same place of the text
twice (as in RE2's bit-state matcher), so its time is bounded by their product.

What a leaf matches is the caller's to say: the engine asks its automata, a fake may ask `re`. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from stemma.lang.errors import ConstraintError

LEAVES = ("literal", "regex", "ebnf", "json_schema")
MAX_NESTING = 100  # of parts in each other
MAX_PARTS = 10_000
MAX_TEXT = 4_000_000  # characters of the tree's text
MAX_STEPS = 2_000_000  # of one search

Tree = dict[str, Any]
Ends = Callable[[int, int], Iterable[int]]  # leaf number, start -> the ends of its matches there, longest first
Spans = dict[str, list[tuple[int, int]]]


def read_tree(text: str) -> Tree:
    """The tree, checked. Raises `ConstraintError` naming the place (`sequence[1].repeat`) and what is wrong there."""
    if len(text) > MAX_TEXT:
        _refuse("", f"it has {len(text)} characters, the limit is {MAX_TEXT}")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse("", f"it is not JSON: {error}")
    if _check(tree, "", 0) > MAX_PARTS:
        _refuse("", f"it has more than {MAX_PARTS} parts")
    return tree


def _refuse(where: str, problem: str) -> NoReturn:
    raise ConstraintError(f"composed: {where}{': ' if where else ''}{problem}", param="constraint")


_FIELDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*LEAVES, "sequence", "choice"), ()),
    "repeat": ("min", "max", "separator"),
    "capture": ("name",),
}


def _check(tree: Any, where: str, depth: int) -> int:
    """How many parts there are."""
    if depth > MAX_NESTING:
        _refuse(where, f"its parts are nested more than {MAX_NESTING} deep")
    kinds = [kind for kind in _FIELDS if isinstance(tree, dict) and kind in tree]
    if len(kinds) != 1:
        _refuse(where, f"must be an object with one of {', '.join(_FIELDS)}, got {json.dumps(tree):.60}")
    kind = kinds[0]
    for name in tree:
        if name != kind and name not in _FIELDS[kind]:
            _refuse(where, f"{name!r} is not a field of a {kind}")
    value, where = tree[kind], f"{where}.{kind}".lstrip(".")
    if kind in ("sequence", "choice"):
        if not isinstance(value, list) or (kind == "choice" and not value):
            _refuse(where, f"must be a list{' of at least one part' if kind == 'choice' else ''}")
        return 1 + sum(_check(part, f"{where}[{i}]", depth + 1) for i, part in enumerate(value))
    if kind == "capture":
        if not isinstance(tree.get("name"), str) or not tree["name"]:
            _refuse(where, f"a capture needs a name, got {tree.get('name')!r}")
        return 1 + _check(value, where, depth + 1)
    if kind == "repeat":
        low, high = tree.get("min", 0), tree.get("max")
        if not _is_count(low) or not (high is None or _is_count(high)) or (high is not None and high < low):
            _refuse(where, f"needs 0 <= min <= max, got {low!r} and {high!r}")
        count = 1 + _check(value, where, depth + 1)
        separator = tree.get("separator")
        return count if separator is None else count + _check(separator, f"{where}.separator", depth + 1)
    if kind == "json_schema":
        if not isinstance(value, (dict, bool)):
            _refuse(where, f"must be a schema (an object or a boolean), got {value!r:.60}")
    elif not isinstance(value, str):
        _refuse(where, f"must be a string, got {value!r:.60}")
    return 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def children(tree: Tree) -> list[Tree]:
    """The parts of a part."""
    for kind in ("sequence", "choice"):
        if kind in tree:
            return tree[kind]
    if "repeat" in tree:
        return [tree["repeat"], *([tree["separator"]] if tree.get("separator") is not None else [])]
    return [tree["capture"]] if "capture" in tree else []


def leaves(tree: Tree) -> list[tuple[str, Any]]:
    """The leaves as (kind, value), in order of writing, each distinct one once."""
    found: dict[str, tuple[str, Any]] = {}
    todo = [tree]
    while todo:
        at = todo.pop()
        todo += reversed(children(at))
        kind = next((kind for kind in LEAVES if kind in at), None)
        if kind is not None:
            found.setdefault(leaf_key(at), (kind, at[kind]))
    return list(found.values())


def leaf_key(tree: Tree) -> str:
    """The same for leaves that are alike."""
    return json.dumps(tree)


def has_captures(tree: Tree) -> bool:
    return "capture" in tree or any(has_captures(part) for part in children(tree))


# -- the search


@dataclass(slots=True)
class _Step:
    """One instruction. `to`: where it goes on; for a split, in order of preference."""

    do: str  # leaf, split, open, close, enter, loop, count, end
    to: list[int]
    leaf: int = -1
    name: str = ""
    low: int = 0
    high: int | None = None


_State = tuple[int, int, tuple[int, ...]]  # step, place in the text, counts of the repeats that are open
_Marks = tuple[Any, ...] | None  # what was opened and closed on the way: (earlier, name, place), newest first


class Search:
    """The tree as steps. `leaves(tree)[i]` is leaf number i of `ends`."""

    def __init__(self, tree: Tree) -> None:
        self._leaf_of = {leaf_key({kind: value}): i for i, (kind, value) in enumerate(leaves(tree))}
        self._steps = [_Step("end", [])]
        self._start = self._put(tree, 0)
        self.names = list(dict.fromkeys(step.name for step in reversed(self._steps) if step.do == "open"))

    def _put(self, tree: Tree, to: int) -> int:
        """Steps for the tree, which then go on at `to`; the first of them."""
        if "sequence" in tree:
            for part in reversed(tree["sequence"]):
                to = self._put(part, to)
            return to
        if "choice" in tree:
            return self._add(_Step("split", [self._put(part, to) for part in tree["choice"]]))
        if "capture" in tree:
            inside = self._put(tree["capture"], self._add(_Step("close", [to], name=tree["name"])))
            return self._add(_Step("open", [inside], name=tree["name"]))
        if "repeat" in tree:
            loop = self._add(_Step("loop", [], low=tree.get("min", 0), high=tree.get("max")))
            item = self._put(tree["repeat"], self._add(_Step("count", [loop])))
            separator = tree.get("separator")
            again = item if separator is None else self._put(separator, item)
            self._steps[loop].to = [item, again, to]
            return self._add(_Step("enter", [loop]))
        return self._add(_Step("leaf", [to], leaf=self._leaf_of[leaf_key(tree)]))

    def _add(self, step: _Step) -> int:
        self._steps.append(step)
        return len(self._steps) - 1

    def spans(self, length: int, ends: Ends) -> Spans | None:
        """The places of each name in a text of this length, in order; None if the text as a whole does not match.

        Raises `ConstraintError` when the search takes too long.
        """
        known: dict[tuple[int, int], list[int]] = {}
        start: tuple[_State, _Marks] = (self._start, 0, ()), None
        seen: set[_State] = {start[0]}
        stack: list[Iterator[tuple[_State, _Marks]]] = [iter([start])]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
                continue
            state, marks = found
            if self._steps[state[0]].do == "end":
                if state[1] == length:
                    return self._gathered(marks)
                continue
            stack.append(self._unseen(self._next(state, marks, ends, known), seen))
        return None

    @staticmethod
    def _unseen(states: Iterable[tuple[_State, _Marks]], seen: set[_State]) -> Iterator[tuple[_State, _Marks]]:
        for state, marks in states:
            if state not in seen:
                if len(seen) >= MAX_STEPS:
                    _refuse("", f"the text can be read in too many ways ({MAX_STEPS} steps were not enough)")
                seen.add(state)
                yield state, marks

    def _next(
        self, state: _State, marks: _Marks, ends: Ends, known: dict[tuple[int, int], list[int]]
    ) -> Iterator[tuple[_State, _Marks]]:
        at, place, counts = state
        step = self._steps[at]
        if step.do == "leaf":
            key = (step.leaf, place)
            if key not in known:
                known[key] = list(ends(step.leaf, place))
            for end in known[key]:
                yield (step.to[0], end, counts), marks
        elif step.do == "split":
            for to in step.to:
                yield (to, place, counts), marks
        elif step.do == "enter":
            yield (step.to[0], place, (*counts, 0)), marks
        elif step.do == "count":
            loop = self._steps[step.to[0]]
            most = max(loop.low, 1) if loop.high is None else loop.high  # beyond it the count does not matter
            yield (step.to[0], place, (*counts[:-1], min(counts[-1] + 1, most))), marks
        elif step.do == "loop":
            count = counts[-1]
            if step.high is None or count < step.high:
                yield (step.to[1] if count else step.to[0], place, counts), marks
            if count >= step.low:
                yield (step.to[2], place, counts[:-1]), marks
        else:
            yield (step.to[0], place, counts), (marks, step.do, step.name, place)

    def _gathered(self, marks: _Marks) -> Spans:
        events = []
        while marks is not None:
            marks, do, name, place = marks
            events.append((do, name, place))
        found: Spans = {name: [] for name in self.names}
        opened: list[tuple[str, int]] = []
        for do, name, place in reversed(events):
            if do == "open":
                opened.append((name, len(found[name])))
                found[name].append((place, place))
            else:
                _, index = opened.pop()
                found[name][index] = (found[name][index][0], place)
        return found
