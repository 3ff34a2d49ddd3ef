"""`explain()`: what a program asks for, what its branches share, and the tokens that this saves.

The bound. Were every gen a request of its own, the endpoint would compute the prompt of each. What it must compute at
least is each distinct prefix once: the nodes of the trie that the prompts make, without the tokens that the program's
own gens ran as they generated them (all but the last drawn, and what was forced after it), and one token more for a gen
whose whole prompt another one had (its last token is run again, for the distribution that the gen starts from).

Where the endpoint told the ids of the prompts (`trace=True`) the trie is made of tokens and the bound is exact; else it
is made of characters, and the bound an estimate by the average length of a token.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.interpreter.graph import FILLED, GraphBranch, GraphNode, ProgramGraph
from stemma.interpreter.usage import NodeUsage, totals, usages

CHARS_PER_TOKEN = 4.0  # where nothing has run yet
SHOWN = 48  # characters of a literal in the tree


@dataclass(frozen=True, slots=True)
class Plan:
    """What a program asks for and what sharing saves of it. `print` it, or take `to_dict()`.

    `exact` says whether `distinct_tokens` was counted on token ids; else it is an estimate. Before a program has run
    (`Program.trace`) all counts are estimates.

    prompt_tokens     the prompts of all gens and selects that have their answer, each as a request of its own
    distinct_tokens   the least of these that any system must compute (see the module)
    cached_tokens     prompt tokens that were in the cache: what was saved
    computed_prompt   prompt tokens that were computed; compare with `distinct_tokens`
    generated_tokens, forced_tokens   output, and how much of it needed no sampling
    merged, dropped   nodes that another one stood in for, and that nothing read
    """

    program: str
    exact: bool
    ran: bool
    prompt_tokens: int
    distinct_tokens: int
    cached_tokens: int
    computed_prompt: int
    generated_tokens: int
    forced_tokens: int
    nodes: int
    merged: int
    dropped: int
    failed: int
    tree: list[dict[str, Any]] = field(repr=False, default_factory=list)

    @property
    def predicted_saving(self) -> float:
        """The share of prompt tokens that sharing prefixes can save, in [0, 1)."""
        return 1 - self.distinct_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def actual_saving(self) -> float:
        """The share that it did save; 0 before anything ran. Above the prediction if earlier programs left prefixes."""
        return 1 - self.computed_prompt / self.prompt_tokens if self.prompt_tokens and self.ran else 0.0

    def to_dict(self) -> dict[str, Any]:
        names = [name for name in self.__dataclass_fields__ if name != "tree"]
        savings = {"predicted_saving": round(self.predicted_saving, 4), "actual_saving": round(self.actual_saving, 4)}
        return {**{name: getattr(self, name) for name in names}, **savings, "tree": self.tree}

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        lines = [f"plan of {self.program or 'a program'}: {self.nodes} gens and selects"]
        lines += [_row(row) for row in self.tree]
        lines.append("")
        lines.append(f"prompts, each on its own   {self.prompt_tokens:>8} tokens")
        saved = f"{about}{self.predicted_saving:.0%} can be saved"
        lines.append(f"distinct prefixes          {self.distinct_tokens:>8} tokens: {saved}")
        if self.ran:
            lines.append(f"computed                   {self.computed_prompt:>8} tokens: {self.actual_saving:.0%} saved")
            forced = f", {self.forced_tokens} of them forced" if self.forced_tokens else ""
            lines.append(f"generated                  {self.generated_tokens:>8} tokens{forced}")
        for count, what in (
            (self.merged, "merged with an identical one"),
            (self.dropped, "dropped, since nothing read them"),
            (self.failed, "failed"),
        ):
            if count:
                lines.append(f"{what:<27}{count:>8} nodes")
        return "\n".join(lines)


def explain(graph: ProgramGraph) -> Plan:
    """The plan of a graph, whether it has run, is running or was only traced."""
    used = {u.address: u for u in usages(graph)}
    sums = totals(used.values())
    filled = [n for b in graph.branches.values() for n in b.nodes if n.kind in FILLED]
    ran = any(u.prompt_tokens for u in used.values())
    counted = ("done", "merged") if ran else ("done", "merged", "running", "failed")
    asked = [n for n in filled if used[n.address].status in counted]
    prompts = prompt_ids(graph)
    exact = ran and bool(asked) and all(n.address in prompts for n in asked)
    if exact:
        alone = sum(len(prompts[n.address].units) for n in asked)
        distinct = distinct_units([prompts[n.address] for n in asked])
    else:
        texts = [_text_before(n) for n in asked]
        size = _token_size(asked, texts)
        alone = round(sum(len(t.units) for t in texts) / size)
        distinct = min(alone, round(distinct_units(texts) / size))
    done = [u for u in used.values() if u.status == "done"]
    return Plan(
        program=graph.name,
        exact=exact,
        ran=ran,
        prompt_tokens=alone,
        distinct_tokens=distinct,
        cached_tokens=int(sums["cached_tokens"]),
        computed_prompt=sum(max(u.prompt_tokens - u.cached_tokens, 0) for u in done),
        generated_tokens=int(sums["completion_tokens"]),
        forced_tokens=int(sums["forced_tokens"]),
        nodes=len(filled),
        merged=int(sums["merged"]),
        dropped=int(sums["dropped"]),
        failed=int(sums["failed"]),
        tree=_rows(graph, used),
    )


# --- prefixes


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as characters or ids, and which stretches of it the program generated: sorted, [start, end) each."""

    units: Any  # str or list[int]
    made: tuple[tuple[int, int], ...]

    def given(self, start: int) -> int:
        """How many units from `start` on were not generated."""
        generated = sum(max(0, end - max(begin, start)) for begin, end in self.made)
        return max(len(self.units) - start, 0) - generated


