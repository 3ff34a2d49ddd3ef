"""The automaton of `automaton.py` with its states made by compiled code. Import only where numba is installed."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar import arrays, determinise, rooms
from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.limits import MAX_ITEMS, MAX_PUSHES, MAX_STATES, MAX_WORK
from stemma.backend.grammar.slices import CLASSES, LONGEST, touches
from stemma.lang.errors import ConstraintError

LONGEST_TOKEN = rooms.INFINITE - 1  # characters of tokens that are in classes
_FIRST_STATES = 1024
_FIRST_ITEMS = 4096
_FIRST_STACKS = 256
_FIRST_SCRATCH = 1024  # above the number of columns
_GROWTH = 4  # copying takes time in the middle of a mask


class _Flags:
    """Which states accept. The array may be replaced by a larger one at any time."""

    __slots__ = ("states",)

    def __init__(self, states: NDArray[np.int64]) -> None:
        self.states = states

    def __getitem__(self, index: int) -> bool:
        return bool(self.states[index, arrays.ACCEPTING])


class CompiledDfa(Dfa):
    """The same automaton. Its limits on work are of compiled steps, and its states are numbered as it meets them."""

    accepting: Any

    def _begin(self) -> None:
        width = self.table.shape[1]
        numbers = np.zeros(arrays.NUMBERS, np.int64)
        numbers[arrays.MAX_STATES], numbers[arrays.MAX_ITEMS] = MAX_STATES, MAX_ITEMS
        numbers[arrays.MAX_EFFORT], numbers[arrays.MAX_PUSHES] = MAX_WORK, MAX_PUSHES
        numbers[arrays.CONTROLS] = any(low < 0x20 for tree in self._nfa.trees for low, _, _ in tree)
        net = self._net({})
        if loops := self._loops_of_many(net):
            net = self._net(loops)
        self.arrays = arrays.Arrays(
            net,
            np.empty((_FIRST_STATES, width), np.int32),
            np.empty((_FIRST_STATES, arrays.STATE_WIDTH), np.int64),
            np.empty(_FIRST_ITEMS, np.int64),
            np.zeros(2 * _FIRST_STATES, np.int32),
            np.empty((_FIRST_STACKS, 3), np.int64),
            np.zeros(2 * _FIRST_STACKS, np.int32),
            numbers,
            np.zeros((arrays.SCRATCH, _FIRST_SCRATCH), np.int64),
        )
        self.accepting = _Flags(self.arrays.states)
        self.table = self.arrays.table
        self._made_state(determinise.start_state)

    @property
    def crowded(self) -> bool:
        n = self.arrays.numbers
        return max(n[arrays.STATES] / MAX_STATES, n[arrays.ITEMS] / MAX_ITEMS, n[arrays.EFFORT] / MAX_WORK) > 0.5

    @property
    def matches_nothing(self) -> bool:
        return self.arrays.numbers[arrays.STATES] == 0

    @property
    def nbytes(self) -> int:
        """What is in use; the rest of the arrays has no memory yet."""
        a = self.arrays
        used = (a.numbers[arrays.STATES], a.numbers[arrays.ITEMS], a.numbers[arrays.STACKS])
        held = int(np.dot(used, (4 * a.table.shape[1] + 8 * arrays.STATE_WIDTH, 8, 24)))
        return held + sum(array.nbytes for array in (a.net, a.slots, a.stack_slots, a.scratch)) + self._nfa.nbytes

    def items_of(self, state: int) -> NDArray[np.int64]:
        states = self.arrays.states
        return self.arrays.items[states[state, arrays.START] : states[state, arrays.STOP]]

    def members(self, state: int) -> Iterator[tuple[int, int, int]]:
        for item in self.items_of(state).tolist():
            if item >= 0:
                tree = (item & arrays.TREE_MASK) >> arrays.PLACE_BITS
                yield item >> arrays.STACK_SHIFT, tree, item & arrays.PLACE_MASK

    def frame(self, stack: int) -> tuple[int, int]:
        back, below, _ = self.arrays.stacks[stack].tolist()
        return back, below

    def expand(self, state: int) -> NDArray[np.int32]:
        with self.lock:
            while status := determinise.expand(self.arrays, state):
                self.grow(status)
            return self.table[state]

    def shape(self, state: int, horizon: int) -> int:
        if not self.has_runs:
            return state
        with self.lock:
            return self._made_state(determinise.shaped, state, horizon)

    def forced_bytes(self, state: int, limit: int) -> bytes:
        text = np.empty(limit, np.uint8)
        with self.lock:
            while True:
                n, status = determinise.forced(self.arrays, state, text)
                if not status:
                    return text[:n].tobytes()
                self.grow(status)

    def covered(self, state: int) -> int:
        return sum(1 << number for number in range(len(CLASSES)) if self.room(state, number)[0])

    def room(self, state: int, number: int) -> tuple[int, bool]:
        with self.lock:
            found = int(rooms.room(self.arrays, state, number))
        if found & rooms.INSIDE:
            return 0, False
        sure = found & rooms.SURE
        return min(sure, LONGEST), sure == found >> rooms.MOST and sure <= LONGEST

    def grow(self, status: int) -> None:
        """Make room for what a compiled step has asked for. ConstraintError where there must not be more."""
        if status == arrays.REFUSED:
            self._refuse()
        a = self.arrays
        if status == arrays.MORE_STATES:
            n = 1 << MAX_STATES.bit_length()  # for all that there may be: memory is taken as they come
            states, slots = _longer(a.states, n), np.zeros(2 * n, np.int32)
            determinise.fill_slots(slots, states, a.numbers[arrays.STATES])
            self.arrays = a._replace(table=_longer(a.table, n), states=states, slots=slots)
            self.accepting.states = states
            self.table = self.arrays.table
        elif status == arrays.MORE_ITEMS:
            self.arrays = a._replace(items=_longer(a.items, _GROWTH * len(a.items)))
        elif status == arrays.MORE_STACKS:
            n = _GROWTH * len(a.stacks)
            if n > 1 << arrays.STACK_BITS:
                self._refuse()
            stacks, slots = _longer(a.stacks, n), np.zeros(2 * n, np.int32)
            determinise.fill_stack_slots(slots, stacks, a.numbers[arrays.STACKS])
            self.arrays = a._replace(stacks=stacks, stack_slots=slots)
        else:
            self.arrays = a._replace(scratch=np.zeros((arrays.SCRATCH, _GROWTH * a.scratch.shape[1]), np.int64))

    def warm_up(self) -> None:
        """Load what is only needed as the automaton grows."""
        for status in (arrays.MORE_STATES, arrays.MORE_ITEMS, arrays.MORE_STACKS, arrays.MORE_SCRATCH):
            self.grow(status)

    def _made_state(self, make: Callable[..., int], *what: int) -> int:
        while (state := int(make(self.arrays, *what))) < DEAD:
            self.grow(-2 - state)
        return state

    def _loops_of_many(self, net: NDArray[np.int32]) -> dict[int, int]:
        """Places where any characters of some classes may follow without end, but by several edges for each class: bits
        of the classes. What is left when all that leads elsewhere has been struck out, again and again."""
        nfa = self._nfa
        found: dict[int, int] = {}
        for place, edges in enumerate(nfa.edges):
            if len(edges) > 1 and place not in nfa.bounds:
                trees = frozenset([tree for tree, _ in edges])
                if many := nfa.covered_together(trees):
                    found[place] = many
        if not found:
            return found
        touches = net[net[arrays.TOUCHES] : net[arrays.DEEP]].tolist()
        sure = net[net[arrays.SURELY] : net[arrays.ONWARD]].reshape(-1, len(CLASSES))
        barred = set(nfa.blocks.values())
        endless = ((sure == rooms.INFINITE) << np.arange(len(CLASSES))).sum(axis=1).tolist()
        changed = True
        while changed:
            changed = False
            for place, bits in list(found.items()):
                left = bits
                for tree, target in nfa.edges[place]:
                    touched = touches[tree] & left
                    if touched:
                        left &= ~touched | (0 if target in barred else self._endless(target, found, endless))
                if left != bits:
                    changed = True
                    if left:
                        found[place] = left
                    else:
                        del found[place]
        return found

    def _endless(self, place: int, found: dict[int, int], endless: list[int]) -> int:
        todo, seen, bits = [place], {place}, 0
        while todo:
            at = todo.pop()
            bits |= found.get(at, 0) | endless[at]
            new = [to for to in self._nfa.empty[at] if to not in seen]
            seen.update(new)
            todo += new
        return bits

    def _net(self, loops: dict[int, int]) -> NDArray[np.int32]:
        """`loops`: what `_loops_of_many` has found. Each such place has an edge without moves, whose tree says so."""
        nfa = self._nfa
        places, trees = len(nfa.edges), len(nfa.trees)
        if places > arrays.PLACE_MASK or trees >= arrays.TREE_MASK >> arrays.PLACE_BITS:
            raise ConstraintError(f"the constraint needs {places} places and {trees} sets of characters: too many")
        edges, kinds = nfa.edges, sorted(set(loops.values()))
        if loops:
            edges = [[*row, (trees + kinds.index(loops[p]), p)] if p in loops else row for p, row in enumerate(edges)]
        calls = [nfa.calls.get(place, ()) for place in range(places)] if nfa.calls else [()] * places
        bounds = list({id(bound): bound for bound in nfa.bounds.values()}.values())
        number = {id(bound): i for i, bound in enumerate(bounds)}
        blocks, bound = np.full(places, -1, np.int32), np.full(places, -1, np.int32)
        to_end, is_end, barred = (np.zeros(places, np.int32) for _ in range(3))
        for place, of in nfa.bounds.items():
            bound[place], to_end[place] = number[id(of)], of.to_end[place]
        for block, blocked in nfa.blocks.items():
            blocks[block] = blocked
            barred[blocked] = 1
        is_end[[1, *nfa.ends]] = 1
        single = np.full(self.table.shape[1], -1, np.int32)
        for column, byte in self._only_byte.items():
            single[column] = byte
        extra = [0] * len(kinds)
        per_place, per_bound = places * len(CLASSES), len(bounds) * len(CLASSES)
        parts = [
            *_rows(edges, 2),
            *_rows(nfa.empty, 0),
            *_rows(calls, 2),
            *_rows([*self._moves, *[()] * len(kinds)], 3),
            is_end,
            np.zeros(places, np.int32),
            blocks,
            bound,
            to_end,
            [n for b in bounds for n in (b.high, b.longest)],
            [n for run in nfa.runs for n in run],
            single,
            [*self._covers, *[0] * (trees - len(self._covers)), *kinds],
            [*self._touches, *[0] * (trees - len(self._touches)), *extra],
            [*map(_deep, nfa.trees), *extra],
            [*map(_kind, nfa.trees), *extra],
            np.zeros(per_place, np.int32),
            np.full(per_place, -1, np.int32),
            np.zeros(per_place, np.int32),
            np.zeros(per_bound, np.int32),
        ]
        assert len(parts) == arrays.PARTS
        total = sum(len(row) for row in nfa.calls.values())
        header = np.array([*accumulate(map(len, parts), initial=arrays.PARTS + 4)], np.int32)
        rest = np.array([places, total, len(nfa.runs), bool(nfa.blocks)], np.int32)
        net = np.concatenate([header[:-1], rest, *(np.asarray(part, np.int32) for part in parts)])
        rooms.find_back_ends(net, np.zeros(places, np.int32), np.zeros(places, np.int32))
        end_of = dict(nfa.rule_spans)
        returns = {(end_of[start], back) for row in nfa.calls.values() for start, back in row}
        rooms.static_rooms(net, np.array(sorted(returns), np.int32).reshape(-1, 2), barred)
        return net


def _rows(rows: Sequence[Any], width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(where each row begins, all entries one behind the other); entries are tuples of `width` numbers, 0: numbers."""
    first = np.fromiter(chain((0,), accumulate(map(len, rows))), np.int32, len(rows) + 1)
    if not width:
        return first, np.fromiter(chain.from_iterable(rows), np.int32, int(first[-1]))
    flat = chain.from_iterable(chain.from_iterable(rows))
    return first, np.fromiter(flat, np.int32, width * int(first[-1]))


def _kind(tree: Any) -> int:
    if not all(low >= 0x80 and high <= 0xBF for low, high, _ in tree):
        return 0
    full = len(tree) == 1 and tree[0][:2] == (0x80, 0xBF) and (tree[0][2] is None or _kind(tree[0][2]) & arrays.FULL)
    return arrays.CONTINUES | (arrays.FULL if full else 0)


def _deep(tree: Any) -> int:
    return touches([(low, min(high, 0x7F)) for low, high, rest in tree if rest is not None and low < 0x80])


def _longer(array: NDArray, length: int) -> NDArray:
    """With room for `length` rows. Large arrays get pages of memory as they are used, small ones: there is no moment in
    which much has to be cleared."""
    shape, size = (length, *array.shape[1:]), length * array.nbytes // len(array)
    if size < 1 << 20:
        grown = np.empty(shape, array.dtype)
    else:
        memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        grown = np.frombuffer(memory, array.dtype).reshape(shape)
    grown[: len(array)] = array
    return grown
