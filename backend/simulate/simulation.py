"""The event loop: arrivals, clients, a router and replicas, in virtual time.

Events at one moment happen in this order: arrivals, clients, steps; within one kind as they were made. A replica's step
takes in what has reached it by its beginning; what it answers is known at its end.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stemma.backend.distributed.routing import Router, RoutingRule
from stemma.backend.simulate.client import ProgramRun
from stemma.backend.simulate.oracle import Oracle
from stemma.backend.simulate.replica import Replica, ReplicaOptions
from stemma.backend.simulate.tokens import Outputs
from stemma.backend.simulate.trace import VOCAB, TraceProgram

_ARRIVE, _CLIENT, _STEP = 0, 1, 2
_NOTHING = np.empty(0, np.int32)


@dataclass(slots=True)
class ProgramResult:
    """Seconds and tokens of one program. `latency`: in which something was asked of the engine; `elapsed`: from arrival
    to the last answer. `slowdown` is set where the program was also run alone."""

    id: str
    kind: str
    replica: int
    arrival: float
    elapsed: float
    latency: float
    ttft: float
    longest_wait: float
    prompt: int
    cached: int
    computed: int
    generated: int
    retractions: int
    error: str = ""
    slowdown: float = 0.0


@dataclass(slots=True)
class Result:
    """Of one simulation."""

    programs: list[ProgramResult] = field(default_factory=list)
    seconds: float = 0.0  # virtual, from the first arrival to the last answer
    wall: float = 0.0  # of the machine that simulated it
    cpu: float = 0.0  # processor time that it took
    steps: int = 0
    coasted: int = 0
    busy: float = 0.0  # share of the replicas' time
    rows: float = 0.0  # mean rows of a step, by time
    slots: float = 0.0  # mean share of the slots that running rows hold, by busy time
    waiting: float = 0.0  # mean branches in the queue, by busy time
    retractions: int = 0
    oracle: float | None = None  # hit rate of a cache without bounds


class Simulation:
    """Runs programs on simulated replicas. Deterministic: equal arguments, equal results.

    network: seconds that a message takes, each way. oracle: also work out what a cache without bounds would hit.
    """

    def __init__(
        self,
        options: ReplicaOptions,
        *,
        replicas: int = 1,
        routing: RoutingRule | None = None,
        network: float = 0.0,
        vocab: int = VOCAB,
        oracle: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.outputs = Outputs(vocab)
        self.replicas = [Replica(k, options, self.outputs) for k in range(replicas)]
        self.router = Router(replicas, routing)
        self.network = network
        self.progress = progress
        self._oracle = Oracle(self.outputs) if oracle else None
        self._heap: list[tuple[float, int, int, Any]] = []
        self._serial = 0
        self._stale: dict[int, int] = {}  # replica -> serial of its only valid step
        self._result = Result()

    def run(self, programs: Iterable[TraceProgram]) -> Result:
        """All of them, to the end. `programs` must be in order of arrival; they are taken one by one."""
        began, cpu = time.perf_counter(), time.process_time()
        self._arrivals = iter(programs)
        self._next_arrival()
        heap = self._heap
        first = heap[0][0] if heap else 0.0
        while heap:
            now, kind, serial, what = heapq.heappop(heap)
            if kind == _STEP:
                if self._stale[what.index] == serial:
                    self._step(what)
            elif kind == _CLIENT:
                what(now)
            else:
                self._next_arrival()
                self._arrive(what, now)
        self._result.wall, self._result.cpu = time.perf_counter() - began, time.process_time() - cpu
        return self._finish(first)

    # -- events ----------------------------------------------------------------------------------------------------

    def _push(self, at: float, kind: int, what: Any) -> int:
        self._serial += 1
        heapq.heappush(self._heap, (at, kind, self._serial, what))
        return self._serial

    def _next_arrival(self) -> None:
        program = next(self._arrivals, None)
        if program is not None:
            self._push(program.arrival, _ARRIVE, program)

    def _step_at(self, replica: Replica, at: float) -> None:
        self._stale[replica.index] = self._push(at, _STEP, replica)

    def _arrive(self, program: TraceProgram, now: float) -> None:
        run = ProgramRun(program, self.outputs)
        run.begin(now)
        looks = self.router.rule.policy == "prefix" and len(self.replicas) > 1
        beginning = run.beginning() if looks else _NOTHING
        replica = self.replicas[self.router.route(program.id, beginning)]
        if self._oracle is not None:
            self._oracle.begin(program)
        self._send(run, replica, now)

    def _send(self, run: ProgramRun, replica: Replica, now: float) -> None:
        """Let a client send what it can."""
        delta = run.next_delta(now)
        if delta is not None:

            def sink(event: dict[str, Any]) -> None:
                if event["event"] in ("done", "error"):
                    self._answer(run, replica, event)

            def deliver(at: float) -> None:
                due = replica.give(delta, sink, at)
                if due is not None:
                    self._step_at(replica, due)

            if self.network:
                self._push(now + self.network, _CLIENT, deliver)
            else:
                deliver(now)
        if run.wake is not None:
            self._push(run.wake, _CLIENT, lambda at: self._send(run, replica, at))

    def _answer(self, run: ProgramRun, replica: Replica, event: dict[str, Any]) -> None:
        """An event leaves a replica, in the middle of its step."""
        sent_at = replica.clock.now
        now = sent_at + self.network
        if self._oracle is not None:
            self._oracle.answered(run.program, event, replica.scheduler)
        more = run.receive(event, sent_at, now)
        if run.finished:
            self._push(now, _CLIENT, lambda at: self._over(run, replica))
        elif more:
            self._push(now, _CLIENT, lambda at: self._send(run, replica, at))

    def _over(self, run: ProgramRun, replica: Replica) -> None:
        self.router.finished(run.program.id)
        if self._oracle is not None:
            self._oracle.end(run.program)
        programs = self._result.programs
        programs.append(
            ProgramResult(
                run.program.id, run.program.kind, replica.index, run.began, run.done_at - run.began, run.latency,
                max(run.first_token - run.began, 0.0), run.longest_wait, run.prompt, run.cached, run.computed,
                run.generated, run.retractions, run.error,
            )
        )  # fmt: skip
        if self.progress is not None:
            self.progress(len(programs))

    def _step(self, replica: Replica) -> None:
        self.router.report(replica.index, *replica.report())  # as it was when the last step ended
        due = replica.step()
        if due is not None:
            self._step_at(replica, due)
        else:
            self._push(replica.clock.now, _CLIENT, lambda at: self.router.report(replica.index, *replica.report()))

    def _finish(self, first: float) -> Result:
        result = self._result
        last = max((p.arrival + p.elapsed for p in result.programs), default=first)
        result.seconds = last - first
        runners = [replica.runner for replica in self.replicas]
        busy = sum(runner.busy for runner in runners)
        result.steps = sum(runner.steps for runner in runners)
        result.coasted = sum(replica.coasted for replica in self.replicas)
        if busy:
            result.busy = busy / (result.seconds * len(runners)) if result.seconds else 0.0
            result.rows = sum(runner.row_seconds for runner in runners) / busy
            total = self.replicas[0].options.slots
            result.slots = sum(replica.slot_seconds for replica in self.replicas) / busy / total
            result.waiting = sum(replica.waiting_seconds for replica in self.replicas) / busy
        result.retractions = sum(replica.scheduler.memory.retractions for replica in self.replicas)
        if self._oracle is not None:
            result.oracle = self._oracle.hit_rate
        return result

    def check(self) -> None:
        """Nothing is left running, and every scheduler's accounts are right. Raises AssertionError."""
        for replica in self.replicas:
            assert replica.scheduler.idle and not replica.inbox, f"replica {replica.index} is not idle"
            replica.scheduler.check()
