"""The contract of a prefix cache, and the cache that remembers nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from stemma.backend.core import Int32

Namespace = tuple[Any, ...]  # typed fields (tenant, adapter, weight version), never a concatenated string


@dataclass(slots=True)
class Match:
    """The longest cached prefix found: `slots` of its `length` tokens. `node`/`offset` locate it for `lock`.

    Valid until the next insert or evict: lock it before either. `host` further tokens are in host memory, up to
    `host_offset` in `host_node` (see `tiered`).
    """

    length: int
    slots: Int32
    node: Any
    offset: int
    host: int = 0
    host_node: Any = None
    host_offset: int = 0


@dataclass(slots=True)
class CacheStats:
    """Counters since the start, in tokens. Probes (a `match` that nobody uses) are not counted."""

    lookup_tokens: int = 0  # of the sequences that asked for their prefix
    hit_tokens: int = 0  # of them, those that the cache had
    inserted_tokens: int = 0
    evicted_tokens: int = 0  # whose slots were given up (with a host tier they may live on there)
    host_stored_tokens: int = 0  # copied out to host memory
    host_hit_tokens: int = 0  # brought back; they are hits too
    host_loads: int = 0  # how often something was brought back
    host_evicted_tokens: int = 0  # lost from host memory

    def figures(self) -> dict[str, Any]:
        """JSON-ready, each name with `cache_` before it, and the share of looked-up tokens that were there."""
        rate = self.hit_tokens / self.lookup_tokens if self.lookup_tokens else 0.0
        return {f"cache_{name}": value for name, value in asdict(self).items()} | {"cache_hit_rate": round(rate, 4)}


class PrefixCache(Protocol):
    """Who owns a slot: the allocator (free), the cache (inserted), or a row (allocated, not inserted).

    All lengths in and out are multiples of the page size: only whole pages are cached, and what is past the last one of
    a sequence stays with its row. A handle is what `lock` and `insert` return; it pins the path from the root to it:
    pinned tokens are never evicted. Handles are counted: each lock needs one unlock. Take the new handle before giving
    the old one back.
    """

    stats: CacheStats

    def match(self, ids: Int32, limit: int, namespace: Namespace = ()) -> Match:
        """Longest cached prefix of ids[:limit]. Changes nothing but recency."""
        ...

    def lock(self, match: Match) -> Any: ...

    def unlock(self, handle: Any) -> None: ...

    def used(self, handle: Any, length: int, looked_up: int) -> None:
        """Say that a sequence, whose prefix of `looked_up` tokens was asked for, runs on the last `length` tokens that
        `handle` pins. This is what hit counts and statistics count; `match` and `lock` alone count nothing."""
        ...

    def insert(self, ids: Int32, slots: Int32, namespace: Namespace = (), expect: int | None = None) -> tuple[int, Any]:
        """Hand ids' slots to the cache. Returns (already, handle); the handle is locked once and pins all of ids.

        slots[:already] were cached before: where they differ from the cache's own they stay with the caller, who frees
        them. slots[already:] belong to the cache from now on. With `expect`, nothing happens and (-1, None) is returned
        unless exactly `expect` tokens were cached before. len(ids) is a multiple of the page size.
        """
        ...

    def evict(self, k: int) -> int:
        """Free at least k slots of unpinned tokens, in the order of its policy; returns how many were freed."""
        ...

    def load(self, match: Match, handle: Any, make_room: Callable[[int], bool]) -> tuple[Match, Any]:
        """Bring a locked match's `host` tokens back, if that is worth it and `make_room(k)` can free k slots for them.

        Returns the longer match and its handle, which takes the place of the given one; or both as they were. It brings
        back all or nothing.
        """
        ...

    def reset(self) -> None:
        """Forget everything and free its slots. Only when nothing is pinned."""
        ...

    def own(self, handle: Any) -> int:
        """Tokens that this handle alone pins."""
        ...

    def joins(self, handle: Any) -> bool:
        """Whether some token is pinned by this handle and exactly one other."""
        ...

    @property
    def evictable(self) -> int:
        """Tokens that `evict` could free."""
        ...

    @property
    def size(self) -> int:
        """Tokens cached."""
        ...

    def figures(self) -> dict[str, Any]:
        """Counters and sizes, JSON-ready."""
        ...

    def all_slots(self) -> Int32:
        """Every slot that the cache owns (for integrity checks)."""
        ...

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        ...


_EMPTY = np.empty(0, np.int32)


class NoCache:
    """Remembers nothing: every prompt is computed in full, every slot stays with its row."""

    evictable = 0
    size = 0

    def __init__(self) -> None:
        self.stats = CacheStats()

    def match(self, ids: Int32, limit: int, namespace: Namespace = ()) -> Match:
        return Match(0, _EMPTY, None, 0)

    def lock(self, match: Match) -> Any:
        return None

    def unlock(self, handle: Any) -> None:
        return None

    def used(self, handle: Any, length: int, looked_up: int) -> None:
        self.stats.lookup_tokens += looked_up

    def insert(self, ids: Int32, slots: Int32, namespace: Namespace = (), expect: int | None = None) -> tuple[int, Any]:
        return -1, None

    def own(self, handle: Any) -> int:
        return 0

    def joins(self, handle: Any) -> bool:
        return False

    def evict(self, k: int) -> int:
        return 0

    def load(self, match: Match, handle: Any, make_room: Callable[[int], bool]) -> tuple[Match, Any]:
        return match, handle

    def reset(self) -> None:
        return None

    def figures(self) -> dict[str, Any]:
        return self.stats.figures()

    def all_slots(self) -> Int32:
        return _EMPTY

    def check(self) -> None:
        return None