def prompt_ids(graph: ProgramGraph) -> dict[str, Prompt]:
    """The prompt of every gen and select, by address, put together from what the endpoint told of each.

    Only of those nodes whose endpoint told the ids, of them and of all before them.
    """
    after: dict[GraphNode, Prompt] = {}
    prompts: dict[str, Prompt] = {}
    for branch in graph.branches.values():
        last = _inherited(branch)
        said = Prompt([], ()) if last is None else after.get(last)
        for node in branch.nodes:
            if node.kind not in FILLED:
                continue
            told = node.meta.get("prompt_ids")
            if said is None or told is None or node.text is None:
                said = None
                continue
            start = told["start"]
            made = tuple((b, min(e, start)) for b, e in said.made if b < start)
            prompt = Prompt([*said.units[:start], *told["ids"]], made)
            prompts[node.address] = prompt
            ids = node.ids or []
            n = len(prompt.units)
            said = after[node] = Prompt([*prompt.units, *ids], (*made, (n, n + len(ids) - _not_run(node))))
    return prompts


def _not_run(node: GraphNode) -> int:
    """How many of its last tokens no step ran: the last that was drawn, and those forced after it."""
    if node.kind != "gen" or not node.ids:
        return 0
    forced = node.meta.get("forced_runs") or [[0, 0]]
    first, n = forced[-1]
    return min(1 + n, len(node.ids)) if n and first + n == len(node.ids) else 1


def _inherited(branch: GraphBranch) -> GraphNode | None:
    """The last gen or select before the branch's own nodes."""
    above, count = branch.parent, branch.at
    while above is not None:
        for node in reversed(above.nodes[:count]):
            if node.kind in FILLED:
                return node
        above, count = above.parent, above.at
    return None


def distinct_units(sequences: Sequence[Prompt]) -> int:
    """How many units a system must compute at the least that computes every prefix once."""
    total = 0
    before: Any = None
    for sequence in sorted(sequences, key=lambda s: s.units):
        shared = common_prefix(before, sequence.units) if before is not None else 0
        fresh = sequence.given(shared)
        total += max(fresh, 1) if sequence.units else 0
        before = sequence.units
    return total


