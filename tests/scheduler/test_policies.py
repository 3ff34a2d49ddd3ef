"""The waiting queue: what each policy puts first, what it costs, and that nobody waits for ever."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from stemma.backend.cache.base import NoCache
from stemma.backend.cache.radix import RadixCache
from stemma.backend.cache.slots import SlotAllocator
from stemma.backend.messages import parse_delta
from stemma.backend.scheduler import policy as rules
from stemma.backend.scheduler.branch import Branch, Program, Work
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.scheduler.policy import AGE_SHARE, POLICIES, PRIORITY_SHARE, WaitingQueue
from tests.scheduler.world import FakeRunner, FakeText, no_compiler


class Shop:
    """A queue before a real prefix cache, without a scheduler."""

    def __init__(self, policy: str, **options: Any) -> None:
        self.slots = SlotAllocator(100_000)
        self.cache = RadixCache(self.slots)
        self.queue = WaitingQueue(policy, self.cache, lambda branch, length: length - 1, **options)
        self.served: list[Branch] = []
        self.count = 0

    def program(self, **facts: Any) -> Program:
        self.count += 1
        program = Program(f"p{self.count}", self.count, None)
        for name, value in facts.items():
            setattr(program, name, value)
        return program

    def branch(self, ids: Iterable[int], program: Program | None = None, new: int = 10) -> Branch:
        self.count += 1
        branch = Branch(program or self.program(), f"b{self.count}", None, 0, self.count)
        branch.set_ids(np.array(list(ids), np.int32))
        branch.work = Work(node=0, params=None, prompt_len=branch.length, limit=branch.length + new)
        return branch

    def add(self, ids: Iterable[int], program: Program | None = None, new: int = 10) -> Branch:
        branch = self.branch(ids, program, new)
        self.queue.add(branch)
        return branch

    def cached(self, branch: Branch) -> int:
        return self.cache.match(branch.ids(), branch.length - 1).length

    def publish(self, ids: np.ndarray) -> None:
        match = self.cache.match(ids, len(ids))
        handle = self.cache.lock(match)
        slots = np.concatenate([match.slots, self.slots.allocate(len(ids) - match.length)])
        self.cache.unlock(self.cache.insert(ids, slots)[1])
        self.cache.unlock(handle)

    def serve(self, n: int = 10**6) -> list[Branch]:
        """Admit n branches, each of which shows its prompt to the cache."""
        served = []
        while n and (branch := self.queue.head()) is not None:
            self.queue.admitted(branch)
            self.publish(branch.ids())
            served.append(branch)
            n -= 1
        return served


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="'lmp'"):
        Shop("lmp")


def test_first_come_first_served():
    shop = Shop("fcfs")
    branches = [shop.add([k, 1, 2]) for k in (5, 3, 9, 3)]
    assert shop.serve() == branches and len(shop.queue) == 0


def test_longest_output_first():
    shop = Shop("lof")
    a, b, c = (shop.add([1, 2], new=n) for n in (5, 50, 50))
    assert shop.serve() == [b, c, a]


def test_random_is_drawn_from_the_seed():
    orders = []
    for seed in (1, 1, 2):
        shop = Shop("random", seed=seed)
        branches = [shop.add([k, 1]) for k in range(20)]
        orders.append([branches.index(b) for b in shop.serve()])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(20)) != orders[0]


def test_depth_first_takes_the_heavier_child_first():
    shop = Shop("dfs-weight")
    for path in ([1, 2, 3], [1, 2, 4], [1, 5, 6], [7, 8, 9]):
        shop.publish(np.array(path, np.int32))
    inner = shop.add([1, 2, 99])  # ends in the node (1, 2)
    light = shop.add([7, 8, 9, 1])
    second = shop.add([1, 5, 6, 1])
    first = [shop.add([1, 2, 3, k]) for k in (1, 2)]
    then = shop.add([1, 2, 4, 1])
    nowhere = shop.add([50, 51])
    queue, order = shop.queue, []
    while (branch := queue.head()) is not None:
        queue.admitted(branch)
        order.append(branch)
    assert order == [*first, then, inner, second, light, nowhere]


@pytest.mark.parametrize("seed", range(20))
def test_longest_prefix_first_is_exact(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Against brute force: no waiting branch has more in the cache than the one that is handed out, but for a token
    (a prompt that others continue can take all but its last one)."""
    monkeypatch.setattr(rules, "AGE_SHARE", 10**9)
    monkeypatch.setattr(rules, "LOOK", 10**9)  # after an eviction, many are out of date at once
    rng = random.Random(seed)
    shop = Shop("lpm")
    waiting: list[Branch] = []
    for _ in range(200):
        if rng.random() < 0.6 or not waiting:
            ids = [rng.randint(1, 3) for _ in range(rng.randint(2, 12))]
            waiting.append(shop.add(ids))
            continue
        if rng.random() < 0.1:
            gone = waiting.pop(rng.randrange(len(waiting)))
            shop.queue.remove(gone)
            if not waiting:
                continue
        if rng.random() < 0.1:
            shop.cache.evict(rng.randint(1, 20))
        head = shop.queue.head()
        assert head is not None and shop.cached(head) >= max(map(shop.cached, waiting)) - 1
        assert shop.serve(1) == [head]
        waiting.remove(head)
    assert len(shop.queue) == len(waiting)


