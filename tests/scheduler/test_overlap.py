"""One step ahead: the same events as the plain loop, nothing lost, nothing written that is not known."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stemma.backend.cache.radix import Node, RadixCache
from stemma.backend.core import Plan, StepOutput
from stemma.backend.grammar.base import Grammar
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from stemma.lang.params import Constraint
from tests.scheduler.test_drafts import compiled
from tests.scheduler.test_graphs import expected, gen, ids_of, one, random_delta, text
from tests.scheduler.world import EOS, FakeRunner, FakeText, digest

Event = dict[str, Any]
REGEXES = [
    "[a-z]{1,9}!",
    "Answer: (yes|no), because [a-z]{2,5}\\.",
    "(ab|cd){2,4}",
    '\\{"name": "[a-z]{1,6}", "age": [0-9]{1,3}\\}',
    "x",
    "[a-f]+",
]


class Played:
    """A scheduler on the fake model, its programs' events, and a look at everything after every step."""

    def __init__(self, overlap: bool, *, eos_every: int = 23, num_slots: int = 2000, whim: int = 0, **options: Any):
        self.runner = FakeRunner(num_slots, eos_every, whim)
        self.compiling: list[Callable[[], None]] = []
        self.late = options.pop("late", False)
        options.setdefault("context", 400)
        self.scheduler = Scheduler(self.runner, FakeText(), self._compile, overlap=overlap, seed=1, **options)
        self.events: dict[str, list[Event]] = {}
        self.steps = 0
        self.retract_every = 0
        self.cancel: tuple[int, str, list[str] | None] = (0, "", None)  # after which step, what

    def _compile(self, constraint: Constraint, done: Callable[[Grammar | Exception], None]) -> None:
        if self.late:
            self.compiling.append(lambda: done(compiled(constraint)))
        else:
            done(compiled(constraint))

    def submit(self, delta: dict[str, Any]) -> None:
        events = self.events.setdefault(delta["program"], [])
        self.scheduler.submit(parse_delta(delta), events.append)()

    def step(self) -> bool:
        self.steps += 1
        assert self.steps < 20_000, "it never ends"
        if self.compiling and self.steps % 3 == 0:
            self.compiling.pop(0)()
        more = self.scheduler.step()
        if self.steps % 4 == 0 or not more:
            self.scheduler.check()
        assert more or self.scheduler.idle
        memory = self.scheduler.memory
        if self.retract_every and self.steps % self.retract_every == 0 and self.steps < 90 and memory.running:
            memory.retract(memory.running[self.steps % len(memory.running)])
            self.scheduler.check()
            more = True
        if self.cancel[0] == self.steps:
            self.scheduler.graph.cancel(*self.cancel[1:])
            self.scheduler.check()
        return more or bool(self.compiling)

    def drain(self) -> None:
        while self.step():
            pass

    def end(self) -> None:
        """Nothing is left, and what is cached is what its ids say."""
        scheduler = self.scheduler
        assert scheduler.idle and not scheduler.graph.programs
        rows = scheduler.rows
        assert not rows.ahead.any() and not rows.drawing.any()
        if isinstance(scheduler.cache, RadixCache):
            for root in (n for n in scheduler.cache.nodes() if n.parent is None):
                self._right(root, 7)
        assert scheduler.flush_cache() and scheduler.slots.free_count == scheduler.slots.total

    def _right(self, node: Node, state: int) -> None:
        for token, slot in zip(node.ids.tolist(), node.slots.tolist(), strict=True):
            state = digest(state, token)
            assert self.runner.pool[slot] == state, "the cache holds what its ids do not say"
        for child in node.children.values():
            self._right(child, state)


def told(events: list[Event]) -> dict[Any, list[Any]]:
    """All that a node's listener was told, in order, but for times and for what depends on what was cached."""
    out: dict[Any, list[Any]] = {}
    for event in events:
        meta = event.get("meta") or {}
        kept = {k: v for k, v in meta.items() if k in ("finish_reason", "completion_tokens", "forced_tokens", "choice")}
        kept |= {k: v for k, v in meta.items() if k.endswith("_logprobs") or k in ("forced_runs", "scores")}
        out.setdefault((event["branch"], event["node"]), []).append({**event, "meta": kept})
    return out


