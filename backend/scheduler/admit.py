"""Who gets a row and slots: admission from the waiting queue, retraction when memory runs out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.scheduler.branch import Branch, State
from stemma.backend.scheduler.policy import order_waiting

if TYPE_CHECKING:
    from stemma.backend.cache.base import PrefixCache
    from stemma.backend.cache.slots import SlotAllocator
    from stemma.backend.scheduler.rows import Rows

CLIP_NEW_TOKENS = 4096  # a generation reserves at most this much of its max_new_tokens
HEADROOM = 8  # slots for each running row that an admission must leave free, so that it is not retracted at once


class Memory:
    """Rows and slots, and the moves between them. Every slot is free, the cache's, or one row's (`check` proves it)."""

    def __init__(
        self, rows: Rows, slots: SlotAllocator, cache: PrefixCache, policy: str, conservativeness: float
    ) -> None:
        self.rows, self.slots, self.cache = rows, slots, cache
        self.policy, self.conservativeness = policy, conservativeness
        self.waiting: list[Branch] = []
        self.running: list[Branch] = []  # in order of admission
        self.changed = True  # the running set differs from the last plan's
        self.retractions = 0
        self.planned: set[int] = set()  # rows whose chunk is published already in the plan being built: not retractable
        self.leases: dict[int, Branch] = {}  # idle branches that pin a prefix, oldest first
        self.drafting = False  # rows with a grammar may have drafts: see `set_work`
        self.discarded = 0  # tokens run for nothing, as their row had ended or moved when their step was processed

    # -- slots -----------------------------------------------------------------------------------------------------

    def ensure(self, k: int) -> bool:
        """Make k slots free by eviction, then by breaking idle leases. Never touches a running row."""
        missing = k - self.slots.free_count
        if missing > 0:
            self.cache.evict(missing)
        while k > self.slots.free_count and self.leases:
            self.drop_lease(next(iter(self.leases.values())))
            self.cache.evict(k - self.slots.free_count)
        return k <= self.slots.free_count

    def hold_lease(self, branch: Branch) -> None:
        """An idle branch keeps its prefix pinned until it runs again, ends, or memory runs out."""
        if branch.handle is not None:
            self.leases[id(branch)] = branch

    def drop_lease(self, branch: Branch) -> None:
        self.leases.pop(id(branch), None)
        if branch.handle is not None and branch.row < 0:
            self.cache.unlock(branch.handle)
            branch.handle = None

    # -- rows ------------------------------------------------------------------------------------------------------

    def discard_ahead(self, branch: Branch) -> None:
        """What is launched for the row and not processed does not matter any more. Its slots are free at once: only
        steps that are launched later can get them. What was published is the cache's and will be right."""
        rows, row = self.rows, branch.row
        ahead, rows.drawing[row] = int(rows.ahead[row]), 0
        if not ahead:
            return
        computed = int(rows.computed[row])
        self.slots.free(rows.slots[row, max(computed, int(rows.tree_len[row])) : computed + ahead].copy())
        rows.ahead[row] = 0
        rows.epoch[row] += 1
        self.discarded += ahead

    def commit(self, branch: Branch) -> None:
        """Hand what the row has computed to the cache, so that others can match it."""
        rows, row = self.rows, branch.row
        n, owned_from = int(rows.computed[row]), int(rows.tree_len[row])
        if n <= owned_from:
            return
        ids = rows.ids[row, :n]
        already, handle = self.cache.insert(ids, rows.slots[row, :n], branch.program.namespace)
        if handle is None:
            return
        if already > owned_from:  # computed by others meanwhile: use theirs, free ours
            self.slots.free(rows.slots[row, owned_from:already].copy())
            rows.slots[row, :n] = self.cache.match(ids, n, branch.program.namespace).slots
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
        branch.handle = handle
        rows.tree_len[row] = n

    def truncate(self, branch: Branch, length: int) -> None:
        """Take ids back to `length` (a stop string ended inside a token). Gives up the row if the cache has them."""
        rows, row = self.rows, branch.row
        if row < 0:
            branch.set_ids(branch.ids(length).copy())
            return
        self.discard_ahead(branch)
        computed, owned_from = int(rows.computed[row]), int(rows.tree_len[row])
        keep = max(length, owned_from)
        if computed > keep:
            self.slots.free(rows.slots[row, keep:computed].copy())
        rows.computed[row] = min(computed, length)
        rows.length[row] = length
        if length < owned_from:
            ids = rows.ids[row, :length].copy()
            self._leave_row(branch)
            branch.set_ids(ids)
            if branch.handle is not None:
                self.cache.unlock(branch.handle)
                branch.handle = None

    def release(self, branch: Branch) -> None:
        """Give the row back. The computed prefix goes to the cache and stays pinned by the branch's handle."""
        rows, row = self.rows, branch.row
        self.discard_ahead(branch)
        self.commit(branch)
        n, owned_from = int(rows.computed[row]), int(rows.tree_len[row])
        if n > owned_from:
            self.slots.free(rows.slots[row, owned_from:n].copy())
        ids = rows.ids[row, : int(rows.length[row])].copy()
        self._leave_row(branch)
        branch.set_ids(ids)

    def account(self, branch: Branch) -> None:
        """Move the row's counters into the branch's work."""
        rows, row, work = self.rows, branch.row, branch.work
        if row < 0:
            return
        if work is not None:
            work.computed += int(rows.spent[row])
            if not work.t_first:
                work.t_first = float(rows.t_first[row])
        rows.spent[row] = 0
        rows.t_first[row] = 0.0

    def _leave_row(self, branch: Branch) -> None:
        self.account(branch)
        self.rows.give(branch.row)
        branch.row = -1
        self.running.remove(branch)
        self.changed = True

    def forget(self, branch: Branch) -> None:
        """Let go of everything a branch holds: row, queue place, pin."""
        if branch.row >= 0:
            self.release(branch)
        if branch.state is State.WAITING and branch in self.waiting:
            self.waiting.remove(branch)
        self.drop_lease(branch)
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
            branch.handle = None

    def retract(self, branch: Branch) -> None:
        """Send a running branch back to the queue; its computed prefix stays in the cache as evictable."""
        assert branch.work is not None
        self.release(branch)
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
            branch.handle = None
        branch.work.retractions += 1
        branch.state = State.WAITING
        self.retractions += 1
        self.waiting.insert(0, branch)

    def requeue(self, branch: Branch) -> None:
        """Send a running branch to the queue, to be admitted with what its work's `match_limit` says."""
        self.release(branch)
        self.queue(branch)

    def make_room(self, k: int, keep: Branch | None = None) -> bool:
        """`ensure`, retracting the youngest running branches if need be (never `keep`): the oldest always advances."""
        while not self.ensure(k):
            others = (b for b in self.running if b is not keep and b.row not in self.planned)
            victim = max(others, key=lambda b: b.serial, default=None)
            if victim is None or (keep is not None and victim.serial < keep.serial):
                return False
            self.retract(victim)
        return True

    # -- admission -------------------------------------------------------------------------------------------------

    def queue(self, branch: Branch) -> None:
        branch.state = State.WAITING
        self.waiting.append(branch)

    def ordered(self) -> list[Branch]:
        return order_waiting(self.waiting, self.policy, self.cache)

    def _reserved(self) -> int:
        """Slots that the running rows are expected to ask for."""
        if not self.running:
            return 0
        index = np.fromiter((b.row for b in self.running), np.int64, len(self.running))
        left = np.minimum(self.rows.limit[index] - self.rows.computed[index], CLIP_NEW_TOKENS)
        pending = self.rows.length[index] - self.rows.computed[index]
        return int(np.maximum(left * self.conservativeness, pending).sum())

    def match_limit(self, branch: Branch, length: int) -> int:
        """Most tokens that may come from the cache: logits of the last one are needed, unless nothing is sampled."""
        work = branch.work
        assert work is not None
        needs_logits = work.params is None or work.limit > work.prompt_len or work.logprobs is not None
        return min(length - 1 if needs_logits else length, work.match_limit)

    def admit(self, branch: Branch) -> bool:
        """Give a waiting branch a row with its cached prefix, if there is a row and room for it. No slots yet."""
        rows, work = self.rows, branch.work
        assert work is not None
        if not rows.free_count:
            return False
        ids = branch.ids()
        match = self.cache.match(ids, self.match_limit(branch, len(ids)), branch.program.namespace)
        handle = self.cache.lock(match)
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
            self.leases.pop(id(branch), None)
        branch.handle = handle
        extend = len(ids) - match.length
        expected = int(min(work.limit - len(ids), CLIP_NEW_TOKENS) * self.conservativeness)
        available = self.slots.free_count + self.cache.evictable
        need = extend + expected + self._reserved() + HEADROOM * len(self.running)
        if need > available and self.running:
            self.cache.unlock(handle)
            branch.handle = None
            return False
        self._enter_row(branch, ids, match.slots)
        if not work.admitted:
            work.admitted, work.cached, work.t_admit = True, match.length, time.perf_counter()
        return True

    def _enter_row(self, branch: Branch, ids: np.ndarray, cached_slots: np.ndarray) -> None:
        rows, work = self.rows, branch.work
        assert work is not None
        row = rows.take(branch)
        n, cached = len(ids), len(cached_slots)
        rows.ids[row, :n] = ids
        rows.slots[row, :cached] = cached_slots
        rows.length[row] = n
        rows.tree_len[row] = rows.computed[row] = cached
        branch.row = row
        self.set_work(branch)
        self.running.append(branch)
        branch.state = State.RUNNING
        self.changed = True

    def set_work(self, branch: Branch) -> None:
        """Write the row's sampling state for the branch's current work."""
        rows, row, work = self.rows, branch.row, branch.work
        assert work is not None
        rows.prompt_len[row], rows.limit[row] = work.prompt_len, work.limit
        rows.sample[row] = work.params is not None and work.limit > work.prompt_len and work.ending is None
        rows.set_sampling(row, work.params, work.seed)
        rows.waits[row] = work.matcher is not None and (self.drafting or work.logprobs is not None)
        rows.special[row] = work.params is not None and bool(
            work.matcher is not None
            or work.text is not None
            or work.stop_ids
            or work.logprobs is not None
            or work.params.min_new_tokens
            or work.params.logit_bias
        )
        self.changed = True

    def rematch(self, branch: Branch) -> None:
        """Before a prefill chunk: take over what others have computed meanwhile."""
        rows, row = self.rows, branch.row
        computed = int(rows.computed[row])
        if rows.tree_len[row] != computed or rows.ahead[row]:
            return
        ids = branch.ids()
        match = self.cache.match(ids, self.match_limit(branch, len(ids)), branch.program.namespace)
        if match.length <= computed:
            return
        handle = self.cache.lock(match)
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
        branch.handle = handle
        rows.slots[row, computed : match.length] = match.slots[computed:]
        rows.computed[row] = rows.tree_len[row] = match.length
        assert branch.work is not None
        branch.work.cached += match.length - computed

    def publish(self, branch: Branch, end: int) -> None:
        """At planning time, show the chunk up to `end` to the cache, so that rows of the same step may use its slots.

        KV is stored before attention in every layer, so a follower may read what its leader writes in the same step.
        """
        rows, row = self.rows, branch.row
        start = int(rows.computed[row] + rows.ahead[row])
        if rows.tree_len[row] != start:
            return
        already, handle = self.cache.insert(
            rows.ids[row, :end], rows.slots[row, :end], branch.program.namespace, expect=start
        )
        if already < 0:
            return
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
        branch.handle = handle
        rows.tree_len[row] = end

    # -- proof -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises AssertionError unless free + cached + in_use == total and no slot has two owners."""
        self.slots.check()
        self.cache.check()
        parts = [self.slots.free_slots(), self.cache.all_slots()]
        for branch in self.running:
            row = branch.row
            end = int(self.rows.computed[row] + self.rows.ahead[row])
            parts.append(self.rows.slots[row, int(self.rows.tree_len[row]) : end])
        owned = np.concatenate(parts)
        assert len(owned) == self.slots.total, f"{len(owned)} slots accounted for, {self.slots.total} exist"
        assert len(np.unique(owned)) == self.slots.total, "a slot has two owners"
        assert len(self.running) + self.rows.free_count == self.rows.max_rows
