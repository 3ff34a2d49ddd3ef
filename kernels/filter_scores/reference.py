"""The definition, in plain torch: sort every row."""

from __future__ import annotations

import torch
from torch import Tensor


def filter_scores(scores: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """See the package docstring."""
    vocab = scores.shape[1]
    logprobs = torch.log_softmax(scores, dim=-1)
    ordered, ids = torch.sort(logprobs, dim=-1, descending=True, stable=True)
    in_top_k = torch.arange(vocab, device=scores.device) < top_k[:, None]
    probability = ordered.double().exp().masked_fill_(~in_top_k, 0.0)
    probability /= probability.sum(-1, keepdim=True).masked_fill_((top_k >= vocab)[:, None], 1.0)
    before = probability.cumsum(-1) - probability
    keep = in_top_k & ((before < top_p[:, None]) | (top_p[:, None] >= 1))
    keep &= ordered >= ordered[:, :1] + min_p.log()[:, None]  # min_p = 0 gives -inf: all
    keep[:, 0] = True
    scores.masked_fill_(~torch.zeros_like(keep).scatter_(1, ids, keep), float("-inf"))
