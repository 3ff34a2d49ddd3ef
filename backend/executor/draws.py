"""Where a step draws tokens: after the last position of each sampling row, for its followers, and inside drafts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from stemma.backend.core import Int32, Int64, Masks, Plan


@dataclass(slots=True)
class Draws:
    """All draws of a step: those behind the rows, in plan order, those of `Plan.followers`, then those inside drafts,
    in the order of `Plan.verify`.

    `at`: int32[M], ascending, the flat position that each row of logits is for; `take`: int64[N], which of them each
    draw takes, in the sampler's order; None when N is M and each takes its own. `where`: int64[N], where each draw
    stands in that order. `plan`: a plan for the sampler in which each draw of a follower or inside a draft has a row of
    its own (the same branch, cut off at that position); `places`: int64[N], for each of the sampler's rows the row of
    `plan`.
    """

    plan: Plan
    places: Int64
    at: Int32
    where: Int64
    take: Int64 | None = None

    def verified(self, drawn: Int64) -> dict[int, Int32]:
        """`StepOutput.verified`, of all drawn ids [N]."""
        found: dict[int, Int32] = {}
        first = len(drawn) - sum(v.count for v in self.plan.verify)
        for v in self.plan.verify:
            found[v.index] = drawn[first : first + v.count].astype(np.int32)
            first += v.count
        return found


class _Joined:
    """The rows of a step's masks, which may not be there yet, and more. See `core.Masks`."""

    def __init__(self, masks: Masks, more: list[tuple[int, Int32]]) -> None:
        self._masks, self._more = masks, more

    def __len__(self) -> int:
        return len(self._masks) + len(self._more)

    def __iter__(self) -> Iterator[tuple[int, Int32]]:
        yield from self._masks
        yield from self._more


def every_draw(plan: Plan, places: Int64) -> Draws:
    """The draws of a plan whose sampling rows are `places`. Costs nothing without drafts and followers."""
    at = plan.offsets[1:][places] - 1
    if not plan.verify and not plan.followers:
        return Draws(plan, places, at, np.arange(len(at)))
    rows, followers = len(plan.rows), len(plan.followers)
    owner = np.array(
        [f.index for f in plan.followers] + [v.index for v in plan.verify for _ in range(v.count)], np.int64
    )
    back = np.array(  # tokens before the end of their row
        [plan.offsets[f.index + 1] - 1 - f.at for f in plan.followers]
        + [k for v in plan.verify for k in range(v.count, 0, -1)],
        np.int32,
    )
    index = np.concatenate([np.arange(rows + followers), owner[followers:]])
    extra = rows + np.arange(len(owner))
    s = plan.sampling
    masks: list[tuple[int, Int32]] = []
    bias, row = list(s.bias), rows + followers
    biased = dict(s.bias)
    for v in plan.verify:
        masks += [(row + k, mask) for k, mask in enumerate(v.masks) if mask is not None]
        bias += [(row + k, biased[v.index]) for k in range(v.count) if v.index in biased]
        row += v.count
    gathered = {
        name: getattr(s, name)[index]
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "seed",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "prompt_len",
        )
    }
    expanded = replace(
        plan,
        rows=np.concatenate([plan.rows, plan.rows[owner]]),
        start=np.concatenate([plan.start, plan.start[owner]]),
        n=np.concatenate([plan.n, plan.n[owner] - back]),
        sampling=replace(s, bias=bias, **gathered),
        masks=_Joined(plan.masks, masks),
    )
    at = np.concatenate([at, plan.offsets[owner + 1] - 1 - back])
    order = np.argsort(at, kind="stable")
    places, where = np.concatenate([places, extra])[order], np.argsort(order)
    if not followers:
        return Draws(expanded, places, at[order], where)
    at, take = np.unique(at[order], return_inverse=True)
    return Draws(expanded, places, at, where, take)
