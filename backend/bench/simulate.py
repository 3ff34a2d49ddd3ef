"""`stemma bench simulate`: the scheduler, cache and router in virtual time, on recorded or made-up programs."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemma.backend.config import EngineConfig
from stemma.backend.distributed.routing import POLICIES as ROUTERS
from stemma.backend.distributed.routing import RoutingRule
from stemma.backend.simulate import trace as traces
from stemma.backend.simulate.costs import PRESETS, cost_model
from stemma.backend.simulate.replica import ReplicaOptions
from stemma.backend.simulate.report import summary, table
from stemma.backend.simulate.simulation import Simulation
from stemma.backend.simulate.study import alone, capacity, thinned, with_slowdown
from stemma.backend.simulate.workloads import KINDS, parse_mixture, workload
from stemma.lang.errors import RequestError

Programs = Callable[[float | None], Iterator[traces.TraceProgram]]  # at a rate; None: as recorded


def _policies() -> tuple[str, ...]:
    return EngineConfig.__dataclass_fields__["schedule_policy"].metadata["choices"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stemma bench simulate",
        description="Program traces on simulated replicas: the real scheduler, prefix cache and router, and a "
        "runner that only counts what a step would take (docs/simulator.md).",
        epilog="examples: stemma bench simulate --policy lpm fcfs --load 0.5 0.8 1.1; "
        "stemma bench simulate --programs 100000 --replicas 64 --router prefix; "
        "stemma bench simulate --calibrate --write-cost here.json",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--workload",
        default="mixture",
        help=f"mixture, or kinds with weights such as judge=2,form=1: {', '.join(KINDS)}",
    )
    add("--exact", action="store_true", help="nominal lengths, outputs that end by length")
    add("--trace", help="a trace file instead of a made-up workload")
    add("--write-trace", metavar="FILE", help="write the programs of the first load to a file, and stop")
    add("--programs", type=int, default=2000, help="how many (of a trace: at most)")
    add("--apps", type=int, default=20, help="applications of each kind; each has a system prompt")
    add(
        "--load",
        type=float,
        nargs="+",
        help="arrival rates as shares of capacity; default 0.8 (of a trace: as recorded)",
    )
    add("--rate", type=float, nargs="+", help="arrival rates in programs a second, instead of --load")
    add("--burst", type=float, default=1.0, help="coefficient of variation of the gaps between arrivals; 1: Poisson")
    add("--capacity", type=float, help="programs a second that a replica can do; default: found by a saturated run")
    add("--replicas", type=int, default=1)
    add("--policy", nargs="+", default=["program"], choices=_policies(), help="schedule policies to compare")
    add("--router", nargs="+", default=["prefix"], choices=ROUTERS, help="routing policies to compare")
    add("--cost", default="h200-8b", help=f"cost model: {', '.join(PRESETS)}, or a file of --write-cost")
    add("--slots", type=int, default=800_000, help="KV slots of a replica")
    add("--rows", type=int, default=256, help="branches in one step")
    add("--chunk", type=int, default=2048, help="prompt tokens in one step")
    add("--context", type=int, default=32_768, help="longest sequence")
    add("--network", type=float, default=0.0, help="seconds of a message between client and engine")
    add("--alone", type=int, default=200, help="programs that are also run alone, for the slowdowns; 0: none")
    add("--no-oracle", action="store_true", help="do not work out what a cache without bounds would hit")
    add("--no-coast", action="store_true", help="step through every step (equal results, slower)")
    add("--no-radix", action="store_true", help="no prefix cache")
    add("--seed", type=int, default=0)
    add("--json", metavar="FILE", help="write all figures; - is standard output")
    add(
        "--calibrate",
        action="store_true",
        help="measure steps of the bundled model on this machine, and fit a cost model",
    )
    add("--seconds", type=float, default=20.0, help="how long --calibrate measures")
    add("--threads", type=int, help="CPU threads of the model in --calibrate; 1 is exact on a busy machine")
    add("--write-cost", metavar="FILE", help="where --calibrate writes the cost model")
    return parser


def _programs(args: argparse.Namespace) -> tuple[Programs, int]:
    """Where the programs come from, and the vocabulary."""
    if args.trace is None:
        mixture = parse_mixture(args.workload)

        def made(rate: float | None) -> Iterator[traces.TraceProgram]:
            return workload(
                mixture, args.programs, rate or math.inf, seed=args.seed, apps=args.apps, burst=args.burst,
                exact=args.exact,
            )  # fmt: skip

        return made, traces.VOCAB

    def recorded(rate: float | None) -> Iterator[traces.TraceProgram]:
        programs = [p for _, p in zip(range(args.programs), traces.read(args.trace), strict=False)]
        span = programs[-1].arrival if programs else 0.0
        factor = 1.0 if rate is None else (len(programs) / rate / span if span else 0.0)
        for p in programs:
            yield traces.TraceProgram(p.id, p.arrival * factor, p.branches, p.kind)

    return recorded, traces.read_header(args.trace).vocab


def _rates(
    args: argparse.Namespace, programs: Programs, options: ReplicaOptions, vocab: int
) -> list[tuple[str, float | None]]:
    """(name, programs a second) of the loads to run."""
    if args.rate:
        return [(f"{rate:g}/s", rate) for rate in args.rate]
    if args.load is None and args.trace is not None:
        return [("trace", None)]
    per_replica = args.capacity
    if per_replica is None:
        few = (p for p, _ in zip(programs(None), range(1500), strict=False))
        per_replica = capacity(few, options, network=args.network, vocab=vocab)
    total = per_replica * args.replicas
    print(f"capacity {per_replica:.2f} programs/s a replica, {total:.2f} in all", file=sys.stderr)
    return [(f"{load:g}", load * total) for load in args.load or [0.8]]


def _progress(total: int) -> Callable[[int], None] | None:
    if not sys.stderr.isatty():
        return None
    began = time.perf_counter()

    def show(done: int) -> None:
        if done % 200 == 0:
            print(
                f"\r{done}/{total} programs, {time.perf_counter() - began:.0f} s", end="", file=sys.stderr, flush=True
            )

    return show


def _calibrate(args: argparse.Namespace) -> int:
    from stemma.backend.bench.calibrate import measure  # torch and the model: only here

    fitted = measure(args.seconds, args.threads, args.seed)
    print(json.dumps(fitted.model.to_dict(), indent=1))
    print(
        f"{fitted.steps} steps; total time off by {100 * fitted.total_error:.1f} %, a step by "
        f"{100 * fitted.median_error:.0f} % (median), {100 * fitted.p90_error:.0f} % (90th percentile)"
    )
    if args.write_cost:
        fitted.model.save(args.write_cost)
    return 0


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.programs < 1 or args.replicas < 1:
        raise RequestError(f"--programs and --replicas must be >= 1, got {args.programs} and {args.replicas}")
    if args.calibrate:
        return _calibrate(args)
    options = ReplicaOptions(
        cost=cost_model(args.cost), slots=args.slots, rows=args.rows, chunk=args.chunk, context=args.context,
        coast=not args.no_coast, options={"radix": not args.no_radix},
    )  # fmt: skip
    programs, vocab = _programs(args)
    rates = _rates(args, programs, options, vocab)
    if args.write_trace:
        given: Iterable[traces.TraceProgram] = programs(rates[0][1])
        count = traces.save(args.write_trace, given, vocab=vocab, source=args.trace or args.workload)
        print(f"{count} programs in {args.write_trace}")
        return 0
    chosen = thinned(args.programs, args.alone)
    latencies = alone(
        (p for k, p in enumerate(programs(None)) if chosen(k)), options, network=args.network, vocab=vocab
    )
    rows: list[tuple[str, str, str, dict[str, Any]]] = []
    for name, rate in rates:
        for router in args.router if args.replicas > 1 else ["-"]:
            for policy in args.policy:
                simulation = Simulation(
                    replace(options, policy=policy),
                    replicas=args.replicas,
                    routing=RoutingRule(router) if args.replicas > 1 else None,
                    network=args.network,
                    vocab=vocab,
                    oracle=not args.no_oracle,
                    progress=_progress(args.programs),
                )
                result = simulation.run(programs(rate))
                simulation.check()
                rows.append((name, policy, router, summary(with_slowdown(result, latencies))))
                if args.json != "-":
                    lines = table(rows[-1:]).splitlines()
                    print("\n".join(lines if len(rows) == 1 else lines[1:]), flush=True)
    wall, cpu = (sum(r[3]["simulator"][clock] for r in rows) for clock in ("wall", "cpu"))
    done = sum(r[3]["programs"] for r in rows)
    if args.json != "-":
        print(f"{done} programs simulated in {wall:.0f} s, {cpu:.0f} s of processor time: {done / cpu:.0f} a second")
    if args.json:
        figures = json.dumps(
            {
                "arguments": vars(args),
                "cost": options.cost.to_dict(),
                "runs": [{"load": a, "policy": b, "router": c, "rate": dict(rates)[a], **s} for a, b, c, s in rows],
            },
            indent=1,
        )
        if args.json == "-":
            print(figures)
        else:
            Path(args.json).write_text(figures + "\n", encoding="utf-8")
    return 0
