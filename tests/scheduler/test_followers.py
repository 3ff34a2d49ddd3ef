"""n samples of one prompt: one prefill and one row of logits, n draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from stemma.backend.core import Plan, RowLogprobs, StepOutput
from stemma.backend.scheduler.loop import Scheduler
from tests.scheduler.test_drafts import gen, native, run, steps_of, without_costs
from tests.scheduler.test_graphs import expected, ids_of
from tests.scheduler.world import FakeRunner, FakeText, logprob, next_token

PROMPT = "a prompt of some length: "


class Following(FakeRunner):
    """The fake runner, which also draws for followers."""

    takes_followers = True
    followed = 0

    def run(self, plan: Plan) -> StepOutput:
        out = super().run(plan)
        masks, wants = dict(plan.masks), {w.index: w for w in plan.logprobs}
        tokens = []
        for k, f in enumerate(plan.followers):
            i, row = len(plan.rows) + k, int(plan.rows[f.index])
            end = int(plan.positions[f.at]) + 1
            state = self.pool[int(plan.slot_table[row, end - 1])]
            greedy = plan.sampling.temperature[i] == 0
            token = next_token(state, None if greedy else int(plan.sampling.seed[i]) + end, self.eos_every)
            while i in masks and not (int(masks[i][token >> 5]) >> (token & 31)) & 1:
                token = (token + 1) % self.vocab_size
            tokens.append(token)
            if i in wants:
                assert wants[i].input_from < 0 and wants[i].output
                out.logprobs[i] = RowLogprobs(output=logprob(state, token))
        self.followed += len(tokens)
        out.followed = np.array(tokens, np.int32)
        return out


def make(num_slots: int = 2000, eos_every: int = 10**9, **options: Any) -> Scheduler:
    return Scheduler(Following(num_slots, eos_every), FakeText(), native, context=512, **options)


def free(**params: Any) -> dict[str, Any]:
    return {"kind": "gen", "params": {"temperature": 0.0, **params}}


def forked(*children: list[dict[str, Any]], name: str = "p") -> dict[str, Any]:
    root = {"id": "r", "nodes": [{"kind": "text", "text": PROMPT}]}
    branches = [{"id": f"s{k}", "parent": "r", "at": 1, "nodes": nodes} for k, nodes in enumerate(children)]
    return {"program": name, "branches": [root, *branches], "end": True}


def test_a_prompt_is_computed_once_for_all_its_samples():
    scheduler = make()
    params = {"temperature": 1.0, "max_new_tokens": 5}
    events = run(scheduler, forked(*([free(seed=100 * k, **params)] for k in range(64))))
    prompt = ids_of(PROMPT)
    assert steps_of(scheduler) == [len(prompt), 64, 64, 64, 64]
    for event in events:
        seed = 100 * int(event["branch"][1:])
        assert event["ids"] == expected(prompt, 5, 10**9, seed=seed)
    metas = [e["meta"] for e in events]
    assert sum(m["computed_tokens"] for m in metas) == len(prompt) + 64 * 4  # the last token of each is not run
    assert sorted(m["cached_tokens"] for m in metas) == [0] + [len(prompt)] * 63
    assert all(0 <= m["ttft"] <= m["e2e_latency"] for m in metas)


def test_samples_of_one_token_need_one_row_and_one_step():
    scheduler = make(max_rows=1)
    events = run(scheduler, forked(*([free(temperature=1.0, seed=k, max_new_tokens=1)] for k in range(64))))
    assert steps_of(scheduler) == [len(ids_of(PROMPT))] and len(events) == 64
    assert {tuple(e["ids"]) for e in events} == {tuple(expected(ids_of(PROMPT), 1, 10**9, seed=k)) for k in range(64)}


def test_a_prompt_in_chunks_has_followers_at_its_end():
    scheduler = make(chunk=10)
    run(scheduler, forked(*([free(temperature=1.0, seed=k, max_new_tokens=3)] for k in range(8))))
    assert sum(steps_of(scheduler)) == len(ids_of(PROMPT)) + 8 * 2


def test_a_fork_whose_children_begin_with_text_has_none():
    scheduler = make()
    run(scheduler, forked(*([{"kind": "text", "text": "x"}, free(max_new_tokens=3)] for _ in range(4))))
    assert isinstance(scheduler.runner, Following) and scheduler.runner.followed == 0


def test_the_grammar_of_each_masks_its_draw():
    patterns = ["[0-9]{3}", "[a-f]+!", "(yes|no)", "[0-9]{3}"]
    scheduler = make()
    deltas = forked(*([gen(p, temperature=1.0, seed=k, max_new_tokens=8)] for k, p in enumerate(patterns)))
    events = run(scheduler, deltas)
    scheduler2 = make()
    scheduler2.planner.follow = False
    plain = run(scheduler2, deltas)
    assert sorted(map(repr, without_costs(events))) == sorted(map(repr, without_costs(plain)))
    assert isinstance(scheduler.runner, Following) and scheduler.runner.followed >= 2
    assert sum(steps_of(scheduler)) < sum(steps_of(scheduler2))


@pytest.mark.parametrize("seed", range(60))
def test_following_changes_no_answer(seed: int):
    rng = random.Random(seed)

    def generation() -> dict[str, Any]:
        params: dict[str, Any] = {"max_new_tokens": rng.choice([1, 2, 6, 20])}
        if rng.random() < 0.6:
            params |= {"temperature": 1.0, "seed": rng.randint(0, 3)}
        if rng.random() < 0.3:
            params["stop"] = rng.sample("abcdefghijklmnop", 5)
        if rng.random() < 0.2:
            params["stop_token_ids"] = list(range(97, 104))
        if rng.random() < 0.2:
            params["min_new_tokens"] = 1
        if rng.random() < 0.2:
            params["finish_in_budget"] = True
            params["max_new_tokens"] = 6
        made = gen(rng.choice(["x[a-z]{2}", "[a-z]{1,4}", "[0-9]{2}ab"]), **params)
        if "finish_in_budget" not in params and rng.random() < 0.6:
            made.pop("constraint")
        if rng.random() < 0.3:
            made["logprobs"] = {"start": rng.choice([-1, -1, 3]), "top": 0, "ids": None}
        return made | {"stream": rng.random() < 0.3}

    def children() -> list[list[dict[str, Any]]]:
        one = generation()
        out = []
        for k in range(rng.choice([2, 5, 9])):
            first = generation() if rng.random() < 0.3 else {**one, "params": {**one["params"], "seed": k // 2}}
            out.append([first, *([{"kind": "text", "text": "; "}, generation()] if rng.random() < 0.5 else [])])
        return out

    deltas = [forked(*children(), name=name) for name in ("p", "q")]
    eos_every = rng.choice([4, 10**9])

    def play(follow: bool, retract: int = 0, **options: Any) -> list[Any]:
        scheduler = make(eos_every=eos_every, **options)
        scheduler.planner.follow &= follow
        build, built = scheduler.planner.build, [0]

        def retracting(in_flight: bool = False) -> Plan | None:
            built[0] += 1
            if retract and built[0] % retract == 0 and built[0] < 60 and scheduler.memory.running:
                scheduler.memory.retract(scheduler.memory.running[0])
            return build(in_flight)

        scheduler.planner.build = retracting
        events = run(scheduler, *deltas)
        for event in events:
            event.get("meta", {}).pop("num_retractions", None)
        return sorted(map(repr, without_costs(events)))

    followed = play(
        True,
        retract=rng.choice([0, 2, 3]),
        chunk=rng.choice([3, 512]),
        max_rows=rng.choice([1, 3, 256]),
        draft=rng.choice(["off", "ngram"]),
        jump_forward=rng.random() < 0.5,
    )
    assert followed == play(False)


@pytest.mark.parametrize("gone", ["s0", "s2"])
def test_a_branch_may_be_cancelled_while_the_step_is_in_flight(gone: str):
    scheduler = make()
    runner = scheduler.runner
    compute = runner.run

    def cancelling(plan: Plan) -> StepOutput:
        out = compute(plan)
        if plan.followers:
            assert len(plan.followers) == 3 and len(plan.rows) == 1  # s0 leads
            scheduler.graph.cancel("p", [gone])
        return out

    runner.run = cancelling
    delta = forked(*([free(temperature=1.0, seed=k, max_new_tokens=4)] for k in range(4)))
    events = run(scheduler, delta)
    answers = {e["branch"]: e for e in events}
    assert set(answers) == {"s0", "s1", "s2", "s3"}
    for name, event in answers.items():
        if name == gone:
            assert event["event"] == "error"
        else:
            assert event["ids"] == expected(ids_of(PROMPT), 4, 10**9, seed=int(name[1:]))
    assert not scheduler.memory.following and not scheduler.graph.programs
    assert scheduler.flush_cache() and scheduler.slots.free_count == scheduler.slots.total
