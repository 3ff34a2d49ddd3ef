"""What happens in a program, as one stream of events: complete from the beginning, for any number of readers.

The log keeps references into the program graph in the order of what happened, one machine word for a piece of text;
events are made from the graph when they are read. It is written under the runtime's lock.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stemma.interpreter.graph import FILLED, GraphBranch, GraphNode, ProgramGraph

if TYPE_CHECKING:
    from stemma.interpreter.runtime import Run


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in `branch`, which is named as in errors ("" for the root); `branch_id` as in graphs."""

    branch: str
    branch_id: str


@dataclass(frozen=True, slots=True)
class NodeEvent(Event):
    """Of one node: `node` describes it as errors do, `index` is its place in its branch."""

    node: str
    kind: str
    name: str | None
    index: int


@dataclass(frozen=True, slots=True)
class NodeStarted(NodeEvent):
    """The endpoint has a gen or select, and everything before it is there."""


@dataclass(frozen=True, slots=True)
class NodeDelta(NodeEvent):
    """A gen has written `text`. Only of programs run with `stream=True`."""

    text: str


@dataclass(frozen=True, slots=True)
class NodeFinished(NodeEvent):
    """The node has its `text`, whole. Literal text finishes when it is said."""

    text: str


@dataclass(frozen=True, slots=True)
class NodeFailed(NodeEvent):
    """The node will have no text; `message` says why, `error` is the cause."""

    message: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class Forked(Event):
    """The branch forked: the labels and ids of its children."""

    forks: tuple[str, ...]
    fork_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """These forks were ended; they may still be running."""

    forks: tuple[str, ...]
    fork_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToolStarted(NodeEvent):
    """A tool is called, as the gen `name` said. `arguments` are JSON."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFinished(NodeEvent):
    """A tool has returned `result` (text, as a model reads it), or raised `error`; the other is None."""

    tool: str
    arguments: dict[str, Any]
    result: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ProgramEnded(Event):
    """The last event: the body has returned, or raised `error`, and every node has its text or has failed."""

    error: BaseException | None


class EventLog:
    """What happened so far. An entry is a node (it has a new piece of text), or a pair of an event class and what."""

    __slots__ = ("_begun", "_entries", "_pending")

    def __init__(self) -> None:
        self._entries: list[Any] = []
        self._begun: set[GraphNode] = set()  # gens and selects that run
        self._pending = 0  # nodes without a text that have not failed

    # --- written by the runtime

    def said(self, node: GraphNode) -> None:
        """A node was appended."""
        if node.settled:
            self._entries.append((NodeFinished, node))
        else:
            self._pending += 1

    def sent(self, graph: ProgramGraph, delta: dict[str, Any]) -> None:
        """A delta leaves for the endpoint."""
        for entry in delta["branches"]:
            branch = graph.branches[entry["id"]]
            for node in branch.nodes[entry["first"] : branch.sent]:
                if node.kind in FILLED and _before(node):
                    self._start(node)

    def delta(self, node: GraphNode) -> None:
        self._start(node)
        self._entries.append(node)

    def finished(self, node: GraphNode) -> None:
        """The node has its text; what comes after it may start."""
        if node in self._begun:
            self._begun.discard(node)
        elif node.kind in FILLED:
            self._entries.append((NodeStarted, node))
        self._entries.append((NodeFinished, node))
        self._pending -= 1
        if node.awaited:
            for following in _following(node.branch, node.index + 1):
                if following.kind in FILLED and following.index < following.branch.sent:
                    self._start(following)

    def failed(self, node: GraphNode) -> None:
        self._begun.discard(node)
        self._entries.append((NodeFailed, node))
        self._pending -= 1

    def forked(self, branch: GraphBranch, children: list[GraphBranch]) -> None:
        if children:
            self._entries.append((Forked, branch, tuple(children)))

    def joined(self, branches: Iterable[GraphBranch]) -> None:
        known = tuple([branch for branch in branches if not branch.ended])
        if known:
            self._entries.append((Joined, known[0].parent or known[0], known))

    def tool(self, node: GraphNode, entry: dict[str, Any], *, ended: bool) -> None:
        """A tool call of a gen begins or has ended; `entry` is its record."""
        self._entries.append((ToolFinished if ended else ToolStarted, node, entry))

    def _start(self, node: GraphNode) -> None:
        if node not in self._begun and not node.settled:
            self._begun.add(node)
            self._entries.append((NodeStarted, node))

    # --- read

    def __len__(self) -> int:
        return len(self._entries)

    def over(self, run: Run) -> bool:
        """Whether nothing more will happen by itself."""
        return run.finished and not self._pending

    def read(self, run: Run) -> Iterator[Event | Callable[[], bool]]:
        """Every event from the beginning; between them, what must become true before there are more."""
        at = 0
        pieces: dict[GraphNode, int] = {}  # of the nodes that are being written
        while True:
            with run.changed:
                entries, over = self._entries[at:], self.over(run)
            for entry in entries:
                if isinstance(entry, GraphNode):
                    shown = pieces.get(entry, 0)
                    pieces[entry] = shown + 1
                    yield NodeDelta(*_address(entry), text=entry.pieces[shown])
                else:
                    pieces.pop(entry[1], None)
                    yield _event(*entry)
            at += len(entries)
            if over:
                root = run.graph.root
                yield ProgramEnded(root.label, root.id, None if run.failure is None else run.failure.cause)
                return
            yield lambda at=at: len(self._entries) > at or self.over(run)


def read_events(run: Run, timeout: float | None) -> Iterator[Event]:
    """The events of a program, waiting for each up to `timeout` seconds. Raises `TimeoutError`."""
    for item in run.log.read(run):
        if isinstance(item, Event):
            yield item
        else:
            run.wait_for(item, None if timeout is None else time.monotonic() + timeout, "the next event")


async def read_events_async(run: Run, timeout: float | None) -> AsyncIterator[Event]:
    """`read_events` for coroutines."""
    for item in run.log.read(run):
        if isinstance(item, Event):
            yield item
        else:
            await run.ready_async(item, timeout, "the next event")


def _event(kind: Any, what: Any, more: Any = None) -> Event:
    if kind in (Forked, Joined):
        return kind(what.label, what.id, tuple([b.label for b in more]), tuple([b.id for b in more]))
    address = _address(what)
    if kind is NodeFailed:
        return NodeFailed(*address, message=str(what.failure), error=what.failure.cause)
    if kind is NodeFinished:
        return NodeFinished(*address, text=what.text)
    if kind is NodeStarted:
        return NodeStarted(*address)
    if kind is ToolStarted:
        return ToolStarted(*address, tool=more["name"], arguments=more["arguments"])
    return ToolFinished(*address, more["name"], more["arguments"], more.get("result"), more.get("error"))


def _address(node: GraphNode) -> tuple[str, str, str, str, str | None, int]:
    return node.branch.label, node.branch.id, node.describe(), node.kind, node.name, node.index


def _before(node: GraphNode) -> bool:
    """Whether everything before the node is there."""
    branch, count = node.branch, node.index
    while branch is not None:
        for earlier in reversed(branch.nodes[:count]):
            if earlier.awaited:
                return earlier.settled
        branch, count = branch.parent, branch.at
    return True


def _following(branch: GraphBranch, start: int) -> Iterator[GraphNode]:
    """The next awaited nodes from a place in a branch: of it, and of what was forked before that node."""
    todo = [(branch, start)]
    for each, first in todo:
        stop = next((node.index for node in each.nodes[first:] if node.awaited), len(each.nodes))
        if stop < len(each.nodes):
            yield each.nodes[stop]
        todo += [(child, 0) for child in each.children if first <= child.at <= stop]
