"""Drafts: guesses at a row's next tokens, which one step verifies (`core.Verify`). They change no token, only how many
steps it takes.

Two sources, no second model. Forced text: how the text that a grammar forces is likely spelled. Prompt lookup
(arXiv:2304.04487, "Inference with Reference"): the last tokens of a row occurred before, in its own sequence or in
another branch of its program, and what followed there may follow here. With a grammar, a copy is cut at the first token
that the matcher refuses, and forced text is put behind it.

Why nothing changes: each draw has the counter of its own position, and its penalties, bias and mask see the tokens
before it; draws behind the first that differs from the draft are thrown away, as is their KV.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import Int32, Plan, StepOutput, Verify
from stemma.backend.scheduler.branch import MAX_DRAFT, Branch, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stemma.backend.scheduler.admit import Memory

SHORTEST, LONGEST = 2, 4  # tokens of a run that is looked up
MAX_COPY = 15  # tokens of one draft that was looked up
MAX_ROWS = 32  # `auto` leaves steps with more decoding rows alone: the step is bound by their number by then
MAX_PAUSE = 1  # `auto` looks again after so many tokens at the latest when there was nothing to be found
SOURCES = 1 << 11  # branches that one table may name
_SHIFT = 20  # a place is source << 20 | position
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5)
_WORD = (1 << 64) - 1
# What a step of so many tokens costs, in steps of one token: the bundled model on CPU, one thread. Up to eight tokens
# are one fused kernel; a runner that knows better has an attribute `step_costs` of this form.
STEP_COSTS: tuple[tuple[int, float], ...] = (
    (1, 1.0), (2, 1.4), (4, 1.6), (8, 2.9), (9, 4.1), (16, 5.8), (32, 9.5), (64, 15.0), (128, 27.0), (256, 52.0)
)  # fmt: skip
OVERHEAD = 0.15  # and what a step with drafts costs besides
_FORCED = 0  # what a draft rests on: forced text, a run of 2 to 4 tokens (1 to 3), one of another branch (4 to 6)
_START_RATES = (0.8, 0.4, 0.4, 0.5, 0.4, 0.4, 0.5)


class Ngrams:
    """Where each run of 2 to 4 tokens was last seen, in hash tables of a fixed size: a newer run that falls on the same
    entry replaces it. Adding a token and looking up the last ones take constant time.

    Nothing is stored but places, so every hit is checked against the tokens that stand there now.
    """

    __slots__ = ("_bits", "_tables", "_views", "fed")

    def __init__(self, bits: int = 12) -> None:
        self._bits = bits
        self._tables = [array("i", [-1]) * (1 << bits) for _ in range(SHORTEST, LONGEST + 1)]
        self._views = [np.frombuffer(table, np.int32) for table in self._tables]
        self.fed = 0  # for a table of one sequence: the tokens added so far

    @property
    def nbytes(self) -> int:
        return sum(view.nbytes for view in self._views)

    def add(self, ids: Int32, start: int, end: int, source: int = 0) -> None:
        """The tokens at [start, end) have come: note them as what follows the runs before them."""
        low = 64 - self._bits
        if end - start < 8:
            t = ids[max(start - LONGEST, 0) : end].tolist()
            base = max(start - LONGEST, 0)
            for p in range(max(start, SHORTEST), end):
                h, place = 0, source << _SHIFT | p
                for n in range(1, min(LONGEST, p) + 1):
                    h = h + (t[p - n - base] + 1) * _MULTIPLIERS[n - 1] & _WORD
                    if n >= SHORTEST:
                        self._tables[n - SHORTEST][h >> low] = place
            return
        begin = max(start - LONGEST, 0)
        t64 = ids[begin:end].astype(np.uint64) + np.uint64(1)
        for n in range(SHORTEST, LONGEST + 1):
            p = np.arange(max(start, n), end)  # in order: of equal entries, the last counts
            hashes = np.zeros(len(p), np.uint64)
            for k in range(1, n + 1):
                hashes += t64[p - k - begin] * np.uint64(_MULTIPLIERS[k - 1])
            self._views[n - SHORTEST][hashes >> np.uint64(low)] = source << _SHIFT | p

    def find(self, last: Sequence[int], sequences: Sequence[Int32 | Branch]) -> tuple[int, int, int] | None:
        """(n, source, position): the longest run of up to 4 tokens at the end of `last` that was seen before, and what
        followed its last occurrence. `sequences[source]` are the tokens that places refer to."""
        places, h = [], 0
        for n in range(1, min(LONGEST, len(last)) + 1):
            h = h + (last[-n] + 1) * _MULTIPLIERS[n - 1] & _WORD
            if n >= SHORTEST:
                places.append(self._tables[n - SHORTEST][h >> (64 - self._bits)])
        for n in range(len(places) - 1 + SHORTEST, SHORTEST - 1, -1):
            place = places[n - SHORTEST]
            if place < 0:
                continue
            source, p = place >> _SHIFT, place & ((1 << _SHIFT) - 1)
            found = sequences[source]
            ids = found.ids() if isinstance(found, Branch) else found
            if p < len(ids) and p >= n and ids[p - n : p].tolist() == list(last[-n:]):
                return n, source, p
        return None


class Shared:
    """The runs of all branches of a program, as far as they were looked at while they generated."""

    __slots__ = ("branches", "fed", "known", "table")

    def __init__(self) -> None:
        self.table = Ngrams(bits=14)
        self.branches: list[Branch] = []
        self.known: dict[str, int] = {}
        self.fed: list[int] = []

    def source_of(self, branch: Branch, start: int) -> int:
        """The number of a branch whose tokens count from `start`; -1 when there are too many."""
        source = self.known.get(branch.id, -1)
        if source < 0 and len(self.branches) < SOURCES:
            source = self.known[branch.id] = len(self.branches)
            self.branches.append(branch)
            self.fed.append(start)
        return source


class Drafter:
    """Decides which rows are drafted and how far. `mode`: off, forced, ngram (both sources wherever there is something
    to copy), auto (the same, as far as it pays)."""

    def __init__(
        self, memory: Memory, mode: str, costs: Sequence[tuple[int, float]] = STEP_COSTS, siblings: bool = True
    ) -> None:
        self.memory, self.mode, self.siblings = memory, mode, siblings
        self.active = mode != "off"
        self._copies, self._auto = mode in ("ngram", "auto"), mode == "auto"
        tokens = np.arange(costs[-1][0] + 1)
        self._costs = np.interp(tokens, [t for t, _ in costs], [c for _, c in costs])
        self.rates = list(_START_RATES)  # how often a draft token of each kind was right, lately, over all rows
        self.drafted = self.confirmed = 0

    # -- choosing --------------------------------------------------------------------------------------------------

    def choose(self, decodes: list[Branch]) -> list[Branch]:
        """The decoding rows to draft in this step, each with its `draft` set: those worth most first."""
        if not self.active or (self._auto and len(decodes) > MAX_ROWS):
            return []
        for branch in decodes:
            self.propose(branch)
        chosen = [b for b in decodes if b.work is not None and b.work.draft]
        if self._auto and chosen:
            chosen = self._worthwhile(chosen, len(decodes))
        for branch in chosen:
            self._masks(branch)
        return chosen

    def after_prompt(self, branch: Branch) -> None:
        """Set the draft behind a prompt whose last chunk is planned."""
        if not self.active or (self._auto and len(self.memory.running) > MAX_ROWS):
            if branch.work is not None:
                branch.work.draft = []
            return
        self.propose(branch)
        work = branch.work
        if work is not None and work.draft:
            if self._auto:
                del work.draft[4:]  # little is known yet, and in a step of many tokens these are not dear
            self._masks(branch)

    def _worthwhile(self, chosen: list[Branch], rows: int) -> list[Branch]:
        """Cut each draft where it stops to pay. A draft token is worth what a row's token costs in a step without
        drafts, times the chance that it and those before it are right; what it costs is read off the step costs."""
        odds = [
            (rate**k, i)
            for i, b in enumerate(chosen)
            if b.work is not None
            for rate in (b.work.draft_rates[b.work.draft_kind],)
            for k in range(1, len(b.work.draft) + 1)
        ]
        odds.sort(key=lambda pair: -pair[0])  # stable, and odds fall along a draft: each row's prefix comes first
        last = len(self._costs) - 1
        totals = self._costs[np.minimum(rows + np.arange(len(odds) + 1), last)]
        value = totals[0] / rows
        gain = np.concatenate([[0.0], np.cumsum([p for p, _ in odds])]) * value - (totals - totals[0]) * 1.1
        gain[1:] -= OVERHEAD
        best = min(int(gain.argmax()), last - rows) if rows < last else 0
        counts = [0] * len(chosen)
        for _, i in odds[:best]:
            counts[i] += 1
        kept = []
        for branch, count in zip(chosen, counts, strict=True):
            work = branch.work
            assert work is not None
            if count < len(work.draft):
                del work.draft[count:]
            if count:
                kept.append(branch)
        return kept

    # -- proposing -------------------------------------------------------------------------------------------------

    def propose(self, branch: Branch) -> None:
        """Set `work.draft` to a guess at what follows the branch's tokens; empty when there is none."""
        work = branch.work
        if work is None:
            return
        work.draft, work.draft_masks = [], []
        if work.params is None or work.ending is not None or work.logprobs is not None or work.score_from >= 0:
            return
        length = branch.length
        if self._auto:
            if length < work.draft_after:
                return
            self._learn(branch, work, length)
            room = MAX_COPY
        else:
            room = work.draft_room
        room = min(room, work.limit - length - 1)
        if room <= 0 or length < work.prompt_len:
            return
        draft = work.matcher.draft()[:room] if work.matcher is not None else []
        work.draft_kind = _FORCED
        if not self._copies:
            work.draft = self._accepted(work, draft)
            return
        ids = branch.ids()
        copied: list[int] = []
        if len(draft) < room:
            work.draft_kind, copied = self._copy(branch, work, ids, draft, room - len(draft))
            if draft:
                work.draft_kind = _FORCED
        if work.matcher is not None:
            draft = self._accepted(work, draft + copied, room)
        else:
            draft = copied
        work.draft = draft
        if not self._auto:
            return
        if draft:
            work.draft_guess = (length, draft[0], work.draft_kind)
        else:
            work.draft_pause = min(MAX_PAUSE, 2 * work.draft_pause + 1)
        work.draft_after = length + 1 + work.draft_pause

    def _accepted(self, work: Work, draft: list[int], room: int = 0) -> list[int]:
        """The draft up to the first token that the matcher refuses, and (within `room`) what is forced behind it."""
        if work.matcher is None or not (draft or room):
            return draft
        ahead = work.matcher.clone()
        for k, token in enumerate(draft):
            if not ahead.accept(token):
                del draft[k:]
                break
        if 0 < len(draft) < room and not ahead.is_finished():
            for token in (ahead.forced() or ahead.draft())[: room - len(draft)]:
                if not ahead.accept(token):
                    break
                draft.append(token)
        return draft

    def _copy(self, branch: Branch, work: Work, ids: Int32, draft: list[int], room: int) -> tuple[int, list[int]]:
        """What followed the last tokens where they were seen before: the kind of the match, and up to `room` tokens."""
        length = len(ids)
        own = work.ngrams
        if own is None:
            own = work.ngrams = Ngrams()
        if own.fed < length:
            own.add(ids, own.fed, length)
            own.fed = length
        last = [*ids[max(length - LONGEST, 0) : length].tolist(), *draft][-LONGEST:]
        if len(last) < SHORTEST:
            return _FORCED, []
        found = own.find(last, (ids,))
        if self.siblings and len(branch.program.branches) > 1:
            shared = branch.program.ngrams
            if shared is None:
                shared = branch.program.ngrams = Shared()
            source = shared.source_of(branch, work.base)
            if source >= 0 and shared.fed[source] < length:
                shared.table.add(ids, shared.fed[source], length, source)
                shared.fed[source] = length
            if found is None or found[0] < LONGEST:
                other = shared.table.find(last, shared.branches)
                if other is not None and (found is None or other[0] > found[0]):
                    n, source, p = other
                    return n + 2, shared.branches[source].ids()[p : p + room].tolist()
        if found is None:
            return _FORCED, []
        n, _, p = found
        copied = ids[p : p + room].tolist()
        known = length - p  # a copy that reaches the end of the sequence goes on with itself
        while len(copied) < room and not draft:
            copied.append(copied[len(copied) - known])
        return n - 1, copied

    def _masks(self, branch: Branch) -> None:
        """The matcher's rows behind each token of a draft that will be verified."""
        work = branch.work
        assert work is not None
        if work.matcher is None:
            return
        ahead = work.matcher.clone()
        for token in work.draft:
            if not ahead.accept(token):
                raise AssertionError("a draft that the matcher accepted before")
            work.draft_masks.append(ahead.mask())

    # -- learning --------------------------------------------------------------------------------------------------

    def _learn(self, branch: Branch, work: Work, length: int) -> None:
        """Was the last guess right? It is compared whether it was verified or not: looking costs no model time."""
        if not work.draft_rates:
            work.draft_rates = list(self.rates)
        if work.draft_guess is not None:
            position, token, kind = work.draft_guess
            work.draft_guess = None
            if position < length:
                right = int(branch.ids()[position]) == token
                self._score(work, kind, right)
                work.draft_pause = 0 if right else min(MAX_PAUSE, 2 * work.draft_pause + 1)

    def _score(self, work: Work, kind: int, right: bool) -> None:
        work.draft_rates[kind] += (right - work.draft_rates[kind]) * 0.2
        self.rates[kind] += (right - self.rates[kind]) * 0.02

    def agree(self, plan: Plan, out: StepOutput, verify: Verify) -> tuple[Branch | None, list[int]]:
        """The draws that count: up to the first that is not what the draft has, and this one. The rest of the draft is
        taken out of the row, and its slots are free again."""
        rows, i, count = self.memory.rows, verify.index, verify.count
        row, end = int(plan.rows[i]), int(plan.start[i] + plan.n[i])
        draft = plan.ids[plan.offsets[i + 1] - count : plan.offsets[i + 1]]
        drawn = [*out.verified[i].tolist(), int(out.next_ids[i])]
        same = next((k for k in range(count) if drawn[k] != draft[k]), count)
        self.memory.shrink(row, end - count + same)
        if not rows.t_first[row]:
            rows.t_first[row] = self.memory.clock()
        self.drafted += count
        self.confirmed += same
        branch = rows.branch[row]
        if branch is not None and branch.work is not None:
            work = branch.work
            work.drafted += count
            work.confirmed += same
            # a draft is as long as the last one was right; one that was right throughout may be twice as long
            most = MAX_COPY if self._copies else MAX_DRAFT
            work.draft_room = min(most, 2 * count) if same == count else max(1, same)
            if work.draft_rates:
                work.draft_guess = None
                work.draft_pause, work.draft_after = (0, 0) if same else (work.draft_pause, work.draft_after)
                for k in range(min(same + 1, count)):
                    self._score(work, work.draft_kind, k < same)
        return branch, drawn[: same + 1]
