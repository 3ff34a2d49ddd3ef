"""Subset construction and the token walk, compiled by numba. Import only where numba is installed.

The same states as `automaton.Dfa` makes, over flat arrays, so that a walk that meets new states never goes back to
Python. Every function that may need room returns a status: DONE, or what has to grow before it is called again (what it
has made until then stays valid), or REFUSED when the automaton is over its limits.

An item is `stack << STACK_SHIFT | tree << PLACE_BITS | place` (see `automaton`); a place that a character has led to is
`~(stack << STACK_SHIFT | place)`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

DEAD, UNKNOWN = -1, -2
ACCEPT = -1
FREE = -1  # a count that does not matter within the horizon

PLACE_BITS, TREE_BITS, STACK_BITS = 22, 17, 24
PLACE_MASK = (1 << PLACE_BITS) - 1
TREE_MASK = ((1 << TREE_BITS) - 1) << PLACE_BITS
STACK_SHIFT = PLACE_BITS + TREE_BITS
LOW_MASK = (1 << STACK_SHIFT) - 1

DONE, MORE_STATES, MORE_ITEMS, MORE_STACKS, MORE_SCRATCH, REFUSED = 0, 1, 2, 3, 4, 5

# In `Work.numbers`. CONTROLS: whether any text has a byte below 0x20.
STATES, ITEMS, STACKS, EFFORT, MARK, MAX_STATES, MAX_ITEMS, MAX_EFFORT, MAX_PUSHES, CONTROLS = range(10)
NUMBERS = 10

INFINITE = 255  # characters, in rooms: more than any token of a class has
SURE = 0xFF
INSIDE = 1 << 8
MOST = 9  # how far `most` is shifted
_COUNTED = 25  # characters; longer ways are looked for without counting them
_WITHOUT_COVERED = 4  # items; smaller sets are kept as they are


class Net(NamedTuple):
    """The nondeterministic automaton. Rows of `first_…` say where in the array behind it a place's (or tree's) part
    begins. `move`: int32[moves, 3], the columns from and to, and the subtree or -1. `run`: int64[runs, 4], first place,
    stop, stride, optional. `back_is_end`: of places that calls come back to, whether nothing is left to do there."""

    first_edge: NDArray[np.int32]
    edge: NDArray[np.int32]  # [edges, 2]: tree, target
    first_empty: NDArray[np.int32]
    empty: NDArray[np.int32]
    first_call: NDArray[np.int32]
    call: NDArray[np.int32]  # [calls, 2]: start, place to come back to
    is_end: NDArray[np.uint8]
    back_is_end: NDArray[np.uint8]
    blocks: NDArray[np.int32]  # [places], -1: none
    bound: NDArray[np.int32]  # [places], -1: none
    to_end: NDArray[np.int32]  # [places]
    limits: NDArray[np.int32]  # [bounds, 2]: high, longest
    first_move: NDArray[np.int32]
    move: NDArray[np.int32]
    run: NDArray[np.int64]
    single: NDArray[np.int16]  # [columns]: the only byte of the column, or -1
    covers: NDArray[np.int32]  # [trees], bits of classes
    touches: NDArray[np.int32]  # [trees], bits of classes
    deep: NDArray[np.int32]  # [trees], bits of classes with an ASCII character that is only the beginning of an escape
    kind: NDArray[np.uint8]  # [trees]: 0; CONTINUES: inside a character; FULL as well: and however that may go on
    sure: NDArray[np.uint8]  # [places, classes]: characters that may follow, whichever
    most: NDArray[np.uint8]  # [places, classes]: no text of the class that follows is longer
    end_most: NDArray[np.uint8]  # [bounds, classes]: `most` behind the end of a counting rule
    onward: NDArray[np.int32]  # [places, classes]: where a character of the class leads to on such a way; -1: none


class Made(NamedTuple):
    """What there is of the deterministic automaton. State i has the items `items[start[i]:start[i + 1]]`, sorted."""

    table: NDArray[np.int32]
    start: NDArray[np.int64]
    items: NDArray[np.int64]
    hashes: NDArray[np.int64]
    slots: NDArray[np.int32]
    accepting: NDArray[np.uint8]
    rooms: NDArray[np.int32]  # [states, classes], -1: not known; else as `room` gives it
    stacks: NDArray[np.int64]  # [stacks, 3]
    stack_slots: NDArray[np.int32]


class Work(NamedTuple):
    """Scratch space. `marked` is right where `stamp` is the number MARK."""

    numbers: NDArray[np.int64]
    todo: NDArray[np.int64]
    found: NDArray[np.int64]
    marked: NDArray[np.int64]
    stamp: NDArray[np.int64]
    keys: NDArray[np.int64]
    marks: NDArray[np.int64]  # [columns + 1, 4]


CONTINUES, FULL = 1, 2


def _compiled(function: Any) -> Any:
    """Compiled at the first call, and kept on disk for the next process where there is a place to write to."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)


