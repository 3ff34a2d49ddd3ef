"""`stemma bench masks`: a batch of distinct schemas through the engine, masks with and without overlap, in one run.

Two engines take turns, pass by pass, on the same requests. In a cold pass every grammar is new (its first mask aside,
which compilation makes); in a warm pass the grammars have been used, and other seeds lead to other states.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from stemma.backend.bench.grammar_cases import built_in_cases
from stemma.backend.engine import Engine
from stemma.backend.grammar.maskbench import parse_cases
from stemma.lang.errors import ConstraintError, RequestError

QUICK = 0.3  # seconds; schemas that take longer to compile are not used
MODES = {"overlap off": True, "overlap on": False}  # name -> disable_mask_overlap


@dataclass(slots=True)
class Figures:
    """One mode, cold or warm: a list entry for each pass, sums over all."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    outputs: list[list[int]] = field(default_factory=list)

    def share_waited(self) -> float:
        return self.sums["mask_wait_steps"] / max(self.sums["mask_steps"], 1)


def read_schemas(path: Path | None) -> list[dict[str, Any]]:
    """The schemas that are objects: only these can be made distinct without changing what they mean."""
    if path is not None and not path.is_file():
        raise RequestError(f"no such file: {path}", param="schemas")
    if path is None:
        cases = list(built_in_cases())
    else:
        with path.open(encoding="utf-8") as lines:
            cases = list(parse_cases(lines))
    schemas = [json.loads(case.schema) for case in cases]
    return [schema for schema in schemas if isinstance(schema, dict)]