def rich_delta(rng: random.Random, name: str) -> dict[str, Any]:
    """`random_delta` with grammars, penalties and ends held back."""
    delta = random_delta(rng, name)
    for branch in delta["branches"]:
        for node in branch["nodes"]:
            if node["kind"] != "gen":
                continue
            params = node["params"]
            if rng.random() < 0.35:
                node["constraint"] = {"kind": "regex", "value": rng.choice(REGEXES)}
                params["max_new_tokens"] = rng.choice([2, 8, 20])
                if rng.random() < 0.2:
                    params["finish_in_budget"] = True
                if rng.random() < 0.2:
                    node["constraint"]["after"] = rng.choice("aeiou")
            if rng.random() < 0.2:
                params["repetition_penalty"] = 1.5
            if rng.random() < 0.2:
                params["min_new_tokens"] = min(3, params["max_new_tokens"])
    return delta


def pieces(rng: random.Random, delta: dict[str, Any]) -> list[dict[str, Any]]:
    """The same program as several deltas, some of which come in while the branches run."""
    out: list[dict[str, Any]] = []
    for k, branch in enumerate(delta["branches"]):
        nodes = branch["nodes"]
        where = {key: value for key, value in branch.items() if key != "nodes"}
        for at, node in enumerate(nodes):
            given = {**(where if at == 0 else {"id": branch["id"]}), "first": at, "nodes": [node]}
            last = k == len(delta["branches"]) - 1 and at == len(nodes) - 1
            out.append({"program": delta["program"], "branches": [given], "end": last})
    return out


@pytest.mark.parametrize("seed", range(20))
def test_the_events_are_those_of_the_plain_loop(seed: int):
    rng = random.Random(seed)
    deltas = [rich_delta(rng, f"p{i}") for i in range(rng.randint(1, 5))]
    eos_every = rng.choice([2, 3, 7, 23, 10**9])
    plain = Played(False, eos_every=eos_every)
    for delta in deltas:
        plain.submit(delta)
        plain.drain()
    plain.end()
    truth = {program: told(events) for program, events in plain.events.items()}
    for turn in range(2):
        options: dict[str, Any] = {
            "chunk": rng.choice([1, 5, 64, 512]),
            "max_rows": rng.choice([1, 2, 40]),
            "radix": rng.random() < 0.7,
            "jump_forward": rng.random() < 0.7,
            "draft": rng.choice(["off", "off", "forced"]),
            "mask_overlap": rng.random() < 0.5,
            "late": rng.random() < 0.3,
            "whim": seed * 10 + turn,
        }
        if rng.random() < 0.3:
            options |= {"num_slots": 420, "conservativeness": 0.0}
        whole = options["jump_forward"] and options["draft"] == "off"  # else forced tokens are counted otherwise
        retract_every = rng.choice([0, 0, 2, 3])
        abort_at, abort = rng.choice([0, 0, 3, 9, 20]), rng.choice(deltas)
        branches = rng.choice([None, [rng.choice(abort["branches"])["id"]]])
        play = Played(True, eos_every=eos_every, **options)
        play.retract_every = retract_every
        play.cancel = (abort_at, abort["program"], branches)
        split = rng.random() < 0.4 and not abort_at
        sent = [piece for delta in deltas for piece in (pieces(rng, delta) if split else [delta])]
        stagger = rng.choice([0, 1, 2, 5])
        for delta in sent:
            if not abort_at or delta["program"] != abort["program"] or play.steps < abort_at:
                play.submit(delta)
            for _ in range(stagger):
                play.step()
        play.drain()
        for program, events in play.events.items():
            if abort_at and branches is not None and program == abort["program"]:
                play.scheduler.graph.cancel(program)
            got = told(events)
            for key, all_told in truth[program].items():
                here = got.get(key, [])
                if abort_at and program == abort["program"] and (not here or here[-1]["event"] == "error"):
                    continue
                assert stripped(here, whole) == stripped(all_told, whole), (seed, turn, options, program, key)
        play.end()


