"""The radix prefix cache: a tree over token ids whose nodes own KV slots.

After RadixAttention (SGLang, arXiv 2312.07104). Differences: a lookup never splits a node (only locking or inserting
below a point does), and evictable leaves sit in an incremental heap, so eviction does not walk the tree.

With a page size P > 1 the tree holds whole pages: children are found by their first P tokens, and nodes are matched,
inserted and split at multiples of P.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np

from stemma.backend.cache.base import CacheStats, Match, Namespace
from stemma.backend.cache.slots import SlotAllocator, distinct
from stemma.backend.core import Int32

_EMPTY = np.empty(0, np.int32)
PROTECTED_HITS = 2  # slru: a node that was used so often is evicted after those that were not


class Node:
    """ids and slots are equally long. `locks` counts handles at or below, `hits` the sequences that ran on it, `tick`
    is when it was last matched or inserted. Root nodes are empty and never evicted; `namespace` is theirs alone.

    With a host tier a node has slots or host slots or both, and only children of nodes with slots have slots; `live`
    counts the children that do. Without one, every node has slots.
    """

    __slots__ = (
        "children", "hits", "host", "host_serial", "ids", "live", "locks", "namespace", "offered", "parent", "slots",
        "tick",
    )  # fmt: skip

    def __init__(self, parent: Node | None, ids: Int32, slots: Int32, tick: int) -> None:
        self.parent = parent
        self.ids = ids
        self.slots = slots
        self.host: Int32 = _EMPTY
        self.host_serial = 0
        self.children: dict[int | bytes, Node] = {}
        self.live = 0
        self.locks = 0
        self.hits = 0
        self.tick = tick
        self.offered = False  # it has its entry in the heap of evictable leaves
        self.namespace: Namespace = ()


Key = tuple[int, int]
# What is evicted first has the least key. A key may grow while its node waits in the heap, but must never shrink.
POLICIES: dict[str, Callable[[Node], Key]] = {
    "lru": lambda node: (0, node.tick),
    "lfu": lambda node: (node.hits, node.tick),
    "slru": lambda node: (node.hits >= PROTECTED_HITS, node.tick),
}


class RadixCache:
    """See `PrefixCache` for the contract. Not thread-safe: the scheduler's thread owns it.

    policy: the order of eviction. `lru`: least recently matched or inserted first. `lfu`: least often used, ties by
    recency. `slru`: nodes used by fewer than two sequences by recency, then the others.
    """

    def __init__(self, allocator: SlotAllocator, policy: str = "lru") -> None:
        if policy not in POLICIES:
            raise ValueError(f"the eviction policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        self.stats = CacheStats()
        self._allocator = allocator
        self._page = allocator.page_size
        self._rank = POLICIES[policy]
        self._roots: dict[Namespace, Node] = {}
        self._tick = 0
        self._size = 0
        self._evictable = 0
        self._nodes = 0
        self._heap: list[tuple[Key, int, Node]] = []  # (key when offered, serial, node); each node at most once
        self._serial = 0

    @property
    def size(self) -> int:
        return self._size

    @property
    def evictable(self) -> int:
        return self._evictable

    # -- lookup ----------------------------------------------------------------------------------------------------

    def _key(self, ids: Int32, at: int = 0) -> int | bytes:
        """Where the child that continues with ids[at:] is found."""
        return int(ids[at]) if self._page == 1 else ids[at : at + self._page].tobytes()

    def _common(self, a: Int32, b: Int32) -> int:
        """Length of the common prefix of two id arrays, in whole pages."""
        n = min(len(a), len(b))
        differs = a[:n] != b[:n]
        at = int(differs.argmax()) if n else 0
        common = at if n and differs[at] else n
        return common - common % self._page

    def match(self, ids: Int32, limit: int, namespace: Namespace = ()) -> Match:
        limit = min(limit, len(ids))
        ids = ids[: limit - limit % self._page]
        node = self._roots.get(namespace)
        if node is None or not len(ids):
            return Match(0, _EMPTY, node, 0)
        self._tick += 1
        parts: list[Int32] = []
        length, offset = 0, 0
        while length < len(ids):
            child = node.children.get(self._key(ids, length))
            if child is None or not len(child.slots):
                break
            common = self._common(child.ids, ids[length:])
            parts.append(child.slots[:common])
            length += common
            node, offset = child, common
            child.tick = self._tick
            if common < len(child.ids):
                break
        slots = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else _EMPTY
        return Match(length, slots, node, offset)

    # -- handles ---------------------------------------------------------------------------------------------------

    def lock(self, match: Match) -> Node | None:
        node: Node | None = match.node
        if node is None:
            return None
        if node.parent is not None and match.offset < len(node.ids):
            node = self._split(node, match.offset)
        self._add_lock(node)
        return node

    def _add_lock(self, node: Node) -> None:
        walk: Node | None = node
        while walk is not None:
            if walk.locks == 0:
                self._evictable -= len(walk.slots)
            walk.locks += 1
            walk = walk.parent

    def unlock(self, handle: Node | None) -> None:
        walk = handle
        while walk is not None:
            walk.locks -= 1
            assert walk.locks >= 0, "unlocked more often than locked"
            if walk.locks == 0:
                self._evictable += len(walk.slots)
                if not walk.live:
                    self._spare(walk)
            walk = walk.parent

    def used(self, handle: Node | None, length: int, looked_up: int) -> None:
        self.stats.lookup_tokens += looked_up
        self.stats.hit_tokens += length
        walk = handle
        while walk is not None and length > 0:
            walk.hits += 1
            length -= len(walk.ids)
            walk = walk.parent

    def own(self, handle: Node | None) -> int:
        total = 0
        while handle is not None and handle.locks == 1:
            total += len(handle.ids)
            handle = handle.parent
        return total

    def joins(self, handle: Node | None) -> bool:
        while handle is not None and handle.locks < 2:
            handle = handle.parent
        return handle is not None and handle.locks == 2 and len(handle.ids) > 0

    # -- change ----------------------------------------------------------------------------------------------------

    def insert(
        self, ids: Int32, slots: Int32, namespace: Namespace = (), expect: int | None = None
    ) -> tuple[int, Node | None]:
        assert len(ids) == len(slots), f"{len(ids)} ids but {len(slots)} slots"
        assert len(ids) % self._page == 0, f"{len(ids)} ids are not whole pages of {self._page}"
        node = self._roots.get(namespace)
        if node is None:
            if expect:
                return -1, None
            node = self._roots[namespace] = Node(None, _EMPTY, _EMPTY, 0)
            node.namespace = namespace
        self._tick += 1
        length, offset = 0, 0
        while length < len(ids):
            child = node.children.get(self._key(ids, length))
            if child is None or not len(child.slots):
                break
            common = self._common(child.ids, ids[length:])
            length += common
            node, offset = child, common
            if common < len(child.ids):
                break
        if expect is not None and length != expect:
            return -1, None
        if node.parent is not None and offset < len(node.ids):
            node = self._split(node, offset)
        held, node = self._revive(node, ids, slots, length)
        if held < len(ids):
            node = self._attach(node, ids[held:].copy(), slots[held:].copy())
        self._add_lock(node)
        walk: Node | None = node
        while walk is not None:
            walk.tick = self._tick
            walk = walk.parent
        return length, node

    def _revive(self, node: Node, ids: Int32, slots: Int32, length: int) -> tuple[int, Node]:
        """Give nodes below `node` that continue with ids[length:] but have no slots these ones. Returns how far."""
        return length, node

    def _attach(self, parent: Node, ids: Int32, slots: Int32) -> Node:
        node = Node(parent, ids, slots, self._tick)
        parent.children[self._key(ids)] = node
        parent.live += 1
        self._nodes += 1
        self._size += len(ids)
        self._evictable += len(ids)
        self.stats.inserted_tokens += len(ids)
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut `node` in two at `at`; returns the upper part, equally recent and as often used. Handles on the lower
        part keep pinning both."""
        parent = node.parent
        assert parent is not None and 0 < at < len(node.ids) and at % self._page == 0
        upper = Node(parent, node.ids[:at].copy(), node.slots[:at].copy(), node.tick)
        upper.locks, upper.hits = node.locks, node.hits
        upper.host = node.host[:at].copy()
        upper.live = int(len(node.slots) > 0)
        upper.children[self._key(node.ids, at)] = node
        parent.children[self._key(node.ids)] = upper
        node.parent, node.ids = upper, node.ids[at:].copy()
        node.slots, node.host = node.slots[at:].copy(), node.host[at:].copy()
        self._nodes += 1
        return upper

    # -- eviction --------------------------------------------------------------------------------------------------

    def evict(self, k: int) -> int:
        freed = 0
        while freed < k and self._heap:
            key, _, node = heapq.heappop(self._heap)
            node.offered = False
            if node.locks or node.live or not len(node.slots):
                continue  # offered again when that is over
            if self._rank(node) != key:
                self._offer(node)  # used since it was offered
                continue
            freed += len(node.slots)
            self._give_up(node)
        self.stats.evicted_tokens += freed
        return freed

    def _give_up(self, node: Node) -> None:
        """An unpinned leaf loses its slots, and is no longer in the tree."""
        parent = node.parent
        assert parent is not None
        self._allocator.free(self._take_slots(node))
        self._remove(node)
        if not parent.locks and not parent.live:
            self._spare(parent)

    def _take_slots(self, node: Node) -> Int32:
        """The slots of an unpinned leaf, which has none from now on."""
        assert node.parent is not None
        slots, node.slots = node.slots, _EMPTY
        self._evictable -= len(slots)
        self._size -= len(slots)
        node.parent.live -= 1
        return slots

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        del node.parent.children[self._key(node.ids)]
        node.parent = None
        self._nodes -= 1

    def _spare(self, node: Node) -> None:
        """An unpinned node without children that have slots: it can be evicted. An empty namespace is forgotten."""
        if node.parent is not None:
            if len(node.slots):
                self._offer(node)
        elif not node.children and self._roots.get(node.namespace) is node:
            del self._roots[node.namespace]

    def _offer(self, node: Node) -> None:
        if not node.offered:
            node.offered = True
            self._serial += 1
            heapq.heappush(self._heap, (self._rank(node), self._serial, node))

    def load(self, match: Match, handle: Any, make_room: Callable[[int], bool]) -> tuple[Match, Any]:
        return match, handle

    def reset(self) -> None:
        assert all(root.locks == 0 for root in self._roots.values()), "reset while a prefix is pinned"
        slots = self.all_slots()
        if len(slots):
            self._allocator.free(slots)
        self._roots.clear()
        self._heap.clear()
        self._size = self._evictable = self._nodes = 0

    # -- inspection ------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        """Every node, roots too, parents before children."""
        out: list[Node] = []
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            out.append(node)
            stack.extend(node.children.values())
        return out

    def figures(self) -> dict[str, Any]:
        return {"cache_nodes": self._nodes, **self.stats.figures()}

    def all_slots(self) -> Int32:
        parts = [node.slots for node in self.nodes()]
        return np.concatenate(parts) if parts else _EMPTY

    def check(self) -> None:
        size = evictable = count = 0
        page = self._page
        offered = {id(node): key for key, _, node in self._heap}
        assert len(offered) == len(self._heap), "a node is in the heap twice"
        for node in self.nodes():
            size += len(node.slots)
            assert node.live == sum(1 for child in node.children.values() if len(child.slots))
            assert node.offered == (id(node) in offered), "a node does not know whether it is in the heap"
            if node.parent is None:
                assert self._roots[node.namespace] is node
                assert node.locks or node.children, "an empty namespace was kept"
                continue
            count += 1
            assert len(node.ids) > 0, "an empty inner node"
            assert len(node.ids) % page == 0, "a node holds a part of a page"
            assert node.parent.children[self._key(node.ids)] is node
            assert node.parent.locks >= node.locks, "a locked node under an unlocked one"
            self._check_copies(node)
            if node.locks == 0:
                evictable += len(node.slots)
                assert node.live or not len(node.slots) or node.offered, "an evictable leaf is not in the heap"
                assert not node.offered or offered[id(node)] <= self._rank(node), (
                    "a node's place in the heap is too late"
                )
        assert size == self._size, (size, self._size)
        assert evictable == self._evictable, (evictable, self._evictable)
        assert count == self._nodes, (count, self._nodes)
        slots = self.all_slots()
        assert distinct(slots), "two nodes own one slot"
        assert (slots == self._allocator.whole(slots)).all() and not (slots[::page] % page).any(), "a page is torn"

    def _check_copies(self, node: Node) -> None:
        assert len(node.slots) == len(node.ids) and not len(node.host)


def handle_length(handle: Any) -> int:
    """Number of tokens that a handle pins."""
    total = 0
    while handle is not None:
        total += len(handle.ids)
        handle = handle.parent
    return total
