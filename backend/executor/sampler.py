"""From raw logits to next tokens.

The order is: bias, penalties, grammar bitmask, temperature, top-k, top-p on what top-k left, min-p, draw. Penalties
after Hugging Face (repetition: positive logits divided, negative multiplied, for every distinct token of prompt and
output) and the OpenAI API (frequency: times the count in the output; presence: once for each distinct output token).
Candidates are ordered by logit, ties by id, so every filter keeps a well-defined set. Greedy rows (temperature 0) take
the argmax of the penalised, masked logits, lowest id first. Masks and temperature are one kernel,
`stemma.kernels.mask`; draws: `stemma.kernels.sampling`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stemma.backend.core import Int64, Plan, SamplingArrays
from stemma.backend.executor.mask_table import MaskTable
from stemma.kernels.dispatch import Kernels

_SHORTLIST = 512  # candidates that the filters look at before they sort a whole row


def _add_bias(logits: Tensor, plan: Plan, place: dict[int, int]) -> None:
    for index, pairs in plan.sampling.bias:
        if pairs and index in place:
            ids = torch.tensor([token for token, _ in pairs], device=logits.device)
            addends = torch.tensor([addend for _, addend in pairs], dtype=logits.dtype, device=logits.device)
            logits[place[index]].index_add_(0, ids, addends)


def _penalise(logits: Tensor, plan: Plan, places: Int64) -> None:
    """Sparse: only the tokens that a row has seen are touched."""
    s = plan.sampling
    needs = (s.repetition_penalty != 1) | (s.frequency_penalty != 0) | (s.presence_penalty != 0)
    for k, i in enumerate(places):
        if not needs[i]:
            continue
        seen = plan.id_table[plan.rows[i], : plan.start[i] + plan.n[i]]
        row = logits[k]
        if s.repetition_penalty[i] != 1:
            ids = torch.from_numpy(np.unique(seen).astype(np.int64)).to(logits.device)
            penalty = float(s.repetition_penalty[i])
            values = row[ids]
            row[ids] = torch.where(values > 0, values / penalty, values * penalty)
        output = seen[s.prompt_len[i] :]
        if output.size and (s.frequency_penalty[i] or s.presence_penalty[i]):
            distinct, counts = np.unique(output, return_counts=True)
            minus = counts * s.frequency_penalty[i] + s.presence_penalty[i]
            ids = torch.from_numpy(distinct.astype(np.int64)).to(logits.device)
            row[ids] -= torch.from_numpy(minus.astype(np.float32)).to(logits.device)


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
    temperature = None
    if not plan.sampling.all_greedy:
        temperature = torch.from_numpy(plan.sampling.temperature[places]).to(logits.device)
    if wanted or temperature is not None:
        kernels.apply_mask(logits, table.rows, torch.from_numpy(row_ids).to(logits.device), temperature)
    return impossible


def _keep(ordered: Tensor, vocab: int, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which of the candidates [B, C], best first, the filters keep: bool [B, C], a prefix of each row.

    ordered holds natural-log probabilities over the whole vocabulary (after temperature).
    """
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    in_top_k = rank < top_k[:, None]
    probability = ordered.double().exp().masked_fill_(~in_top_k, 0.0)
    # without top-k the candidates may be a part of what top-p shares out: the whole vocabulary, whose sum is 1
    total = probability.sum(-1).masked_fill_(top_k >= vocab, 1.0)
    probability /= total[:, None]
    before = probability.cumsum(-1) - probability
    likely = ordered >= ordered[:, :1] + min_p.log()[:, None]  # min_p = 0 gives -inf: all
    keep = in_top_k & ((before < top_p[:, None]) | (top_p[:, None] >= 1)) & likely
    keep[:, 0] = True
    return keep


