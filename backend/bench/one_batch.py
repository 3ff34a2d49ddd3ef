"""`stemma bench one-batch`: a model of a given shape with random weights, on one GPU.

Workloads, all greedy on prompts of random token ids: `single` (1 request, 512 in, 256 out) and `throughput` (512 such
requests); `forks` (16 families of 16 requests, 2,048 tokens shared and 64 of each one's own in, 128 out). `--profile`
times one decode step at some batch sizes, by kernel.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma.backend.config import DEMO_MODEL
from stemma.backend.core import Segment
from stemma.backend.engine import Engine

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
    },
    "tiny": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 2000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
}
WORKLOADS = {"single": 1, "throughput": 512}
FORKS = {"families": 16, "branches": 16, "shared": 2048, "own": 64, "new": 128}


def write_shape(shape: str, directory: Path) -> Path:
    """A model directory of this shape without weights; its tokenizer is the bundled model's."""
    (directory / "config.json").write_text(json.dumps(SHAPES[shape]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, directory / name)
    return directory


def prompts(count: int, length: int, vocab: int) -> list[list[int]]:
    """Independent uniform random ids from a fixed seed."""
    low, high = min(1000, vocab // 2), min(100_000, vocab)
    return np.random.default_rng(0).integers(low, high, (count, length)).tolist()


def forks(vocab: int) -> list[list[int]]:
    """Prompts of families, one after the other."""
    families, branches = FORKS["families"], FORKS["branches"]
    trunks = prompts(families, FORKS["shared"] + branches * FORKS["own"], vocab)
    cut = lambda ids, k: ids[FORKS["shared"] + k * FORKS["own"] :][: FORKS["own"]]  # noqa: E731
    return [ids[: FORKS["shared"]] + cut(ids, k) for ids in trunks for k in range(branches)]


def run(engine: Engine, ids: list[list[int]], new: int, repeats: int) -> dict[str, Any]:
    """Output tokens per second, the median of `repeats` runs after one that warms up."""
    requests = len(ids)
    params = {"max_new_tokens": new, "temperature": 0.0, "ignore_eos": True}
    seconds: list[float] = []
    for k in range(repeats + 1):
        engine.flush_cache()
        begin = time.perf_counter()
        results = engine.generate(input_ids=ids, sampling_params=params)
        taken = time.perf_counter() - begin
        assert all(len(r["output_ids"]) == new for r in results)
        if k:
            seconds.append(taken)
    median = statistics.median(seconds)
    return {"requests": requests, "seconds": seconds, "tokens_per_second": requests * new / median}


def busy(engine: Engine, requests: int, new: int, length: int) -> dict[str, float]:
    """Seconds that a workload takes under the profiler, and how many of them a kernel or copy ran."""
    ids = prompts(requests, length, engine.runner.vocab_size)
    params = {"max_new_tokens": new, "temperature": 0.0, "ignore_eos": True}
    engine.flush_cache()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as traced:
        begin = time.perf_counter()
        engine.generate(input_ids=ids, sampling_params=params)
        wall = time.perf_counter() - begin
    return {"wall": wall, "kernels": sum(e.device_time_total for e in traced.key_averages()) / 1e6}


def _plan(runner: Any, batch: int, context: int) -> Any:
    """A decode step: `batch` rows that have `context - 1` tokens each, on slots of their own."""
    plan = runner._idle_plan(context - 1, 1, sampled=False, rows=batch)
    order = np.random.default_rng(0).permutation(batch * context).astype(np.int32) + 1
    table = order.reshape(batch, context)
    return replace(plan, slot_table=table, out_slots=table[:, -1].copy())


def _forks_plan(runner: Any, new: int) -> Any:
    """A decode step of `forks` whose rows have `new` tokens of output."""
    per, shared = FORKS["branches"], FORKS["shared"]
    rows = FORKS["families"] * per
    plan = _plan(runner, rows, shared + FORKS["own"] + new)
    for first in range(0, rows, per):
        plan.slot_table[first : first + per, :shared] = plan.slot_table[first, :shared]
    return replace(plan, segments=[Segment(0, first, per, 0, shared) for first in range(0, rows, per)])


def _prefill_plan(runner: Any, tokens: int, length: int) -> Any:
    """Prompts of `length` tokens, `tokens` in all."""
    rows = max(1, tokens // length)
    plan = runner._idle_plan(0, length, sampled=False, rows=rows)
    table = np.random.default_rng(0).permutation(rows * length).astype(np.int32).reshape(rows, length) + 1
    return replace(plan, slot_table=table, out_slots=table.reshape(-1).copy())


def profile(runner: Any, plan: Any, what: str, steps: int = 20) -> dict[str, Any]:
    """Milliseconds of one step: on the clock, and by kernel on the GPU."""
    for _ in range(3):
        runner.run(plan)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        runner.run(plan)
    wall = (time.perf_counter() - begin) / steps
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as traced:
        for _ in range(steps):
            runner.run(plan)
    kernels = {e.key: e.device_time_total / 1e3 / steps for e in traced.key_averages() if e.device_time_total}
    return {"step": what, "wall_ms": wall * 1e3, "kernels_ms": kernels}


def _print_profile(found: dict[str, Any]) -> None:
    kernels: dict[str, float] = found["kernels_ms"]
    print(f"{found['step']}: {found['wall_ms']:.3f} ms on the clock, {sum(kernels.values()):.3f} ms of kernels")
    for name, taken in sorted(kernels.items(), key=lambda item: -item[1])[:14]:
        print(f"  {taken:8.3f} ms  {name[:96]}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench one-batch",
        description="Output tokens per second of a model shape with random weights on one GPU.",
        epilog="example: stemma bench one-batch --shape llama-3.1-8b --profile 1 32 256",
    )
    parser.add_argument("--shape", default="llama-3.1-8b", choices=sorted(SHAPES))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=[*WORKLOADS, "forks"])
    parser.add_argument("--input", type=int, default=512, help="prompt tokens of a request, but for forks")
    parser.add_argument("--output", type=int, default=256, help="generated tokens of a request, but for forks")
    parser.add_argument("--settle", type=float, default=0, help="seconds between start and measuring")
    parser.add_argument("--no-family-attention", action="store_true", help="every row reads what it shares by itself")
    parser.add_argument("--repeats", type=int, default=3, help="median of this many")
    parser.add_argument("--context-length", type=int, default=4096)
    parser.add_argument("--max-running-requests", type=int, default=256)
    parser.add_argument("--chunked-prefill-size", type=int, default=2048)
    parser.add_argument("--profile", type=int, nargs="*", default=[], help="batch sizes of decode steps to profile")
    parser.add_argument("--profile-context", type=int, default=640, help="tokens of each row of a profiled step")
    parser.add_argument(
        "--profile-forks", type=int, nargs="*", default=[], help="output tokens of profiled `forks` steps"
    )
    parser.add_argument("--busy", type=int, default=0, help="requests of a run that is traced for the GPU's idle time")
    parser.add_argument("--profile-prefill", type=int, nargs="*", default=[], help="tokens of prefill steps to profile")
    parser.add_argument(
        "--option",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="any other option of the engine that is a word",
    )
    parser.add_argument("--json", help="also write the results to this file")
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as directory:
        begin = time.perf_counter()
        engine = Engine(
            write_shape(args.shape, Path(directory)),
            load_format="dummy",
            device=args.device,
            dtype=args.dtype,
            context_length=min(args.context_length, SHAPES[args.shape]["max_position_embeddings"]),
            max_running_requests=args.max_running_requests,
            chunked_prefill_size=args.chunked_prefill_size,
            disable_family_attention=args.no_family_attention,
            **dict(args.option),
        )
    started = time.perf_counter() - begin
    info = engine.runner.model_info()
    print(f"{args.shape}: {info['parameters'] / 1e9:.2f} B parameters, {info['dtype']} on {info.get('gpu', 'CPU')}")
    print(f"started in {started:.1f} s, {info['num_slots']} KV slots", flush=True)
    found: dict[str, Any] = {"started": started, "info": info, "profiles": []}
    time.sleep(args.settle)
    for name in args.workloads:
        vocab, new = engine.runner.vocab_size, args.output
        if name == "forks":
            ids, new = forks(vocab), FORKS["new"]
        else:
            ids = prompts(WORKLOADS[name], args.input, vocab)
        got = found[name] = run(engine, ids, new, args.repeats)
        runs = ", ".join(f"{s:.3f}" for s in got["seconds"])
        print(f"{name:<12} {got['tokens_per_second']:10.1f} output tokens/s   ({runs} s)", flush=True)
    if args.busy:
        got = found["busy"] = busy(engine, args.busy, args.output, args.input)
        print(f"{args.busy} requests: {got['wall']:.3f} s, kernels ran {got['kernels']:.3f} s of it", flush=True)
    for batch in args.profile:
        plan = _plan(engine.runner, batch, args.profile_context)
        what = f"decode step, batch {batch}, context {args.profile_context}"
        found["profiles"].append(profile(engine.runner, plan, what))
        _print_profile(found["profiles"][-1])
    for new in args.profile_forks:
        plan = _forks_plan(engine.runner, new)
        found["profiles"].append(profile(engine.runner, plan, f"decode step of forks, {new} tokens of output"))
        _print_profile(found["profiles"][-1])
    for tokens in args.profile_prefill:
        plan = _prefill_plan(engine.runner, tokens, args.input)
        what = f"prefill step, {len(plan.ids)} tokens in prompts of {args.input}"
        found["profiles"].append(profile(engine.runner, plan, what, 5))
        _print_profile(found["profiles"][-1])
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1))
    engine.shutdown()
    return 0
