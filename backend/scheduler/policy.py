"""The order of the waiting queue."""

from __future__ import annotations

from stemma.backend.cache.base import PrefixCache
from stemma.backend.scheduler.branch import Branch

MATCH_AT_MOST = 128  # with a longer queue, matching everything costs more than it gains
AGE_AFTER = 64  # places that a branch may be overtaken by younger ones


def order_waiting(waiting: list[Branch], policy: str, cache: PrefixCache) -> list[Branch]:
    """`fcfs`: as queued. `lpm`: longest cached prefix first, ties as queued; a branch overtaken too long goes first."""
    if policy == "fcfs" or len(waiting) < 2 or len(waiting) > MATCH_AT_MOST:
        return list(waiting)
    newest = max(b.serial for b in waiting)

    def key(item: tuple[int, Branch]) -> tuple[bool, int, int]:
        place, branch = item
        ids = branch.ids()
        fresh = newest - branch.serial < AGE_AFTER
        cached = cache.match(ids, len(ids), branch.program.namespace).length if fresh else 0
        return (fresh, -cached, place)

    return [branch for _, branch in sorted(enumerate(waiting), key=key)]
