"""The smallest world that a scheduler can live in: a character tokenizer, and a model that is a hash of its KV pool.

The fake runner keeps, for each slot, a digest of the token and of everything before it. It reads the digest of the
previous position through the slot table, exactly as attention would, so a wrong or stale slot changes the tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from stemma.backend.cache.tiered import TieredCache
from stemma.backend.core import Int32, Plan, RowLogprobs, StepOutput
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.text.stream import TextStream
from stemma.lang.errors import RequestError
from stemma.lang.params import SamplingParams

VOCAB = 128
BOS, EOS = 1, 2
TABLE: list[bytes | None] = [None, None, None, *(bytes([i]) for i in range(3, VOCAB))]
_MASK = (1 << 61) - 1
POISON = 99_999  # an id that nobody knows yet


def digest(previous: int, token: int) -> int:
    return (previous * 6364136223846793005 + token * 1442695040888963407 + 1013904223) & _MASK


def chain(ids: Iterable[int]) -> int:
    value = 7
    for token in ids:
        value = digest(value, int(token))
    return value


def next_token(state: int, seed: int | None = None, eos_every: int = 23) -> int:
    """The fake model. `seed` None is greedy."""
    value = (state ^ (state >> 29)) * 0xBF58476D1CE4E5B9 & _MASK
    if seed is not None:
        value = (value ^ (seed * 0x9E3779B97F4A7C15)) & _MASK
    value ^= value >> 27
    if value % eos_every == 0:
        return EOS
    return 97 + (value >> 7) % 26


def logprob(state: int, token: int) -> float:
    return -float((state ^ (token * 2654435761)) % 1000) / 100.0


class FakeLaunched:
    """A launched step of the fake runner. It knows of the scheduler's tables only what they were when it was launched,
    and of `id_table`, for a late plan, what it was when sampling began."""

    def __init__(self, plan: Plan) -> None:
        self.id_table = plan.id_table
        self.plan = replace(
            plan,
            ids=plan.ids.copy(),
            slot_table=plan.slot_table.copy(),
            id_table=np.full_like(plan.id_table, POISON) if plan.late else plan.id_table.copy(),
        )
        self.may_sample = not plan.late
        self.output: StepOutput | Exception | None = None
        self.taken = False
        self.after: list[Callable[[], None]] = []  # what was asked for between this step and the next

    def sample(self) -> None:
        assert not self.may_sample, "sample() twice, or of a plan that is not late"
        self.may_sample = True
        self.plan.id_table[:] = self.id_table

    def result(self) -> StepOutput:
        assert not self.taken, "result() twice"
        self.taken = True
        self.runner.catch_up(self)
        if isinstance(self.output, Exception):
            raise self.output
        assert self.output is not None
        return self.output

    runner: FakeRunner


class FakeRunner:
    """See the module's docstring. With `run`, results are exact and immediate. Launched steps run some time between
    their launch (or `sample`) and the moment that they must have run; `whim` says when."""

    vocab_size = VOCAB
    overlap = True

    def __init__(self, num_slots: int, eos_every: int = 23, host_slots: int = 0, whim: int = 0) -> None:
        self.num_slots, self.eos_every, self.host_slots = num_slots, eos_every, host_slots
        self.pool = [0] * num_slots
        self.host_pool = [0] * host_slots
        self.copied_out = self.copied_in = 0  # tokens
        self.steps: list[int] = []  # tokens of each step
        self.relayed = 0  # tokens that a step took from the one before it
        self.late = 0
        self._whim = random.Random(whim)
        self._launched: list[FakeLaunched] = []  # not run yet
        self._drawn: Int32 = np.empty(0, np.int32)  # next_ids of the step that ran last
        self._last: FakeLaunched | None = None

    def launch(self, plan: Plan) -> FakeLaunched:
        assert len([step for step in (*self._launched, self._last) if step and not step.taken]) < 2, "two under way"
        owner = np.repeat(np.arange(len(plan.rows)), plan.n)
        at = plan.rows[owner], plan.positions
        known = np.ones(len(plan.ids), np.bool_)
        known[plan.relay_to] = False
        assert (plan.ids[~known] == -1).all() and (plan.ids[known] == plan.id_table[at][known]).all()
        assert (plan.n[owner[plan.relay_to]] == 1).all()
        plan.id_table[at[0][~known], at[1][~known]] = POISON  # nobody can know these yet
        self.relayed += len(plan.relay_to)
        self.late += plan.late
        step = FakeLaunched(plan)
        step.runner = self
        if self._launched and self._launched[0].may_sample and self._whim.random() < 0.5:
            self.catch_up(self._launched[0])
        self._launched.append(step)
        if not self._launched[1:] and step.may_sample and self._whim.random() < 0.5:
            self.catch_up(step)
        return step

    def catch_up(self, until: FakeLaunched) -> None:
        """Run what was launched, in order."""
        while until.output is None:
            step = self._last = self._launched.pop(0)
            assert step.may_sample, "the results of a late step are asked for before it may sample"
            plan = step.plan
            if len(plan.relay_to):
                relayed = np.maximum(self._drawn[plan.relay_from], 0)
                owner = np.searchsorted(plan.offsets, plan.relay_to, side="right") - 1
                plan.ids[plan.relay_to] = relayed
                plan.id_table[plan.rows[owner], plan.positions[plan.relay_to]] = relayed
            if plan.late:  # the forward pass has not seen the table
                owner = np.repeat(np.arange(len(plan.rows)), plan.n)
                plan.id_table[plan.rows[owner], plan.positions] = plan.ids
            try:
                step.output = self.run(plan)
                self._drawn = step.output.next_ids
            except AssertionError:
                raise
            except Exception as error:
                step.output = error
            for call in step.after:
                call()

    def in_order(self, call: Callable[[], None]) -> None:
        """After the steps launched so far, before those launched later."""
        if self._launched:
            self._launched[-1].after.append(call)
        else:
            call()

    def run(self, plan: Plan) -> StepOutput:
        self.steps.append(len(plan.ids))
        assert len(set(plan.rows.tolist())) == len(plan.rows), "a row is planned twice"
        out = np.full(len(plan.rows), -1, np.int32)
        wants = {w.index: w for w in plan.logprobs}
        said: dict[int, RowLogprobs] = {}
        verified: dict[int, Int32] = {}
        written: set[int] = set()
        for i in np.argsort(plan.start, kind="stable").tolist():
            row, start, n = int(plan.rows[i]), int(plan.start[i]), int(plan.n[i])
            record = RowLogprobs()
            want = wants.get(i)
            for k in range(n):
                at = start + k
                flat = int(plan.offsets[i]) + k
                slot = int(plan.out_slots[flat])
                assert slot > 0 and slot == plan.slot_table[row, at], "a token without its slot"
                assert slot not in written, "two tokens of one step write one slot"
                assert plan.ids[flat] == plan.id_table[row, at] and plan.positions[flat] == at
                written.add(slot)
                before = self.pool[int(plan.slot_table[row, at - 1])] if at else 7
                self.pool[slot] = digest(before, int(plan.ids[flat]))
                if want is not None and want.input_from <= at + 1 < want.input_to:
                    if not record.input:
                        record.input_start = at + 1
                    record.input.append(logprob(self.pool[slot], int(plan.id_table[row, at + 1])))
                    if want.ids:
                        record.input_ids.append([(logprob(self.pool[slot], token), token) for token in want.ids])
            if plan.sample[i]:
                masks = dict(plan.masks)
                out[i], last = self.draw(plan, i, start + n, masks.get(i))
                for v in plan.verify:
                    if v.index == i:
                        ends = range(start + n - v.count, start + n)
                        pairs = zip(ends, v.masks, strict=True)
                        verified[i] = np.array([self.draw(plan, i, end, mask)[0] for end, mask in pairs], np.int32)
                if want is not None and want.output:
                    record.output = logprob(last, int(out[i]))
            if want is not None:
                said[i] = record
        return StepOutput(out, said, verified)

    def scribble(self, scheduler: Scheduler) -> None:
        """From now on, what is given back is overwritten with noise, on both sides: reading it would show."""
        assert isinstance(scheduler.cache, TieredCache)
        for allocator, pool in ((scheduler.slots, self.pool), (scheduler.cache.host, self.host_pool)):
            allocator.free = self._noisy(allocator.free, pool)  # type: ignore[method-assign]

    def _noisy(self, free: Callable[[Int32], None], pool: list[int]) -> Callable[[Int32], None]:
        def free_and_scribble(slots: Int32) -> None:
            free(slots)
            self.in_order(lambda: scribble(slots.tolist()))

        def scribble(slots: list[int]) -> None:
            for slot in slots:
                pool[slot] = 0xBAD

        return free_and_scribble

    def copy_out(self, slots: Int32, host: Int32) -> None:
        assert len(set(host.tolist())) == len(host) == len(slots) and host.min() > 0
        self.in_order(lambda: self._copy(self.pool, slots.tolist(), self.host_pool, host.tolist()))
        self.copied_out += len(slots)

    def copy_in(self, host: Int32, slots: Int32) -> None:
        assert len(set(slots.tolist())) == len(slots) == len(host) and slots.min() > 0
        self.in_order(lambda: self._copy(self.host_pool, host.tolist(), self.pool, slots.tolist()))
        self.copied_in += len(slots)

    @staticmethod
    def _copy(source: list[int], at: list[int], target: list[int], to: list[int]) -> None:
        for a, b in zip(at, to, strict=True):
            target[b] = source[a]

    def copy_seconds(self, tokens: int) -> float:
        return 0.0

    def draw(self, plan: Plan, i: int, end: int, mask: Int32 | None) -> tuple[int, int]:
        """The token behind the first `end` positions of plan row i, and the state that it is drawn from."""
        row = int(plan.rows[i])
        state = last = self.pool[int(plan.slot_table[row, end - 1])]
        if plan.sampling.repetition_penalty[i] != 1:  # it looks at all the row's tokens
            state = digest(state, chain(plan.id_table[row, :end]))
        greedy = plan.sampling.temperature[i] == 0
        token = next_token(state, None if greedy else int(plan.sampling.seed[i]) + end, self.eos_every)
        if mask is not None and not mask.any():
            return -1, last
        while mask is not None and not (int(mask[token >> 5]) >> (token & 31)) & 1:
            token = (token + 1) % VOCAB
        return token, last


class CharTokenizer:
    """One id for each ASCII character; 0 to 2 are special."""

    bos_id, add_bos, eos_ids = BOS, True, frozenset({EOS})
    vocab_size = VOCAB
    token_bytes = TABLE

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]], *, start: bool = False) -> list[int]:
        return [ord(c) for text, _ in pieces for c in text]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return b"".join(TABLE[i] or b"" for i in ids).decode()


class FakeText:
    tokenizer = CharTokenizer()

    def markers(self, role: str, previous: tuple[str, ...]) -> tuple[str, str]:
        if role not in ("system", "user", "assistant"):
            raise RequestError(f"unknown role {role!r}", param="role")
        return f"<{role}>", "</>\n"

    def stream(self, params: SamplingParams) -> TextStream:
        return TextStream(TABLE, params.stop, params.no_stop_trim)


def no_compiler(constraint, done) -> None:
    done(RequestError("no constraints in this world"))
