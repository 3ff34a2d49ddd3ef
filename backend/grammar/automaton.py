"""From IR to a byte automaton that is made deterministic state by state, as decoding needs it.

A deterministic state is a set of items (stack, tree, place): "the rest of this tree's character is still to come, then
go to that place" (Thompson's subset construction over two levels). The stack says where calls of rules come back to.
Stacks are linked nodes, shared and numbered, so that a state stays a set of numbers, and a recursive grammar is an
automaton with as many states as it has been used for. No item is a dead end, since the IR holds no empty language and
`Nfa._restrict` keeps it so; a state is dead exactly when it is the empty set, and it is never made.

Bytes that no edge tells apart share a column of the transition table: columns are the intervals between cut points.

A little long because the parts of this one construction are only understood together.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar import ir
from stemma.backend.grammar.limits import MAX_ITEMS, MAX_PUSHES, MAX_STATES, MAX_WORK, Deadline
from stemma.backend.grammar.nfa import ALL_BYTES, Nfa, Run
from stemma.backend.grammar.slices import LONGEST, touches
from stemma.lang.errors import ConstraintError

DEAD = -1
UNKNOWN = -2  # a whole row is either known or unknown

_PLACE_BITS = 24
_PLACE_MASK = (1 << _PLACE_BITS) - 1
_STACK_SHIFT = 2 * _PLACE_BITS
_TREE_MASK = _PLACE_MASK << _PLACE_BITS
_ACCEPT = -1  # the item of a state where the text may end
_FREE = -1  # instead of a count that does not matter within the horizon of `Dfa.shape`
_MEMO_SIZE = 256  # closures above this size are not kept

Items = frozenset[int]


class Dfa:
    """Deterministic states, numbered as they are met; 0 is the start. Reads need no lock; `expand` takes it.

    `table`: int32[capacity, columns], next state, DEAD or UNKNOWN. `column`: int16[256], byte to column.
    """

    def __init__(
        self,
        node: ir.Node | Nfa,
        deadline: Deadline,
        alphabet: frozenset[int] = ALL_BYTES,
        rules: Sequence[ir.Node] = (),
        *,
        trim: bool = False,
    ) -> None:
        """Of an IR, or of the automaton that was made of one (with the other arguments)."""
        self._nfa = node if isinstance(node, Nfa) else Nfa(node, deadline, alphabet, rules, trim=trim)
        self._intern_subtrees()
        self._covers = [self._nfa.covers.get(i, 0) for i in range(len(self._nfa.trees))]
        self._touches = [touches([(a, b) for a, b, _ in tree]) for tree in self._nfa.trees]
        self._rooms: dict[tuple[int, int], tuple[int, bool]] = {}
        # (place to come back to, stack there, characters read since, where they are counted); 0: the bottom
        self._stacks: list[tuple[int, int, int]] = [(1, 0, 0)]
        self._stack_ids: dict[tuple[int, int, int], int] = {}
        self._groups: dict[tuple[int, ...], list[tuple[list[int], tuple[tuple[int, int], ...]]]] = {}
        self._local: dict[int, tuple[list[int], list[tuple[int, int]], bool]] = {}
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
        self._begin()

    def _begin(self) -> None:
        """Make state 0, if anything matches at all."""
        self._intern(self._closure(0))

    def warm_up(self) -> None:
        """Load what is compiled when it is first used: nothing, here."""

    @property
    def has_runs(self) -> bool:
        """`shape` may map states to others."""
        return bool(self._run_starts or self._nfa.bounds)

    @property
    def crowded(self) -> bool:
        """More than half of the room for states is taken; a fresh automaton would serve new users better."""
        used = (len(self._items) / MAX_STATES, self._total_items / MAX_ITEMS, self._work / MAX_WORK)
        return max(used) > 0.5

    @property
    def matches_nothing(self) -> bool:
        return not self._items

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + 40 * self._total_items + 300 * len(self._items) + self._nfa.nbytes

    def _intern_subtrees(self) -> None:
        """Give every subtree a number; `trees` grows while it is walked."""
        for tree in self._nfa.trees:
            for _, _, rest in tree:
                if rest is not None:
                    self._nfa.tree(rest)

    def members(self, state: int) -> Iterator[tuple[int, int, int]]:
        """(stack, tree, place) of each item of a state but the one that says that the text may end."""
        for item in self._items[state]:
            if item >= 0:
                yield item >> _STACK_SHIFT, (item & _TREE_MASK) >> _PLACE_BITS, item & _PLACE_MASK

    def frame(self, stack: int) -> tuple[int, int]:
        """Where the call on top of a stack comes back to, and the stack below it."""
        return self._stacks[stack][:2]

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
        live = self.row(state) >= 0
        return self._only_byte.get(int(live.argmax()), -1) if np.count_nonzero(live) == 1 else -1

    def forced_bytes(self, state: int, limit: int) -> bytes:
        """The text that must follow, byte by byte, up to the first choice or legal end, or the limit."""
        text = bytearray()
        while len(text) < limit and (byte := self.only_byte(state)) >= 0:
            text.append(byte)
            state = self.step(state, byte)
        return bytes(text)

    def expand(self, state: int) -> NDArray[np.int32]:
        """Work out a state's row. ConstraintError when the automaton grows over its limits."""
        with self.lock:
            if self.table[state, 0] != UNKNOWN:
                return self.table[state]
            width = self.table.shape[1]
            items = sorted([i for i in self._items[state] if i >= 0], key=lambda item: item & _TREE_MASK)
            row = self._row_of_one(items[0], width) if len(items) == 1 else self._row_of_many(items, width)
            self.table[state, 1:] = row[1:]
            self.table[state, 0] = row[0]  # last: readers without the lock look here
            return self.table[state]

    def _row_of_one(self, item: int, width: int) -> list[int]:
        row = [DEAD] * width
        rest_of_item = item & ~_TREE_MASK
        for low, high, rest in self._moves[(item & _TREE_MASK) >> _PLACE_BITS]:
            if rest < 0:
                after = self._intern(self._complete(rest_of_item))
            else:
                after = self._state_of_item(rest << _PLACE_BITS | rest_of_item)
            row[low : high + 1] = [after] * (high + 1 - low)
        return row

    def _row_of_many(self, items: list[int], width: int) -> list[int]:
        """Items may be many (a bounded repeat of something long), so work is proportional to their edges."""
        trees = tuple([(item & _TREE_MASK) >> _PLACE_BITS for item in items])
        groups = self._groups.get(trees)
        if groups is None:
            groups = self._grouped(trees, width)
            if len(trees) <= _MEMO_SIZE:
                self._groups[trees] = groups
        known: dict[tuple[int, ...], int] = {}
        row = [DEAD] * width
        for columns, moves in groups:
            key = tuple(
                [
                    ~(items[i] & ~_TREE_MASK) if rest < 0 else items[i] & ~_TREE_MASK | rest << _PLACE_BITS
                    for i, rest in moves
                ]
            )  # ~: the character is complete
            state = known.get(key)
            if state is None:
                state = known[key] = self._state_of(key)
            for column in columns:
                row[column] = state
        return row

    def _grouped(self, trees: tuple[int, ...], width: int) -> list[tuple[list[int], tuple[tuple[int, int], ...]]]:
        """The columns that lead to the same subtrees of these trees: (columns, (which tree, its subtree or -1)…)."""
        reached: list[list[tuple[int, int]]] = [[] for _ in range(width)]
        for i, tree in enumerate(trees):
            for low, high, rest in self._moves[tree]:
                for column in range(low, high + 1):
                    reached[column].append((i, rest))
        found: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for column, moves in enumerate(reached):
            if moves:
                found.setdefault(tuple(moves), []).append(column)
        return [(columns, moves) for moves, columns in found.items()]

    def _state_of(self, key: tuple[int, ...]) -> int:
        """Of items, and (negative) of places with their stacks that were reached."""
        if len(key) == 1:
            (only,) = key
            return self._state_of_item(only) if only >= 0 else self._intern(self._complete(~only))
        complete = [~k for k in key if k < 0]
        if self._nfa.blocks:
            complete = self._unblocked(complete)
        found = self._reach([self._counted(at) for at in complete] if self._nfa.bounds else complete)
        found.update([k for k in key if k >= 0])
        return self._intern(frozenset(found))

    def _complete(self, key: int) -> Items:
        """What follows a character that led to this place (with its stack)."""
        if self._nfa.bounds:
            key = self._counted(key)
        return self._closure(key & _PLACE_MASK, key >> _STACK_SHIFT)

    def _counted(self, key: int) -> int:
        """One character more for the stack on top, if its rule is one that counts."""
        if key & _PLACE_MASK not in self._nfa.bounds:
            return key
        back, below, count = self._stacks[key >> _STACK_SHIFT]
        if count == _FREE:
            return key
        return self._stack(back, below, count + 1) << _STACK_SHIFT | (key & _PLACE_MASK)

    def _unblocked(self, complete: list[int]) -> list[int]:
        blocks = self._nfa.blocks
        blocked = {at - (at & _PLACE_MASK) + blocks[at & _PLACE_MASK] for at in complete if at & _PLACE_MASK in blocks}
        return [at for at in complete if at not in blocked] if blocked else complete

    def _state_of_item(self, item: int) -> int:
        state = self._singles.get(item)
        if state is None:
            state = self._singles[item] = self._intern(frozenset((item,)))
        return state

    def _closure(self, place: int, stack: int = 0) -> Items:
        """The items that the empty moves, calls and returns from `place` lead to."""
        key = stack << _STACK_SHIFT | place
        known = self._closures.get(key)
        if known is not None:
            return known
        closure = frozenset(self._reach([key]))
        if len(closure) <= _MEMO_SIZE:
            self._closures[key] = closure
        return closure

    def _reach(self, places: list[int]) -> set[int]:
        """The items that empty moves lead to from any of these places (each with its stack): one search."""
        items = set[int]()
        todo = []
        for key in places:
            if (known := self._closures.get(key)) is not None:
                items |= known
            else:
                todo.append(key)
        if not todo:
            return items
        seen = set(todo)
        work, pushes = len(todo), 0
        while todo:
            at = todo.pop()
            stack = at >> _STACK_SHIFT
            if not stack and not self._nfa.calls and len(places) > 1:
                work += self._search(at & _PLACE_MASK, seen, items)
                continue
            found, calls, ends = self._local_closure(at & _PLACE_MASK)
            work += 1 + len(found)
            above = stack << _STACK_SHIFT
            if self._nfa.bounds and (bound := self._nfa.bounds.get(at & _PLACE_MASK)) is not None:
                left = bound.high - self._stacks[stack][2] - 1
                found = [item for item in found if bound.to_end[item & _PLACE_MASK] <= left]
            items.update([item | above for item in found] if stack else found)
            following = [self._push(start, back, stack) << _STACK_SHIFT | start for start, back in calls]
            if ends:
                back, below, _ = self._stacks[stack]
                if stack:
                    following.append(below << _STACK_SHIFT | back)
                else:
                    items.add(_ACCEPT)
            pushes += len(calls)
            for key in following:
                if key not in seen:
                    seen.add(key)
                    todo.append(key)
            if pushes > MAX_PUSHES:
                self._refuse()
        self._work += work
        if self._work > MAX_WORK:
            self._refuse()
        return items

    def _search(self, place: int, seen: set[int], items: set[int]) -> int:
        """As `_local_closure`, of an automaton without calls; the places in `seen` were there before."""
        nfa, todo, before = self._nfa, [place], len(seen)
        while todo:
            at = todo.pop()
            if at == 1:
                items.add(_ACCEPT)
            items.update([tree << _PLACE_BITS | target for tree, target in nfa.edges[at]])
            for to in nfa.empty[at]:
                if to not in seen:
                    seen.add(to)
                    todo.append(to)
        return len(seen) - before + 1

    def _local_closure(self, place: int) -> tuple[list[int], list[tuple[int, int]], bool]:
        """What the empty moves within a rule lead to: items, calls, and whether the end of the rule."""
        known = self._local.get(place)
        if known is not None:
            return known
        nfa, todo, seen = self._nfa, [place], {place}
        items: set[int] = set()
        calls: dict[tuple[int, int], None] = {}
        ends = False
        while todo:
            at = todo.pop()
            ends = ends or at == 1 or at in nfa.ends
            items.update([tree << _PLACE_BITS | target for tree, target in nfa.edges[at]])
            calls.update(dict.fromkeys(nfa.calls.get(at, ())))
            for to in nfa.empty[at]:
                if to not in seen:
                    seen.add(to)
                    todo.append(to)
        self._work += len(seen)
        if self._work > MAX_WORK:
            self._refuse()
        result = (list(items), list(calls), ends)
        if len(items) <= _MEMO_SIZE:
            self._local[place] = result
        return result

    def _push(self, start: int, back: int, stack: int) -> int:
        """The stack of a call that comes back to `back`; the caller's own where nothing is left to do there."""
        if stack and start not in self._nfa.bounds:
            items, calls, ends = self._local_closure(back)
            if ends and not items and not calls and back not in self._nfa.bounds:
                return stack
        return self._stack(back, stack, 0)

    def _stack(self, *frame: int) -> int:
        found = self._stack_ids.get(frame)  # type: ignore[arg-type]
        if found is None:
            found = self._stack_ids[frame] = len(self._stacks)  # type: ignore[index]
            self._stacks.append(frame)  # type: ignore[arg-type]
        return found

    def covered(self, state: int) -> int:
        """Which classes of `slices` have all their characters allowed next: bit i for class i."""
        found = 0
        for item in self._items[state]:
            if item >= 0:
                found |= self._covers[(item & _TREE_MASK) >> _PLACE_BITS]
        return found

    def room(self, state: int, number: int) -> tuple[int, bool]:
        """How many characters of class `number`, whichever, may follow (LONGEST: that many or more); and whether text
        of more characters of the class is certainly not allowed."""
        known = self._rooms.get((state, number))
        if known is None:
            with self.lock:
                known = self._rooms[state, number] = self._room(self._items[state], 1 << number)
        return known

    def _room(self, items: Items, bit: int) -> tuple[int, bool]:
        if self._nfa.bounds and len(items) == 2 and (left := self._left_of_any(items)):
            return min(left, LONGEST), True
        seen: set[Items] = set()
        clean = True
        for n in range(LONGEST):
            inside = []
            for item in items:
                tree = (item & _TREE_MASK) >> _PLACE_BITS
                if item < 0:
                    continue
                if self._covers[tree] & bit:
                    inside.append((item >> _STACK_SHIFT << _STACK_SHIFT) | (item & _PLACE_MASK))
                elif self._touches[tree] & bit:
                    clean = False
            if not inside:
                return n, clean
            items = self._items[self._state_of(tuple([~at for at in inside]))]
            if items in seen:  # a loop
                break
            seen.add(items)
        return LONGEST, False

    def _left_of_any(self, items: Items) -> int:
        """For a state of counted free text, any character or the end of it: how many characters are left. Else 0."""
        for item in items:
            place, tree = item & _PLACE_MASK, (item & _TREE_MASK) >> _PLACE_BITS
            bound = self._nfa.bounds.get(place) if item >= 0 else None
            if bound is not None and bound.any_text and tree < len(self._covers) and self._covers[tree]:
                others = [(other & _TREE_MASK) >> _PLACE_BITS for other in items if other != item]
                if not any(self._touches[other] for other in others):
                    return bound.high - self._stacks[item >> _STACK_SHIFT][2]
        return 0

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
        if not self.has_runs:
            return state
        items = self._items[state]
        with self.lock:  # moving back may make stacks
            moved = frozenset(self._moved_back(item, horizon) for item in items)
            return state if moved == items else self._intern(moved)

    def _moved_back(self, item: int, horizon: int) -> int:
        place = item & _PLACE_MASK
        if item >= 0 and (bound := self._nfa.bounds.get(place)) is not None:
            back, below, count = self._stacks[item >> _STACK_SHIFT]
            if count != _FREE and count + horizon + bound.longest <= bound.high:
                return self._stack(back, below, _FREE) << _STACK_SHIFT | item & ((1 << _STACK_SHIFT) - 1)
            return item
        run = self._run_of(item)
        if run is None:
            return item
        copy, offset = divmod(place - run.first, run.stride)
        copies = (run.stop - run.first) // run.stride
        return item - place + run.first + offset if copies - copy > horizon + 1 else item

    def _intern(self, items: Items) -> int:
        """The state of these items; DEAD if there are none (what was reached is blocked)."""
        if not items:
            return DEAD
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