def stripped(events: list[Event], whole: bool) -> list[Event]:
    """Without `whole`, the stream comes in other pieces, and other tokens count as forced."""
    if whole:
        return events
    final = [event for event in events if event["event"] != "delta"]
    return [
        {**e, "meta": {k: v for k, v in e["meta"].items() if k not in ("forced_tokens", "forced_runs")}} for e in final
    ]


def play_one(overlap: bool, *nodes: dict[str, Any], **options: Any) -> Played:
    play = Played(overlap, **options)
    play.submit(one(*nodes))
    play.drain()
    play.end()
    return play


def test_a_length_is_known_ahead_and_nothing_is_run_for_it():
    plain, ahead = (play_one(o, text("abc"), gen(max_new_tokens=9), eos_every=10**9) for o in (False, True))
    assert ahead.runner.steps == plain.runner.steps == [4] + [1] * 8
    assert ahead.runner.relayed == 8 and ahead.runner.late == 0
    assert ahead.scheduler.memory.discarded == 0
    assert ahead.events["p"][-1]["ids"] == expected(ids_of("abc"), 9, 10**9)


def test_the_end_of_the_context_is_known_ahead():
    play = play_one(True, text("a" * 40), gen(), eos_every=10**9, context=50)
    assert play.events["p"][-1]["meta"]["completion_tokens"] == 9  # BOS, 40, 9
    assert play.scheduler.memory.discarded == 0


@pytest.mark.parametrize("last", ["an end", "a stop string"])
def test_an_end_is_known_a_step_late_and_costs_one_token(last: str):
    full = expected(ids_of("abc"), 30, 10**9)
    if last == "an end":
        ends = (every for every in range(2, 50) if 4 < len(expected(ids_of("abc"), 30, every)) < 30)
        eos_every, stop = next(ends), None
    else:
        eos_every, stop = 10**9, chr(full[6])
    params = {"max_new_tokens": 30} | ({"stop": [stop]} if stop else {})
    plain, ahead = (play_one(o, text("abc"), gen(**params), eos_every=eos_every) for o in (False, True))
    assert told(ahead.events["p"]) == told(plain.events["p"])
    assert ahead.runner.steps == [*plain.runner.steps, 1]
    assert ahead.scheduler.memory.discarded == 1
    assert ahead.events["p"][-1]["meta"]["computed_tokens"] == plain.events["p"][-1]["meta"]["computed_tokens"]


def test_a_row_goes_on_over_the_token_that_was_discarded():
    first, second, third = (gen(max_new_tokens=n) for n in (30, 5, 3))
    nodes = [text("abc"), first, text("and then "), second, text("x"), third]
    for every in range(2, 12):
        plain, ahead = (play_one(o, *nodes, eos_every=every) for o in (False, True))
        assert told(ahead.events["p"]) == told(plain.events["p"])


def constrained(regex: str, **params: Any) -> dict[str, Any]:
    return {**gen(**{"max_new_tokens": 60} | params), "constraint": {"kind": "regex", "value": regex}}


def test_the_forced_tokens_of_a_row_are_appended_while_the_first_of_them_is_drawn():
    node = constrained("[ab]{2}, and then [ab]{3}")
    plain, ahead = (play_one(o, text("go"), node, eos_every=10**9) for o in (False, True))
    assert told(ahead.events["p"]) == told(plain.events["p"])
    assert ahead.events["p"][-1]["meta"]["forced_tokens"] == 11
    # prompt, first letter, second letter and ", and then ", first letter, second letter; the last ends it
    assert plain.runner.steps == [3, 1, 12, 1, 1]
    # the step that runs the second letter is launched before what follows it is known; so is one behind the last
    assert ahead.runner.steps == [3, 1, 1, 11, 1, 1, 1]
    assert ahead.runner.late == 5 and ahead.runner.relayed == 5


