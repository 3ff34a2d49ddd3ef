r"""Regexes with conditions on their surroundings: lookaround, word boundaries, anchors inside, possessive repeats.

Such a pattern still describes a regular language, but not one that is put together from its parts. It is worked out
on an alternating automaton (Chandra, Kozen, Stockmeyer 1981): what is left to be matched is a boolean formula over
places, a lookahead adds its body to the formula with "and", a negative one with "and not". What stands before a place,
which lookbehind and `\b` ask for, is known from a deterministic automaton for each such question that runs along.
Formulas are simplified as derivatives are (Brzozowski 1964), so there are finitely many. The result is one graph.
"""

from __future__ import annotations

import bisect
from typing import Any

from interegular.patterns import Pattern, _CharGroup, _Concatenation, _Repeated

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.chardfa import Language, graph_of
from stemma.backend.grammar.charset import Ranges
from stemma.backend.grammar.limits import MAX_PRODUCT, MAX_SIZE, Deadline
from stemma.backend.grammar.regex_scan import FIRST_PLACEHOLDER, Anchor, Atom, Boundary, Look, Possessive, refuse
from stemma.lang.errors import ConstraintError

_NEWLINE: Ranges = ((10, 10),)
_MAX_FORMULAS = 200_000
_MAX_NESTING = 60  # of conditions that hold at one place

FALSE, TRUE = 0, 1


class NeedsContext(Exception):
    """A part of a pattern asks what stands around it, so its meaning is not a language of its own."""


class _Formulas:
    """Formulas over places, by number; equal ones (up to order, repetition and absorption) have the same."""

    def __init__(self) -> None:
        self.kinds: list[tuple[str, Any]] = [("any", frozenset()), ("all", frozenset())]
        self._numbers: dict[tuple[str, Any], int] = {("any", frozenset()): FALSE, ("all", frozenset()): TRUE}

    def _of(self, kind: str, arg: Any) -> int:
        number = self._numbers.get((kind, arg))
        if number is None:
            if len(self.kinds) > _MAX_FORMULAS:
                raise ConstraintError(
                    "regex: its conditions combine in too many ways; use fewer of them", param="regex"
                )
            number = self._numbers[kind, arg] = len(self.kinds)
            self.kinds.append((kind, arg))
        return number

    def place(self, place: int) -> int:
        return self._of("place", place)

    def opposite(self, formula: int) -> int:
        if formula <= TRUE:
            return TRUE - formula
        kind, arg = self.kinds[formula]
        return arg if kind == "not" else self._of("not", formula)

    def any_of(self, formulas: set[int]) -> int:
        return self._join("any", formulas, FALSE)

    def all_of(self, formulas: set[int]) -> int:
        return self._join("all", formulas, TRUE)

    def _join(self, kind: str, formulas: set[int], neutral: int) -> int:
        other = "all" if kind == "any" else "any"
        parts: set[int] = set()
        for formula in formulas:
            own, arg = self.kinds[formula]
            parts.update(arg if own == kind else (formula,))
        if TRUE - neutral in parts:
            return TRUE - neutral
        if any(self.kinds[p][0] == "not" and self.kinds[p][1] in parts for p in parts):
            return TRUE - neutral
        kept = [p for p in parts if self.kinds[p][0] != other or parts.isdisjoint(self.kinds[p][1])]
        if len(kept) == 1:
            return kept[0]
        return self._of(kind, frozenset(kept)) if kept else neutral


