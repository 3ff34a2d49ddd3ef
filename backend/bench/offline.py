"""`stemma bench offline`: our engine against `transformers.generate`, same weights, same threads, same run.

Two workloads: one request, and many requests that share a prefix. Transformers gets its best form of the second:
left-padded batches of the size that suits it best. Both sides decode greedily, and the texts are compared.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

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


class Reference:
    """transformers on the same directory, fp32, greedy, with its KV cache."""

    def __init__(self, path: Path, load_format: str, engine: Engine) -> None:
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

        transformers.logging.set_verbosity_error()
        if load_format == "dummy":
            self.model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
        else:
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.eval()
        self.pad = min(engine.tokenizer.eos_ids, default=0)
        self.version = transformers.__version__

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Left-padded batch; exactly `new_tokens` each (EOS is not allowed to end a row)."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
                pad_token_id=self.pad, use_cache=True,
            )  # fmt: skip
        return out[:, width:].tolist()


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
    eos = {str(i): -100.0 for i in engine.tokenizer.eos_ids}
    params = {"max_new_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True, "logit_bias": eos}
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
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="tried for transformers")
    parser.add_argument("--repeats", type=int, default=5, help="median of this many")
    parser.add_argument("--threads", type=int, help="CPU threads for both sides; default: the engine's choice")
    args = parser.parse_args(argv)

    path = DEMO_MODEL if args.model == "demo" else Path(args.model)
    engine = Engine(args.model, load_format=args.load_format, num_threads=args.threads)
    threads = engine.runner.num_threads
    reference = Reference(path, args.load_format, engine)
    torch.set_num_threads(threads)
    print(f"model {args.model}: {engine.runner.parameters / 1e6:.1f} M parameters, fp32, {threads} threads")
    print(f"torch {torch.__version__}, transformers {reference.version}\n")

    def same(a: list[list[int]], b: list[list[int]]) -> str:
        return (
            "not comparable, both sides draw their own weights"
            if args.load_format == "dummy"
            else f"{agreement(a, b):.0%}"
        )

    rng = random.Random(0)
    single = [sentence(rng, engine, 64)]
    n = args.single_tokens
    ours(engine, single, 4), reference.generate(single, 4)  # warm both
    fast, a = timed(lambda: ours(engine, single, n), args.repeats)
    slow, b = timed(lambda: reference.generate(single, n), max(args.repeats // 2, 2))
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
        slow, b = timed(lambda batches=batches: [row for x in batches for row in reference.generate(x, n)], 1)
        print(f"  transformers, batch {size:<3} {total / slow:>8.0f} tokens/s  ({slow:.2f} s)")
        if slow < best:
            best, outputs = slow, b
    assert outputs is not None
    print(f"  ratio to its best       {best / fast:>8.2f} x      equal outputs: {same(a, outputs)}")
    engine.shutdown()
    return 0
