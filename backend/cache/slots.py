"""KV slots: which are free. A slot is the index of one token's keys and values in the KV pool (page size 1)."""

from __future__ import annotations

import numpy as np

from stemma.backend.core import Int32


class SlotAllocator:
    """A stack of free slots on the host. Slot 0 is never handed out: runners use it for padding.

    `num_slots` counts slot 0, so `total = num_slots - 1` can be in use. Both operations cost O(k).
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots < 2:
            raise ValueError(f"num_slots must be at least 2 (slot 0 is padding), got {num_slots}")
        self.total = num_slots - 1
        self._stack = np.arange(num_slots - 1, 0, -1, dtype=np.int32)
        self.free_count = self.total

    def can_allocate(self, k: int) -> bool:
        return k <= self.free_count

    def allocate(self, k: int) -> Int32:
        """k slots that nobody else holds. The caller has asked `can_allocate`; asking too much is an assertion."""
        assert k <= self.free_count, f"asked for {k} slots, {self.free_count} are free"
        self.free_count -= k
        return self._stack[self.free_count : self.free_count + k][::-1].copy()

    def free(self, slots: Int32) -> None:
        """Give slots back. The caller must hold them: freeing twice corrupts the pool (`check` finds it)."""
        k = len(slots)
        assert self.free_count + k <= self.total, "more slots freed than exist"
        self._stack[self.free_count : self.free_count + k] = slots
        self.free_count += k

    def check(self) -> None:
        """Raises AssertionError if a slot is free twice or out of range."""
        free = self._stack[: self.free_count]
        assert len(np.unique(free)) == self.free_count, "a slot is free twice"
        assert self.free_count == 0 or (free.min() >= 1 and free.max() <= self.total), "a free slot is out of range"

    def free_slots(self) -> Int32:
        return self._stack[: self.free_count].copy()
