"""`stemma bench scheduler`: what one step costs on the host, with a runner that does nothing."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable

import numpy as np

from stemma.backend.core import Plan, StepOutput
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import compile_constraint
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.text.stream import TextStream
from stemma.lang.params import Constraint, SamplingParams

VOCAB = 32_000
EOS = 2
TABLE: list[bytes | None] = [None, None, None, *(b"ab%d" % (i % 500) for i in range(3, VOCAB))]
TOKEN = 7  # what every step draws; TABLE[7] is b"ab7"
PATTERN = "[a-z0-9 ]+"  # allows TOKEN for ever, and many others
KINDS = {
    "plain": "nothing but tokens",
    "stop": "every row has a stop string",
    "stream": "every row streams",
    "grammar": "every row has a grammar",
    "all": "every row has a grammar and streams, over the radix cache",
}
TARGETS = {("plain", 32): 300.0, ("plain", 256): 1000.0, ("all", 32): 200.0, ("all", 256): 800.0}


class NullStep:
    """A launched step, over when the time has come."""

    def __init__(self, plan: Plan, output: StepOutput, until: float) -> None:
        self._plan, self._output, self._until = plan, output, until

    def sample(self) -> None:
        pass

    def result(self) -> StepOutput:
        _wait(self._until)
        for _, row in self._plan.masks:  # a runner waits for them and reads them
            assert row[TOKEN >> 5]
        return self._output


class NullRunner:
    """Answers every step with the same token: at once, or as a device would whose steps take `seconds` each."""

    vocab_size = VOCAB
    overlap = True

    def __init__(self, num_slots: int, seconds: float = 0.0) -> None:
        self.num_slots, self.seconds = num_slots, seconds
        self._tokens = np.full(4096, TOKEN, np.int32)
        self._busy_until = 0.0

    def run(self, plan: Plan) -> StepOutput:
        return self.launch(plan).result()

    def launch(self, plan: Plan) -> NullStep:
        if self.seconds:
            self._busy_until = max(self._busy_until, time.perf_counter()) + self.seconds
        return NullStep(plan, StepOutput(np.where(plan.sample, self._tokens[: len(plan.rows)], -1)), self._busy_until)


def _wait(until: float) -> None:
    if until and (left := until - time.perf_counter()) > 0:
        time.sleep(left)


class _Tokenizer:
    bos_id, add_bos, eos_ids = 1, True, frozenset({EOS})

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]], *, start: bool = False) -> list[int]:
        return [ord(c) for text, _ in pieces for c in text]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return "ab" * sum(1 for _ in ids)


class _Text:
    tokenizer = _Tokenizer()

    def markers(self, role: str, previous: tuple[str, ...]) -> tuple[str, str]:
        return "", ""

    def stream(self, params: SamplingParams) -> TextStream:
        return TextStream(TABLE, params.stop, params.no_stop_trim)


def measure(
    rows: int,
    steps: int,
    kind: str,
    repeats: int,
    page_size: int = 1,
    overlap: bool = False,
    device: float = 0.0,
) -> tuple[float, float]:
    """Median and 95th percentile of the time of one decode step, in microseconds. device: seconds of it that the device
    takes."""
    times: list[float] = []
    vocab = Vocabulary(TABLE, VOCAB, frozenset({EOS}), lambda text: [])
    constraint = Constraint("regex", PATTERN)
    for _ in range(repeats):
        context = steps + 256
        grammar = compile_constraint(constraint, vocab) if kind in ("grammar", "all") else None
        scheduler = Scheduler(
            NullRunner((rows + 1) * context, device),
            _Text(),
            lambda c, done, made=grammar: done(made or RuntimeError("no grammar was asked for")),
            context=context,
            max_rows=rows,
            page_size=page_size,
            overlap=overlap,
        )
        for i in range(rows):
            params: dict[str, object] = {"max_new_tokens": steps + 50, "temperature": 0.7, "seed": i}
            if kind == "stop":
                params["stop"] = ["zzz"]
            node: dict[str, object] = {"kind": "gen", "params": params, "stream": kind in ("stream", "all")}
            if grammar is not None:
                node["constraint"] = {"kind": constraint.kind, "value": constraint.value}
            branch = {"id": "r", "nodes": [{"kind": "text", "text": "x" * 64 + chr(97 + i % 26)}, node]}
            scheduler.submit(parse_delta({"program": str(i), "branches": [branch], "end": True}), lambda event: None)()
        while len(scheduler.memory.running) < rows or scheduler.memory.changed:
            scheduler.step()
        for _ in range(steps):
            begin = time.perf_counter()
            scheduler.step()
            times.append((time.perf_counter() - begin) * 1e6)
        assert len(scheduler.memory.running) == rows, "a row has ended"
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench scheduler",
        description="Host time of one decode step: the whole scheduler, with a runner that returns at once.",
        epilog="kinds: " + "; ".join(f"{name}: {about}" for name, about in KINDS.items()),
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256], help="branches in the step")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="what the rows ask for")
    parser.add_argument("--steps", type=int, default=300, help="steps timed in each repeat")
    parser.add_argument("--page-size", type=int, default=1, help="tokens in a page of the KV pool")
    parser.add_argument("--repeats", type=int, default=3, help="fresh schedulers")
    parser.add_argument("--overlap", action="store_true", help="the loop that launches one step ahead")
    parser.add_argument("--device-us", type=float, default=0.0, help="a device whose steps take so long; default: 0")
    args = parser.parse_args(argv)
    print(f"{'rows':>5} {'kind':>8} {'median µs':>10} {'p95 µs':>8} {'target µs':>10}")
    for rows in args.rows:
        for kind in args.kinds:
            median, p95 = measure(
                rows, args.steps, kind, args.repeats, args.page_size, args.overlap, args.device_us / 1e6
            )
            target = None if args.device_us else TARGETS.get((kind, rows))
            print(f"{rows:>5} {kind:>8} {median:>10.1f} {p95:>8.1f} {f'{target:.0f}' if target else '-':>10}")
    return 0
