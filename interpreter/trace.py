"""What a program did, to look at: a text tree, a page of its own, Chrome's trace format, JSON.

`Trace.of` turns a program graph into plain data: every node with its text cut into tokens where the endpoint tells
them, and each token with where it came from. `page.py` shows that data; nothing here knows about HTML.

    cached     its KV was there before: an earlier node or program computed it
    computed   literal text that was run through the model for this node
    sampled    drawn from the model's distribution
    forced     appended without sampling, since the grammar allowed nothing else
    chosen     the choice of a select
    end        a token that ended the output and is no part of its text
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stemma.interpreter.endpoints.base import Endpoint
from stemma.interpreter.explain import explain
from stemma.interpreter.graph import FILLED, GraphBranch, GraphNode, ProgramGraph
from stemma.interpreter.trace_forms import chrome_events, text_tree
from stemma.interpreter.usage import NodeUsage, Prices, model_name, totals, usages
from stemma.lang.errors import RequestError, StemmaError

Format = Literal["html", "chrome", "json", "text"]
SUFFIXES: dict[str, Format] = {".html": "html", ".htm": "html", ".json": "json", ".txt": "text"}

MAX_NODES = 2000  # nodes in a trace
MAX_CHARS = 20_000  # characters of one text
MAX_TOKENS = 4000  # tokens of one prompt or output
MAX_PIECES = 200_000  # tokens in all
MAX_TOP = 5  # alternatives shown for a token

Part = list[Any]  # [text, where it came from]


@dataclass(slots=True)
class Trace:
    """Plain data about a run, as `data`, and the ways to show it. `print(trace)` gives the tree."""

    data: dict[str, Any]

    @classmethod
    def of(cls, graph: ProgramGraph, *, endpoint: Endpoint | None = None, prices: Prices | None = None) -> Trace:
        """The trace of a graph, run or recorded. The endpoint, if it still answers, tells what token ids stand for."""
        return cls(_Builder(graph, endpoint, prices).build())

    def __str__(self) -> str:
        return "\n".join(text_tree(self.data))

    def html(self) -> str:
        """The page: one file that needs nothing else."""
        from stemma.interpreter.page import page  # only those who look at pages need it

        return page(self.data)

    def chrome(self) -> dict[str, Any]:
        """Chrome's trace event format, for chrome://tracing, Perfetto and speedscope: one lane for each branch."""
        return chrome_events(self.data)

    def save(self, path: str | Path, format: Format | None = None) -> Path:
        """Write it to a file and return the path. `format`: html, chrome, json or text; else by the file's ending.

        Raises `RequestError` for another format, or an ending that tells none.
        """
        path = Path(path)
        chosen = format or SUFFIXES.get(path.suffix.lower())
        if chosen == "html":
            text = self.html()
        elif chosen == "chrome":
            text = json.dumps(self.chrome())
        elif chosen == "json":
            text = json.dumps(self.data, ensure_ascii=False, indent=1)
        elif chosen == "text":
            text = f"{self}\n"
        else:
            asked = f"format {format!r}" if format else f"the ending of {path.name!r}"
            raise RequestError(f"{asked} tells no format; one of html, chrome, json, text", param="format")
        path.write_text(text, encoding="utf-8", errors="replace")
        return path

    def _repr_html_(self) -> str:
        """The page in a frame, for notebooks."""
        from stemma.interpreter.page import frame

        return frame(self.data)


