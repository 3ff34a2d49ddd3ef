"""A trace as text, and in Chrome's trace event format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stemma.interpreter.explain import short
from stemma.interpreter.graph import FILLED

MAX_DEPTH = 200  # forks within forks in the text tree


def text_tree(data: Mapping[str, Any]) -> list[str]:
    """The lines of the tree: branches as limbs, literals in quotes, a line of figures for each generation."""
    by_branch: dict[str, list[dict[str, Any]]] = {b["id"]: [] for b in data["branches"]}
    for node in data["nodes"]:
        by_branch[node["branch"]].append(node)
    children: dict[str, list[dict[str, Any]]] = {b["id"]: [] for b in data["branches"]}
    for branch in data["branches"]:
        if branch["parent"] in children:
            children[branch["parent"]].append(branch)
    lines = [f"{data['title']}  {summary(data)}"]
    if data["branches"]:
        lines += _limb(data["branches"][0], by_branch, children, "", 0)
    return [*lines, *data["notes"]]


def _limb(
    branch: Mapping[str, Any],
    nodes: Mapping[str, list[dict[str, Any]]],
    children: Mapping[str, list[dict[str, Any]]],
    indent: str,
    depth: int,
) -> Iterator[str]:
    own, begin = nodes[branch["id"]], 0
    forks: dict[int, list[dict[str, Any]]] = {}
    for child in children[branch["id"]]:
        forks.setdefault(child["at"], []).append(child)
    end = max((*forks, len(own)))
    for stop in sorted({*forks, end}):
        bar = "│" if any(at >= stop for at in forks) else " "
        yield from _leaves(own[begin:stop], f"{indent}{bar} ")
        begin = stop
        here = forks.get(stop, [])
        for i, child in enumerate(here):
            last = stop == end and i == len(here) - 1
            yield f"{indent}{'└─' if last else '├─'} {child['label'].rpartition(', ')[2] or child['id']}"
            if depth == MAX_DEPTH:
                yield f"{indent}   … deeper forks are not shown"
            else:
                yield from _limb(child, nodes, children, indent + ("   " if last else "│  "), depth + 1)


def _leaves(nodes: Sequence[Mapping[str, Any]], indent: str) -> Iterator[str]:
    said = ""
    for node in [*nodes, None]:
        if node is not None and node["kind"] not in FILLED:
            said += node["text"]
            continue
        if said:
            yield f"{indent}{short(said, 72)}"
            said = ""
        if node is not None:
            name = f" {node['name']}" if node["name"] else ""
            yield f"{indent}{node['kind']}{name} = {_outcome(node)}"
            yield f"{indent}    {_figures(node)}"


def _outcome(node: Mapping[str, Any]) -> str:
    if node["status"] in ("failed", "dropped"):
        return f"{node['status']}: {short(node['error'], 96)}"
    return short(node["text"], 72) if "text" in node else "(running)"


def _figures(node: Mapping[str, Any]) -> str:
    used, times = node["usage"], node["times"]
    if node["status"] == "merged":
        return f"as {used['of']}  {node['where']}"
    parts = [
        f"{used['prompt_tokens']} prompt ({used['cached_tokens']} cached)",
        f"{used['completion_tokens']} generated",
    ]
    if used["forced_tokens"]:
        parts[-1] += f" ({used['forced_tokens']} forced)"
    if "done" in times:
        parts.append(seconds(times["done"] - times.get("begun", times.get("sent", 0.0))))
    return f"{', '.join(parts)}  {node['where']}"


def seconds(value: float) -> str:
    """A time as people read it: 12 ms, 1.24 s."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def summary(data: Mapping[str, Any]) -> str:
    """One line about the whole run."""
    total = data["totals"]
    share = total["cached_tokens"] / total["prompt_tokens"] if total["prompt_tokens"] else 0.0
    parts = [
        f"{total['nodes']} gens and selects in {data['branch_count']} branches",
        f"{total['prompt_tokens']} prompt tokens, {share:.0%} cached",
        f"{total['completion_tokens']} generated",
    ]
    if total["forced_tokens"]:
        parts[-1] += f", {total['forced_tokens']} of them forced"
    parts += [f"{total[what]} {what}" for what in ("merged", "dropped", "failed") if total[what]]
    if "cost" in total:
        parts.append(f"cost {total['cost']:.6g}")
    return "; ".join([*parts, seconds(data["wall"])])


# --- Chrome's trace event format

PHASES = (("waiting", "sent", "begun"), ("prefill", "begun", "first"), ("decode", "first", "done"))


def chrome_events(data: Mapping[str, Any]) -> dict[str, Any]:
    """Complete events (ph X, microseconds): one for each gen and select, and inside it one for each phase."""
    lanes = {branch["id"]: i for i, branch in enumerate(data["branches"])}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": data["title"]}},
        *(
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": lanes[b["id"]], "args": {"name": b["label"] or "root"}}
            for b in data["branches"]
        ),
    ]
    for node in data["nodes"]:
        times = node.get("times") or {}
        if "done" not in times:
            continue
        lane = {"ph": "X", "pid": 1, "tid": lanes[node["branch"]], "cat": node["kind"]}
        begin = times.get("begun", times.get("sent", times["done"]))
        about = {"where": node["where"], "status": node["status"], **node["usage"]}
        name = f"{node['kind']} {node['name']}" if node["name"] else node["kind"]
        events.append({**lane, "name": name, **_span(begin, times["done"]), "args": about})
        for phase, start, end in PHASES[1:]:
            if start in times and end in times:
                events.append({**lane, "name": phase, "cat": "phase", **_span(times[start], times[end]), "args": {}})
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"program": data["program"]}}


def _span(start: float, end: float) -> dict[str, float]:
    return {"ts": round(start * 1e6, 1), "dur": round(max(end - start, 0.0) * 1e6, 1)}