def common_prefix(a: Any, b: Any) -> int:
    """The length of the longest common prefix, by bisection: slices compare fast."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    return bisect_right(range(limit), False, key=lambda n: a[: n + 1] != b[: n + 1])


def _text_before(node: GraphNode) -> Prompt:
    parts: list[str] = []
    made: list[tuple[int, int]] = []
    length = 0
    for each in node.branch.lineage():
        if each is node:
            break
        text = each.text
        if text is None:
            text = f"<{each.wire['role']}>" if "role" in each.wire else ""
        if each.kind in FILLED and text:
            made.append((length, length + len(text)))
        parts.append(text)
        length += len(text)
    return Prompt("".join(parts), tuple(made))


def _token_size(asked: Sequence[GraphNode], texts: Sequence[Prompt]) -> float:
    """Characters per token, from what the endpoint counted; a rule of thumb where nothing ran."""
    pairs = [(len(t.units), n.meta.get("prompt_tokens") or 0) for n, t in zip(asked, texts, strict=True)]
    counted = sum(tokens for _, tokens in pairs)
    chars = sum(length for length, tokens in pairs if tokens)
    return chars / counted if counted and chars else CHARS_PER_TOKEN


# --- the tree


def _rows(graph: ProgramGraph, used: dict[str, NodeUsage]) -> list[dict[str, Any]]:
    """The nodes in the order of a walk, literals of one line joined, forks where they leave their parent."""
    rows: list[dict[str, Any]] = []
    stack: list[tuple[GraphBranch, int, int]] = [(graph.root, -1, 0)]  # -1: not begun
    while stack:
        branch, at, depth = stack.pop()
        if at < 0 and branch.parent is not None:
            rows.append({"kind": "fork", "depth": depth, "branch": branch.id, "label": branch.label})
        forks: dict[int, list[GraphBranch]] = {}
        for child in branch.children:
            if child.at > at:  # those at `at` were shown when we came here before
                forks.setdefault(child.at, []).append(child)
        stop = min(forks, default=len(branch.nodes))
        for node in branch.nodes[max(at, 0) : stop]:
            _add(rows, node, depth, used)
        if forks:
            stack.append((branch, stop, depth))
            stack += [(child, -1, depth + 1) for child in reversed(forks[stop])]
    return rows


def _add(rows: list[dict[str, Any]], node: GraphNode, depth: int, used: dict[str, NodeUsage]) -> None:
    if node.kind not in FILLED:
        text = node.text if node.text is not None else f"<{node.wire.get('role', node.kind)}>"
        last = rows[-1] if rows else None
        if last is not None and last["kind"] == "text" and last["branch"] == node.branch.id:
            last["text"] += text
            return
        rows.append({"kind": "text", "depth": depth, "branch": node.branch.id, "text": text, "where": node.where})
        return
    u = used[node.address]
    row: dict[str, Any] = {
        "kind": node.kind,
        "depth": depth,
        "branch": node.branch.id,
        "address": node.address,
        "name": node.name,
        "where": node.where,
        "status": u.status,
        "prompt_tokens": u.prompt_tokens,
        "cached_tokens": u.cached_tokens,
        "generated_tokens": u.completion_tokens,
        "forced_tokens": u.forced_tokens,
    }
    if u.of:
        row["of"] = u.of
    if node.text is not None:
        row["text"] = node.text
    rows.append(row)


def short(text: str, limit: int = SHOWN) -> str:
    """One line of it, in quotes, with the middle left out if it is long."""
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]} … {shown[-limit // 3 :]}"


def _row(row: dict[str, Any]) -> str:
    indent = "  " * (row["depth"] + 1)
    if row["kind"] == "fork":
        return f"{indent[2:]}┬ {row['label'].rpartition(', ')[2] or row['branch']}"
    if row["kind"] == "text":
        return f"{indent}{short(row['text'])}"
    name = f" {row['name']!r}" if row["name"] else ""
    notes = {
        "done": f"{row['prompt_tokens']} prompt, {row['cached_tokens']} cached, {row['generated_tokens']} generated"
        + (f", {row['forced_tokens']} forced" if row["forced_tokens"] else ""),
        "merged": f"as {row.get('of')}",
        "running": "not run",
    }
    return f"{indent}{row['kind']}{name}  {notes.get(row['status'], row['status'])}  ({row['where']})"