@_compiled
def _mixed(value: int) -> Any:
    value = (value ^ (value >> 31)) * 0x7FB5D329728EA185
    value = (value ^ (value >> 27)) * 0x1B03738712FAD5C9
    return value ^ (value >> 32)


@_compiled
def _mark(work: Work, key: int) -> Any:
    """Whether the key was not marked before."""
    mask, mark = len(work.marked) - 1, work.numbers[MARK]
    at = _mixed(key) & mask
    while work.stamp[at] == mark:
        if work.marked[at] == key:
            return False
        at = (at + 1) & mask
    work.stamp[at], work.marked[at] = mark, key
    return True


@_compiled
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


@_compiled
def stack_of(made: Made, work: Work, back: int, below: int, count: int) -> Any:
    """The number of a stack, new if need be; -1: no room."""
    mask = len(made.stack_slots) - 1
    at = _mixed(_mixed(_mixed(back) + below) + count) & mask
    while made.stack_slots[at]:
        i = made.stack_slots[at] - 1
        if made.stacks[i, 0] == back and made.stacks[i, 1] == below and made.stacks[i, 2] == count:
            return i
        at = (at + 1) & mask
    i = work.numbers[STACKS]
    if i >= len(made.stacks):
        return -1
    made.stacks[i, 0], made.stacks[i, 1], made.stacks[i, 2] = back, below, count
    made.stack_slots[at] = i + 1
    work.numbers[STACKS] = i + 1
    return i


@_compiled
def _closed(net: Net, made: Made, work: Work, n: int, found: int) -> Any:
    """Follow the empty moves, calls and returns from `todo[:n]` (stack and place); the items go behind `found[:found]`.

    Returns how many items there are then, or minus a status.
    """
    todo, numbers, most = work.todo, work.numbers, len(work.todo)
    numbers[MARK] += 1
    kept = 0
    for i in range(n):
        if _mark(work, todo[i]):
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
        if net.bound[place] >= 0:
            left = net.limits[net.bound[place], 0] - made.stacks[stack, 2] - 1
        a, b = net.first_edge[place], net.first_edge[place + 1]
        if found + b - a + 1 > len(work.found):
            return -MORE_SCRATCH
        for e in range(a, b):
            target = net.edge[e, 1]
            if left == 0x7FFFFFFF or net.to_end[target] <= left:
                work.found[found] = above | np.int64(net.edge[e, 0]) << PLACE_BITS | target
                found += 1
        a, b = net.first_empty[place], net.first_empty[place + 1]
        c, d = net.first_call[place], net.first_call[place + 1]
        if visited + (b - a) + (d - c) + 1 > most:
            return -MORE_SCRATCH
        for e in range(a, b):
            key = above | net.empty[e]
            if _mark(work, key):
                todo[top] = key
                top += 1
                visited += 1
        for e in range(c, d):
            to, back = net.call[e, 0], net.call[e, 1]
            pushed = stack
            if not stack or net.bound[to] >= 0 or net.bound[back] >= 0 or not net.back_is_end[back]:
                pushed = stack_of(made, work, back, stack, 0)
                if pushed < 0:
                    return -MORE_STACKS
            key = pushed << STACK_SHIFT | to
            if _mark(work, key):
                todo[top] = key
                top += 1
                visited += 1
        pushes += d - c
        if net.is_end[place]:
            if not stack:
                work.found[found] = ACCEPT
                found += 1
            else:
                key = made.stacks[stack, 1] << STACK_SHIFT | made.stacks[stack, 0]
                if _mark(work, key):
                    todo[top] = key
                    top += 1
                    visited += 1
        if pushes > numbers[MAX_PUSHES]:
            return -REFUSED
    numbers[EFFORT] += visited
    if numbers[EFFORT] > numbers[MAX_EFFORT]:
        return -REFUSED
    return found


