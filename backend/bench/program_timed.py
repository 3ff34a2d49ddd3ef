"""An engine whose model is only a clock: every step takes the time that a large model on a GPU would take.

Everything else is real: server, scheduler, cache, tokenizer. So what is measured is everything but the model, at the
pace of such a model, and the processor is free for it as it is beside a GPU. The default times are those measured for
Llama-3.1-8B in bf16 on one H200: 5 ms for a step, and 20 µs for each token in it. Tokens follow from the four tokens
before them.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from stemma.backend.core import Int32, Plan, RowLogprobs, StepOutput
from stemma.backend.engine import Engine

STEP_SECONDS = 5e-3
TOKEN_SECONDS = 20e-6
_FACTORS = np.array([1_000_003, 7_919, 104_729, 611_953], np.int64)


class TimedRunner:
    """The runner's contract without a model. Constraints, drafts, followers and best alternatives are not here."""

    def __init__(self, num_slots: int, vocab_size: int, words: Int32) -> None:
        """`words`: the ids that it may generate."""
        self.num_slots, self.vocab_size, self._words = num_slots, vocab_size, words

    def run(self, plan: Plan) -> StepOutput:
        until = time.perf_counter() + STEP_SECONDS + TOKEN_SECONDS * len(plan.ids)
        if len(plan.masks) or plan.verify or plan.followers:
            raise NotImplementedError("the timed runner has no constraints, no drafts and no followers")
        ends = plan.start + plan.n
        before = plan.id_table[plan.rows[:, None], np.maximum(ends[:, None] - np.arange(1, 5), 0)].astype(np.int64)
        tokens = self._words[(before * _FACTORS).sum(1) % len(self._words)]
        said = {want.index: self._logprobs(plan, want) for want in plan.logprobs}
        time.sleep(max(until - time.perf_counter(), 0.0))
        return StepOutput(np.where(plan.sample, tokens, -1).astype(np.int32), said)

    def _logprobs(self, plan: Plan, want: Any) -> RowLogprobs:
        if want.output or want.top:
            raise NotImplementedError("the timed runner scores given tokens only")
        row = plan.id_table[plan.rows[want.index]]
        score = lambda token, p: -float(token * 31 + int(row[p - 1])) % 97 / 10 - 1  # noqa: E731
        positions = range(want.input_from, want.input_to)
        said = RowLogprobs(want.input_from, [score(int(row[p]), p) for p in positions])
        if want.ids:
            said.input_ids = [[(score(token, p), token) for token in want.ids] for p in positions]
        return said


class TimedEngine(Engine):
    """`Engine` with a `TimedRunner` in the place of the model's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        table = self.tokenizer.token_bytes
        words = [i for i, t in enumerate(table) if t is not None and len(t) > 3 and t[:1] == b" " and t[1:].isalpha()]
        timed = TimedRunner(self.runner.num_slots, self.runner.vocab_size, np.array(words, np.int32))
        self.scheduler.runner = timed
        self.scheduler.planner.follow = False
