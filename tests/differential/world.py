"""Random programs on a tiny fp32 model, every optimisation toggled: equal tokens, and no slot lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stemma.backend.cache.host import LoadRule
from stemma.backend.core import Int32, Plan, StepOutput
from stemma.backend.engine import ModelText
from stemma.backend.executor.runner import ModelRunner
from stemma.backend.grammar.compiler import GrammarCache
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.text.chat import ChatTemplate
from stemma.backend.text.tokenizer import Tokenizer
from tests.differential.cases import Delta, answerable, logprobs_of, mix, result_of
from tests.tiny import write_tiny_model

SLOTS = 3000
TOLERANCE = 2e-4  # of log-probabilities
CONTEXT = 256


class Watched(ModelRunner):
    """Holds plans to what `Plan.segments` says of itself: the list of the plan before only if slots did not change."""

    seen: tuple[Any, list[int], list[list[int]]] | None = None

    def run(self, plan: Plan) -> StepOutput:
        self._watch(plan)
        return super().run(plan)

    def launch(self, plan: Plan) -> Any:
        self._watch(plan)
        return super().launch(plan)

    def _watch(self, plan: Plan) -> None:
        rows, ends = plan.rows.tolist(), (plan.start + plan.n).tolist()
        slots = [plan.slot_table[row, :end].tolist() for row, end in zip(rows, ends, strict=True)]
        if self.seen is not None and plan.segments is self.seen[0]:
            assert rows == self.seen[1], "the tree is the last plan's, the rows are not"
            for now, before in zip(slots, self.seen[2], strict=True):
                assert now[: len(before)] == before, "the tree is the last plan's, the slots are not"
        self.seen = plan.segments, rows, slots


class World:
    """One model, many schedulers. The KV pool is filled with noise before each play: reading a slot that was not
    written for this token would show."""

    def __init__(self, path: Path) -> None:
        self.runner = Watched(
            write_tiny_model(path),
            load_format="dummy",
            max_total_tokens=SLOTS + 128,  # room for rounding up to pages
            host_tokens=SLOTS + 128,
            context_length=CONTEXT,
            num_threads=1,
        )
        self.tokenizer = Tokenizer.load(path)
        self.text = ModelText(self.tokenizer, ChatTemplate.load(path, self.tokenizer))
        self.grammars = GrammarCache(self.tokenizer.vocabulary(self.runner.vocab_size))
        self.late = False  # grammars become ready some steps after they were asked for, as from a compiler thread
        self.compiling: list[Callable[[], None]] = []

    def _compile(self, constraint, done) -> None:
        try:
            made = self.grammars.get(constraint)
        except Exception as error:
            made = error
        if self.late:
            self.compiling.append(lambda: done(made))
        else:
            done(made)

    def scheduler(self, slots: int = SLOTS, page_size: int = 1, host: int = 0, **options: Any) -> Scheduler:
        for pool in (self.runner.pool.keys, self.runner.pool.values):
            for layer in pool:
                torch.nn.init.normal_(layer, std=3.0)
        self.runner.num_slots = (-(-slots // page_size) + 1) * page_size
        if host and options.get("radix", True):
            assert self.runner.host is not None
            self.runner.host.host_slots = (-(-host // page_size) + 1) * page_size
            options |= {"host": self.runner, "load_rule": LoadRule(at_least=1, always=True)}
        scheduler = Scheduler(self.runner, self.text, self._compile, context=CONTEXT, page_size=page_size, **options)
        if host:
            self._scribble(scheduler)
        return scheduler

    def _scribble(self, scheduler: Scheduler) -> None:
        """Write noise over slots that are given back: reading what was evicted would show."""
        free = scheduler.slots.free

        def scribble(at: torch.Tensor) -> None:
            for layer in (*self.runner.pool.keys, *self.runner.pool.values):
                layer[at] = torch.randn(1, *layer.shape[1:]) * 3.0

        def free_and_scribble(slots: Int32) -> None:
            free(slots)
            at = torch.from_numpy(slots.astype("int64"))
            self.runner._ahead.in_order(lambda: scribble(at))  # pyright: ignore[reportPrivateUsage]

        scheduler.slots.free = free_and_scribble  # type: ignore[method-assign]

    def play(
        self,
        deltas: list[Delta],
        *,
        together: bool = True,
        retract_every: int = 0,
        evict_every: int = 0,
        abort: str | None = None,
        late: bool = False,
        stagger: int = 0,
        follow: bool = True,
        family: bool = True,
        **options: Any,
    ) -> dict[tuple[str, str, int], Delta]:
        """Run the programs; returns the final event of every gen and select."""
        scheduler = self.scheduler(**options)
        scheduler.planner.follow &= follow
        self.runner._family = family  # pyright: ignore[reportPrivateUsage]
        self.late = late
        answers: dict[tuple[str, str, int], Delta] = {}
        wanted = set().union(*map(answerable, deltas))
        steps = 0

        def sink(name: str):
            def take(event: Delta) -> None:
                key = (name, event["branch"], event["node"])
                if event["event"] in ("done", "error") and key in wanted:
                    assert key not in answers, "a node was answered twice"
                    answers[key] = event

            return take

        def drain() -> None:
            nonlocal steps
            while scheduler.step() or self.compiling:
                steps += 1
                if self.compiling and steps % 3 == 0:
                    self.compiling.pop(0)()
                assert steps < 20_000, "it never ends"
                # without a cache and with small chunks, endless retraction would be endless recomputation
                if retract_every and steps % retract_every == 0 and steps < 120 and scheduler.memory.running:
                    scheduler.memory.retract(scheduler.memory.running[steps % len(scheduler.memory.running)])
                if evict_every and steps % evict_every == 0:
                    scheduler.cache.evict(40)
                if abort and steps == 3:
                    scheduler.graph.cancel(abort)

        for delta in deltas:
            scheduler.submit(parse_delta(delta), sink(delta["program"]))()
            for _ in range(stagger):
                scheduler.step()
            if not together:
                drain()
        drain()
        scheduler.check()
        assert not scheduler.graph.programs, "a program was not forgotten"
        assert scheduler.flush_cache()
        assert scheduler.slots.free_count == scheduler.slots.total, "a slot leaked"
        return answers


def options_of(rng: random.Random) -> dict[str, Any]:
    """A random setting of everything that must not matter."""
    options: dict[str, Any] = {
        "radix": rng.random() < 0.7,
        "chunk": rng.choice([1, 7, 64, 512]),
        "together": rng.random() < 0.8,
        "jump_forward": rng.random() < 0.5,
        "draft": rng.choice(["off", "forced", "ngram", "auto"]),
        "policy": rng.choice(["program", "lpm", "fcfs", "dfs-weight", "random", "lof"]),
        "same_step_sharing": rng.random() < 0.7,
        "mixed_chunk": rng.random() < 0.7,
        "max_prefill": rng.choice([1, 50, 16384]),
        "max_rows": rng.choice([1, 3, 256]),
        "late": rng.random() < 0.5,
        "stagger": rng.choice([0, 0, 2, 5, 9]),
    }
    if rng.random() < 0.3:
        options |= {"slots": CONTEXT + rng.randint(0, 100), "conservativeness": rng.choice([0.0, 0.0, 1.0])}
    if rng.random() < 0.3:
        options["retract_every"] = rng.choice([2, 3, 5])
    options["mask_overlap"] = rng.random() < 0.5
    options["page_size"] = rng.choice([1, 1, 16, 16, 4, 64])
    options["eviction"] = rng.choice(["lru", "lfu", "slru"])
    if rng.random() < 0.4:
        options["host"] = rng.choice([64, 200, 1000, SLOTS])
        if rng.random() < 0.7:  # prefixes that come and go all the time
            options |= {"evict_every": rng.choice([1, 2, 3]), "retract_every": rng.choice([2, 3, 5])}
    options["follow"] = rng.random() < 0.7
    options["overlap"] = rng.random() < 0.5
    options["family"] = rng.random() < 0.7
    return options


def differences(world: World, seed: int) -> list[str]:
    """Play one case with everything off and with a random setting; what differs, in words."""
    deltas = mix(seed)
    off: dict[str, Any] = {"radix": False, "jump_forward": False, "mask_overlap": False, "family": False}
    truth = world.play(deltas, together=False, chunk=512, **off)
    rng = random.Random(seed + 1_000_000)
    options = options_of(rng)
    if len(deltas) > 1 and rng.random() < 0.3:
        options["abort"] = rng.choice(deltas)["program"]
    played = world.play(deltas, **options)
    everything = set[tuple[str, str, int]]().union(*map(answerable, deltas))
    found = [f"not answered: {sorted(everything - set(got))}" for got in (truth, played) if set(got) != everything]
    for key, event in truth.items():
        other = played.get(key)
        if other is None or (key[0] == options.get("abort") and other["event"] == "error"):
            continue
        if result_of(other) != result_of(event):
            found.append(f"{key}: {result_of(other)} instead of {result_of(event)}")
            continue
        said, right = logprobs_of(other), logprobs_of(event)
        if len(said) != len(right) or any(abs(a - b) > TOLERANCE for a, b in zip(said, right, strict=True)):
            found.append(f"{key}: log-probabilities {said} instead of {right}")
    return [f"case {seed}, {options}: {what}" for what in found]
