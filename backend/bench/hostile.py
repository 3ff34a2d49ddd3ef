"""`stemma bench hostile`: how long the engine's steps wait while hostile JSON schemas compile.

A batch of plain generations runs in an engine, first alone, then while the schemas come in all at once. Two runners:
one that only sleeps, so that each delay is the host's, and the bundled model, whose forward also competes for cores.
"net" leaves out the time in which the engine's thread could run and had no core: that is other programs' work too.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import string
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from stemma.backend.core import Plan, Runner, StepOutput
from stemma.backend.engine import Engine
from stemma.backend.messages import GraphDelta, parse_delta
from stemma.lang.errors import EngineDeadError

NAP = 0.002  # seconds of one step of the runner that sleeps
LATE = 0.005  # what no step may wait longer


class Moment(NamedTuple):
    """Seconds on the clock, and those that the engine's thread has waited for a core so far."""

    clock: float
    queued: float


class Step(NamedTuple):
    """When the runner was called and when it returned."""

    begin: Moment
    end: Moment


class Watched:
    """A runner that notes its steps. Without `inner` it sleeps, and gives each row its lowest allowed token."""

    def __init__(self, runner: Runner, inner: Runner | None) -> None:
        self.num_slots, self.vocab_size = runner.num_slots, runner.vocab_size
        self.steps: list[Step] = []
        self._inner = inner
        self._schedule: IO[bytes] | None = None

    def run(self, plan: Plan) -> StepOutput:
        begin = self._now()
        if self._inner is not None:
            output = self._inner.run(plan)
        else:
            time.sleep(NAP)
            ids = np.where(plan.sample, np.int32(70), np.int32(-1))
            for i, mask in plan.masks:
                word = int(np.flatnonzero(mask)[0])
                ids[i] = 32 * word + (int(mask[word]) & -int(mask[word])).bit_length() - 1
            output = StepOutput(ids)
        self.steps.append(Step(begin, self._now()))
        return output

    def close(self) -> None:
        if self._schedule is not None:
            self._schedule.close()

    def _now(self) -> Moment:
        """In the engine's thread. Linux tells how long it was ready to run and did not."""
        if self._schedule is None and sys.platform == "linux":
            self._schedule = open(f"/proc/self/task/{threading.get_native_id()}/schedstat", "rb", 0)  # noqa: SIM115
        queued = int(os.pread(self._schedule.fileno(), 99, 0).split()[1]) if self._schedule else 0
        return Moment(time.perf_counter(), queued * 1e-9)


def schemas(count: int) -> Iterator[str]:
    """Distinct JSON schemas that take the compiler from a tenth of a second to longer than it may."""
    letters = string.ascii_lowercase
    makers: list[Callable[[int], Any]] = [
        lambda i: {"allOf": [{"pattern": f"^(.*{letters[(i + j) % 26]}.*){{3}}$"} for j in range(12)]},
        lambda i: {"enum": [f"{i} and {n}" for n in range(60_000)]},
        lambda i: {"pattern": "^" + "".join(f"[^{chr(0x4E00 + n)}-{chr(0x4E50 + 2 * n + i)}]" for n in range(5000))},
        lambda i: {"type": "object", "minProperties": 200, "properties": {f"p{i}_{n}": {} for n in range(400)}},
        lambda i: {"oneOf": [{"properties": {f"k{n}": {"const": i}}, "required": [f"k{n}"]} for n in range(40)]},
        lambda i: {"type": "string", "pattern": f"^(([a-z]{{0,{30 + i}}} ?){{0,40}}x){{3}}$"},
        lambda i: {"properties": {f"p{i}_{n}": {"pattern": f"(a|b)*a(a|b){{{n}}}$"} for n in range(80)}},
        lambda i: {"items": {"type": "string", "maxLength": 30_000 + i, "pattern": r"^(\w+\s?)+$"}, "maxItems": 50 + i},
    ]
    for i in range(count):
        yield json.dumps(makers[i % len(makers)](i))


class Delays(NamedTuple):
    """Of a stretch of time: milliseconds between the end of a step and the begin of the next, and of the steps; and
    the same without the time in which all cores were busy with other threads."""

    between: list[float]
    within: list[float]
    between_net: list[float]
    within_net: list[float]


