"""What a prefix cache without bounds would hit, on the same programs in the same order.

A trie over token ids, kept beside the simulation: a prompt token is a hit if any earlier generation, of any replica,
had it at that place behind the same tokens. What only one program can have is forgotten with the program.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stemma.backend.core import Int32
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.simulate.tokens import Outputs
from stemma.backend.simulate.trace import Gen, Ids, Text, TraceProgram


class _Node:
    __slots__ = ("children", "ids")

    def __init__(self, ids: Int32) -> None:
        self.ids = ids
        self.children: dict[int, _Node] = {}


class Trie:
    """Sequences of tokens."""

    def __init__(self) -> None:
        self._root = _Node(np.empty(0, np.int32))
        self.size = 0  # tokens

    def add(self, ids: Int32) -> int:
        """Insert a sequence; how much of its beginning was there before."""
        node, at, n = self._root, 0, len(ids)
        while at < n:
            child = node.children.get(int(ids[at]))
            if child is None:
                node.children[int(ids[at])] = _Node(ids[at:].copy())
                self.size += n - at
                return at
            m = min(len(child.ids), n - at)
            differs = child.ids[:m] != ids[at : at + m]
            common = int(differs.argmax()) if differs.any() else m
            at += common
            if common < len(child.ids):
                if at == n:
                    return n
                upper = _Node(child.ids[:common])
                lower = _Node(child.ids[common:])
                lower.children = child.children
                upper.children[int(lower.ids[0])] = lower
                node.children[int(upper.ids[0])] = upper
                child = upper
            node = child
        return n


class Oracle:
    """Follows the answers of a simulation."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self.prompt = self.hit = 0
        self._shared = Trie()
        self._own: dict[str, dict[int, Trie]] = {}  # program -> hash of a shared beginning -> what only it has behind

    @property
    def hit_rate(self) -> float:
        """Share of all prompt tokens."""
        return self.hit / self.prompt if self.prompt else 0.0

    def begin(self, program: TraceProgram) -> None:
        self._own[program.id] = {}

    def end(self, program: TraceProgram) -> None:
        self._own.pop(program.id, None)

    def answered(self, program: TraceProgram, event: dict[str, Any], scheduler: Scheduler) -> None:
        """A generation has ended; its branch still has its tokens."""
        if event["event"] != "done" or "ttft" not in event["meta"]:
            return
        own = self._own.get(program.id)
        if own is None:
            return
        branch = scheduler.graph.programs[program.id].branches[event["branch"]]
        prompt = event["meta"]["prompt_tokens"]
        ids = branch.ids()[: prompt + max(len(event["ids"]) - 1, 0)]  # the last token is never run through the model
        public = min(_public(program, event["branch"], self.outputs), len(ids))
        known = self._shared.add(ids[:public])
        if len(ids) > public:
            rest = own.setdefault(hash(ids[:public].tobytes()), Trie()).add(ids[public:])
            known = public + rest if known == public else known
        self.prompt += prompt
        self.hit += min(known, prompt - 1)


def _public(program: TraceProgram, branch: str, outputs: Outputs) -> int:
    """How many tokens of a branch's beginning other programs may have too: up to the first that has no key."""
    by_id = {b.id: b for b in program.branches}
    line, count, parts = by_id[branch], None, []
    while True:
        parts.append(line.nodes if count is None else line.nodes[:count])
        if line.parent is None:
            break
        line, count = by_id[line.parent], line.at
    total = 0
    for node in (node for part in reversed(parts) for node in part):
        if isinstance(node, Text) and (node.key or not node.n):
            total += node.n
        elif isinstance(node, Ids):
            total += len(node.ids)
        elif isinstance(node, Gen) and (node.key or node.ids):
            total += node.n
        else:
            break
    return total
