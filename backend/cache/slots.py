"""KV slots: which are free. A slot is the index of one token's keys and values in the KV pool.

Slots are handed out in pages of P (the page size): slot = page * P + offset. A sequence keeps the token at position p
at offset p % P of one of its pages, so the pages of a sequence follow from its first slot in each. Whatever reads the
pool goes by slot and never sees a page.
"""

from __future__ import annotations

import numpy as np

from stemma.backend.core import Int32

MAX_PAGE = 256


def check_page_size(page_size: int) -> None:
    """Raises ValueError unless it is a power of two in [1, 256]."""
    whole = isinstance(page_size, int) and not isinstance(page_size, bool)
    if not (whole and 1 <= page_size <= MAX_PAGE and page_size & (page_size - 1) == 0):
        raise ValueError(f"page_size must be a power of two in [1, {MAX_PAGE}], got {page_size!r}")


def distinct(slots: Int32) -> bool:
    """Whether no slot is there twice. Linear, as slots are small numbers."""
    if not len(slots):
        return True
    seen = np.zeros(int(slots.max()) + 1, np.bool_)
    seen[slots] = True
    return int(np.count_nonzero(seen)) == len(slots)


class SlotAllocator:
    """A stack of free pages on the host. Page 0 is never handed out: runners use slot 0 for padding.

    All counts are in tokens and multiples of P. Of the `num_slots` slots of a pool, `total` can be in use: those of its
    whole pages but page 0 (with P = 1: num_slots - 1). Operations cost O(k).
    """

    def __init__(self, num_slots: int, page_size: int = 1) -> None:
        check_page_size(page_size)
        pages = num_slots // page_size - 1
        if pages < 1:
            raise ValueError(
                f"num_slots must be at least {2 * page_size} (slot 0 is padding"
                + (f", and takes a whole page of {page_size}" if page_size > 1 else "")
                + f"), got {num_slots}"
            )
        self.page_size = page_size
        self.total = pages * page_size
        self._stack = np.arange(pages, 0, -1, dtype=np.int32) * page_size  # the first slot of each free page
        self._free_pages = pages
        self.free_count = self.total
        self._within = np.arange(page_size, dtype=np.int32)

    def round_up(self, tokens: int) -> int:
        """The tokens of the pages that so many tokens take."""
        return -(-tokens // self.page_size) * self.page_size

    def needed(self, held: int, k: int) -> int:
        """Free tokens that k more take in a sequence of which `held` have slots: those of the new pages."""
        return self.round_up(held + k) - self.round_up(held)

    def room(self, held: int, free: int) -> int:
        """How many more tokens fit into a sequence of which `held` have slots when `free` tokens may be taken."""
        return self.round_up(held) - held + max(free, 0) // self.page_size * self.page_size

    def can_allocate(self, k: int) -> bool:
        return self.round_up(k) <= self.free_count

    def allocate(self, k: int) -> Int32:
        """k slots that nobody else holds, from the start of a page; the rest of the last page is theirs too.

        The caller has asked `can_allocate`; asking too much is an assertion.
        """
        size = self.page_size
        pages = -(-k // size)
        assert pages <= self._free_pages, f"asked for {k} slots, {self.free_count} are free"
        self._free_pages -= pages
        self.free_count -= pages * size
        first = self._stack[self._free_pages : self._free_pages + pages][::-1]
        if size == 1:
            return first.copy()
        return self._expand(first)[:k]

    def extend(self, held: int, last: int, k: int) -> Int32:
        """Slots for k more tokens of a sequence of which `held` have slots, the last of them `last`.

        What is left of its last page first, then new pages. `needed` says what this takes.
        """
        inside = min(-held % self.page_size, k)
        if not inside:
            return self.allocate(k)
        rest = np.arange(last + 1, last + 1 + inside, dtype=np.int32)
        return rest if inside == k else np.concatenate([rest, self.allocate(k - inside)])

    def extend_each(self, table: Int32, rows: Int32, held: Int32) -> Int32:
        """A slot for the next token of each row, of which table[row, :held] are the slots. See `extend`."""
        if self.page_size == 1:
            return self.allocate(len(rows))
        fresh = held & (self.page_size - 1) == 0
        slots = table[rows, held - 1] + 1
        new = int(np.count_nonzero(fresh))
        if new:
            slots[fresh] = self.allocate(new * self.page_size)[:: self.page_size]
        return slots

    def free(self, slots: Int32) -> None:
        """Give pages back: all slots of each page, or its first ones up to the last in use, page after page.

        The caller must hold them: freeing twice corrupts the pool (`check` finds it).
        """
        first = slots[:: self.page_size]
        k = len(first)
        assert self.free_count + k * self.page_size <= self.total, "more slots freed than exist"
        self._stack[self._free_pages : self._free_pages + k] = first
        self._free_pages += k
        self.free_count += k * self.page_size

    def whole(self, slots: Int32) -> Int32:
        """All slots of the pages of a sequence whose slots these are, from the start of a page."""
        return self._expand(slots[:: self.page_size])

    def _expand(self, first: Int32) -> Int32:
        return first if self.page_size == 1 else (first[:, None] + self._within).ravel()

    def check(self) -> None:
        """Raises AssertionError if a page is free twice or out of range."""
        free, size = self._stack[: self._free_pages], self.page_size
        assert self.free_count == self._free_pages * size, "the count of free slots is wrong"
        assert not (free % size).any(), "a free page does not begin at a multiple of the page size"
        assert distinct(free), "a slot is free twice"
        assert self._free_pages == 0 or (free.min() >= size and free.max() <= self.total), "a free slot is out of range"

    def free_slots(self) -> Int32:
        """Every free slot."""
        return self._expand(self._stack[: self._free_pages]).copy()
