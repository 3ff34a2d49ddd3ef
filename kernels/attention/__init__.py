"""Paged, ragged extend attention: every row extends by n_i tokens and reads keys and values only from the pool.

`attention(q, k_pool, v_pool, batch, scale, out=None) -> out`
    q [T, Hq, D]: last two dimensions contiguous, the first may be strided. Pools [num_slots, Hkv, D] with
    Hq % Hkv == 0; query head h reads KV head h // (Hq // Hkv). Token t of row i stands at the absolute position
    p = start[i] + t - offsets[i] and attends the slots slot_table[rows[i], 0 : p + 1] (causal). The keys of this
    step's tokens are already in the pool, so a row may read slots that another row of the same step has written.
    out [T, Hq * D], contiguous.

`AttentionBatch` holds what does not change from layer to layer. An implementation may keep what it derives from the
batch in `AttentionBatch.prepared` during one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(slots=True)
class AttentionBatch:
    """Who attends what, on the host. B rows, T = offsets[B] tokens.

    groups: (first, count, shared) triples: the rows [first, first + count) use the same slots for their first `shared`
    positions. A hint: an implementation may ignore it. Rows appear in at most one group, groups in ascending order.
    """

    slot_table: Int32  # [max_rows, context], last dimension contiguous
    rows: Int32  # [B]
    start: Int32  # [B]
    n: Int32  # [B]
    offsets: Int32  # [B + 1]
    groups: Sequence[tuple[int, int, int]] = ()
    prepared: dict[str, Any] = field(default_factory=dict)
