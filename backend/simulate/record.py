"""Record what programs ask of an engine, as a trace.

    with Recorder(engine) as recorder:
        ...                                     # run programs on the engine, as ever
    save("morning.jsonl", recorder.programs(), vocab=recorder.vocab)

Every delta and every answer that passes is noted. Literals become the ids that the engine made of them, outputs keep
their ids, and what a client sent after it had answers waits, in the trace, for the answers that it had then, and for as
long as it took. Prompts that hold an output are literal: their tokens are the same, but in the trace they depend on the
answer by that waiting, not by reference.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stemma.backend.messages import GenNode, GraphDelta, IdsNode, SelectNode, parse_delta
from stemma.backend.simulate.trace import Gen, Ids, Node, Select, TraceBranch, TraceProgram, Wait, check

Sink = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class _Sent:
    """A node of a branch that is more than literal text. `after`: the answers that the client had when it sent the
    node, if it is the first of its delta in this branch; `pause`: seconds between the last of them and the sending."""

    index: int
    node: GenNode | SelectNode | IdsNode
    after: list[tuple[str, int]]
    pause: float
    answer: dict[str, Any] | None = None

    @property
    def open(self) -> bool:
        return self.answer is None and not isinstance(self.node, IdsNode)


@dataclass(slots=True)
class _Branch:
    parent: str | None
    at: int
    count: int = 0  # nodes sent
    sent: list[_Sent] = field(default_factory=list)


@dataclass(slots=True)
class _Program:
    arrival: float
    branches: dict[str, _Branch] = field(default_factory=dict)
    answered: list[tuple[str, int]] = field(default_factory=list)
    last_answer: float = 0.0
    failed: bool = False


class Recorder:
    """Watches an engine until it is closed. Thread-safe as the engine is: it notes a delta, then passes it on."""

    def __init__(self, engine: Any) -> None:
        self.vocab: int = engine.runner.vocab_size
        self._eos = engine.tokenizer.eos_ids
        self._engine = engine
        self._pass_on = engine._submit_all
        self._began = time.perf_counter()
        self._programs: dict[str, _Program] = {}
        engine._submit_all = self._submit_all

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        self._engine.__dict__.pop("_submit_all", None)

    # -- watching --------------------------------------------------------------------------------------------------

    def _submit_all(self, deltas: Any) -> None:
        watched = []
        for given, sink in deltas:
            delta = msgspec.structs.replace(parse_delta(given), tokens=True)
            self._note(delta)
            watched.append((delta, self._listen(delta.program, sink)))
        self._pass_on(watched)

    def _note(self, delta: GraphDelta) -> None:
        now = time.perf_counter() - self._began
        program = self._programs.setdefault(delta.program, _Program(now))
        pause = max(now - program.last_answer, 0.0) if program.answered else 0.0
        for given in delta.branches:
            after = list(program.answered)
            branch = program.branches.setdefault(given.id, _Branch(given.parent, given.at))
            for index, node in enumerate(given.nodes, branch.count):
                if isinstance(node, GenNode | SelectNode | IdsNode):
                    branch.sent.append(_Sent(index, node, after, pause))
                    after = []
            branch.count += len(given.nodes)

    def _listen(self, name: str, sink: Sink) -> Sink:
        def listen(event: dict[str, Any]) -> None:
            program = self._programs[name]
            if event["event"] == "error":
                program.failed = True
            elif event["event"] == "done":
                for sent in program.branches[event["branch"]].sent:
                    if sent.index == event["node"]:
                        sent.answer = event
                program.answered.append((event["branch"], event["node"]))
                program.last_answer = time.perf_counter() - self._began
            sink(event)

        return listen

    # -- the trace -------------------------------------------------------------------------------------------------

    def programs(self) -> list[TraceProgram]:
        """The programs that ran to their end, in order of arrival; those with errors or open answers are left out."""
        whole = [
            (name, program)
            for name, program in self._programs.items()
            if not program.failed
            and any(sent.answer for branch in program.branches.values() for sent in branch.sent)
            and not any(sent.open for branch in program.branches.values() for sent in branch.sent)
        ]
        first = min((program.arrival for _, program in whole), default=0.0)
        made = [check(self._program(name, program, first), self.vocab) for name, program in whole]
        return sorted(made, key=lambda p: p.arrival)

    def _program(self, name: str, program: _Program, first: float) -> TraceProgram:
        ends: dict[tuple[str, int], int] = {}  # (branch, node sent) -> nodes of the trace up to it
        nodes: dict[str, list[Node]] = {}
        for branch_id, branch in program.branches.items():
            out = nodes[branch_id] = []
            for sent in branch.sent:
                if sent.after:
                    out.append(Wait(sent.pause, list(sent.after)))  # in the client's terms; translated below
                out += self._nodes(sent)
                ends[branch_id, sent.index] = len(out)
        branches = []
        for branch_id, branch in program.branches.items():
            before = [s for s in program.branches[branch.parent].sent if s.index < branch.at] if branch.parent else []
            at = ends[branch.parent or "", before[-1].index] if before else 0
            translated: list[Node] = [
                Wait(n.seconds, [(a[0], ends[a] - 1) for a in n.after]) if isinstance(n, Wait) else n
                for n in nodes[branch_id]
            ]
            branches.append(TraceBranch(branch_id, translated, branch.parent, at))
        return TraceProgram(name, program.arrival - first, branches, "recorded")

    def _nodes(self, sent: _Sent) -> list[Node]:
        if isinstance(sent.node, IdsNode):
            return [Ids(sent.node.ids)]
        assert sent.answer is not None
        meta, ids = sent.answer["meta"], sent.answer["ids"]
        told = meta["prompt_ids"]["ids"]
        literal: list[Node] = [Ids(told)] if told else []
        if isinstance(sent.node, SelectNode):
            scored = [[t for _, t, _ in choice] for choice in meta["input_token_logprobs"]]
            return [*literal, Select([spelled or ids or [0] for spelled in scored])]
        most = sent.node.params.get("max_new_tokens") or max(len(ids), 1)
        ended = bool(ids) and ids[-1] in self._eos and not sent.node.params.get("ignore_eos")
        plain = ids[:-1] if ended else ids
        if not ids:  # nothing was generated: the least a trace can say
            return [*literal, Gen(1)]
        if ended and most <= len(ids):
            most = len(ids) + 1
        return [*literal, Gen(len(ids), most if ended else len(ids), "", plain)]