class Assertions:
    """The automaton of a parsed pattern. `search`: anything may stand before and behind a match; `ecma`: `$` is the end
    of the text, not also a line feed before it. ConstraintError, with the place, for what cannot be decided."""

    def __init__(
        self, source: str, atoms: list[Atom], lower_plain: Any, deadline: Deadline, *, search: bool, ecma: bool
    ) -> None:
        self._source, self._atoms, self._deadline = source, atoms, deadline
        self._lower_plain = lower_plain  # the IR of a part without conditions
        self._search, self._ecma = search, ecma
        self._edges: list[list[tuple[int, int]]] = []  # (set, target)
        self._empty: list[list[int]] = []
        self._ahead: list[list[tuple[int, bool, int]]] = []  # (where the body begins, negative, target)
        self._behind: list[list[tuple[int, bool, int]]] = []  # (tracker, negative, target)
        self._sets: dict[Ranges, int] = {}
        self._trackers: dict[str, Language] = {}
        self._formulas = _Formulas()
        self._closures: dict[tuple[int, tuple[int, ...]], int] = {}
        self._steps: dict[tuple[int, int, tuple[int, ...]], int] = {}
        self._true = self._place()
        self._aheads: dict[Ranges, int] = {}

    def node(self, tree: Pattern) -> ir.Node:
        start, end = self._place(), self._place()
        if self._search:
            first = self._place()
            self._edges[start].append((self._set(charset.ALL), start))
            self._empty[start].append(first)
            self._empty[end].append(self._true)
            self._build(tree, first, end)
        else:
            self._build(tree, start, end)
        self._final = end
        for tracker in self._trackers.values():
            tracker.prepare(self._deadline)
        return self._explored(start)

    # -- places

    def _place(self) -> int:
        if len(self._edges) > MAX_SIZE:
            raise ConstraintError(
                f"regex: {self._source[:80]!r} needs more than {MAX_SIZE} characters when its repeats are written out; "
                "lower the repeat counts",
                param="regex",
            )
        if len(self._edges) % 256 == 0:
            self._deadline.check()
        for row in (self._edges, self._empty, self._ahead, self._behind):
            row.append([])
        return len(self._edges) - 1

    def _set(self, of: Ranges) -> int:
        return self._sets.setdefault(of, len(self._sets))

    def _build(self, tree: Any, start: int, end: int) -> None:
        if isinstance(tree, Pattern):
            for option in tree.options:
                self._build(option, start, end)
        elif isinstance(tree, _Repeated):
            self._repeat(lambda a, b: self._build(tree.base, a, b), tree.min, tree.max, start, end)
        elif isinstance(tree, _CharGroup):
            self._leaf(self._atom(tree), start, end)
        else:
            assert isinstance(tree, _Concatenation)
            parts = list(tree.parts)
            look = self._atom(parts[0]) if parts and isinstance(parts[0], _CharGroup) else None
            if isinstance(look, Look):
                self._look(look, parts[1:], start, end)
                return
            for part in parts:
                after = self._place()
                self._build(part, start, after)
                start = after
            self._empty[start].append(end)

    def _atom(self, tree: _CharGroup) -> Atom:
        (mark,) = tree.chars
        return self._atoms[ord(mark) - FIRST_PLACEHOLDER]

    def _repeat(self, build: Any, low: int, high: int | None, start: int, end: int) -> None:
        for _ in range(low):
            after = self._place()
            build(start, after)
            start = after
        if high is None:
            enter, leave = self._place(), self._place()
            self._empty[start] += [enter, end]
            build(enter, leave)
            self._empty[leave] += [enter, end]
            return
        for _ in range(high - low):
            self._empty[start].append(end)
            after = self._place()
            build(start, after)
            start = after
        self._empty[start].append(end)

    def _leaf(self, atom: Atom, start: int, end: int) -> None:
        if isinstance(atom, Anchor):
            self._anchor(atom, start, end)
        elif isinstance(atom, Boundary):
            self._boundary(atom, start, end)
        elif isinstance(atom, Possessive):
            self._possessive(atom, start, end)
        elif isinstance(atom, bytes):
            for char in atom.decode():
                after = self._place()
                self._edges[start].append((self._set(((ord(char), ord(char)),)), after))
                start = after
            self._empty[start].append(end)
        else:
            assert not isinstance(atom, Look)
            if atom:
                self._edges[start].append((self._set(atom), end))

    # -- conditions

    def _next_is(self, of: Ranges) -> int:
        """Where a body begins that holds if the next character is one of these."""
        if of not in self._aheads:
            place = self._aheads[of] = self._place()
            self._edges[place].append((self._set(of), self._true))
        return self._aheads[of]

    def _before(self, key: str, make: Any) -> int:
        """The tracker of "the text so far ends with a match"."""
        if key not in self._trackers:
            anything = ir.repeat(ir.chars(charset.ALL), 0, None)
            self._trackers[key] = Language(f"ends {key}", ir.seq([anything, make()]))
        return list(self._trackers).index(key)

    def _previous_is(self, of: Ranges) -> int:
        return self._before(repr(of), lambda: ir.chars(of))

    def _anchor(self, atom: Anchor, start: int, end: int) -> None:
        line = charset.complement(_NEWLINE)
        if atom.start:
            self._behind[start].append((self._previous_is(line if atom.lines else charset.ALL), True, end))
            return
        if not (atom.lines or atom.strict or self._ecma):  # a line feed may stand between it and the end
            self._ahead[start].append((self._last_line_feed(), False, end))
        self._ahead[start].append((self._next_is(line if atom.lines else charset.ALL), True, end))

    def _last_line_feed(self) -> int:
        place, after = self._place(), self._place()
        self._edges[place].append((self._set(_NEWLINE), after))
        self._ahead[after].append((self._next_is(charset.ALL), True, self._true))
        return place

    def _boundary(self, atom: Boundary, start: int, end: int) -> None:
        """A word character on one side only; `\\B`: on both or on neither."""
        before, ahead = self._previous_is(atom.word), self._next_is(atom.word)
        for is_word in (False, True):
            between = self._place()
            self._behind[start].append((before, not is_word, between))
            self._ahead[between].append((ahead, is_word != atom.negated, end))

    def _possessive(self, atom: Possessive, start: int, end: int) -> None:
        """As often as it goes: to the greatest count, or no further such character follows."""
        full, short = (atom.high, (atom.high or 0) - 1) if atom.high is not None else (None, None)

        def one(a: int, b: int) -> None:
            if atom.ranges:
                self._edges[a].append((self._set(atom.ranges), b))

        if full is not None:
            self._repeat(one, full, full, start, end)
        if short is None or short >= atom.low:
            after = self._place()
            self._repeat(one, atom.low, short, start, after)
            self._ahead[after].append((self._next_is(atom.ranges), True, end))

    def _look(self, look: Look, body: list[Any], start: int, end: int) -> None:
        if look.ahead:
            inside = self._place()
            at = inside
            for part in body:
                after = self._place()
                self._build(part, at, after)
                at = after
            self._empty[at].append(self._true)
            self._ahead[start].append((inside, look.negative, end))
            return
        try:
            key = f"{look.position}"
            tracker = self._before(key, lambda: ir.seq([self._lower_plain(part) for part in body]))
        except NeedsContext:
            refuse(
                self._source, look.position, "conditions inside a lookbehind are not supported; write them beside it"
            )
        if self._trackers[key].node == ir.NOTHING:  # never there
            if look.negative:
                self._empty[start].append(end)
            return
        self._behind[start].append((tracker, look.negative, end))

    # -- formulas

    def _closure(self, place: int, left: tuple[int, ...], known: frozenset[int] = frozenset(), depth: int = 0) -> int:
        """What is left to be matched at a place. `known`: places that have been reached under fewer conditions."""
        alone = not known
        if alone and (place, left) in self._closures:
            return self._closures[place, left]
        if depth > _MAX_NESTING:
            raise ConstraintError("regex: too many conditions hold at the same place", param="regex")
        self._deadline.check()
        trackers = list(self._trackers.values())
        seen, todo, parts = {place}, [place], set[int]()
        conditions: list[tuple[int, bool, int]] = []
        while todo:
            at = todo.pop()
            if at == self._true:
                parts = {TRUE}
                break
            if self._edges[at] or at == self._final:
                parts.add(self._formulas.place(at))
            conditions.extend(self._ahead[at])
            after = list(self._empty[at])
            for tracker, negative, target in self._behind[at]:
                if trackers[tracker].accepting[left[tracker]] != negative:
                    after.append(target)
            for target in after:
                if target not in seen and target not in known:
                    seen.add(target)
                    todo.append(target)
        if parts != {TRUE}:
            known = known | seen
            for body, negative, target in conditions:
                if target not in known:
                    rest = self._closure(target, left, known, depth + 1)
                    holds = self._closure(body, left, frozenset(), depth + 1)
                    parts.add(self._formulas.all_of({rest, self._formulas.opposite(holds) if negative else holds}))
        found = self._formulas.any_of(parts)
        if alone:
            self._closures[place, left] = found
        return found

    def _accepts(self, formula: int) -> bool:
        kind, arg = self._formulas.kinds[formula]
        if kind == "place":
            return arg == self._final
        if kind == "not":
            return not self._accepts(arg)
        return (any if kind == "any" else all)(self._accepts(part) for part in arg)

    def _step(self, formula: int, column: int, left: tuple[int, ...]) -> int:
        """The formula behind one character; `left` is what stands before the place behind it."""
        if formula <= TRUE:
            return formula
        key = (formula, column, left)
        if key not in self._steps:
            kind, arg = self._formulas.kinds[formula]
            if kind == "place":
                live = self._columns[column]
                found = self._formulas.any_of({self._closure(t, left) for n, t in self._edges[arg] if n in live})
            elif kind == "not":
                found = self._formulas.opposite(self._step(arg, column, left))
            else:
                parts = {self._step(part, column, left) for part in arg}
                found = self._formulas.any_of(parts) if kind == "any" else self._formulas.all_of(parts)
            self._steps[key] = found
        return self._steps[key]

    def _classify(self) -> list[Ranges]:
        """Classes of characters that nothing here tells apart; `_columns[i]`: the sets that hold class i."""
        trackers = list(self._trackers.values())
        starts = sorted(
            {0, *(c for of in self._sets for a, b in of for c in (a, b + 1)), *(s for t in trackers for s in t.starts)}
        )
        members: list[list[int]] = [[] for _ in starts]
        for of, number in self._sets.items():
            for a, b in of:
                for i in range(bisect.bisect_left(starts, a), bisect.bisect_right(starts, b)):
                    members[i].append(number)
        known: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        for i, start in enumerate(starts):
            if start > charset.LAST:
                continue
            end = starts[i + 1] - 1 if i + 1 < len(starts) else charset.LAST
            own = tuple(t.classes[bisect.bisect_right(t.starts, start) - 1] for t in trackers)
            known.setdefault((frozenset(members[i]), own), []).append((start, end))
        kept = [(sets, own, of) for (sets, own), pairs in known.items() if (of := charset.ranges(pairs))]
        self._columns = [sets for sets, _, _ in kept]
        self._left = [own for _, own, _ in kept]
        return [of for _, _, of in kept]

    def _explored(self, start: int) -> ir.Node:
        classes = self._classify()
        trackers = list(self._trackers.values())
        left = tuple(0 for _ in trackers)
        first = (self._closure(start, left), left)
        ids, order, moves = {first: 0}, [first], list[dict[int, list[int]]]()
        for formula, left in order:
            self._deadline.check()
            targets: dict[int, list[int]] = {}
            if formula == TRUE:
                moves.append({len(moves): list(range(len(classes)))})
                continue
            for column in range(len(classes)):
                after = tuple(t.row(at)[c] for t, at, c in zip(trackers, left, self._left[column], strict=True))
                rest = self._step(formula, column, after)
                if rest == FALSE:
                    continue
                state = (rest, after if rest != TRUE else ())
                if state not in ids:
                    if len(order) > MAX_PRODUCT:
                        raise ConstraintError(
                            f"regex: the conditions of {self._source[:80]!r} need more than {MAX_PRODUCT} states",
                            param="regex",
                        )
                    ids[state] = len(order)
                    order.append(state)
                targets.setdefault(ids[state], []).append(column)
            moves.append(targets)
        return graph_of([self._accepts(formula) for formula, _ in order], moves, classes)