@_compiled
def _run_of(net: Net, place: int) -> Any:
    """The number of the run that the place is in, or -1."""
    low, high = 0, len(net.run)
    while low < high:
        middle = (low + high) >> 1
        if net.run[middle, 0] <= place:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low and place < net.run[low - 1, 1] else -1


@_compiled
def interned(net: Net, made: Made, work: Work, n: int) -> Any:
    """The state of the items `found[:n]`, new if need be; DEAD for none of them. -2 minus a status: it cannot be."""
    items, numbers = work.found, work.numbers
    _sort(items, n)
    kept = 0
    for i in range(n):
        if not kept or items[i] != items[kept - 1]:
            items[kept] = items[i]
            kept += 1
    n = kept
    if n == 0:
        return DEAD
    if n > _WITHOUT_COVERED and len(net.run):
        # At the same point of x{0,n}, whoever has most copies left can do all that the others can.
        if n > len(work.todo):
            return -2 - MORE_SCRATCH
        numbers[MARK] += 1
        kept = 0
        for i in range(n):
            item = items[i]
            if item >= 0:
                place = item & PLACE_MASK
                run = _run_of(net, place)
                if run >= 0 and net.run[run, 3]:
                    first, stride = net.run[run, 0], net.run[run, 2]
                    if not _mark(work, item - place + first + (place - first) % stride):
                        continue
            items[kept] = item
            kept += 1
        n = kept
    digest = np.int64(n)
    for i in range(n):
        digest = _mixed(digest + items[i])
    mask = len(made.slots) - 1
    at = digest & mask
    while made.slots[at]:
        state = made.slots[at] - 1
        if made.hashes[state] == digest:
            begin = made.start[state]
            same = made.start[state + 1] - begin == n
            i = 0
            while same and i < n:
                same = made.items[begin + i] == items[i]
                i += 1
            if same:
                return state
        at = (at + 1) & mask
    state, begin = numbers[STATES], numbers[ITEMS]
    if state >= numbers[MAX_STATES] or begin + n > numbers[MAX_ITEMS]:
        return -2 - REFUSED
    if state >= len(made.table):
        return -2 - MORE_STATES
    if begin + n > len(made.items):
        return -2 - MORE_ITEMS
    made.items[begin : begin + n] = items[:n]
    made.table[state] = UNKNOWN
    made.rooms[state] = -1
    made.start[state + 1] = begin + n
    made.hashes[state] = digest
    made.accepting[state] = items[0] == ACCEPT
    made.slots[at] = state + 1
    numbers[STATES], numbers[ITEMS] = state + 1, begin + n
    return state


@_compiled
def _after(net: Net, made: Made, work: Work, begin: int, stop: int) -> Any:
    """The state of the keys `keys[begin:stop]`: items, and (negative) places that were reached. As `interned`."""
    top = found = 0
    if 2 * (stop - begin) + 1 > len(work.todo) or stop - begin > len(work.found):
        return -2 - MORE_SCRATCH
    many = stop - begin > 1
    for i in range(begin, stop):
        key = work.keys[i]
        if key >= 0:
            work.found[found] = key
            found += 1
            continue
        at = ~key
        if many and len(net.blocks):
            blocked = False
            for j in range(begin, stop):
                other = ~work.keys[j]
                if work.keys[j] < 0 and net.blocks[other & PLACE_MASK] >= 0:
                    if other - (other & PLACE_MASK) + net.blocks[other & PLACE_MASK] == at:
                        blocked = True
            if blocked:
                continue
        stack, place = at >> STACK_SHIFT, at & PLACE_MASK
        if net.bound[place] >= 0 and made.stacks[stack, 2] != FREE:
            stack = stack_of(
                made, work, made.stacks[stack, 0], made.stacks[stack, 1], made.stacks[stack, 2] + 1
            )
            if stack < 0:
                return -2 - MORE_STACKS
        work.todo[top] = stack << STACK_SHIFT | place
        top += 1
    if top:
        found = _closed(net, made, work, top, found)
        if found < 0:
            return -2 + found
    return interned(net, made, work, found)