def test_longest_prefix_first_keeps_families_together():
    shop = Shop("lpm")
    families = [[k] * 100 for k in (1, 2, 3)]
    for k in range(30):
        shop.add([*families[k % 3], 1000 + k])
    order = [int(b.ids()[0]) for b in shop.serve()]
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes <= 2 + 2 * (30 // AGE_SHARE)


def test_the_program_with_less_left_goes_first():
    shop = Shop("program")
    large, small = shop.program(left=4000, ended=True), shop.program(left=100, ended=True)
    a, b = shop.add([1, 2], large), shop.add([3, 4], small)
    assert shop.serve() == [b, a]


def test_work_left_puts_a_program_back_by_so_many_arrivals_and_no_more():
    shop = Shop("program")
    large = shop.add([1, 2], shop.program(left=4000, ended=True))
    soon = shop.add([3, 4], shop.program(left=100, ended=True))
    shop.count += 2500
    late = shop.add([5, 6], shop.program(left=100, ended=True))
    assert shop.serve() == [soon, large, late]


def test_a_prompt_that_is_not_cached_is_work():
    shop = Shop("program")
    cold = shop.add(range(1000, 1800), shop.program(left=100))
    shop.publish(np.arange(100, 900, dtype=np.int32))
    warm = shop.add(range(100, 900), shop.program(left=100))
    assert shop.serve() == [warm, cold]


def test_the_program_with_less_service_goes_first():
    shop = Shop("program")
    huge, small = shop.program(attained=1_000_000), shop.program(attained=100)
    a, b = shop.add([1, 2], huge), shop.add([3, 4], small)
    assert shop.serve() == [b, a]


def test_service_that_came_while_it_waited_counts():
    shop = Shop("program")
    first, second = shop.program(), shop.program()
    a, b = shop.add([1, 2], first), shop.add([3, 4], second)
    first.attained = 100_000
    assert shop.serve() == [b, a]


def test_among_equals_the_started_program_goes_first_then_the_older():
    shop = Shop("program")
    older, started = shop.program(), shop.program()
    shop.publish(np.arange(100, 180, dtype=np.int32))
    a = [shop.add([1, 2, k], older) for k in (8, 9)]
    other = shop.add([3, 4])
    b = shop.add(range(100, 190), started)
    assert shop.serve() == [b, *a, other]


def test_the_last_generation_of_an_ended_program_is_not_overtaken_by_fresh_ones():
    shop = Shop("program")
    nearly = shop.program(attained=1_000_000, ended=True, unsettled=1)
    last = shop.branch([1, 2], nearly)
    last.nodes = [object()]  # type: ignore[list-item]
    shop.queue.add(last)
    fresh = [shop.add([3, k]) for k in range(5)]
    assert shop.serve() == [last, *fresh]


def test_siblings_are_adjacent():
    shop = Shop("program")
    programs = [shop.program() for _ in range(4)]
    for k in range(12):
        shop.add([*[100 + k % 4] * 64, k], programs[k % 4])
    order = [b.program for b in shop.serve()]
    assert order == [p for p in programs for _ in range(3)]


def test_without_a_cache_prefixes_do_not_count():
    for name in ("lpm", "dfs-weight", "program"):
        queue = WaitingQueue(name, NoCache(), lambda branch, length: length - 1, radix=False)
        shop = Shop("fcfs")
        branches = [shop.branch([1, k]) for k in range(4)]
        for branch in branches:
            queue.add(branch)
        order = []
        while (branch := queue.head()) is not None:
            queue.admitted(branch)
            order.append(branch)
        assert order == branches


@pytest.mark.parametrize("name", POLICIES)
def test_a_higher_priority_goes_first(name: str):
    shop = Shop(name)
    plain = [shop.add([1, k]) for k in range(3)]
    urgent = [shop.add([2, k], shop.program(priority=5)) for k in range(3)]
    later = shop.add([1], shop.program(priority=-1))
    order = shop.serve()
    assert set(order[:3]) == set(urgent) and set(order[3:6]) == set(plain) and order[6] is later


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("low", [False, True])
def test_nobody_starves(name: str, low: bool):
    """An endless stream of newer branches, each better in every way: more of it cached, less service, longer output,
    (with `low`) a higher priority. Every branch is admitted within the bound that the policy's docstring gives."""
    rng = random.Random(7)
    shop = Shop(name)
    good = list(range(1000, 1100))
    shop.publish(np.array(good, np.int32))
    poor = shop.program(attained=10**8)
    waiting = {shop.add([k], poor, new=1): k for k in range(1, 9)}
    share = PRIORITY_SHARE if low else AGE_SHARE
    for admissions in range(1, share * 9):
        for _ in range(2):
            shop.add([*good, rng.randint(1, 99), rng.randint(1, 99)], shop.program(priority=int(low)), new=500)
        (branch,) = shop.serve(1)
        if branch in waiting:
            assert admissions <= share * waiting.pop(branch)
    assert not waiting


@pytest.mark.parametrize("name", POLICIES)
def test_a_retracted_branch_keeps_its_age(name: str):
    shop = Shop(name)
    first, second = shop.add([1, 2]), shop.add([1, 3])
    shop.queue.admitted(first)
    shop.add([1, 4])
    shop.queue.add(first)
    assert first.work is not None and first.work.queued == 1
    assert first in shop.queue and second in shop.queue and len(list(shop.queue)) == 3


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_set_aside_comes_back(name: str):
    rng = random.Random(3)
    shop = Shop(name)
    left = {shop.add([rng.randint(1, 4) for _ in range(6)]) for _ in range(40)}
    while left:
        aside = set()
        for _ in range(rng.randint(0, 3)):
            branch = shop.queue.head()
            if branch is None:
                break
            assert branch in left and branch not in aside
            aside.add(branch)
            shop.queue.set_aside(branch)
        for branch in shop.serve(rng.randint(0, 2)):
            assert branch not in aside
            left.remove(branch)
        shop.queue.restore()
        assert len(shop.queue) == len(left)
    assert shop.queue.head() is None


@pytest.mark.parametrize("name", POLICIES)
def test_a_long_queue_costs_few_lookups(name: str, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(5)
    shop = Shop(name)
    for _ in range(3000):
        shop.add([rng.randint(1, 30), *[rng.randint(1, 3) for _ in range(20)]])
    looked = 0
    match = shop.cache.match

    def counted(*args: Any) -> Any:
        nonlocal looked
        looked += 1
        return match(*args)

    shop.queue.head()  # dfs-weight looks at its snapshot once
    monkeypatch.setattr(shop.cache, "match", counted)
    for _ in range(50):
        branch = shop.queue.head()
        assert branch is not None
        shop.queue.admitted(branch)
        shop.publish(branch.ids())
    assert looked <= 50 * (rules.LOOK + 1)
    looked = 0
    for _ in range(100):
        shop.queue.head()
    assert looked <= 100


# -- in the scheduler -------------------------------------------------------------------------------------------------


def text(t: str) -> dict[str, Any]:
    return {"kind": "text", "text": t}


def gen(**params: Any) -> dict[str, Any]:
    return {"kind": "gen", "params": {"temperature": 0.0, **params}}


def run(scheduler: Scheduler, *deltas: dict[str, Any], steps: int = 100_000) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for delta in deltas:
        scheduler.submit(parse_delta(delta), events.append)()
    for _ in range(steps):
        if not scheduler.step():
            break
    else:
        raise AssertionError("never idle")
    scheduler.check()
    return events


def make(num_slots: int = 8000, **options: Any) -> Scheduler:
    return Scheduler(FakeRunner(num_slots, 10**9), FakeText(), no_compiler, context=2048, **options)


def computed(scheduler: Scheduler) -> int:
    assert isinstance(scheduler.runner, FakeRunner)
    return sum(scheduler.runner.steps)


def trie_size(prompts: Iterable[list[int]]) -> int:
    return len({tuple(p[: k + 1]) for p in prompts for k in range(len(p))})


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("chunk", [512, 4096])
def test_a_cold_fork_computes_the_union_of_its_prompts(name: str, chunk: int):
    prefix = "x" * 1000
    tails = [f"{i:02} " + "abc"[: i % 3] for i in range(64)]
    nodes = [text(prefix)]
    children = [
        {"id": f"c{i}", "parent": "r", "at": 1, "nodes": [text(tail), gen(max_new_tokens=1)]}
        for i, tail in enumerate(tails)
    ]
    scheduler = make(policy=name, chunk=chunk)
    run(scheduler, {"program": "p", "branches": [{"id": "r", "nodes": nodes}, *children], "end": True})
    prompts = [[1, *map(ord, prefix + tail)] for tail in tails]
    whole = trie_size(prompts)
    # the last token of a prompt is always run: "00 a" is the beginning of no other, so each has its own
    assert computed(scheduler) == whole


@pytest.mark.parametrize("name", POLICIES)
def test_equal_cold_prompts_are_computed_once(name: str):
    deltas = [
        {"program": f"p{i}", "branches": [{"id": "r", "nodes": [text("same " * 100), gen(max_new_tokens=1)]}]}
        for i in range(64)
    ]
    scheduler = make(policy=name, chunk=4096)
    run(scheduler, *deltas)
    assert computed(scheduler) == 501 + 63  # each needs the logits of its last token


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_gives_the_same_tokens(name: str):
    rng = random.Random(11)
    deltas = []
    for i in range(20):
        opening = rng.choice(["one beginning ", "another beginning "]) * rng.randint(1, 5)
        nodes = [text(opening), gen(max_new_tokens=rng.randint(1, 30)), text("!"), gen(max_new_tokens=5)]
        deltas.append({"program": f"p{i}", "branches": [{"id": "r", "nodes": nodes}], "end": True})

    def answers(**options: Any) -> dict[str, Any]:
        found = {}
        scheduler = make(**options)
        for delta in deltas:
            name = delta["program"]
            scheduler.submit(
                parse_delta(delta),
                lambda e, name=name: found.__setitem__((name, e["node"]), e.get("ids")),
            )()
        while scheduler.step():
            pass
        scheduler.check()
        assert not scheduler.memory.waiting
        return found

    truth = answers(policy="fcfs", radix=False)
    assert len(truth) == 40
    assert answers(policy=name) == truth
    assert answers(policy=name, max_rows=2, chunk=9) == truth
    assert answers(policy=name, num_slots=2200, max_rows=3) == truth