def measure(
    workers: int, asleep: bool, rows: int, count: int, settle: float
) -> tuple[Delays, Delays, list[str], float]:
    """The delays alone and under fire, what became of the schemas, and how many seconds that took."""
    hostile = list(schemas(count))
    with contextlib.ExitStack() as stack:
        engine = Engine(grammar_workers=workers, overlap_schedule="off")  # what is watched is `run`
        watched = Watched(engine.runner, None if asleep else engine.runner)
        stack.callback(watched.close)
        stack.enter_context(engine)
        engine.scheduler.runner = watched
        stop = threading.Event()
        threads = [threading.Thread(target=_generate, args=(engine, i, stop), daemon=True) for i in range(rows)]
        for thread in threads:
            thread.start()
        engine.generate("x", {"json_schema": '{"const": 1}'})
        time.sleep(settle)
        watched.steps.clear()
        time.sleep(settle)
        alone, fates = _delays(watched.steps), [""] * count
        watched.steps.clear()
        begin = time.perf_counter()

        settled = threading.Semaphore(0)

        def sink(number: int, event: dict[str, Any]) -> None:
            if event["event"] in ("done", "error") and not fates[number]:
                error = event.get("error")
                slow = error is not None and "took longer" in error["message"]
                fates[number] = "too slow" if slow else "refused" if error else "compiled"
                settled.release()

        for i, delta in enumerate(map(_delta, range(count), hostile)):  # as the server's reader of requests does
            engine.submit(delta, lambda event, number=i: sink(number, event))
        for _ in range(count):
            settled.acquire()
        took = time.perf_counter() - begin
        under_fire = _delays(watched.steps)
        stop.set()
        for thread in threads:
            thread.join()
    return alone, under_fire, fates, took


def _delta(number: int, schema: str) -> GraphDelta:
    gen = {"kind": "gen", "params": {"max_new_tokens": 1}, "constraint": {"kind": "json_schema", "value": schema}}
    branch = {"id": "r", "nodes": [{"kind": "text", "text": "x"}, gen]}
    return parse_delta({"program": f"hostile {number}", "branches": [branch], "end": True})


def _generate(engine: Engine, number: int, stop: threading.Event) -> None:
    """Work for the engine, again and again."""
    params = {"max_new_tokens": 1000, "ignore_eos": True, "seed": number}
    while not stop.is_set():
        try:
            engine.generate(f"{number} once upon a time", params)
        except EngineDeadError:
            return


def _delays(steps: list[Step]) -> Delays:
    done = list(steps)
    between = [(a.end, b.begin) for a, b in itertools.pairwise(done)]
    return Delays(*(times for net in (False, True) for times in (_times(between, net), _times(done, net))))


def _times(spans: Sequence[tuple[Moment, Moment]], net: bool) -> list[float]:
    return [1e3 * (b.clock - a.clock - (b.queued - a.queued if net else 0)) for a, b in spans]


def _row(name: str, values: list[float]) -> str:
    middle, last = statistics.median(values), statistics.quantiles(values, n=100)[-1]
    late = sum(value > 1e3 * LATE + middle for value in values)
    top = max(values)
    return f"    {name:<30}{len(values):>7}{middle:>9.2f}{last:>9.2f}{top:>10.2f}{top - middle:>12.2f}{late:>8}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench hostile",
        description="Delays between the engine's steps while hostile JSON schemas compile: in the engine's own process "
        "(grammar_workers=0) and in processes of their own.",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="values of grammar_workers")
    parser.add_argument("--runners", nargs="+", choices=("sleep", "model"), default=["sleep", "model"])
    parser.add_argument("--schemas", type=int, default=32, help="how many come in at once")
    parser.add_argument("--rows", type=int, default=8, help="generations that run beside them")
    parser.add_argument("--settle", type=float, default=2.0, help="seconds measured without them")
    args = parser.parse_args(argv)
    for runner in args.runners:
        for workers in args.workers:
            found = measure(workers, runner == "sleep", args.rows, args.schemas, args.settle)
            alone, fire, fates, took = found
            kinds = ", ".join(f"{fates.count(fate)} {fate}" for fate in sorted(set(fates)))
            print(f"runner {runner}, grammar_workers {workers}: {args.schemas} schemas in {took:.1f} s ({kinds})")
            print(f"    {'ms':<30}{'steps':>7}{'p50':>9}{'p99':>9}{'max':>10}{'max - p50':>12}{'late':>8}")
            for name, which in (("between steps", 0), ("a step", 1)):
                for suffix, field in (("", which), (", net", which + 2)):
                    print(_row(f"{name}, alone{suffix}", alone[field]))
                    print(_row(f"{name}, under fire{suffix}", fire[field]), flush=True)
    return 0
