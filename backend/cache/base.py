"""The contract of a prefix cache, and the cache that remembers nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stemma.backend.core import Int32

Namespace = tuple[Any, ...]  # typed fields (tenant, adapter, weight version), never a concatenated string


@dataclass(slots=True)
class Match:
    """The longest cached prefix found: `slots` of its `length` tokens. `node`/`offset` locate it for `lock`.

    Valid until the next insert or evict: lock it before either.
    """

    length: int
    slots: Int32
    node: Any
    offset: int


class PrefixCache(Protocol):
    """Who owns a slot: the allocator (free), the cache (inserted), or a row (allocated, not inserted).

    A handle is what `lock` and `insert` return; it pins the path from the root to it: pinned tokens are never evicted.
    Handles are counted: each lock needs one unlock. Take the new handle before giving the old one back.
    """

    def match(self, ids: Int32, limit: int, namespace: Namespace = ()) -> Match:
        """Longest cached prefix of ids[:limit]. Changes nothing but recency."""
        ...

    def lock(self, match: Match) -> Any: ...

    def unlock(self, handle: Any) -> None: ...

    def insert(self, ids: Int32, slots: Int32, namespace: Namespace = (), expect: int | None = None) -> tuple[int, Any]:
        """Hand ids' slots to the cache. Returns (already, handle); the handle is locked once and pins all of ids.

        slots[:already] were cached before: where they differ from the cache's own they stay with the caller, who frees
        them. slots[already:] belong to the cache from now on. With `expect`, nothing happens and (-1, None) is returned
        unless exactly `expect` tokens were cached before.
        """
        ...

    def evict(self, k: int) -> int:
        """Free at least k slots of unpinned tokens, least recently used first; returns how many were freed."""
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

    def match(self, ids: Int32, limit: int, namespace: Namespace = ()) -> Match:
        return Match(0, _EMPTY, None, 0)

    def lock(self, match: Match) -> Any:
        return None

    def unlock(self, handle: Any) -> None:
        return None

    def insert(self, ids: Int32, slots: Int32, namespace: Namespace = (), expect: int | None = None) -> tuple[int, Any]:
        return -1, None

    def own(self, handle: Any) -> int:
        return 0

    def joins(self, handle: Any) -> bool:
        return False

    def evict(self, k: int) -> int:
        return 0

    def reset(self) -> None:
        return None

    def all_slots(self) -> Int32:
        return _EMPTY

    def check(self) -> None:
        return None
