"""From the running rows to one step: how many tokens each row is extended by, in which slots, in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import Group, Int32, LogprobRequest, Plan, SamplingArrays, Segment, Verify
from stemma.backend.scheduler.branch import Branch, Work
from stemma.backend.scheduler.families import arrange
from stemma.backend.scheduler.masking import Masker, Wanted
from stemma.backend.scheduler.writers import Writers

if TYPE_CHECKING:
    from stemma.backend.scheduler.admit import Memory

PASS_AT_MOST = 64  # waiting branches that are passed over in one step, because a row writes their prefix
Extend = tuple[Branch, int, int]  # a row that is extended by that many tokens, of which so many are a draft


class Planner:
    """Builds plans. A steady decode batch reuses what does not change (order, sampling arrays, groups)."""

    def __init__(
        self,
        memory: Memory,
        chunk: int,
        masker: Masker,
        draft: bool = False,
        *,
        max_prefill: int = 16384,
        same_step_sharing: bool = True,
        mixed_chunk: bool = True,
    ) -> None:
        self.memory, self.chunk, self.masker, self.draft = memory, chunk, masker, draft
        self.max_prefill, self.mixed_chunk = max_prefill, mixed_chunk
        self.writers = None if same_step_sharing else Writers(memory)
        self.step = 0
        self._rows: Int32 = np.empty(0, np.int32)
        self._sampling: SamplingArrays | None = None
        self._groups: list[Group] = []
        self._segments: list[Segment] = []
        self._decode_only = False
        self._special: list[tuple[int, Branch]] = []
        self.settled: list[Branch] = []  # branches with a row and nothing left to compute: wholly cached, no sampling

    def build(self) -> Plan | None:
        """The next step, or None when nothing can run. May admit, evict and retract."""
        memory, rows = self.memory, self.memory.rows
        self.settled = []
        if not memory.running and not memory.waiting:
            return None
        extends: list[Extend] = []
        memory.planned.clear()
        decodes = self._grow_decodes()
        budget = self.chunk
        if self.writers is not None:
            self.writers.commit()
        if self.draft:
            budget -= self._extend_drafted(decodes, budget, extends)
        prefills = len(extends)
        for branch in [b for b in memory.running if rows.length[b.row] - rows.computed[b.row] > 1]:
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
        memory, rows = self.memory, self.memory.rows
        while True:
            running = memory.running
            if not running:
                return []
            if not memory.changed and self._decode_only and len(self._rows) == len(running):
                pending = rows.length[self._rows] - rows.computed[self._rows]
                if (pending == 1).all() and memory.ensure(len(running)):
                    return list(running)  # a copy: admission will append to the running list
            index = np.fromiter((b.row for b in running), np.int64, len(running))
            pending = rows.length[index] - rows.computed[index]
            decodes = [b for b, p in zip(running, pending.tolist(), strict=True) if p == 1]
            if memory.ensure(len(decodes)):
                return decodes
            if not memory.make_room(len(decodes)):
                memory.retract(running[-1])

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
        start, length = int(rows.computed[row]), int(rows.length[row])
        n = min(length - start, budget)
        if n <= 0:
            self.settled.append(branch)
            return 0
        # decode rows chosen in this step still need one slot each
        reserve = len(memory.running)
        if not memory.make_room(n + reserve, keep=branch):
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
            if self.writers is None:
                memory.publish(branch, start + n)
            else:
                self.writers.add(branch, start + n)
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
        steady = not extends and self._decode_only and not memory.changed and len(decodes) == len(self._rows)
        entries: list[Extend] = []
        if not steady:
            entries = self._arrange([(b, 1, 0) for b in decodes], extends)
            branches = [b for b, *_ in entries]
            self._rows = np.array([b.row for b in branches], np.int32)
            self._sampling = rows.sampling(self._rows)
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
        start = rows.computed[index]
        if d:
            head = np.array([b.row for b in decodes], np.int32) if extends else index
            rows.slots[head, rows.computed[head]] = memory.slots.allocate(d)
        if extends:
            n = np.array([k for _, k, _ in entries], np.int32)
            draft = np.array([k for _, _, k in entries], np.int32)
            offsets = np.zeros(len(index) + 1, np.int32)
            np.cumsum(n, out=offsets[1:])
            owner = np.repeat(np.arange(len(index)), n)
            positions = (np.arange(offsets[-1], dtype=np.int32) - offsets[owner] + start[owner]).astype(np.int32)
            flat = index[owner]
            sample = rows.sample[index] & (start + n - draft == rows.length[index])
        else:
            n = np.ones(d, np.int32)
            offsets = np.arange(d + 1, dtype=np.int32)
            positions, flat = start, index
            sample = rows.sample[index]
        masks: list[Wanted] = []
        wants: list[LogprobRequest] = []
        verify = [self._verify(i, branch, drafted) for i, (branch, _, drafted) in enumerate(entries) if drafted]
        for i, branch in self._special:
            self._special_row(i, branch, int(start[i]), int(n[i]), bool(sample[i]), masks, wants)
        return Plan(
            step=self.step,
            rows=index,
            start=start,
            n=n,
            offsets=offsets,
            ids=rows.ids[flat, positions],
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
        )

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
        self, i: int, branch: Branch, start: int, n: int, sample: bool, masks: list[Wanted], wants: list[LogprobRequest]
    ) -> None:
        work = branch.work
        assert work is not None
        if sample:
            assert work.params is not None
            hold = start + n - work.prompt_len < work.params.min_new_tokens
            if hold or work.matcher is not None:
                draft = start + n - int(self.memory.rows.length[branch.row])  # tokens of a guess that come before it
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
            length = int(self.memory.rows.length[branch.row])
            first, last = max(asked_from, start + 1), min(start + n + 1, length)
            if first < last:
                want.input_from, want.input_to = first, last
            if sample or first < last:
                wants.append(want)

    def _arrange(self, decodes: list[Extend], extends: list[Extend]) -> list[Extend]:
        """All rows of the step in depth-first order, and what neighbours share."""
        given = [*decodes, *extends]
        starts = self.memory.rows.computed[[b.row for b, *_ in given]].tolist()
        order, self._groups, self._segments = arrange([b.handle for b, *_ in given], starts)
        return [given[i] for i in order]