@_compiled
def start_state(net: Net, made: Made, work: Work) -> Any:
    """Make state 0. As `interned`."""
    work.todo[0] = 0
    found = _closed(net, made, work, 1, 0)
    return -2 + found if found < 0 else interned(net, made, work, found)


@_compiled
def expand(net: Net, made: Made, work: Work, state: int) -> Any:
    """Work out a state's row. Returns a status."""
    width = made.table.shape[1]
    if made.table[state, 0] != UNKNOWN:
        return DONE
    begin, stop = made.start[state], made.start[state + 1]
    # marks[c]: where the segment of columns that begins at c has its keys; columns that no move tells apart share one.
    marks = work.marks
    for c in range(width + 1):
        marks[c, 0] = 0
        marks[c, 1] = 0
    for i in range(begin, stop):
        if made.items[i] >= 0:
            tree = (made.items[i] & TREE_MASK) >> PLACE_BITS
            for m in range(net.first_move[tree], net.first_move[tree + 1]):
                marks[net.move[m, 0], 0] = 1
                marks[net.move[m, 1] + 1, 0] = 1
    segment = 0
    for c in range(width):
        if marks[c, 0] or c == 0:
            marks[segment, 1] = 0
            marks[segment, 2] = c
            segment += 1
        marks[c, 3] = segment - 1
    segments = segment
    for i in range(begin, stop):
        if made.items[i] >= 0:
            tree = (made.items[i] & TREE_MASK) >> PLACE_BITS
            for m in range(net.first_move[tree], net.first_move[tree + 1]):
                for s in range(marks[net.move[m, 0], 3], marks[net.move[m, 1], 3] + 1):
                    marks[s, 1] += 1
    total = 0
    for s in range(segments):
        count = marks[s, 1]
        marks[s, 0] = marks[s, 1] = total
        total += count
    if total > len(work.keys):
        return MORE_SCRATCH
    for i in range(begin, stop):
        item = made.items[i]
        if item >= 0:
            tree = (item & TREE_MASK) >> PLACE_BITS
            for m in range(net.first_move[tree], net.first_move[tree + 1]):
                rest = net.move[m, 2]
                key = ~(item & ~TREE_MASK) if rest < 0 else item & ~TREE_MASK | np.int64(rest) << PLACE_BITS
                for s in range(marks[net.move[m, 0], 3], marks[net.move[m, 1], 3] + 1):
                    work.keys[marks[s, 1]] = key
                    marks[s, 1] += 1
    row = made.table[state]
    first = DEAD  # of column 0, which is written last: readers without the lock look there
    for s in range(segments):
        a, b = marks[s, 0], marks[s, 1]
        after = np.int64(DEAD)
        if b > a:
            known = False
            for t in range(s):
                if marks[t, 1] - marks[t, 0] == b - a:
                    same = True
                    for i in range(b - a):
                        if work.keys[marks[t, 0] + i] != work.keys[a + i]:
                            same = False
                            break
                    if same:
                        after = first if t == 0 else np.int64(row[marks[t, 2]])
                        known = True
                        break
            if not known:
                after = _after(net, made, work, a, b)
                if after < DEAD:
                    for c in range(width):
                        row[c] = UNKNOWN
                    return -2 - after
        c = marks[s, 2]
        end = marks[s + 1, 2] if s + 1 < segments else width
        if s == 0:
            first = after
            c = 1
        while c < end:
            row[c] = after
            c += 1
    row[0] = first
    return DONE


@_compiled
def shaped(net: Net, made: Made, work: Work, state: int, horizon: int) -> Any:
    """See `Dfa.shape`. As `interned`."""
    begin, stop = made.start[state], made.start[state + 1]
    if stop - begin > len(work.found):
        return -2 - MORE_SCRATCH
    moved = False
    for i in range(begin, stop):
        item = made.items[i]
        if item >= 0:
            place, stack = item & PLACE_MASK, item >> STACK_SHIFT
            if net.bound[place] >= 0:
                count = made.stacks[stack, 2]
                limits = net.limits[net.bound[place]]
                if count != FREE and count + horizon + limits[1] <= limits[0]:
                    free = stack_of(made, work, made.stacks[stack, 0], made.stacks[stack, 1], FREE)
                    if free < 0:
                        return -2 - MORE_STACKS
                    item = free << STACK_SHIFT | item & LOW_MASK
            else:
                run = _run_of(net, place)
                if run >= 0:
                    first, stride = net.run[run, 0], net.run[run, 2]
                    copy, offset = (place - first) // stride, (place - first) % stride
                    if (net.run[run, 1] - first) // stride - copy > horizon + 1:
                        item = item - place + first + offset
        moved = moved or item != made.items[i]
        work.found[i - begin] = item
    return interned(net, made, work, stop - begin) if moved else state


