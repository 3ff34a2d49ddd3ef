"""The program graph: what a running program has said so far, and what became of it.

A program is a tree of branches, a branch an append-only list of nodes. This file only records; `runtime.py` moves the
record to an endpoint and back. Nothing here locks: the runtime calls it under its own lock.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stemma.interpreter.wire import error_to_wire
from stemma.lang.errors import RequestError

if TYPE_CHECKING:
    from stemma.interpreter.explain import Plan

VERSION = 1  # of the JSON form
ROOT = "r"
FILLED = ("gen", "select")  # kinds that end with a `done` event
ROLES = ("role_begin", "role_end")  # kinds that the endpoint lowers to text

Wire = dict[str, Any]


@dataclass(slots=True, eq=False)
class GraphNode:
    """One node: where it stands, what the endpoint is told, and what the endpoint answered.

    `text`, `ids` and `meta` are set once, when the node settles; literals are settled from the start. `pieces` is the
    text streamed so far. `failure` is the runtime's account of why it has no value.
    """

    branch: GraphBranch = field(repr=False)
    index: int
    wire: Wire
    where: str = ""
    name: str | None = None
    text: str | None = None
    ids: list[int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    failure: Any = field(default=None, repr=False)
    pieces: list[str] = field(default_factory=list, repr=False)
    dropped: bool = False  # never sent, since nothing read it
    t_sent: float = 0.0  # perf_counter seconds; 0.0: not yet, or never
    t_first: float = 0.0
    t_done: float = 0.0
    source: Any = field(default=None, repr=False)  # the value whose text this literal will be
    ref: Wire | None = field(default=None, repr=False)  # how an endpoint is told to find that text itself
    recorded_quotes: list[str] = field(default_factory=list, repr=False)
    timeout: float | None = None  # seconds that it may take once everything before it is there

    @property
    def kind(self) -> str:
        return self.wire["kind"]

    @property
    def settled(self) -> bool:
        return self.text is not None or self.failure is not None

    @property
    def address(self) -> str:
        """Where it stands: `r.0:3` is the fourth node of branch `r.0`."""
        return f"{self.branch.id}:{self.index}"

    @property
    def quotes(self) -> list[str]:
        """The addresses of the nodes whose texts this literal quotes."""
        return [node.address for node in self.source.nodes()] if self.source is not None else self.recorded_quotes

    @property
    def awaited(self) -> bool:
        """Whether somebody else must bring its text: the endpoint, or the value that it quotes."""
        return self.kind in FILLED or self.source is not None

    def describe(self) -> str:
        """As errors name it: `gen 'answer' at app.py:42, fork 3/6`."""
        name = f" {self.name!r}" if self.name else ""
        fork = f", {self.branch.label}" if self.branch.label else ""
        return f"{self.kind}{name} at {self.where or 'an unknown line'}{fork}"

    def to_dict(self, started: float = 0.0) -> Wire:
        """As JSON; `started` is the moment that its times count from."""
        out: Wire = {"node": self.wire, "where": self.where}
        if self.t_sent:
            times = (self.t_sent, self.t_first, self.t_done)
            out["times"] = [round(t - started, 6) if t else None for t in times]
        if self.dropped:
            out["dropped"] = True
        if quotes := self.quotes:
            out["quotes"] = quotes
        if self.pieces:
            out["pieces"] = list(self.pieces)
        for key, value in (("name", self.name), ("text", self.text), ("ids", self.ids), ("meta", self.meta)):
            if value:
                out[key] = value
        if self.text == "":
            out["text"] = ""
        if self.failure is not None:
            out["error"] = str(self.failure)
            out["cause"] = getattr(self.failure, "wire", None) or error_to_wire(self.failure.cause)
        return out


@dataclass(frozen=True, slots=True)
class RecordedFailure:
    """Why a node of a recorded graph has no value: the message, and the cause as events write it."""

    message: str
    wire: Wire

    def __str__(self) -> str:
        return self.message


@dataclass(slots=True, eq=False)
class GraphBranch:
    """One branch: its parent's first `at` nodes, then its own. `sent` nodes of it are known to the endpoint."""

    id: str
    parent: GraphBranch | None = None
    at: int = 0
    label: str = ""
    nodes: list[GraphNode] = field(default_factory=list, repr=False)
    children: list[GraphBranch] = field(default_factory=list, repr=False)
    known: bool = False
    sent: int = 0
    ready: int = 0  # how many of its nodes the endpoint may know, as of the last look
    ended: bool = False
    end_sent: bool = False
    failure: Any = field(default=None, repr=False)

    def lineage(self) -> list[GraphNode]:
        """Every node of the branch in order: the inherited ones first."""
        parts, branch, count = [self.nodes], self.parent, self.at
        while branch is not None:
            parts.append(branch.nodes[:count])
            branch, count = branch.parent, branch.at
        return [node for part in reversed(parts) for node in part]

    def last_role(self) -> GraphNode | None:
        """The last role node of the lineage, if there is one."""
        branch, count = self, len(self.nodes)
        while branch is not None:
            for node in reversed(branch.nodes[:count]):
                if node.kind in ROLES:
                    return node
            branch, count = branch.parent, branch.at
        return None

    def subtree(self) -> list[GraphBranch]:
        """The branch and all its descendants, parents first."""
        found: list[GraphBranch] = [self]
        for branch in found:
            found += branch.children
        return found

    @property
    def held_by(self) -> GraphBranch | None:
        """The branch of whose nodes, which it inherits, the endpoint may not know enough yet."""
        branch = self
        while branch.parent is not None and not branch.known:
            if branch.parent.ready < branch.at:
                return branch.parent
            branch = branch.parent
        return None

    def _pending(self) -> bool:
        """Whether there is something to send of it. A branch that never said anything needs no goodbye."""
        if self.held_by is not None:
            return False
        if self.ready > self.sent:
            return True
        closing = self.known and self.ended and not self.end_sent
        return closing and self.ready == len(self.nodes) and self.failure is None

    def _whole(self) -> bool:
        """Whether nothing of it must still be waited for before the program can be ended at the endpoint."""
        return self.failure is not None or (self.held_by is None and self.ready == len(self.nodes))


