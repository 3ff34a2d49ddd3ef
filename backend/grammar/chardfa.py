"""Languages of characters, deterministic: what intersections and complements of patterns are worked out on.

Here an edge is a class of characters that no part of the language tells apart, found once per language. States are made
as they are asked for; `combine` walks several languages and a length bound side by side.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.charset import Ranges
from stemma.backend.grammar.limits import MAX_PRODUCT, Deadline
from stemma.lang.errors import ConstraintError

DEAD = -1


class Language:
    """A language of texts. Two with the same `key` are the same."""

    def __init__(self, key: str, node: ir.Node) -> None:
        self.key = key
        self.node = node
        self._edges: list[list[tuple[int, int]]] = [[], []]
        self._empty: list[list[int]] = [[], []]
        self._sets: dict[Ranges, int] = {}
        self._states: list[frozenset[int]] = []
        self._ids: dict[frozenset[int], int] = {}
        self._rows: list[list[int]] = []
        self._lock = threading.RLock()
        self._ready = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Language) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def prepare(self, deadline: Deadline) -> None:
        """Build the automaton. Everything below needs it."""
        with self._lock:
            if not self._ready:
                self._edges, self._empty, self._sets = [[], []], [[], []], {}
                self._build(self.node, 0, 1, deadline)
                self._classify()
                self.accepting: list[bool] = []
                self._intern({0})
                self._ready = True

    def _place(self) -> int:
        self._edges.append([])
        self._empty.append([])
        return len(self._edges) - 1

    def _build(self, node: ir.Node, start: int, end: int, deadline: Deadline) -> None:
        if len(self._edges) % 256 == 0:
            deadline.check()
        if isinstance(node, ir.Chars):
            self._edges[start].append((self._sets.setdefault(node.ranges, len(self._sets)), end))
        elif isinstance(node, ir.Words):
            trie: dict[tuple[int, str], int] = {}
            for word in node.words:
                at = start
                for char in word.decode():
                    if (at, char) not in trie:
                        trie[at, char] = self._place()
                        number = self._sets.setdefault(((ord(char), ord(char)),), len(self._sets))
                        self._edges[at].append((number, trie[at, char]))
                    at = trie[at, char]
                self._empty[at].append(end)
        elif isinstance(node, ir.Seq):
            for part in node.parts:
                place = self._place()
                self._build(part, start, place, deadline)
                start = place
            self._empty[start].append(end)
        elif isinstance(node, ir.Alt):
            for option in node.options:
                self._build(option, start, end, deadline)
        elif isinstance(node, ir.Repeat):
            self._repeat(node, start, end, deadline)
        elif isinstance(node, ir.Graph):
            places = [self._place() for _ in range(node.states)]
            self._empty[start].append(places[0])
            for source, label, target in node.edges:
                self._build(label, places[source], places[target], deadline)
            for final in node.finals:
                self._empty[places[final]].append(end)
        else:
            raise AssertionError(f"{type(node).__name__} is no text")

    def _repeat(self, node: ir.Repeat, start: int, end: int, deadline: Deadline) -> None:
        for _ in range(node.low):
            place = self._place()
            self._build(node.node, start, place, deadline)
            start = place
        if node.high is None:
            enter, leave = self._place(), self._place()
            self._empty[start] += [enter, end]
            self._build(node.node, enter, leave, deadline)
            self._empty[leave] += [enter, end]
            return
        for _ in range(node.high - node.low):
            self._empty[start].append(end)
            place = self._place()
            self._build(node.node, start, place, deadline)
            start = place
        self._empty[start].append(end)

    def _classify(self) -> None:
        """`starts[i]` begins the interval i of code points, which belongs to the class `classes[i]`."""
        self.starts = sorted({0} | {c for of in self._sets for a, b in of for c in (a, b + 1)})
        members: list[list[int]] = [[] for _ in self.starts]
        for of, number in self._sets.items():
            for a, b in of:
                for i in range(bisect.bisect_left(self.starts, a), bisect.bisect_right(self.starts, b)):
                    members[i].append(number)
        known: dict[tuple[int, ...], int] = {}
        self.classes = [known.setdefault(tuple(sorted(m)), len(known)) for m in members]
        self.width = len(known)
        self._columns: list[list[int]] = [[] for _ in self._sets]
        for signature, column in known.items():
            for number in signature:
                self._columns[number].append(column)

    def _intern(self, places: set[int]) -> int:
        todo = list(places)
        while todo:
            for to in self._empty[todo.pop()]:
                if to not in places:
                    places.add(to)
                    todo.append(to)
        kept = frozenset(p for p in places if self._edges[p] or p == 1)
        found = self._ids.get(kept)
        if found is None:
            found = self._ids[kept] = len(self._states)
            self._states.append(kept)
            self._rows.append([])
            self.accepting.append(1 in kept)
            if found > MAX_PRODUCT:
                raise ConstraintError(f"a pattern needs more than {MAX_PRODUCT} states to be told apart from others")
        return found

    def row(self, state: int) -> list[int]:
        """The next state for each class, or DEAD."""
        row = self._rows[state]
        if not row:
            with self._lock:
                reached: list[set[int]] = [set() for _ in range(self.width)]
                for place in self._states[state]:
                    for number, target in self._edges[place]:
                        for column in self._columns[number]:
                            reached[column].add(target)
                row = [self._intern(places) if places else DEAD for places in reached]
                self._rows[state] = row
        return row

    def step(self, state: int, point: int) -> int:
        return self.row(state)[self.classes[bisect.bisect_right(self.starts, point) - 1]]

    def accepts(self, text: str) -> bool:
        state = 0
        for char in text:
            state = self.step(state, ord(char))
            if state == DEAD:
                return False
        return self.accepting[state]


def words_language(words: Sequence[str]) -> Language:
    texts = tuple(sorted(words))
    return Language(f"words {texts!r}", ir.words(text.encode() for text in texts))


class Product:
    """The texts in all of `yes`, in none of `no`, of `low` to `high` characters."""

    def __init__(
        self, yes: Sequence[Language], no: Sequence[Language], low: int, high: int | None, deadline: Deadline
    ) -> None:
        self._parts = [*yes, *no]
        self._positive = len(yes)
        self._low, self._high, self._deadline = low, high, deadline
        self._cap = high if high is not None else low
        for part in self._parts:
            part.prepare(deadline)
        starts = sorted({0}.union(*(part.starts for part in self._parts)))
        known: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for i, start in enumerate(starts):
            end = starts[i + 1] - 1 if i + 1 < len(starts) else charset.LAST
            if start > charset.LAST:
                continue
            signature = tuple(p.classes[bisect.bisect_right(p.starts, start) - 1] for p in self._parts)
            known.setdefault(signature, []).append((start, end))
        self._classes = [(sig, ranges) for sig, pairs in known.items() if (ranges := charset.ranges(pairs))]

    def _accepts(self, state: tuple[int, ...]) -> bool:
        *parts, count = state
        return count >= self._low and all(
            (at != DEAD and part.accepting[at]) == (i < self._positive)
            for i, (part, at) in enumerate(zip(self._parts, parts, strict=True))
        )

    def _next(self, state: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
        *parts, count = state
        if self._high is not None and count >= self._high:
            return []
        count = min(count + 1, self._cap)
        rows = [part.row(at) if at != DEAD else None for part, at in zip(self._parts, parts, strict=True)]
        found = []
        for i, (signature, _) in enumerate(self._classes):
            after = [row[c] if row else DEAD for row, c in zip(rows, signature, strict=True)]
            if DEAD not in after[: self._positive]:
                found.append(((*after, count), i))
        return found

    def _start(self) -> tuple[int, ...]:
        return (*([0] * len(self._parts)), 0)

    def is_empty(self) -> bool:
        """Depth first, so that a long least length is reached without looking left and right."""
        todo, seen = [self._start()], {self._start()}
        while todo:
            state = todo.pop()
            if self._accepts(state):
                return False
            for after, _ in self._next(state):
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
            self._check(len(seen))
        return True

    def _check(self, states: int) -> None:
        if states % 64 == 0:
            self._deadline.check()
        if states > MAX_PRODUCT:
            raise ConstraintError(f"the patterns and lengths of a string need more than {MAX_PRODUCT} states together")

    def node(self) -> ir.Node:
        ids = {self._start(): 0}
        order, moves = [self._start()], []
        for state in order:
            targets: dict[int, list[int]] = {}
            for after, column in self._next(state):
                if after not in ids:
                    ids[after] = len(order)
                    order.append(after)
                targets.setdefault(ids[after], []).append(column)
            moves.append(targets)
            self._check(len(order))
        return graph_of([self._accepts(state) for state in order], moves, [ranges for _, ranges in self._classes])


def graph_of(accepting: list[bool], moves: list[dict[int, list[int]]], classes: Sequence[Ranges]) -> ir.Node:
    """The graph of an automaton that starts in state 0: `moves[state]` holds the columns of `classes` that lead to each
    target. States that do not lead to an accepting one are left out."""
    sources: list[list[int]] = [[] for _ in moves]
    for source, targets in enumerate(moves):
        for target in targets:
            sources[target].append(source)
    live = {i for i, accepts in enumerate(accepting) if accepts}
    todo = list(live)
    while todo:
        for source in sources[todo.pop()]:
            if source not in live:
                live.add(source)
                todo.append(source)
    if 0 not in live:
        return ir.NOTHING
    number = {state: i for i, state in enumerate(sorted(live))}
    sets: dict[tuple[int, ...], ir.Node] = {}
    edges = []
    for source in number:
        for target, columns in moves[source].items():
            if target in number:
                key = tuple(columns)
                if key not in sets:
                    sets[key] = ir.chars(charset.ranges(r for c in columns for r in classes[c]))
                edges.append((number[source], sets[key], number[target]))
    if not edges:
        return ir.EMPTY
    return ir.graph(len(number), edges, [number[i] for i in number if accepting[i]])


def always_extends(node: ir.Node, deadline: Deadline) -> bool:
    """Whether every beginning of a match can go on to matches without end (so that no finite set covers them)."""
    if isinstance(node, ir.Repeat):
        return node.high is None and isinstance(node.node, ir.Chars)
    if not isinstance(node, ir.Graph):
        return False
    after: list[set[int]] = [set() for _ in range(node.states)]
    for source, _, target in node.edges:
        after[source].add(target)
    finite, changed = {i for i in range(node.states) if not after[i]}, True
    while changed:
        deadline.check()
        new = {i for i in range(node.states) if i not in finite and after[i] <= finite}
        finite |= new
        changed = bool(new)
    return not finite
