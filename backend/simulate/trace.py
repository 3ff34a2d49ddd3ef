"""Traces: when which programs came, and what they were made of. JSON lines, described in docs/simulator.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from stemma.backend.simulate.tokens import MAX_LENGTH
from stemma.lang.errors import RequestError

VERSION = 1
VOCAB = 128_000  # ordinary tokens of a trace that says nothing else


class Text(msgspec.Struct, tag_field="kind", tag="text", forbid_unknown_fields=True, frozen=True):
    """`n` literal tokens. Those of one `key` are the beginning of one sequence; without a key nobody else has them."""

    n: int
    key: str = ""


class Ids(msgspec.Struct, tag_field="kind", tag="ids", forbid_unknown_fields=True, frozen=True):
    """Literal tokens as they were."""

    ids: list[int]


class Gen(msgspec.Struct, tag_field="kind", tag="gen", forbid_unknown_fields=True, frozen=True):
    """A generation that produces `n` tokens, the last of which is the end token if n < max.

    max: what the client asks for (max_new_tokens); 0: n. key: names what it says, for traces in which a later program
    repeats it (`text` of the same key). ids: what it said, if recorded (without the end token).
    """

    n: int
    max: int = 0
    key: str = ""
    ids: list[int] = []

    @property
    def most(self) -> int:
        return self.max or self.n


class Select(msgspec.Struct, tag_field="kind", tag="select", forbid_unknown_fields=True, frozen=True):
    """Choices to score, as token ids."""

    choices: list[list[int]]


class Output(msgspec.Struct, tag_field="kind", tag="output", forbid_unknown_fields=True, frozen=True):
    """The tokens that node `node` of branch `branch` generated, which the client has waited for: a join."""

    branch: str
    node: int


class Wait(msgspec.Struct, tag_field="kind", tag="wait", forbid_unknown_fields=True, frozen=True):
    """The client sends what follows `seconds` after it has the answers before this node in the branch, and `after`."""

    seconds: float = 0.0
    after: list[tuple[str, int]] = []


Node = Text | Ids | Gen | Select | Output | Wait
ANSWERED = (Gen, Select)


class TraceBranch(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`parent`, `at`: it begins behind the first `at` nodes of that branch."""

    id: str
    nodes: list[Node]
    parent: str | None = None
    at: int = 0


class TraceProgram(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`arrival`: seconds from the beginning of the trace. `kind` groups programs in reports."""

    id: str
    arrival: float
    branches: list[TraceBranch]
    kind: str = "program"


class Header(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The first line of a file."""

    stemma_trace: int = VERSION
    vocab: int = VOCAB
    source: str = ""


def check(program: TraceProgram, vocab: int = VOCAB) -> TraceProgram:
    """The program itself. Raises RequestError that says what is wrong and where."""

    def wrong(where: str, what: str) -> RequestError:
        return RequestError(f"program {program.id!r}{where}: {what}", param="trace")

    if not program.branches or not program.arrival >= 0:
        raise wrong("", f"needs a branch and an arrival >= 0, got {program.arrival!r}")
    known: dict[str, TraceBranch] = {}
    for branch in program.branches:
        where = f", branch {branch.id!r}"
        if branch.id in known:
            raise wrong(where, "stands there twice")
        if branch.parent is not None and branch.parent not in known:
            raise wrong(where, f"its parent {branch.parent!r} must come before it")
        if branch.parent is not None and not 0 <= branch.at <= len(known[branch.parent].nodes):
            raise wrong(where, f"at must be in [0, {len(known[branch.parent].nodes)}], got {branch.at}")
        known[branch.id] = branch
    answered = 0
    for branch in program.branches:
        for k, node in enumerate(branch.nodes):
            where = f", branch {branch.id!r}, node {k}"
            if isinstance(node, Gen):
                answered += 1
                if not 1 <= node.n <= node.most <= MAX_LENGTH:
                    raise wrong(where, f"1 <= n <= max <= {MAX_LENGTH} does not hold for n={node.n}, max={node.most}")
                if node.ids and len(node.ids) != node.n - (node.n < node.most):
                    raise wrong(where, f"{len(node.ids)} ids for an output of {node.n} tokens")
            elif isinstance(node, Select):
                answered += 1
                if not node.choices or not all(node.choices):
                    raise wrong(where, "needs choices, and no empty one")
            elif isinstance(node, Text) and node.n < 0:
                raise wrong(where, f"n must be >= 0, got {node.n}")
            elif isinstance(node, Wait) and not node.seconds >= 0:
                raise wrong(where, f"seconds must be >= 0, got {node.seconds}")
            named = [(node.branch, node.node)] if isinstance(node, Output) else []
            named += node.after if isinstance(node, Wait) else []
            for name, index in named:
                other = known.get(name)
                if other is None or not 0 <= index < len(other.nodes) or not isinstance(other.nodes[index], ANSWERED):
                    raise wrong(where, f"({name!r}, {index}) is no gen or select")
            spelled = node.choices if isinstance(node, Select) else [node.ids] if isinstance(node, Ids | Gen) else []
            if any(not 0 <= t < vocab for ids in spelled for t in ids):
                raise wrong(where, f"token ids must be in [0, {vocab})")
    if not answered:
        raise wrong("", "generates nothing")
    return program


def save(path: str | Path, programs: Iterable[TraceProgram], *, vocab: int = VOCAB, source: str = "") -> int:
    """Write a trace; returns how many programs."""
    count = 0
    with open(path, "wb") as file:
        file.write(msgspec.json.encode(Header(vocab=vocab, source=source)) + b"\n")
        for program in programs:
            file.write(msgspec.json.encode(program) + b"\n")
            count += 1
    return count


def _decode(path: str | Path, line: bytes, number: int, type: Any) -> Any:
    try:
        return msgspec.json.decode(line, type=type)
    except msgspec.DecodeError as error:
        raise RequestError(f"{path}, line {number}: {error}", param="trace") from None


def read_header(path: str | Path) -> Header:
    """Raises RequestError if it is no trace, or of a version that cannot be read."""
    try:
        with open(path, "rb") as file:
            header: Header = _decode(path, file.readline(), 1, Header)
    except OSError as error:
        raise RequestError(f"the trace {path} cannot be read: {error}", param="trace") from None
    if header.stemma_trace != VERSION:
        raise RequestError(f"{path} is a trace of version {header.stemma_trace}; {VERSION} can be read", param="trace")
    return header


def read(path: str | Path) -> Iterator[TraceProgram]:
    """The programs one by one, checked. Raises RequestError naming the line."""
    vocab, last = read_header(path).vocab, 0.0
    with open(path, "rb") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            program: TraceProgram = _decode(path, line, number, TraceProgram)
            try:
                check(program, vocab)
            except RequestError as error:
                raise RequestError(f"{path}, line {number}: {error}", param="trace") from None
            if program.arrival < last:
                raise RequestError(f"{path}, line {number}: programs must be in order of arrival", param="trace")
            last = program.arrival
            yield program
