"""The smallest world that a scheduler can live in: a character tokenizer, and a model that is a hash of its KV pool.

The fake runner keeps, for each slot, a digest of the token and of everything before it. It reads the digest of the
previous position through the slot table, exactly as attention would, so a wrong or stale slot changes the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


class FakeRunner:
    """See the module's docstring. `delay` of the tokens is none: results are exact and immediate."""

    vocab_size = VOCAB

    def __init__(self, num_slots: int, eos_every: int = 23, host_slots: int = 0) -> None:
        self.num_slots, self.eos_every, self.host_slots = num_slots, eos_every, host_slots
        self.pool = [0] * num_slots
        self.host_pool = [0] * host_slots
        self.copied_out = self.copied_in = 0  # tokens
        self.steps: list[int] = []  # tokens of each step

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

    @staticmethod
    def _noisy(free: Callable[[Int32], None], pool: list[int]) -> Callable[[Int32], None]:
        def free_and_scribble(slots: Int32) -> None:
            free(slots)
            for slot in slots.tolist():
                pool[slot] = 0xBAD

        return free_and_scribble

    def copy_out(self, slots: Int32, host: Int32) -> None:
        assert len(set(host.tolist())) == len(host) == len(slots) and host.min() > 0
        for slot, to in zip(slots.tolist(), host.tolist(), strict=True):
            self.host_pool[to] = self.pool[slot]
        self.copied_out += len(slots)

    def copy_in(self, host: Int32, slots: Int32) -> None:
        assert len(set(slots.tolist())) == len(slots) == len(host) and slots.min() > 0
        for at, slot in zip(host.tolist(), slots.tolist(), strict=True):
            self.pool[slot] = self.host_pool[at]
        self.copied_in += len(slots)

    def copy_seconds(self, tokens: int) -> float:
        return 0.0

    def draw(self, plan: Plan, i: int, end: int, mask: Int32 | None) -> tuple[int, int]:
        """The token behind the first `end` positions of plan row i, and the state that it is drawn from."""
        last = self.pool[int(plan.slot_table[int(plan.rows[i]), end - 1])]
        greedy = plan.sampling.temperature[i] == 0
        token = next_token(last, None if greedy else int(plan.sampling.seed[i]) + end, self.eos_every)
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
