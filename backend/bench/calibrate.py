"""Measure what steps of the bundled model cost on this machine, for the simulator's cost model.

The real scheduler steps the real runner on made-up prompts: cold prefills of many lengths, decode batches of many sizes
over contexts of many lengths, and both mixed. A step's time is that of the whole `Scheduler.step`, host work included.
"""

from __future__ import annotations

import math
import random
import time

from stemma.backend.config import DEMO_MODEL
from stemma.backend.core import Plan, StepOutput
from stemma.backend.executor.runner import ModelRunner
from stemma.backend.messages import BranchDelta, GenNode, GraphDelta, IdsNode
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.simulate.costs import Fit, Load, fit
from stemma.backend.simulate.runner import SimText
from stemma.lang.errors import RequestError

KNOTS = (2, 4, 8, 9, 16, 32, 64, 128, 256, 512, 1024)  # the compiled step ends at 8 tokens
CHUNK = 512
REPEATS = 3


class _Watched:
    """A runner that keeps what the last plan touched."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner, self.num_slots, self.vocab_size = runner, runner.num_slots, runner.vocab_size
        self.last: Load | None = None
        self.clock = time.thread_time if runner.num_threads == 1 else time.perf_counter

    def run(self, plan: Plan) -> StepOutput:
        self.last = Load.of(plan)
        return self.runner.run(plan)


def measure(seconds: float = 20.0, threads: int | None = None, seed: int = 0) -> Fit:
    """Run for about so many seconds and fit. Every batch runs three times, and the fastest time of each of its steps
    counts: the others were slowed down by something else. With one thread its processor time is taken, which other
    programs on the machine do not touch; with more (None: the engine's choice) the time that passes."""
    if not seconds > 0:
        raise RequestError(f"--seconds must be > 0, got {seconds}")
    model = ModelRunner(DEMO_MODEL, num_threads=threads)
    model.warm_up()
    watched = _Watched(model)
    rng = random.Random(seed)
    loads: list[Load] = []
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not loads:
        shape = rng.getrandbits(64)
        runs = [_batch(watched, random.Random(shape)) for _ in range(REPEATS)]
        for same in zip(*runs, strict=True):
            assert len({load for load, _ in same}) == 1, "a batch that runs again has the same steps"
            loads.append(same[0][0])
            times.append(min(t for _, t in same))
    return fit("calibrated", loads, times, KNOTS)


def _batch(watched: _Watched, rng: random.Random) -> list[tuple[Load, float]]:
    """Some requests, prefilled and decoded, while others come later: what each step touched, and its seconds."""
    rows = rng.choice((1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
    scheduler = Scheduler(
        watched, SimText(watched.vocab_size - 1), lambda c, done: done(RequestError("no constraints here")),
        context=watched.runner.context_length, max_rows=64, chunk=CHUNK, policy="fcfs",
    )  # fmt: skip
    longest = min(watched.runner.context_length - 40, max(8, 1500 // rows))
    out: list[tuple[Load, float]] = []
    for k in range(rows):
        n = round(math.exp(rng.uniform(0.0, math.log(longest))))
        ids = [rng.randrange(10, watched.vocab_size - 10) for _ in range(n)]
        gen = GenNode(params={"max_new_tokens": rng.randint(4, 32), "temperature": 0.0, "ignore_eos": True})
        branch = BranchDelta(id="r", nodes=[IdsNode(ids=ids), gen], end=True)
        scheduler.submit(GraphDelta(program=str(k), branches=[branch], end=True), lambda event: None)()
        if rng.random() < 0.2:
            _step(scheduler, watched, out)
    while not scheduler.idle:
        _step(scheduler, watched, out)
    return out


def _step(scheduler: Scheduler, watched: _Watched, out: list[tuple[Load, float]]) -> None:
    begin = watched.clock()
    if scheduler.step():
        assert watched.last is not None
        out.append((watched.last, watched.clock() - begin))