class _Builder:
    """One walk over a graph."""

    def __init__(self, graph: ProgramGraph, endpoint: Endpoint | None, prices: Prices | None) -> None:
        self.graph = graph
        self.notes: list[str] = []
        self.endpoint = endpoint
        info = self._info()
        self.model = model_name(info)
        self.used = {u.address: u for u in usages(graph, prices, self.model)}
        self.filled = [n for b in graph.branches.values() for n in b.nodes if n.kind in FILLED]
        self.bytes = self._token_bytes()
        self.pieces_left = MAX_PIECES
        self.parts: dict[str, list[Part]] = {}  # of literal nodes
        self.reused: dict[str, int] = {}

    def _info(self) -> Mapping[str, Any]:
        if self.endpoint is None or "remote" in self.endpoint.capabilities:
            return {}
        try:
            return self.endpoint.info()
        except StemmaError as error:
            self.notes.append(f"The endpoint did not say what it is: {error}")
            return {}

    def _token_bytes(self) -> dict[int, bytes]:
        """Of every id that a node speaks of."""
        wanted: set[int] = set()
        for node in self.filled:
            wanted.update(node.ids or ())
            wanted.update((node.meta.get("prompt_ids") or {}).get("ids", ()))
            for top in (node.meta.get("output_top_logprobs") or ())[:MAX_TOKENS]:
                wanted.update(t[1] for t in (top or ())[:MAX_TOP])
        if not wanted or self.endpoint is None or "tokens" not in self.endpoint.capabilities:
            return {}
        try:
            return self.endpoint.token_bytes(wanted)
        except (StemmaError, OSError) as error:
            self.notes.append(f"The texts of single tokens could not be had: {error}")
            return {}

    def build(self) -> dict[str, Any]:
        graph = self.graph
        self._spread_prompts()
        nodes: list[dict[str, Any]] = []
        branches: list[dict[str, Any]] = []
        count = sum(len(b.nodes) for b in graph.branches.values())
        for branch in graph.branches.values():
            shown = branch.nodes[: max(MAX_NODES - len(nodes), 0)]
            nodes += [self._node(node) for node in shown]
            if shown or branch.parent is None or len(nodes) < MAX_NODES:
                parent = branch.parent.id if branch.parent else None
                branches.append({"id": branch.id, "parent": parent, "at": branch.at, "label": branch.label})
        if len(nodes) < count:
            self.notes.append(f"Only the first {len(nodes)} of {count} nodes are shown.")
        if self.pieces_left <= 0:
            self.notes.append(f"Tokens beyond the first {MAX_PIECES} are shown as text.")
        if self.filled and not any("prompt_ids" in n.meta for n in self.filled):
            self.notes.append(
                "The tokens of the prompts are not known, so literal text is not coloured. "
                "Where the endpoint can tell them, run with trace=True."
            )
        plan = explain(graph).to_dict()
        plan.pop("tree")
        ends = [t for n in self.filled for t in (n.t_done,) if t]
        return {
            "title": graph.name or "program",
            "program": graph.program,
            "model": self.model,
            "finished": graph.end,
            "wall": round(max(ends) - graph.started, 6) if ends else 0.0,
            "totals": totals(self.used.values()),
            "plan": plan,
            "branch_count": len(graph.branches),
            "branches": branches,
            "nodes": nodes,
            "notes": self.notes,
        }

    # --- nodes

    def _node(self, node: GraphNode) -> dict[str, Any]:
        out: dict[str, Any] = {"id": node.address, "branch": node.branch.id, "kind": node.kind, "where": node.where}
        if node.kind not in FILLED:
            out["role"] = node.wire.get("role")
            if quotes := node.quotes:
                out["quotes"] = quotes
            out["text"] = self._cut(node.text if node.text is not None else f"<{node.wire.get('role', '')}>")
            if node.address in self.parts:
                out["parts"] = self.parts[node.address]
                out["reused"] = self.reused.get(node.address, 0)
            if node.failure is not None:
                out["error"] = str(node.failure)
            return out
        used = self.used[node.address]
        out |= {"name": node.name, "status": used.status, "usage": _present(used), "times": self._times(node)}
        if node.text is not None:
            out["text"] = self._cut(node.text)
        if node.failure is not None:
            out["error"] = str(node.failure)
        out |= self._asked(node)
        out["prompt"] = self._prompt(node)
        tokens = self._output(node)
        if tokens:
            out["tokens"] = tokens
        if reason := node.meta.get("finish_reason"):
            out["finish"] = reason
        return out

    def _cut(self, text: str) -> str:
        return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(text) - MAX_CHARS} more characters)"

    def _times(self, node: GraphNode) -> dict[str, float]:
        """Seconds from the program's start: sent, begun by the endpoint, first token, done."""
        out: dict[str, float] = {}
        at = lambda t: round(t - self.graph.started, 6)  # noqa: E731
        if node.t_sent:
            out["sent"] = at(node.t_sent)
        if node.t_done:
            out["done"] = at(node.t_done)
            took, first = node.meta.get("e2e_latency"), node.meta.get("ttft")
            if took is not None and used_itself(node):
                out["begun"] = max(at(node.t_done - took), out.get("sent", 0.0))
                if first is not None:
                    out["first"] = min(out["begun"] + round(first, 6), out["done"])
        if node.t_first:
            out["first"] = at(node.t_first)
        return out

    def _asked(self, node: GraphNode) -> dict[str, Any]:
        wire = node.wire
        if node.kind == "gen":
            return {"params": wire["params"], "constraint": wire.get("constraint")}
        scores = node.meta.get("scores") or []
        best = node.meta.get("choice")
        choices = [
            {"text": self._cut(c), "score": scores[i] if i < len(scores) else None, "chosen": i == best}
            for i, c in enumerate(wire["choices"])
        ]
        return {"choices": choices, "params": {"method": wire["method"], "temperature": wire["temperature"]}}

    # --- tokens

    def _prompt(self, node: GraphNode) -> dict[str, Any]:
        """How to put the prompt together: the first `start` tokens of what came before, then `pieces`."""
        said = _last_filled(node)
        out: dict[str, Any] = {"after": said.address if said else None}
        out["cached"], out["length"] = node.meta.get("cached_tokens", 0), node.meta.get("prompt_tokens", 0)
        told = node.meta.get("prompt_ids")
        if told is not None and self.bytes:
            out["start"] = told["start"]
            out["pieces"] = self._take(self._decode(told["ids"]))
            if node.kind == "select" and node.ids:  # its tokens may not part where its text does
                out["output"] = self._decode(node.ids)
                out["extra"] = max(len(node.text or "") - sum(len(piece) for piece in out["output"]), 0)
        return out

    def _take(self, pieces: list[str]) -> list[str]:
        kept = pieces[: max(min(MAX_TOKENS, self.pieces_left), 0)]
        self.pieces_left -= len(kept)
        return kept if len(kept) == len(pieces) else [*kept, "".join(pieces[len(kept) :])[:MAX_CHARS]]

    def _decode(self, ids: Sequence[int]) -> list[str]:
        """The text of each id; a character spread over several comes with the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self.bytes.get(i, b"")) for i in ids]

    def _output(self, node: GraphNode) -> list[list[Any]]:
        """[text, where from, log-probability or None, alternatives or None] for each token."""
        if node.text is None:
            return []
        if node.kind == "select":
            return [[self._cut(node.text), "chosen", None, None]]
        if not (node.ids and self.bytes):
            return [[self._cut(node.text), "sampled", None, None]]
        forced = {p for first, n in node.meta.get("forced_runs") or () for p in range(first, first + n)}
        said = node.meta.get("output_token_logprobs") or []
        tops = node.meta.get("output_top_logprobs") or []
        out: list[list[Any]] = []
        length = 0
        for i, piece in enumerate(self._take(self._decode(node.ids))):
            kind = "forced" if i in forced else "sampled" if length < len(node.text) or not piece else "end"
            length += len(piece)
            logprob = said[i][0] if i < len(said) and said[i] else None
            others = [[self._decode([t[1]])[0], _round(t[0])] for t in (tops[i] if i < len(tops) else None) or ()][
                :MAX_TOP
            ]
            out.append([piece, kind, _round(logprob), others or None])
        return out

    def _spread_prompts(self) -> None:
        """Give literal nodes the tokens that the first gen after them told of, and count who used them again."""
        if not self.bytes:
            return
        for node in sorted(self.filled, key=lambda n: n.t_done or math.inf):
            told = node.meta.get("prompt_ids")
            if told is None:
                continue
            first = _last_filled(node)
            literals = _literals_between(first, node)
            chosen = node.kind == "select"
            pieces = self._decode([*told["ids"], *((node.ids or ()) if chosen else ())])
            cached = node.meta.get("cached_tokens", 0)
            texts = [n.text or "" for n in literals] + ([node.text or ""] if chosen else [])
            parts = [[p, "cached" if told["start"] + i < cached else "computed"] for i, p in enumerate(pieces)]
            cut = cut_at(parts, texts, keep_lead=first is None)
            for literal, share in zip(literals, cut, strict=False):
                if literal.address in self.parts:
                    self.reused[literal.address] = self.reused.get(literal.address, 0) + 1
                else:
                    self.parts[literal.address] = share


def used_itself(node: GraphNode) -> bool:
    """Whether the node's times are its own, not those of one that stood in for it."""
    return not node.meta.get("merged_with")


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _present(used: NodeUsage) -> dict[str, Any]:
    skip = ("address", "kind", "name", "where", "status")
    return {k: v for k, v in used.to_dict().items() if v is not None and k not in skip}


