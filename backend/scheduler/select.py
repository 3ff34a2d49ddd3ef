"""Select: every choice is scored in its context, as a branch of its own; siblings share all but their suffix."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import RowLogprobs
from stemma.backend.messages import SelectNode
from stemma.backend.scheduler.branch import Branch, Scoring, State, Work
from stemma.lang.choices import decide, method_named, needs_unconditional
from stemma.lang.errors import RequestError

if TYPE_CHECKING:
    from stemma.backend.scheduler.graph import Graph


def start_select(graph: Graph, branch: Branch, node: SelectNode) -> None:
    method_named(node.method)
    if node.temperature != 0.0:
        raise RequestError(
            f"select with temperature {node.temperature!r} is not supported by this version; use 0.0",
            param="temperature",
        )
    if not node.choices or "" in node.choices:
        raise RequestError(f"select needs at least one choice and no empty one, got {node.choices!r}", param="choices")
    if len(set(node.choices)) != len(node.choices):
        raise RequestError(f"select choices must differ, got {node.choices!r}", param="choices")
    if branch.row >= 0:
        graph.memory.release(branch)
    base = branch.ids()
    tail = graph.encode(branch, ())
    spelled = [graph.encode(branch, ((choice, False),)) for choice in node.choices]
    score_from = max(len(base) + min(_common(tail, ids) for ids in spelled), 1)
    longest = max(len(base) + len(ids) for ids in spelled)
    if longest > min(graph.context, graph.memory.slots.total):
        raise RequestError(
            f"The input with its longest choice ({longest} tokens) is longer than the model's context length "
            f"({graph.context} tokens) or the KV pool ({graph.memory.slots.total} tokens).",
            param="choices",
        )
    rows = [_scored(graph, branch, k, np.array([*base, *ids], np.int32), score_from) for k, ids in enumerate(spelled)]
    if needs_unconditional(node.method):
        bos = [graph.tokenizer.bos_id] if graph.tokenizer.bos_id is not None else []
        for ids in spelled:
            alone = np.array([*bos, *ids[score_from - len(base) :]], np.int32)
            rows.append(_scored(graph, branch, len(rows), alone, 1))
    branch.scoring = Scoring(branch.cursor, node, rows, len(base) + len(tail), len(rows))
    branch.state = State.SCORING
    for row in rows:
        if len(row.ids()) > 1:
            graph.memory.queue(row)
        else:  # a single token without context has no probability
            _choice_scored(graph, branch, row)


def _scored(graph: Graph, parent: Branch, k: int, ids: np.ndarray, score_from: int) -> Branch:
    scored = Branch(parent.program, f"{parent.id}#{parent.cursor}.{k}", parent, 0, graph.next_serial())
    scored.started = True
    scored.set_ids(ids)
    scored.work = Work(
        node=parent.cursor, params=None, prompt_len=len(ids), limit=len(ids), score_from=score_from,
        match_limit=score_from - 1,
    )  # fmt: skip
    scored.on_done = lambda done: _choice_scored(graph, parent, done)
    return scored


def _choice_scored(graph: Graph, branch: Branch, scored: Branch) -> None:
    scoring = branch.scoring
    assert scoring is not None
    graph.memory.forget(scored)
    scored.state = State.DONE
    scoring.remaining -= 1
    if scoring.remaining:
        return
    op, n = scoring.op, len(scoring.op.choices)
    lists = [_scores(b) for b in scoring.branches]
    spelled = [b.ids()[len(b.ids()) - len(x) :].tolist() for x, b in zip(lists[:n], scoring.branches[:n], strict=True)]
    decision = decide(op.method, op.choices, lists[:n], lists[n:] or None, ids=spelled)
    winner = scoring.branches[decision.index]
    works = [b.work for b in scoring.branches if b.work is not None]
    ids = winner.ids().copy()
    meta = {
        "choice": decision.index,
        "scores": list(decision.scores),
        "normalized_prompt_logprobs": [sum(x) / len(x) if x else 0.0 for x in lists[:n]],
        "input_token_logprobs": [
            [[p, t, None] for p, t in zip(x, tokens, strict=True)] for x, tokens in zip(lists[:n], spelled, strict=True)
        ],
        **decision.details,
        "prompt_tokens": scoring.n_context,
        "completion_tokens": max(len(ids) - scoring.n_context, 0),
        "cached_tokens": max((w.cached for w in works[:n]), default=0) if works else 0,
        "computed_tokens": sum(w.computed for w in works),
        "forced_tokens": 0,
        "finish_reason": {"type": "stop", "matched": None},
        "e2e_latency": time.perf_counter() - scoring.t_start,
        "num_retractions": sum(w.retractions for w in works),
    }
    branch.scoring = None
    branch.state = State.IDLE
    branch.set_ids(ids)
    branch.tail = ()
    start = int(min(scoring.n_context, len(ids)))
    branch.emit(scoring.node, "done", text=op.choices[decision.index], ids=ids[start:].tolist(), meta=meta)
    graph.mark(branch, scoring.node + 1)
    graph.advance(branch)


def _common(a: list[int], b: list[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _scores(branch: Branch) -> list[float]:
    """Log-probabilities of a scored branch's tokens, in order."""
    assert branch.work is not None
    found: dict[int, float] = {}
    said: RowLogprobs
    for _, said in branch.work.records:
        for k, value in enumerate(said.input):
            found[said.input_start + k] = value
    return [found[p] for p in sorted(found)]
