"""Plans that compute nothing of use, for warming up and measuring."""

from __future__ import annotations

from typing import Any

import numpy as np

from stemma.backend.core import Plan, SamplingArrays


def idle_plan(vocab_size: int, mask_words: int, start: int, n: int, sampled: bool, rows: int = 1) -> Plan:
    """Rows that extend by n tokens from position `start`, all on the padding slot.

    sampled: with temperature, a filter, a penalty, and a mask that allows everything; greedy without it.
    """

    def full(value: float, kind: Any = np.int32) -> Any:
        return np.full(rows, value, kind)

    end = start + n
    return Plan(
        step=0,
        rows=np.arange(rows, dtype=np.int32),
        start=full(start),
        n=full(n),
        offsets=np.arange(rows + 1, dtype=np.int32) * np.int32(n),
        ids=np.zeros(rows * n, np.int32),
        positions=np.tile(np.arange(start, end, dtype=np.int32), rows),
        out_slots=np.zeros(rows * n, np.int32),
        sample=full(True, np.bool_),
        slot_table=np.zeros((rows, end), np.int32),
        id_table=np.zeros((rows, end), np.int32),
        sampling=SamplingArrays(
            temperature=full(1.0 if sampled else 0.0, np.float32),
            top_p=full(0.9 if sampled else 1.0, np.float32),
            top_k=full(vocab_size),
            min_p=full(0.0, np.float32),
            seed=full(0, np.int64),
            repetition_penalty=full(1.1 if sampled else 1.0, np.float32),
            frequency_penalty=full(0.0, np.float32),
            presence_penalty=full(0.0, np.float32),
            prompt_len=full(end),
            all_greedy=not sampled,
            any_filter=sampled,
            any_penalty=sampled,
        ),
        masks=[(0, np.full(mask_words, -1, np.int32))] if sampled else (),
    )
