"""The request tables: one row for each running branch, all in numpy, so that a step costs no Python per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import SamplingArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stemma.backend.scheduler.branch import Branch, Work
    from stemma.lang.params import SamplingParams


class Rows:
    """Length algebra, for each row: tree_len <= computed <= length <= limit.

    ids[row, :length] are the branch's tokens, slots[row, :computed] the KV slots of those already run through the
    model. slots[row, :tree_len] belong to the prefix cache (pinned by the branch's handle), the rest of them to the
    row. length - computed tokens are pending; a branch that waits only for its next decoded token has one.

    While a step is launched and its results are not processed, these say what is known without it, and `ahead` and
    `drawing` what it will add: slots[row, computed : computed + ahead] are the row's too, and the next token of a row
    may be one that is being drawn. `epoch` grows whenever launched results cease to matter for the row.
    """

    def __init__(self, max_rows: int, context: int, vocab_size: int) -> None:
        self.max_rows, self.context, self.vocab_size = max_rows, context, vocab_size
        self.ids = np.zeros((max_rows, context), np.int32)
        self.slots = np.zeros((max_rows, context), np.int32)
        self.tree_len = np.zeros(max_rows, np.int32)
        self.computed = np.zeros(max_rows, np.int32)
        self.length = np.zeros(max_rows, np.int32)
        self.limit = np.zeros(max_rows, np.int32)
        self.expected = np.zeros(max_rows, np.int32)  # the length that it is expected to end with
        self.most = np.zeros(max_rows, np.int32)  # the longest that it may end with: at most limit
        self.prompt_len = np.zeros(max_rows, np.int32)
        self.sample = np.zeros(max_rows, np.bool_)  # false: prefill only, or a scored choice
        self.special = np.zeros(
            max_rows, np.bool_
        )  # its tokens need a look in Python (stops, stream, grammar, logprobs)
        self.ignore_eos = np.zeros(max_rows, np.bool_)
        self.temperature = np.zeros(max_rows, np.float32)
        self.top_p = np.ones(max_rows, np.float32)
        self.top_k = np.full(max_rows, vocab_size, np.int32)
        self.min_p = np.zeros(max_rows, np.float32)
        self.seed = np.zeros(max_rows, np.int64)
        self.repetition_penalty = np.ones(max_rows, np.float32)
        self.frequency_penalty = np.zeros(max_rows, np.float32)
        self.presence_penalty = np.zeros(max_rows, np.float32)
        self.spent = np.zeros(max_rows, np.int64)  # tokens run through the model for the current work
        self.t_first = np.zeros(max_rows, np.float64)  # when its first token came (perf_counter), 0 before
        self.ahead = np.zeros(max_rows, np.int32)  # tokens launched and not processed
        self.drawing = np.zeros(max_rows, np.int32)  # tokens that are being drawn, behind `length`
        self.waits = np.zeros(max_rows, np.bool_)  # what it is extended by depends on more than the token drawn last
        self.epoch = np.zeros(max_rows, np.int64)
        self.place = np.zeros(max_rows, np.int32)  # its index in the plan that it was in last
        self.branch: list[Branch | None] = [None] * max_rows
        self._free = list(range(max_rows - 1, -1, -1))

    @property
    def free_count(self) -> int:
        return len(self._free)

    def take(self, branch: Branch) -> int:
        row = self._free.pop()
        self.branch[row] = branch
        self.tree_len[row] = self.computed[row] = self.length[row] = 0
        self.spent[row] = 0
        self.t_first[row] = 0.0
        return row

    def give(self, row: int) -> None:
        assert self.branch[row] is not None, f"row {row} is free already"
        assert not self.ahead[row], f"row {row} is given back with launched tokens"
        self.epoch[row] += 1
        self.branch[row] = None
        self._free.append(row)

    def _filters(self, params: SamplingParams | None) -> tuple[float, float, int, float]:
        """temperature, top_p, top_k and min_p of a row; greedy ones have none."""
        if params is None or params.greedy:
            return 0.0, 1.0, self.vocab_size, 0.0
        top_k = self.vocab_size if params.top_k == -1 else min(params.top_k, self.vocab_size)
        return params.temperature, params.top_p, top_k, params.min_p

    def set_sampling(self, row: int, params: SamplingParams | None, seed: int) -> None:
        """Write a generation's sampling parameters; None for a row that never samples."""
        self.temperature[row], self.top_p[row], self.top_k[row], self.min_p[row] = self._filters(params)
        self.seed[row] = seed
        self.ignore_eos[row] = params.ignore_eos if params else False
        self.repetition_penalty[row] = params.repetition_penalty if params else 1.0
        self.frequency_penalty[row] = params.frequency_penalty if params else 0.0
        self.presence_penalty[row] = params.presence_penalty if params else 0.0

    def sampling(self, rows: np.ndarray, followers: Sequence[Work] = ()) -> SamplingArrays:
        """Gather the sampling arrays of a plan: of its rows, and of works without one."""
        temperature, top_p, top_k, min_p = self.temperature[rows], self.top_p[rows], self.top_k[rows], self.min_p[rows]
        repetition = self.repetition_penalty[rows]
        frequency, presence = self.frequency_penalty[rows], self.presence_penalty[rows]
        seed, prompt_len = self.seed[rows], self.prompt_len[rows]
        if followers:
            filters = np.array([self._filters(work.params) for work in followers])
            more = lambda old, new: np.concatenate([old, np.asarray(new, old.dtype)])  # noqa: E731
            temperature, top_p = more(temperature, filters[:, 0]), more(top_p, filters[:, 1])
            top_k, min_p = more(top_k, filters[:, 2]), more(min_p, filters[:, 3])
            params = [work.params for work in followers if work.params is not None]
            repetition = more(repetition, [p.repetition_penalty for p in params])
            frequency = more(frequency, [p.frequency_penalty for p in params])
            presence = more(presence, [p.presence_penalty for p in params])
            seed = more(seed, [work.seed for work in followers])
            prompt_len = more(prompt_len, [work.prompt_len for work in followers])
        return SamplingArrays(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition,
            frequency_penalty=frequency,
            presence_penalty=presence,
            prompt_len=prompt_len,
            all_greedy=not temperature.any(),
            any_filter=bool((top_p < 1.0).any() or (top_k < self.vocab_size).any() or min_p.any()),
            any_penalty=bool((repetition != 1.0).any() or frequency.any() or presence.any()),
        )