class ProgramGraph:
    """The branches and nodes of one program, and how much of them has been sent."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.root = GraphBranch(ROOT)
        self.branches: dict[str, GraphBranch] = {ROOT: self.root}
        self.end = False
        self.end_sent = False
        self.name = ""  # of the function
        self.tokens = False  # whether the endpoint is asked for the ids of the prompts
        self.refs = False  # whether the endpoint finds the texts of quotes itself
        self.started = time.perf_counter()

    def append(
        self, branch: GraphBranch, wire: Wire, *, where: str = "", name: str | None = None, text: str | None = None
    ) -> GraphNode:
        """Add a node at the end of a branch. `text` is given for literals, which need no answer."""
        node = GraphNode(branch, len(branch.nodes), wire, where, name, text)
        branch.nodes.append(node)
        return node

    def fork(self, parent: GraphBranch, count: int) -> list[GraphBranch]:
        """Add `count` children of a branch at its present end."""
        taken = len(parent.children)
        prefix = f"{parent.label}, " if parent.label else ""
        children = [
            GraphBranch(f"{parent.id}.{taken + i}", parent, len(parent.nodes), f"{prefix}fork {i}/{count}")
            for i in range(count)
        ]
        parent.children += children
        self.branches.update((child.id, child) for child in children)
        return children

    def node(self, branch: str, index: int) -> GraphNode | None:
        """The node at that address, if there is one."""
        found = self.branches.get(branch)
        return found.nodes[index] if found is not None and 0 <= index < len(found.nodes) else None

    def take_delta(self, *, names: bool = False) -> Wire | None:
        """Everything not sent yet as one delta, marked as sent; None when there is nothing to say.

        With `names`, each node also carries the user's `name` and `where`, for endpoints that ask for them.
        """
        self._look()
        wanted = self._branches_to_send()
        started = any(branch.known for branch in self.branches.values())
        closing = self.end and not self.end_sent and (bool(wanted) or started)
        closing = closing and all(branch._whole() for branch in self.branches.values())
        if not wanted and not closing:
            return None
        delta: Wire = {"program": self.program, "branches": [self._take(b, names) for b in wanted], "end": closing}
        if self.tokens:
            delta["tokens"] = True
        self.end_sent = self.end_sent or closing
        return delta

    def drop_unsent(self) -> list[GraphNode]:
        """Count everything that was not sent as sent, so that it never will be; the gens and selects among it."""
        dropped: list[GraphNode] = []
        for branch in self.branches.values():
            dropped += [node for node in branch.nodes[branch.sent :] if node.kind in FILLED]
            branch.sent = len(branch.nodes)
        for node in dropped:
            node.dropped = True
        return dropped

    def _look(self) -> None:
        """See how many nodes of each branch the endpoint may know: those before the first that has failed, or whose
        text is neither there nor to be found by the endpoint in nodes that it may know."""
        waiting: dict[str, list[GraphBranch]] = {}
        for branch in self.branches.values():
            branch.ready = branch.sent
        todo = list(reversed(self.branches.values()))
        while todo:
            branch = todo.pop()
            before, holder = branch.ready, branch.held_by
            while holder is None and branch.ready < len(branch.nodes):
                node = branch.nodes[branch.ready]
                if node.failure is not None:
                    break
                if node.source is not None and node.text is None:
                    if node.ref is None or not self.refs:
                        break
                    quoted = self.branches[node.ref["branch"]]
                    if quoted.ready < node.ref["node"] + node.ref.get("count", 1):
                        holder = quoted
                        break
                branch.ready += 1
            if holder is not None:
                waiting.setdefault(holder.id, []).append(branch)
            if branch.ready > before:
                todo += waiting.pop(branch.id, ())

    def _branches_to_send(self) -> list[GraphBranch]:
        """Branches with something to say, and the unknown ancestors that they hang from; parents first."""
        wanted: set[str] = set()
        for branch in self.branches.values():
            if branch._pending():
                wanted.add(branch.id)
                above = branch.parent
                while above is not None and not above.known and above.id not in wanted:
                    wanted.add(above.id)
                    above = above.parent
        return [branch for branch in self.branches.values() if branch.id in wanted]

    def _take(self, branch: GraphBranch, names: bool) -> Wire:
        out: Wire = {"id": branch.id}
        if not branch.known:
            out["parent"] = branch.parent.id if branch.parent else None
            out["at"] = branch.at
        ready = branch.ready
        nodes = branch.nodes[branch.sent : ready]
        now = time.perf_counter()
        for node in nodes:
            node.t_sent = now
        out["first"] = branch.sent
        wires = [n.wire if n.text is not None or n.ref is None else n.ref for n in nodes]
        if names:
            wires = [{**wire, "name": n.name, "where": n.where} for wire, n in zip(wires, nodes, strict=True)]
        out["nodes"] = wires
        out["end"] = (branch.ended or self.end) and ready == len(branch.nodes)
        branch.known, branch.sent, branch.end_sent = True, ready, out["end"]
        return out

    def statistics(self) -> dict[str, int]:
        """How many branches, nodes of each kind, and characters of literal text there are."""
        nodes = [node for branch in self.branches.values() for node in branch.nodes]
        kinds = Counter(node.kind for node in nodes)
        literal = sum(len(node.wire["text"]) for node in nodes if node.kind == "text")
        depth = max(branch.id.count(".") for branch in self.branches.values())
        return {
            "branches": len(self.branches),
            "depth": depth,
            "nodes": len(nodes),
            **{kind: kinds[kind] for kind in ("text", "gen", "select", "role_begin", "role_end")},
            **({"image": kinds["image"]} if kinds["image"] else {}),
            "literal_characters": literal,
            "failed": sum(node.failure is not None and not node.dropped for node in nodes),
        }

    def explain(self) -> Plan:
        """What the program asks for, what its forks share, and what that saves; see `Plan`."""
        from stemma.interpreter.explain import explain  # it reads graphs

        return explain(self)

    def to_dict(self) -> Wire:
        """The whole graph as a JSON object. Times are seconds from the program's start: sent, first token, done."""
        branches = [
            {
                "id": b.id,
                "parent": b.parent.id if b.parent else None,
                "at": b.at,
                "label": b.label,
                "ended": b.ended or self.end,
                "nodes": [node.to_dict(self.started) for node in b.nodes],
            }
            for b in self.branches.values()
        ]
        out: Wire = {"version": VERSION, "program": self.program, "name": self.name, "branches": branches}
        return {**out, "ended": self.end}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ProgramGraph:
        """A graph as `to_dict` gave it. It is a record: nothing of it will be sent.

        Raises `RequestError` for something that is not one, or of a version that this one cannot read.
        """
        version = given.get("version") if isinstance(given, Mapping) else None
        if version != VERSION:
            raise RequestError(f"this is no program graph of version {VERSION}; its version is {version!r}")
        graph = cls(given["program"])
        graph.name, graph.started = given["name"], 0.0
        graph.end = graph.end_sent = given["ended"]
        for item in given["branches"]:
            parent = graph.branches[item["parent"]] if item["parent"] is not None else None
            branch = GraphBranch(item["id"], parent, item["at"], item["label"], known=True, ended=item["ended"])
            if parent is None:
                graph.root = branch
            else:
                parent.children.append(branch)
            graph.branches[branch.id] = branch
            branch.nodes = [_restored(branch, i, entry) for i, entry in enumerate(item["nodes"])]
            branch.sent, branch.end_sent = len(branch.nodes), branch.ended
        return graph

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> ProgramGraph:
        """The graph that `to_json` wrote. Raises `RequestError` for anything else."""
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"this is no program graph: {type(error).__name__}: {error}") from error


def _restored(branch: GraphBranch, index: int, entry: Wire) -> GraphNode:
    node = GraphNode(branch, index, entry["node"], entry["where"], entry.get("name"), entry.get("text"))
    node.ids, node.meta, node.pieces = entry.get("ids"), entry.get("meta", {}), entry.get("pieces", [])
    sent, first, done = (t or 0.0 for t in entry.get("times", (0.0, 0.0, 0.0)))
    node.t_sent, node.t_first, node.t_done = sent, first, done
    node.dropped, node.recorded_quotes = entry.get("dropped", False), entry.get("quotes", [])
    if "error" in entry:
        node.failure = RecordedFailure(entry["error"], entry["cause"])
    return node
