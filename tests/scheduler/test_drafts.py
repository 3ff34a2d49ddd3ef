"""Forced prefixes, drafts that are verified, and texts that end within their budget: same tokens, fewer steps."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from stemma.backend.core import Int32, mask_words
from stemma.backend.grammar.base import Grammar, Vocabulary
from stemma.backend.grammar.compiler import compile_constraint
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.loop import Scheduler
from stemma.lang.params import Constraint
from tests.scheduler.world import BOS, EOS, TABLE, VOCAB, CharTokenizer, FakeRunner, FakeText, chain, logprob

VOCABULARY = Vocabulary(TABLE, VOCAB, frozenset({EOS}), lambda text: [ord(c) for c in text])
ALL = np.full(mask_words(VOCAB), -1, np.int32)


@lru_cache
def compiled(constraint: Constraint) -> Grammar:
    return compile_constraint(constraint, VOCABULARY)


def native(constraint: Constraint, done: Callable[[Grammar | Exception], None]) -> None:
    done(compiled(constraint))


def make(compile: Any = native, num_slots: int = 2000, **options: Any) -> Scheduler:
    return Scheduler(FakeRunner(num_slots, 10**9), FakeText(), compile, context=512, **options)


def steps_of(scheduler: Scheduler) -> list[int]:
    """How many tokens each step computed."""
    assert isinstance(scheduler.runner, FakeRunner)
    return scheduler.runner.steps


def run(scheduler: Scheduler, *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for delta in deltas:
        scheduler.submit(parse_delta(delta), events.append)()
    for _ in range(20_000):
        if not scheduler.step():
            break
    scheduler.check()
    assert not scheduler.graph.programs
    assert scheduler.flush_cache() and scheduler.slots.free_count == scheduler.slots.total
    return events


def gen(regex: str, *, stream: bool = False, logprobs: bool = False, after: str | None = None, **params: Any) -> Any:
    constraint = {"kind": "regex", "value": regex} | ({} if after is None else {"after": after})
    node: dict[str, Any] = {"kind": "gen", "constraint": constraint, "stream": stream}
    if logprobs:
        node["logprobs"] = {"start": -1, "top": 0, "ids": None}
    return node | {"params": {"temperature": 0.0, **params}}


def program(*nodes: dict[str, Any], name: str = "p", text: str = "prompt ") -> dict[str, Any]:
    return {
        "program": name,
        "branches": [{"id": "r", "nodes": [{"kind": "text", "text": text}, *nodes]}],
        "end": True,
    }


def without_costs(events: list[dict[str, Any]]) -> list[Any]:
    costs = ("queue_time", "ttft", "e2e_latency", "computed_tokens", "cached_tokens", "forced_tokens", "draft_tokens")
    costs = (*costs, "forced_runs", "accepted_draft_tokens")
    return [
        (e["event"], e["branch"], e["node"], e.get("text"), e.get("ids"), e.get("error"))
        + (({k: v for k, v in e["meta"].items() if k not in costs},) if "meta" in e else ())
        for e in events
        if e["event"] != "delta"
    ]


# -- forced prefixes --------------------------------------------------------------------------------------------------


def test_a_forced_prefix_is_prefilled_with_the_prompt():
    scheduler = make()
    (done,) = run(scheduler, program(gen('\\{"name": "[a-z]{3}"\\}')))
    assert re.fullmatch('\\{"name": "[a-z]{3}"\\}', done["text"])
    meta = done["meta"]
    assert steps_of(scheduler) == [8 + 10, 1, 1]  # BOS and the prompt with the prefix, then two letters
    assert meta["prompt_tokens"] == 8 and meta["forced_tokens"] == 12 and meta["completion_tokens"] == 15
    assert meta["computed_tokens"] == 20 and meta["ttft"] <= meta["e2e_latency"]


def test_a_forced_prefix_shares_the_prefix_cache():
    scheduler = make()
    a = program(gen("Answer: [0-9]{2}"), name="a")
    b = program(gen("Answer: [0-9]{2}", temperature=1.0, seed=3), name="b")
    events = run(scheduler, a, b)
    assert steps_of(scheduler)[0] == 16 + 1  # the follower computes its last token alone
    assert sorted(e["meta"]["cached_tokens"] for e in events) == [0, 8]  # tokens of the prompt
    assert all(e["text"].startswith("Answer: ") and e["meta"]["prompt_tokens"] == 8 for e in events)


def test_a_text_without_a_choice_needs_no_step():
    scheduler = make()
    first, second = run(scheduler, program(gen("yes", stream=True), gen("[0-9]a", max_new_tokens=5)))[-2:]
    assert first["text"] == "yes" and first["meta"]["finish_reason"] == {"type": "stop", "matched": EOS}
    assert first["meta"]["forced_tokens"] == 3 and first["meta"]["computed_tokens"] == 0
    assert steps_of(scheduler) == [8 + 3]
    assert second["meta"]["prompt_tokens"] == 11


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        ({"max_new_tokens": 3}, "Ans", {"type": "length", "length": 3}),
        ({"max_new_tokens": 0}, "", {"type": "length", "length": 0}),
        ({"stop": ["er"]}, "Answ", {"type": "stop", "matched": "er"}),
        ({"stop_token_ids": [ord("w")]}, "Ans", {"type": "stop", "matched": ord("w")}),
        ({"min_new_tokens": 4, "stop_token_ids": [ord("n")]}, "A", {"type": "stop", "matched": ord("n")}),
    ],
)
def test_a_generation_may_end_within_its_forced_prefix(params: dict[str, Any], text: str, reason: dict[str, Any]):
    played = [
        run(make(jump_forward=jump, draft=draft), program(gen("Answer: [0-9]", stream=True, **params), gen("[a-z]")))
        for jump in (True, False)
        for draft in ("off", "forced")
    ]
    for events in played:
        done = next(e for e in events if e["event"] == "done" and e["node"] == 1)
        assert done["text"] == text and done["meta"]["finish_reason"] == reason
        assert "".join(e["text"] for e in events if e["event"] == "delta" and e["node"] == 1) == text
        assert without_costs(events) == without_costs(played[0])


def test_log_probabilities_are_there_for_forced_tokens():
    plain = run(make(jump_forward=False), program(gen("Answer: [0-9]{3}!!", logprobs=True)))
    scheduler = make()
    jumped = run(scheduler, program(gen("Answer: [0-9]{3}!!", logprobs=True)))
    assert without_costs(jumped) == without_costs(plain)
    assert all(entry[0] is not None for entry in jumped[0]["meta"]["output_token_logprobs"])
    assert jumped[0]["meta"]["forced_tokens"] == 10 and len(steps_of(scheduler)) == 4


def test_log_probabilities_of_a_prefix_in_the_cache_are_computed():
    plain = run(make(jump_forward=False), *(program(gen("Answ[0-9]", logprobs=True), name=n) for n in "ab"))
    jumped = run(make(), *(program(gen("Answ[0-9]", logprobs=True), name=n) for n in "ab"))
    assert without_costs(jumped) == without_costs(plain)


# -- drafts -----------------------------------------------------------------------------------------------------------


class Guess:
    """A matcher that allows everything and proposes what it was told, right or wrong."""

    def __init__(self, truth: list[int], rng: random.Random, at: int = 0) -> None:
        self.truth, self.rng, self.at = truth, rng, at

    def mask(self) -> Int32:
        return ALL

    def accept(self, token_id: int) -> bool:
        self.at += 1
        return True

    def forced(self) -> list[int]:
        return []

    def draft(self) -> list[int]:
        guess = self.truth[self.at : self.at + self.rng.randint(0, 8)]
        return [t if self.rng.random() < 0.8 else self.rng.randint(97, 122) for t in guess]

    def shortest_completion(self) -> list[int]:
        return []

    def can_finish(self, tokens: int) -> bool:
        return True

    def is_complete(self) -> bool:
        return True

    def is_finished(self) -> bool:
        return False

    def rollback(self, n: int) -> None:
        self.at -= n

    def clone(self) -> Guess:
        return Guess(self.truth, self.rng, self.at)


class Guesses:
    def __init__(self, truth: list[int], rng: random.Random) -> None:
        self.truth, self.rng = truth, rng

    def matcher(self) -> Guess:
        return Guess(self.truth, self.rng)


@pytest.mark.parametrize("seed", range(30))
def test_drafts_change_nothing_but_the_steps(seed: int):
    rng = random.Random(seed)
    params: dict[str, Any] = {"max_new_tokens": rng.randint(1, 60)}
    if rng.random() < 0.5:
        params |= {"temperature": 1.0, "seed": seed}
    if rng.random() < 0.4:
        params["stop"] = [chr(rng.randint(97, 122)) + chr(rng.randint(97, 122)), chr(rng.randint(97, 122))]
    if rng.random() < 0.3:
        params["min_new_tokens"] = min(3, params["max_new_tokens"])
    deltas = [
        program(gen(name, stream=rng.random() < 0.5, **params), {"kind": "text", "text": "!"}, gen(name), name=name)
        for name in "abc"
    ]
    eos_every = rng.choice([7, 40, 10**9])
    quiet = lambda constraint, done: done(Guesses([], rng))  # noqa: E731

    def play(compile: Any, **options: Any) -> list[dict[str, Any]]:
        return run(Scheduler(FakeRunner(2000, eos_every), FakeText(), compile, context=512, **options), *deltas)

    truth = play(quiet)
    answers = {e["node"]: e["ids"] for e in truth if e["event"] == "done"}
    right = lambda constraint, done: done(Guesses(answers[1], rng))  # noqa: E731
    drafted = play(
        right,
        draft="forced",
        chunk=rng.choice([4, 512]),
        max_rows=rng.choice([1, 256]),
        radix=rng.random() < 0.7,
    )
    by_place = lambda events: sorted(map(repr, without_costs(events)))  # noqa: E731
    assert by_place(drafted) == by_place(truth)
    metas = [e["meta"] for e in drafted if e["event"] == "done"]
    assert all(0 <= m["accepted_draft_tokens"] <= m["draft_tokens"] for m in metas)


def test_a_right_draft_saves_steps():
    truth = run(make(lambda c, done: done(Guesses([], random.Random(0)))), program(gen("x", max_new_tokens=40)))
    rng = random.Random()
    rng.random = lambda: 0.0  # always right
    rng.randint = lambda a, b: b  # always eight
    scheduler = make(lambda c, done: done(Guesses(truth[0]["ids"], rng)), draft="forced")
    drafted = run(scheduler, program(gen("x", max_new_tokens=40)))
    assert without_costs(drafted) == without_costs(truth)
    assert len(steps_of(scheduler)) == 5  # nine tokens a step; the last one has only four left
    assert drafted[0]["meta"]["draft_tokens"] == drafted[0]["meta"]["accepted_draft_tokens"] == 35


def test_the_earliest_end_is_kept_inside_a_draft():
    for seed in range(20):
        params = {"max_new_tokens": 12, "min_new_tokens": 2, "temperature": 1.0, "seed": seed}
        played, guesses = [], []
        for draft in ("off", "forced"):
            rng = random.Random()
            rng.random, rng.randint = lambda: 0.0, lambda a, b: b
            compile = lambda c, done, g=guesses, rng=rng: done(Guesses(list(g), rng))  # noqa: E731
            scheduler = Scheduler(FakeRunner(500, 3), FakeText(), compile, context=512, draft=draft)
            played.append(run(scheduler, program(gen("x", **params))))
            guesses += played[0][0]["ids"] if not guesses else []
        assert without_costs(played[0]) == without_costs(played[1])
        assert len(guesses) >= 3


def test_a_draft_does_not_keep_a_prompt_from_being_shared():
    scheduler = make(jump_forward=False, draft="forced")
    run(scheduler, *(program(gen("Answer: [0-9]{2}"), name=name) for name in "ab"))
    assert steps_of(scheduler)[0] == (8 + 8) + (1 + 8)  # prompt and draft; the follower's last prompt token and draft


def test_drafts_live_with_little_memory():
    truth = run(make(lambda c, done: done(Guesses([], random.Random(0)))), program(gen("x", max_new_tokens=60)))
    for seed in range(5):
        guesses = Guesses(truth[0]["ids"], random.Random(seed))
        deltas = [program(gen("x", max_new_tokens=60), name=f"p{i}") for i in range(4)]
        scheduler = make(lambda c, done, g=guesses: done(g), draft="forced", num_slots=110, conservativeness=0.0)
        events = run(scheduler, *deltas)
        assert len(events) == 4 and all(e["ids"] == truth[0]["ids"] for e in events)


def test_forced_text_is_drafted_where_jump_forward_is_off():
    delta = program(gen("(The capital of (France|Spain) is [A-Z][a-z]{3}\\. ){3}"))
    truth = run(make(jump_forward=False), delta)
    scheduler = make(jump_forward=False, draft="forced")
    drafted = run(scheduler, delta)
    assert without_costs(drafted) == without_costs(truth)
    meta = drafted[0]["meta"]
    assert meta["forced_tokens"] == 0 and meta["accepted_draft_tokens"] == meta["draft_tokens"] > 60
    assert len(steps_of(scheduler)) < 30


# -- closing in time --------------------------------------------------------------------------------------------------

NESTED = r'\{"tags": \[("[a-z]{2,9}"(, "[a-z]{2,9}"){0,9})?\], "end": (true|false)\}'


@pytest.mark.parametrize("budget", [25, 26, 31, 40, 64, 300])
@pytest.mark.parametrize("logprobs", [False, True])
def test_a_text_is_complete_whatever_the_budget(budget: int, logprobs: bool):
    closed = 0
    for seed in range(5):
        params = {"max_new_tokens": budget, "finish_in_budget": True, "temperature": 1.0, "seed": seed}
        delta = program(gen(NESTED, logprobs=logprobs, stream=seed % 2 == 0, **params), gen("[a-z]"))
        played = [
            run(make(jump_forward=jump, draft=draft, chunk=chunk), delta)
            for jump, draft, chunk in ((True, "off", 512), (False, "off", 3), (True, "forced", 512))
        ]
        done = next(e for e in played[0] if e["event"] == "done")
        assert re.fullmatch(NESTED, done["text"]), done["text"]
        assert len(done["ids"]) <= budget
        assert done["meta"]["finish_reason"]["type"] == "stop"
        free = run(make(), program(gen(NESTED, **{**params, "max_new_tokens": 400})))[-1]
        if len(free["ids"]) <= budget:
            assert done["ids"] == free["ids"]
        else:
            closed += 1
        if logprobs:
            prompt = [BOS, *map(ord, "prompt ")]
            states = [chain([*prompt, *done["ids"][:k]]) for k in range(len(done["ids"]))]
            expected = [logprob(state, token) for state, token in zip(states, done["ids"], strict=True)]
            assert [entry[0] for entry in done["meta"]["output_token_logprobs"]] == expected
        for events in played[1:]:
            assert [e[:6] for e in without_costs(events)] == [e[:6] for e in without_costs(played[0])]
            if logprobs:
                other = next(e for e in events if e["event"] == "done")
                assert other["meta"]["output_token_logprobs"] == done["meta"]["output_token_logprobs"]
    assert closed or budget > 64


def test_an_open_end_is_a_stop_without_a_match():
    params = {"max_new_tokens": 4, "finish_in_budget": True}
    (done,) = run(make(), program(gen("[a-z]+", **params)))
    assert len(done["ids"]) == 4 and done["meta"]["finish_reason"] == {"type": "stop", "matched": None}
    (done,) = run(make(), program(gen("([a-z]{3}-)+", **params)))
    assert done["text"][3:] == "-" and done["meta"]["finish_reason"] == {"type": "stop", "matched": None}


def test_a_budget_below_the_shortest_match_is_an_error_that_names_it():
    (event,) = run(make(), program(gen(NESTED, max_new_tokens=24, finish_in_budget=True)))
    assert event["error"]["type"] == "ConstraintError" and event["error"]["param"] == "max_new_tokens"
    assert "takes 25 tokens, and there is room for 24" in event["error"]["message"]


def test_finish_in_budget_needs_a_constraint():
    node = {"kind": "gen", "params": {"finish_in_budget": True}}
    (event,) = run(make(), program(node))
    assert event["error"]["param"] == "finish_in_budget" and "needs a constraint" in event["error"]["message"]


def test_a_failure_reaches_the_forks_of_forks():
    branches = [
        {"id": "r", "nodes": [{"kind": "text", "text": "a"}, gen("aa", max_new_tokens=1, finish_in_budget=True)]},
        {"id": "b", "parent": "r", "at": 2, "nodes": [{"kind": "text", "text": "b"}]},
        {"id": "c", "parent": "b", "at": 1, "nodes": [gen("a")]},
    ]
    late: list[Callable[[], None]] = []
    scheduler = make(lambda constraint, done: late.append(lambda: native(constraint, done)))
    events: list[dict[str, Any]] = []
    scheduler.submit(parse_delta({"program": "p", "branches": branches, "end": True}), events.append)()
    late.pop()()
    assert not late and not scheduler.graph.programs
    assert [(e["event"], e["branch"]) for e in events] == [("error", "r"), ("error", "c")]


# -- behind a marker --------------------------------------------------------------------------------------------------


def test_a_marker_of_text_is_part_of_the_grammar():
    for jump in (True, False):
        (done,) = run(
            make(jump_forward=jump), program(gen("=[0-9]{2}", after="k", max_new_tokens=400, finish_in_budget=True))
        )
        assert re.fullmatch("[^k]*k=[0-9]{2}", done["text"])


class SpecialTokenizer(CharTokenizer):
    """Token 0 is written <done>."""

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]], *, start: bool = False) -> list[int]:
        found: list[int] = []
        for text, special in pieces:
            found += [0] if special and text == "<done>" else [ord(c) for c in text]
        return found


class SpecialText(FakeText):
    tokenizer = SpecialTokenizer()


@pytest.mark.parametrize("draft", ["off", "forced"])
def test_a_special_token_may_be_the_marker(draft: str):
    delta = program(gen("a=[0-9]{2}", after="<done>", max_new_tokens=20, finish_in_budget=True))
    scheduler = Scheduler(FakeRunner(500, 10**9), SpecialText(), native, context=512, draft=draft)
    (done,) = run(scheduler, delta)
    at = done["ids"].index(0)
    assert at == 15 and re.fullmatch("a=[0-9]{2}", bytes(done["ids"][at + 1 :]).decode())
    (wrong,) = run(
        Scheduler(FakeRunner(500, 10**9), SpecialText(), native, context=512),
        program(gen("a=[0-9]{2}", after="<done>", max_new_tokens=4, finish_in_budget=True)),
    )
    assert "takes 5 tokens" in wrong["error"]["message"]