def candidates(schemas: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All of them, then all again, each as the value of a property whose name is new."""
    yield from schemas
    movable = [schema for schema in schemas if "$ref" not in json.dumps(schema)]
    for n in count() if movable else ():
        key = f"part_{n}"
        inner = movable[n % len(movable)]
        yield {"type": "object", "properties": {key: inner}, "required": [key], "additionalProperties": False}


def commented(schema: dict[str, Any], comment: str) -> str:
    """Another constraint with the same masks."""
    return json.dumps(schema | {"$comment": comment})


def compiles(engine: Engine, text: str) -> bool:
    try:
        engine.generate("x", {"json_schema": text, "max_new_tokens": 1})
    except ConstraintError:
        return False
    return True


def chosen(engine: Engine, schemas: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """The first `rows` that compile, and quickly."""
    good: list[dict[str, Any]] = []
    refused = 0
    for schema in candidates(schemas):
        if len(good) == rows or refused > len(schemas):
            break
        begin = time.perf_counter()
        if compiles(engine, commented(schema, "chosen")) and time.perf_counter() - begin < QUICK:
            good.append(schema)
        else:
            refused += 1
    return good


def one_pass(engine: Engine, texts: Sequence[str], args: argparse.Namespace, seed: int, into: Figures) -> None:
    """All schemas at once, one request each."""
    params = [
        {"json_schema": text, "max_new_tokens": args.new_tokens, "temperature": args.temperature, "seed": seed + i}
        for i, text in enumerate(texts)
    ]
    prompts = [f"Write record {i} as JSON:" for i in range(len(texts))]
    engine.flush_cache()
    before = engine.load() | engine.runner.masks.figures()
    begin, cpu = time.perf_counter(), time.process_time()
    results = engine.generate(prompts, params)
    into.seconds.append(time.perf_counter() - begin)
    into.cpu_seconds.append(time.process_time() - cpu)
    after = engine.load() | engine.runner.masks.figures()
    for key, value in after.items():
        if key.startswith("mask_"):
            into.sums[key] = into.sums.get(key, 0.0) + value - before[key]
    into.tokens += sum(result["meta_info"]["completion_tokens"] for result in results)
    into.outputs += [result["output_ids"] for result in results]


def measure(
    engines: dict[str, Engine], schemas: Sequence[dict[str, Any]], args: argparse.Namespace
) -> dict[tuple[str, str], Figures]:
    """Figures by (mode, "cold" or "warm")."""
    found = {(mode, state): Figures() for state in ("cold", "warm") for mode in engines}
    for number in range(args.repeats):
        texts = [commented(schema, f"pass {number}") for schema in schemas]
        for engine in engines.values():
            texts = [text for text in texts if compiles(engine, text)]  # on a busy machine one may time out
        order = list(engines.items())
        for turn, state in enumerate(("cold", "warm")):
            for mode, engine in order if (number + turn) % 2 else order[::-1]:
                one_pass(engine, texts, args, 10_000 * (2 * number + turn), found[mode, state])
        if len(texts) < len(schemas):
            print(f"pass {number}: {len(schemas) - len(texts)} schemas did not compile in time and are left out of it")
    return found


def print_figures(found: dict[tuple[str, str], Figures], words: int) -> None:
    print(f"{'':<36}" + "".join(f"{state + ', ' + mode:>20}" for mode, state in found))
    rows: dict[str, list[str]] = {}

    def add(label: str, value: str) -> None:
        rows.setdefault(label, []).append(value)

    for f in found.values():
        s, per = f.sums, len(f.seconds)
        steps, asked = max(s["mask_steps"], 1), max(s["mask_table_rows"], 1)
        add("steps with masks, of one pass", f"{s['mask_steps'] / per:.0f}")
        add("masks of a step, mean", f"{s['mask_rows'] / steps:.1f}")
        add("steps that waited for a mask", f"{f.share_waited():.1%}")
        add("wait of a step, mean µs", f"{1e6 * s['mask_wait_seconds'] / steps:.0f}")
        add("processor time of a mask, mean µs", f"{1e6 * s['mask_seconds'] / max(s['mask_rows'], 1):.1f}")
        add("tokens/s, median", f"{f.tokens / per / statistics.median(f.seconds):,.0f}")
        add("tokens/s, best", f"{f.tokens / per / min(f.seconds):,.0f}")
        add("processor seconds, median", f"{statistics.median(f.cpu_seconds):.2f}")
        add("rows known by identity", f"{s['mask_table_by_identity'] / asked:.1%}")
        add("rows known by content", f"{s['mask_table_by_content'] / asked:.1%}")
        add("rows uploaded", f"{s['mask_table_uploads'] / asked:.1%}")
        add("bytes uploaded in a step, mean", f"{s['mask_table_bytes_uploaded'] / steps:,.0f}")
        add("bytes of all its rows, mean", f"{4 * words * s['mask_rows'] / steps:,.0f}")
    for label, values in rows.items():
        print(f"{label:<36}" + "".join(f"{value:>20}" for value in values))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench masks",
        description="A batch of distinct JSON schemas through two engines that take turns: masks worked out while the "
        "forward pass runs, and after it. Prints the share of steps that waited for a mask, tokens per second, and "
        "what interning the rows saves.",
        epilog="example: stemma bench masks --schemas schemas.jsonl --rows 128",
    )
    parser.add_argument("--model", default="demo", help="model directory, or 'demo' for the bundled model")
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"), help="'dummy': random weights")
    parser.add_argument("--schemas", type=Path, metavar="FILE.jsonl", help="default: 20 built-in schemas")
    parser.add_argument("--rows", type=int, default=128, help="distinct schemas in the batch")
    parser.add_argument("--new-tokens", type=int, default=64, help="most tokens of each")
    parser.add_argument("--temperature", type=float, default=0.8, help="seeded sampling; 0 is greedy")
    parser.add_argument("--repeats", type=int, default=5, help="cold and warm passes of each engine")
    parser.add_argument("--threads", type=int, help="CPU threads of one operation; default: the engine's choice")
    args = parser.parse_args(argv)

    schemas = read_schemas(args.schemas)
    options = {"load_format": args.load_format, "num_threads": args.threads, "max_running_requests": args.rows}
    with ExitStack() as stack:
        engines = {
            mode: stack.enter_context(Engine(args.model, disable_mask_overlap=off, **options))
            for mode, off in MODES.items()
        }
        first = next(iter(engines.values()))
        batch = chosen(first, schemas, args.rows)
        if not batch:
            print("stemma bench masks: none of the schemas compiles", file=sys.stderr)
            return 1
        found = measure(engines, batch, args)
        outputs = [[f.outputs for (of, _), f in found.items() if of == mode] for mode in engines]
        print(
            f"model {args.model}, {len(batch)} distinct schemas, {args.repeats} passes each, "
            f"{first.runner.num_threads} threads, outputs equal: {'yes' if outputs[0] == outputs[1] else 'NO'}\n"
        )
        print_figures(found, first.runner.masks.words)
    return 0
