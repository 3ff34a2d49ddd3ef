"""Steps launched one ahead on the runner: what `run` computes, in order, with nothing read too early or too late."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.backend.core import LogprobRequest, Plan, mask_words
from stemma.backend.executor.runner import ModelRunner

from plans import Sequences  # isort: skip

VOCAB = 307
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [12]]


@pytest.fixture
def runner(tiny_dir: Callable[..., Path]) -> ModelRunner:
    return ModelRunner(tiny_dir(), load_format="dummy", max_total_tokens=2100)


def one_by_one(runner: ModelRunner, steps: int, **params: Any) -> list[list[int]]:
    table = Sequences(VOCAB)
    drawn: list[list[int]] = []
    plan = table.extend(list(enumerate(PROMPTS)), prompt_len=[4, 3, 1], **params)
    for _ in range(steps):
        drawn.append(runner.run(plan).next_ids.tolist())
        plan = table.extend([(i, [token]) for i, token in enumerate(drawn[-1])], prompt_len=[4, 3, 1], **params)
    return drawn


def relayed(table: Sequences, late: bool = False, order: tuple[int, ...] = (0, 1, 2), **params: Any) -> Plan:
    """The next decode step of three rows, planned without their tokens: -1 in the plan, nonsense in the table."""
    plan = table.extend([(row, [VOCAB - 1]) for row in order], **params)
    return replace(
        plan,
        ids=np.full(3, -1, np.int32),
        relay_to=np.arange(3, dtype=np.int32),
        relay_from=np.array(order, np.int32),
        late=late,
    )


@pytest.mark.parametrize("params", [{}, {"temperature": 0.9, "seed": 5, "top_p": 0.9}])
def test_a_step_takes_the_tokens_of_the_one_before_it(runner: ModelRunner, params: dict[str, Any]) -> None:
    wanted = one_by_one(runner, 5, **params)
    runner.reset()
    table = Sequences(VOCAB)
    lens = {"prompt_len": [4, 3, 1]}
    launched = runner.launch(table.extend(list(enumerate(PROMPTS)), **lens, **params))
    drawn = []
    for _ in range(4):
        ahead = runner.launch(relayed(table, **lens, **params))
        table.slot_table[5:] = table.id_table[5:] = 9  # other rows may change at once
        drawn.append(launched.result().next_ids.tolist())
        launched = ahead
    assert [*drawn, launched.result().next_ids.tolist()] == wanted


def test_a_step_may_have_its_rows_in_another_order(runner: ModelRunner) -> None:
    wanted = one_by_one(runner, 2)
    runner.reset()
    table = Sequences(VOCAB)
    first = runner.launch(table.extend(list(enumerate(PROMPTS))))
    second = runner.launch(relayed(table, order=(2, 0, 1)))
    assert first.result().next_ids.tolist() == wanted[0]
    assert second.result().next_ids.tolist() == [wanted[1][row] for row in (2, 0, 1)]


def test_the_tables_may_change_as_soon_as_a_step_is_launched(runner: ModelRunner) -> None:
    wanted = one_by_one(runner, 1)
    runner.reset()
    table = Sequences(VOCAB)
    logprobs = [LogprobRequest(0, input_from=1, input_to=4)]
    plan = table.extend(list(enumerate(PROMPTS)), logprobs=logprobs)
    launched = runner.launch(plan)
    table.slot_table[:] = 1
    table.id_table[:] = 0
    out = launched.result()
    assert out.next_ids.tolist() == wanted[0]
    assert len(out.logprobs[0].input) == 3
    runner.reset()
    again = Sequences(VOCAB)
    told = runner.run(again.extend(list(enumerate(PROMPTS)), logprobs=logprobs)).logprobs[0].input
    assert out.logprobs[0].input == pytest.approx(told, abs=1e-5)


class Mask:
    """Masks that note when they are asked for."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        self.asked.set()
        only = np.zeros(mask_words(VOCAB), np.int32)
        only[1] = 1 << 3  # token 35
        yield 1, only


def test_a_late_step_looks_at_masks_and_tokens_only_when_it_may(runner: ModelRunner) -> None:
    penalties = {"repetition_penalty": 1.8, "frequency_penalty": 0.9, "prompt_len": [4, 3, 1]}
    wanted = one_by_one(runner, 2, repetition_penalty=1.8, frequency_penalty=0.9)
    runner.reset()
    table, masks = Sequences(VOCAB), Mask()
    first = runner.launch(table.extend(list(enumerate(PROMPTS)), **penalties))
    second = runner.launch(replace(relayed(table, late=True, **penalties), masks=masks))
    drawn = first.result().next_ids.tolist()
    assert drawn == wanted[0]
    time.sleep(0.05)  # long enough for the forward pass
    assert not masks.asked.is_set()
    for row, token in enumerate(drawn):
        table.id_table[row, len(PROMPTS[row])] = token
    second.sample()
    table.id_table[:] = 0
    got = second.result().next_ids.tolist()
    assert masks.asked.is_set()
    assert got == [wanted[1][0], 35, wanted[1][2]]


def test_an_impossible_draw_does_not_break_the_step_that_takes_it(runner: ModelRunner) -> None:
    table = Sequences(VOCAB)
    nothing = np.zeros(mask_words(VOCAB), np.int32)
    first = runner.launch(table.extend(list(enumerate(PROMPTS)), masks=[(1, nothing)]))
    second = runner.launch(relayed(table))
    assert first.result().next_ids[1] == -1
    assert (second.result().next_ids >= 0).all()


def test_what_goes_wrong_in_a_step_is_raised_with_its_results(runner: ModelRunner) -> None:
    wanted = one_by_one(runner, 1)
    table = Sequences(VOCAB)
    bad = table.extend([(4, [1, 2])])
    bad.ids[1] = VOCAB + 5
    first = runner.launch(bad)
    second = runner.launch(table.extend(list(enumerate(PROMPTS))))
    with pytest.raises(ValueError, match=f"token id {VOCAB + 5} is outside the vocabulary"):
        first.result()
    assert second.result().next_ids.tolist() == wanted[0]


def test_the_thread_ends_with_the_runner(tiny_dir: Callable[..., Path]) -> None:
    before = set(threading.enumerate())
    runner = ModelRunner(tiny_dir(), load_format="dummy", max_total_tokens=100)
    table = Sequences(VOCAB, max_rows=1, context=64)
    runner.launch(table.extend([(0, [1, 2, 3])])).result()
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(runner)
    del runner
    for _ in range(50):
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.02)
    assert gone() is None
    thread.join(5)
    assert not thread.is_alive()
