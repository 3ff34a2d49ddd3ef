"""The flat arrays of a compiled automaton. Import only where numba is installed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.slices import CLASSES

DEAD, UNKNOWN = -1, -2
ACCEPT = -1
FREE = -1  # a count that does not matter within the horizon

PLACE_BITS, TREE_BITS, STACK_BITS = 22, 17, 24
PLACE_MASK = (1 << PLACE_BITS) - 1
TREE_MASK = ((1 << TREE_BITS) - 1) << PLACE_BITS
STACK_SHIFT = PLACE_BITS + TREE_BITS
LOW_MASK = (1 << STACK_SHIFT) - 1

DONE, MORE_STATES, MORE_ITEMS, MORE_STACKS, MORE_SCRATCH, REFUSED = 0, 1, 2, 3, 4, 5

# In `Arrays.numbers`. CONTROLS: whether any text has a byte below 0x20.
STATES, ITEMS, STACKS, EFFORT, MARK, MAX_STATES, MAX_ITEMS, MAX_EFFORT, MAX_PUSHES, CONTROLS = range(10)
NUMBERS = 10

WITHOUT_COVERED = 4  # items; smaller sets are kept as they are


# `Arrays.net` is the nondeterministic automaton in one array. It begins with where each of these parts begins in it, or
# for the last ones with the number itself. FIRST_… say where in the next part the entries of a place (or tree) begin.
(
    FIRST_EDGE,
    EDGE,  # [edges, 2]: tree, target
    FIRST_EMPTY,
    EMPTY,
    FIRST_CALL,
    CALL,  # [calls, 2]: start, place to come back to
    FIRST_MOVE,
    MOVE,  # [moves, 3]: the columns from and to, and the subtree or -1
    IS_END,  # [places]
    BACK_IS_END,  # [places]: of those that calls come back to, whether nothing is left to do there
    BLOCKS,  # [places], -1: none
    BOUND,  # [places], -1: none
    TO_END,  # [places]
    LIMITS,  # [bounds, 2]: high, longest
    RUN,  # [runs, 4]: first place, stop, stride, optional
    SINGLE,  # [columns]: the only byte of the column, or -1
    COVERS,  # [trees], bits of classes
    TOUCHES,  # [trees], bits of classes
    DEEP,  # [trees], bits of classes with an ASCII character that is only the beginning of an escape
    KIND,  # [trees]: 0; CONTINUES: inside a character; FULL as well: and however that may go on
    SURELY,  # [places, classes]: characters that may follow, whichever
    ONWARD,  # [places, classes]: where a character of the class leads to on such a way; -1: none
    AT_MOST,  # [places, classes]: no text of the class that follows is longer
    END_MOST,  # [bounds, classes]: the same behind the end of a counting rule
    PLACES,
    CALLS,
    RUNS,
    BLOCKED,
) = range(28)
PARTS = 24


class Arrays(NamedTuple):
    """The automaton. State i has the items `items[states[i, START]:states[i, STOP]]`, sorted. `slots` and
    `stack_slots` are hash tables of numbers + 1. `scratch`: int64[9, a power of two]; its row MARKED is right where
    STAMP is the number MARK."""

    net: NDArray[np.int32]
    table: NDArray[np.int32]
    states: NDArray[np.int64]  # [states, STATE_WIDTH]
    items: NDArray[np.int64]
    slots: NDArray[np.int32]
    stacks: NDArray[np.int64]  # [stacks, 3]
    stack_slots: NDArray[np.int32]
    numbers: NDArray[np.int64]
    scratch: NDArray[np.int64]


CLASS_COUNT = len(CLASSES)
START, STOP, HASH, ACCEPTING, ROOM = range(5)
STATE_WIDTH = ROOM + CLASS_COUNT
TODO, FOUND, MARKED, STAMP, KEYS, MARKS = range(6)
SCRATCH = MARKS + 4

CONTINUES, FULL = 1, 2


def compiled(function: Any) -> Any:
    """Compiled at the first call, and kept on disk for the next process where there is a place to write to."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)


def inlined(function: Any) -> Any:
    """Compiled into its callers: to hand over this many arrays takes longer than most of what is done with them."""
    return numba.njit(nogil=True, forceinline=True)(function)