@_compiled
def forced(net: Net, made: Made, work: Work, state: int, text: NDArray[np.uint8]) -> Any:
    """The bytes that must follow go into `text`. Returns (how many, status)."""
    n = 0
    while n < len(text) and not made.accepting[state]:
        status = expand(net, made, work, state)
        if status:
            return n, status
        only = -1
        for c in range(made.table.shape[1]):
            if made.table[state, c] >= 0:
                if only >= 0:
                    return n, DONE
                only = c
        if only < 0 or net.single[only] < 0:
            return n, DONE
        text[n] = net.single[only]
        n += 1
        state = made.table[state, only]
    return n, DONE


@_compiled
def run(net: Net, made: Made, work: Work, column: NDArray[np.int16], state: int, text: NDArray[np.uint8]) -> Any:
    """The state after `text`, or DEAD; and a status."""
    for byte in text:
        status = expand(net, made, work, state)
        if status:
            return state, status
        state = made.table[state, column[byte]]
        if state < 0:
            return DEAD, DONE
    return state, DONE


# Rooms ---------------------------------------------------------------------------------------------------------------


@_compiled
def room(net: Net, made: Made, state: int, number: int) -> Any:
    """sure | most << MOST: any text of up to `sure` characters of class `number` may follow, and none of more than `most`
    (INFINITE: as many as a token may have). | INSIDE: in the middle of a character; they are counted behind that one."""
    known = made.rooms[state, number]
    if known >= 0:
        return known
    sure = most = 0
    inside, ends_well = False, False  # of a character: some way through it, and any way through it
    for i in range(made.start[state], made.start[state + 1]):
        item = made.items[i]
        if item < 0:
            continue
        tree, place = (item & TREE_MASK) >> PLACE_BITS, item & PLACE_MASK
        kind = net.kind[tree]
        one = 0 if kind & CONTINUES else 1
        inside = inside or kind & CONTINUES != 0
        ends_well = ends_well or kind & FULL != 0
        left = 1 << 30
        bound = net.bound[place]
        if bound >= 0:
            count = made.stacks[item >> STACK_SHIFT, 2]
            if count != FREE:
                left = net.limits[bound, 0] - count - 1 + one
        if kind & FULL or (not kind & CONTINUES and net.covers[tree] >> number & 1):
            able = one + np.int64(net.sure[place, number])
            if left < 1 << 30:
                able, target = np.int64(one), np.int64(place)
                while able < INFINITE:
                    target = net.onward[target, number]
                    if target < 0 or able + 1 + net.to_end[target] > left:
                        break
                    able += 1
            sure = max(sure, able)
        if kind & CONTINUES or net.touches[tree] >> number & 1:
            able = one + np.int64(net.most[place, number])
            if net.deep[tree] >> number & 1:
                able = INFINITE
            if bound >= 0:
                able = min(able, left + np.int64(net.end_most[bound, number]))
            most = max(most, able)
    sure = max(0, min(sure, INFINITE))
    most = max(sure, min(most, INFINITE))
    if inside and not ends_well:
        sure, most = 0, max(most, 1)
    made.rooms[state, number] = sure | most << MOST | (INSIDE if inside else 0)
    return made.rooms[state, number]



@_compiled
def _raise(of: NDArray[np.uint8], place: int, number: int, value: int) -> Any:
    value = min(value, _COUNTED)
    if value > of[place, number]:
        of[place, number] = value
        return True
    return False


@_compiled
def _followed(net: Net, number: int, place: int, length: NDArray[np.int16]) -> Any:
    """How many characters of the class there are on the way onward from the place, by and by. `length`: of the ways
    that are known, 2 more than that; 1: on the way that is being followed."""
    at, steps = np.int64(place), 0
    while at >= 0 and length[at] == 0:
        length[at] = 1
        steps += 1
        at = np.int64(net.onward[at, number])
    loop = at >= 0 and length[at] == 1
    ahead = steps - 1 if at < 0 else steps + np.int64(length[at]) - 2
    at = np.int64(place)
    for _ in range(steps):
        length[at] = 2 + (INFINITE if loop else min(ahead, INFINITE))
        ahead -= 1
        at = np.int64(net.onward[at, number])
    return length[place] - 2


