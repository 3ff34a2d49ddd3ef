"""The automaton of `automaton.py` with its states made by compiled code. Import only where numba is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar import determinise as d
from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.limits import MAX_ITEMS, MAX_PUSHES, MAX_STATES, MAX_WORK
from stemma.backend.grammar.slices import CLASSES, LONGEST, touches

LONGEST_TOKEN = d.INFINITE - 1  # characters of tokens that are in classes
_FIRST_STATES = 1024
_FIRST_ITEMS = 4096
_GROWTH = 4  # copying takes time in the middle of a mask


class _Flags:
    """Reads uint8[n] as bools. The array may be replaced by a larger one at any time."""

    __slots__ = ("array",)

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array

    def __getitem__(self, index: int) -> bool:
        return bool(self.array[index])


class CompiledDfa(Dfa):
    """The same automaton. Its limits on work are of compiled steps, and its states are numbered as it meets them."""

    accepting: Any

    def _begin(self) -> None:
        self.net = self._net({})
        if loops := self._loops_of_many():
            self.net = self._net(loops)
        states, stacks = _FIRST_STATES, 256
        width = self.table.shape[1]
        self.made = d.Made(
            np.empty((states, width), np.int32),
            np.zeros(states + 1, np.int64),
            np.empty(_FIRST_ITEMS, np.int64),
            np.empty(states, np.int64),
            np.zeros(2 * states, np.int32),
            np.zeros(states, np.uint8),
            np.empty((states, len(CLASSES)), np.int32),
            np.zeros((stacks, 3), np.int64),
            np.zeros(2 * stacks, np.int32),
        )
        numbers = np.zeros(d.NUMBERS, np.int64)
        numbers[d.MAX_STATES], numbers[d.MAX_ITEMS] = MAX_STATES, MAX_ITEMS
        numbers[d.MAX_EFFORT], numbers[d.MAX_PUSHES] = MAX_WORK, MAX_PUSHES
        numbers[d.CONTROLS] = any(low < 0x20 for tree in self._nfa.trees for low, _, _ in tree)
        self.work = _scratch(numbers, 256, width)
        self.accepting = _Flags(self.made.accepting)
        self.table = self.made.table
        d.stack_of(self.made, self.work, 1, 0, 0)
        self._made_state(lambda: d.start_state(self.net, self.made, self.work))

    @property
    def crowded(self) -> bool:
        n = self.work.numbers
        return max(n[d.STATES] / MAX_STATES, n[d.ITEMS] / MAX_ITEMS, n[d.EFFORT] / MAX_WORK) > 0.5

    @property
    def matches_nothing(self) -> bool:
        return self.work.numbers[d.STATES] == 0

    @property
    def nbytes(self) -> int:
        """What is in use; the rest of the arrays has no memory yet."""
        n, made = self.work.numbers, self.made
        of_states = made.table.shape[1] * 4 + 4 * len(CLASSES) + 8 + 8 + 1 + 8
        held = of_states * int(n[d.STATES]) + 8 * int(n[d.ITEMS]) + 40 * int(n[d.STACKS])
        return held + sum(array.nbytes for array in chain(self.net, self.work)) + self._nfa.nbytes

    def items_of(self, state: int) -> NDArray[np.int64]:
        return self.made.items[self.made.start[state] : self.made.start[state + 1]]

    def expand(self, state: int) -> NDArray[np.int32]:
        with self.lock:
            while status := d.expand(self.net, self.made, self.work, state):
                self.grow(status)
            return self.table[state]

    def shape(self, state: int, horizon: int) -> int:
        if not self.has_runs:
            return state
        with self.lock:
            return self._made_state(lambda: d.shaped(self.net, self.made, self.work, state, horizon))

    def forced_bytes(self, state: int, limit: int) -> bytes:
        text = np.empty(limit, np.uint8)
        with self.lock:
            while True:
                n, status = d.forced(self.net, self.made, self.work, state, text)
                if not status:
                    return text[:n].tobytes()
                self.grow(status)

    def covered(self, state: int) -> int:
        return sum(1 << number for number in range(len(CLASSES)) if self.room(state, number)[0])

    def room(self, state: int, number: int) -> tuple[int, bool]:
        with self.lock:
            found = int(d.room(self.net, self.made, state, number))
        if found & d.INSIDE:
            return 0, False
        sure = found & d.SURE
        return min(sure, LONGEST), sure == found >> d.MOST and sure <= LONGEST

    def grow(self, status: int) -> None:
        """Make room for what a compiled step has asked for. ConstraintError where there must not be more."""
        if status == d.REFUSED:
            self._refuse()
        made, work = self.made, self.work
        if status == d.MORE_STATES:
            n = _GROWTH * len(made.table)
            self.made = made = made._replace(
                table=_longer(made.table, n),
                start=_longer(made.start, n + 1),
                hashes=_longer(made.hashes, n),
                accepting=_longer(made.accepting, n),
                rooms=_longer(made.rooms, n),
                slots=np.zeros(2 * n, np.int32),
            )
            d.fill_slots(made.slots, made.hashes, work.numbers[d.STATES])
            self.accepting.array = made.accepting
            self.table = made.table
        elif status == d.MORE_ITEMS:
            self.made = made._replace(items=_longer(made.items, _GROWTH * len(made.items)))
        elif status == d.MORE_STACKS:
            n = _GROWTH * len(made.stacks)
            if n > 1 << d.STACK_BITS:
                self._refuse()
            self.made = made._replace(stacks=_longer(made.stacks, n), stack_slots=np.zeros(2 * n, np.int32))
            held = int(work.numbers[d.STACKS])
            work.numbers[d.STACKS] = 0
            for stack in made.stacks[:held].tolist():
                d.stack_of(self.made, work, *stack)
        else:
            self.work = _scratch(work.numbers, _GROWTH * len(work.todo), made.table.shape[1])

    def _made_state(self, make: Callable[[], int]) -> int:
        while (state := int(make())) < DEAD:
            self.grow(-2 - state)
        return state

    def _loops_of_many(self) -> dict[int, int]:
        """Places where any characters of some classes may follow without end, but by several edges for each class: bits
        of the classes. What is left when all that leads elsewhere has been struck out, again and again."""
        nfa, net = self._nfa, self.net
        found: dict[int, int] = {}
        for place, edges in enumerate(nfa.edges):
            if len(edges) > 1 and net.bound[place] < 0:
                trees = frozenset([tree for tree, _ in edges])
                if many := nfa.covered_together(trees):
                    found[place] = many
        changed = True
        while changed:
            changed = False
            for place, bits in list(found.items()):
                left = bits
                for tree, target in nfa.edges[place]:
                    touched = int(net.touches[tree]) & left
                    if touched:
                        left &= ~touched | self._endless(target, found)
                if left != bits:
                    changed = True
                    if left:
                        found[place] = left
                    else:
                        del found[place]
        return found

    def _endless(self, place: int, found: dict[int, int]) -> int:
        todo, seen, bits = [place], {place}, 0
        while todo:
            at = todo.pop()
            bits |= found.get(at, 0)
            bits |= sum(1 << c for c, sure in enumerate(self.net.sure[at].tolist()) if sure == d.INFINITE)
            new = [to for to in self._nfa.empty[at] if to not in seen]
            seen.update(new)
            todo += new
        return bits

    def _net(self, loops: dict[int, int]) -> d.Net:
        """`loops`: what `_loops_of_many` has found. Each such place has an edge without moves, whose tree says so."""
        nfa = self._nfa
        places, trees = len(nfa.edges), len(nfa.trees)
        edges, kinds = nfa.edges, sorted(set(loops.values()))
        if loops:
            edges = [[*row, (trees + kinds.index(loops[p]), p)] if p in loops else row for p, row in enumerate(edges)]
        calls = [nfa.calls.get(place, ()) for place in range(places)] if nfa.calls else [()] * places
        bounds = list({id(bound): bound for bound in nfa.bounds.values()}.values())
        number = {id(bound): i for i, bound in enumerate(bounds)}
        bound = np.full(places, -1, np.int32)
        to_end = np.zeros(places, np.int32)
        for place, of in nfa.bounds.items():
            bound[place], to_end[place] = number[id(of)], of.to_end[place]
        blocks = np.full(places if nfa.blocks else 0, -1, np.int32)
        barred = np.zeros(places, np.uint8)
        for block, blocked in nfa.blocks.items():
            blocks[block] = blocked
            barred[blocked] = 1
        single = np.full(self.table.shape[1], -1, np.int16)
        for column, byte in self._only_byte.items():
            single[column] = byte
        is_end = np.zeros(places, np.uint8)
        is_end[[1, *nfa.ends]] = 1
        net = d.Net(
            *_rows(edges, 2),
            *_rows(nfa.empty, 0),
            *_rows(calls, 2),
            is_end,
            np.zeros(places, np.uint8),
            blocks,
            bound,
            to_end,
            np.array([(b.high, b.longest) for b in bounds], np.int32).reshape(-1, 2),
            *_rows([*self._moves, *[()] * len(kinds)], 3),
            np.array([tuple(run) for run in nfa.runs], np.int64).reshape(-1, 4),
            single,
            np.array([*self._covers, *[0] * (trees - len(self._covers)), *kinds], np.int32),
            np.array([*self._touches, *[0] * (trees + len(kinds) - len(self._touches))], np.int32),
            np.array([*map(_deep, nfa.trees), *[0] * len(kinds)], np.int32),
            np.array([*map(_kind, nfa.trees), *[0] * len(kinds)], np.uint8),
            *(np.zeros((places, len(CLASSES)), np.uint8) for _ in range(2)),
            np.zeros((len(bounds), len(CLASSES)), np.uint8),
            np.full((places, len(CLASSES)), -1, np.int32),
        )
        d.find_back_ends(net, np.zeros(places, np.int32), np.zeros(places, np.int32))
        end_of = {start: end for start, end in nfa.rule_spans}
        returns = {(end_of[start], back) for row in nfa.calls.values() for start, back in row}
        d.static_rooms(net, np.array(sorted(returns), np.int32).reshape(-1, 2), barred)
        return net


def fits(dfa_places: int, trees: int) -> bool:
    """Whether an automaton of this size fits the compiled items."""
    return dfa_places < 1 << d.PLACE_BITS and trees < 1 << d.TREE_BITS


def _rows(rows: Sequence[Any], width: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(where each row begins, all entries one behind the other); entries are tuples of `width` numbers, 0: numbers."""
    first = np.fromiter(chain((0,), accumulate(map(len, rows))), np.int32, len(rows) + 1)
    if not width:
        return first, np.fromiter(chain.from_iterable(rows), np.int32, int(first[-1]))
    flat = chain.from_iterable(chain.from_iterable(rows))
    return first, np.fromiter(flat, np.int32, width * int(first[-1])).reshape(-1, width)


def _kind(tree: Any) -> int:
    if not all(0x80 <= low and high <= 0xBF for low, high, _ in tree):
        return 0
    full = len(tree) == 1 and tree[0][:2] == (0x80, 0xBF) and (tree[0][2] is None or _kind(tree[0][2]) & d.FULL)
    return d.CONTINUES | (d.FULL if full else 0)


def _deep(tree: Any) -> int:
    return touches([(low, min(high, 0x7F)) for low, high, rest in tree if rest is not None and low < 0x80])


def _longer(array: NDArray, length: int) -> NDArray:
    grown = np.empty((length, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


def _scratch(numbers: NDArray[np.int64], size: int, width: int) -> d.Work:
    return d.Work(
        numbers,
        np.zeros(size, np.int64),
        np.zeros(2 * size, np.int64),
        np.zeros(4 * size, np.int64),
        np.zeros(4 * size, np.int64),
        np.zeros(8 * size, np.int64),
        np.zeros((width + 1, 4), np.int64),
    )
