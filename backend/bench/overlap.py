"""`stemma bench overlap`: steps launched one ahead, on and off, in one run.

Two engines take turns, pass by pass, on the same requests: one alone, many that share a prefix, and many with schemas.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from contextlib import ExitStack
from typing import Any

from stemma.backend.bench.grammar_cases import built_in_cases
from stemma.backend.bench.offline import sentence
from stemma.backend.engine import Engine

MODES = ("off", "on")
Params = dict[str, Any]


def workloads(engine: Engine, args: argparse.Namespace) -> dict[str, tuple[list[list[int]], list[Params]]]:
    """Prompts and parameters by name."""
    rng = random.Random(0)
    plain: Params = {"max_new_tokens": args.new_tokens, "temperature": 0.0, "ignore_eos": True}
    shared = sentence(rng, engine, 200)
    prompts = [shared + sentence(rng, engine, 21)[1:] for _ in range(args.requests)]
    schemas = []
    for case in built_in_cases():
        try:
            engine.generate("x", {"json_schema": case.schema, "max_new_tokens": 1})
            schemas.append(case.schema)
        except ValueError:  # one that is too much for it
            continue
    bound = [
        {"max_new_tokens": args.new_tokens, "temperature": 0.8, "seed": i, "json_schema": schemas[i % len(schemas)]}
        for i in range(args.requests)
    ]
    sampled = [{**plain, "temperature": 0.8, "top_p": 0.9, "seed": i} for i in range(args.requests)]
    return {
        "one request": ([sentence(rng, engine, 64)], [plain]),
        "shared prefix, greedy": (prompts, [plain] * len(prompts)),
        "shared prefix, sampled": (prompts, sampled),
        "schemas, sampled": (prompts, bound),
    }


def timed(engine: Engine, prompts: list[list[int]], params: list[Params]) -> tuple[float, float, list[dict[str, Any]]]:
    """Seconds, processor seconds of the process, and the results."""
    begin, cpu = time.perf_counter(), time.process_time()
    results = engine.generate(input_ids=prompts, sampling_params=params)
    return time.perf_counter() - begin, time.process_time() - cpu, results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench overlap",
        description="Tokens per second with overlap_schedule on and off: two engines take turns on the same requests. "
        "The ids must be equal.",
        epilog="example: stemma bench overlap --requests 64",
    )
    parser.add_argument("--model", default="demo", help="model directory, or 'demo' for the bundled model")
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"), help="'dummy': random weights")
    parser.add_argument("--requests", type=int, default=32, help="requests of the batches")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens generated for each")
    parser.add_argument("--repeats", type=int, default=7, help="passes of each engine")
    parser.add_argument("--threads", type=int, help="CPU threads of one operation; default: the engine's choice")
    args = parser.parse_args(argv)

    options = {"load_format": args.load_format, "num_threads": args.threads}
    with ExitStack() as stack:
        engines = {m: stack.enter_context(Engine(args.model, overlap_schedule=m, **options)) for m in MODES}
        first = engines["off"]
        print(f"model {args.model}, {first.runner.num_threads} threads, {args.repeats} passes; best (median) tokens/s")
        print(f"{'':<26}{'off':>16}{'on':>16}{'on / off':>10}{'cpu on / off':>14}  equal ids")
        for name, (prompts, params) in workloads(first, args).items():
            seconds: dict[str, list[float]] = {m: [] for m in MODES}
            cpu: dict[str, list[float]] = {m: [] for m in MODES}
            ids: dict[str, list[list[int]]] = {}
            for number in range(args.repeats + 1):
                for m in MODES if number % 2 else MODES[::-1]:
                    engines[m].flush_cache()
                    took, worked, results = timed(engines[m], prompts, params)
                    ids[m] = [r["output_ids"] for r in results]
                    if number:  # the first is for warming up
                        seconds[m].append(took)
                        cpu[m].append(worked)
            tokens = sum(map(len, ids["off"]))
            cells = [f"{tokens / min(s):,.0f} ({tokens / statistics.median(s):,.0f})" for s in seconds.values()]
            ratio = min(seconds["off"]) / min(seconds["on"])
            work = statistics.median(cpu["on"]) / statistics.median(cpu["off"])
            same = "yes" if ids["off"] == ids["on"] else "NO"
            print(f"{name:<26}{cells[0]:>16}{cells[1]:>16}{ratio:>10.2f}{work:>14.2f}  {same}", flush=True)
    return 0