@_compiled
def static_rooms(net: Net, returns: NDArray[np.int32], barred: NDArray[np.uint8]) -> None:
    """Fill `sure`, `onward`, `most` and `end_most` of the net: longest paths, in sweeps from the last place to the
    first, as most paths run the other way.

    `returns`: int32[n, 2], the end of a rule and a place that one of its calls comes back to. `barred`: places that may
    turn out to be blocked.
    """
    places, classes = net.sure.shape
    sure, most = net.sure, net.most
    changed = True
    while changed:
        changed = False
        for p in range(places - 1, -1, -1):
            again = True
            while again:
                again = False
                for e in range(net.first_edge[p], net.first_edge[p + 1]):
                    tree, target = net.edge[e, 0], net.edge[e, 1]
                    covers, touches, deep = net.covers[tree], net.touches[tree], net.deep[tree]
                    inside = net.kind[tree] & CONTINUES
                    for c in range(classes):
                        if covers >> c & 1 and not barred[target]:
                            if _raise(sure, p, c, np.int64(sure[target, c]) + 1):
                                net.onward[p, c] = target
                                again = True
                        if inside:
                            again |= _raise(most, p, c, np.int64(most[target, c]))
                        elif touches >> c & 1:
                            value = INFINITE if deep >> c & 1 else np.int64(most[target, c]) + 1
                            again |= _raise(most, p, c, value)
                for e in range(net.first_empty[p], net.first_empty[p + 1]):
                    for c in range(classes):
                        if _raise(sure, p, c, np.int64(sure[net.empty[e], c])):
                            net.onward[p, c] = net.onward[net.empty[e], c]
                            again = True
                        again |= _raise(most, p, c, np.int64(most[net.empty[e], c]))
                for e in range(net.first_call[p], net.first_call[p + 1]):
                    start = net.call[e, 0]
                    for c in range(classes):
                        if net.bound[start] < 0:
                            again |= _raise(sure, p, c, np.int64(sure[start, c]))
                        again |= _raise(most, p, c, np.int64(most[start, c]))
                changed |= again
                if not again:
                    break
        for i in range(len(returns)):
            for c in range(classes):
                changed |= _raise(most, returns[i, 0], c, np.int64(most[returns[i, 1], c]))
    length = np.zeros(places, np.int16)
    for c in range(classes):
        length[:] = 0
        for p in range(places):
            if most[p, c] == _COUNTED:
                most[p, c] = INFINITE
            if sure[p, c] == _COUNTED:
                sure[p, c] = _followed(net, c, p, length)
    for p in range(places):
        if net.bound[p] >= 0 and net.is_end[p]:
            for c in range(classes):
                net.end_most[net.bound[p], c] = max(net.end_most[net.bound[p], c], most[p, c])


# Building ------------------------------------------------------------------------------------------------------------


@_compiled
def find_back_ends(net: Net, seen: NDArray[np.int32], todo: NDArray[np.int32]) -> None:
    """Fill `back_is_end`. `seen` and `todo`: int32[places], zeros."""
    for c in range(len(net.call)):
        back = net.call[c, 1]
        if seen[back] == c + 1 or net.back_is_end[back]:
            continue
        seen[back] = c + 1
        todo[0] = back
        top, ends, more = 1, False, False
        while top and not more:
            top -= 1
            place = todo[top]
            ends = ends or net.is_end[place] != 0
            more = (
                net.first_edge[place] < net.first_edge[place + 1] or net.first_call[place] < net.first_call[place + 1]
            )
            for e in range(net.first_empty[place], net.first_empty[place + 1]):
                to = net.empty[e]
                if seen[to] != c + 1:
                    seen[to] = c + 1
                    todo[top] = to
                    top += 1
        net.back_is_end[back] = ends and not more


@_compiled
def fill_slots(slots: NDArray[np.int32], hashes: NDArray[np.int64], n: int) -> None:
    mask = len(slots) - 1
    for state in range(n):
        at = hashes[state] & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = state + 1
