"""The scheduler: receive, pick, run, process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from stemma.backend.cache.base import NoCache, PrefixCache
from stemma.backend.cache.radix import RadixCache
from stemma.backend.cache.slots import SlotAllocator
from stemma.backend.core import Plan, Runner, StepOutput
from stemma.backend.messages import GraphDelta
from stemma.backend.scheduler.admit import Memory
from stemma.backend.scheduler.branch import Sink
from stemma.backend.scheduler.graph import Graph
from stemma.backend.scheduler.masking import Masker, StepMasks
from stemma.backend.scheduler.output import Output
from stemma.backend.scheduler.plan import Planner
from stemma.backend.scheduler.rows import Rows
from stemma.backend.scheduler.tools import Clock, Compile, TextTools

EXPIRE_EVERY = 1.0  # seconds between looks at idle leases


class Scheduler:
    """Runs program graphs on a runner. One thread calls `step`; `submit` may come from any."""

    def __init__(
        self,
        runner: Runner,
        text: TextTools,
        compile: Compile,
        *,
        context: int,
        max_rows: int = 256,
        chunk: int = 512,
        policy: str = "program",
        conservativeness: float = 1.0,
        radix: bool = True,
        jump_forward: bool = True,
        mask_overlap: bool = True,
        draft: str = "off",
        seed: int = 0,
        lease: float = 60.0,
        max_prefill: int = 16384,
        same_step_sharing: bool = True,
        mixed_chunk: bool = True,
        clock: Clock = time.perf_counter,
    ) -> None:
        """clock: seconds that never go back; ageing, leases and latencies are measured with it."""
        self.clock = clock
        self.runner = runner
        self.slots = SlotAllocator(runner.num_slots)
        self.cache: PrefixCache = RadixCache(self.slots) if radix else NoCache()
        self.rows = Rows(max_rows, context, runner.vocab_size)
        self.memory = Memory(self.rows, self.slots, self.cache, policy, conservativeness, clock, radix=radix, seed=seed)
        self.graph = Graph(
            self.memory, text, compile, context=context, vocab_size=runner.vocab_size, seed=seed, lease=lease
        )
        eos_ids = text.tokenizer.eos_ids
        self.masker = Masker(runner.vocab_size, eos_ids, mask_overlap, clock)
        self.planner = Planner(
            self.memory,
            chunk,
            self.masker,
            draft != "off",
            max_prefill=max_prefill,
            same_step_sharing=same_step_sharing or not radix,
            mixed_chunk=mixed_chunk,
        )
        self.output = Output(self.memory, self.graph, eos_ids, runner.vocab_size, jump_forward, draft == "forced")
        self.tokens_computed = 0
        self._next_expire = clock() + EXPIRE_EVERY

    def submit(self, delta: GraphDelta, sink: Sink) -> Callable[[], None]:
        """Check and record a delta (any thread; RequestError). Returns what to call in the scheduler's thread."""
        branches = self.graph.register(delta, sink)
        return lambda: self.graph.advance(*branches)

    def step(self) -> bool:
        """One step of the engine. False when there was nothing to run."""
        now = self.clock()
        if now >= self._next_expire:
            self._next_expire = now + EXPIRE_EVERY
            self.graph.expire(now)
        plan = self.planner.build()
        for branch in self.planner.settled:
            self.output.settle(branch)
        if plan is None:
            return bool(self.planner.settled)
        self.tokens_computed += len(plan.ids)
        self.output.process(plan, self._run(plan))
        return True

    def _run(self, plan: Plan) -> StepOutput:
        masks = plan.masks
        if not isinstance(masks, StepMasks):
            return self.runner.run(plan)
        masks.start()
        out = self.runner.run(plan)
        masks.finish()  # if the runner did not: from here on the matchers are the output's
        return out

    @property
    def idle(self) -> bool:
        return not self.memory.running and not self.memory.waiting

    def flush_cache(self) -> bool:
        """Forget all cached prefixes. False (and nothing happens) while branches are running or waiting."""
        if not self.idle:
            return False
        for branch in list(self.memory.leases.values()):
            self.memory.drop_lease(branch)
        self.cache.reset()
        return True

    def check(self) -> None:
        """Integrity: free + cached + in_use == total, and nothing owned twice. Raises AssertionError."""
        self.memory.check()

    def load(self) -> dict[str, Any]:
        """What a router or a status page needs."""
        return {
            "running": len(self.memory.running),
            "waiting": len(self.memory.waiting),
            "programs": len(self.graph.programs),
            "free_slots": self.slots.free_count,
            "cached_slots": self.cache.size,
            "evictable_slots": self.cache.evictable,
            "total_slots": self.slots.total,
            "retractions": self.memory.retractions,
            "tokens_computed": self.tokens_computed,
            **self.masker.figures(),
        }
