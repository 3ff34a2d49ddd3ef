"""The radix prefix cache: a tree over token ids whose nodes own KV slots.

After RadixAttention (SGLang, arXiv 2312.07104), page size 1. Differences: a lookup never splits a node (only locking or
inserting below a point does), and evictable leaves sit in an incremental heap, so eviction does not walk the tree.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from stemma.backend.cache.base import Match, Namespace
from stemma.backend.cache.slots import SlotAllocator
from stemma.backend.core import Int32

_EMPTY = np.empty(0, np.int32)


class Node:
    """ids and slots are equally long. `locks` counts handles at or below. Root nodes are empty and never evicted."""

    __slots__ = ("children", "ids", "locks", "namespace", "parent", "slots", "tick")

    def __init__(self, parent: Node | None, ids: Int32, slots: Int32, tick: int) -> None:
        self.parent = parent
        self.ids = ids
        self.slots = slots
        self.children: dict[int, Node] = {}
        self.locks = 0
        self.tick = tick
        self.namespace: Namespace = ()


def _common(a: Int32, b: Int32) -> int:
    """Length of the common prefix of two id arrays."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    at = int(differs.argmax()) if n else 0
    return at if n and differs[at] else n


class RadixCache:
    """See `PrefixCache` for the contract. Not thread-safe: the scheduler's thread owns it."""

    def __init__(self, allocator: SlotAllocator) -> None:
        self._allocator = allocator
        self._roots: dict[Namespace, Node] = {}
        self._tick = 0
        self._size = 0
        self._evictable = 0
        self._heap: list[tuple[int, int, Node]] = []  # (tick, serial, node); stale entries are skipped when popped
        self._serial = 0

    @property
    def size(self) -> int:
        return self._size

    @property
    def evictable(self) -> int:
        return self._evictable

    # -- lookup ----------------------------------------------------------------------------------------------------

    def match(self, ids: Int32, limit: int, namespace: Namespace = ()) -> Match:
        ids = ids[:limit]
        node = self._roots.get(namespace)
        if node is None or not len(ids):
            return Match(0, _EMPTY, node, 0)
        self._tick += 1
        parts: list[Int32] = []
        length, offset = 0, 0
        while length < len(ids):
            child = node.children.get(int(ids[length]))
            if child is None:
                break
            common = _common(child.ids, ids[length:])
            parts.append(child.slots[:common])
            length += common
            node, offset = child, common
            child.tick = self._tick
            if common < len(child.ids):
                break
        if offset and node.locks == 0 and not node.children:
            self._offer(node)
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
                self._evictable -= len(walk.ids)
            walk.locks += 1
            walk = walk.parent

    def unlock(self, handle: Node | None) -> None:
        walk = handle
        while walk is not None:
            walk.locks -= 1
            assert walk.locks >= 0, "unlocked more often than locked"
            if walk.locks == 0:
                self._evictable += len(walk.ids)
                if not walk.children:
                    self._offer(walk)
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
        node = self._roots.get(namespace)
        if node is None:
            node = self._roots[namespace] = Node(None, _EMPTY, _EMPTY, 0)
            node.namespace = namespace
        self._tick += 1
        length, offset = 0, 0
        while length < len(ids):
            child = node.children.get(int(ids[length]))
            if child is None:
                break
            common = _common(child.ids, ids[length:])
            length += common
            node, offset = child, common
            if common < len(child.ids):
                break
        if expect is not None and length != expect:
            return -1, None
        if node.parent is not None and offset < len(node.ids):
            node = self._split(node, offset)
        if length < len(ids):
            node = self._attach(node, ids[length:].copy(), slots[length:].copy())
        self._add_lock(node)
        walk: Node | None = node
        while walk is not None:
            walk.tick = self._tick
            walk = walk.parent
        return length, node

    def _attach(self, parent: Node, ids: Int32, slots: Int32) -> Node:
        node = Node(parent, ids, slots, self._tick)
        parent.children[int(ids[0])] = node
        self._size += len(ids)
        self._evictable += len(ids)
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut `node` in two at `at`; returns the upper part. Handles on the lower part keep pinning both."""
        parent = node.parent
        assert parent is not None and 0 < at < len(node.ids)
        upper = Node(parent, node.ids[:at].copy(), node.slots[:at].copy(), node.tick)
        upper.locks = node.locks
        upper.children[int(node.ids[at])] = node
        parent.children[int(node.ids[0])] = upper
        node.parent, node.ids, node.slots = upper, node.ids[at:].copy(), node.slots[at:].copy()
        return upper

    def evict(self, k: int) -> int:
        freed = 0
        while freed < k and self._heap:
            tick, _, node = heapq.heappop(self._heap)
            parent = node.parent
            if parent is None or node.locks or node.children or node.tick != tick:
                if parent is not None and not node.locks and not node.children and node.tick != tick:
                    self._offer(node)  # touched since it was offered: offer it again at its newer tick
                continue
            freed += len(node.ids)
            self._evictable -= len(node.ids)
            self._size -= len(node.ids)
            self._allocator.free(node.slots)
            del parent.children[int(node.ids[0])]
            node.parent = None
            if parent.parent is not None and not parent.locks and not parent.children:
                self._offer(parent)
        return freed

    def _offer(self, node: Node) -> None:
        if node.parent is not None:
            self._serial += 1
            heapq.heappush(self._heap, (node.tick, self._serial, node))
            if len(self._heap) > 64 and len(self._heap) > 8 * (self._size + 1):
                self._rebuild_heap()

    def _rebuild_heap(self) -> None:
        self._heap = [
            (node.tick, serial, node)
            for serial, node in enumerate(self.nodes())
            if node.parent is not None and not node.locks and not node.children
        ]
        heapq.heapify(self._heap)
        self._serial = len(self._heap) + self._size + 1

    def reset(self) -> None:
        assert all(root.locks == 0 for root in self._roots.values()), "reset while a prefix is pinned"
        slots = self.all_slots()
        if len(slots):
            self._allocator.free(slots)
        self._roots.clear()
        self._heap.clear()
        self._size = self._evictable = 0

    # -- inspection ------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        out: list[Node] = []
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            out.append(node)
            stack.extend(node.children.values())
        return out

    def all_slots(self) -> Int32:
        parts = [node.slots for node in self.nodes()]
        return np.concatenate(parts) if parts else _EMPTY

    def check(self) -> None:
        size = evictable = 0
        offered = {id(node) for _, _, node in self._heap}
        for node in self.nodes():
            size += len(node.ids)
            assert len(node.ids) == len(node.slots)
            if node.parent is not None:
                assert len(node.ids) > 0, "an empty inner node"
                assert node.parent.children[int(node.ids[0])] is node
                assert node.parent.locks >= node.locks, "a locked node under an unlocked one"
                if node.locks == 0:
                    evictable += len(node.ids)
                    assert node.children or id(node) in offered, "an evictable leaf is not in the heap"
        assert size == self._size, (size, self._size)
        assert evictable == self._evictable, (evictable, self._evictable)
        slots = self.all_slots()
        assert len(np.unique(slots)) == len(slots), "two nodes own one slot"


def handle_length(handle: Any) -> int:
    """Number of tokens that a handle pins."""
    total = 0
    while handle is not None:
        total += len(handle.ids)
        handle = handle.parent
    return total
