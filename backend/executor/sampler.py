"""From raw logits to next tokens.

The order is: bias, penalties, grammar bitmask, temperature, top-k, top-p on what top-k left, min-p, draw. Penalties
after Hugging Face (repetition: positive logits divided, negative multiplied, for every distinct token of prompt and
output) and the OpenAI API (frequency: times the count in the output; presence: once for each distinct output token).
Candidates are ordered by logit, ties by id, so every filter keeps a well-defined set. Greedy rows (temperature 0) take
the argmax of the penalised, masked logits, lowest id first. Each of these is an operation of `stemma.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stemma.backend.core import Float32, Int32, Int64, Plan, SamplingArrays
from stemma.backend.executor.mask_table import MaskTable
from stemma.backend.executor.transfer import to_device
from stemma.kernels.dispatch import Kernels


def _bias(plan: Plan, place: dict[int, int]) -> dict[tuple[int, int], float]:
    """(row of logits, token id) -> addend."""
    added: dict[tuple[int, int], float] = {}
    for index, pairs in plan.sampling.bias:
        if index in place:
            for token, addend in pairs:
                key = place[index], token
                added[key] = added.get(key, 0.0) + addend
    return added


def _penalties(plan: Plan, places: Int64) -> Iterator[tuple[int, Int32, Float32, Float32]]:
    """(row of logits, ids, divisors, subtrahends) of the rows that have penalties. Sparse: only tokens that a row has
    seen are named."""
    s = plan.sampling
    needs = (s.repetition_penalty != 1) | (s.frequency_penalty != 0) | (s.presence_penalty != 0)
    for k, i in enumerate(places):
        if not needs[i]:
            continue
        seen = plan.id_table[plan.rows[i], : plan.start[i] + plan.n[i]]
        ids = np.unique(seen)
        divide = np.full(len(ids), s.repetition_penalty[i], np.float32)
        minus = np.zeros(len(ids), np.float32)
        output = seen[s.prompt_len[i] :]
        if output.size and (s.frequency_penalty[i] or s.presence_penalty[i]):
            distinct, counts = np.unique(output, return_counts=True)
            at = np.searchsorted(ids, distinct)
            minus[at] = counts * s.frequency_penalty[i] + s.presence_penalty[i]
        yield k, ids, divide, minus


def _adjust(logits: Tensor, plan: Plan, places: Int64, place: dict[int, int], kernels: Kernels) -> None:
    """Bias, then penalties, of single tokens."""
    rows: list[Int32] = []
    ids: list[Int32] = []
    divide: list[Float32] = []
    minus: list[Float32] = []
    added = _bias(plan, place) if plan.sampling.bias else {}
    penalised: set[tuple[int, int]] = set()
    for k, tokens, by, less in _penalties(plan, places) if plan.sampling.any_penalty else ():
        rows.append(np.full(len(tokens), k, np.int32))
        ids.append(tokens)
        divide.append(by)
        minus.append(less)
        if added:
            penalised.update((k, token) for token in tokens.tolist())
    if added:
        alone = [key for key in added if key not in penalised]  # the others are added where their penalty is
        rows.append(np.array([k for k, _ in alone], np.int32))
        ids.append(np.array([token for _, token in alone], np.int32))
        divide.append(np.ones(len(alone), np.float32))
        minus.append(np.zeros(len(alone), np.float32))
    if not rows:
        return
    row, token = np.concatenate(rows), np.concatenate(ids)
    add = np.zeros(len(row), np.float32)
    if added:
        add[:] = [added.get(key, 0.0) for key in zip(row.tolist(), token.tolist(), strict=True)]
    arrays = [row, token, add, np.concatenate(divide), np.concatenate(minus)]
    kernels.adjust_logits(logits, *to_device(arrays, logits.device))


def _mask_and_scale(
    logits: Tensor, plan: Plan, places: Int64, place: dict[int, int], kernels: Kernels, table: MaskTable
) -> list[int]:
    """Forbids what the bitmasks forbid and divides by the temperature. Returns the rows whose mask allows nothing.

    Waits here for masks that are still being worked out.
    """
    row_ids = np.full(len(places), -1, np.int32)
    impossible: list[int] = []
    wanted = [(place[index], mask) for index, mask in plan.masks if index in place] if plan.masks else []
    if wanted:
        ids = table.row_ids([mask for _, mask in wanted])
        row_ids[[at for at, _ in wanted]] = ids
        impossible = [wanted[k][0] for k in np.flatnonzero(table.allows_nothing(ids))]
    if wanted or not plan.sampling.all_greedy:
        rows, temperature = to_device([row_ids, plan.sampling.temperature[places]], logits.device)
        kernels.apply_mask(logits, table.rows, rows, None if plan.sampling.all_greedy else temperature)
    return impossible


def sample(logits: Tensor, plan: Plan, places: Int64, kernels: Kernels, table: MaskTable | None = None) -> Tensor:
    """Next tokens of the sampling rows, int64 [N]; -1 where a grammar mask allows nothing.

    logits fp32 [N, V], modified in place: one row for each plan index in `places`. `table`: where masks are interned;
    None is a new one. Step-independent: the result of a row depends on its logits, parameters, history and the index of
    the new token only.
    """
    s = plan.sampling
    if s.all_greedy and not s.any_penalty and not plan.masks and not s.bias:
        return kernels.argmax(logits)
    place = {int(i): k for k, i in enumerate(places)}
    if s.bias or s.any_penalty:
        _adjust(logits, plan, places, place, kernels)
    if table is None:
        table = MaskTable(logits.shape[1], logits.device)
    impossible = _mask_and_scale(logits, plan, places, place, kernels, table)
    if s.all_greedy:
        ids = kernels.argmax(logits)
    else:
        ids = _draw(logits, plan, places, s, kernels)
    for k in impossible:
        ids[k] = -1
    return ids


def _draw(logits: Tensor, plan: Plan, places: Int64, s: SamplingArrays, kernels: Kernels) -> Tensor:
    """logits: after temperature."""
    if logits.device.type != "cpu":
        return _draw_all(logits, plan, places, s, kernels)
    greedy = s.temperature[places] == 0
    ids = kernels.argmax(logits) if greedy.any() else None
    drawn = np.flatnonzero(~greedy)
    if not drawn.size:
        assert ids is not None
        return ids
    chosen = places[drawn]
    take = lambda values: torch.from_numpy(values[chosen])  # noqa: E731
    scores = logits if ids is None else logits[torch.from_numpy(drawn)]
    if s.any_filter:
        filtered = (s.top_k[chosen] < logits.shape[1]) | (s.top_p[chosen] < 1) | (s.min_p[chosen] > 0)
        if filtered.all():
            kernels.filter_scores(scores, take(s.top_k), take(s.top_p), take(s.min_p))
        elif filtered.any():
            some = torch.from_numpy(np.flatnonzero(filtered))
            part = scores[some]
            kernels.filter_scores(part, take(s.top_k)[some], take(s.top_p)[some], take(s.min_p)[some])
            scores[some] = part
    positions = torch.from_numpy((plan.start[chosen] + plan.n[chosen]).astype(np.int64))
    tokens = kernels.draw(scores, take(s.seed), positions)
    if ids is None:
        return tokens
    ids[torch.from_numpy(drawn)] = tokens
    return ids


def _draw_all(logits: Tensor, plan: Plan, places: Int64, s: SamplingArrays, kernels: Kernels) -> Tensor:
    """The same for all rows at once, as a GPU prefers: one copy of the parameters, no row picked out."""
    positions = (plan.start[places] + plan.n[places]).astype(np.int64)
    arrays = [s.seed[places], positions, s.temperature[places], s.top_k[places], s.top_p[places], s.min_p[places]]
    seed, position, temperature, top_k, top_p, min_p = to_device(arrays, logits.device)
    greedy = kernels.argmax(logits) if (s.temperature[places] == 0).any() else None
    if s.any_filter:
        kernels.filter_scores(logits, top_k, top_p, min_p)
    tokens = kernels.draw(logits, seed, position)
    return tokens if greedy is None else torch.where(temperature == 0, greedy, tokens)
