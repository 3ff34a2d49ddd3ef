"""`stemma bench grammar`: our constraint engine beside the installed peers, in one run.

Each engine runs in a process of its own, one after the other for every item, so that a peer that hangs is stopped and
none slows another. Times are of the engine's calls alone; a peer's masks are taken as its own users get them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stemma.backend.bench.grammar_cases import HOSTILE, REGEXES, WIDE, Pattern, built_in_cases
from stemma.backend.config import DEMO_MODEL
from stemma.backend.grammar.adapters import Backend, available
from stemma.backend.grammar.adapters.process import Handler, Lost, Worker
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.command import TIME_LIMIT, check, ready
from stemma.backend.grammar.maskbench import (
    Case,
    Outcome,
    figures,
    forced_tokens,
    parse_cases,
    percentiles,
    rejected_at,
    run_case,
    spelled,
)
from stemma.lang.errors import ConstraintError, RequestError, StemmaError
from stemma.lang.params import Constraint

WALK_LIMIT = 8.0  # seconds for the samples of one regex; a walk is cut there, and says so
QUICK = 1000.0  # ms; schemas that compile faster everywhere make the batch


class Batch(NamedTuple):
    """A job: all schemas at once, `steps` times one token each."""

    cases: list[Case]
    steps: int


@dataclass(slots=True)
class RegexOutcome:
    """What became of one regex. `again_us`: the masks of a second walk. `note`: why it was not run to its end."""

    compile_ms: float | None = None
    mask_us: list[float] = field(default_factory=list)
    again_us: list[float] = field(default_factory=list)
    accepted: int = 0
    forced: int = 0
    tokens: int = 0
    note: str = ""


@dataclass(slots=True)
class BatchOutcome:
    """Microseconds of each step: the masks of the whole batch."""

    step_us: list[float] = field(default_factory=list)
    note: str = ""


def engine_jobs(backend: str, tokenizer: str, pattern: str | None) -> Handler:
    """The worker's handler: takes a Case, a Pattern or a Batch."""
    engine, vocab = ready(backend, tokenizer, pattern)

    def handle(job: Any) -> Iterator[Any]:
        if isinstance(job, Case):
            return run_case(job, engine.compile, vocab)
        return run_pattern(job, engine, vocab) if isinstance(job, Pattern) else run_batch(job, engine, vocab)

    return handle


def run_pattern(job: Pattern, engine: Backend, vocab: Vocabulary) -> Iterator[RegexOutcome]:
    """The outcome as far as it is known: after compiling, and at the end."""
    outcome = RegexOutcome()
    begin = time.perf_counter()
    try:
        grammar = engine.compile(job.constraint, vocab)
    except ConstraintError as error:
        yield replace(outcome, note=f"refused: {error}")
        return
    outcome.compile_ms = 1e3 * (time.perf_counter() - begin)
    yield replace(outcome)
    until = time.monotonic() + WALK_LIMIT
    samples = [vocab.encode(sample) for sample in job.samples]
    try:
        for times in (outcome.mask_us, outcome.again_us):
            outcome.accepted = 0
            for tokens in samples:
                outcome.accepted += rejected_at(grammar.matcher(), tokens, vocab, _Impatient(times, until)) is None
    except TimeoutError:
        outcome.note = f"stopped after {WALK_LIMIT:g} s"
    else:
        for tokens in samples:
            forced, total = forced_tokens(grammar.matcher(), tokens)
            outcome.forced += forced
            outcome.tokens += total
    yield outcome


class _Impatient(list):
    """Collects times into another list, until the time is up."""

    def __init__(self, into: list[float], until: float) -> None:
        super().__init__()
        self._into = into
        self._until = until

    def append(self, value: float) -> None:
        self._into.append(value)
        if time.monotonic() > self._until:
            raise TimeoutError


