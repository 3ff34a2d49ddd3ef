"""From the running rows to one step: how many tokens each row is extended by, in which slots, in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import (
    NO_RELAY,
    Bool,
    Follower,
    Group,
    Int32,
    Int64,
    LogprobRequest,
    Plan,
    SamplingArrays,
    Segment,
    Verify,
)
from stemma.backend.scheduler.branch import Branch, State, Work
from stemma.backend.scheduler.families import arrange
from stemma.backend.scheduler.masking import Masker, Wanted
from stemma.backend.scheduler.writers import Writers

if TYPE_CHECKING:
    from stemma.backend.scheduler.admit import Memory
    from stemma.backend.scheduler.drafts import Drafter

PASS_AT_MOST = 64  # waiting branches that are passed over in one step, because a row writes their prefix
Extend = tuple[Branch, int, int]  # a row that is extended by that many tokens, of which so many are a draft


class Planner:
    """Builds plans. A steady decode batch reuses what does not change (order, sampling arrays, groups)."""

    def __init__(
        self,
        memory: Memory,
        chunk: int,
        masker: Masker,
        drafter: Drafter,
        *,
        overlap: bool = False,
        max_prefill: int = 16384,
        same_step_sharing: bool = True,
        mixed_chunk: bool = True,
    ) -> None:
        self.memory, self.chunk, self.masker, self.drafter = memory, chunk, masker, drafter
        self.follow = False  # whether the runner draws for followers, and the cache gives them their prompt
        self.overlap, self.max_prefill, self.mixed_chunk = overlap, max_prefill, mixed_chunk
        self.writers = None if same_step_sharing else Writers(memory)
        self.step = 0
        self.starved = False  # the last plan lacks rows for want of memory that the step in flight may give back
        self.epochs: Int64 = np.empty(0, np.int64)  # of the last plan's rows, with `overlap`
        self._in_flight = False  # the plan before this one is launched and not processed
        self._same = False  # all running rows decode, as in the last plan
        self._longer: list[Branch] = []  # running rows with more than one token to run
        self._rows: Int32 = np.empty(0, np.int32)
        self._sampling: SamplingArrays | None = None
        self._groups: list[Group] = []
        self._segments: list[Segment] = []
        self._decode_only = False
        self._special: list[tuple[int, Branch]] = []
        self._wanted: list[Wanted] | None = None  # the masks of every step while nothing changes, if known

    def build(self, in_flight: bool = False) -> Plan | None:
        """The next step, or None when nothing can run. May admit, evict and retract.

        in_flight: the last plan is launched and not processed (`overlap`). Then nothing is retracted, rows whose next
        tokens depend on its results are left out, and None may mean that there is nothing to do before it is processed.
        """
        memory = self.memory
        self.settled, self.starved, self._in_flight = [], False, in_flight
        if not memory.running and not memory.waiting:
            return None
        extends: list[Extend] = []
        self._followers: list[tuple[Branch, Branch]] = []  # (the row, who draws behind its prompt too)
        memory.planned.clear()
        decodes = self._grow_decodes()
        if self.starved:
            return None
        budget = self.chunk
        if self.writers is not None:
            self.writers.commit()
        if self.drafter.active:
            budget -= self._extend_drafted(decodes, budget, extends)
        prefills = len(extends)
        for branch in self._longer:
            if budget <= 0:
                break
            if branch.row >= 0:  # not retracted by one before it
                memory.rematch(branch)
                budget -= self._extend(branch, budget, extends)
        if memory.waiting and budget > 0:
            self._admit(budget, extends)
        if not self.mixed_chunk and len(extends) > prefills:
            decodes = []
        if extends or memory.changed:
            decodes = [b for b in decodes if b.row >= 0]
        if not extends and not decodes:
            return None
        return self._fill(decodes, extends)

    # -- choosing --------------------------------------------------------------------------------------------------

    def _admit(self, budget: int, extends: list[Extend]) -> None:
        """Give rows to the queue's first, as far as the budget of tokens, rows and memory go."""
        memory, waiting, writers = self.memory, self.memory.waiting, self.writers
        memory.admission.stale = True
        waiting.new_step()
        room = self.max_prefill
        passed = 0
        while budget > 0 and memory.rows.free_count and not memory.full and (branch := waiting.head()) is not None:
            if writers is not None and waiting.policy != "fcfs" and writers.write_for(branch):
                waiting.set_aside(branch)
                passed += 1
                if passed == PASS_AT_MOST:
                    break
                continue
            if not memory.admit(branch, room, first=room == self.max_prefill):
                break
            waiting.admitted(branch)
            room -= branch.length - int(memory.rows.computed[branch.row])
            budget -= self._extend(branch, budget, extends)
        if passed:
            waiting.restore()

    def _grow_decodes(self) -> list[Branch]:
        """The rows with exactly one pending token, after making room for that token."""
        memory = self.memory
        while True:
            running = memory.running
            self._same, self._longer, self.memory.reserved = False, [], 0
            if not running:
                return []
            same = not memory.changed and self._decode_only and len(self._rows) == len(running)
            if same and (self._pending(self._rows) == 1).all():
                self.memory.reserved = memory.growth(self._rows)
                if memory.ensure(self.memory.reserved):
                    self._same = True
                    return list(running)  # a copy: admission will append to the running list
            index = np.fromiter((b.row for b in running), np.int64, len(running))
            pending = self._pending(index)
            counts = pending.tolist()
            decodes = [b for b, p in zip(running, counts, strict=True) if p == 1]
            self._longer = [b for b, p in zip(running, counts, strict=True) if p > 1]
            self.memory.reserved = memory.growth(index[pending == 1])
            if memory.ensure(self.memory.reserved):
                return decodes
            if self._in_flight:
                self.starved = True
                return []
            if not memory.make_room(self.memory.reserved):
                memory.retract(running[-1])

    def _pending(self, index: Int32 | Int64) -> Int32:
        """How many tokens of each row a step may run now: those known, or the one that the step in flight draws. Not
        that one if it is the row's last, or if what follows it is only known with it."""
        rows = self.memory.rows
        length = rows.length[index]
        if not self._in_flight:
            return length - rows.computed[index]
        drawing = rows.drawing[index]
        length += drawing
        pending = length - rows.computed[index] - rows.ahead[index]
        pending[(drawing > 0) & ((length >= rows.limit[index]) | rows.waits[index])] = 0
        return pending

    def _extend_drafted(self, decodes: list[Branch], budget: int, extends: list[Extend]) -> int:
        """Move rows that have a draft from `decodes` to `extends`. Returns how many tokens they are extended by."""
        memory, used = self.memory, 0
        drafted: set[Branch] = set()
        for branch in self.drafter.choose(decodes):
            work = branch.work
            assert work is not None
            # room for all rows and the draft: verifying it sends nobody back to the queue
            held, most = int(memory.rows.computed[branch.row]), 1 + len(work.draft)
            if budget - used > 1 and memory.ensure(self.memory.reserved + memory.slots.needed(held, most)):
                drafted.add(branch)
                used += self._extend(branch, budget - used, extends, proposed=True)
        if drafted:
            decodes[:] = [b for b in decodes if b not in drafted]
        return used

    def _extend(self, branch: Branch, budget: int, extends: list[Extend], proposed: bool = False) -> int:
        """Give a row slots for up to `budget` pending tokens, and show them to the cache. Returns how many."""
        memory, rows, row = self.memory, self.memory.rows, branch.row
        start, length = int(rows.computed[row] + rows.ahead[row]), int(rows.length[row])
        n = min(length - start, budget)
        if n <= 0:
            self.settled.append(branch)
            return 0
        slots, reserve = memory.slots, self.memory.reserved  # the decode rows chosen for this step come after
        needed = slots.needed(start, n) + reserve
        if self._in_flight and not memory.ensure(needed):
            self.starved = True  # nobody is retracted while results are awaited
            n = min(n, slots.room(start, slots.free_count - reserve))
            if n <= 0:
                return 0
        elif not memory.make_room(needed, keep=branch):
            memory.ensure(slots.needed(start, n))
            n = min(n, slots.room(start, slots.free_count - (reserve if len(memory.running) > 1 else 0)))
            if n <= 0:
                memory.retract(branch)
                return 0
        work = branch.work
        assert work is not None
        draft = 0
        if start + n == length:
            if not proposed:
                self.drafter.after_prompt(branch)
            draft = self._draft(work, budget - n, start, n) if work.draft else 0
        rows.ids[row, length : length + draft] = work.draft[:draft]
        rows.slots[row, start : start + n + draft] = slots.extend(start, int(rows.slots[row, start - 1]), n + draft)
        if start + n <= max(work.fixed_len, work.limit if work.params is None else 0):
            if self.writers is None:
                memory.publish(branch, start + n)
            else:
                self.writers.add(branch, start + n)
        memory.planned.add(row)
        extends.append((branch, n + draft, draft))
        if self.follow and start + n == length and rows.sample[row]:
            self._gather(branch, work)
        return n + draft

    def _gather(self, leader: Branch, work: Work) -> None:
        """Let the waiting siblings that have the same prompt as a row draw behind it: they need no row for that.

        Only where nothing stands between the fork and the generation, so that a fork with texts costs no comparisons.
        """
        ids = leader.ids()
        if work.node or leader.parent is None or len(ids) != work.fixed_len:
            return
        for sibling in leader.parent.children:
            other = sibling.work
            if (
                sibling.state is State.WAITING
                and sibling.at == leader.at
                and other is not None
                and not other.node
                and sibling.serial not in self.memory.following
                and other.params is not None
                and other.prompt_len < other.limit
                and other.ending is None
                and other.fixed_len == len(ids)
                and other.match_limit >= len(ids)  # no log-probabilities of the prompt
                and (other.logprobs is None or other.matcher is None)  # forced tokens would have to be run first
                and np.array_equal(sibling.ids(), ids)
            ):
                self.memory.follow(sibling)
                self._followers.append((leader, sibling))

    def _draft(self, work: Work, budget: int, start: int, n: int) -> int:
        """How much of the draft is verified in this step: nothing is retracted for it."""
        memory, draft = self.memory, min(len(work.draft), budget)
        return draft if draft > 0 and memory.ensure(memory.slots.needed(start, n + draft) + self.memory.reserved) else 0

    # -- filling ---------------------------------------------------------------------------------------------------

    def _fill(self, decodes: list[Branch], extends: list[Extend]) -> Plan:
        memory, rows = self.memory, self.memory.rows
        self.step += 1
        steady = self._same and not extends and not memory.changed
        entries: list[Extend] = []
        if not steady:
            entries = self._arrange([(b, 1, 0) for b in decodes], extends)
            following = [b for _, b in self._followers]
            branches = [b for b, *_ in entries]
            self._rows = np.array([b.row for b in branches], np.int32)
            self._sampling = rows.sampling(self._rows, [b.work for b in following if b.work is not None])
            branches += following
            self._sampling.bias = [
                (i, b.work.params.logit_bias)
                for i, b in enumerate(branches)
                if b.work is not None and b.work.params is not None and b.work.params.logit_bias
            ]
            self._special = [
                (i, b)
                for i, b in enumerate(branches)
                if b.work is not None
                and (
                    b.work.matcher is not None
                    or b.work.logprobs is not None
                    or b.work.score_from >= 0
                    or (b.work.params is not None and b.work.params.min_new_tokens > 0)
                )
            ]
            self._decode_only = not extends
            memory.changed = False
        assert self._sampling is not None
        index = self._rows
        d = len(decodes)
        start, length = rows.computed[index], rows.length[index]
        if self._in_flight:
            start += rows.ahead[index]
            length += rows.drawing[index]
        if d:
            head = np.array([b.row for b in decodes], np.int32) if extends else index
            ends = rows.computed[head] + rows.ahead[head]
            rows.slots[head, ends] = memory.slots.extend_each(rows.slots, head, ends)
        if extends:
            n = np.array([k for _, k, _ in entries], np.int32)
            draft = np.array([k for _, _, k in entries], np.int32)
            offsets = np.zeros(len(index) + 1, np.int32)
            np.cumsum(n, out=offsets[1:])
            owner = np.repeat(np.arange(len(index)), n)
            positions = (np.arange(offsets[-1], dtype=np.int32) - offsets[owner] + start[owner]).astype(np.int32)
            flat = index[owner]
            sample = rows.sample[index] & (start + n - draft == length)
        else:
            n = np.ones(d, np.int32)
            offsets = np.arange(d + 1, dtype=np.int32)
            positions, flat = start, index
            sample = rows.sample[index]
        masks: list[Wanted] = []
        wants: list[LogprobRequest] = []
        if not steady:
            self._wanted = None
        verify = [self._verify(i, branch, drafted) for i, (branch, _, drafted) in enumerate(entries) if drafted]
        if steady and self._wanted is not None:
            masks = self._wanted
        else:
            for i, branch in self._special:
                if i < len(index):
                    known = int(length[i])
                    self._special_row(i, branch, int(start[i]), int(n[i]), known, bool(sample[i]), masks, wants)
                else:
                    self._special_row(i, branch, branch.length, 0, branch.length, True, masks, wants)
            if steady and self._only_masks():
                self._wanted = masks
        ids = rows.ids[flat, positions]
        relay_to, relay_from, late = NO_RELAY, NO_RELAY, False
        if self._in_flight and len(relayed := np.flatnonzero(rows.drawing[index])):  # such rows have one token each
            relay_to, relay_from = offsets[relayed], rows.place[index[relayed]]
            ids[relay_to] = -1
            late = self._sampling.any_penalty or any(
                w.work.matcher is not None and w.index < len(index) and rows.drawing[index[w.index]] > 0 for w in masks
            )
        if self.overlap:
            self._launching(index, n, sample, verify)
            if not steady:
                rows.place[index] = np.arange(len(index), dtype=np.int32)
        return Plan(
            step=self.step,
            rows=index,
            start=start,
            n=n,
            offsets=offsets,
            ids=ids,
            positions=positions,
            out_slots=rows.slots[flat, positions],
            sample=sample,
            slot_table=rows.slots,
            id_table=rows.ids,
            sampling=self._sampling,
            masks=self.masker.step(masks) if masks else (),
            logprobs=wants,
            groups=self._groups,
            verify=verify,
            segments=self._segments,
            followers=self._name_followers(entries, offsets),
            relay_to=relay_to,
            relay_from=relay_from,
            late=late,
        )

    def _name_followers(self, entries: list[Extend], offsets: Int32) -> list[Follower]:
        """The draws for waiting siblings, each at the last token of its leader's prompt."""
        if not self._followers:
            return []
        place = {branch: (i, drafted) for i, (branch, _, drafted) in enumerate(entries)}
        out: list[Follower] = []
        for leader, sibling in self._followers:
            i, drafted = place[leader]
            out.append(Follower(i, int(offsets[i + 1]) - 1 - drafted, sibling.serial))
        return out

    def _only_masks(self) -> bool:
        """All that the special rows want is the mask of their next token, in every step until something changes."""
        return all(
            b.work is not None
            and b.work.params is not None
            and b.work.matcher is not None
            and b.work.logprobs is None
            and not b.work.params.min_new_tokens
            for _, b in self._special
        )

    def _launching(self, index: Int32, n: Int32, sample: Bool, verify: list[Verify]) -> None:
        """Note in the rows what the step will add to them."""
        rows = self.memory.rows
        rows.ahead[index] += n
        if verify:  # how many tokens those rows will have is known with the results: they wait
            sample = sample.copy()
            sample[[v.index for v in verify]] = False
        rows.drawing[index] += sample
        self.epochs = rows.epoch[index]

    def _verify(self, i: int, branch: Branch, count: int) -> Verify:
        work = branch.work
        assert work is not None and work.params is not None
        masks: list[Int32 | None] = []
        for k in range(count):
            hold = branch.length - work.prompt_len + k < work.params.min_new_tokens
            known = work.draft_masks[k - 1] if k and work.draft_masks else None
            wanted = Wanted(i, work, hold, known)
            masks.append(self.masker.row(wanted) if hold or work.matcher is not None else None)
        return Verify(i, count, masks)

    def _special_row(
        self,
        i: int,
        branch: Branch,
        start: int,
        n: int,
        length: int,
        sample: bool,
        masks: list[Wanted],
        wants: list[LogprobRequest],
    ) -> None:
        work = branch.work
        assert work is not None
        if sample:
            assert work.params is not None
            hold = start + n - work.prompt_len < work.params.min_new_tokens
            if hold or work.matcher is not None:
                draft = start + n - length  # tokens of a guess that come before it
                masks.append(Wanted(i, work, hold, work.draft_masks[draft - 1] if draft and work.draft_masks else None))
        if work.score_from >= 0:
            first, last = max(work.score_from, start + 1), min(start + n + 1, work.limit)
            self.memory.rows.ids[branch.row, work.limit - 1] = work.score_next
            if first < last:
                wants.append(LogprobRequest(i, first, last, ids=work.score_ids))
        elif work.logprobs is not None:
            options = work.logprobs
            want = LogprobRequest(i, output=sample, top=options.top, ids=tuple(options.ids or ()))
            # prompt positions when asked for, and forced tokens, which were appended without being sampled
            asked_from = options.start if options.start >= 0 else work.prompt_len
            first, last = max(asked_from, start + 1), min(start + n + 1, length)
            if first < last:
                want.input_from, want.input_to = first, last
            if sample or first < last:
                wants.append(want)

    def _arrange(self, decodes: list[Extend], extends: list[Extend]) -> list[Extend]:
        """All rows of the step in depth-first order, and what neighbours share."""
        given = [*decodes, *extends]
        given_rows = [b.row for b, *_ in given]
        starts = (self.memory.rows.computed[given_rows] + self.memory.rows.ahead[given_rows]).tolist()
        order, self._groups, self._segments = arrange([b.handle for b, *_ in given], starts)
        return [given[i] for i in order]