def filter_scores(scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """Sets what top-k, top-p and min-p drop to -inf, in place. scores fp32 [B, V], the others [B].

    Only the best candidates are sorted where they decide the outcome; a row that needs more is sorted in full.
    """
    logprobs = torch.log_softmax(scores, dim=-1)
    vocab = scores.shape[1]
    short = min(vocab, _SHORTLIST)
    if short < vocab:
        # The shortlist decides a row when its candidates beyond the last are ruled out by top-k, top-p or min-p.
        # Ties at its border would make the order ambiguous, so such rows take the full sort.
        values, ids = torch.topk(logprobs, short + 1, dim=-1)
        mass = values[:, :short].double().exp().sum(-1)
        decided = (
            (top_k <= short)
            | ((top_p < 1) & (mass >= top_p + 1e-6) & (top_k >= vocab))
            | ((values[:, short] < values[:, 0] + min_p.log()) & ((top_k >= vocab) | (top_p >= 1)))
        )
        decided &= values[:, short - 1] > values[:, short]
    else:
        values = ids = logprobs
        decided = torch.zeros(scores.shape[0], dtype=torch.bool, device=scores.device)
    rows = decided.nonzero()[:, 0]
    if rows.numel():
        # topk leaves ties in any order: sort by id first, then stably by value
        by_id, order = torch.sort(ids[rows, :short], dim=-1)
        ordered, again = torch.sort(values[rows, :short].gather(1, order), dim=-1, descending=True, stable=True)
        _drop(scores, rows, ordered, by_id.gather(1, again), top_k, top_p, min_p)
    rows = (~decided).nonzero()[:, 0]
    if rows.numel():
        ordered, ids = torch.sort(logprobs[rows], dim=-1, descending=True, stable=True)
        _drop(scores, rows, ordered, ids, top_k, top_p, min_p)


def _drop(
    scores: Tensor, rows: Tensor, ordered: Tensor, ids: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> None:
    keep = _keep(ordered, scores.shape[1], top_k[rows], top_p[rows], min_p[rows])
    kept = torch.full((rows.numel(), scores.shape[1]), float("-inf"), dtype=scores.dtype, device=scores.device)
    source = scores[rows].gather(1, ids)
    kept.scatter_(1, ids, source.masked_fill_(~keep, float("-inf")))
    scores[rows] = kept


def sample(logits: Tensor, plan: Plan, places: Int64, kernels: Kernels, table: MaskTable | None = None) -> Tensor:
    """Next tokens of the sampling rows, int64 [N]; -1 where a grammar mask allows nothing.

    logits fp32 [N, V], modified in place: one row for each plan index in `places`. `table`: where masks are interned;
    None is a new one. Step-independent: the result of a row depends on its logits, parameters, history and the index of
    the new token only.
    """
    s = plan.sampling
    if s.all_greedy and not s.any_penalty and not plan.masks and not s.bias:
        return _best(logits)
    place = {int(i): k for k, i in enumerate(places)}
    if s.bias:
        _add_bias(logits, plan, place)
    if s.any_penalty:
        _penalise(logits, plan, places)
    if table is None:
        table = MaskTable(logits.shape[1], logits.device)
    impossible = _mask_and_scale(logits, plan, places, place, kernels, table)
    if s.all_greedy:
        ids = _best(logits)
    else:
        ids = _draw(logits, plan, places, s, kernels)
    for k in impossible:
        ids[k] = -1
    return ids


def _best(logits: Tensor) -> Tensor:
    """The likeliest token of each row, lowest id first. numpy's argmax is vectorised on CPU, torch's is not."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=1))
    return torch.argmax(logits, dim=-1)


def _draw(logits: Tensor, plan: Plan, places: Int64, s: SamplingArrays, kernels: Kernels) -> Tensor:
    """logits: after temperature."""
    greedy = s.temperature[places] == 0
    ids = _best(logits) if greedy.any() else None
    drawn = np.flatnonzero(~greedy)
    if not drawn.size:
        assert ids is not None
        return ids
    chosen = places[drawn]
    take = lambda values: torch.from_numpy(values[chosen]).to(logits.device)  # noqa: E731
    scores = logits if ids is None else logits[torch.from_numpy(drawn).to(logits.device)]
    if s.any_filter:
        filtered = (s.top_k[chosen] < logits.shape[1]) | (s.top_p[chosen] < 1) | (s.min_p[chosen] > 0)
        if filtered.all():
            filter_scores(scores, take(s.top_k), take(s.top_p), take(s.min_p))
        elif filtered.any():
            some = torch.from_numpy(np.flatnonzero(filtered)).to(logits.device)
            part = scores[some]
            filter_scores(part, take(s.top_k)[some], take(s.top_p)[some], take(s.min_p)[some])
            scores[some] = part
    positions = torch.from_numpy((plan.start[chosen] + plan.n[chosen]).astype(np.int64)).to(logits.device)
    tokens = kernels.draw(scores, take(s.seed), positions)
    if ids is None:
        return tokens
    ids[torch.from_numpy(drawn).to(ids.device)] = tokens
    return ids
