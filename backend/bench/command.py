"""`stemma bench`: benchmarks that print ratios, taken in one run."""

from __future__ import annotations

import importlib
import sys

BENCHES = {
    "scheduler": "host time of one step, with a runner that does nothing",
    "grammar": "constraint engines side by side: schemas, regular expressions, a batch of 128",
    "hostile": "delays between steps while hostile schemas compile",
    "masks": "a batch of distinct schemas: steps that waited for a mask, with and without overlap",
    "overlap": "steps launched one ahead, on and off: equal ids, tokens per second",
    "jump_forward": "forced tokens and drafts, on and off: equal ids, forward passes saved",
    "programs": "whole programs as graphs, against the same programs request by request",
    "simulate": "program traces in virtual time: schedule and routing policies compared, up to 100,000 programs",
    "speculation": "drafts by prompt lookup, off and on: equal ids, forward passes saved, time",
    "soak": "a server under everything at once: no answer lost, nothing left behind",
    "one-batch": "a model shape with random weights on one GPU: tokens per second, time by kernel",
    "offline": "tokens per second against transformers.generate, same model, same run",
}


def main(argv: list[str] | None = None) -> int:
    """Dispatch to one benchmark."""
    args = list(argv or [])
    if not args or args[0] in ("-h", "--help"):
        print("usage: stemma bench NAME [options]\n\nbenchmarks (each has --help):")
        for name, about in BENCHES.items():
            print(f"  {name:<12} {about}")
        return 0
    name = args.pop(0)
    if name not in BENCHES:
        print(f"stemma bench: no benchmark {name!r}; one of {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"stemma.backend.bench.{name.replace('-', '_')}").main(args)
