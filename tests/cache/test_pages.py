"""Pages, eviction order, namespaces and counters of the radix cache, against oracles that are slow and plain."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from stemma.backend.cache.radix import POLICIES, Node, RadixCache, handle_length
from stemma.backend.cache.slots import SlotAllocator, check_page_size

Ids = tuple[int, ...]


def make(tokens: int, page: int, policy: str = "lru") -> tuple[SlotAllocator, RadixCache]:
    allocator = SlotAllocator(tokens + page, page)
    return allocator, RadixCache(allocator, policy)


def pages(page: int, *letters: int) -> np.ndarray:
    """One page of tokens for each letter; pages of different letters differ from their last token on at most."""
    return np.array([t for x in letters for t in (*[0] * (page - 1), x)], np.int32)


def insert(allocator: SlotAllocator, cache: RadixCache, ids: np.ndarray, namespace: tuple = ()) -> None:
    slots = allocator.allocate(len(ids))
    already, handle = cache.insert(ids, slots, namespace)
    allocator.free(slots[:already])
    cache.unlock(handle)


# -- slots ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, 3, 12, 512, True, 2.0, "16"])
def test_a_page_size_is_a_power_of_two(wrong: Any):
    with pytest.raises(ValueError, match="power of two"):
        check_page_size(wrong)


def test_a_pool_holds_whole_pages_behind_the_padding_page():
    assert SlotAllocator(64, 16).total == 48
    assert SlotAllocator(79, 16).total == 48
    with pytest.raises(ValueError, match=r"at least 32 .*whole page of 16.*got 31"):
        SlotAllocator(31, 16)


@pytest.mark.parametrize("page", [1, 4, 16])
def test_a_sequence_fills_its_last_page_before_it_takes_another(page: int):
    allocator = SlotAllocator(page * 40, page)
    rng = random.Random(page)
    slots = np.empty(0, np.int32)
    while len(slots) < page * 20:
        k = rng.randint(1, 2 * page)
        before = allocator.free_count
        needed = allocator.needed(len(slots), k)
        assert allocator.room(len(slots), needed) >= k
        assert needed == 0 or allocator.room(len(slots), needed - page) < k
        more = allocator.extend(len(slots), int(slots[-1]) if len(slots) else 0, k)
        assert len(more) == k and before - allocator.free_count == needed
        slots = np.concatenate([slots, more])
    assert (slots % page == np.arange(len(slots)) % page).all() and slots.min() >= page
    assert (allocator.whole(slots)[: len(slots)] == slots).all()
    allocator.free(slots)
    allocator.check()
    assert allocator.free_count == allocator.total


@pytest.mark.parametrize("page", [1, 16])
def test_one_more_token_for_many_rows_equals_one_more_for_each(page: int):
    held = np.array([0, 1, page - 1, page, page + 1, 3 * page], np.int32)
    both = []
    for together in (True, False):
        allocator = SlotAllocator(page * 60, page)
        table = np.zeros((len(held), 4 * page + 1), np.int32)
        for row, n in enumerate(held.tolist()):
            table[row, :n] = allocator.allocate(n)
        rows = np.arange(len(held), dtype=np.int32)
        free = allocator.free_count
        if together:
            both.append(allocator.extend_each(table, rows, held))
        else:
            both.append([int(allocator.extend(n, table[r, n - 1], 1)[0]) for r, n in enumerate(held.tolist())])
        assert free - allocator.free_count == sum(allocator.needed(n, 1) for n in held.tolist())
    together, singly = both
    old = held % page != 0
    assert (together % page == held % page).all()
    assert (together[old] == np.array(singly)[old]).all() and set(together.tolist()) == set(singly)


# -- the tree ------------------------------------------------------------------------------------------------------


def test_only_whole_pages_are_matched_inserted_and_split():
    allocator, cache = make(640, 16)
    insert(allocator, cache, pages(16, 1, 2, 3))
    wanted = np.concatenate([pages(16, 1), pages(16, 2)[:9]])
    assert cache.match(wanted, len(wanted)).length == 16
    assert cache.match(pages(16, 1, 2), 31).length == 16
    assert cache.match(pages(16, 1, 2), 15).length == 0
    assert cache.match(pages(16, 9), 16).length == 0  # 15 tokens alike are not a page
    insert(allocator, cache, pages(16, 1, 2, 7))
    assert sorted(len(n.ids) for n in cache.nodes()) == [0, 16, 16, 32]
    with pytest.raises(AssertionError, match="whole pages"):
        cache.insert(pages(16, 1)[:9], np.arange(16, 25, dtype=np.int32))
    cache.check()


@pytest.mark.parametrize("page", [1, 16])
def test_a_split_copies_recency_and_hits(page: int):
    allocator, cache = make(100 * page, page, "lfu")
    insert(allocator, cache, pages(page, 1, 2, 3, 4))
    handle = cache.lock(cache.match(pages(page, 1, 2, 3, 4), 4 * page))
    cache.used(handle, 4 * page, 4 * page)
    (node,) = [n for n in cache.nodes() if n.parent]
    upper = cache.lock(cache.match(pages(page, 1, 2), 2 * page))
    assert upper is not None and upper is node.parent
    assert (upper.hits, upper.locks, node.hits) == (1, 2, 1) and upper.tick == node.tick
    cache.unlock(handle)
    cache.unlock(upper)
    cache.check()


def test_only_what_is_used_counts_and_only_the_part_that_is_new_to_the_user():
    allocator, cache = make(100, 1)
    insert(allocator, cache, pages(1, 1, 2))
    insert(allocator, cache, pages(1, 1, 2, 3, 4))
    for _ in range(5):
        cache.match(pages(1, 1, 2, 3, 4), 4)
    assert cache.stats.lookup_tokens == 0
    first = cache.lock(cache.match(pages(1, 1, 2), 2))
    cache.used(first, 2, 6)
    longer = cache.lock(cache.match(pages(1, 1, 2, 3, 4), 4))
    cache.unlock(first)
    cache.used(longer, 2, 0)
    assert (cache.stats.lookup_tokens, cache.stats.hit_tokens, cache.stats.inserted_tokens) == (6, 4, 4)
    assert [n.hits for n in cache.nodes() if n.parent] == [1, 1]
    cache.unlock(longer)
    assert cache.evict(99) == 4 == cache.stats.evicted_tokens
    assert cache.stats.figures()["cache_hit_rate"] == pytest.approx(4 / 6, abs=1e-4)


def test_a_namespace_is_forgotten_with_its_last_node():
    allocator, cache = make(1000, 1)
    for i in range(200):
        insert(allocator, cache, pages(1, 1, 2, 3), ("salt", str(i)))
    assert cache.evict(600) == 600
    assert cache.nodes() == [] and cache.figures()["cache_nodes"] == 0
    insert(allocator, cache, pages(1, 5), ("salt", "1"))
    cache.check()


def test_a_namespace_is_a_tuple_of_fields_and_not_their_text():
    allocator, cache = make(100, 1)
    insert(allocator, cache, pages(1, 1), ("salt", "a", "lora", "b"))
    for other in [("salt", "a'lora'b"), ("salt", "alora", "", "b"), ("lora", "b", "salt", "a"), ()]:
        assert cache.match(pages(1, 1), 1, other).length == 0


def leaves(cache: RadixCache) -> list[Node]:
    return [n for n in cache.nodes() if n.parent is not None and not n.locks and not n.children]


# The policies in other words than the cache's own: when each node was last matched or inserted, and its hits, are read
# from the nodes; the rest is a search through all of them.
def first_to_go(cache: RadixCache, policy: str) -> Node:
    spare = leaves(cache)
    if policy == "lfu":
        least = min(n.hits for n in spare)
        spare = [n for n in spare if n.hits == least]
    elif policy == "slru":
        spare = [n for n in spare if n.hits < 2] or spare
    return min(spare, key=lambda n: n.tick)


@pytest.mark.parametrize("policy", list(POLICIES))
def test_eviction_order_is_what_a_search_of_the_whole_tree_says(policy: str):
    rng = random.Random(policy)
    for page in (1, 4):
        allocator, cache = make(60 * page, page, policy)
        handles: list[Any] = []
        evictions = 0
        for _ in range(1200):
            ids = pages(page, *(rng.randint(1, 3) for _ in range(rng.randint(1, 6))))
            act = rng.random()
            if act < 0.35 and allocator.can_allocate(len(ids)):
                insert(allocator, cache, ids, (rng.choice("ab"),))
            elif act < 0.75:
                match = cache.match(ids, len(ids), (rng.choice("ab"),))
                if rng.random() < 0.7:
                    handle = cache.lock(match)
                    cache.used(handle, match.length, len(ids))
                    handles.append(handle)
                    if len(handles) > 6:
                        cache.unlock(handles.pop(rng.randrange(len(handles))))
            elif leaves(cache):
                victim = first_to_go(cache, policy)
                size = len(victim.ids)
                assert cache.evict(1) == size
                assert victim.parent is None, (policy, victim.tick, victim.hits)
                evictions += 1
            cache.check()
        assert evictions > 50


def test_recency_is_that_of_the_last_match_or_insert():
    allocator, cache = make(100, 1)
    for x in (1, 2, 3, 4):
        insert(allocator, cache, pages(1, x, 9))
    cache.match(pages(1, 2, 9), 2)
    insert(allocator, cache, pages(1, 1, 9))
    order = []
    while cache.size:
        before = {x for x in (1, 2, 3, 4) if (() in cache._roots) and x in cache._roots[()].children}
        cache.evict(1)
        after = {x for x in (1, 2, 3, 4) if (() in cache._roots) and x in cache._roots[()].children}
        order += before - after
    assert order == [3, 4, 2, 1]


def test_slru_keeps_what_was_used_twice_and_lfu_what_was_used_most():
    for policy, kept in (("lru", {3}), ("slru", {1}), ("lfu", {2})):
        allocator, cache = make(100, 1, policy)
        for x in (1, 2, 3):
            insert(allocator, cache, pages(1, x))
        for x, uses in ((2, 3), (1, 2), (3, 1)):
            for _ in range(uses):
                handle = cache.lock(cache.match(pages(1, x), 1))
                cache.used(handle, 1, 1)
                cache.unlock(handle)
        cache.evict(2)
        assert {x for x in (1, 2, 3) if cache.match(pages(1, x), 1).length} == kept, policy


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="one of lru, lfu, slru, got 'mru'"):
        RadixCache(SlotAllocator(10), "mru")


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("seed", range(4))
def test_random_histories_agree_with_a_dictionary_of_prefixes(page: int, policy: str, seed: int):
    """The oracle knows the slots of every cached page: (namespace, prefix of whole pages) -> slots of its last page."""
    rng = random.Random(seed)
    allocator, cache = make(40 * page, page, policy)
    known: dict[tuple[tuple, Ids], Ids] = {}
    handles: list[tuple[tuple, Ids, Any]] = []
    inserted = evicted = 0

    def prefixes(ids: Ids) -> list[Ids]:
        return [ids[:k] for k in range(page, len(ids) + 1, page)]

    def forget_evicted() -> None:
        left = set(cache.all_slots().tolist())
        gone = [key for key, slots in known.items() if slots[0] not in left]
        for namespace, ids in gone:
            assert not any(n == namespace and p[: len(ids)] == ids for n, p, _ in handles), "a pinned page was evicted"
            del known[namespace, ids]

    for _ in range(150):
        namespace = ("salt", rng.choice("ab"))
        array = pages(page, *(rng.randint(1, 3) for _ in range(rng.randint(1, 7))))
        ids = tuple(array.tolist())
        cached = [p for p in prefixes(ids) if (namespace, p) in known]
        act = rng.random()
        if act < 0.3:
            limit = rng.randint(0, len(ids))
            match = cache.match(array, limit, namespace)
            cached = [p for p in cached if len(p) <= limit]
            assert match.length == len(cached) * page
            assert match.slots.tolist() == [s for p in cached for s in known[namespace, p]]
        elif act < 0.6:
            missing = len(ids) - allocator.free_count
            if missing > 0:
                evicted += cache.evict(missing)
                forget_evicted()
                cached = [p for p in prefixes(ids) if (namespace, p) in known]
            if not allocator.can_allocate(len(ids)):
                continue
            slots = allocator.allocate(len(ids))
            wrong = rng.choice([k for k in range(0, len(ids) + page, page) if k != len(cached) * page])
            assert cache.insert(array, slots, namespace, expect=wrong) == (-1, None)
            already, handle = cache.insert(array, slots, namespace)
            assert already == len(cached) * page and handle_length(handle) == len(ids)
            allocator.free(slots[:already])
            for p in prefixes(ids)[len(cached) :]:
                known[namespace, p] = tuple(slots[len(p) - page : len(p)].tolist())
            inserted += len(ids) - already
            handles.append((namespace, ids, handle))
        elif act < 0.75 and cached:
            match = cache.match(array, len(ids), namespace)
            handles.append((namespace, cached[-1], cache.lock(match)))
            cache.used(handles[-1][2], match.length, len(ids))
        elif act < 0.92 and handles:
            cache.unlock(handles.pop(rng.randrange(len(handles)))[2])
        else:
            wanted = rng.randint(1, 10 * page)
            possible = cache.evictable
            freed = cache.evict(wanted)
            assert freed >= min(wanted, possible)
            evicted += freed
            forget_evicted()
        cache.check()
        allocator.check()
        assert allocator.free_count + cache.size == allocator.total
        assert {s for slots in known.values() for s in slots} == set(cache.all_slots().tolist())
        pinned = {(n, p) for n, ids, _ in handles for p in prefixes(ids)}
        assert cache.size - cache.evictable == len(pinned) * page
        assert (cache.stats.inserted_tokens, cache.stats.evicted_tokens) == (inserted, evicted)
    for *_, handle in handles:
        cache.unlock(handle)
    assert cache.evictable == cache.size
    cache.reset()
    assert allocator.free_count == allocator.total
