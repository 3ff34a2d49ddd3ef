"""From IR to a byte automaton that is made deterministic state by state, as decoding needs it.

The nondeterministic automaton (`Nfa`) has one place per character of the IR, not per byte: an edge carries a whole
character set as a UTF-8 byte tree, shared by all edges with that set. A deterministic state is a set of items
(tree, place): "the rest of this tree's character is still to come, then go to that place" (Thompson's subset
construction over two levels). No item is a dead end, since the IR holds no empty language and `Nfa._restrict` keeps
it so; a state is dead exactly when it is the empty set, and it is never made.

Bytes that no edge tells apart share a column of the transition table: columns are the intervals between cut points.
"""

from __future__ import annotations

import bisect
import threading
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar import ir
from stemma.backend.grammar.charset import ByteTree, byte_tree
from stemma.backend.grammar.limits import MAX_ITEMS, MAX_STATES, MAX_WORK, Deadline
from stemma.lang.errors import ConstraintError

DEAD = -1
UNKNOWN = -2  # a whole row is either known or unknown

_PLACE_BITS = 24
_PLACE_MASK = (1 << _PLACE_BITS) - 1
_ACCEPT = -1  # the item of a state where the text may end
LONG_RUN = 32  # required copies from which on a run is worth remembering
_MEMO_SIZE = 256  # closures above this size are not kept

Items = frozenset[int]
ALL_BYTES = frozenset(range(256))


class Run(NamedTuple):
    """The copies of `x` that `x{n}` or `x{0,n}` (`optional`) were written out to: places [first, stop), each copy
    `stride` of them, in the same order in every copy."""

    first: int
    stop: int
    stride: int
    optional: bool


class Nfa:
    """Places joined by empty moves and by edges (tree, target). Place 0 is the start, place 1 the end."""

    def __init__(self, node: ir.Node, deadline: Deadline, alphabet: frozenset[int] = ALL_BYTES) -> None:
        self.edges: list[list[tuple[int, int]]] = [[], []]
        self.empty: list[list[int]] = [[], []]
        self.trees: list[ByteTree] = []
        self.runs: list[Run] = []  # disjoint, in order
        self._tree_ids: dict[int, int] = {}
        self._bytes: list[int | None] = [None] * 256
        self._deadline = deadline
        self._since_check = 0
        self._build(node, 0, 1)
        if alphabet != ALL_BYTES:
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
        trees = [_restricted(tree, alphabet) for tree in self.trees]
        sources: list[list[int]] = [[] for _ in self.edges]
        for place, edges in enumerate(self.edges):
            edges[:] = [(tree, target) for tree, target in edges if trees[tree]]
            for target in [*(target for _, target in edges), *self.empty[place]]:
                sources[target].append(place)
        live, todo = {1}, [1]
        while todo:
            new = [place for place in sources[todo.pop()] if place not in live]
            live.update(new)
            todo += new
        for edges in self.edges:
            edges[:] = [(tree, target) for tree, target in edges if target in live]
        self.trees = trees
        self._tree_ids = {id(tree): i for i, tree in enumerate(trees)}

    def _build(self, node: ir.Node, start: int, end: int) -> None:
        """Add paths for `node`. May add moves out of `start` and into `end`, never into `start` or out of `end`."""
        if isinstance(node, ir.Chars):
            self.edges[start].append((self.tree(byte_tree(node.ranges)), end))
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
        else:
            self._repeat(node, start, end)

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


