"""One engine in virtual time: the real scheduler, and the art of not stepping through what can be known beforehand.

Coasting. While every running row decodes, nobody waits who could be admitted, nothing is special and no row ends, a
step only does this: make room for one token a row, take the slots, write the tokens, advance four counters. So the
replica says when the next step is that is not like this, and makes up for the steps before it at once, in numpy (only
eviction and allocation are still done step by step, since their order decides who is evicted). If a program arrives
earlier, it makes up for the steps begun until then. The result is that of stepping, to the last bit; the tests hold
both against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stemma.backend.messages import GraphDelta
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.simulate.costs import CostModel, Load
from stemma.backend.simulate.runner import SimRunner, SimText, VirtualClock
from stemma.backend.simulate.tokens import Outputs
from stemma.lang.errors import RequestError

Sink = Callable[[dict[str, Any]], None]
MOST_COASTED = 4096  # steps made up for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """Of each replica. `slots`: KV slots; `rows`: branches in one step; `chunk`: prompt tokens in one step. `options`
    go to the scheduler as they are. `coast` off: every step is stepped (the same results, slower)."""

    cost: CostModel
    slots: int = 800_000
    rows: int = 256
    chunk: int = 2048
    context: int = 32_768
    policy: str = "program"
    options: dict[str, Any] = field(default_factory=dict)
    coast: bool = True


@dataclass(slots=True)
class Coast:
    """Steps that will be made up for: step k (from 0) begins at times[k] and ends at times[k + 1]."""

    rows: np.ndarray
    times: np.ndarray
    contexts: np.ndarray
    steps: int  # so many of them


def _no_grammars(constraint: Any, done: Callable[[Any], None]) -> None:
    done(RequestError("a trace has no constraints: its outputs have lengths"))


class Replica:
    """Deltas go in with `give`; `step(now)` runs one step and returns when to come again, or None when idle."""

    def __init__(self, index: int, options: ReplicaOptions, outputs: Outputs) -> None:
        self.index, self.options, self.outputs = index, options, outputs
        self.clock = VirtualClock()
        self.runner = SimRunner(options.slots + 1, outputs, options.cost, self.clock)
        self.scheduler = Scheduler(
            self.runner,
            SimText(outputs.eos),
            _no_grammars,
            context=options.context,
            max_rows=options.rows,
            chunk=options.chunk,
            policy=options.policy,
            clock=self.clock,
            **options.options,
        )
        self.inbox: list[tuple[GraphDelta, Sink]] = []
        self.coast: Coast | None = None
        self.due: float | None = None  # when the next step begins, if one is to come
        self.slot_seconds = 0.0  # of slots that running rows hold
        self.waiting_seconds = 0.0  # of branches in the queue
        self.coasted = 0
        self.received = 0  # programs

    def give(self, delta: GraphDelta, sink: Sink, now: float) -> float | None:
        """Hand over a delta. Returns when the next step now begins, if that has changed."""
        self.inbox.append((delta, sink))
        if self.due is None:
            self.due = max(now, self.clock.now)
            return self.due
        if self.coast is None:
            return None
        steps = int(np.searchsorted(self.coast.times, now, side="left"))  # those that have begun before now
        if steps >= self.coast.steps:
            return None
        self.coast.steps = steps
        self.due = float(self.coast.times[steps])
        return self.due

    def step(self) -> float | None:
        """Run the step that is due. Returns when the next one begins, or None when there is nothing to do."""
        assert self.due is not None
        if self.coast is not None:
            self._make_up(self.coast)
            self.coast = None
        begin = self.clock.now = self.due
        scheduler = self.scheduler
        known = scheduler.graph.programs
        self.received += len({delta.program for delta, _ in self.inbox if delta.program not in known})
        acts = [scheduler.submit(delta, sink) for delta, sink in self.inbox]
        self.inbox.clear()
        for act in acts:
            act()
        memory = scheduler.memory
        ran = scheduler.step()
        seconds = self.clock.now - begin
        self.slot_seconds += seconds * (memory.slots.total - memory.slots.free_count - memory.cache.evictable)
        self.waiting_seconds += seconds * len(memory.waiting)
        if scheduler.idle and not self.inbox:
            self.due = None
            return None
        if not ran and not seconds and not self.inbox:
            raise AssertionError(f"replica {self.index} has work and does nothing about it")
        self.due = self.clock.now
        if self.options.coast and not self.inbox:
            self.coast = self._plan_coast()
            if self.coast is not None:
                self.due = float(self.coast.times[self.coast.steps])
        return self.due

    def report(self) -> tuple[int, int]:
        """Branches running and waiting, and programs received: what a router is told."""
        memory = self.scheduler.memory
        return len(memory.running) + len(memory.waiting), self.received

    # -- coasting --------------------------------------------------------------------------------------------------

    def _plan_coast(self) -> Coast | None:
        """The steps ahead in which nothing happens, if there are any."""
        scheduler = self.scheduler
        memory, planner = scheduler.memory, scheduler.planner
        rows, index, n = memory.rows, planner._rows, len(memory.running)
        if memory.changed or not planner._decode_only or not n or len(index) != n or planner.writers is not None:
            return None
        if memory.waiting and rows.free_count and not memory.full:
            return None
        length, prompt = rows.length[index].astype(np.int64), rows.prompt_len[index]
        most = np.minimum(Outputs.lengths(rows.seed[index]), rows.limit[index] - prompt)
        steps = int((most - 1 - (length - prompt)).min())
        steps = min(steps, (memory.slots.free_count + memory.cache.evictable) // n, MOST_COASTED)
        if steps < 1 or rows.special[index].any() or not rows.sample[index].all() or not rows.t_first[index].all():
            return None
        if not (length - rows.computed[index] == 1).all():
            return None
        last = self.runner.last
        ahead = n * np.arange(1, steps + 1, dtype=np.float64)
        load = Load(n, n, last.context + ahead, last.shared, last.pairs + ahead)  # type: ignore[arg-type]
        seconds = self.options.cost.seconds(load)
        times = np.cumsum(np.concatenate([[self.clock.now], np.broadcast_to(seconds, steps)]))
        steps = min(steps, int(np.searchsorted(times, scheduler._next_expire, side="left")))
        return Coast(index.copy(), times, last.context + ahead, steps) if steps > 0 else None

    def _make_up(self, coast: Coast) -> None:
        """Do what the coasted steps would have done."""
        scheduler, index, steps = self.scheduler, coast.rows, coast.steps
        if not steps:
            return
        memory = scheduler.memory
        rows, n = memory.rows, len(index)
        slots = np.empty((n, steps), np.int32)
        seconds = np.diff(coast.times[: steps + 1])
        for k in range(steps):
            if not memory.ensure(n):
                raise AssertionError("coasting ran out of memory that was there")
            slots[:, k] = memory.slots.allocate(n)
            held = memory.slots.total - memory.slots.free_count - memory.cache.evictable
            self.slot_seconds += float(seconds[k]) * held
            self.waiting_seconds += float(seconds[k]) * len(memory.waiting)
            self.runner.count(1, float(seconds[k]), n * float(seconds[k]))
        start = rows.computed[index].astype(np.int64)
        at = start[:, None] + np.arange(steps)
        rows.slots[index[:, None], at] = slots
        drawn = self.outputs.tokens(rows.seed[index][:, None], at + 1 - rows.prompt_len[index][:, None])
        rows.ids[index[:, None], at + 1] = drawn
        rows.computed[index] += steps
        rows.length[index] += steps
        rows.spent[index] += steps
        scheduler.planner.step += steps
        scheduler.tokens_computed += n * steps
        last, grown = self.runner.last, n * steps
        self.runner.last = Load(n, n, last.context + grown, last.shared, last.pairs + grown)
        self.coasted += steps
