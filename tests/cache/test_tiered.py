"""The host tier: what is on which side, in which order it goes, and that its bytes are those that were stored."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from stemma.backend.cache.base import Match
from stemma.backend.cache.host import LoadRule
from stemma.backend.cache.radix import POLICIES, Node
from stemma.backend.cache.slots import SlotAllocator
from stemma.backend.cache.tiered import TieredCache
from tests.cache.test_pages import pages

Ids = tuple[int, ...]
ALWAYS = LoadRule(at_least=1, always=True)


class Copies:
    """Both pools hold, for each slot, the whole prefix that its token ends: a wrong byte is a wrong prefix."""

    def __init__(self, slots: int, host_slots: int) -> None:
        self.host_slots = host_slots
        self.pool: list[Any] = [None] * slots
        self.host: list[Any] = [None] * host_slots
        self.out = self.back = 0
        self.price = 0.0

    def copy_out(self, slots: np.ndarray, host: np.ndarray) -> None:
        assert len(slots) == len(host) == len(set(host.tolist())) and host.min() > 0
        for slot, to in zip(slots.tolist(), host.tolist(), strict=True):
            self.host[to] = self.pool[slot]
        self.out += len(slots)

    def copy_in(self, host: np.ndarray, slots: np.ndarray) -> None:
        assert len(slots) == len(host) == len(set(slots.tolist())) and slots.min() > 0
        for at, slot in zip(host.tolist(), slots.tolist(), strict=True):
            self.pool[slot] = self.host[at]
        self.back += len(slots)

    def copy_seconds(self, tokens: int) -> float:
        return tokens * self.price


class World:
    def __init__(self, tokens: int, host: int, page: int = 1, policy: str = "lru", rule: LoadRule = ALWAYS) -> None:
        self.slots = SlotAllocator(tokens + page, page)
        self.copies = Copies(tokens + page, host + page)
        self.cache = TieredCache(self.slots, self.copies, policy, rule)
        self.page = page
        for allocator, pool in ((self.slots, self.copies.pool), (self.cache.host, self.copies.host)):
            self._scribble(allocator, pool)

    def _scribble(self, allocator: SlotAllocator, pool: list[Any]) -> None:
        free = allocator.free

        def free_and_scribble(slots: np.ndarray) -> None:
            free(slots)
            for slot in slots.tolist():
                pool[slot] = "noise"

        allocator.free = free_and_scribble  # type: ignore[method-assign]

    def insert(self, ids: np.ndarray, namespace: tuple = ()) -> bool:
        """Compute ids and hand them to the cache. False if there is no room."""
        if not self.slots.can_allocate(len(ids)):
            self.cache.evict(len(ids) - self.slots.free_count)
        if not self.slots.can_allocate(len(ids)):
            return False
        slots = self.slots.allocate(len(ids))
        for k, slot in enumerate(slots.tolist()):
            self.copies.pool[slot] = (namespace, tuple(ids[: k + 1].tolist()))
        already, handle = self.cache.insert(ids, slots, namespace)
        if already:
            self.slots.free(slots[:already])
        self.cache.unlock(handle)
        return True

    def load(self, ids: np.ndarray, namespace: tuple = ()) -> tuple[Match, Any]:
        match = self.cache.match(ids, len(ids), namespace)
        handle = self.cache.lock(match)
        return self.cache.load(match, handle, self.ensure)

    def ensure(self, k: int) -> bool:
        if k > self.slots.free_count:
            self.cache.evict(k - self.slots.free_count)
        return self.slots.can_allocate(k)

    def verify(self, match: Match, ids: np.ndarray, namespace: tuple = ()) -> None:
        for k, slot in enumerate(match.slots.tolist()):
            assert self.copies.pool[slot] == (namespace, tuple(ids[: k + 1].tolist())), "a wrong byte"

    def check(self) -> None:
        self.cache.check()
        self.slots.check()
        assert self.slots.free_count + self.cache.size == self.slots.total


def test_what_is_evicted_comes_back_from_the_host():
    for page in (1, 16):
        world = World(4 * page, 8 * page, page)
        one, two = pages(page, 1, 2, 3, 4), pages(page, 1, 2, 7, 8)
        world.insert(one)
        world.insert(two)
        assert world.cache.match(one, len(one)).length == 2 * page
        match = world.cache.match(one, len(one))
        assert (match.length, match.host) == (2 * page, 2 * page)
        match, handle = world.load(one)
        assert match.length == 4 * page and match.host == 0
        world.verify(match, one)
        world.check()
        assert world.cache.stats.host_hit_tokens == 2 * page and world.cache.stats.host_loads == 1
        world.cache.unlock(handle)
        assert world.cache.match(two, len(two)).host == 2 * page


def test_evicting_again_what_was_loaded_back_copies_nothing():
    world = World(4, 8)
    for _ in range(3):
        for x in (1, 2):
            match, handle = world.load(pages(1, x, 5, 6))
            world.cache.unlock(handle)
            if not match.length:
                world.insert(pages(1, x, 5, 6))
    assert world.copies.out == 6 and world.copies.back == 4 * 3
    world.check()


def test_a_chain_is_loaded_whole_or_not_at_all():
    world = World(6, 20)
    world.insert(pages(1, 1, 2, 3, 4, 5))
    world.insert(pages(1, 1, 2, 9))
    world.cache.evict(99)
    assert world.cache.size == 0
    pinned = world.slots.allocate(2)
    match, handle = world.load(pages(1, 1, 2, 3, 4, 5))
    assert match.length == 0 and match.host == 5 and world.copies.back == 0
    world.cache.unlock(handle)
    world.cache.check()
    world.slots.free(pinned)
    match, handle = world.load(pages(1, 1, 2, 3, 4, 5))
    assert match.length == 5
    world.verify(match, pages(1, 1, 2, 3, 4, 5))
    world.cache.unlock(handle)
    world.check()


def test_a_part_of_a_node_is_loaded_alone():
    world = World(4, 20)
    world.insert(pages(1, 1, 2, 3, 4))
    world.cache.evict(99)
    match, handle = world.load(pages(1, 1, 2, 9))
    assert match.length == 2 and world.copies.back == 2
    assert world.cache.match(pages(1, 1, 2, 3, 4), 4).host == 2
    world.cache.unlock(handle)
    world.check()


def test_making_room_for_a_load_never_takes_what_is_loaded():
    world = World(6, 6)  # the host is as small as the pool
    world.insert(pages(1, 1, 2, 3, 4))
    world.cache.evict(99)
    world.insert(pages(1, 5, 6, 7, 8))
    match, handle = world.load(pages(1, 1, 2, 3, 4))  # evicts the other one, for which the host has no room
    assert match.length == 4
    world.verify(match, pages(1, 1, 2, 3, 4))
    world.cache.unlock(handle)
    world.check()


def test_computing_what_is_on_the_host_gives_its_nodes_slots_again():
    world = World(10, 20)
    world.insert(pages(1, 1, 2, 3, 4))
    world.cache.evict(99)
    world.insert(pages(1, 1, 2, 9))
    assert world.copies.back == 0
    match = world.cache.match(pages(1, 1, 2, 3, 4), 4)
    assert (match.length, match.host) == (2, 2)
    world.verify(match, pages(1, 1, 2, 3, 4))
    world.check()


def test_an_insert_that_is_not_as_expected_changes_neither_tier():
    world = World(10, 20)
    world.insert(pages(1, 1, 2))
    world.cache.evict(99)
    mine = world.slots.allocate(3)
    assert world.cache.insert(pages(1, 1, 2, 3), mine, expect=2) == (-1, None)
    assert world.cache.match(pages(1, 1, 2), 2).host == 2
    already, handle = world.cache.insert(pages(1, 1, 2, 3), mine, expect=0)
    assert already == 0
    world.cache.unlock(handle)
    world.check()


def test_namespaces_are_kept_on_the_host_too():
    world = World(4, 20)
    world.insert(pages(1, 1, 2, 3), ("salt", "a"))
    world.cache.evict(99)
    assert world.cache.match(pages(1, 1, 2, 3), 3).host == 0
    assert world.cache.match(pages(1, 1, 2, 3), 3, ("salt", "b")).host == 0
    match, handle = world.load(pages(1, 1, 2, 3), ("salt", "a"))
    world.verify(match, pages(1, 1, 2, 3), ("salt", "a"))
    assert match.length == 3
    world.cache.unlock(handle)


def test_reset_forgets_both_tiers():
    world = World(6, 20)
    for x in range(1, 5):
        world.insert(pages(1, x, 5, 6))
    world.cache.reset()
    assert world.cache.figures()["host_cached_tokens"] == 0 == world.cache.figures()["cache_nodes"]
    assert world.slots.free_count == world.slots.total
    assert world.cache.match(pages(1, 1, 5, 6), 3).host == 0
    world.check()


def test_a_host_that_is_full_loses_leaves_first_and_the_oldest_of_them():
    world = World(8, 6)
    world.insert(pages(1, 1, 2, 3))
    world.insert(pages(1, 1, 4))
    world.insert(pages(1, 5, 6))
    world.cache.evict(99)
    assert world.cache.figures()["host_cached_tokens"] == 6
    world.insert(pages(1, 7))
    world.cache.evict(99)
    assert [world.cache.match(pages(1, *x), 3).host for x in ((1, 2, 3), (1, 4), (5, 6), (7,))] == [1, 2, 2, 1]
    assert world.cache.stats.host_evicted_tokens == 2
    world.check()


def test_a_duplicate_on_the_host_goes_before_what_is_only_there():
    world = World(8, 4)
    world.insert(pages(1, 1, 2))
    world.insert(pages(1, 3, 4))
    world.cache.evict(99)
    _, handle = world.load(pages(1, 3, 4))  # the newest, but its host copy is a duplicate now
    world.insert(pages(1, 5))
    assert world.cache.evict(1) == 1
    assert world.cache.match(pages(1, 1, 2), 2).host == 2 and world.cache.match(pages(1, 5), 1).host == 1
    assert world.cache.stats.host_evicted_tokens == 0
    world.cache.unlock(handle)
    world.check()


def test_a_prefix_that_finds_no_room_is_lost_with_what_is_below_it():
    world = World(20, 4)
    world.insert(pages(1, *range(1, 7)))  # longer than the host
    world.insert(pages(1, *range(1, 7), 8))
    world.cache.evict(1)
    assert world.cache.match(pages(1, *range(1, 7), 8), 7).host == 1
    world.cache.evict(99)
    assert world.cache.nodes() == [] and world.cache.host.free_count == 4
    world.check()


def test_loading_must_pay():
    rule = LoadRule(at_least=3)
    world = World(8, 20, rule=rule)
    world.insert(pages(1, 1, 2, 3, 4))
    world.cache.evict(99)

    def loads(n: int) -> bool:
        match, handle = world.load(pages(1, *range(1, n + 1)))
        world.cache.unlock(handle)
        world.cache.evict(99)
        return match.length == n

    assert loads(3) and not loads(2)  # nothing is known of computing yet; two are too few
    rule.observe(100, 0.1)  # a millisecond a token
    world.copies.price = 0.0011
    assert not loads(4)
    world.copies.price = 0.0009
    assert loads(4)
    rule.observe(5, 1.0)  # a small step says nothing
    for _ in range(100):
        rule.observe(1000, 0.5)
    assert rule.compute_seconds == pytest.approx(0.0005, rel=1e-3)
    assert not loads(4)


def host_leaves(cache: TieredCache) -> list[Node]:
    return [n for n in cache.nodes() if n.parent and not len(n.slots) and not n.children and not n.locks]


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("seed", range(4))
def test_random_histories_never_show_a_wrong_byte(page: int, policy: str, seed: int):
    rng = random.Random(seed)
    world = World(20 * page, rng.choice([8, 24, 80]) * page, page, policy)
    cache = world.cache
    handles: list[tuple[tuple, np.ndarray, Any]] = []
    for _ in range(250):
        namespace = ("salt", rng.choice("ab"))
        ids = pages(page, *(rng.randint(1, 3) for _ in range(rng.randint(1, 6))))
        act = rng.random()
        if act < 0.35:
            world.insert(ids, namespace)
        elif act < 0.65:
            before = cache.match(ids, len(ids), namespace)
            match, handle = world.load(ids, namespace)
            assert match.length in (before.length, before.length + before.host)
            world.verify(match, ids, namespace)
            cache.used(handle, match.length, len(ids))
            handles.append((namespace, ids[: match.length], handle))
        elif act < 0.85 and handles:
            held, prefix, handle = handles.pop(rng.randrange(len(handles)))
            match = cache.match(prefix, len(prefix), held)
            assert match.length == len(prefix), "a pinned prefix was given up"
            world.verify(match, prefix, held)
            cache.unlock(handle)
        else:
            possible = cache.evictable
            wanted = rng.randint(1, 8 * page)
            assert cache.evict(wanted) >= min(wanted, possible)
        world.check()
    assert cache.stats.host_loads > 2
    for *_, handle in handles:
        cache.unlock(handle)
    cache.reset()
    world.check()
    assert cache.host.free_count == cache.host.total


@pytest.mark.parametrize("policy", list(POLICIES))
def test_the_order_on_the_host_is_what_a_search_of_the_whole_tree_says(policy: str):
    rng = random.Random(policy)
    world = World(30, 30, 1, policy)
    cache = world.cache
    lost = 0
    for _ in range(900):
        ids = pages(1, *(rng.randint(1, 4) for _ in range(rng.randint(1, 5))))
        act = rng.random()
        if act < 0.5:
            world.insert(ids)
        elif act < 0.8:
            match, handle = world.load(ids)
            cache.used(handle, match.length, len(ids))
            cache.unlock(handle)
        else:
            cache.evict(rng.randint(1, 10))
        duplicates = [n for n in cache.nodes() if len(n.slots) and len(n.host)]
        if cache.host.free_count < 3 and not duplicates and host_leaves(cache):
            victim = min(host_leaves(cache), key=cache._rank)
            cache._make_host_room(cache.host.free_count + 1)
            assert victim.parent is None
            lost += 1
        world.check()
    assert lost > 20
