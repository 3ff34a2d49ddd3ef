"""A bounded map from text segments to their ids, least recently used out first."""

from __future__ import annotations

import threading
from collections import OrderedDict

Key = tuple[str, bool]

MAX_ENTRIES = 8192
MAX_CHARS = 4_000_000  # all keys together


class SegmentCache:
    """Bounded by entries and by characters; a segment longer than a quarter of the bound is not kept. Thread-safe."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_chars: int = MAX_CHARS) -> None:
        self._max_entries, self._max_chars = max_entries, max_chars
        self._entries: OrderedDict[Key, tuple[int, ...]] = OrderedDict()
        self._chars = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> tuple[int, ...] | None:
        with self._lock:
            ids = self._entries.get(key)
            if ids is not None:
                self._entries.move_to_end(key)
            return ids

    def put(self, key: Key, ids: tuple[int, ...]) -> None:
        size = len(key[0])
        if size > self._max_chars // 4:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = ids
            self._chars += size
            while len(self._entries) > self._max_entries or self._chars > self._max_chars:
                (text, _), _ = self._entries.popitem(last=False)
                self._chars -= len(text)