def run_batch(job: Batch, engine: Backend, vocab: Vocabulary) -> Iterator[BatchOutcome]:
    """Every schema has a row; its instances follow one another, over and over."""
    outcome = BatchOutcome()
    grammars, texts = [], []
    for case in job.cases:
        grammars.append(engine.compile(Constraint("json_schema", case.schema), vocab))
        texts.append(cycle([vocab.encode(spelled(instance)) for instance, valid in case.tests if valid]))
        yield outcome  # a sign of life: compiling is not what is measured
    matchers = [grammar.matcher() for grammar in grammars]
    ahead = [iter(next(text)) for text in texts]
    rows = np.zeros((len(matchers), (vocab.size + 31) // 32), np.int32)
    for step in range(job.steps):
        begin = time.perf_counter_ns()
        engine.fill(matchers, rows)
        outcome.step_us.append((time.perf_counter_ns() - begin) / 1e3)
        for i, matcher in enumerate(matchers):
            token = next(ahead[i], None)
            if token is None:
                matchers[i], ahead[i] = grammars[i].matcher(), iter(next(texts[i]))
            elif not matcher.accept(token):
                raise RuntimeError(f"{job.cases[i].name} stopped accepting in the batch")
        if step % 16 == 15:
            yield outcome
    yield outcome


def last_answer(worker: Worker, job: Any, outcome: Any) -> Any:
    """The last answer of a job, or `outcome`; its note says what went wrong."""
    try:
        worker.start()
        for answer in worker.run(job):
            outcome = answer
    except (Lost, RuntimeError, StemmaError) as error:
        outcome = replace(outcome, note=str(error))
    return outcome


def batch_of(outcomes: dict[str, list[Outcome]], cases: Sequence[Case], size: int) -> list[Case]:
    """`size` distinct schemas that every engine which passes any passes, and compiles quickly.

    Too few are filled up with the same schemas as the value of a property that differs each time.
    """
    able = [results for results in outcomes.values() if any(o.passed for o in results)]
    good = [
        case
        for i, case in enumerate(cases)
        if able
        and all(r[i].passed and (r[i].compile_ms or 0) < QUICK for r in able)
        and any(valid for _, valid in case.tests)
    ]
    wrapped = [case for case in good if "$ref" not in case.schema and case.schema.startswith("{")]
    more = (_wrapped(case, f"part_{n}") for n, case in enumerate(cycle(wrapped)))
    return (good + list(islice(more, max(0, size - len(good))) if wrapped else []))[:size]


def _wrapped(case: Case, key: str) -> Case:
    schema = {
        "type": "object",
        "properties": {key: json.loads(case.schema)},
        "required": [key],
        "additionalProperties": False,
    }
    tests = tuple(({key: instance}, valid) for instance, valid in case.tests)
    return Case(f"{case.name} as {key}", json.dumps(schema, ensure_ascii=False), tests)


# Tables --------------------------------------------------------------------------------------------------------------

TIMES = (("compile_ms", "compile, ms", ("p50", "p90", "max")), ("mask_us", "mask, µs", ("p50", "p99", "max")))


def number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def ratio(values: Sequence[float | None], names: Sequence[str]) -> str:
    """The best peer's time over ours."""
    peers = [v for v, name in zip(values, names, strict=True) if name != "native" and v is not None]
    ours = values[names.index("native")] if "native" in names else None
    return f"{min(peers) / ours:.2f} x" if peers and ours else ""


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print(f"  {row[0]:<{widths[0]}}  " + "  ".join(cells).rstrip())
    print()


def print_schemas(results: dict[str, dict[str, Any]]) -> None:
    names = list(results)
    rows = [
        [key.replace("_", " "), *(number(results[n][key]) for n in names), ""]
        for key in ("compiled", "refused", "unfinished", "passed", "false_accepts", "false_rejects")
    ]
    for key, label, ranks in TIMES:
        for rank in ranks:
            values = [results[n][key][rank] for n in names]
            rows.append([f"{label} {rank}", *map(number, values), ratio(values, names)])
    shares = [results[n]["forced_share"] for n in names]
    rows.append(["forced tokens", *("-" if s is None else f"{s:.1%}" for s in shares), ""])
    print_table([f"{results[names[0]]['schemas']} JSON schemas", *names, "best peer / native"], rows)


def print_unfinished(outcomes: dict[str, list[Outcome]]) -> None:
    lines = [f"  {o.name}, {name}: {o.unfinished}" for name, found in outcomes.items() for o in found if o.unfinished]
    if lines:
        print("\n".join(lines) + "\n")


def print_regexes(results: dict[str, list[RegexOutcome]]) -> None:
    names = list(results)
    print("ten regexes: compile ms; mask p50 / max µs, p50 when walked again; forced tokens; samples accepted")
    rows, notes = [], []
    for i, pattern in enumerate(REGEXES):
        outcomes = [results[name][i] for name in names]
        rows.append([pattern.name, *(_regex_cell(o, len(pattern.samples)) for o in outcomes)])
        notes += [f"  {pattern.name}, {n}: {o.note}" for n, o in zip(names, outcomes, strict=True) if o.note]
    print_table(["", *names], rows)
    if notes:
        print("\n".join(notes) + "\n")


def _regex_cell(outcome: RegexOutcome, samples: int) -> str:
    if outcome.compile_ms is None:
        return "-"
    masks = percentiles(outcome.mask_us, (50,))
    share = f"{outcome.forced / outcome.tokens:.0%}" if outcome.tokens else "-"
    times = f"{number(outcome.compile_ms)}; {number(masks['p50'])} / {number(masks['max'])}"
    times += f", {number(percentiles(outcome.again_us, (50,))['p50'])}"
    return f"{times}; {share}; {outcome.accepted}/{samples}"


def print_wide(results: dict[str, list[RegexOutcome]]) -> None:
    """Every pattern of WIDE, and the two lines that sum them up."""
    names = list(results)
    rows = []
    notes = []
    for i, pattern in enumerate(WIDE):
        outcomes = [results[name][i] for name in names]
        worst = [max(o.mask_us, default=None) for o in outcomes]
        cells = [
            f"{number(percentiles(o.mask_us, (50,))['p50'])} / {number(w)}"
            for o, w in zip(outcomes, worst, strict=True)
        ]
        rows.append([pattern.name, *cells, ratio(worst, names)])
        notes += [f"  {pattern.name}, {n}: {o.note}" for n, o in zip(names, outcomes, strict=True) if o.note]
    for label, hostile in (("cold wide states, max", False), ("hostile regex, max", True)):
        chosen = [i for i, pattern in enumerate(WIDE) if (pattern is HOSTILE) == hostile]
        worst = [max((us for i in chosen for us in results[name][i].mask_us), default=None) for name in names]
        rows.append([label, *map(number, worst), ratio(worst, names)])
    print_table(["wide states, first masks: µs p50 / max", *names, "best peer / native"], rows)
    if notes:
        print("\n".join(notes) + "\n")


def print_batch(results: dict[str, BatchOutcome], size: int) -> None:
    names = list(results)
    steps = {name: percentiles(results[name].step_us, (50, 99)) for name in names}
    rows = []
    for rank in ("p50", "p99", "max"):
        values = [steps[n][rank] for n in names]
        rows.append([f"masks of a step, µs {rank}", *map(number, values), ratio(values, names)])
    slow = [np.mean(np.array(results[n].step_us) > 1000) if results[n].step_us else None for n in names]
    rows.append(["steps over 1 ms", *("-" if s is None else f"{s:.0%}" for s in slow), ""])
    print_table([f"a batch of {size} distinct schemas", *names, "best peer / native"], rows)
    for name in names:
        if results[name].note:
            print(f"  {name}: {results[name].note}")


# The command ---------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench grammar",
        description="Constraint engines side by side in one run: JSON schemas by the rules of MaskBench, ten regular "
        "expressions, the first masks of wide states, and a batch of distinct schemas. Prints tables with ratios.",
        epilog="example: stemma bench grammar --schemas schemas.jsonl --tokenizer o200k_base.tiktoken",
    )
    parser.add_argument("--schemas", type=Path, metavar="FILE.jsonl", help="default: 20 built-in schemas")
    parser.add_argument("--tokenizer", default=str(DEMO_MODEL), metavar="T", help="a directory or a .tiktoken file")
    parser.add_argument("--pattern", metavar="P", help="how a .tiktoken file splits text; default: by its name")
    parser.add_argument("--backends", nargs="+", choices=available(), default=available(), help="default: installed")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N schemas")
    parser.add_argument("--batch", type=int, default=128, help="distinct schemas in the batch; 0: no batch")
    parser.add_argument("--steps", type=int, default=256, help="steps of the batch")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, metavar="S", help="seconds for one item")
    args = parser.parse_args(argv)
    cases = list(islice(_cases(args.schemas), args.limit))

    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in args.backends:
            setup = partial(engine_jobs, name, args.tokenizer, args.pattern)
            workers[name] = stack.enter_context(Worker(setup, limit=args.time_limit))
        print(f"tokenizer {args.tokenizer}\n")
        outcomes = one_by_one(workers, lambda worker: check(cases, worker))
        print_schemas({name: figures(results) for name, results in outcomes.items()})
        print_unfinished(outcomes)
        print_regexes(one_by_one(workers, lambda worker: (last_answer(worker, p, RegexOutcome()) for p in REGEXES)))
        print_wide(one_by_one(workers, lambda worker: (last_answer(worker, p, RegexOutcome()) for p in WIDE)))
        batch = batch_of(outcomes, cases, args.batch)
        if batch:
            job = Batch(batch, args.steps)
            able = {n: w for n, w in workers.items() if any(o.passed for o in outcomes[n])}
            results = one_by_one(able, lambda worker: iter([last_answer(worker, job, BatchOutcome())]))
            print_batch({name: found[0] for name, found in results.items()}, len(batch))
    return 0


def one_by_one(workers: dict[str, Worker], items: Callable[[Worker], Iterator[Any]]) -> dict[str, list[Any]]:
    """The results of every engine; item after item, each by all engines, so that a busy moment hits all alike."""
    streams = {name: items(worker) for name, worker in workers.items()}
    found: dict[str, list[Any]] = {name: [] for name in workers}
    for row in zip(*streams.values(), strict=True):
        for name, outcome in zip(streams, row, strict=True):
            found[name].append(outcome)
    return found


def _cases(path: Path | None) -> Iterator[Case]:
    if path is None:
        yield from built_in_cases()
        return
    if not path.is_file():
        raise RequestError(f"no such file: {path}", param="schemas")
    with path.open(encoding="utf-8") as lines:
        yield from parse_cases(lines)
