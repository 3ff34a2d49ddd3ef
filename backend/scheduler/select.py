"""Select: the choices are scored in their context as a trie of token ids, each position of which is computed once.

Where choices part, the row that computes the position tells the log-probability of every way on, so choices of one
token take one row of logits together. The last token of a choice is scored, not computed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stemma.backend.core import RowLogprobs
from stemma.backend.messages import SelectNode
from stemma.backend.scheduler.branch import Branch, Part, Scoring, State, Work
from stemma.lang.choices import decide, method_named, needs_unconditional
from stemma.lang.errors import RequestError

if TYPE_CHECKING:
    from stemma.backend.scheduler.graph import Graph


def start_select(graph: Graph, branch: Branch, node: SelectNode) -> None:
    method_named(node.method)
    if not (math.isfinite(node.temperature) and node.temperature >= 0):
        raise RequestError(
            f"temperature of a select must be in [0, inf), got {node.temperature!r}", param="temperature"
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
    for most, where in ((graph.context, "the model's context length"), (graph.memory.slots.total, "the KV pool")):
        if longest > most:
            raise RequestError(
                f"The input with its longest choice ({longest} tokens) is longer than {where} ({most} tokens).",
                param="choices",
            )
    parts = _trie([np.array([*base, *ids], np.int32) for ids in spelled], score_from)
    if needs_unconditional(node.method):
        bos = [graph.tokenizer.bos_id] if graph.tokenizer.bos_id is not None else []
        alone = [np.array([*bos, *ids[score_from - len(base) :]], np.int32) for ids in spelled]
        n = len(parts)
        parts += [
            replace(p, source=p.source + n, teller=p.teller + n if p.teller >= 0 else -1) for p in _trie(alone, 1)
        ]
    rows = []
    for k in sorted(range(len(parts)), key=lambda k: parts[k].ids.tolist()):  # what is shared runs before its sharers
        part = parts[k]
        # what is scored here: all from score_from on, or what is behind the token that another branch tells
        first = part.at + (part.teller >= 0)
        if first < len(part.ids):  # else its tokens are all of its source, or a single one without context
            part.branch = _scored(graph, branch, k, part, first)
            rows.append(part.branch)
    branch.scoring = Scoring(
        branch.cursor, node, parts, len(base) + len(tail), len(base), len(rows), graph.memory.clock()
    )
    branch.state = State.SCORING
    for row in rows:
        graph.memory.queue(row)
    if not rows:
        _decide(graph, branch)


def _trie(sequences: list[np.ndarray], score_from: int) -> list[Part]:
    """Which tokens each sequence takes from which other one, so that every position of their trie is computed once.

    In lexicographic order, a sequence shares most with the one before it. Sequences differ somewhere behind their first
    `score_from` tokens, if at all.
    """
    parts = [Part(ids, k, 0, score_from) for k, ids in enumerate(sequences)]
    order = sorted(range(len(sequences)), key=lambda k: sequences[k].tolist())
    # the parts that the path of the last one runs along, each with the first position whose token its branch scores
    path: list[tuple[int, int]] = []
    for before, k in zip([-1, *order], order, strict=False):
        ids, part = sequences[k].tolist(), parts[k]
        at = _common(sequences[before].tolist(), ids) if path else 0
        if at < score_from:
            path = [(score_from, k)]
            continue
        while path[-1][0] > at:
            path.pop()
        part.source, part.shared, part.at = before, at - score_from, at
        if at == len(sequences[before]):  # its last token is computed by nobody yet
            path.append((at, k))
        else:
            part.teller = path[-1][1]
            parts[part.teller].asked += (ids[at],)
            path.append((at + 1, k))
    return parts


def _scored(graph: Graph, parent: Branch, k: int, part: Part, score_from: int) -> Branch:
    ids = part.ids[:-1]
    scored = Branch(parent.program, f"{parent.id}#{parent.cursor}.{k}", parent, 0, graph.next_serial())
    scored.started = True
    scored.set_ids(ids)
    scored.work = Work(
        node=parent.cursor, params=None, prompt_len=len(ids), limit=len(part.ids), score_from=score_from,
        score_next=int(part.ids[-1]), score_ids=part.asked, match_limit=score_from - 1, t_start=graph.memory.clock(),
    )  # fmt: skip
    scored.on_done = lambda done: _choice_scored(graph, parent, done)
    return scored


def _choice_scored(graph: Graph, branch: Branch, scored: Branch) -> None:
    assert branch.scoring is not None
    graph.memory.forget(scored)
    scored.state = State.DONE
    branch.scoring.remaining -= 1
    if not branch.scoring.remaining:
        _decide(graph, branch)


def _decide(graph: Graph, branch: Branch) -> None:
    """Every token is scored: pick a choice, append it, go on."""
    scoring = branch.scoring
    assert scoring is not None
    op, parts, n = scoring.op, scoring.parts, len(scoring.op.choices)
    lists = _all_scores(parts)
    spelled = [part.ids[len(part.ids) - len(x) :].tolist() for x, part in zip(lists[:n], parts[:n], strict=True)]
    seed = graph.new_seed() if op.seed is None and op.temperature > 0 else op.seed
    decision = decide(
        op.method, op.choices, lists[:n], lists[n:] or None, ids=spelled, temperature=op.temperature, seed=seed
    )
    ids = parts[decision.index].ids.copy()
    works = [part.branch.work for part in parts if part.branch is not None and part.branch.work is not None]
    context = [part.branch.work for part in parts[:n] if part.branch is not None and part.branch.work is not None]
    meta = {
        "choice": decision.index,
        "scores": list(decision.scores),
        "probabilities": list(decision.probabilities),
        "normalized_prompt_logprobs": [sum(x) / len(x) if x else 0.0 for x in lists[:n]],
        "input_token_logprobs": [
            [[p, t, None] for p, t in zip(x, tokens, strict=True)] for x, tokens in zip(lists[:n], spelled, strict=True)
        ],
        **decision.details,
        "prompt_tokens": scoring.n_context,
        "completion_tokens": max(len(ids) - scoring.n_context, 0),
        "cached_tokens": min((w.cached for w in context), default=0),  # the others may share what the first computed
        "computed_tokens": sum(w.computed for w in works),
        "forced_tokens": 0,
        "finish_reason": {"type": "stop", "matched": None},
        "e2e_latency": graph.memory.clock() - scoring.t_start,
        "num_retractions": sum(w.retractions for w in works),
    }
    if branch.program.tokens:
        meta["prompt_ids"] = {"start": scoring.base, "ids": ids[scoring.base : scoring.n_context].tolist()}
    branch.scoring = None
    branch.state = State.IDLE
    branch.set_ids(ids)
    branch.tail = ()
    start = int(min(scoring.n_context, len(ids)))
    branch.emit(scoring.node, "done", text=op.choices[decision.index], ids=ids[start:].tolist(), meta=meta)
    graph.mark(branch, scoring.node + 1)
    graph.advance(branch)


def _all_scores(parts: list[Part]) -> list[list[float]]:
    """The log-probabilities of the scored tokens of every part: its source's, as far as shared, then its own."""
    found: dict[int, list[float]] = {}
    for k in sorted(range(len(parts)), key=lambda k: parts[k].ids.tolist()):  # a source comes before what shares it
        part = parts[k]
        scores = found[part.source][: part.shared] if part.shared else []
        if part.teller >= 0:
            scores = [*scores, _told(parts[part.teller].branch, part.at, int(part.ids[part.at]))]
        found[k] = scores + (_scores(part.branch) if part.branch is not None else [])
    return [found[k] for k in range(len(parts))]


def _common(a: list[int], b: list[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _told(branch: Branch | None, position: int, token: int) -> float:
    """The log-probability of a token at a position that a scored branch has computed for its own."""
    assert branch is not None and branch.work is not None
    for _, said in branch.work.records:
        k = position - said.input_start
        if 0 <= k < len(said.input_ids):
            return next(value for value, asked in said.input_ids[k] if asked == token)
    raise AssertionError(f"position {position} was not scored")


def _scores(branch: Branch) -> list[float]:
    """Log-probabilities of a scored branch's tokens, in order."""
    assert branch.work is not None
    found: dict[int, float] = {}
    said: RowLogprobs
    for _, said in branch.work.records:
        for k, value in enumerate(said.input):
            found[said.input_start + k] = value
    return [found[p] for p in sorted(found)]
