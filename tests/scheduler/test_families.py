"""Depth-first order, groups and segments, against brute force over the slots themselves."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest

from stemma.backend.cache.radix import RadixCache
from stemma.backend.cache.slots import SlotAllocator
from stemma.backend.core import Plan, StepOutput
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler.families import arrange
from stemma.backend.scheduler.loop import Scheduler
from tests.scheduler.world import FakeRunner, FakeText, no_compiler


class Forest:
    """Rows with pinned prefixes in a real cache."""

    def __init__(self, total: int = 200_000) -> None:
        self.slots = SlotAllocator(total)
        self.cache = RadixCache(self.slots)
        self.handles: list[Any] = []
        self.tables: list[np.ndarray] = []

    def add(self, ids: list[int]) -> None:
        array = np.array(ids, np.int32)
        match = self.cache.match(array, len(array))
        held = self.cache.lock(match)
        table = np.concatenate([match.slots, self.slots.allocate(len(ids) - match.length)])
        self.handles.append(self.cache.insert(array, table)[1])
        self.cache.unlock(held)
        self.tables.append(table)


def shared(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n


def random_forest(rng: random.Random, rows: int) -> Forest:
    forest = Forest()
    for _ in range(rows):
        ids: list[int] = []
        for depth in range(rng.randint(1, 4)):
            ids += [10 * depth + rng.randint(1, 2)] * rng.choice([1, 3, 6])
        forest.add([*ids, *(rng.randint(100, 999) for _ in range(rng.randint(0, 3)))])
    return forest


@pytest.mark.parametrize("seed", range(60))
def test_segments_are_all_that_is_shared(seed: int):
    rng = random.Random(seed)
    least = rng.choice([1, 1, 3, 5])
    forest = random_forest(rng, rng.randint(1, 12))
    tables = forest.tables
    starts = [len(t) + rng.randint(0, 2) for t in tables]
    order, _, segments = arrange(forest.handles, starts, least)
    assert sorted(order) == list(range(len(tables)))
    placed = [tables[i] for i in order]
    for s in segments:
        assert s.count > 1 and s.end - s.begin >= least
        prefix = placed[s.first][: s.end]
        assert len(prefix) == s.end
        assert all(np.array_equal(t[: s.end], prefix) for t in placed[s.first : s.first + s.count])
        above = [
            t for t in segments if t.level < s.level and t.first <= s.first and s.first + s.count <= t.first + t.count
        ]
        assert len(above) == s.level and s.begin == max((t.end for t in above), default=0)
    for i in range(len(placed) - 1):  # neighbours share no more than the segments say
        covered = max((s.end for s in segments if s.first <= i and i + 1 < s.first + s.count), default=0)
        assert shared(placed[i], placed[i + 1]) - covered < least
    assert segments == sorted(segments, key=lambda s: (s.first, s.level))


@pytest.mark.parametrize("seed", range(60))
def test_groups_save_nearly_the_most_reads(seed: int):
    rng = random.Random(1000 + seed)
    forest = random_forest(rng, rng.randint(1, 10))
    order, groups, _ = arrange(forest.handles, [len(t) for t in forest.tables], 1)
    placed = [forest.tables[i] for i in order]
    n = len(placed)
    best = [0] * (n + 1)  # of the first k rows, over all ways to cut them into groups
    for k in range(1, n + 1):
        best[k] = best[k - 1]
        for j in range(k - 1):
            prefix = min(shared(placed[j], placed[m]) for m in range(j + 1, k))
            best[k] = max(best[k], best[j] + (k - j - 1) * prefix)
    last = 0
    for g in groups:
        assert g.first >= last and g.count > 1
        last = g.first + g.count
        assert all(np.array_equal(placed[m][: g.shared], placed[g.first][: g.shared]) for m in range(g.first, last))
    assert 0.8 * best[n] <= sum((g.count - 1) * g.shared for g in groups) <= best[n]


def test_a_row_that_writes_its_prefix_is_in_no_segment_with_its_readers():
    forest = Forest()
    prefix = [7] * 100
    for k in range(4):
        forest.add([*prefix, k])
    order, groups, segments = arrange(forest.handles, [0, 100, 100, 100])
    assert order[0] == 0
    assert [(g.first, g.count, g.shared) for g in groups] == [(1, 3, 100)]
    assert [(s.first, s.count, s.begin, s.end) for s in segments] == [(1, 3, 0, 100)]


def test_rows_without_a_pin_come_last():
    forest = Forest()
    forest.add([1] * 40)
    forest.add([1] * 41)
    order, groups, _ = arrange([None, forest.handles[0], None, forest.handles[1]], [5, 40, 5, 41])
    assert order == [1, 3, 0, 2] and [(g.first, g.count) for g in groups] == [(0, 2)]


class Watched(FakeRunner):
    """Looks at the families of every plan."""

    def __init__(self, num_slots: int, eos_every: int = 10**9) -> None:
        super().__init__(num_slots, eos_every)
        self.mixed = self.nested = self.grouped = 0

    def run(self, plan: Plan) -> StepOutput:
        table = [plan.slot_table[row] for row in plan.rows.tolist()]
        for s in plan.segments:
            rows = range(s.first, s.first + s.count)
            assert all(np.array_equal(table[i][: s.end], table[s.first][: s.end]) for i in rows)
            assert all(plan.start[i] >= s.end for i in rows)
            self.nested += s.level > 0
            self.mixed += len({int(plan.n[i]) for i in rows}) > 1
        last = 0
        for g in plan.groups:
            rows = range(g.first, g.first + g.count)
            assert g.first >= last
            last = g.first + g.count
            assert all(np.array_equal(table[i][: g.shared], table[g.first][: g.shared]) for i in rows)
            assert all(plan.start[i] >= g.shared for i in rows)
            self.grouped += 1
        return super().run(plan)


@pytest.mark.parametrize("policy", ["program", "fcfs"])
def test_plans_tell_the_truth_about_their_families(policy: str):
    rng = random.Random(4)
    runner = Watched(6000)
    scheduler = Scheduler(runner, FakeText(), no_compiler, context=1024, policy=policy, chunk=300)
    events: list[Any] = []
    system = "s" * 60
    for i in range(30):
        family = system + "abc"[i % 3] * 80
        nodes: list[Any] = [{"kind": "text", "text": family + str(i) * rng.randint(1, 40)}]
        nodes += [{"kind": "gen", "params": {"temperature": 0.0, "max_new_tokens": rng.randint(3, 30)}}]
        nodes += [{"kind": "text", "text": "and then"}, nodes[1]]
        delta = {"program": f"p{i}", "branches": [{"id": "r", "nodes": nodes}], "end": True}
        scheduler.submit(parse_delta(delta), events.append)()
        for _ in range(rng.choice([0, 1, 2])):
            scheduler.step()
    while scheduler.step():
        pass
    scheduler.check()
    assert len(events) == 60
    assert runner.nested > 20 and runner.mixed > 10 and runner.grouped > 50


@pytest.mark.parametrize("families", [1, 16, 256])
def test_the_order_of_many_rows_is_cheap(families: int):
    rng = random.Random(1)
    forest = Forest()
    openings = [[rng.randint(1, 9999) for _ in range(200)] for _ in range(families)]
    for i in range(256):
        forest.add([5] * 40 + openings[i % families] + [10_000 + i] * 10)
    starts = [len(t) for t in forest.tables]
    took = []
    for _ in range(20):
        begin = time.thread_time()
        arrange(forest.handles, starts)
        took.append(time.thread_time() - begin)
    assert min(took) < 1e-3  # 50 to 100 µs; the bound is loose for busy machines
