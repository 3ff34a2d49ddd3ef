"""The other side: a program that sends what it knows, waits for answers, thinks, and goes on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from stemma.backend.core import Int32
from stemma.backend.messages import BranchDelta, GenNode, GraphDelta, IdsNode, SelectNode
from stemma.backend.messages import Node as WireNode
from stemma.backend.simulate.runner import FIRST_CHARACTER
from stemma.backend.simulate.tokens import Outputs, key_number, stream
from stemma.backend.simulate.trace import (
    ANSWERED,
    Gen,
    Ids,
    Node,
    Output,
    Select,
    Text,
    TraceBranch,
    TraceProgram,
    Wait,
)

Address = tuple[str, int]


@lru_cache(maxsize=512)
def _shared_ids(key: str, n: int, vocab: int) -> IdsNode:
    """Literals that many programs begin with are made once."""
    return IdsNode(ids=stream(key_number(key), np.arange(n), vocab).tolist())


class BranchSide:
    """What the client knows of one branch. `sent` counts trace nodes, `wire` the nodes that the engine was sent."""

    __slots__ = ("begun", "branch", "closed", "due", "left", "sent", "wire", "wire_at")

    def __init__(self, branch: TraceBranch) -> None:
        self.branch = branch
        self.sent = self.wire = 0
        self.wire_at: list[int] = [0]  # wire_at[k]: nodes sent to the engine before trace node k
        self.begun = False  # the engine knows it
        self.closed = False
        self.due: float | None = None  # when the wait that it stands at is over
        self.left = 0  # of its gens and selects, sent and not answered


class ProgramRun:
    """One program of a trace as its client runs it.

    `next_delta(now)` is what may be sent now; `wake` is when to ask again though no answer came. Feed it every event.
    """

    def __init__(self, program: TraceProgram, outputs: Outputs) -> None:
        self.program, self.outputs = program, outputs
        self.sides = {branch.id: BranchSide(branch) for branch in program.branches}
        self._nodes = {branch.id: branch.nodes for branch in program.branches}
        self._needed = {
            (node.branch, node.node) for b in program.branches for node in b.nodes if isinstance(node, Output)
        }
        self.answers: dict[Address, list[int]] = {}
        self.open_answers = sum(isinstance(n, ANSWERED) for b in program.branches for n in b.nodes)
        self._address: dict[tuple[str, int], int] = {}  # (branch, wire index) -> trace index
        self.complete = False  # everything is sent
        self.outstanding = 0
        self.wake: float | None = None
        # accounts, in seconds of the client's clock
        self.began = self.done_at = self.first_token = 0.0
        self.idle = 0.0  # nothing was asked of the engine: the client or its tools were at work
        self._idle_since = 0.0
        self.error = ""
        self.prompt = self.cached = self.computed = self.generated = self.retractions = 0
        self.longest_wait = 0.0  # of one of its generations in the queue

    # -- sending ---------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        self.began = self._idle_since = now

    def beginning(self) -> Int32:
        """The tokens of the first prompt as far as they are known: what a router looks at."""
        parts = []
        for node in self.program.branches[0].nodes:
            if isinstance(node, Text | Ids):
                parts.append(np.array(self._literal(node, self.program.branches[0].id, len(parts)).ids, np.int32))
            else:
                break
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def next_delta(self, now: float) -> GraphDelta | None:
        """Everything that may be sent now, or None."""
        self.wake = None
        deltas = []
        for side in self.sides.values():
            if side.closed or not (side.begun or self._may_begin(side)):
                continue
            first, nodes = side.wire, self._take(side, now)
            whole = side.sent == len(side.branch.nodes)
            if not nodes and side.begun and not whole:
                continue
            side.closed = whole
            parent = side.branch.parent
            at = self.sides[parent].wire_at[side.branch.at] if parent is not None and not side.begun else 0
            side.begun = True
            deltas.append(BranchDelta(id=side.branch.id, parent=parent, at=at, first=first, nodes=nodes, end=whole))
        if not deltas:
            return None
        self.complete = all(side.closed for side in self.sides.values())
        if self.outstanding and self._idle_since >= 0:
            self.idle += now - self._idle_since
            self._idle_since = -1.0
        return GraphDelta(program=self.program.id, branches=deltas, end=self.complete)

    def _may_begin(self, side: BranchSide) -> bool:
        parent = side.branch.parent
        return parent is None or (self.sides[parent].begun and self.sides[parent].sent >= side.branch.at)

    def _take(self, side: BranchSide, now: float) -> list[WireNode]:
        """The nodes of a branch up to the first that must wait."""
        nodes: list[WireNode] = []
        given = side.branch.nodes
        while side.sent < len(given):
            node = given[side.sent]
            if isinstance(node, Wait):
                if not self._waited(side, node, now):
                    break
            else:
                if isinstance(node, Output) and (node.branch, node.node) not in self.answers:
                    break
                nodes.append(self._wire(node, side.branch.id, side.sent))
                if isinstance(node, ANSWERED):
                    self._address[side.branch.id, side.wire] = side.sent
                    side.left += 1
                    self.outstanding += 1
                side.wire += 1
            side.sent += 1
            side.wire_at.append(side.wire)
        return nodes

    def _waited(self, side: BranchSide, node: Wait, now: float) -> bool:
        if side.left or any(tuple(address) not in self.answers for address in node.after):
            return False
        if side.due is None:
            side.due = now + node.seconds
        if now < side.due:
            self.wake = side.due if self.wake is None else min(self.wake, side.due)
            return False
        side.due = None
        return True

    def _wire(self, node: Node, branch: str, index: int) -> WireNode:
        if isinstance(node, Gen):
            key = key_number(node.key or f"{self.program.id}/{branch}/{index}")
            seed = self.outputs.seed(key, node.n, node.n < node.most, node.ids)
            return GenNode(params={"max_new_tokens": node.most, "temperature": 0.0, "seed": seed})
        if isinstance(node, Select):
            return SelectNode(choices=["".join(chr(FIRST_CHARACTER + t) for t in ids) for ids in node.choices])
        return self._literal(node, branch, index)

    def _literal(self, node: Node, branch: str, index: int) -> IdsNode:
        if isinstance(node, Text):
            if node.key:
                return _shared_ids(node.key, node.n, self.outputs.vocab)
            key = key_number.__wrapped__(f"{self.program.id}/{branch}/{index}")  # nobody asks for it again
            return IdsNode(ids=stream(key, np.arange(node.n), self.outputs.vocab).tolist())
        if isinstance(node, Ids):
            return IdsNode(ids=node.ids)
        assert isinstance(node, Output)
        return IdsNode(ids=self.answers[node.branch, node.node])

    # -- receiving -------------------------------------------------------------------------------------------------

    def receive(self, event: dict[str, Any], sent_at: float, now: float) -> bool:
        """An event that the engine sent at `sent_at` and the client has at `now`. True if it may have more to send."""
        if event["event"] == "error":
            self.error = self.error or event["error"]["message"]
        elif event["event"] != "done":
            return False
        branch = event["branch"]
        index = self._address.pop((branch, event["node"]), None)
        if index is None:
            return False
        self.sides[branch].left -= 1
        self.outstanding -= 1
        self.open_answers -= 1
        ids: list[int] = []
        if event["event"] == "done":
            self._account(event["meta"], sent_at, now)
            if (branch, index) in self._needed:
                ids = [t for t in event["ids"] if t != self.outputs.eos]
        self.answers[branch, index] = ids
        if not self.outstanding:
            self._idle_since = now
        if not self.open_answers:
            self.done_at = now
        return not self.complete

    def _account(self, meta: dict[str, Any], sent_at: float, now: float) -> None:
        self.prompt += meta["prompt_tokens"]
        self.cached += meta["cached_tokens"]
        self.computed += meta["computed_tokens"]
        self.generated += meta["completion_tokens"]
        self.retractions += meta["num_retractions"]
        if "ttft" not in meta:
            return
        first = sent_at - meta["e2e_latency"] + meta["ttft"] + (now - sent_at)
        self.first_token = min(self.first_token or first, first)
        self.longest_wait = max(self.longest_wait, meta["queue_time"])

    @property
    def finished(self) -> bool:
        return self.open_answers == 0

    @property
    def latency(self) -> float:
        """Seconds in which something was asked of the engine."""
        return self.done_at - self.began - self.idle