def _last_filled(node: GraphNode) -> GraphNode | None:
    """The last gen or select before the node."""
    branch: GraphBranch | None = node.branch
    count = node.index
    while branch is not None:
        for each in reversed(branch.nodes[:count]):
            if each.kind in FILLED:
                return each
        branch, count = branch.parent, branch.at
    return None


def _literals_between(first: GraphNode | None, node: GraphNode) -> list[GraphNode]:
    line = node.branch.lineage()
    end = next(i for i, each in enumerate(line) if each is node)
    begin = 0 if first is None else next(i for i, each in enumerate(line) if each is first) + 1
    return line[begin:end]


def cut_at(parts: Sequence[Part], texts: Sequence[str], *, keep_lead: bool = True) -> list[list[Part]]:
    """Tokens as stretches of these texts, neighbours of one kind joined; empty lists where they do not spell them.

    What stands before the texts (a BOS token, or the rest of a token that a stop string cut) goes to the first text
    with `keep_lead`, else nowhere.
    """
    whole, spelled = "".join(texts), "".join(part[0] for part in parts)
    out: list[list[Part]] = [[] for _ in texts]
    if not texts or not spelled.endswith(whole):
        return out
    lead = len(spelled) - len(whole)
    ends = [lead + sum(len(t) for t in texts[: i + 1]) for i in range(len(texts))]
    k, at = 0, 0
    for piece, kind in parts:
        while piece:
            while k < len(ends) - 1 and at >= ends[k]:
                k += 1
            room = max(ends[k] - at, len(piece) if k == len(ends) - 1 else 0)
            if at < lead and not keep_lead:
                room = min(lead - at, len(piece))
                piece, at = piece[room:], at + room
                continue
            share = piece[:room]
            if out[k] and out[k][-1][1] == kind:
                out[k][-1][0] += share
            else:
                out[k].append([share, kind])
            piece, at = piece[len(share) :], at + len(share)
    return out
