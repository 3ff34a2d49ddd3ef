"""The scheduler: receive, pick, run, process; or one step ahead: receive, pick, launch, process the step before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from stemma.backend.cache.base import NoCache, PrefixCache
from stemma.backend.cache.host import HostCopies, LoadRule
from stemma.backend.cache.radix import RadixCache
from stemma.backend.cache.slots import SlotAllocator
from stemma.backend.cache.tiered import TieredCache
from stemma.backend.core import AheadRunner, Int64, Launched, Plan, Runner, StepOutput
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


@dataclass(slots=True)
class Flight:
    """A step that is launched and not processed. epochs: those of its rows when it was planned."""

    plan: Plan
    epochs: Int64
    launched: Launched
    since: float  # when it was launched


class Scheduler:
    """Runs program graphs on a runner. One thread calls `step`; `submit` may come from any.

    overlap: plan and launch each step before the results of the one before it are known (docs/notes, "one step
    ahead"). The runner must be an `AheadRunner`; ValueError if it is not. Changes no token.
    """

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
        overlap: bool = False,
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
        if overlap and not getattr(runner, "overlap", False):
            raise ValueError(f"overlap=True needs a runner that can launch steps ahead; {type(runner).__name__} cannot")
        self.clock = clock
        self.runner, self.overlap = runner, overlap
        self._flight: Flight | None = None
        self._landed = 0.0  # when the last step was waited for
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
        self.memory.drafting = draft
        self.planner = Planner(
            self.memory,
            chunk,
            self.masker,
            self.drafter,
            overlap=overlap,
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
        if self.overlap:
            return self._step_ahead()
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

    # -- one step ahead --------------------------------------------------------------------------------------------

    def _step_ahead(self) -> bool:
        """Launch the next step, then process the one before it. A step that cannot be planned without the results of
        the one before it is left for the next call."""
        before, planner = self._flight, self.planner
        plan = None
        if before is None or not planner.starved:
            plan = planner.build(in_flight=before is not None)
            settled = planner.settled
        else:
            planner.starved, settled = False, []
        self._flight = None if plan is None else self._launch(plan)
        for branch in settled:
            self.output.settle(branch)
        try:
            if before is not None:
                self._land(before)
        finally:
            if self._flight is not None and self._flight.plan.late:
                self._sample(self._flight)
        if self._flight is not None and not self.memory.running and not self.memory.waiting:
            self._land(self._flight)  # all its rows have ended meanwhile
            self._flight = None
        return before is not None or plan is not None or bool(settled)

    def _launch(self, plan: Plan) -> Flight:
        self.tokens_computed += len(plan.ids)
        if not plan.late and isinstance(plan.masks, StepMasks):
            plan.masks.start()
        since = self.clock()
        return Flight(plan, self.planner.epochs, cast(AheadRunner, self.runner).launch(plan), since)

    def _land(self, flight: Flight) -> None:
        """Wait for a step's results and process them."""
        out = flight.launched.result()
        if isinstance(flight.plan.masks, StepMasks):
            flight.plan.masks.finish()  # if the runner did not: from here on the matchers are the output's
        now = self.clock()
        self.load_rule.observe(len(flight.plan.ids), now - max(flight.since, self._landed))  # it ran alone since then
        self._landed = now
        self.output.process(flight.plan, out, flight.epochs)

    def _sample(self, flight: Flight) -> None:
        """The step before a late one is processed: let it draw. Rows that have moved on, and those whose next token is
        known by now because the grammar forces it, need no mask: their draws will not be looked at."""
        plan, rows = flight.plan, self.memory.rows
        if isinstance(plan.masks, StepMasks):
            index = plan.rows
            awaited = (rows.epoch[index] == flight.epochs) & (plan.start + plan.n >= rows.length[index])
            plan.masks.keep(lambda i: i >= len(awaited) or bool(awaited[i]))  # followers draw in any case
            plan.masks.start()
        flight.launched.sample()

    @property
    def idle(self) -> bool:
        """Nothing runs, waits or is launched."""
        return not self.memory.running and not self.memory.waiting and self._flight is None

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
            "discarded_tokens": self.memory.discarded,
            "tokens_computed": self.tokens_computed,
            **self.masker.figures(),
        }