def test_a_mask_is_worked_out_when_the_step_it_is_for_is_launched():
    order: list[str] = []

    class Watched:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def mask(self) -> Any:
            order.append("mask")
            return self.inner.mask()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    class Grammars:
        def matcher(self) -> Any:
            return Watched(compiled(Constraint("regex", "[a-z]{8}")).matcher())

    class Noting(FakeRunner):
        def launch(self, plan: Plan) -> Any:
            order.append("launch")
            return super().launch(plan)

    runner = Noting(500, 10**9)
    scheduler = Scheduler(
        runner, FakeText(), lambda c, done: done(Grammars()), context=100, overlap=True, mask_overlap=False
    )
    events: list[Event] = []
    scheduler.submit(parse_delta(one(text("a"), constrained("x"))), events.append)()
    while scheduler.step():
        pass
    assert len(events[-1]["ids"]) == 8
    # the first plan is launched with its mask at hand, every later one before its mask is known
    assert order == ["launch", *["launch", "mask"] * 8]


def test_a_step_that_fails_is_told_when_its_results_are_asked_for():
    class Breaking(FakeRunner):
        def run(self, plan: Plan) -> StepOutput:
            if len(self.steps) == 3:
                raise RuntimeError("the device is gone")
            return super().run(plan)

    scheduler = Scheduler(Breaking(500, 10**9), FakeText(), lambda c, d: None, context=100, overlap=True)
    events: list[Event] = []
    scheduler.submit(parse_delta(one(text("a"), gen(max_new_tokens=20))), events.append)()
    with pytest.raises(RuntimeError, match="the device is gone"):
        while scheduler.step():
            pass
    scheduler.graph.fail_all(RuntimeError("the device is gone"))
    assert events[-1]["event"] == "error" and "the device is gone" in events[-1]["error"]["message"]


def test_a_runner_that_cannot_launch_is_refused():
    class Plain:
        num_slots, vocab_size = 100, 128

        def run(self, plan: Plan) -> StepOutput:
            raise NotImplementedError

    with pytest.raises(ValueError, match="Plain cannot"):
        Scheduler(Plain(), FakeText(), lambda c, d: None, context=100, overlap=True)


def test_a_row_that_is_over_is_not_waited_for_by_the_cache():
    """The last event comes while a step is under way; the engine is idle at once all the same."""
    play = Played(True, eos_every=3)
    play.submit(one(text("abc"), gen(max_new_tokens=50)))
    while not play.events["p"]:
        play.step()
    assert play.events["p"][-1]["ids"][-1] == EOS
    assert play.scheduler.idle and play.scheduler.flush_cache()


def test_memory_that_runs_out_is_given_back_before_anyone_is_sent_to_the_queue():
    """Two branches fit only one after the other's end: the step in flight frees what the next one needs."""
    nodes = [text("a" * 10), gen(max_new_tokens=14, ignore_eos=True)]
    deltas = [one(text(f"{i}"), *nodes, program=f"p{i}") for i in range(6)]
    plays = []
    for overlap in (False, True):
        play = Played(overlap, eos_every=10**9, num_slots=40, conservativeness=0.0, context=39)
        for delta in deltas:
            play.submit(delta)
        play.drain()
        play.end()
        plays.append(play)
    plain, ahead = plays
    assert {p: told(e) for p, e in ahead.events.items()} == {p: told(e) for p, e in plain.events.items()}
    assert ahead.scheduler.memory.retractions <= plain.scheduler.memory.retractions + 2


def test_a_steady_batch_is_planned_from_what_is_there():
    """Rows that end, wait and go on at different times never make a plan reuse the rows of another batch."""
    play = Played(True, eos_every=10**9)
    for i in range(8):
        play.submit(one(text(f"{i}"), gen(max_new_tokens=5 + i), text("!"), gen(max_new_tokens=3), program=f"p{i}"))
    play.drain()
    play.end()
    for i in range(8):
        first = expected(ids_of(f"{i}"), 5 + i, 10**9)
        assert play.events[f"p{i}"][0]["ids"] == first
        assert play.events[f"p{i}"][1]["ids"] == expected([*ids_of(f"{i}"), *first, ord("!")], 3, 10**9)
    assert play.runner.relayed > 50
    assert np.sum(play.runner.steps) == sum(2 + (5 + i - 1) + 2 + 2 for i in range(8)) - 7  # BOS is shared
