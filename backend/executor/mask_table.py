"""Interned grammar masks: distinct rows live on the device once, and a step sends row numbers.

Masks repeat: most states of most grammars allow one of a few hundred sets of tokens. A row of 200,000 tokens is 25 KB,
a row number is 4 bytes.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from stemma.backend.core import Bool, Int32, mask_words

BUDGET = 64 << 20  # bytes of rows on the device
MOST_ROWS = 4096
_FIRST_ROWS = 16  # the table grows from here, by doubling


@dataclass(slots=True)
class MaskTableStats:
    """Counts since the table was made. rows = by_identity + by_content + uploads."""

    rows: int = 0  # asked for
    by_identity: int = 0  # the very array was here before
    by_content: int = 0  # an equal one was
    uploads: int = 0  # new rows written to the device
    evictions: int = 0
    bytes_uploaded: int = 0  # new rows, and the row numbers of every step


class _Known(weakref.ref):
    """An array that was interned: its slot, and which of the slot's successive rows it is."""

    __slots__ = ("generation", "key", "slot")
    key: int
    slot: int
    generation: int


class MaskTable:
    """Up to `capacity` distinct rows; the least recently used goes when another needs its place.

    A row that cannot be written to is taken for final, as `grammar.base.Matcher.mask` promises, and found again by its
    identity; others, and arrays never seen, by their bytes. Rows of the last two calls are never evicted: a step may
    still be using them, so the table outgrows its capacity sooner. One thread at a time.
    """

    def __init__(self, vocab_size: int, device: torch.device, capacity: int | None = None) -> None:
        """capacity: rows; None is what fits into BUDGET, at most MOST_ROWS."""
        self.words = mask_words(vocab_size)
        self.capacity = capacity or max(1, min(MOST_ROWS, BUDGET // (4 * self.words)))
        self.device = device
        self.stats = MaskTableStats()
        self._tail = np.uint32((1 << (vocab_size % 32)) - 1 if vocab_size % 32 else 0xFFFF_FFFF).view(np.int32)
        self._call = 0
        self._known: dict[int, _Known] = {}
        self._by_digest: dict[int, list[int]] = {}
        self._used: OrderedDict[int, int] = OrderedDict()  # slot -> the call that used it last, oldest first
        self._digests: list[int] = []
        self._generations: list[int] = []
        self._host = np.empty((0, self.words), np.int32)
        self._empty: Bool = np.empty(0, np.bool_)
        self._resize(min(_FIRST_ROWS, self.capacity))

    @property
    def rows(self) -> Tensor:
        """int32 [R, words] on the device: what `row_ids` number. Replaced when the table grows."""
        return self._rows

    @property
    def held(self) -> int:
        """How many distinct rows there are now."""
        return len(self._used)

    def row_ids(self, masks: Sequence[Int32]) -> Int32:
        """The number of each mask int32[words] in `rows`; new ones are uploaded."""
        self._call += 1
        new: list[int] = []
        ids = np.array([self._find(mask, new) for mask in masks], np.int32)
        if new:
            self._upload(new)
        self.stats.rows += len(masks)
        self.stats.uploads += len(new)
        self.stats.bytes_uploaded += 4 * self.words * len(new) + 4 * len(masks)
        return ids

    def allows_nothing(self, ids: Int32) -> Bool:
        """Which of the rows forbid every token."""
        return self._empty[ids]

    def figures(self) -> dict[str, int]:
        """The statistics, JSON-ready, with the rows held now."""
        return {"mask_table_held": self.held} | {f"mask_table_{k}": v for k, v in asdict(self.stats).items()}

    # -- finding ---------------------------------------------------------------------------------------------------

    def _find(self, mask: Int32, new: list[int]) -> int:
        known = self._known.get(id(mask))
        if known is not None and known() is mask and self._generations[known.slot] == known.generation:
            self.stats.by_identity += 1
            slot = known.slot
        else:
            slot = self._find_equal(mask, new)
            if not mask.flags.writeable:
                self._remember(mask, slot)
        self._used[slot] = self._call
        self._used.move_to_end(slot)
        return slot

    def _find_equal(self, mask: Int32, new: list[int]) -> int:
        if mask.shape != (self.words,):
            raise ValueError(f"a mask of this model has {self.words} words, got an array of shape {mask.shape}")
        digest = hash(mask.tobytes())
        same = self._by_digest.setdefault(digest, [])
        for slot in same:
            if np.array_equal(self._host[slot], mask):
                self.stats.by_content += 1
                return slot
        slot = self._take_slot()
        self._by_digest.setdefault(digest, []).append(slot)  # taking a slot may have dropped the list
        self._digests[slot] = digest
        self._generations[slot] += 1
        self._host[slot] = mask
        self._empty[slot] = not mask[:-1].any() and not mask[-1] & self._tail
        new.append(slot)
        return slot

    def _remember(self, mask: Int32, slot: int) -> None:
        known = _Known(mask, self._forget)
        known.key, known.slot, known.generation = id(mask), slot, self._generations[slot]
        self._known[known.key] = known

    def _forget(self, known: _Known) -> None:
        """The array is gone; its address may become another's."""
        if self._known.get(known.key) is known:
            self._known.pop(known.key, None)

    # -- places ----------------------------------------------------------------------------------------------------

    def _take_slot(self) -> int:
        if len(self._used) == len(self._host):
            oldest, call = next(iter(self._used.items()), (-1, self._call))
            if len(self._host) >= self.capacity and call < self._call - 1:
                self._evict(oldest)
                return oldest
            double = 2 * len(self._host)
            self._resize(min(double, self.capacity) if len(self._host) < self.capacity else double)
        # slots are handed out in order, and an evicted one is taken at once
        return len(self._used)

    def _evict(self, slot: int) -> None:
        del self._used[slot]
        digest = self._digests[slot]
        same = self._by_digest[digest]
        same.remove(slot)
        if not same:
            del self._by_digest[digest]
        self.stats.evictions += 1

    def _resize(self, rows: int) -> None:
        old = len(self._host)
        host = torch.empty(rows, self.words, dtype=torch.int32, pin_memory=self.device.type == "cuda")
        mirror = host.numpy()
        mirror[:old] = self._host
        if self.device.type == "cpu":
            self._rows = host
        else:
            device_rows = torch.empty(rows, self.words, dtype=torch.int32, device=self.device)
            if old:
                device_rows[:old] = self._rows
            self._rows = device_rows
        self._pinned, self._host = host, mirror
        self._empty = np.concatenate([self._empty, np.zeros(rows - old, np.bool_)])
        self._digests += [0] * (rows - old)
        self._generations += [0] * (rows - old)

    def _upload(self, slots: list[int]) -> None:
        """Copy rows from the mirror to the device, neighbours at once. On CPU they are the same memory."""
        if self.device.type == "cpu":
            return
        slots = sorted(slots)
        first = 0
        for k in range(1, len(slots) + 1):
            if k == len(slots) or slots[k] != slots[k - 1] + 1:
                start, stop = slots[first], slots[k - 1] + 1
                self._rows[start:stop].copy_(self._pinned[start:stop], non_blocking=True)
                first = k
