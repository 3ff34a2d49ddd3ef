"""Choices are scored as a trie: every edge once, whatever the order, with draws by their probabilities."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.scheduler.test_graphs import ids_of, make, one, run, text
from tests.scheduler.world import chain, logprob


def select(*choices: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "select", "choices": list(choices), **fields}


def logprobs(context: str, choice: str) -> list[float]:
    ids, out = ids_of(context), []
    for c in choice:
        out.append(logprob(chain(ids), ord(c)))
        ids.append(ord(c))
    return out


CHOICES = ("abcde", "abcdf", "abx", "ab", "q", "abcdef", "qq")


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_every_token_of_the_trie_of_choices_is_computed_once_and_scored_right(chunk):
    scheduler = make(chunk=chunk)
    (done,) = run(scheduler, one(text("pick: "), select(*CHOICES)))
    listed = [[entry[0] for entry in row] for row in done["meta"]["input_token_logprobs"]]
    for choice, row in zip(CHOICES, listed, strict=True):
        assert row == pytest.approx(logprobs("pick: ", choice)), choice
    if chunk == 512:
        # Positions that something comes behind: the last token of a choice is scored, not computed.
        inner = {choice[:n] for choice in CHOICES for n in range(1, len(choice))}
        assert done["meta"]["computed_tokens"] == len(ids_of("pick: ")) + len(inner) == 13
    scheduler.check()


def test_the_order_of_the_choices_changes_no_score():
    def scores(choices: tuple[str, ...]) -> dict[str, float]:
        (done,) = run(make(), one(text("pick: "), select(*choices)))
        return dict(zip(choices, done["meta"]["scores"], strict=True))

    assert scores(CHOICES) == scores(tuple(reversed(CHOICES)))


@pytest.mark.parametrize("method", ["greedy_token_selection", "unconditional_likelihood_normalized"])
def test_the_other_methods_see_the_same_numbers_as_each_choice_alone(method):
    (done,) = run(make(), one(text("pick: "), select(*CHOICES, method=method)))
    for k, choice in enumerate(CHOICES):
        (alone,) = run(make(), one(text("pick: "), select(choice, method=method)))
        assert done["meta"]["scores"][k] == pytest.approx(alone["meta"]["scores"][0]), choice


def test_probabilities_are_the_softmax_of_the_scores():
    (done,) = run(make(), one(text("pick: "), select("yes", "no", "maybe")))
    scores = np.array(done["meta"]["scores"])
    expected = np.exp(scores) / np.exp(scores).sum()
    assert done["meta"]["probabilities"] == pytest.approx(expected.tolist())


def test_a_select_with_a_temperature_draws_by_the_probabilities():
    node = select("yes", "no", "maybe", temperature=2.0)
    scheduler = make()
    drawn: Counter[str] = Counter()
    rounds = 600
    chances: list[float] = []
    for seed in range(rounds):
        (done,) = run(scheduler, one(text("pick: "), {**node, "seed": seed}))
        drawn[done["text"]] += 1
        chances = done["meta"]["probabilities"]
    for choice, chance in zip(("yes", "no", "maybe"), chances, strict=True):
        spread = math.sqrt(chance * (1 - chance) / rounds)
        assert abs(drawn[choice] / rounds - chance) < 4 * spread, (choice, drawn, chances)


def test_a_seed_draws_the_same_again_and_no_seed_does_not_repeat_itself():
    node = select(*"abcdefghij", temperature=100.0)
    scheduler = make()
    again = [run(scheduler, one(text("x"), {**node, "seed": 5}))[0]["text"] for _ in range(3)]
    assert len(set(again)) == 1
    assert len({run(scheduler, one(text("x"), node))[0]["text"] for _ in range(20)}) > 1


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
def test_a_temperature_must_make_sense(temperature):
    (event,) = run(make(), one(text("x"), select("a", "b", temperature=temperature)))
    assert event["event"] == "error" and "temperature of a select must be in [0, inf)" in event["error"]["message"]


def test_choices_of_one_token_take_one_row_of_logits():
    scheduler = make()
    (done,) = run(scheduler, one(text("pick: "), select(*"abcdefgh")))
    assert done["meta"]["computed_tokens"] == len(ids_of("pick: ")) and scheduler.planner.step == 1
    listed = [row[0][0] for row in done["meta"]["input_token_logprobs"]]
    assert listed == pytest.approx([logprobs("pick: ", c)[0] for c in "abcdefgh"])


@pytest.mark.parametrize("seed", range(40))
def test_random_tries_are_scored_as_each_choice_alone_and_computed_once(seed: int):
    rng = random.Random(seed)
    choices = {"".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 12))}
    named = rng.sample(sorted(choices), len(choices))
    method = rng.choice(["token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"])
    scheduler = make(chunk=rng.choice([2, 512]), max_rows=rng.choice([2, 64]), radix=rng.random() < 0.8)
    (done,) = run(scheduler, one(text("pick: "), select(*named, method=method)))
    for choice, row in zip(named, done["meta"]["input_token_logprobs"], strict=True):
        assert [entry[0] for entry in row] == pytest.approx(logprobs("pick: ", choice)), choice
        assert [entry[1] for entry in row] == [ord(c) for c in choice]
    scheduler = make()
    (done,) = run(scheduler, one(text("pick: "), select(*named)))
    inner = {choice[:n] for choice in named for n in range(1, len(choice))}
    assert done["meta"]["computed_tokens"] == len(ids_of("pick: ")) + len(inner)


def test_a_generation_goes_on_behind_the_last_token_of_the_choice():
    spoken = {"kind": "gen", "params": {"temperature": 0.0, "max_new_tokens": 6, "ignore_eos": True}}
    picked, after = run(make(), one(text("pick: "), select("abc", "abd", "q"), text("!"), spoken))
    (alone,) = run(make(), one(text(f"pick: {picked['text']}!"), spoken))
    assert after["ids"] == alone["ids"]
