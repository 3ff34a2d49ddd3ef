"""Plans by hand: a miniature scheduler for tests of the runner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stemma.backend.core import Group, LogprobRequest, Plan, SamplingArrays


def sampling_arrays(rows: int, vocab_size: int, prompt_len: Sequence[int] = (), **given: Any) -> SamplingArrays:
    """Greedy defaults, overridden by `given` (a scalar for all rows or one value for each); flags are derived."""
    full = lambda name, default, kind: np.broadcast_to(  # noqa: E731
        np.asarray(given.get(name, default), kind), (rows,)
    ).copy()
    arrays = SamplingArrays(
        temperature=full("temperature", 0.0, np.float32),
        top_p=full("top_p", 1.0, np.float32),
        top_k=full("top_k", vocab_size, np.int32),
        min_p=full("min_p", 0.0, np.float32),
        seed=full("seed", 0, np.int64),
        repetition_penalty=full("repetition_penalty", 1.0, np.float32),
        frequency_penalty=full("frequency_penalty", 0.0, np.float32),
        presence_penalty=full("presence_penalty", 0.0, np.float32),
        prompt_len=np.asarray(prompt_len or [0] * rows, np.int32),
        bias=given.get("bias", ()),
    )
    arrays.all_greedy = bool((arrays.temperature == 0).all())
    arrays.any_filter = bool((arrays.top_p < 1).any() or (arrays.top_k < vocab_size).any() or (arrays.min_p > 0).any())
    arrays.any_penalty = bool(
        (arrays.repetition_penalty != 1).any()
        or (arrays.frequency_penalty != 0).any()
        or (arrays.presence_penalty != 0).any()
    )
    return arrays


class Sequences:
    """Rows of a request table with their slots. `extend` appends tokens and makes the plan that computes them."""

    def __init__(self, vocab_size: int, max_rows: int = 8, context: int = 256, shuffle: int | None = 0) -> None:
        """shuffle: seed for handing out slots in random order; None hands them out ascending."""
        self.vocab_size = vocab_size
        self.slot_table = np.zeros((max_rows, context), np.int32)
        self.id_table = np.zeros((max_rows, context), np.int32)
        self.computed = [0] * max_rows
        order = np.arange(1, max_rows * context + 1, dtype=np.int32)
        if shuffle is not None:
            np.random.default_rng(shuffle).shuffle(order)
        self._free = order.tolist()
        self.step = 0

    @property
    def slots_needed(self) -> int:
        """Slots that the pool must have, slot 0 included."""
        return self.slot_table.size + 1

    def share(self, source: int, target: int, length: int) -> None:
        """Row `target` starts with the first `length` positions of `source`, computed before or in the next step."""
        self.slot_table[target, :length] = self.slot_table[source, :length]
        self.id_table[target, :length] = self.id_table[source, :length]
        self.computed[target] = length

    def put(self, row: int, ids: Sequence[int]) -> tuple[int, int]:
        """Writes ids and fresh slots behind what the row has; returns (start, n) and counts them as computed."""
        start, n = self.computed[row], len(ids)
        self.id_table[row, start : start + n] = ids
        self.slot_table[row, start : start + n] = [self._free.pop() for _ in range(n)]
        self.computed[row] = start + n
        return start, n

    def extend(
        self,
        pieces: Sequence[tuple[int, Sequence[int]]],
        *,
        sample: Sequence[bool] | None = None,
        logprobs: Sequence[LogprobRequest] = (),
        masks: Sequence[tuple[int, Any]] = (),
        groups: Sequence[Group] = (),
        **sampling: Any,
    ) -> Plan:
        """A plan with one row for each (row, ids) piece."""
        spans = [(row, *self.put(row, ids)) for row, ids in pieces]
        return self.plan(spans, sample=sample, logprobs=logprobs, masks=masks, groups=groups, **sampling)

    def plan(
        self,
        spans: Sequence[tuple[int, int, int]],
        *,
        sample: Sequence[bool] | None = None,
        logprobs: Sequence[LogprobRequest] = (),
        masks: Sequence[tuple[int, Any]] = (),
        groups: Sequence[Group] = (),
        **sampling: Any,
    ) -> Plan:
        """A plan from (row, start, n) spans whose ids and slots are in the tables."""
        self.step += 1
        rows = np.array([row for row, _, _ in spans], np.int32)
        start = np.array([start for _, start, _ in spans], np.int32)
        n = np.array([n for _, _, n in spans], np.int32)
        gather = lambda table: np.concatenate([table[r, s : s + k] for r, s, k in spans])  # noqa: E731
        return Plan(
            step=self.step,
            rows=rows,
            start=start,
            n=n,
            offsets=np.concatenate(([0], np.cumsum(n))).astype(np.int32),
            ids=gather(self.id_table),
            positions=np.concatenate([np.arange(s, s + k, dtype=np.int32) for _, s, k in spans]),
            out_slots=gather(self.slot_table),
            sample=np.ones(len(spans), np.bool_) if sample is None else np.asarray(sample, np.bool_),
            slot_table=self.slot_table,
            id_table=self.id_table,
            sampling=sampling_arrays(len(spans), self.vocab_size, **sampling),
            masks=masks,
            logprobs=logprobs,
            groups=groups,
        )
