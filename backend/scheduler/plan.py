"""From the running rows to one step: how many tokens each row is extended by, in which slots, in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import NO_RELAY, Bool, Group, Int32, Int64, LogprobRequest, Plan, SamplingArrays, Verify
from stemma.backend.scheduler.branch import Branch, Work
from stemma.backend.scheduler.masking import Masker, Wanted

if TYPE_CHECKING:
    from stemma.backend.scheduler.admit import Memory

Extend = tuple[Branch, int, int]  # a row that is extended by that many tokens, of which so many are a draft
MIN_SHARED = 32  # a shorter common prefix is not worth a group


class Planner:
    """Builds plans. A steady decode batch reuses what does not change (order, sampling arrays, groups)."""

    def __init__(self, memory: Memory, chunk: int, masker: Masker, draft: bool = False, overlap: bool = False) -> None:
        self.memory, self.chunk, self.masker, self.draft, self.overlap = memory, chunk, masker, draft, overlap
        self.step = 0
        self.starved = False  # the last plan lacks rows for want of memory that the step in flight may give back
        self.epochs: Int64 = np.empty(0, np.int64)  # of the last plan's rows, with `overlap`
        self._in_flight = False  # the plan before this one is launched and not processed
        self._same = False  # all running rows decode, as in the last plan
        self._longer: list[Branch] = []  # running rows with more than one token to run
        self._rows: Int32 = np.empty(0, np.int32)
        self._sampling: SamplingArrays | None = None
        self._groups: list[Group] = []
        self._decode_only = False
        self._special: list[tuple[int, Branch]] = []
        self.settled: list[Branch] = []  # branches with a row and nothing left to compute: wholly cached, no sampling

    def build(self, in_flight: bool = False) -> Plan | None:
        """The next step, or None when nothing can run. May admit, evict and retract.

        in_flight: the last plan is launched and not processed (`overlap`). Then nothing is retracted, rows whose next
        tokens depend on its results are left out, and None may mean that there is nothing to do before it is processed.
        """
        memory, rows = self.memory, self.memory.rows
        self.settled, self.starved, self._in_flight = [], False, in_flight
        if not memory.running and not memory.waiting:
            return None
        extends: list[Extend] = []
        memory.planned.clear()
        decodes = self._grow_decodes()
        if self.starved:
            return None
        budget = self.chunk
        if self.draft:
            budget -= self._extend_drafted(decodes, budget, extends)
        for branch in self._longer:
            if budget <= 0:
                break
            if branch.row >= 0:  # not retracted by one before it
                memory.rematch(branch)
                budget -= self._extend(branch, budget, extends)
        if memory.waiting and budget > 0 and rows.free_count:
            for branch in memory.ordered():
                if budget <= 0 or not memory.admit(branch):
                    break
                memory.waiting.remove(branch)
                budget -= self._extend(branch, budget, extends)
        if extends or memory.changed:
            decodes = [b for b in decodes if b.row >= 0]
        if not extends and not decodes:
            return None
        return self._fill(decodes, extends)

    # -- choosing --------------------------------------------------------------------------------------------------

    def _grow_decodes(self) -> list[Branch]:
        """The rows with exactly one pending token, after making room for that token."""
        memory = self.memory
        while True:
            running = memory.running
            self._same, self._longer = False, []
            if not running:
                return []
            same = not memory.changed and self._decode_only and len(self._rows) == len(running)
            if same and (self._pending(self._rows) == 1).all() and memory.ensure(len(running)):
                self._same = True
                return list(running)  # a copy: admission will append to the running list
            index = np.fromiter((b.row for b in running), np.int64, len(running))
            pending = self._pending(index).tolist()
            decodes = [b for b, p in zip(running, pending, strict=True) if p == 1]
            self._longer = [b for b, p in zip(running, pending, strict=True) if p > 1]
            if memory.ensure(len(decodes)):
                return decodes
            if self._in_flight:
                self.starved = True
                return []
            memory.retract(max(running, key=lambda b: b.serial))

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
        for branch in list(decodes):
            work = branch.work
            if work is None or not work.draft:
                continue
            # room for all rows and the draft: verifying it sends nobody back to the queue
            if budget - used > 1 and memory.ensure(len(memory.running) + 1 + len(work.draft)):
                decodes.remove(branch)
                used += self._extend(branch, budget - used, extends)
        return used

    def _extend(self, branch: Branch, budget: int, extends: list[Extend]) -> int:
        """Give a row slots for up to `budget` pending tokens, and show them to the cache. Returns how many."""
        memory, rows, row = self.memory, self.memory.rows, branch.row
        start, length = int(rows.computed[row] + rows.ahead[row]), int(rows.length[row])
        n = min(length - start, budget)
        if n <= 0:
            self.settled.append(branch)
            return 0
        # decode rows chosen in this step still need one slot each
        reserve = len(memory.running)
        if self._in_flight and not memory.ensure(n + reserve):
            self.starved = True
            n = min(n, memory.slots.free_count - reserve)
            if n <= 0:
                return 0
        elif not memory.make_room(n + reserve, keep=branch):
            memory.ensure(n)
            n = min(n, memory.slots.free_count - reserve if len(memory.running) > 1 else memory.slots.free_count)
            if n <= 0:
                memory.retract(branch)
                return 0
        work = branch.work
        assert work is not None
        draft = self._draft(work, budget - n, n + reserve) if work.draft and start + n == length else 0
        rows.ids[row, length : length + draft] = work.draft[:draft]
        rows.slots[row, start : start + n + draft] = memory.slots.allocate(n + draft)
        if start + n <= max(work.fixed_len, work.limit if work.params is None else 0):
            memory.publish(branch, start + n)
        memory.planned.add(row)
        extends.append((branch, n + draft, draft))
        return n + draft

    def _draft(self, work: Work, budget: int, reserved: int) -> int:
        """How much of the draft is verified in this step: nothing is retracted for it."""
        draft = min(len(work.draft), budget)
        return draft if draft > 0 and self.memory.ensure(reserved + draft) else 0

    # -- filling ---------------------------------------------------------------------------------------------------

    def _fill(self, decodes: list[Branch], extends: list[Extend]) -> Plan:
        memory, rows = self.memory, self.memory.rows
        self.step += 1
        steady = self._same and not extends and not memory.changed
        if not steady:
            decodes = self._depth_first(decodes)
            order = [b.row for b in decodes] + [b.row for b, *_ in extends]
            self._rows = np.array(order, np.int32)
            self._sampling = rows.sampling(self._rows)
            branches = decodes + [b for b, *_ in extends]
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
            head = index[:d]
            rows.slots[head, start[:d]] = memory.slots.allocate(d)
        if extends:
            n = np.ones(len(index), np.int32)
            n[d:] = [k for _, k, _ in extends]
            draft = np.zeros(len(index), np.int32)
            draft[d:] = [k for _, _, k in extends]
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
        verify = [self._verify(d + k, branch, drafted) for k, (branch, _, drafted) in enumerate(extends) if drafted]
        for i, branch in self._special:
            self._special_row(i, branch, int(start[i]), int(n[i]), int(length[i]), bool(sample[i]), masks, wants)
        ids = rows.ids[flat, positions]
        relay_to, relay_from, late = NO_RELAY, NO_RELAY, False
        if self._in_flight and d:
            relay_to = np.flatnonzero(rows.drawing[index[:d]]).astype(np.int32)  # such rows are decodes: one token each
        if len(relay_to):
            ids[relay_to], relay_from = -1, rows.place[index[relay_to]]
            late = self._sampling.any_penalty or any(
                w.work.matcher is not None and rows.drawing[index[w.index]] > 0 for w in masks
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
            relay_to=relay_to,
            relay_from=relay_from,
            late=late,
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
                masks.append(Wanted(i, work, hold, work.draft_masks[draft - 1] if draft else None))
        if work.score_from >= 0:
            first, last = max(work.score_from, start + 1), min(start + n + 1, work.limit)
            if first < last:
                wants.append(LogprobRequest(i, first, last))
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

    def _depth_first(self, decodes: list[Branch]) -> list[Branch]:
        """Rows in depth-first order of the prefix tree, and the groups of neighbours that share slots."""
        rows = self.memory.rows
        self._groups = []
        if len(decodes) < 2:
            return decodes
        pinned = [(rows.slots[b.row, : int(rows.tree_len[b.row])], b) for b in decodes]
        pinned.sort(key=lambda item: item[0].tobytes())
        first, shared = 0, 0
        for i in range(1, len(pinned) + 1):
            common = 0
            if i < len(pinned):
                a, b = pinned[i - 1][0], pinned[i][0]
                m = min(len(a), len(b))
                differs = a[:m] != b[:m]
                common = int(differs.argmax()) if differs.any() else m
            if common < MIN_SHARED:
                if i - first > 1:
                    self._groups.append(Group(first, i - first, shared))
                first, shared = i, 0
            else:
                shared = common if i - first == 1 else min(shared, common)
        return [b for _, b in pinned]
