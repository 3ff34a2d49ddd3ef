"""The scheduler: receive, pick, run, process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from stemma.backend.cache.base import NoCache, PrefixCache
from stemma.backend.cache.host import HostCopies, LoadRule
from stemma.backend.cache.radix import RadixCache
from stemma.backend.cache.slots import SlotAllocator
from stemma.backend.cache.tiered import TieredCache
from stemma.backend.core import Plan, Runner, StepOutput
from stemma.backend.messages import GraphDelta
from stemma.backend.scheduler.admit import Memory
from stemma.backend.scheduler.branch import Sink
from stemma.backend.scheduler.drafts import STEP_COSTS, Drafter
from stemma.backend.scheduler.graph import Graph
from stemma.backend.scheduler.masking import Masker, StepMasks
from stemma.backend.scheduler.output import Output
from stemma.backend.scheduler.plan import Planner
from stemma.backend.scheduler.rows import Rows
from stemma.backend.scheduler.tools import Clock, Compile, TextTools

EXPIRE_EVERY = 1.0  # seconds between looks at idle leases
CHECK_EVERY = 30.0  # seconds between integrity checks of an engine that has become idle
CHECK_SHARE = 0.005  # and the share of the time that they may take, however large the cache is


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
        page_size: int = 1,
        eviction: str = "lru",
        host: HostCopies | None = None,
        load_rule: LoadRule | None = None,
        jump_forward: bool = True,
        mask_overlap: bool = True,
        draft: str = "off",
        seed: int = 0,
        lease: float = 60.0,
        check_every: float = CHECK_EVERY,
        max_prefill: int = 16384,
        same_step_sharing: bool = True,
        mixed_chunk: bool = True,
        clock: Clock = time.perf_counter,
        max_queued: int | None = None,
    ) -> None:
        """clock: seconds that never go back; ageing, leases and latencies are measured with it."""
        self.clock = clock
        self.runner = runner
        self.slots = SlotAllocator(runner.num_slots, page_size)
        self.load_rule = load_rule or LoadRule()
        self.cache = self._make_cache(radix, eviction, host)
        self.rows = Rows(max_rows, context, runner.vocab_size)
        self.memory = Memory(self.rows, self.slots, self.cache, policy, conservativeness, clock, radix=radix, seed=seed)
        self.graph = Graph(
            self.memory, text, compile, context=context, vocab_size=runner.vocab_size, seed=seed, lease=lease,
            max_queued=max_queued,
        )  # fmt: skip
        eos_ids = text.tokenizer.eos_ids
        self.masker = Masker(runner.vocab_size, eos_ids, mask_overlap, clock)
        self.drafter = Drafter(self.memory, draft, getattr(runner, "step_costs", STEP_COSTS))
        self.planner = Planner(
            self.memory,
            chunk,
            self.masker,
            self.drafter,
            max_prefill=max_prefill,
            same_step_sharing=same_step_sharing or not radix,
            mixed_chunk=mixed_chunk,
        )
        self.planner.follow = radix and getattr(runner, "takes_followers", False)
        self.output = Output(self.memory, self.graph, eos_ids, runner.vocab_size, jump_forward, self.drafter)
        self.tokens_computed = 0
        self._next_expire = clock() + EXPIRE_EVERY
        self._check_every, self._next_check, self._checked_step = check_every, clock(), 0

    def _make_cache(self, radix: bool, eviction: str, host: HostCopies | None) -> PrefixCache:
        if not radix:
            return NoCache()
        if host is None:
            return RadixCache(self.slots, eviction)
        return TieredCache(self.slots, host, eviction, self.load_rule)

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
        self.graph.enforce_deadlines(now)
        if now >= self._next_check and self.idle:
            self._check_when_idle(now)
        plan = self.planner.build()
        for branch in self.planner.settled:
            self.output.settle(branch)
        if plan is None:
            return bool(self.planner.settled)
        self.tokens_computed += len(plan.ids)
        began = self.clock()
        out = self._run(plan)
        self.load_rule.observe(len(plan.ids), self.clock() - began)
        self.output.process(plan, out)
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

    def next_wake(self, longest: float) -> float:
        """Seconds that an idle engine may sleep: until the next deadline, at most `longest`."""
        due = self.graph.deadlines.next
        return longest if due is None else min(max(due - self.clock(), 0.001), longest)

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

    def _check_when_idle(self, now: float) -> None:
        """The integrity check that nobody asks for. What it finds ends the engine: its answers could be wrong."""
        if self.planner.step == self._checked_step:
            return
        try:
            self.check()
        except AssertionError as error:
            raise RuntimeError(f"the integrity check of the KV cache failed: {error} (please report this)") from error
        self._checked_step = self.planner.step
        self._next_check = now + max(self._check_every, (self.clock() - now) / CHECK_SHARE)

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
            **self.cache.figures(),
            "retractions": self.memory.retractions,
            "refused": self.graph.pressure.refused,
            "tokens_computed": self.tokens_computed,
            **self.masker.figures(),
        }
