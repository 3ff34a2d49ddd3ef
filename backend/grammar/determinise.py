"""Subset construction and the token walk, compiled by numba. Import only where numba is installed.

The same states as `automaton.Dfa` makes, over flat arrays, so that a walk that meets new states never goes back to
Python. Every function that may need room returns a status: DONE, or what has to grow before it is called again (what it
has made until then stays valid), or REFUSED when the automaton is over its limits.

An item is `stack << STACK_SHIFT | tree << PLACE_BITS | place` (see `automaton`); a place that a character has led to is
`~(stack << STACK_SHIFT | place)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.arrays import (
    ACCEPT,
    ACCEPTING,
    BACK_IS_END,
    BLOCKED,
    BLOCKS,
    BOUND,
    CALL,
    CLASS_COUNT,
    DEAD,
    DONE,
    EDGE,
    EFFORT,
    EMPTY,
    FIRST_CALL,
    FIRST_EDGE,
    FIRST_EMPTY,
    FIRST_MOVE,
    FOUND,
    FREE,
    HASH,
    IS_END,
    ITEMS,
    KEYS,
    LIMITS,
    LOW_MASK,
    MARK,
    MARKED,
    MARKS,
    MAX_EFFORT,
    MAX_ITEMS,
    MAX_PUSHES,
    MAX_STATES,
    MORE_ITEMS,
    MORE_SCRATCH,
    MORE_STACKS,
    MORE_STATES,
    MOVE,
    PLACE_BITS,
    PLACE_MASK,
    REFUSED,
    ROOM,
    RUN,
    RUNS,
    SINGLE,
    STACK_SHIFT,
    STACKS,
    STAMP,
    START,
    STATES,
    STOP,
    TO_END,
    TODO,
    TREE_MASK,
    UNKNOWN,
    WITHOUT_COVERED,
    Arrays,
    compiled,
    inlined,
)


@inlined
def _mixed(value: int) -> Any:
    value = (value ^ (value >> 31)) * 0x7FB5D329728EA185
    value = (value ^ (value >> 27)) * 0x1B03738712FAD5C9
    return value ^ (value >> 32)


@inlined
def _mark(dfa: Arrays, key: int) -> Any:
    """Whether the key was not marked before."""
    mask, mark = dfa.scratch.shape[1] - 1, dfa.numbers[MARK]
    at = _mixed(key) & mask
    while dfa.scratch[STAMP, at] == mark:
        if dfa.scratch[MARKED, at] == key:
            return False
        at = (at + 1) & mask
    dfa.scratch[STAMP, at], dfa.scratch[MARKED, at] = mark, key
    return True


@inlined
def _sort(of: NDArray[np.int64], n: int) -> None:
    gap = 1
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            value, j = of[i], i
            while j >= gap and of[j - gap] > value:
                of[j] = of[j - gap]
                j -= gap
            of[j] = value
        gap //= 3


@inlined
def stack_of(dfa: Arrays, back: int, below: int, count: int) -> Any:
    """The number of a stack, new if need be; -1: no room."""
    mask = len(dfa.stack_slots) - 1
    at = _mixed(_mixed(_mixed(back) + below) + count) & mask
    while dfa.stack_slots[at]:
        i = dfa.stack_slots[at] - 1
        if dfa.stacks[i, 0] == back and dfa.stacks[i, 1] == below and dfa.stacks[i, 2] == count:
            return i
        at = (at + 1) & mask
    i = dfa.numbers[STACKS]
    if i >= len(dfa.stacks):
        return -1
    dfa.stacks[i, 0], dfa.stacks[i, 1], dfa.stacks[i, 2] = back, below, count
    dfa.stack_slots[at] = i + 1
    dfa.numbers[STACKS] = i + 1
    return i


@inlined
def _closed(dfa: Arrays, n: int, found: int) -> Any:
    """Follow the empty moves, calls and returns from `todo[:n]` (stack and place); the items go behind `found[:found]`.

    Returns how many items there are then, or minus a status.
    """
    todo, net, numbers, most = dfa.scratch[TODO], dfa.net, dfa.numbers, dfa.scratch.shape[1] >> 1
    numbers[MARK] += 1
    kept = 0
    for i in range(n):
        if _mark(dfa, todo[i]):
            todo[kept] = todo[i]
            kept += 1
    top = visited = kept
    pushes = 0
    while top:
        top -= 1
        at = todo[top]
        stack, place = at >> STACK_SHIFT, at & PLACE_MASK
        above = stack << STACK_SHIFT
        left = 0x7FFFFFFF
        if net[net[BOUND] + place] >= 0:
            left = net[net[LIMITS] + 2 * net[net[BOUND] + place]] - dfa.stacks[stack, 2] - 1
        a, b = net[net[FIRST_EDGE] + place], net[net[FIRST_EDGE] + place + 1]
        if found + b - a + 1 > dfa.scratch.shape[1]:
            return -MORE_SCRATCH
        for e in range(a, b):
            target = net[net[EDGE] + 2 * e + 1]
            if left == 0x7FFFFFFF or net[net[TO_END] + target] <= left:
                dfa.scratch[FOUND, found] = above | np.int64(net[net[EDGE] + 2 * e]) << PLACE_BITS | target
                found += 1
        a, b = net[net[FIRST_EMPTY] + place], net[net[FIRST_EMPTY] + place + 1]
        c, d = net[net[FIRST_CALL] + place], net[net[FIRST_CALL] + place + 1]
        if visited + (b - a) + (d - c) + 1 > most:
            return -MORE_SCRATCH
        for e in range(a, b):
            key = above | net[net[EMPTY] + e]
            if _mark(dfa, key):
                todo[top] = key
                top += 1
                visited += 1
        for e in range(c, d):
            to, back = net[net[CALL] + 2 * e], net[net[CALL] + 2 * e + 1]
            pushed = stack
            if (
                not stack
                or net[net[BOUND] + to] >= 0
                or net[net[BOUND] + back] >= 0
                or not net[net[BACK_IS_END] + back]
            ):
                pushed = stack_of(dfa, back, stack, 0)
                if pushed < 0:
                    return -MORE_STACKS
            key = pushed << STACK_SHIFT | to
            if _mark(dfa, key):
                todo[top] = key
                top += 1
                visited += 1
        pushes += d - c
        if net[net[IS_END] + place]:
            if not stack:
                dfa.scratch[FOUND, found] = ACCEPT
                found += 1
            else:
                key = dfa.stacks[stack, 1] << STACK_SHIFT | dfa.stacks[stack, 0]
                if _mark(dfa, key):
                    todo[top] = key
                    top += 1
                    visited += 1
        if pushes > numbers[MAX_PUSHES]:
            return -REFUSED
    numbers[EFFORT] += visited
    if numbers[EFFORT] > numbers[MAX_EFFORT]:
        return -REFUSED
    return found


@inlined
def _run_of(net: NDArray[np.int32], place: int) -> Any:
    """The number of the run that the place is in, or -1."""
    low, high = 0, net[RUNS]
    while low < high:
        middle = (low + high) >> 1
        if net[net[RUN] + 4 * middle] <= place:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low and place < net[net[RUN] + 4 * (low - 1) + 1] else -1


@inlined
def interned(dfa: Arrays, n: int) -> Any:
    """The state of the items `found[:n]`, new if need be; DEAD for none of them. -2 minus a status: it cannot be."""
    items, numbers, net = dfa.scratch[FOUND], dfa.numbers, dfa.net
    _sort(items, n)
    kept = 0
    for i in range(n):
        if not kept or items[i] != items[kept - 1]:
            items[kept] = items[i]
            kept += 1
    n = kept
    if n == 0:
        return DEAD
    if n > WITHOUT_COVERED and net[RUNS]:
        # At the same point of x{0,n}, whoever has most copies left can do all that the others can.
        if n > (dfa.scratch.shape[1] >> 1):
            return -2 - MORE_SCRATCH
        numbers[MARK] += 1
        kept = 0
        for i in range(n):
            item = items[i]
            if item >= 0:
                place = item & PLACE_MASK
                run = _run_of(net, place)
                if run >= 0 and net[net[RUN] + 4 * run + 3]:
                    first, stride = net[net[RUN] + 4 * run], net[net[RUN] + 4 * run + 2]
                    if not _mark(dfa, item - place + first + (place - first) % stride):
                        continue
            items[kept] = item
            kept += 1
        n = kept
    digest = np.int64(n)
    for i in range(n):
        digest = _mixed(digest + items[i])
    mask = len(dfa.slots) - 1
    at = digest & mask
    while dfa.slots[at]:
        state = dfa.slots[at] - 1
        if dfa.states[state, HASH] == digest:
            begin = dfa.states[state, START]
            same = dfa.states[state, STOP] - begin == n
            i = 0
            while same and i < n:
                same = dfa.items[begin + i] == items[i]
                i += 1
            if same:
                return state
        at = (at + 1) & mask
    state, begin = numbers[STATES], numbers[ITEMS]
    if state >= numbers[MAX_STATES] or begin + n > numbers[MAX_ITEMS]:
        return -2 - REFUSED
    if state >= len(dfa.table):
        return -2 - MORE_STATES
    if begin + n > len(dfa.items):
        return -2 - MORE_ITEMS
    for i in range(n):
        dfa.items[begin + i] = items[i]
    for c in range(dfa.table.shape[1]):
        dfa.table[state, c] = UNKNOWN
    for c in range(CLASS_COUNT):
        dfa.states[state, ROOM + c] = -1
    dfa.states[state, START], dfa.states[state, STOP] = begin, begin + n
    dfa.states[state, HASH] = digest
    dfa.states[state, ACCEPTING] = items[0] == ACCEPT
    dfa.slots[at] = state + 1
    numbers[STATES], numbers[ITEMS] = state + 1, begin + n
    return state


@inlined
def _after(dfa: Arrays, begin: int, stop: int) -> Any:
    """The state of the keys `keys[begin:stop]`: items, and (negative) places that were reached. As `interned`."""
    net = dfa.net
    top = found = 0
    if 2 * (stop - begin) + 1 > (dfa.scratch.shape[1] >> 1) or stop - begin > dfa.scratch.shape[1]:
        return -2 - MORE_SCRATCH
    many = stop - begin > 1
    for i in range(begin, stop):
        key = dfa.scratch[KEYS, i]
        if key >= 0:
            dfa.scratch[FOUND, found] = key
            found += 1
            continue
        at = ~key
        if many and net[BLOCKED]:
            blocked = False
            for j in range(begin, stop):
                other = ~dfa.scratch[KEYS, j]
                if dfa.scratch[KEYS, j] < 0:
                    block = net[net[BLOCKS] + (other & PLACE_MASK)]
                    blocked = blocked or (block >= 0 and other - (other & PLACE_MASK) + block == at)
            if blocked:
                continue
        stack, place = at >> STACK_SHIFT, at & PLACE_MASK
        if net[net[BOUND] + place] >= 0 and dfa.stacks[stack, 2] != FREE:
            stack = stack_of(dfa, dfa.stacks[stack, 0], dfa.stacks[stack, 1], dfa.stacks[stack, 2] + 1)
            if stack < 0:
                return -2 - MORE_STACKS
        dfa.scratch[TODO, top] = stack << STACK_SHIFT | place
        top += 1
    if top:
        found = _closed(dfa, top, found)
        if found < 0:
            return -2 + found
    return interned(dfa, found)


@compiled
def start_state(dfa: Arrays) -> Any:
    """Make stack 0 and state 0. As `interned`."""
    if not dfa.numbers[STACKS]:
        stack_of(dfa, 1, 0, 0)
    dfa.scratch[TODO, 0] = 0
    found = _closed(dfa, 1, 0)
    return -2 + found if found < 0 else interned(dfa, found)


@compiled
def expand(dfa: Arrays, state: int) -> Any:
    """Work out a state's row. Returns a status."""
    net = dfa.net
    width = dfa.table.shape[1]
    if dfa.table[state, 0] != UNKNOWN:
        return DONE
    begin, stop = dfa.states[state, START], dfa.states[state, STOP]
    # marks[c]: where the segment of columns that begins at c has its keys; columns that no move tells apart share one.
    marks = dfa.scratch[MARKS : MARKS + 4]
    for c in range(width + 1):
        marks[0, c] = 0
        marks[1, c] = 0
    for i in range(begin, stop):
        if dfa.items[i] >= 0:
            tree = (dfa.items[i] & TREE_MASK) >> PLACE_BITS
            for m in range(net[net[FIRST_MOVE] + tree], net[net[FIRST_MOVE] + tree + 1]):
                marks[0, net[net[MOVE] + 3 * m]] = 1
                marks[0, net[net[MOVE] + 3 * m + 1] + 1] = 1
    segment = 0
    for c in range(width):
        if marks[0, c] or c == 0:
            marks[1, segment] = 0
            marks[2, segment] = c
            segment += 1
        marks[3, c] = segment - 1
    segments = segment
    for i in range(begin, stop):
        if dfa.items[i] >= 0:
            tree = (dfa.items[i] & TREE_MASK) >> PLACE_BITS
            for m in range(net[net[FIRST_MOVE] + tree], net[net[FIRST_MOVE] + tree + 1]):
                for s in range(marks[3, net[net[MOVE] + 3 * m]], marks[3, net[net[MOVE] + 3 * m + 1]] + 1):
                    marks[1, s] += 1
    total = 0
    for s in range(segments):
        count = marks[1, s]
        marks[0, s] = marks[1, s] = total
        total += count
    if total > dfa.scratch.shape[1]:
        return MORE_SCRATCH
    for i in range(begin, stop):
        item = dfa.items[i]
        if item >= 0:
            tree = (item & TREE_MASK) >> PLACE_BITS
            for m in range(net[net[FIRST_MOVE] + tree], net[net[FIRST_MOVE] + tree + 1]):
                rest = net[net[MOVE] + 3 * m + 2]
                key = ~(item & ~TREE_MASK) if rest < 0 else item & ~TREE_MASK | np.int64(rest) << PLACE_BITS
                for s in range(marks[3, net[net[MOVE] + 3 * m]], marks[3, net[net[MOVE] + 3 * m + 1]] + 1):
                    dfa.scratch[KEYS, marks[1, s]] = key
                    marks[1, s] += 1
    row = dfa.table[state]
    first = DEAD  # of column 0, which is written last: readers without the lock look there
    for s in range(segments):
        a, b = marks[0, s], marks[1, s]
        after = np.int64(DEAD)
        if b > a:
            known = False
            for t in range(s):
                if marks[1, t] - marks[0, t] == b - a:
                    same = True
                    for i in range(b - a):
                        if dfa.scratch[KEYS, marks[0, t] + i] != dfa.scratch[KEYS, a + i]:
                            same = False
                            break
                    if same:
                        after = first if t == 0 else np.int64(row[marks[2, t]])
                        known = True
                        break
            if not known:
                after = _after(dfa, a, b)
                if after < DEAD:
                    for c in range(width):
                        row[c] = UNKNOWN
                    return -2 - after
        c = marks[2, s]
        end = marks[2, s + 1] if s + 1 < segments else width
        if s == 0:
            first = after
            c = 1
        while c < end:
            row[c] = after
            c += 1
    row[0] = first
    return DONE


