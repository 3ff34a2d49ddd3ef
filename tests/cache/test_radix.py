"""The radix cache against an oracle: a dictionary that knows the slot of every cached prefix."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from stemma.backend.cache.base import NoCache
from stemma.backend.cache.radix import RadixCache, handle_length
from stemma.backend.cache.slots import SlotAllocator


def array(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def make(slots: int = 100) -> tuple[SlotAllocator, RadixCache]:
    allocator = SlotAllocator(slots + 1)
    return allocator, RadixCache(allocator)


def insert(allocator: SlotAllocator, cache: RadixCache, ids: np.ndarray, namespace: tuple = ()) -> np.ndarray:
    """Insert and let go; returns the slots that now hold ids."""
    slots = allocator.allocate(len(ids))
    already, handle = cache.insert(ids, slots, namespace)
    allocator.free(slots[:already])
    cache.unlock(handle)
    return cache.match(ids, len(ids), namespace).slots


def test_slots_are_handed_out_once_and_slot_zero_never():
    allocator = SlotAllocator(11)
    taken = allocator.allocate(10)
    assert sorted(taken.tolist()) == list(range(1, 11))
    assert not allocator.can_allocate(1)
    allocator.free(taken[3:7])
    assert sorted(allocator.allocate(4).tolist()) == sorted(taken[3:7].tolist())
    allocator.free(taken)
    allocator.check()


def test_a_pool_of_one_slot_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        SlotAllocator(1)


def test_what_was_inserted_is_matched_and_a_lookup_splits_nothing():
    allocator, cache = make()
    slots = insert(allocator, cache, array(1, 2, 3, 4))
    nodes = len(cache.nodes())
    match = cache.match(array(1, 2, 9), 3)
    assert match.length == 2 and match.slots.tolist() == slots[:2].tolist()
    assert cache.match(array(1, 2, 3, 4), 3).length == 3
    assert cache.match(array(9, 1), 2).length == 0
    assert len(cache.nodes()) == nodes


def test_inserting_again_changes_nothing_and_reports_the_whole_length():
    allocator, cache = make()
    slots = insert(allocator, cache, array(1, 2, 3))
    mine = allocator.allocate(3)
    already, handle = cache.insert(array(1, 2, 3), mine)
    assert already == 3
    assert cache.match(array(1, 2, 3), 3).slots.tolist() == slots.tolist()
    allocator.free(mine)
    cache.unlock(handle)
    cache.check()


def test_insert_with_a_wrong_expectation_does_nothing():
    allocator, cache = make()
    insert(allocator, cache, array(1, 2))
    mine = allocator.allocate(3)
    assert cache.insert(array(1, 2, 3), mine, expect=1) == (-1, None)
    assert cache.size == 2


def test_evict_never_frees_a_locked_node():
    allocator, cache = make(10)
    insert(allocator, cache, array(1, 2, 3, 4, 5))
    insert(allocator, cache, array(1, 2, 8, 9))
    handle = cache.lock(cache.match(array(1, 2, 3), 3))
    assert handle_length(handle) == 3
    cache.evict(100)
    assert cache.match(array(1, 2, 3, 4), 4).length == 3
    assert cache.match(array(1, 2, 8), 3).length == 2
    cache.unlock(handle)
    assert cache.evict(100) == 3
    assert allocator.free_count == 10


def test_eviction_takes_the_least_recently_used_leaf_first():
    allocator, cache = make()
    for first in (1, 2, 3):
        insert(allocator, cache, array(first, 10))
    cache.match(array(1, 10), 2)
    cache.evict(2)
    assert [cache.match(array(f, 10), 2).length for f in (1, 2, 3)] == [2, 0, 2]


def test_a_split_keeps_the_locks_of_what_it_splits():
    allocator, cache = make()
    insert(allocator, cache, array(1, 2, 3, 4))
    deep = cache.lock(cache.match(array(1, 2, 3, 4), 4))
    shallow = cache.lock(cache.match(array(1, 2), 2))
    cache.unlock(shallow)
    cache.check()
    assert cache.evict(100) == 0
    cache.unlock(deep)
    assert cache.evict(100) == 4


def test_namespaces_never_share():
    allocator, cache = make()
    insert(allocator, cache, array(1, 2, 3), ("tenant", 1))
    assert cache.match(array(1, 2, 3), 3, ("tenant", 2)).length == 0
    assert cache.match(array(1, 2, 3), 3, ("tenant", 1)).length == 3


def test_reset_gives_everything_back():
    allocator, cache = make()
    insert(allocator, cache, array(*range(50)))
    cache.reset()
    assert allocator.free_count == allocator.total and cache.size == 0


def test_no_cache_remembers_nothing():
    cache = NoCache()
    assert cache.insert(array(1), array(5)) == (-1, None)
    assert cache.match(array(1), 1).length == 0


@pytest.mark.parametrize("seed", range(40))
def test_random_histories_agree_with_the_oracle(seed: int):
    rng = random.Random(seed)
    allocator, cache = make(60)
    known: dict[tuple[object, tuple[int, ...]], int] = {}  # (namespace, prefix) -> slot
    handles: list[tuple[object, tuple[int, ...], Any]] = []
    for _ in range(150):
        namespace = (rng.choice("ab"),)
        ids = tuple(rng.randint(0, 2) for _ in range(rng.randint(1, 9)))
        key = np.array(ids, np.int32)
        longest = 0
        while longest < len(ids) and (namespace, ids[: longest + 1]) in known:
            longest += 1
        action = rng.random()
        if action < 0.35:
            match = cache.match(key, len(key), namespace)
            assert match.length == longest
            assert match.slots.tolist() == [known[namespace, ids[: k + 1]] for k in range(longest)]
        elif action < 0.65:
            if not allocator.can_allocate(len(ids)):
                cache.evict(len(ids) - allocator.free_count)
                known = {k: s for k, s in known.items() if s in set(cache.all_slots().tolist())}
                longest = cache.match(key, len(key), namespace).length
            if not allocator.can_allocate(len(ids)):
                continue
            slots = allocator.allocate(len(ids))
            already, handle = cache.insert(key, slots, namespace)
            assert already == longest
            allocator.free(slots[:already])
            for k in range(already, len(ids)):
                known[namespace, ids[: k + 1]] = int(slots[k])
            handles.append((namespace, ids, handle))
        elif action < 0.8 and longest:
            handles.append((namespace, ids[:longest], cache.lock(cache.match(key, len(key), namespace))))
        elif action < 0.92 and handles:
            cache.unlock(handles.pop(rng.randrange(len(handles)))[2])
        else:
            cache.evict(rng.randint(1, 10))
            left = set(cache.all_slots().tolist())
            known = {k: s for k, s in known.items() if s in left}
        cache.check()
        allocator.check()
        assert allocator.free_count + cache.size == allocator.total
        assert set(known.values()) == set(cache.all_slots().tolist())
        pinned = {known[n, ids[: k + 1]] for n, ids, _ in handles for k in range(len(ids))}
        assert cache.size - cache.evictable == len(pinned)
