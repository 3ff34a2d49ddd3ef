"""Questions asked of simulations: how much can a replica do, and how long would a program take alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from stemma.backend.simulate.replica import ReplicaOptions
from stemma.backend.simulate.simulation import Result, Simulation
from stemma.backend.simulate.trace import VOCAB, TraceBranch, TraceProgram, Wait


def capacity(
    programs: Iterable[TraceProgram], options: ReplicaOptions, *, network: float = 0.0, vocab: int = VOCAB
) -> float:
    """Programs a second of one replica that is never idle: all of them at once, nobody thinks, first come first served;
    nine tenths of them, over the time until they are done (the last tenth no longer fills the steps)."""
    given = [_now(p) for p in programs]
    result = Simulation(replace(options, policy="fcfs"), network=network, vocab=vocab).run(given)
    ends = sorted(p.arrival + p.elapsed for p in result.programs)
    part = max(1, len(ends) * 9 // 10)
    return part / ends[part - 1]


def _now(program: TraceProgram) -> TraceProgram:
    """The program with arrival 0 and no pauses."""
    branches = [
        TraceBranch(b.id, [Wait(0.0, n.after) if isinstance(n, Wait) else n for n in b.nodes], b.parent, b.at)
        for b in program.branches
    ]
    return TraceProgram(program.id, 0.0, branches, program.kind)


def alone(
    programs: Iterable[TraceProgram], options: ReplicaOptions, *, network: float = 0.0, vocab: int = VOCAB
) -> dict[str, float]:
    """The latency of each program on a replica of its own with a cold cache."""
    out: dict[str, float] = {}
    for program in programs:
        found = TraceProgram(program.id, 0.0, program.branches, program.kind)
        result = Simulation(options, network=network, vocab=vocab).run([found])
        out[program.id] = result.programs[0].latency
    return out


def with_slowdown(result: Result, latencies: dict[str, float]) -> Result:
    """Set `slowdown` of the programs whose latency alone is known."""
    for p in result.programs:
        if latencies.get(p.id) and not p.error:
            p.slowdown = p.latency / latencies[p.id]
    return result


def thinned(count: int, sample: int) -> Callable[[int], bool]:
    """Whether program number k is one of about `sample` of `count`, evenly spread."""
    every = max(1, count // sample) if sample else 0
    return lambda k: bool(every) and k % every == 0


def by_number(programs: Sequence[TraceProgram], chosen: Callable[[int], bool]) -> list[TraceProgram]:
    return [p for k, p in enumerate(programs) if chosen(k)]