@compiled
def shaped(dfa: Arrays, state: int, horizon: int) -> Any:
    """See `Dfa.shape`. As `interned`."""
    net = dfa.net
    begin, stop = dfa.states[state, START], dfa.states[state, STOP]
    if stop - begin > dfa.scratch.shape[1]:
        return -2 - MORE_SCRATCH
    moved = False
    for i in range(begin, stop):
        item = dfa.items[i]
        if item >= 0:
            place, stack = item & PLACE_MASK, item >> STACK_SHIFT
            bound = net[net[BOUND] + place]
            if bound >= 0:
                count = dfa.stacks[stack, 2]
                if count != FREE and count + horizon + net[net[LIMITS] + 2 * bound + 1] <= net[net[LIMITS] + 2 * bound]:
                    free = stack_of(dfa, dfa.stacks[stack, 0], dfa.stacks[stack, 1], FREE)
                    if free < 0:
                        return -2 - MORE_STACKS
                    item = free << STACK_SHIFT | item & LOW_MASK
            else:
                run = _run_of(net, place)
                if run >= 0:
                    first, stride = net[net[RUN] + 4 * run], net[net[RUN] + 4 * run + 2]
                    copy, offset = (place - first) // stride, (place - first) % stride
                    if (net[net[RUN] + 4 * run + 1] - first) // stride - copy > horizon + 1:
                        item = item - place + first + offset
        moved = moved or item != dfa.items[i]
        dfa.scratch[FOUND, i - begin] = item
    return interned(dfa, stop - begin) if moved else state


@compiled
def forced(dfa: Arrays, state: int, text: NDArray[np.uint8]) -> Any:
    """The bytes that must follow go into `text`. Returns (how many, status)."""
    net = dfa.net
    n = 0
    while n < len(text) and not dfa.states[state, ACCEPTING]:
        status = expand(dfa, state)
        if status:
            return n, status
        only = -1
        for c in range(dfa.table.shape[1]):
            if dfa.table[state, c] >= 0:
                if only >= 0:
                    return n, DONE
                only = c
        if only < 0 or net[net[SINGLE] + only] < 0:
            return n, DONE
        text[n] = net[net[SINGLE] + only]
        n += 1
        state = dfa.table[state, only]
    return n, DONE


@compiled
def fill_slots(slots: NDArray[np.int32], states: NDArray[np.int64], n: int) -> None:
    mask = len(slots) - 1
    for state in range(n):
        at = states[state, HASH] & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = state + 1


@compiled
def fill_stack_slots(slots: NDArray[np.int32], stacks: NDArray[np.int64], n: int) -> None:
    mask = len(slots) - 1
    for i in range(n):
        at = _mixed(_mixed(_mixed(stacks[i, 0]) + stacks[i, 1]) + stacks[i, 2]) & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = i + 1
