"""`stemma bench offline`: our engine against `transformers.generate`, same weights, same machine, same run.

Two workloads: one request, and many requests that share a prefix. Transformers runs in a process of its own, takes the
number of threads that suits it best, and for the second workload left-padded batches of the best size. Both sides
decode greedily, and the ids are compared.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

from stemma.backend.bench.reference import Reference
from stemma.backend.config import DEMO_MODEL
from stemma.backend.engine import Engine

WORDS = (
    "river",
    "stone",
    "bright",
    "garden",
    "quiet",
    "letter",
    "morning",
    "paper",
    "window",
    "summer",
    "road",
    "green",
)


def sentence(rng: random.Random, engine: Engine, tokens: int) -> list[int]:
    """About English: exactly `tokens` ids, BOS first if the model has one."""
    bos = [engine.tokenizer.bos_id] if engine.tokenizer.bos_id is not None else []
    ids: list[int] = []
    while len(ids) < tokens:
        ids += engine.tokenizer.encode(" " + rng.choice(WORDS))
    return (bos + ids)[:tokens]


def timed(call: Any, repeats: int) -> tuple[float, Any]:
    """Median seconds, and the last result."""
    times, result = [], None
    for _ in range(repeats):
        begin = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), result


def ours(engine: Engine, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """A cold cache each time: what is shared inside the call may be shared, nothing from the call before."""
    engine.flush_cache()
    params = {"max_new_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True}
    results = engine.generate(input_ids=prompts, sampling_params=params)
    return [r["output_ids"] for r in results]


def agreement(a: list[list[int]], b: list[list[int]]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench offline",
        description="Tokens per second against transformers.generate on the same model, in one run; prints ratios.",
        epilog="example: stemma bench offline --model demo",
    )
    parser.add_argument("--model", default="demo", help="model directory, or 'demo' for the bundled model")
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"), help="'dummy': random weights")
    parser.add_argument("--requests", type=int, default=64, help="requests of the shared-prefix workload")
    parser.add_argument("--prefix", type=int, default=300, help="tokens that they share")
    parser.add_argument("--suffix", type=int, default=20, help="tokens of each after the prefix")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens generated for each request")
    parser.add_argument("--single-tokens", type=int, default=128, help="tokens generated for the single request")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64], help="tried for transformers")
    parser.add_argument("--repeats", type=int, default=5, help="median of this many")
    parser.add_argument("--threads", type=int, help="CPU threads for both sides; default: the engine's choice")
    args = parser.parse_args(argv)

    path = DEMO_MODEL if args.model == "demo" else Path(args.model)
    engine = Engine(args.model, load_format=args.load_format, num_threads=args.threads)
    threads = engine.runner.num_threads
    reference = Reference(path, args.load_format, min(engine.tokenizer.eos_ids, default=0))
    print(f"model {args.model}: {engine.runner.parameters / 1e6:.1f} M parameters, fp32, stemma on {threads} threads")
    print(f"transformers {reference.version}, best of 1 and {threads} threads\n")
    counts = sorted({1, threads})

    def same(a: list[list[int]], b: list[list[int]]) -> str:
        return (
            "not comparable, both sides draw their own weights"
            if args.load_format == "dummy"
            else f"{agreement(a, b):.0%}"
        )

    rng = random.Random(0)
    single = [sentence(rng, engine, 64)]
    n = args.single_tokens
    ours(engine, single, 4)
    fast, a = timed(lambda: ours(engine, single, n), args.repeats)
    runs = [reference.generate(single, n, t, args.repeats) for t in counts]
    slow, b = min(runs, key=lambda run: run[0])
    print(f"one request, {len(single[0])} prompt tokens, {n} new")
    print(f"  stemma        {n / fast:>8.0f} tokens/s  ({fast * 1e3:.0f} ms)")
    print(f"  transformers  {n / slow:>8.0f} tokens/s  ({slow * 1e3:.0f} ms)")
    print(f"  ratio         {slow / fast:>8.2f} x      equal outputs: {same(a, b)}\n")

    shared = sentence(rng, engine, args.prefix)
    prompts = [shared + sentence(rng, engine, args.suffix + 1)[1:] for _ in range(args.requests)]
    n = args.new_tokens
    total = n * len(prompts)
    fast, a = timed(lambda: ours(engine, prompts, n), args.repeats)
    print(f"{len(prompts)} requests, {args.prefix} shared prompt tokens + {args.suffix} of their own, {n} new each")
    print(f"  stemma                  {total / fast:>8.0f} tokens/s  ({fast:.2f} s)")
    best, outputs = float("inf"), None
    for size in args.batch_sizes:
        batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        by_threads = [[reference.generate(batch, n, t, 1) for batch in batches] for t in counts]
        slow, b = min((sum(s for s, _ in parts), [row for _, rows in parts for row in rows]) for parts in by_threads)
        print(f"  transformers, batch {size:<3} {total / slow:>8.0f} tokens/s  ({slow:.2f} s)")
        if slow < best:
            best, outputs = slow, b
    assert outputs is not None
    print(f"  ratio to its best       {best / fast:>8.2f} x      equal outputs: {same(a, outputs)}")
    reference.close()
    engine.shutdown()
    return 0
