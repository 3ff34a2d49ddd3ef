"""The nondeterministic automaton of an IR: places joined by empty moves, character edges and calls of rules.

It has one place per character of the IR, not per byte: an edge carries a whole character set as a byte tree, shared by
all edges with that set. A rule (what recursion and big schemas are made of) is built once, whoever calls it; where a
call comes back to is for the reader's stack.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.charset import ALL, ByteTree, Ranges, byte_tree
from stemma.backend.grammar.json_text import quoted_tree
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.slices import covers

LONG_RUN = 32  # required copies from which on a run is worth remembering
ALL_BYTES = frozenset(range(256))


class Run(NamedTuple):
    """The copies of `x` that `x{n}` or `x{0,n}` (`optional`) were written out to: places [first, stop), each copy
    `stride` of them, in the same order in every copy."""

    first: int
    stop: int
    stride: int
    optional: bool


class Bound(NamedTuple):
    """What a counting rule allows: `high` characters in all. `to_end`: of each of its places, how many characters the
    shortest way to its end has, `longest` the greatest of them. `any_text`: just any characters."""

    high: int
    to_end: dict[int, int]
    longest: int
    any_text: bool


class Nfa:
    """Edges are (tree, target), calls (start of the rule, place to come back to). Place 0 is the start, place 1 the
    end; `ends` are the last places of the rules, where a reader goes back to the caller. `trim`: some rules may have
    no texts, or none that ends; what leads to them is taken out."""

    def __init__(
        self,
        node: ir.Node,
        deadline: Deadline,
        alphabet: frozenset[int] = ALL_BYTES,
        rules: Sequence[ir.Node] = (),
        *,
        trim: bool = False,
    ) -> None:
        self.edges: list[list[tuple[int, int]]] = [[], []]
        self.empty: list[list[int]] = [[], []]
        self.calls: dict[int, list[tuple[int, int]]] = {}
        self.blocks: dict[int, int] = {}  # who reaches the key is not at the value (see ir.Except)
        self.bounds: dict[int, Bound] = {}  # of the places of counting rules
        self.rule_spans: list[tuple[int, int]] = []  # of each rule: its first and last place
        self.trees: list[ByteTree] = []
        self.covers: dict[int, int] = {}  # which classes of `slices` lie in a tree's characters
        self.ranges_of: dict[int, Ranges] = {}  # of the trees that stand for characters
        self.together: dict[frozenset[int], int] = {}
        self.runs: list[Run] = []  # disjoint, in order
        self._tree_ids: dict[int, int] = {}
        self._bytes: list[int | None] = [None] * 256
        self._deadline = deadline
        self._since_check = 0
        self.rule_spans.extend((self._place(), self._place()) for _ in rules)
        self.ends = frozenset(end for _, end in self.rule_spans)
        for rule, (start, end) in zip(rules, self.rule_spans, strict=True):
            if isinstance(rule, ir.Counted):
                self._bounded(rule, start, end)
            else:
                self._build(rule, start, end)
        self._build(node, 0, 1)
        if alphabet != ALL_BYTES or trim or ir.NOTHING in rules:
            self._restrict(alphabet)

    @property
    def nbytes(self) -> int:
        """An estimate: two lists and one edge per place."""
        return 250 * len(self.edges) + 200 * len(self.trees)

    def _place(self) -> int:
        self._since_check += 1
        if self._since_check >= 1024:
            self._since_check = 0
            self._deadline.check()
        self.edges.append([])
        self.empty.append([])
        return len(self.edges) - 1

    def tree(self, tree: ByteTree) -> int:
        found = self._tree_ids.get(id(tree))
        if found is None:
            found = self._tree_ids[id(tree)] = len(self.trees)
            self.trees.append(tree)
        return found

    def _byte(self, value: int) -> int:
        found = self._bytes[value]
        if found is None:
            found = self._bytes[value] = self.tree(((value, value, None),))
        return found

    def _restrict(self, alphabet: frozenset[int]) -> None:
        """Keep only texts over `alphabet`: drop the other bytes, then every edge that can no longer reach the end."""
        trees = self.trees if alphabet == ALL_BYTES else [_restricted(tree, alphabet) for tree in self.trees]
        sources: list[list[int]] = [[] for _ in self.edges]
        callers: dict[int, list[tuple[int, int]]] = {}
        for place, edges in enumerate(self.edges):
            edges[:] = [(tree, target) for tree, target in edges if trees[tree]]
            for target in [*(target for _, target in edges), *self.empty[place]]:
                sources[target].append(place)
            for start, back in self.calls.get(place, ()):
                callers.setdefault(start, []).append((place, back))
                callers.setdefault(back, []).append((place, start))
        live = {1, *self.ends, *self.blocks}
        todo = list(live)
        while todo:
            at = todo.pop()
            new = {place for place in sources[at] if place not in live}
            new.update(place for place, other in callers.get(at, ()) if other in live and place not in live)
            live.update(new)
            todo += new
        for place, calls in self.calls.items():
            self.calls[place] = [(start, back) for start, back in calls if start in live and back in live]
        for edges in self.edges:
            edges[:] = [(tree, target) for tree, target in edges if target in live]
        if alphabet != ALL_BYTES:
            self.covers, self.ranges_of = {}, {}
        self.trees = trees
        self._tree_ids = {id(tree): i for i, tree in enumerate(trees)}

    def covered_together(self, trees: frozenset[int]) -> int:
        """Which classes of `slices` lie in the characters of these trees, but in those of no single one."""
        known = self.together.get(trees)
        if known is None:
            found = [self.ranges_of[tree] for tree in trees if tree in self.ranges_of]
            together = covers(charset.ranges(pair for of in found for pair in of)) if len(found) > 1 else 0
            for tree in trees:
                together &= ~self.covers.get(tree, 0)
            known = self.together[trees] = together
        return known

    def _build(self, node: ir.Node, start: int, end: int) -> None:
        """Add paths for `node`. May add moves out of `start` and into `end`, never into `start` or out of `end`."""
        if isinstance(node, ir.Chars):
            tree = quoted_tree(node.ranges, node.quoted) if node.quoted else byte_tree(node.ranges)
            number = self.tree(tree)
            if number not in self.covers:
                self.covers[number] = covers(node.ranges)
                self.ranges_of[number] = node.ranges
            self.edges[start].append((number, end))
        elif isinstance(node, ir.Words):
            self._words(node.words, start, end)
        elif isinstance(node, ir.Seq):
            for part in node.parts[:-1]:
                place = self._place()
                self._build(part, start, place)
                start = place
            self._build(node.parts[-1], start, end)
        elif isinstance(node, ir.Alt):
            for option in node.options:
                self._build(option, start, end)
        elif isinstance(node, ir.Repeat):
            self._repeat(node, start, end)
        elif isinstance(node, ir.Call):
            self.calls.setdefault(start, []).append((self.rule_spans[node.rule][0], end))
        elif isinstance(node, ir.Counted):
            raise AssertionError("only whole rules count")
        elif isinstance(node, ir.Except):
            blocked, block = self._place(), self._place()
            self._build(node.node, start, blocked)
            self._build(node.names, start, block)
            self.empty[blocked].append(end)
            self.blocks[block] = blocked
        else:
            self._graph(node, start, end)

    def _bounded(self, rule: ir.Counted, start: int, end: int) -> None:
        first = len(self.edges)
        self._build(rule.node, start, end)
        places = [start, end, *range(first, len(self.edges))]
        sources: dict[int, list[tuple[int, int]]] = {}
        for place in places:
            for _, target in self.edges[place]:
                sources.setdefault(target, []).append((place, 1))
            for target in self.empty[place]:
                sources.setdefault(target, []).append((place, 0))
        to_end, todo = {end: 0}, deque([end])
        while todo:
            at = todo.popleft()
            for source, cost in sources.get(at, ()):
                if to_end[at] + cost < to_end.get(source, rule.high + 1):
                    to_end[source] = to_end[at] + cost
                    (todo.append if cost else todo.appendleft)(source)
        longest = max(to_end.values())
        for place in places:
            to_end.setdefault(place, rule.high + 1)
        inner = rule.node.node if isinstance(rule.node, ir.Repeat) and rule.node.low <= 1 else None
        any_text = isinstance(inner, ir.Chars) and inner.ranges == ALL
        bound = Bound(rule.high, to_end, longest, any_text)
        self.bounds.update(dict.fromkeys(places, bound))
        if to_end[start] > rule.high:
            raise AssertionError("a rule's shortest text is above its bound")

    def _graph(self, node: ir.Graph, start: int, end: int) -> None:
        places = [self._place() for _ in range(node.states)]
        self.empty[start].append(places[0])
        for source, label, target in node.edges:
            if label == ir.EMPTY:
                self.empty[places[source]].append(places[target])
            elif isinstance(label, ir.Chars):
                self._build(label, places[source], places[target])
            else:  # parts that add moves out of their start or into their end need both to themselves
                enter, leave = self._place(), self._place()
                self.empty[places[source]].append(enter)
                self.empty[leave].append(places[target])
                self._build(label, enter, leave)
        for final in node.finals:
            self.empty[places[final]].append(end)

    def _words(self, words: tuple[bytes, ...], start: int, end: int) -> None:
        """A trie. The words are sorted, so each shares a path with the one before it, or with none."""
        path, previous = [start], b""
        for word in words:
            shared = 0
            while shared < len(previous) and shared < len(word) and previous[shared] == word[shared]:
                shared += 1
            del path[shared + 1 :]
            for byte in word[shared:]:
                place = self._place()
                self.edges[path[-1]].append((self._byte(byte), place))
                path.append(place)
            self.empty[path[-1]].append(end)
            previous = word

    def _repeat(self, node: ir.Repeat, start: int, end: int) -> None:
        low, high = node.low, node.high
        required = max(low - 1, 0) if high is None else low
        first = len(self.edges)
        for _ in range(required):
            place = self._place()
            self._build(node.node, start, place)
            start = place
        if required >= LONG_RUN and not (self.runs and self.runs[-1].first >= first):
            self._add_run(first, required, optional=False)
        if high is None:
            enter, leave = self._place(), self._place()
            self.empty[start].append(enter)
            self._build(node.node, enter, leave)
            self.empty[leave] += [enter, end]
            if low == 0:
                self.empty[start].append(end)
            return
        first = len(self.edges)
        for _ in range(high - low):
            self.empty[start].append(end)
            place = self._place()
            self._build(node.node, start, place)
            start = place
        self.empty[start].append(end)
        if high - low > 1:
            self._add_run(first, high - low, optional=True)

    def _add_run(self, first: int, copies: int, *, optional: bool) -> None:
        """Remember the copies that were built since place `first`; the runs inside them are forgotten."""
        while self.runs and self.runs[-1].first >= first:
            self.runs.pop()
        stop = len(self.edges)
        self.runs.append(Run(first, stop, (stop - first) // copies, optional))


def _restricted(tree: ByteTree, alphabet: frozenset[int]) -> ByteTree:
    """The part of the tree that is spelled with bytes of `alphabet`; () if there is none."""
    edges: list[tuple[int, int, ByteTree | None]] = []
    for low, high, rest in tree:
        below = None if rest is None else _restricted(rest, alphabet)
        if below is None or below:
            edges.extend((byte, byte, below) for byte in range(low, high + 1) if byte in alphabet)
    return tuple(edges)
