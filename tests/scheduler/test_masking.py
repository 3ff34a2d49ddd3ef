"""Masks of a step: worked out in a thread or on demand, the same either way, and an error stays with its branch."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stemma.backend.core import Int32, Plan, StepOutput
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.branch import Work
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.scheduler.masking import Masker, StepMasks, Wanted
from stemma.lang.errors import ConstraintError
from stemma.lang.params import SamplingParams
from tests.scheduler.world import EOS, VOCAB, FakeRunner, FakeText

LIMIT = 20.0  # seconds until a wait that should be short is a failure


def bits(*tokens: int) -> Int32:
    row = np.zeros(VOCAB // 32, np.uint32)
    for token in tokens:
        row[token >> 5] |= np.uint32(1 << (token & 31))
    row.flags.writeable = False
    return row.view(np.int32)


class OneRow:
    """A matcher that always allows the same tokens. `before` runs inside every `mask()`."""

    def __init__(self, row: Int32, before: Callable[[], None] = lambda: None) -> None:
        self.row, self.before = row, before
        self.threads: list[str] = []

    def mask(self) -> Int32:
        self.threads.append(threading.current_thread().name)
        self.before()
        return self.row

    def accept(self, token_id: int) -> bool:
        return bool(self.row.view(np.uint32)[token_id >> 5] >> (token_id & 31) & 1)

    def forced(self) -> list[int]:
        return []

    def draft(self) -> list[int]:
        raise AssertionError("not used here")

    def shortest_completion(self) -> list[int]:
        raise AssertionError("not used here")

    def can_finish(self, tokens: int) -> bool:
        raise AssertionError("not used here")

    def is_complete(self) -> bool:
        return False

    def is_finished(self) -> bool:
        return False

    def rollback(self, n: int) -> None:
        raise AssertionError("not used here")

    def clone(self) -> OneRow:
        return self

    def matcher(self) -> OneRow:  # its own grammar, too
        return self


def work(matcher: OneRow | None, stop_ids: frozenset[int] = frozenset()) -> Work:
    return Work(0, SamplingParams(), 0, 10, matcher=matcher, stop_ids=stop_ids)


def masker(overlap: bool) -> Masker:
    return Masker(VOCAB, frozenset({EOS}), overlap)


def started(made: Masker, *wanted: Wanted) -> StepMasks:
    masks = made.step(list(wanted))
    masks.start()
    return masks


@pytest.mark.parametrize("overlap", [False, True])
def test_rows_come_in_the_order_of_the_plan(overlap: bool) -> None:
    rows = [bits(i) for i in range(40)]
    masks = started(masker(overlap), *(Wanted(3 * i, work(OneRow(row)), False) for i, row in enumerate(rows)))
    assert len(masks) == 40
    for _ in range(2):
        found = list(masks)
        assert [i for i, _ in found] == list(range(0, 120, 3))
        assert all(got is row for (_, got), row in zip(found, rows, strict=True))


def test_with_overlap_nobody_has_to_ask() -> None:
    made, done = masker(True), threading.Event()
    matcher = OneRow(bits(5), done.set)
    masks = started(made, Wanted(0, work(matcher), False))
    assert done.wait(LIMIT)
    time.sleep(0.01)
    masks.finish()
    assert matcher.threads == ["stemma-masks"]
    assert (made.stats.mask_steps, made.stats.mask_rows, made.stats.mask_wait_steps) == (1, 1, 0)


def test_without_overlap_masks_are_made_when_they_are_asked_for_and_that_is_a_wait() -> None:
    made = masker(False)
    matcher = OneRow(bits(5), lambda: time.sleep(0.002))
    masks = started(made, Wanted(0, work(matcher), False))
    assert not matcher.threads
    masks.finish()
    assert matcher.threads == [threading.current_thread().name]
    assert made.stats.mask_wait_steps == 1 and made.stats.mask_wait_seconds >= 0.002


def test_who_waits_helps() -> None:
    """The thread is stuck in its first row until all others are there; only the asking thread can make them."""
    others = threading.Semaphore(0)

    def until_the_others_are_there() -> None:
        for _ in range(9):
            assert others.acquire(timeout=LIMIT)

    busy = threading.Event()
    slow = OneRow(bits(1), lambda: (busy.set(), until_the_others_are_there())[0])
    quick = [OneRow(bits(i), lambda: others.release()) for i in range(2, 11)]
    made = masker(True)
    masks = started(made, *(Wanted(i, work(matcher), False) for i, matcher in enumerate([slow, *quick])))
    assert busy.wait(LIMIT)
    masks.finish()
    assert slow.threads == ["stemma-masks"]
    assert {name for matcher in quick for name in matcher.threads} == {threading.current_thread().name}


@pytest.mark.parametrize("overlap", [False, True])
def test_min_new_tokens_holds_the_end_back(overlap: bool) -> None:
    made = masker(overlap)
    wanted = [
        Wanted(0, work(None, frozenset({9})), True),
        Wanted(1, work(OneRow(bits(EOS, 7, 40))), True),
        Wanted(2, work(OneRow(bits(EOS))), True),
        Wanted(3, work(OneRow(bits(EOS, 7))), False),
        Wanted(4, work(OneRow(bits(5))), True, known=bits(EOS, 8)),
    ]
    rows = [row.view(np.uint32).copy() for _, row in started(made, *wanted)]
    everything = np.full(VOCAB // 32, 0xFFFF_FFFF, np.uint32)
    everything[0] ^= (1 << EOS) | (1 << 9)
    np.testing.assert_array_equal(rows[0], everything)
    np.testing.assert_array_equal(rows[1], bits(7, 40).view(np.uint32))
    np.testing.assert_array_equal(rows[2], bits(EOS).view(np.uint32))  # a grammar that allows only the end wins
    np.testing.assert_array_equal(rows[3], bits(EOS, 7).view(np.uint32))
    np.testing.assert_array_equal(rows[4], bits(8).view(np.uint32))


def one_gen(program: str, constraint: bool) -> dict[str, Any]:
    node: dict[str, Any] = {"kind": "gen", "params": {"max_new_tokens": 6, "temperature": 0.0}}
    if constraint:
        node["constraint"] = {"kind": "regex", "value": program}
    nodes = [{"kind": "text", "text": "hello " + program}, node]
    return {"program": program, "branches": [{"id": "r", "nodes": nodes}], "end": True}


def play(overlap: bool, matchers: dict[str, OneRow], *plain: str) -> dict[str, dict[str, Any]]:
    """The last event of each program."""
    runner = FakeRunner(2000)
    compile = lambda constraint, done: done(matchers[constraint.value])  # noqa: E731
    scheduler = Scheduler(runner, FakeText(), compile, context=256, mask_overlap=overlap)
    last: dict[str, dict[str, Any]] = {}
    for name in (*matchers, *plain):
        delta = parse_delta(one_gen(name, name in matchers))
        scheduler.submit(delta, lambda event, name=name: last.__setitem__(name, event))()
    while scheduler.step():
        pass
    scheduler.check()
    assert scheduler.load()["mask_steps"] > 0
    return last


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("error", [ConstraintError("it grew too large"), RuntimeError("a bug")])
def test_a_mask_that_fails_takes_its_own_branch_down_only(overlap: bool, error: Exception) -> None:
    calls = iter(range(100))

    def third_time() -> None:
        if next(calls) == 2:
            raise error

    matchers = {"bad": OneRow(bits(97, 98, 99), third_time), "good": OneRow(bits(97, 98, 99))}
    last = play(overlap, matchers, "plain")
    assert last["bad"]["event"] == "error" and str(error) in str(last["bad"])
    assert last["good"]["event"] == last["plain"]["event"] == "done"
    assert set(last["good"]["ids"]) <= {97, 98, 99} and len(last["good"]["ids"]) == 6


class Careless(FakeRunner):
    """Does not look at the masks."""

    def run(self, plan: Plan) -> StepOutput:
        return super().run(replace(plan, masks=()))


def test_the_step_waits_for_masks_that_the_runner_did_not_want() -> None:
    busy: list[bool] = []

    def slowly() -> None:
        busy.append(True)
        time.sleep(0.005)
        busy.pop()

    class Watchful(OneRow):
        def accept(self, token_id: int) -> bool:
            assert not busy, "the matcher is advanced while its mask is made"
            return True

    every = bits(*range(3, VOCAB))
    compile = lambda constraint, done: done(Watchful(every, slowly))  # noqa: E731
    scheduler = Scheduler(Careless(2000, eos_every=10**9), FakeText(), compile, context=256)
    events: list[dict[str, Any]] = []
    scheduler.submit(parse_delta(one_gen("p", True)), events.append)()
    while scheduler.step():
        pass
    assert events[-1]["event"] == "done"


def test_the_thread_ends_with_its_scheduler() -> None:
    alive = lambda: sum(t.name == "stemma-masks" for t in threading.enumerate())  # noqa: E731
    gc.collect()
    made = masker(True)
    started(made, Wanted(0, work(OneRow(bits(5))), False)).finish()
    before = alive()
    assert before >= 1
    del made
    gc.collect()
    until = time.monotonic() + LIMIT
    while alive() >= before and time.monotonic() < until:
        time.sleep(0.005)
    assert alive() < before
