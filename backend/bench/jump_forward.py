"""`stemma bench jump_forward FILE.jsonl`: what jump-forward and drafts save, and that they change no token.

Every schema is generated from with each setting, greedily and with a seed, one request at a time and without the prefix
cache, so that a step of the engine is one forward pass for this request. Ids must be equal in all settings. Times are
the CPU time of the engine's thread, with one thread for the model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma.backend.engine import Engine
from stemma.lang.errors import ConstraintError, StemmaError

SETTINGS: dict[str, dict[str, Any]] = {
    "off": {"disable_jump_forward": True},
    "jump": {},
    "jump+draft": {"draft": "forced"},
}
MODES: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0.0}, "seeded": {"temperature": 0.8, "seed": 7}}
PROMPT = "Write a record as JSON.\n"


@dataclass(slots=True)
class Case:
    """One schema of the file; `family` is its `stratum` or `family` there."""

    name: str
    family: str
    schema: str


@dataclass(slots=True)
class Run:
    """One generation. `ids` is None, and `note` says why, where the schema was refused."""

    ids: tuple[int, ...] | None = None
    end: str = ""
    note: str = ""
    forced: int = 0
    drafted: int = 0
    accepted: int = 0
    forwards: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Total:
    """Sums over the runs of one setting."""

    tokens: int = 0
    forced: int = 0
    drafted: int = 0
    accepted: int = 0
    forwards: int = 0
    seconds: float = 0.0

    def add(self, run: Run) -> None:
        self.tokens += len(run.ids or ())
        self.forced += run.forced
        self.drafted += run.drafted
        self.accepted += run.accepted
        self.forwards += run.forwards
        self.seconds += run.seconds


@dataclass(slots=True)
class Family:
    """The figures of some schemas: one `Total` for each setting, over the cases that all of them finished. `refused`:
    by at least one (a slow machine may take too long to compile); `equal`: those that finished agree."""

    cases: int = 0
    equal: int = 0
    refused: int = 0
    totals: dict[str, Total] = field(default_factory=dict)


def read_cases(path: Path, limit: int | None = None) -> list[Case]:
    """Lines of JSON with a `schema` (an object or text); `name` and `stratum` or `family` are used where given."""
    cases = []
    for number, line in enumerate(path.read_text().splitlines()[:limit], 1):
        given = json.loads(line)
        schema = given["schema"] if isinstance(given["schema"], str) else json.dumps(given["schema"])
        family = str(given.get("stratum") or given.get("family") or "all")
        cases.append(Case(str(given.get("name", number)), family, schema))
    return cases


def generate(engine: Engine, case: Case, params: Mapping[str, Any]) -> Run:
    """One generation, with its forward passes and its time."""
    before, begin = engine.scheduler.planner.step, engine._ask(time.thread_time)
    try:
        result = engine.generate(PROMPT, {**params, "json_schema": case.schema})
    except ConstraintError as error:
        return Run(note=str(error))
    meta = result["meta_info"]
    return Run(
        ids=tuple(result["output_ids"]),
        end=str(meta["finish_reason"]),
        forced=meta["forced_tokens"],
        drafted=meta["draft_tokens"],
        accepted=meta["accepted_draft_tokens"],
        forwards=engine.scheduler.planner.step - before,
        seconds=engine._ask(time.thread_time) - begin,
    )


def measure(cases: Sequence[Case], model: str, max_new_tokens: int, settings: Sequence[str]) -> dict[str, list[Run]]:
    """The runs of each setting, in the same order: all cases greedily, then all with a seed. The settings take turns at
    every case, so that a busy moment hits all alike."""
    runs: dict[str, list[Run]] = {name: [] for name in settings}
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(Engine(model, disable_radix_cache=True, num_threads=1, **SETTINGS[name]))
            for name in settings
        }
        for engine in engines.values():
            for case in cases:  # compile first: what is measured is decoding
                generate(engine, case, {"max_new_tokens": 1, "temperature": 0.0})
        for mode in MODES.values():
            for case in cases:
                for name, engine in engines.items():
                    runs[name].append(generate(engine, case, {**mode, "max_new_tokens": max_new_tokens}))
        for engine in engines.values():
            engine.check()
    return runs


def summarise(cases: Sequence[Case], runs: Mapping[str, Sequence[Run]]) -> dict[str, Family]:
    """The figures of each family, and of all under `all`."""
    families: dict[str, Family] = {}
    for i, case in enumerate(list(cases) * len(MODES)):
        each = {name: found[i] for name, found in runs.items()}
        for name in dict.fromkeys((case.family, "all")):
            family = families.setdefault(name, Family(totals={setting: Total() for setting in runs}))
            family.cases += 1
            family.equal += len({(run.ids, run.end) for run in each.values() if run.ids is not None}) <= 1
            if any(run.ids is None for run in each.values()):
                family.refused += 1
                continue
            for setting, run in each.items():
                family.totals[setting].add(run)
    return families


def row(name: str, family: Family) -> str:
    """A line of the table."""
    base = family.totals["off"]
    cells = [f"{name:<18} {family.cases:>5} {family.equal:>5} {family.refused:>7} {base.tokens:>7}"]
    jump = family.totals["jump"]
    cells.append(f"{jump.forced / max(jump.tokens, 1):>7.1%} {base.forwards:>9}")
    for setting, total in family.totals.items():
        if setting != "off":
            saved = 1 - total.forwards / max(base.forwards, 1)
            cells.append(f"{total.forwards:>9} {saved:>6.1%} {base.seconds / max(total.seconds, 1e-9):>6.2f}x")
    drafted = family.totals.get("jump+draft", Total())
    cells.append(f"{drafted.accepted:>6}/{drafted.drafted}" if drafted.drafted else f"{'-':>6}")
    return "  ".join(cells)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench jump_forward",
        description="Jump-forward and drafts of forced text, on and off, over JSON schemas: equal ids, forced tokens, "
        "forward passes and time. Exit status 1 when any ids differ.",
        epilog="example: stemma bench jump_forward schemas.jsonl --max-new-tokens 96",
    )
    parser.add_argument("file", type=Path, metavar="FILE.jsonl", help="lines {schema, name?, stratum?}")
    parser.add_argument("--model", default="demo", help="default: the bundled one")
    parser.add_argument("--max-new-tokens", type=int, default=96, metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N schemas")
    args = parser.parse_args(argv)
    cases = read_cases(args.file, args.limit)
    try:
        families = summarise(cases, measure(cases, args.model, args.max_new_tokens, list(SETTINGS)))
    except StemmaError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{len(cases)} schemas, {' and '.join(MODES)}, at most {args.max_new_tokens} tokens\n")
    head = f"{'family':<18} {'cases':>5} {'equal':>5} {'refused':>7} {'tokens':>7}  {'forced':>7} {'forwards':>9}"
    head += "".join(f"  {name:>9} {'saved':>6} {'faster':>7}" for name in SETTINGS if name != "off")
    print(head + "  drafts accepted")
    for name in sorted(families, key=lambda name: (name == "all", name)):
        print(row(name, families[name]))
    return int(families["all"].equal != families["all"].cases)
