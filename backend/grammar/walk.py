"""The inner loop of mask computation, compiled by numba. Import only where numba is installed.

The token trie is walked depth-first with one automaton state per depth; a dead state skips its subtree.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_DEAD, _UNKNOWN = -1, -2

_SIGNATURE = numba.types.int64(
    numba.types.int64,
    numba.types.int64,
    numba.types.Array(numba.types.uint8, 1, "C", readonly=True),
    numba.types.Array(numba.types.int16, 1, "C", readonly=True),
    numba.types.Array(numba.types.int32, 1, "C", readonly=True),
    numba.types.Array(numba.types.int32, 1, "C", readonly=True),
    numba.types.Array(numba.types.int32, 1, "C", readonly=True),
    numba.types.Array(numba.types.int32, 2, "C"),
    numba.types.Array(numba.types.int16, 1, "C"),
    numba.types.Array(numba.types.int32, 1, "C"),
    numba.types.Array(numba.types.int32, 1, "C"),
)


def _compiled(function: Any) -> Any:
    """Compiled now, and kept on disk for the next process where there is a place to write to."""
    try:
        return numba.njit(_SIGNATURE, cache=True, nogil=True)(function)
    except (RuntimeError, OSError):  # neither the package nor the user's cache folder can be written
        return numba.njit(_SIGNATURE, nogil=True)(function)


@_compiled
def walk(
    node: int,
    stop: int,
    byte: NDArray[np.uint8],
    depth: NDArray[np.int16],
    skip: NDArray[np.int32],
    first: NDArray[np.int32],
    tokens: NDArray[np.int32],
    table: NDArray[np.int32],
    column: NDArray[np.int16],
    states: NDArray[np.int32],
    row: NDArray[np.int32],
) -> Any:
    """Set the bits in `row` of the allowed tokens in nodes [node, stop). `states[d]`: the state after d bytes.

    Returns `stop`, or the node to resume at once the row of `states[depth[node] - 1]` has been expanded.
    """
    while node < stop:
        d = depth[node]
        after = table[states[d - 1], column[byte[node]]]
        if after < 0:
            if after == _UNKNOWN:
                return node
            node = skip[node]
            continue
        states[d] = after
        for i in range(first[node], first[node + 1]):
            token = tokens[i]
            row[token >> 5] |= np.int32(1) << np.int32(token & 31)
        node += 1
    return stop
