"""Paged, ragged extend attention: every row extends by n_i tokens and reads keys and values only from the pool.

`attention(q, k_pool, v_pool, batch, scale, out=None) -> out`
    q [T, Hq, D]: last two dimensions contiguous, the first may be strided. Pools [num_slots, Hkv, D] with
    Hq % Hkv == 0; query head h reads KV head h // (Hq // Hkv). Token t of row i stands at the absolute position
    p = start[i] + t - offsets[i] and attends the slots slot_table[rows[i], 0 : p + 1] (causal). The keys of this
    step's tokens are already in the pool, so a row may read slots that another row of the same step has written.
    out [T, Hq * D], contiguous. The reference and the Triton implementation also take `lse` fp32 [T, Hq], contiguous:
    it is filled with the natural logarithm of the sum of the exponentials of the scaled scores.

`merge_states(partial, partial_lse, merges, out, lse=None) -> out`
    Attention over parts of the keys becomes attention over all of them (Triton and reference). partial fp32 [R, Hq, D]
    and partial_lse fp32 [R, Hq] hold results for parts; merges int32 [K, 4] holds (token, first, count, distance): the
    rows first, first + distance, ... of `partial` are the parts of that token's result. Entries with count 0 are
    skipped, other tokens keep what they have. A part that saw no key has lse -inf; out is 0 if all are so.

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