class Dfa:
    """Deterministic states, numbered as they are met; 0 is the start. Reads need no lock; `expand` takes it.

    `table`: int32[capacity, columns], next state, DEAD or UNKNOWN. `column`: int16[256], byte to column.
    """

    def __init__(self, node: ir.Node, deadline: Deadline, alphabet: frozenset[int] = ALL_BYTES) -> None:
        self._nfa = Nfa(node, deadline, alphabet)
        self._intern_subtrees()
        cuts = sorted({0} | {c for tree in self._nfa.trees for a, b, _ in tree for c in (a, b + 1)} - {256})
        self.column: NDArray[np.int16] = (np.searchsorted(cuts, np.arange(256), side="right") - 1).astype(np.int16)
        self.columns: list[int] = self.column.tolist()
        self._only_byte = {c: cuts[c] for c in range(len(cuts)) if self.columns.count(c) == 1}
        self._moves = [
            [(self.columns[a], self.columns[b], -1 if sub is None else self._nfa.tree(sub)) for a, b, sub in tree]
            for tree in self._nfa.trees
        ]
        self.table: NDArray[np.int32] = np.full((16, len(cuts)), UNKNOWN, np.int32)
        self._items: list[Items] = []
        self._ids: dict[Items, int] = {}
        self._total_items = 0
        self._work = 0
        self._run_starts = [run.first for run in self._nfa.runs]
        self._closures: dict[int, Items] = {}
        self._singles: dict[int, int] = {}  # an item that is a state by itself
        self.accepting: list[bool] = []
        self.lock = threading.RLock()
        self._intern(self._closure(0))

    @property
    def has_runs(self) -> bool:
        """`shape` may map states to others."""
        return bool(self._run_starts)

    @property
    def crowded(self) -> bool:
        """More than half of the room for states is taken; a fresh automaton would serve new users better."""
        used = (len(self._items) / MAX_STATES, self._total_items / MAX_ITEMS, self._work / MAX_WORK)
        return max(used) > 0.5

    @property
    def matches_nothing(self) -> bool:
        return not self._items[0]

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + 40 * self._total_items + 300 * len(self._items) + self._nfa.nbytes

    def _intern_subtrees(self) -> None:
        """Give every subtree a number; `trees` grows while it is walked."""
        for tree in self._nfa.trees:
            for _, _, rest in tree:
                if rest is not None:
                    self._nfa.tree(rest)

    def step(self, state: int, byte: int) -> int:
        """The state after one byte, or DEAD."""
        after = int(self.table[state, self.columns[byte]])
        return int(self.expand(state)[self.columns[byte]]) if after == UNKNOWN else after

    def run(self, state: int, text: bytes) -> int:
        """The state after `text`, or DEAD."""
        columns = self.columns
        for byte in text:
            after = int(self.table[state, columns[byte]])
            if after < 0:
                if after == UNKNOWN:
                    after = int(self.expand(state)[columns[byte]])
                if after == DEAD:
                    return DEAD
            state = after
        return state

    def row(self, state: int) -> NDArray[np.int32]:
        """int32[columns], known."""
        row = self.table[state]
        return self.expand(state) if row[0] == UNKNOWN else row

    def has_next(self, state: int) -> bool:
        """Some byte may follow."""
        return bool((self.row(state) >= 0).any())

    def only_byte(self, state: int) -> int:
        """The byte that must come next, or -1: several may, or the text may end here."""
        if self.accepting[state]:
            return -1
        live = np.flatnonzero(self.row(state) >= 0)
        return self._only_byte.get(int(live[0]), -1) if len(live) == 1 else -1

    def expand(self, state: int) -> NDArray[np.int32]:
        """Work out a state's row. ConstraintError when the automaton grows over its limits."""
        with self.lock:
            if self.table[state, 0] != UNKNOWN:
                return self.table[state]
            width = self.table.shape[1]
            items = [i for i in self._items[state] if i >= 0]
            row = self._row_of_one(items[0], width) if len(items) == 1 else self._row_of_many(items, width)
            self.table[state, 1:] = row[1:]
            self.table[state, 0] = row[0]  # last: readers without the lock look here
            return self.table[state]

    def _row_of_one(self, item: int, width: int) -> list[int]:
        row = [DEAD] * width
        place = item & _PLACE_MASK
        for low, high, rest in self._moves[item >> _PLACE_BITS]:
            after = self._state_at(place) if rest < 0 else self._state_of_item(rest << _PLACE_BITS | place)
            for column in range(low, high + 1):
                row[column] = after
        return row

    def _row_of_many(self, items: list[int], width: int) -> list[int]:
        """Items may be many (a bounded repeat of something long), so work is proportional to their edges."""
        reached: list[list[int]] = [[] for _ in range(width)]
        for item in items:
            place = item & _PLACE_MASK
            for low, high, rest in self._moves[item >> _PLACE_BITS]:
                after = ~place if rest < 0 else rest << _PLACE_BITS | place  # ~place: the character is complete
                for column in range(low, high + 1):
                    reached[column].append(after)
        known: dict[tuple[int, ...], int] = {(): DEAD}
        row = []
        for column in range(width):
            key = tuple(reached[column])
            state = known.get(key)
            if state is None:
                items_reached = self._reach([~k for k in key if k < 0])
                items_reached.update([k for k in key if k >= 0])
                state = known[key] = self._intern(frozenset(items_reached))
            row.append(state)
        return row

    def _state_at(self, place: int) -> int:
        return self._intern(self._closure(place))

    def _state_of_item(self, item: int) -> int:
        state = self._singles.get(item)
        if state is None:
            state = self._singles[item] = self._intern(frozenset((item,)))
        return state

    def _closure(self, place: int) -> Items:
        """The items that the empty moves from `place` lead to."""
        known = self._closures.get(place)
        if known is not None:
            return known
        closure = frozenset(self._reach([place]))
        if len(closure) <= _MEMO_SIZE:
            self._closures[place] = closure
        return closure

    def _reach(self, places: list[int]) -> set[int]:
        """The items that empty moves lead to from any of these places: one search, so linear in the automaton."""
        nfa, items = self._nfa, set[int]()
        todo = []
        for place in places:
            if (known := self._closures.get(place)) is not None:
                items |= known
            else:
                todo.append(place)
        seen = set(todo)
        while todo:
            at = todo.pop()
            if at == 1:
                items.add(_ACCEPT)
            items.update([tree << _PLACE_BITS | target for tree, target in nfa.edges[at]])
            for to in nfa.empty[at]:
                if to not in seen:
                    seen.add(to)
                    todo.append(to)
        self._work += len(places) + len(seen)
        if self._work > MAX_WORK:
            self._refuse()
        return items

    def _without_covered(self, items: Items) -> Items:
        """Drop what other items cover: at the same point of `x{0,n}`, whoever has more copies left can do all that the
        others can. Without this, ambiguous bounded repeats have sets as large as their bound."""
        best: dict[tuple[int, int], int] = {}
        kept = []
        for item in items:
            run = self._run_of(item)
            if run is None or not run.optional:
                kept.append(item)
                continue
            place = item & _PLACE_MASK
            key = (item - place, run.first + (place - run.first) % run.stride)
            best[key] = min(item, best.get(key, item))
        return frozenset([*kept, *best.values()])

    def _run_of(self, item: int) -> Run | None:
        place = item & _PLACE_MASK
        at = bisect.bisect_right(self._run_starts, place) - 1
        if item < 0 or at < 0 or place >= self._nfa.runs[at].stop:
            return None
        return self._nfa.runs[at]

    def shape(self, state: int, horizon: int) -> int:
        """A state with the same future for texts of up to `horizon` bytes, the same one for as many states as possible.

        In a long run of copies it does not matter yet which copy one is in, so all that are far from the end of their
        run count as the first. Thousands of states of `[^"]{0,5000}` then share one mask.
        """
        if not self._run_starts:
            return state
        items = self._items[state]
        moved = frozenset(self._moved_back(item, horizon) for item in items)
        if moved == items:
            return state
        with self.lock:
            return self._intern(moved)

    def _moved_back(self, item: int, horizon: int) -> int:
        run = self._run_of(item)
        if run is None:
            return item
        place = item & _PLACE_MASK
        copy, offset = divmod(place - run.first, run.stride)
        copies = (run.stop - run.first) // run.stride
        return item - place + run.first + offset if copies - copy > horizon + 1 else item

    def _intern(self, items: Items) -> int:
        if len(items) > 4 and self._run_starts:
            items = self._without_covered(items)
        state = self._ids.get(items)
        if state is not None:
            return state
        state = len(self._items)
        self._total_items += len(items)
        if state >= MAX_STATES or self._total_items > MAX_ITEMS:
            self._refuse()
        self._ids[items] = state
        self._items.append(items)
        self.accepting.append(_ACCEPT in items)
        if state >= len(self.table):
            grown = np.full((2 * len(self.table), self.table.shape[1]), UNKNOWN, np.int32)
            grown[: len(self.table)] = self.table
            self.table = grown
        return state

    def _refuse(self) -> NoReturn:
        raise ConstraintError(
            f"the constraint's automaton grew over its limit ({MAX_STATES} states, {MAX_ITEMS} members, {MAX_WORK} "
            "moves); lower its repeat counts or make its alternatives easier to tell apart"
        )
