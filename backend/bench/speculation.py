"""`stemma bench speculation`: drafts without a draft model, off and on: equal ids, forward passes and time.

Every workload runs with each setting in turn, several times over; times are the CPU time of the engine's thread, with
one thread for the model, best of the repeats. The prefix cache is on and flushed before each run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from stemma.backend.engine import Engine
from stemma.lang.errors import StemmaError

SETTINGS = ("off", "forced", "ngram", "auto")
NAMES = ("Ada Lovelace", "Grace Hopper", "Alan Turing", "Edsger Dijkstra", "Barbara Liskov", "Donald Knuth")
CITIES = ("London", "New York", "Paris", "Rotterdam", "Los Angeles", "Milwaukee")
STORY = "{name} lives in {city} and works as a painter. {name} is {age} years old. {name} has a talk on Monday."
PERSON = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "city": {"type": "string", "maxLength": 24},
            "age": {"type": "integer"},
        },
        "required": ["name", "city", "age"],
    }
)
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 96}


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts that arrive together, or one after the other, with their parameters."""

    name: str
    prompts: tuple[str, ...]
    params: dict[str, Any]
    together: bool = False


@dataclass(slots=True)
class Figures:
    """One workload with one setting. `seconds`: of the best repeat."""

    ids: tuple[tuple[int, ...], ...] = ()
    seconds: float = float("inf")
    forwards: int = 0
    drafted: int = 0
    confirmed: int = 0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))


def workloads() -> list[Workload]:
    """Where drafts should pay (text that comes again) and where they should not."""
    stories = [
        STORY.format(name=name, city=city, age=20 + 7 * k)
        for k, (name, city) in enumerate(zip(NAMES, CITIES, strict=True))
    ]
    records = [
        json.dumps({"name": n, "city": c, "age": 20 + 7 * k})
        for k, (n, c) in enumerate(zip(NAMES, CITIES, strict=True))
    ]
    extract = tuple(f"Text: {story}\nJSON: " for story in stories)
    shots = "\n".join(f"Text: {s}\nJSON: {r}" for s, r in zip(stories[:2], records[:2], strict=True))
    echo = tuple(f"{shots}\nText: {story}\nJSON: " for story in stories[2:])
    lists = tuple(f"Question: What is the opposite of {word}?\nAnswer:" for word in ("sad", "big", "hot", "old"))
    free = tuple(f"{name} told us about {city}." for name, city in zip(NAMES, CITIES, strict=True))
    sampled = {"temperature": 1.0, "max_new_tokens": 96, "ignore_eos": True, "seed": 5}
    many = tuple(
        f"{name} told us about {city} {k}." for k in range(11) for name, city in zip(NAMES, CITIES, strict=True)
    )
    return [
        Workload("json, alone", extract, GREEDY | {"json_schema": PERSON}),
        Workload("json, few-shot", echo, GREEDY | {"json_schema": PERSON}),
        Workload("json, 4 at once", echo, GREEDY | {"json_schema": PERSON}, together=True),
        Workload("lists, alone", lists, GREEDY | {"ignore_eos": True}),
        Workload("lists, 4 at once", lists, GREEDY | {"ignore_eos": True}, together=True),
        Workload("lists, 16 at once", lists * 4, GREEDY | {"ignore_eos": True}, together=True),
        Workload(
            "json, 6 samples", extract[:3], {**GREEDY, "temperature": 0.7, "seed": 3, "n": 6, "json_schema": PERSON}
        ),
        Workload("lists, 6 samples", lists[:3], {**GREEDY, "temperature": 0.7, "seed": 3, "n": 6}),
        Workload("free, alone", free, sampled),
        Workload("free, 6 at once", free, sampled, together=True),
        Workload("free, 64 at once", many[:64], sampled, together=True),
    ]


def play(engine: Engine, load: Workload, figures: Figures) -> None:
    """Run a workload once more and add it to its figures."""
    engine.flush_cache()
    drafter = engine.scheduler.drafter
    before = (engine.scheduler.planner.step, drafter.drafted, drafter.confirmed)
    begin = engine._ask(time.thread_time)
    if load.together:
        results = engine.generate(list(load.prompts), load.params)
    else:
        results = [engine.generate(prompt, load.params) for prompt in load.prompts]
    results = [r for found in results for r in (found if isinstance(found, list) else [found])]
    figures.seconds = min(figures.seconds, engine._ask(time.thread_time) - begin)
    figures.forwards = engine.scheduler.planner.step - before[0]
    figures.drafted, figures.confirmed = drafter.drafted - before[1], drafter.confirmed - before[2]
    figures.ids = tuple(tuple(r["output_ids"]) for r in results)


def measure(
    loads: Sequence[Workload], model: str, repeats: int, settings: Sequence[str]
) -> dict[str, dict[str, Figures]]:
    """The figures of each workload and setting."""
    found = {load.name: {name: Figures() for name in settings} for load in loads}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Engine(model, draft=name, num_threads=1)) for name in settings}
        for _ in range(repeats):
            for load in loads:
                for name, engine in engines.items():
                    play(engine, load, found[load.name][name])
        for engine in engines.values():
            engine.check()
    return found


def row(name: str, each: dict[str, Figures]) -> str:
    """A line of the table."""
    base = each["off"]
    cells = [f"{name:<18} {base.tokens:>6} {base.forwards:>8} {base.tokens / base.seconds:>7.0f}"]
    for setting, figures in each.items():
        if setting != "off":
            rate = f"{figures.confirmed / figures.drafted:>5.0%}" if figures.drafted else f"{'-':>5}"
            saved = 1 - figures.forwards / base.forwards
            cells.append(f"{figures.drafted:>6} {rate} {saved:>6.1%} {base.seconds / figures.seconds:>5.2f}x")
    return "  ".join(cells)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench speculation",
        description="Drafts by prompt lookup and of forced text, off and on: equal ids, forward passes saved and time. "
        "Exit status 1 when any ids differ.",
        epilog="example: stemma bench speculation --repeats 5",
    )
    parser.add_argument("--model", default="demo", help="default: the bundled one")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--only", metavar="TEXT", help="workloads whose name has this in it")
    args = parser.parse_args(argv)
    loads = [load for load in workloads() if not args.only or args.only in load.name]
    try:
        found = measure(loads, args.model, args.repeats, SETTINGS)
    except StemmaError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    head = f"{'workload':<18} {'tokens':>6} {'forwards':>8} {'tok/s':>7}"
    print(head + "".join(f"  {name:>6} right  saved faster" for name in SETTINGS if name != "off"))
    equal = True
    for name, each in found.items():
        same = len({figures.ids for figures in each.values()}) == 1
        equal &= same
        print(row(name, each) + ("" if same else "  IDS DIFFER"))
    return int(not equal)
