"""From the running rows to one step: how many tokens each row is extended by, in which slots, in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import Follower, Group, Int32, LogprobRequest, Plan, SamplingArrays, Verify
from stemma.backend.scheduler.branch import Branch, State, Work
from stemma.backend.scheduler.masking import Masker, Wanted

if TYPE_CHECKING:
    from stemma.backend.scheduler.admit import Memory
    from stemma.backend.scheduler.drafts import Drafter

Extend = tuple[Branch, int, int]  # a row that is extended by that many tokens, of which so many are a draft
MIN_SHARED = 32  # a shorter common prefix is not worth a group


class Planner:
    """Builds plans. A steady decode batch reuses what does not change (order, sampling arrays, groups)."""

    def __init__(self, memory: Memory, chunk: int, masker: Masker, drafter: Drafter) -> None:
        self.memory, self.chunk, self.masker, self.drafter = memory, chunk, masker, drafter
        self.follow = False  # whether the runner draws for followers, and the cache gives them their prompt
        self.step = 0
        self._rows: Int32 = np.empty(0, np.int32)
        self._sampling: SamplingArrays | None = None
        self._groups: list[Group] = []
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
        self._followers: list[tuple[int, Branch]] = []
        memory.planned.clear()
        decodes = self._grow_decodes()
        budget = self.chunk
        if self.drafter.active:
            budget -= self._extend_drafted(decodes, budget, extends)
        for branch in [b for b in memory.running if rows.length[b.row] - rows.computed[b.row] > 1]:
            if budget <= 0:
                break
            if branch.row >= 0:  # not retracted by one before it
                memory.rematch(branch)
                budget -= self._extend(branch, budget, extends)
        if memory.waiting and budget > 0 and rows.free_count:
            for branch in memory.ordered():
                if branch.serial in memory.following:
                    continue
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
            memory.retract(max(running, key=lambda b: b.serial))

    def _extend_drafted(self, decodes: list[Branch], budget: int, extends: list[Extend]) -> int:
        """Move rows that have a draft from `decodes` to `extends`. Returns how many tokens they are extended by."""
        memory, used = self.memory, 0
        drafted: set[Branch] = set()
        for branch in self.drafter.choose(decodes):
            work = branch.work
            assert work is not None
            # room for all rows and the draft: verifying it sends nobody back to the queue
            if budget - used > 1 and memory.ensure(len(memory.running) + 1 + len(work.draft)):
                drafted.add(branch)
                used += self._extend(branch, budget - used, extends, proposed=True)
        if drafted:
            decodes[:] = [b for b in decodes if b not in drafted]
        return used

    def _extend(self, branch: Branch, budget: int, extends: list[Extend], proposed: bool = False) -> int:
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
        draft = 0
        if start + n == length:
            if not proposed:
                self.drafter.after_prompt(branch)
            draft = self._draft(work, budget - n, n + reserve) if work.draft else 0
        rows.ids[row, length : length + draft] = work.draft[:draft]
        rows.slots[row, start : start + n + draft] = memory.slots.allocate(n + draft)
        if start + n <= max(work.fixed_len, work.limit if work.params is None else 0):
            memory.publish(branch, start + n)
        memory.planned.add(row)
        extends.append((branch, n + draft, draft))
        if self.follow and start + n == length and rows.sample[row]:
            self._gather(branch, work, len(extends) - 1)
        return n + draft

    def _gather(self, leader: Branch, work: Work, k: int) -> None:
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
                self._followers.append((k, sibling))

    def _draft(self, work: Work, budget: int, reserved: int) -> int:
        """How much of the draft is verified in this step: nothing is retracted for it."""
        draft = min(len(work.draft), budget)
        return draft if draft > 0 and self.memory.ensure(reserved + draft) else 0

    # -- filling ---------------------------------------------------------------------------------------------------

    def _fill(self, decodes: list[Branch], extends: list[Extend]) -> Plan:
        memory, rows = self.memory, self.memory.rows
        self.step += 1
        steady = not extends and self._decode_only and not memory.changed and len(decodes) == len(self._rows)
        if not steady:
            decodes = self._depth_first(decodes)
            order = [b.row for b in decodes] + [b.row for b, *_ in extends]
            self._rows = np.array(order, np.int32)
            following = [b for _, b in self._followers]
            self._sampling = rows.sampling(self._rows, [b.work for b in following if b.work is not None])
            branches = decodes + [b for b, *_ in extends] + following
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
            sample = rows.sample[index] & (start + n - draft == rows.length[index])
        else:
            n = np.ones(d, np.int32)
            offsets = np.arange(d + 1, dtype=np.int32)
            positions, flat = start, index
            sample = rows.sample[index]
        masks: list[Wanted] = []
        wants: list[LogprobRequest] = []
        verify = [self._verify(d + k, branch, drafted) for k, (branch, _, drafted) in enumerate(extends) if drafted]
        for i, branch in self._special:
            if i < len(index):
                self._special_row(i, branch, int(start[i]), int(n[i]), bool(sample[i]), masks, wants)
            else:
                self._special_row(i, branch, branch.length, 0, True, masks, wants)
        followers = [Follower(d + k, int(offsets[d + k + 1]) - 1 - extends[k][2], b.serial) for k, b in self._followers]
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
            followers=followers,
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
                draft = start + n - branch.length  # tokens of a guess that come before it
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
            first, last = max(asked_from, start + 1), min(start + n + 1, branch.length)
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
