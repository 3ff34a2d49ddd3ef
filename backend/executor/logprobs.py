"""Log-probabilities of a step: fp32 log-softmax of the raw logits, for the positions that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stemma.backend.core import LogprobRequest, Plan, RowLogprobs

CHUNK_ELEMENTS = 4 << 20  # most logits held at once for input positions (16 MiB in fp32)

Pairs = list[tuple[float, int]]


def _best(logprobs: Tensor, count: int) -> list[Pairs]:
    """The `count` best (logprob, id) of each row of [N, V], best first."""
    values, ids = torch.topk(logprobs, min(count, logprobs.shape[1]), dim=-1)
    return [list(zip(v, i, strict=True)) for v, i in zip(values.tolist(), ids.tolist(), strict=True)]


def _chosen(logprobs: Tensor, ids: Sequence[int]) -> list[Pairs]:
    """(logprob, id) of each wanted id, for each row of [N, V]."""
    values = logprobs[:, torch.tensor(ids, dtype=torch.int64, device=logprobs.device)].tolist()
    return [list(zip(row, ids, strict=True)) for row in values]


def check_ids(request: LogprobRequest, vocab_size: int) -> None:
    """Wanted ids must exist. Raises `ValueError` naming the first that does not."""
    for token in request.ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"logprob id {token} is outside the vocabulary of {vocab_size}")


def input_logprobs(
    plan: Plan,
    request: LogprobRequest,
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    vocab_size: int,
    result: RowLogprobs,
) -> None:
    """Fills `result.input*` for one row.

    hidden [T, H] after the final norm; head maps [N, H] to fp32 logits [N, V]. Positions are taken in chunks, so that
    [prompt, vocab] never exists at once.
    """
    i = request.index
    start, n, offset = int(plan.start[i]), int(plan.n[i]), int(plan.offsets[i])
    first, last = max(request.input_from, start + 1), min(request.input_to, start + n + 1)
    result.input_start = first
    at, end = offset + first - start, offset + last - start  # logits of flat index k - 1 speak for the token at k
    row = plan.id_table[int(plan.rows[i]), first:last]
    tokens = torch.from_numpy(row.astype(np.int64)).to(hidden.device)
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    for low in range(at, end, size):
        high = min(low + size, end)
        logprobs = torch.log_softmax(head(hidden[low - 1 : high - 1]), dim=-1)
        result.input += logprobs.gather(1, tokens[low - at : high - at, None])[:, 0].tolist()
        if request.top:
            result.input_top += _best(logprobs, request.top)
        if request.ids:
            result.input_ids += _chosen(logprobs, request.ids)


def output_logprobs(
    requests: Sequence[LogprobRequest], logits: Tensor, ids: Sequence[int], results: dict[int, RowLogprobs]
) -> None:
    """Fills `output*` of the requests' results. logits fp32 [N, V], one raw row each; ids the tokens drawn.

    Rows are taken in chunks, as positions are by `input_logprobs`.
    """
    size = max(1, CHUNK_ELEMENTS // logits.shape[1])
    for low in range(0, len(requests), size):
        logprobs = torch.log_softmax(logits[low : low + size], dim=-1)
        for k, request in enumerate(requests[low : low + size]):
            result = results[request.index]
            result.output = float(logprobs[k, ids[low + k]])
            if request.top:
                result.output_top = _best(logprobs[k : k + 1], request.top)[0]
            if request.ids:
                result.output_ids = _chosen(logprobs[k : k + 1], request.ids)[0]
