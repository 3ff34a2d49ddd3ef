"""The device side of a simulated replica: tokens out of a seed, time out of a cost model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from stemma.backend.core import Int32, Plan, RowLogprobs, StepOutput
from stemma.backend.scheduler.branch import TextOut
from stemma.backend.simulate.costs import CostModel, Load
from stemma.backend.simulate.tokens import Outputs
from stemma.lang.errors import RequestError
from stemma.lang.params import SamplingParams

FIRST_CHARACTER = 0x10000  # token t of a choice is written as the character behind it by t


class VirtualClock:
    """Seconds since the simulation began. Called like `time.perf_counter`."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SimTokenizer:
    """Traces consist of ids. Only choices are text, one character for each token."""

    bos_id, add_bos = None, False

    def __init__(self, eos: int) -> None:
        self.eos_ids = frozenset({eos})

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]], *, start: bool = False) -> list[int]:
        return [ord(c) - FIRST_CHARACTER for text, _ in pieces for c in text]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return ""


class SimText:
    """What the scheduler asks about text, where there is none."""

    def __init__(self, eos: int) -> None:
        self.tokenizer = SimTokenizer(eos)

    def markers(self, role: str, previous: tuple[str, ...]) -> tuple[str, str]:
        raise RequestError("a trace has no roles: its literals are token ids")

    def stream(self, params: SamplingParams) -> TextOut:
        raise RequestError("a trace has no stop strings: its outputs have lengths")


class SimRunner:
    """Answers a plan with the tokens its rows' seeds stand for, and moves the clock by what the step costs."""

    def __init__(self, num_slots: int, outputs: Outputs, cost: CostModel, clock: VirtualClock) -> None:
        self.num_slots, self.vocab_size = num_slots, outputs.vocab + 1
        self.outputs, self.cost, self.clock = outputs, cost, clock
        self.last = Load(0, 0, 0, 0, 0)
        self.steps = 0
        self.busy = 0.0  # seconds
        self.row_seconds = 0.0

    def run(self, plan: Plan) -> StepOutput:
        self.last = load = Load.of(plan)
        seconds = self.cost.seconds(load)
        self.count(1, seconds, load.rows * seconds)
        self.clock.now += seconds
        sampling = plan.sampling
        at = plan.start + plan.n - sampling.prompt_len
        tokens = self.outputs.tokens(sampling.seed, np.maximum(at, 0))
        out = StepOutput(np.where(plan.sample, tokens, np.int32(-1)))
        for verify in plan.verify:
            i = verify.index
            before = int(at[i]) - np.arange(verify.count, 0, -1)
            out.verified[i] = self.outputs.tokens(np.full(verify.count, sampling.seed[i]), before)
        for want in plan.logprobs:
            out.logprobs[want.index] = said = RowLogprobs()
            if want.input_from >= 0:
                said.input_start = want.input_from
                row = plan.id_table[plan.rows[want.index], want.input_from : want.input_to]
                said.input = _logprobs(row)
                if want.ids:
                    told = list(zip(_logprobs(np.array(want.ids, np.int32)), want.ids, strict=True))
                    said.input_ids = [told] * len(row)
        return out

    def count(self, steps: int, seconds: float, row_seconds: float) -> None:
        self.steps += steps
        self.busy += seconds
        self.row_seconds += row_seconds


def _logprobs(ids: Int32) -> list[float]:
    """Made up from the token alone, so that a select has a winner, always the same one."""
    return (-1.0 - (ids.astype(np.int64) * 2_654_435_761 % 1000) / 100.0).tolist()
