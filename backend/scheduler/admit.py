"""Who gets a row and slots: admission from the waiting queue, retraction when memory runs out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.cache.slots import distinct
from stemma.backend.scheduler.admission import Admission, choose_victim
from stemma.backend.scheduler.branch import Branch, State
from stemma.backend.scheduler.policy import WaitingQueue

if TYPE_CHECKING:
    from stemma.backend.cache.base import PrefixCache
    from stemma.backend.cache.slots import SlotAllocator
    from stemma.backend.scheduler.rows import Rows
    from stemma.backend.scheduler.tools import Clock


class Memory:
    """Rows and slots, and the moves between them. Every slot is free, the cache's, or one row's (`check` proves it)."""

    def __init__(
        self,
        rows: Rows,
        slots: SlotAllocator,
        cache: PrefixCache,
        policy: str,
        conservativeness: float,
        clock: Clock,
        *,
        radix: bool = True,
        seed: int = 0,
    ) -> None:
        self.rows, self.slots, self.cache = rows, slots, cache
        self.clock = clock
        self.admission = Admission(rows, slots, cache, conservativeness)
        self.waiting = WaitingQueue(policy, cache, self.match_limit, seed, radix)
        self.running: list[Branch] = []  # in order of admission
        self.changed = True  # the running set differs from the last plan's
        self.retractions = 0
        self.full = False  # the head of the queue did not fit; nothing has been given back since
        self.held_back = False  # a row was retracted; none has ended since
        self.planned: set[int] = set()  # rows whose chunk is published already in the plan being built: not retractable
        self.following: dict[int, Branch] = {}  # waiting, out of the queue: the step in flight draws their next token
        self.leases: dict[int, Branch] = {}  # idle branches that pin a prefix, oldest first
        self.reserved = 0  # free tokens that the decode rows of the step being built take
        self.drafting = "off"  # the mode of the drafter: see `set_work`
        self.discarded = 0  # tokens run for nothing, as their row had ended or moved when their step was processed

    # -- slots -----------------------------------------------------------------------------------------------------

    def ensure(self, k: int) -> bool:
        """Make k slots free by eviction, then by breaking idle leases. Never touches a running row."""
        missing = k - self.slots.free_count
        if missing > 0:
            self.cache.evict(missing)
        while k > self.slots.free_count and self.break_lease():
            self.cache.evict(k - self.slots.free_count)
        return k <= self.slots.free_count

    def break_lease(self) -> bool:
        """End the oldest lease, those of branches that expect forks last. False if there is none."""
        branch = next((b for b in self.leases.values() if not b.expects), None) or next(
            iter(self.leases.values()), None
        )
        if branch is not None:
            self.drop_lease(branch)
        return branch is not None

    def hold_lease(self, branch: Branch) -> None:
        """An idle branch keeps its prefix pinned until it runs again, ends, or memory runs out."""
        if branch.handle is not None:
            self.leases[id(branch)] = branch

    def drop_lease(self, branch: Branch) -> None:
        self.leases.pop(id(branch), None)
        if branch.handle is not None and branch.row < 0:
            self.cache.unlock(branch.handle)
            branch.handle = None
            self.full = False

    # -- rows ------------------------------------------------------------------------------------------------------

    def discard_ahead(self, branch: Branch) -> None:
        """What is launched for the row and not processed does not matter any more. Its slots are free at once: only
        steps that are launched later can get them. What was published is the cache's and will be right."""
        rows, row = self.rows, branch.row
        ahead, rows.drawing[row] = int(rows.ahead[row]), 0
        if not ahead:
            return
        end = int(rows.computed[row]) + ahead
        first = self.slots.round_up(max(end - ahead, int(rows.tree_len[row])))  # the rest of a page stays with the row
        if first < end:
            self.slots.free(rows.slots[row, first:end].copy())
        rows.ahead[row] = 0
        rows.epoch[row] += 1
        self.discarded += ahead

    def commit(self, branch: Branch) -> None:
        """Hand what the row has computed to the cache, so that others can match it."""
        rows, row = self.rows, branch.row
        n, owned_from = int(rows.computed[row]), int(rows.tree_len[row])
        n -= n % self.slots.page_size
        if n <= owned_from:
            return
        ids = rows.ids[row, :n]
        already, handle = self.cache.insert(ids, rows.slots[row, :n], branch.program.namespace)
        if handle is None:
            return
        if already > owned_from:  # computed by others meanwhile: use theirs, free ours
            self.slots.free(rows.slots[row, owned_from:already].copy())
            rows.slots[row, :n] = self.cache.match(ids, n, branch.program.namespace).slots
            self.changed = True  # a runner may have kept the row's slots
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
        self.shrink(row, max(length, owned_from))
        rows.computed[row] = min(computed, length)
        rows.length[row] = length
        if length < owned_from:
            ids = rows.ids[row, :length].copy()
            self._leave_row(branch)
            branch.set_ids(ids)
            if branch.handle is not None:
                self.cache.unlock(branch.handle)
                branch.handle = None

    def shrink(self, row: int, keep: int) -> None:
        """Free the row's slots behind its first `keep` tokens, of which the cache may have none."""
        computed = int(self.rows.computed[row])
        if computed > keep:
            self.free_behind(row, keep, computed)
            self.rows.computed[row] = keep

    def free_behind(self, row: int, keep: int, end: int) -> None:
        """Free the pages of the row's tokens [keep, end) but the one that it goes on in."""
        first = self.slots.round_up(keep)
        if first < end:
            self.slots.free(self.rows.slots[row, first:end].copy())

    def growth(self, index: np.ndarray) -> int:
        """Free tokens that one more token for each of these rows takes."""
        size = self.slots.page_size
        if size == 1:
            return len(index)
        ends = self.rows.computed[index] + self.rows.ahead[index]
        return size * int(np.count_nonzero(ends & (size - 1) == 0))

    def release(self, branch: Branch) -> None:
        """Give the row back. The computed prefix goes to the cache and stays pinned by the branch's handle."""
        rows, row = self.rows, branch.row
        self.discard_ahead(branch)
        self.commit(branch)
        self.shrink(row, int(rows.tree_len[row]))
        ids = rows.ids[row, : int(rows.length[row])].copy()
        self._leave_row(branch)
        branch.set_ids(ids)

    def account(self, branch: Branch) -> None:
        """Move the row's counters into the branch's work."""
        rows, row, work = self.rows, branch.row, branch.work
        if row < 0:
            return
        branch.program.attained += int(rows.spent[row])
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
        self.full = self.held_back = False
        self.admission.stale = True

    def forget(self, branch: Branch) -> None:
        """Let go of everything a branch holds: row, queue place, pin."""
        if branch.row >= 0:
            self.release(branch)
        if branch in self.waiting:
            self.waiting.remove(branch)
        self.drop_lease(branch)
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
            branch.handle = None
        self._claim(branch)

    def _claim(self, branch: Branch) -> None:
        """The branch needs its parent's pin no longer; the last expected fork of an ended parent ends it."""
        parent = branch.parent
        if branch.claims and parent is not None:
            branch.claims = False
            parent.expects -= 1
            if not parent.expects and parent.settled and parent.ended:
                self.drop_lease(parent)

    def retract(self, branch: Branch) -> None:
        """Send a running branch back to the queue; its computed prefix stays in the cache as evictable."""
        assert branch.work is not None
        self.release(branch)
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
            branch.handle = None
        branch.work.retractions += 1
        self.retractions += 1
        self.queue(branch)
        self.held_back = True

    def requeue(self, branch: Branch) -> None:
        """Send a running branch to the queue, to be admitted with what its work's `match_limit` says."""
        self.release(branch)
        self.hold_lease(branch)
        self.queue(branch)

    def make_room(self, k: int, keep: Branch | None = None) -> bool:
        """`ensure`, retracting running branches that are junior to `keep` (None: to the senior one) if need be."""
        while not self.ensure(k):
            victim = choose_victim(self.admission, self.running, keep, self.planned)
            if victim is None:
                return False
            self.retract(victim)
        return True

    # -- admission -------------------------------------------------------------------------------------------------

    def queue(self, branch: Branch) -> None:
        branch.state = State.WAITING
        self.waiting.add(branch)
        self.full = False

    def follow(self, branch: Branch) -> int:
        """Take a branch out of the queue while a step draws its next token; returns the key to name it by."""
        self.waiting.remove(branch)
        self.following[branch.serial] = branch
        return branch.serial

    def followed(self, key: int) -> Branch | None:
        """The branch of a key, neither queued nor following any more; None if it ended meanwhile."""
        branch = self.following.pop(key, None)
        return branch if branch is not None and branch.state is State.WAITING else None

    def resume(self, branches: list[Branch]) -> None:
        """Put branches that followed back where they were in the queue."""
        for branch in branches:
            self.waiting.add(branch)

    def match_limit(self, branch: Branch, length: int) -> int:
        """Most tokens that may come from the cache: logits of the last one are needed, unless nothing is sampled."""
        work = branch.work
        assert work is not None
        needs_logits = work.params is None or work.limit > work.prompt_len or work.logprobs is not None
        return min(length - 1 if needs_logits else length, work.match_limit)

    def admit(self, branch: Branch, most: int = 1 << 30, first: bool = True) -> bool:
        """Give a waiting branch a row with its cached prefix, if there is a row and room for it. No slots yet.

        Unless it is the `first`, no more than `most` of its tokens may have to be computed.

        After a retraction nobody is admitted until a row has ended: so there are no more retractions than admissions,
        and no more admissions without a row that ends than there are rows.
        """
        work = branch.work
        assert work is not None
        if not self.rows.free_count or (self.held_back and self.running):
            return False
        ids = branch.ids()
        match = self.cache.match(ids, self.match_limit(branch, len(ids)), branch.program.namespace)
        handle = self.cache.lock(match)
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
            self.leases.pop(id(branch), None)
        branch.handle = handle
        missing = len(ids) - match.length
        if missing > most and not first:
            self.cache.unlock(handle)
            branch.handle = None
            return False
        extend = self.slots.needed(match.length, missing)
        while self.running and not self.admission.fits(branch, work, extend, self.running):
            if not self.break_lease():
                self.cache.unlock(handle)
                branch.handle = None
                self.full = True
                return False
        found = match.length
        match, branch.handle = self.cache.load(match, handle, lambda k: self.ensure(k + self.reserved))
        if not self.running or match.length != found:
            self.admission.stale = True
        self._enter_row(branch, ids, match.slots)
        self._claim(branch)
        if not work.admitted:
            work.admitted, work.cached, work.t_admit = True, match.length, self.clock()
            self.cache.used(branch.handle, match.length, len(ids))
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
        rows.expected[row], rows.most[row] = self.admission.expect(branch, work)
        rows.sample[row] = work.params is not None and work.limit > work.prompt_len and work.ending is None
        rows.set_sampling(row, work.params, work.seed)
        constrained = work.matcher is not None
        drafted = (self.drafting == "forced" and constrained) or self.drafting in ("ngram", "auto")
        rows.waits[row] = drafted or (constrained and work.logprobs is not None)
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
        computed, owned_from = int(rows.computed[row]), int(rows.tree_len[row])
        if owned_from + self.slots.page_size <= computed or rows.ahead[row]:
            return
        ids = branch.ids()
        match = self.cache.match(ids, self.match_limit(branch, len(ids)), branch.program.namespace)
        if match.length <= computed:
            return
        handle = self.cache.lock(match)
        if branch.handle is not None:
            self.cache.unlock(branch.handle)
        branch.handle = handle
        self.shrink(row, owned_from)
        rows.slots[row, owned_from : match.length] = match.slots[owned_from:]
        rows.computed[row] = rows.tree_len[row] = match.length
        assert branch.work is not None
        branch.work.cached += match.length - computed
        self.cache.used(handle, match.length - computed, 0)

    def publish(self, branch: Branch, end: int) -> None:
        """At planning time, show the chunk up to `end` to the cache, so that rows of the same step may use its slots.

        KV is stored before attention in every layer, so a follower may read what its leader writes in the same step.
        """
        rows, row, size = self.rows, branch.row, self.slots.page_size
        start = int(rows.computed[row] + rows.ahead[row])
        start, end = start - start % size, end - end % size
        if rows.tree_len[row] != start or end == start:
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
        """Raises AssertionError unless free + cached + in_use == total and no slot has two owners.

        All in tokens of whole pages: in use are the pages in which a row has computed tokens that are not the cache's.
        """
        size = self.slots.page_size
        self.slots.check()
        self.cache.check()
        parts = [self.slots.free_slots(), self.cache.all_slots()]
        for branch in self.running:
            row = branch.row
            end = int(self.rows.computed[row] + self.rows.ahead[row])
            own = self.rows.slots[row, int(self.rows.tree_len[row]) : end]
            parts.append(self.slots.whole(own))
            assert not len(own) or (own == parts[-1][: len(own)]).all(), "a row's page is torn"
            assert self.rows.tree_len[row] % size == 0, "a row shares a part of a page"
        owned = np.concatenate(parts)
        assert len(owned) == self.slots.total, f"{len(owned)} slots accounted for, {self.slots.total} exist"
        assert distinct(owned), "a slot has two owners"
        assert len(self.running) + self.rows.free_count == self.rows.max_rows
