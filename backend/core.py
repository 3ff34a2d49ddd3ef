"""The nouns of the engine: ids and lengths, no tensors, no text.

The scheduler fills a `Plan`, a runner executes it and answers with a `StepOutput`. Everything a step can be (a prefill
chunk, one decoded token, forced tokens, a scored choice) is "extend this row by n tokens".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
NO_RELAY: Int32 = np.empty(0, np.int32)


@dataclass(slots=True)
class FinishReason:
    """Why a generation ended: `stop` (with the token id or string that matched), `length`, `abort`."""

    type: str
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        if self.type == "stop":
            return {"type": "stop", "matched": self.matched}
        if self.type == "length":
            return {"type": "length", "length": self.length}
        return {"type": "abort", "message": self.message}


@dataclass(slots=True)
class LogprobRequest:
    """What one plan row wants besides its next token.

    input_from, input_to: the absolute positions p in [input_from, input_to) whose token's log-probability is wanted,
        given the tokens before it; both -1 for none. start + 1 <= input_from, input_to <= start + n + 1: the last
        position of a chunk speaks for the first token after it, whose id is id_table[row, start + n].
    output: the log-probability of the sampled token.
    top: number of best alternatives at each of those positions. ids: token ids wanted at each.
    """

    index: int
    input_from: int = -1
    input_to: int = -1
    output: bool = False
    top: int = 0
    ids: tuple[int, ...] = ()


@dataclass(slots=True)
class RowLogprobs:
    """Natural-log probabilities from fp32 log-softmax of the raw logits (before temperature, penalties and mask).

    `input*` lists are aligned: one entry for each answered position, in order, starting at `input_start`.
    A `top` entry is a list of (logprob, id), best first.
    """

    input_start: int = 0
    input: list[float] = field(default_factory=list)
    input_top: list[list[tuple[float, int]]] = field(default_factory=list)
    input_ids: list[list[tuple[float, int]]] = field(default_factory=list)
    output: float | None = None
    output_top: list[tuple[float, int]] | None = None
    output_ids: list[tuple[float, int]] | None = None


@dataclass(slots=True)
class SamplingArrays:
    """Sampling parameters of a step, one entry for each plan row (rows that do not sample hold defaults).

    The flags say whether any sampling row uses a feature at all, so that a runner can skip it.
    """

    temperature: Float32  # 0 for greedy rows
    top_p: Float32
    top_k: Int32  # vocabulary size (or more) when off
    min_p: Float32
    seed: Int64
    repetition_penalty: Float32
    frequency_penalty: Float32
    presence_penalty: Float32
    prompt_len: Int32  # positions >= prompt_len are output; penalties count them
    all_greedy: bool = True
    any_filter: bool = False  # top_p, top_k or min_p
    any_penalty: bool = False
    bias: Sequence[tuple[int, tuple[tuple[int, float], ...]]] = ()  # (plan index, ((token id, addend), ...))


@dataclass(slots=True)
class Group:
    """Adjacent plan rows [first, first + count) whose first `shared` positions use the same slots, and are computed
    already or by other rows. Groups do not overlap and stand in order; `Segment` has the whole tree."""

    first: int
    count: int
    shared: int


@dataclass(slots=True)
class Segment:
    """Positions [begin, end) of the adjacent plan rows [first, first + count) use the same slots.

    Segments nest: one of level k + 1 lies within the rows of one of level k and begins where that one ends; those of
    level 0 begin at 0. No row of it computes a position before `end` in this step.
    """

    level: int
    first: int
    count: int
    begin: int
    end: int


class Masks(Protocol):
    """(plan index, bitmask row int32[ceil(vocab / 32)], bit set = allowed) pairs; rows are not to be written to.

    Iterating may wait for rows that are still being worked out: do it after the forward pass was launched. `len` never
    waits.
    """

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[int, Int32]]: ...


@dataclass(slots=True)
class Verify:
    """The last `count` tokens of plan row `index` are a draft: a guess at what will be drawn before them.

    Such a row draws at its last count + 1 positions: `StepOutput.verified` has the draws at the first `count` of them,
    `next_ids` that at the last. Each is drawn as if the tokens before it were certain, with the row's parameters and
    the counter of its own position; it is meant only if they are. `masks[k]` is the bitmask row for draw k, or None
    (that of the last draw stands in `Plan.masks`).
    """

    index: int
    count: int
    masks: Sequence[Int32 | None]


@dataclass(slots=True)
class Follower:
    """One more draw behind a plan row, for a branch that has no row: its tokens are those of plan row `index` up to
    flat token `at`. So n samples of a prompt take one row of logits.

    Follower k of a plan of B rows is named B + k in `sampling` (which has an entry for it), `masks` and `logprobs`; its
    token is `StepOutput.followed[k]`. `key` is the scheduler's.
    """

    index: int
    at: int
    key: int


@dataclass(slots=True)
class Plan:
    """One step. B rows, T = n.sum() tokens, rows in depth-first order of their families.

    Row i computes positions [start[i], start[i] + n[i]); its tokens lie at [offsets[i], offsets[i + 1]) of the flat
    arrays. KV of a token is stored at its `out_slots` entry before attention, in every layer; attention then reads
    only the pool, at slot_table[rows[i], 0 : start[i] + n[i]], causal by absolute position. A row may read slots that
    another row of the same plan writes. `id_table` and `slot_table` are the scheduler's own tables: read-only, and
    valid only until the runner returns (from `run`, from `launch`, and for `id_table` of a late plan from `sample`).

    A plan that is launched before the results of the one before it are known may extend a row by the token that the
    step before draws for it: that token takes the place of ids[relay_to[k]] (-1 in the plan), and it is next_ids[
    relay_from[k]] of the plan launched just before. Such a row has n = 1. A relayed id of -1 (nothing was allowed)
    belongs to a row whose results nobody will look at; the runner takes any valid id instead.

    late: a row's mask or id_table entries depend on results that are not known yet: nothing is drawn, no mask is asked
    for and `id_table` is not read until `Launched.sample`. Without it, they are as they must be when it is launched.
    """

    step: int
    rows: Int32  # [B] row of the request tables
    start: Int32  # [B]
    n: Int32  # [B]
    offsets: Int32  # [B + 1]
    ids: Int32  # [T]
    positions: Int32  # [T]
    out_slots: Int32  # [T]
    sample: Bool  # [B] draw a next token from the last position
    slot_table: Int32  # [max_rows, context]
    id_table: Int32  # [max_rows, context]
    sampling: SamplingArrays
    masks: Masks = ()
    logprobs: Sequence[LogprobRequest] = ()
    groups: Sequence[Group] = ()
    verify: Sequence[Verify] = ()
    # The whole tree of what rows share, by first row, then by level. It is the list of the plan before this one only if
    # the rows are the same and those of their positions that were computed by then still use the same slots.
    segments: Sequence[Segment] = ()
    followers: Sequence[Follower] = ()  # only for runners with a true attribute `takes_followers`
    relay_to: Int32 = field(default_factory=lambda: NO_RELAY)  # flat positions whose ids the plan before this one draws
    relay_from: Int32 = field(default_factory=lambda: NO_RELAY)  # plan indices of that plan
    late: bool = False


@dataclass(slots=True)
class StepOutput:
    """next_ids[i] is the drawn token, or -1 where plan.sample[i] is false. `logprobs` and `verified` (see `Verify`) are
    keyed by plan index; `followed` are the tokens of `Plan.followers`."""

    next_ids: Int32
    logprobs: dict[int, RowLogprobs] = field(default_factory=dict)
    verified: dict[int, Int32] = field(default_factory=dict)
    followed: Int32 = field(default_factory=lambda: np.empty(0, np.int32))


class Runner(Protocol):
    """The device side of a step. `run` is called from one thread only and returns when the results are on the host."""

    num_slots: int  # KV slots, slot 0 is never handed out (padding)
    vocab_size: int

    def run(self, plan: Plan) -> StepOutput: ...


class Launched(Protocol):
    """A step that runs by itself. Both methods are called from the scheduler's thread only."""

    def sample(self) -> None:
        """Masks and `id_table` are now as sampling must see them. Once, and only for a plan that is `late`.

        Returns when `id_table` need not be read any more; does not wait for the step.
        """
        ...

    def result(self) -> StepOutput:
        """Wait until the results are on the host. Once. Raises what went wrong in the step."""
        ...


class AheadRunner(Runner, Protocol):
    """A runner that can be given a step before the one before it has ended.

    Steps run one after the other, in the order of their launch: a slot that is free when a step is planned may be
    written by it, even if a step that is still running reads or writes that slot. At most two are under way.
    """

    overlap: bool  # True

    def launch(self, plan: Plan) -> Launched:
        """Start a step. Returns as soon as the plan's arrays and tables need not be read any more (see `Plan`)."""
        ...


def mask_words(vocab_size: int) -> int:
    """Number of int32 words in a bitmask row."""
    return (vocab_size + 31) // 32
