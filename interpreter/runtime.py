"""Drives one program: moves its graph to an endpoint and brings values and errors back to readers.

Appending never blocks and never calls the endpoint. What has accumulated goes out as one delta when a value is
demanded, when the program ends, or after a moment of quiet, so that work starts while user code goes on.

Two locks. `_send` is held while a delta is built and submitted, so that deltas leave in order. `changed` guards the
graph and wakes readers; events take only this one, so an endpoint may call back from inside `submit`. Readers are
threads that wait on `changed`, or coroutines of any event loop that wait in `ready_async`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stemma.interpreter import timers
from stemma.interpreter.budget import Budget
from stemma.interpreter.capabilities import check_node, check_priority
from stemma.interpreter.endpoints.base import Endpoint
from stemma.interpreter.events import EventLog
from stemma.interpreter.graph import GraphBranch, GraphNode, ProgramGraph
from stemma.interpreter.usage import totals, usages
from stemma.interpreter.wire import RunOptions, error_from_wire, wire_node
from stemma.lang.errors import CancelledError, EndpointError, ProgramError, RequestError, StemmaError
from stemma.lang.nodes import Gen, Image, Node, Ref, RoleBegin, RoleEnd, Select, Text, caller


@dataclass(slots=True, eq=False)
class Failure:
    """Why a node, a branch or a program has no value. `what` says so in words where no node is to blame."""

    cause: BaseException
    node: GraphNode | None = None
    what: str = ""
    seen: bool = False  # a reader was told
    handled: bool = False  # a reader in the program was told, and the program went on to return

    def __str__(self) -> str:
        ours = isinstance(self.cause, StemmaError) and str(self.cause)
        cause = str(self.cause) if ours else f"{type(self.cause).__name__}: {self.cause}".removesuffix(": ")
        blamed = self.node.describe() if self.node is not None else self.what
        return f"{blamed}: {cause}" if blamed else cause

    def error(self, reader: GraphNode | None = None, where: str | None = None) -> ProgramError:
        """What a reader is raised, chained to the cause. `reader` is the node that was read, `where` the line that
        could not go on."""
        self.seen = True
        node = self.node or reader
        message = str(self)
        if reader is not None and reader is not self.node:
            message = f"{reader.describe()} has no value, because of {message}"
        if where is not None and node is None:
            message = f"{where} cannot go on: {message}"
        at = node.where if node else where
        error = ProgramError(message, where=at, node=node.describe() if node else None)
        error.__cause__ = self.cause
        return error


class Run:
    """One running program: its graph, its endpoint, and the readers that wait for values.

    `timeout` bounds the whole program in seconds, `budget` what it may spend; beyond either, what has no value yet
    fails, here and at the endpoint.
    """

    def __init__(
        self, endpoint: Endpoint, options: RunOptions, *, timeout: float | None = None, budget: Budget | None = None
    ) -> None:
        check_priority(endpoint, options.priority)
        self.endpoint = endpoint
        self.options = options
        self.budget = budget
        self.graph = ProgramGraph(f"p{uuid.uuid4().hex}")
        self.log = EventLog()
        self.changed = threading.Condition()
        self.failure: Failure | None = None  # why the body did not return
        self.result: Any = None
        self.finished = False  # the body returned or raised
        self.started_at = time.perf_counter()
        self.settled_at = self.started_at
        self._send = threading.Lock()
        self._names = "names" in endpoint.capabilities
        self.touched_at, self.in_quiet_queue = 0.0, False  # for the quiet timer
        self._sleepers: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._refs: list[GraphNode] = []  # literals that still wait for the value they quote
        self.body: asyncio.Future[None] | None = None  # a body that nobody awaits; held so that it is not collected
        self._stopped: Failure | None = None  # why nothing can be said any more
        if budget is not None and (over := budget.over()) is not None:
            self._stopped = Failure(over, what="the program was not started")
        if timeout is not None:
            weak: weakref.ref[Run] = weakref.ref(self)  # an ended program must not live on for this
            timers.call_later(timeout, lambda: _overdue(weak, timeout))

    def wake(self) -> None:
        """Something has changed: wake the readers. Called with `changed` held."""
        self.changed.notify_all()
        sleepers, self._sleepers = self._sleepers, {}
        for sleeper, loop in sleepers.items():
            with contextlib.suppress(RuntimeError):  # that loop was closed; nobody waits there any more
                loop.call_soon_threadsafe(_set, sleeper)

    # --- what a program says

    def append(self, branch: GraphBranch, node: Node, options: RunOptions | None = None) -> GraphNode:
        """Record a node at the end of a branch. Raises `ProgramError` if the branch failed or ended."""
        with self.changed:
            self.check_open(branch)
            if isinstance(node, Ref) and any(
                self.graph.branches.get(source.branch.id) is not source.branch for source in node.value.nodes()
            ):
                raise RequestError(f"{node} is a value of another program: append what it reads as", param=node.name)
            check_node(self.endpoint, node)
            wire = wire_node(node, options or self.options, f"{branch.id}:{len(branch.nodes)}")
            text = node.text if isinstance(node, Text) else "" if isinstance(node, Image) else None
            name = node.name if isinstance(node, (Gen, Select)) else None
            added = self.graph.append(branch, wire, where=node.where, name=name, text=text)
            if isinstance(node, Ref):
                added.source, added.name, added.ref = node.value, node.name, node.value.reference()
            self.log.said(added)
            if isinstance(node, Ref):
                self._refs.append(added)
                self._resolve()
            elif isinstance(node, Gen) and node.timeout is not None:
                added.timeout = node.timeout
                self._time(added)
            self.wake()
        timers.touch(self)
        return added

    def check_role(self, branch: GraphBranch, node: RoleBegin | RoleEnd) -> None:
        """Raise `RequestError` when a role opens inside another, or closes one that is not open."""
        last = branch.last_role()
        opened = last if last is not None and last.kind == "role_begin" else None
        if isinstance(node, RoleBegin) and opened is not None:
            role = opened.wire["role"]
            raise RequestError(
                f"{node} at {node.where} is inside the {role} message opened at {opened.where}", param="role"
            )
        if isinstance(node, RoleEnd) and (opened is None or opened.wire["role"] != node.role):
            inside = f"the open message is {opened.wire['role']}'s" if opened else "no message is open"
            raise RequestError(f"{node} at {node.where}: {inside}", param="role")

    def fork(self, branch: GraphBranch, count: int) -> list[GraphBranch]:
        """Add children at the branch's present end. Sends nothing, waits for nothing."""
        with self.changed:
            self.check_open(branch)
            children = self.graph.fork(branch, count)
            self.log.forked(branch, children)
            self.wake()
        timers.touch(self)
        return children

    def check_open(self, branch: GraphBranch) -> None:
        """Raise `ProgramError` unless more can be appended to the branch."""
        failure = branch.failure or self.failure or self._stopped
        if failure is not None:
            raise failure.error(where=caller())
        if branch.ended or self.finished:
            what = "the program has finished" if self.finished else f"{branch.label or 'the branch'} was joined"
            raise ProgramError(f"nothing can be appended or forked any more: {what}")

    def end_branches(self, branches: Iterable[GraphBranch]) -> None:
        """No more nodes will come for these and their descendants."""
        branches = list(branches)
        with self.changed:
            self.log.joined(branches)
            for top in branches:
                for branch in top.subtree():
                    branch.ended = True
            self.wake()
        timers.touch(self)

    # --- out

    def flush(self) -> None:
        """Send everything that was not sent yet, as one delta. A failing endpoint fails the nodes of the delta."""
        with self._send:
            self.graph.refs |= any(node.ref for node in list(self._refs)) and self.endpoint.resolves_refs()
            with self.changed:
                delta = self.graph.take_delta(names=self._names)
                if delta is None:
                    return
                self.log.sent(self.graph, delta)
                self.wake()
            if hints := self.options.hints(self.endpoint.capabilities):
                delta["hints"] = hints
            try:
                self.endpoint.submit(delta, self.on_event)
            except Exception as error:
                self._fail_delta(delta, error)

    def _fail_delta(self, delta: dict[str, Any], error: Exception) -> None:
        with self.changed:
            for entry in delta["branches"]:
                self._spread(
                    self.graph.branches[entry["id"]], entry["first"], Failure(error, what="the endpoint failed")
                )
            self.wake()

    # --- in: called on the endpoint's threads, must stay cheap

    def on_event(self, event: dict[str, Any]) -> None:
        """Take one event. Events about nodes that are already settled change nothing."""
        kind = event["event"]
        with self.changed:
            node = self.graph.node(event.get("branch", ""), event.get("node", -1))
            if kind == "error":
                error = error_from_wire(event["error"])
                if node is None:
                    self._fail_everything(Failure(error, what="the endpoint refused the program"))
                elif not node.settled or node.kind == "text":
                    self._fail_from(node.branch, node.index, error)
            elif node is None or node.settled:
                return
            elif kind == "delta":
                node.t_first = node.t_first or time.perf_counter()
                node.pieces.append(event["text"])
                node.meta.update(event.get("meta") or {})
                self.log.delta(node)
            elif event["text"] is None:
                node.failure = Failure(EndpointError("the endpoint did not tell the text of this role marker"), node)
                self.log.failed(node)
            else:
                node.ids, node.meta = event.get("ids"), event.get("meta") or {}
                node.text = event["text"]
                self.log.finished(node)
                self.settled_at = node.t_done = time.perf_counter()
                self._spend(node)
            if kind != "delta":
                self._settled(node)
            self.wake()

    def _settled(self, node: GraphNode | None) -> None:
        """A node has its value, or has failed: fill in what quotes it, and let the clock of the next one start."""
        if self._refs:
            self._resolve()
        if node is not None:
            self._time_next(node)

    def _resolve(self) -> None:
        """Give the literals that quote values their text, as far as those are there."""
        for node in list(self._refs):
            sources: list[GraphNode] = [] if node.failure is not None else node.source.nodes()
            if not all(source.settled for source in sources):
                continue
            self._refs.remove(node)
            failed = next((source.failure for source in sources if source.failure is not None), None)
            if node.failure is not None:
                continue
            try:
                if failed is None:
                    node.text = node.wire["text"] = node.source.quote(self)
                    self.log.finished(node)
            except Exception as error:  # a value that cannot be read: a capture that is not there, a method that raises
                failed = Failure(error, node)
            if failed is not None:
                self._spread(node.branch, node.index, failed)
            if node.index >= node.branch.sent:
                timers.flush_soon(self)

    # --- bounds

    def _time_next(self, node: GraphNode) -> None:
        if node.index + 1 < len(node.branch.nodes):
            following = next((n for n in node.branch.nodes[node.index + 1 :] if n.awaited), None)
            if following is not None:
                self._time(following)
        for child in node.branch.children:
            if child.at > node.index and child.nodes:
                first = next((n for n in child.nodes if n.awaited), None)
                if first is not None:
                    self._time(first)

    def _time(self, node: GraphNode) -> None:
        """Start the clock of a gen with a timeout, once everything before it is there."""
        seconds = node.timeout
        if seconds is None or node.settled:
            return
        before = itertools.takewhile(lambda n: n is not node, node.branch.lineage())
        if not all(n.settled for n in before):
            return
        node.timeout = None
        weak: weakref.ref[Run] = weakref.ref(self)  # as for the program's own timeout
        branch, index = node.branch.id, node.index
        timers.call_later(seconds, lambda: _node_overdue(weak, branch, index, seconds))

    def _node_overdue(self, node: GraphNode, seconds: float) -> None:
        with self.changed:
            if node.settled:
                return
            self._fail_from(node.branch, node.index, TimeoutError(f"it took longer than its timeout of {seconds:g} s"))
            self._settled(None)
            self.wake()
            spared = [b for child in node.branch.children if child.failure is None for b in child.subtree()]
            if any(not n.settled for b in spared for n in b.nodes):
                return  # cancelling the branch would take along what was forked before this node
        self._cancel_at_endpoint([node.branch.id])

    def _spend(self, node: GraphNode) -> None:
        if self.budget is None or self.failure is not None or node.meta.get("merged_with"):
            return
        over = self.budget.spend(node.meta)
        if over is not None:
            self._stopped = self._stopped or Failure(over, what="the program was stopped")  # nothing more is said
            timers.call_later(0.0, lambda: self.stop(over))  # not from here: the endpoint may be inside `submit`

    def stop(self, error: BaseException) -> None:
        """What has no value yet fails with this error, nothing can be appended, and the endpoint lets go."""
        with self.changed:
            failure = Failure(error, what="the program was stopped")
            running = [b for b in self.graph.branches.values() if any(not node.settled for node in b.nodes)]
            if self.finished and not running:
                return
            self._stopped = failure
            for branch in running:
                self._mark(branch, -1, failure)
            self.wake()
        self._cancel_at_endpoint(None)

    def _fail_from(self, branch: GraphBranch, index: int, error: BaseException) -> None:
        """A node failed: nothing after it in the branch, and no branch forked after it, can have a value."""
        node = branch.nodes[index] if index < len(branch.nodes) else None
        self._spread(branch, index, Failure(error, node))
        self.settled_at = time.perf_counter()

    def _spread(self, branch: GraphBranch, index: int, failure: Failure) -> None:
        """The branch fails from this node on (-1: as a whole), and so does what was forked from there."""
        reached = [(branch, index)]
        for each, first in reached:
            self._mark(each, first, failure)
            reached += [(child, -1) for child in each.children if child.at > first]

    def _mark(self, branch: GraphBranch, index: int, failure: Failure) -> None:
        branch.failure = branch.failure or failure
        for node in branch.nodes[max(index, 0) :]:
            if not node.settled:
                node.failure = failure
                self.log.failed(node)

    def _fail_everything(self, failure: Failure) -> None:
        for branch in self.graph.branches.values():
            self._mark(branch, -1, failure)

    # --- the end

    def finish(self, result: Any) -> None:
        """The body returned: end every branch, which releases their leases once they have run."""
        with self.changed:
            self.result, self.finished, self.graph.end = result, True, True
            for branch in self.graph.branches.values():
                if branch.failure is not None:
                    branch.failure.handled = branch.failure.seen
            self._drop_unread()
            self.wake()
        self.flush()

    def _drop_unread(self) -> None:
        """With `drop_unread`, what was not sent by now was read by nobody, and is never run."""
        if self.options.drop_unread:
            for node in self.graph.drop_unsent():
                why = "it was not run: nothing had read it when the program returned, and drop_unread was set"
                node.failure = Failure(RequestError(f"{why}. Read it inside the program", param="drop_unread"), node)
                self.log.failed(node)

    def abort(self, error: BaseException) -> None:
        """The body raised: readers get its error, and the endpoint lets go of everything."""
        with self.changed:
            self.failure = Failure(error, what="the program raised")
            self.finished = self.graph.end = True
            self._fail_everything(self.failure)
            self.wake()
        try:
            self._cancel_at_endpoint(None)
        except Exception as second:
            error.add_note(f"Besides, the endpoint could not be told to cancel the program: {second!r}")

    def fail(self, error: BaseException) -> None:
        """Nothing of the program can go on: whatever has no value yet fails with this error."""
        with self.changed:
            self._fail_everything(Failure(error))
            self.wake()

    def cancel(self, branch: GraphBranch) -> None:
        """Stop a branch and its descendants: what has no value yet fails with `CancelledError`, here and at once."""
        whole = branch is self.graph.root
        with self.changed:
            failure = Failure(CancelledError("the program was cancelled" if whole else f"{branch.label} was cancelled"))
            branches = list(branch.subtree())
            for each in branches:
                if not self.finished or any(not node.settled for node in each.nodes):
                    self._mark(each, -1, failure)
            self.wake()
        self._cancel_at_endpoint(None if whole else [b.id for b in branches])

    def _cancel_at_endpoint(self, branches: list[str] | None) -> None:
        with self._send:
            with self.changed:
                known = [b.id for b in self.graph.branches.values() if b.known and (not branches or b.id in branches)]
                if branches is None:
                    self.graph.end_sent = True
            if known:
                self.endpoint.cancel(self.graph.program, None if branches is None else known)

    # --- readers

    def wait(self, nodes: Iterable[GraphNode], timeout: float | None = None) -> None:
        """Until all these nodes have values. Raises `ProgramError` on the first that failed, `TimeoutError` in time."""
        for node in self.settle(nodes, timeout):
            if node.failure is not None:
                raise node.failure.error(node)

    def settle(self, nodes: Iterable[GraphNode], timeout: float | None = None) -> Iterable[GraphNode]:
        """Each of the nodes, once it has a value or has failed. Flushes when it has to wait."""
        until = None if timeout is None else time.monotonic() + timeout
        for node in nodes:
            if not node.settled:
                self.flush()
                self.wait_for(lambda node=node: node.settled, until, node.describe())
            yield node

    async def settle_async(self, nodes: Iterable[GraphNode], timeout: float | None = None) -> None:
        """Until each of the nodes has a value or has failed. Flushes when it has to wait; raises `TimeoutError`."""
        nodes = [node for node in nodes if not node.settled]
        if nodes:
            self.flush()
            what = nodes[0].describe() if len(nodes) == 1 else f"{nodes[0].describe()} or what follows it"
            await self.ready_async(lambda: all(node.settled for node in nodes), timeout, what)

    async def ready_async(self, ready: Callable[[], bool], timeout: float | None, what: str) -> None:
        """`wait_for` for coroutines: until `ready()`; raises `TimeoutError` naming `what` after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        while True:
            with self.changed:
                if ready():
                    return
                sleeper: asyncio.Future[None] = loop.create_future()
                self._sleepers[sleeper] = loop
            try:
                async with asyncio.timeout_at(until):
                    await sleeper
            except TimeoutError:
                raise TimeoutError(f"{what} was not ready in time") from None
            finally:
                with self.changed:
                    self._sleepers.pop(sleeper, None)

    def wait_for(self, ready: Callable[[], bool], until: float | None, what: str) -> None:
        """Until `ready()`; raises `TimeoutError` naming `what` at the moment `until` (monotonic)."""
        with self.changed:
            left = None if until is None else until - time.monotonic()
            if not self.changed.wait_for(ready, left):
                raise TimeoutError(f"{what} was not ready in time")

    def nodes_of(self, branches: Iterable[GraphBranch]) -> list[GraphNode]:
        """The own nodes of these branches, so far."""
        with self.changed:
            return [node for branch in branches for node in branch.nodes]

    def filled(self, branches: Iterable[GraphBranch]) -> list[GraphNode]:
        """What somebody else must bring of these branches, so far: gens, selects, and quotes of other branches."""
        return [node for node in self.nodes_of(branches) if node.awaited]

    def unseen_failure(self, branches: Iterable[GraphBranch]) -> Failure | None:
        """The first failure in these branches that the program was not told of."""
        failures = [branch.failure for branch in branches if branch.failure is not None]
        return next((f for f in failures if not (f.handled if self.finished else f.seen)), None)

    def usage(self) -> dict[str, float]:
        """Totals over all nodes so far, and seconds from the start to the last that got its value."""
        with self.changed:
            used = usages(self.graph)
        return {**totals(used), "wall_seconds": self.settled_at - self.started_at}


def _set(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _node_overdue(weak: weakref.ref[Run], branch: str, index: int, seconds: float) -> None:
    run = weak()
    node = None if run is None else run.graph.node(branch, index)
    if run is not None and node is not None:
        run._node_overdue(node, seconds)


def _overdue(weak: weakref.ref[Run], seconds: float) -> None:
    run = weak()
    if run is not None:
        run.stop(TimeoutError(f"the program took longer than its timeout of {seconds:g} s"))
