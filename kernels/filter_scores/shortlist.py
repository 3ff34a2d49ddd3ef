"""In plain torch: only the best candidates are sorted where they decide the outcome; a row that needs more is sorted in
full."""

from __future__ import annotations

import torch
from torch import Tensor

_SHORTLIST = 512  # candidates that the filters look at before they sort a whole row


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
    """See the package docstring."""
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
