"""How much text of a class of tokens may follow a state: what `walk` skips subtrees by. Compiled by numba; import only
where numba is installed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.arrays import (
    AT_MOST,
    BACK_IS_END,
    BOUND,
    CALL,
    CALLS,
    CLASS_COUNT,
    CONTINUES,
    COVERS,
    DEEP,
    EDGE,
    EMPTY,
    END_MOST,
    FIRST_CALL,
    FIRST_EDGE,
    FIRST_EMPTY,
    FREE,
    FULL,
    IS_END,
    KIND,
    LIMITS,
    ONWARD,
    PLACE_BITS,
    PLACE_MASK,
    PLACES,
    ROOM,
    STACK_SHIFT,
    START,
    STOP,
    SURELY,
    TO_END,
    TOUCHES,
    TREE_MASK,
    Arrays,
    compiled,
    inlined,
)

INFINITE = 255  # characters, in rooms: more than any token of a class has
SURE = 0xFF
INSIDE = 1 << 8
MOST = 9  # how far `most` is shifted
_COUNTED = 25  # characters; longer ways are looked for without counting them


@compiled
def room(dfa: Arrays, state: int, number: int) -> Any:
    """sure | most << MOST: any text of up to `sure` characters of class `number` may follow, and none of more than
    `most` (INFINITE: as many as a token may have). | INSIDE: in the middle of a character, which may end in any way;
    they are counted behind it."""
    net = dfa.net
    known = dfa.states[state, ROOM + number]
    if known >= 0:
        return known
    sure = most = 0
    inside, ends_well = False, False  # of a character: some way through it, and any way through it
    for i in range(dfa.states[state, START], dfa.states[state, STOP]):
        item = dfa.items[i]
        if item < 0:
            continue
        tree, place = (item & TREE_MASK) >> PLACE_BITS, item & PLACE_MASK
        kind = net[net[KIND] + tree]
        one = 0 if kind & CONTINUES else 1
        inside = inside or kind & CONTINUES != 0
        ends_well = ends_well or kind & FULL != 0
        left = 1 << 30
        bound = net[net[BOUND] + place]
        if bound >= 0:
            count = dfa.stacks[item >> STACK_SHIFT, 2]
            if count != FREE:
                left = net[net[LIMITS] + 2 * bound] - count - 1 + one
        if kind & FULL or (not kind & CONTINUES and net[net[COVERS] + tree] >> number & 1):
            able = one + np.int64(net[net[SURELY] + CLASS_COUNT * place + number])
            if left < 1 << 30:
                able, target = np.int64(one), np.int64(place)
                while able < INFINITE:
                    target = net[net[ONWARD] + CLASS_COUNT * target + number]
                    if target < 0 or able + 1 + net[net[TO_END] + target] > left:
                        break
                    able += 1
            sure = max(sure, able)
        if kind & CONTINUES or net[net[TOUCHES] + tree] >> number & 1:
            able = one + np.int64(net[net[AT_MOST] + CLASS_COUNT * place + number])
            if net[net[DEEP] + tree] >> number & 1:
                able = INFINITE
            if bound >= 0:
                able = min(able, left + np.int64(net[net[END_MOST] + CLASS_COUNT * bound + number]))
            most = max(most, able)
    sure = max(0, min(sure, INFINITE))
    most = max(sure, min(most, INFINITE))
    if inside and not ends_well:
        sure, most = 0, max(most, 1)
    dfa.states[state, ROOM + number] = sure | most << MOST | (INSIDE if ends_well else 0)
    return dfa.states[state, ROOM + number]


@compiled
def _raise(net: NDArray[np.int32], at: int, value: int) -> Any:
    value = min(value, _COUNTED)
    if value > net[at]:
        net[at] = value
        return True
    return False


@compiled
def _followed(net: NDArray[np.int32], number: int, place: int, length: NDArray[np.int16]) -> Any:
    """How many characters of the class there are on the way onward from the place, by and by. `length`: of the ways
    that are known, 2 more than that; 1: on the way that is being followed."""
    at, steps = np.int64(place), 0
    while at >= 0 and length[at] == 0:
        length[at] = 1
        steps += 1
        at = np.int64(net[net[ONWARD] + CLASS_COUNT * at + number])
    loop = at >= 0 and length[at] == 1
    ahead = steps - 1 if at < 0 else steps + np.int64(length[at]) - 2
    at = np.int64(place)
    for _ in range(steps):
        length[at] = 2 + (INFINITE if loop else min(ahead, INFINITE))
        ahead -= 1
        at = np.int64(net[net[ONWARD] + CLASS_COUNT * at + number])
    return length[place] - 2


@inlined
def _follows_raised(net: NDArray[np.int32], place: int, raised: NDArray[np.int32], since: int) -> Any:
    """Whether something that the place leads to at once was changed by that sweep or later."""
    for e in range(net[net[FIRST_EDGE] + place], net[net[FIRST_EDGE] + place + 1]):
        if raised[net[net[EDGE] + 2 * e + 1]] >= since:
            return True
    for e in range(net[net[FIRST_EMPTY] + place], net[net[FIRST_EMPTY] + place + 1]):
        if raised[net[net[EMPTY] + e]] >= since:
            return True
    for e in range(net[net[FIRST_CALL] + place], net[net[FIRST_CALL] + place + 1]):
        if raised[net[net[CALL] + 2 * e]] >= since:
            return True
    return False


@compiled
def static_rooms(net: NDArray[np.int32], returns: NDArray[np.int32], barred: NDArray[np.int32]) -> None:
    """Fill `sure`, `onward`, `most` and `end_most` of the net: longest paths, in sweeps from the last place to the
    first, as most paths run the other way.

    `returns`: int32[n, 2], the end of a rule and a place that one of its calls comes back to. `barred`: places that may
    turn out to be blocked.
    """
    places, classes = net[PLACES], CLASS_COUNT
    raised = np.zeros(places, np.int32)  # the sweep that last changed a place
    sweep = 0
    changed = True
    while changed:
        changed = False
        sweep += 1
        for p in range(places - 1, -1, -1):
            if sweep > 1 and not _follows_raised(net, p, raised, sweep - 1):
                continue
            again = True
            while again:
                again = False
                for e in range(net[net[FIRST_EDGE] + p], net[net[FIRST_EDGE] + p + 1]):
                    tree, target = net[net[EDGE] + 2 * e], net[net[EDGE] + 2 * e + 1]
                    covers, touches, deep = net[net[COVERS] + tree], net[net[TOUCHES] + tree], net[net[DEEP] + tree]
                    inside = net[net[KIND] + tree] & CONTINUES
                    for c in range(classes):
                        ahead = np.int64(net[net[SURELY] + CLASS_COUNT * target + c]) + 1
                        at = net[SURELY] + CLASS_COUNT * p + c
                        if covers >> c & 1 and not barred[target] and _raise(net, at, ahead):
                            net[net[ONWARD] + CLASS_COUNT * p + c] = target
                            again = True
                        if inside:
                            again |= _raise(
                                net,
                                net[AT_MOST] + CLASS_COUNT * p + c,
                                np.int64(net[net[AT_MOST] + CLASS_COUNT * target + c]),
                            )
                        elif touches >> c & 1:
                            value = (
                                INFINITE
                                if deep >> c & 1
                                else np.int64(net[net[AT_MOST] + CLASS_COUNT * target + c]) + 1
                            )
                            again |= _raise(net, net[AT_MOST] + CLASS_COUNT * p + c, value)
                for e in range(net[net[FIRST_EMPTY] + p], net[net[FIRST_EMPTY] + p + 1]):
                    for c in range(classes):
                        if _raise(
                            net,
                            net[SURELY] + CLASS_COUNT * p + c,
                            np.int64(net[net[SURELY] + CLASS_COUNT * net[net[EMPTY] + e] + c]),
                        ):
                            net[net[ONWARD] + CLASS_COUNT * p + c] = net[
                                net[ONWARD] + CLASS_COUNT * net[net[EMPTY] + e] + c
                            ]
                            again = True
                        again |= _raise(
                            net,
                            net[AT_MOST] + CLASS_COUNT * p + c,
                            np.int64(net[net[AT_MOST] + CLASS_COUNT * net[net[EMPTY] + e] + c]),
                        )
                for e in range(net[net[FIRST_CALL] + p], net[net[FIRST_CALL] + p + 1]):
                    start = net[net[CALL] + 2 * e]
                    for c in range(classes):
                        ahead = np.int64(net[net[SURELY] + CLASS_COUNT * start + c])
                        if net[net[BOUND] + start] < 0 and _raise(net, net[SURELY] + CLASS_COUNT * p + c, ahead):
                            net[net[ONWARD] + CLASS_COUNT * p + c] = net[net[ONWARD] + CLASS_COUNT * start + c]
                            again = True
                        again |= _raise(
                            net,
                            net[AT_MOST] + CLASS_COUNT * p + c,
                            np.int64(net[net[AT_MOST] + CLASS_COUNT * start + c]),
                        )
                changed |= again
                if again:
                    raised[p] = sweep
                if not again:
                    break
        for i in range(len(returns)):
            for c in range(classes):
                ahead = np.int64(net[net[AT_MOST] + CLASS_COUNT * returns[i, 1] + c])
                if _raise(net, net[AT_MOST] + CLASS_COUNT * returns[i, 0] + c, ahead):
                    raised[returns[i, 0]] = sweep
                    changed = True
    length = np.zeros(places, np.int16)
    for c in range(classes):
        length[:] = 0
        for p in range(places):
            if net[net[AT_MOST] + CLASS_COUNT * p + c] == _COUNTED:
                net[net[AT_MOST] + CLASS_COUNT * p + c] = INFINITE
            if net[net[SURELY] + CLASS_COUNT * p + c] == _COUNTED:
                net[net[SURELY] + CLASS_COUNT * p + c] = _followed(net, c, p, length)
    for p in range(places):
        if net[net[BOUND] + p] >= 0 and net[net[IS_END] + p]:
            for c in range(classes):
                net[net[END_MOST] + CLASS_COUNT * net[net[BOUND] + p] + c] = max(
                    net[net[END_MOST] + CLASS_COUNT * net[net[BOUND] + p] + c], net[net[AT_MOST] + CLASS_COUNT * p + c]
                )


@compiled
def find_back_ends(net: NDArray[np.int32], seen: NDArray[np.int32], todo: NDArray[np.int32]) -> None:
    """Fill `back_is_end`. `seen` and `todo`: int32[places], zeros."""
    for c in range(net[CALLS]):
        back = net[net[CALL] + 2 * c + 1]
        if seen[back] == c + 1 or net[net[BACK_IS_END] + back]:
            continue
        seen[back] = c + 1
        todo[0] = back
        top, ends, more = 1, False, False
        while top and not more:
            top -= 1
            place = todo[top]
            ends = ends or net[net[IS_END] + place] != 0
            more = (
                net[net[FIRST_EDGE] + place] < net[net[FIRST_EDGE] + place + 1]
                or net[net[FIRST_CALL] + place] < net[net[FIRST_CALL] + place + 1]
            )
            for e in range(net[net[FIRST_EMPTY] + place], net[net[FIRST_EMPTY] + place + 1]):
                to = net[net[EMPTY] + e]
                if seen[to] != c + 1:
                    seen[to] = c + 1
                    todo[top] = to
                    top += 1
        net[net[BACK_IS_END] + back] = ends and not more
