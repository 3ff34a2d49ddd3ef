"""The radix cache with a second tier: what is evicted from the KV pool moves to host memory, and comes back later.

One tree for both tiers. A node has slots, or host slots, or both. The invariants (`check`):

* having slots is closed under prefixes: the parent of a node with slots has slots (or is a root);
* a node loses its slots only when its host copy is complete, else it leaves the tree with all below it;
* a token is lost from the host only when it has no slots, leaves first, in the order of the eviction policy; a host
  copy that duplicates slots is given up before that, as nothing is lost by it;
* loading back is all or nothing for the chain of nodes that it is asked for, which is pinned on both sides meanwhile.

A node that was loaded back keeps its host copy, so evicting it again copies nothing. When a row has computed tokens
that are on the host only (nobody thought loading worth it), `insert` gives its slots to their nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np

from stemma.backend.cache.base import Match, Namespace
from stemma.backend.cache.host import HostCopies, LoadRule
from stemma.backend.cache.radix import Node, RadixCache
from stemma.backend.cache.slots import SlotAllocator, distinct
from stemma.backend.core import Int32

_EMPTY = np.empty(0, np.int32)


class TieredCache(RadixCache):
    """See `PrefixCache` for the contract and the module's docstring for the tiers. `size` and `evictable` count slots,
    not host slots."""

    def __init__(
        self, allocator: SlotAllocator, copies: HostCopies, policy: str = "lru", rule: LoadRule | None = None
    ) -> None:
        super().__init__(allocator, policy)
        self.rule = rule or LoadRule()
        self.host = SlotAllocator(copies.host_slots, allocator.page_size)
        self._copies = copies
        self._leaving: list[Node] = []  # nodes whose host copy is yet to be made, while evicting
        self._left: list[Int32] = []  # and the slots that they had, which nobody gets before
        self._host_heap: list[tuple[tuple[bool, tuple[int, int]], int, Node]] = []  # see `_offer_host`
        self._host_offers = 0

    # -- lookup ----------------------------------------------------------------------------------------------------

    def match(self, ids: Int32, limit: int, namespace: Namespace = ()) -> Match:
        match = super().match(ids, limit, namespace)
        node: Node | None = match.node
        if node is None or match.offset < len(node.ids):
            return match
        limit = min(limit, len(ids))
        ids = ids[match.length : limit - limit % self._page]
        length = 0
        while length < len(ids):
            child = node.children.get(self._key(ids, length))
            if child is None or len(child.slots):
                break
            common = self._common(child.ids, ids[length:])
            length += common
            node = child
            node.tick = self._tick
            match.host, match.host_node, match.host_offset = length, node, common
            if common < len(node.ids):
                break
        return match

    # -- back to the device ----------------------------------------------------------------------------------------

    def load(self, match: Match, handle: Any, make_room: Callable[[int], bool]) -> tuple[Match, Any]:
        if not match.host or not self.rule.worth(match.host, self._copies):
            return match, handle
        node: Node = match.host_node
        if match.host_offset < len(node.ids):
            node = self._split(node, match.host_offset)
        self._add_lock(node)
        if not make_room(match.host):
            self.unlock(node)
            return match, handle
        chain = [node]
        while (parent := chain[-1].parent) is not None and parent.parent is not None and not len(parent.slots):
            chain.append(parent)
        chain.reverse()
        slots = self._allocator.allocate(match.host)
        self._copies.copy_in(np.concatenate([n.host for n in chain]), slots)
        at = 0
        for step in chain:
            self._arrive(step, slots[at : at + len(step.ids)].copy())
            at += len(step.ids)
        assert at == match.host, (at, match.host)
        self.stats.host_loads += 1
        self.stats.host_hit_tokens += at
        self.unlock(handle)
        return Match(match.length + at, np.concatenate([match.slots, slots]), node, len(node.ids)), node

    def _arrive(self, node: Node, slots: Int32) -> None:
        """A node that is on the host only has slots now."""
        assert node.parent is not None
        node.slots = slots
        node.parent.live += 1
        self._size += len(slots)
        if not node.locks:
            self._evictable += len(slots)
        self._offer_host(node)

    def _revive(self, node: Node, ids: Int32, slots: Int32, length: int) -> tuple[int, Node]:
        while length < len(ids):
            child = node.children.get(self._key(ids, length))
            if child is None:
                break
            assert not len(child.slots), "a node with slots below one without"
            common = self._common(child.ids, ids[length:])
            node = self._split(child, common) if common < len(child.ids) else child
            self._arrive(node, slots[length : length + common].copy())
            self.stats.inserted_tokens += common
            length += common
            if child is not node:
                break
        return length, node

    # -- to the host -----------------------------------------------------------------------------------------------

    def evict(self, k: int) -> int:
        freed = super().evict(k)
        self._copy_out()
        return freed

    def _give_up(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        stored = len(node.host) == 0 and self._store(node)
        slots = self._take_slots(node)
        if stored:
            self._left.append(slots)
        else:
            self._allocator.free(slots)
        if len(node.host):
            self._offer_host(node)
        else:
            self._lose(node)
        if not parent.locks and not parent.live:
            self._spare(parent)

    def _store(self, node: Node) -> bool:
        """Find host slots for a node's tokens, and note them for `_copy_out`. False: there is no room."""
        size = len(node.ids)
        if size > self.host.total or not self._make_host_room(size):
            return False
        node.host = self.host.allocate(size)
        self._leaving.append(node)
        self.stats.host_stored_tokens += size
        return True

    def _copy_out(self) -> None:
        if self._leaving:
            slots = np.concatenate(self._left)
            self._copies.copy_out(slots, np.concatenate([n.host for n in self._leaving]))
            self._allocator.free(slots)
            self._leaving.clear()
            self._left.clear()

    def _lose(self, node: Node) -> None:
        """Take a node without slots out of the tree, with all below it, which has none either."""
        self._copy_out()  # of what is below it, if that was stored a moment ago
        below = [node]
        for each in below:
            below.extend(each.children.values())
        for each in reversed(below):
            if len(each.host):
                self._free_host(each)
                self.stats.host_evicted_tokens += len(each.ids)
            self._remove(each)

    # -- room on the host ------------------------------------------------------------------------------------------

    def _make_host_room(self, k: int) -> bool:
        if self.host.free_count < k:
            self._copy_out()  # what is given up now may be what was stored a moment ago
        while self.host.free_count < k and self._host_heap:
            key, serial, node = heapq.heappop(self._host_heap)
            if node.host_serial != serial:
                continue  # offered again since
            node.host_serial = 0
            if not self._host_spare(node):
                continue
            if self._host_key(node) != key:
                self._offer_host(node)  # used since it was offered, or no longer a duplicate
                continue
            self._free_host(node)
            if not len(node.slots):
                parent = node.parent
                assert parent is not None
                self.stats.host_evicted_tokens += len(node.ids)
                self._remove(node)
                if not parent.locks and not parent.live:
                    self._spare(parent)
        return self.host.free_count >= k

    def _host_spare(self, node: Node) -> bool:
        """Whether a node's host copy may go: it has slots too, or nothing depends on it."""
        return len(node.host) > 0 and (len(node.slots) > 0 or not (node.locks or node.children))

    def _host_key(self, node: Node) -> tuple[bool, tuple[int, int]]:
        return not len(node.slots), self._rank(node)

    def _offer_host(self, node: Node) -> None:
        """Put a node whose host copy may go into the heap. It may be there already: its last entry is the valid one."""
        if not self._host_spare(node):
            return
        if len(self._host_heap) > 4 * self._nodes + 64:
            self._host_heap = [entry for entry in self._host_heap if entry[2].host_serial == entry[1]]
            heapq.heapify(self._host_heap)
        self._host_offers += 1
        node.host_serial = self._host_offers
        heapq.heappush(self._host_heap, (self._host_key(node), self._host_offers, node))

    def _free_host(self, node: Node) -> None:
        self.host.free(node.host)
        node.host = _EMPTY
        node.host_serial = 0

    def _spare(self, node: Node) -> None:
        super()._spare(node)
        if node.parent is not None and not len(node.slots):
            self._offer_host(node)

    def _split(self, node: Node, at: int) -> Node:
        upper = super()._split(node, at)
        self._offer_host(upper)
        return upper

    # -- the rest --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        hosted = [node for node in self.nodes() if len(node.host)]
        super().reset()
        for node in hosted:
            self._free_host(node)
        self._host_heap.clear()

    def figures(self) -> dict[str, Any]:
        return super().figures() | {
            "host_cached_tokens": self.host.total - self.host.free_count,
            "host_total_tokens": self.host.total,
        }

    def check(self) -> None:
        super().check()
        self.host.check()
        assert not self._leaving, "a host copy was not made"
        held = [node.host for node in self.nodes()]
        owned = np.concatenate([self.host.free_slots(), *held])
        assert len(owned) == self.host.total, f"{len(owned)} host slots accounted for, {self.host.total} exist"
        assert distinct(owned), "a host slot has two owners"
        latest = {serial: node for _, serial, node in self._host_heap}
        for node in self.nodes():
            if node.parent is not None and self._host_spare(node):
                assert latest.get(node.host_serial) is node, "a host copy that may go is not in the heap"

    def _check_copies(self, node: Node) -> None:
        assert len(node.slots) in (0, len(node.ids)) and len(node.host) in (0, len(node.ids)), "half a node"
        assert len(node.slots) or len(node.host), "a node that is nowhere"
        parent = node.parent
        assert parent is not None
        assert not len(node.slots) or parent.parent is None or len(parent.slots), "slots below a node without"
