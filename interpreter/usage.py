"""Accounting: what each node, a program and a batch of programs used, and what that costs.

A node that another one stood in for (`merge_identical`) made no request, and counts as nothing but itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stemma.interpreter.graph import FILLED, GraphNode, ProgramGraph
from stemma.lang.errors import RequestError

if TYPE_CHECKING:
    from stemma.interpreter.state import ProgramState

Prices = Mapping[str, Mapping[str, float]]
PRICED = ("input", "output", "cached")
PER = 1_000_000  # tokens that a price is for
COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "computed_tokens", "forced_tokens")


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """What one gen or select used. Times are seconds; None where the endpoint does not tell or it has not come to it.

    `latency` is from sending the node to having its value, as the program saw it; `ttft` until its first token and
    `queue` until it was admitted, from the moment that the endpoint could begin it. `status`: done, failed, running,
    merged (`of` is the node that stood in for it) or dropped. `cost` needs a price table.
    """

    address: str
    kind: str
    name: str | None
    where: str
    status: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    forced_tokens: int = 0
    completion_tokens: int = 0
    latency: float | None = None
    ttft: float | None = None
    queue: float | None = None
    retries: int = 0
    retractions: int = 0
    of: str | None = None
    model: str | None = None
    cost: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def status_of(node: GraphNode) -> str:
    """done, failed, running, merged or dropped."""
    if node.dropped:
        return "dropped"
    if node.failure is not None:
        return "failed"
    if node.text is None:
        return "running"
    return "merged" if node.meta.get("merged_with") else "done"


def node_usage(node: GraphNode, prices: Prices | None = None, model: str | None = None) -> NodeUsage:
    """The account of one node. `model` is the model's name where the endpoint does not say it with the answer."""
    meta, status = node.meta, status_of(node)
    seconds = node.t_done - node.t_sent if node.t_done and node.t_sent else meta.get("e2e_latency")
    named = meta.get("model") or model
    base = NodeUsage(
        node.address, node.kind, node.name, node.where, status, latency=seconds, of=meta.get("merged_with"), model=named
    )
    if status in ("merged", "dropped"):
        return dataclasses.replace(base, cost=0.0 if prices is not None else None)
    counts = {name: int(meta.get(name) or 0) for name in COUNTS}
    used = dataclasses.replace(
        base,
        **counts,
        ttft=meta.get("ttft"),
        queue=meta.get("queue_time"),
        retries=int(meta.get("retries") or 0),
        retractions=int(meta.get("num_retractions") or 0),
    )
    return used if prices is None else dataclasses.replace(used, cost=cost_of(used, prices))


def cost_of(used: NodeUsage, prices: Prices) -> float:
    """Its cost by a price table: `{model: {"input", "output", "cached"}}`, money for a million tokens.

    Cached prompt tokens cost `cached`, or `input` if that is not given; "*" stands for any model that is not named.
    Raises `RequestError` for a model without a price.
    """
    if not (used.prompt_tokens or used.completion_tokens):
        return 0.0
    table = prices.get(used.model or "*", prices.get("*"))
    if table is None:
        named = f"model {used.model!r}" if used.model else "a model that the endpoint does not name"
        raise RequestError(f'prices has no entry for {named}, and none for "*"; it has {list(prices)}', param="prices")
    full, out = table["input"], table["output"]
    cached = min(used.cached_tokens, used.prompt_tokens)
    money = (used.prompt_tokens - cached) * full + cached * table.get("cached", full) + used.completion_tokens * out
    return money / PER


def check_prices(prices: Prices) -> Prices:
    """Raises `RequestError` for anything but `{model: {"input": n, "output": n, "cached": n (optional)}}`."""
    for model, table in prices.items():
        wrong = not isinstance(table, Mapping) or {"input", "output"} - set(table) or set(table) - set(PRICED)
        if wrong or any(isinstance(v, bool) or not isinstance(v, (int, float)) or v < 0 for v in table.values()):
            raise RequestError(
                f'prices[{model!r}] must be {{"input": …, "output": …, "cached": … (optional)}}, each a number >= 0 of '
                f"money for a million tokens; got {table!r}",
                param="prices",
            )
    return prices


def usages(graph: ProgramGraph, prices: Prices | None = None, model: str | None = None) -> list[NodeUsage]:
    """One account for every gen and select of a program, in the order of its branches."""
    if prices is not None:
        check_prices(prices)
    nodes = [node for branch in graph.branches.values() for node in branch.nodes if node.kind in FILLED]
    return [node_usage(node, prices, model) for node in nodes]


def totals(used: Iterable[NodeUsage]) -> dict[str, float]:
    """The sums over some nodes: tokens, how many nodes there are, failed, were merged and dropped, retries, cost."""
    listed = list(used)
    out: dict[str, float] = {name: sum(getattr(u, name) for u in listed) for name in COUNTS}
    out["nodes"] = len(listed)
    for status in ("failed", "merged", "dropped"):
        out[status] = sum(u.status == status for u in listed)
    out["retries"] = sum(u.retries for u in listed)
    if any(u.cost is not None for u in listed):
        out["cost"] = sum(u.cost or 0.0 for u in listed)
    return out


def model_name(info: Mapping[str, Any]) -> str | None:
    """The model's name in what an endpoint says about itself."""
    found = next((info[key] for key in ("served_model_name", "model", "model_path") if info.get(key)), None)
    return None if found is None else str(found)


def total_usage(states: Iterable[ProgramState], prices: Prices | None = None) -> dict[str, float]:
    """The totals over the programs of a batch: as `state.usage()`, summed, and `programs`.

    `wall_seconds` is from the start of the first program to the last answer of any. Errors in the list, as
    `run_batch(on_error="return")` leaves them, count as `failed_programs` and nothing else.
    """
    out: dict[str, float] = {}
    spans: list[tuple[float, float]] = []
    ran = failed = 0
    for state in states:
        if isinstance(state, BaseException):
            failed += 1
            continue
        ran += 1
        run = getattr(
            state, "_run", None
        )  # an item that a checkpoint kept has none: what it spent then counts, unpriced
        for name, value in (state.usage(prices=prices) if run is not None else state.usage()).items():
            out[name] = out.get(name, 0) + value
        if run is not None:
            spans.append((run.started_at, run.settled_at))
    out["wall_seconds"] = max(end for _, end in spans) - min(start for start, _ in spans) if spans else 0.0
    return {**out, "programs": ran + failed, "failed_programs": failed}
