"""What enters the engine: program graph deltas, checked at the border. Wire form: docs/graph.md.

`parse_delta` accepts a dict (in process), JSON bytes (HTTP) or an already decoded struct. Events leave as plain dicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from stemma.lang.errors import CancelledError, EndpointError, RequestError
from stemma.lang.params import check_choices


class LogprobOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    start: int = -1
    top: int = 0
    ids: list[int] | None = None
    text: bool = False  # each entry's third element is the token's text, not None


class TextNode(msgspec.Struct, tag_field="kind", tag="text", forbid_unknown_fields=True, frozen=True):
    text: str


class IdsNode(msgspec.Struct, tag_field="kind", tag="ids", forbid_unknown_fields=True, frozen=True):
    ids: list[int]


class RoleBeginNode(msgspec.Struct, tag_field="kind", tag="role_begin", forbid_unknown_fields=True, frozen=True):
    role: str


class RoleEndNode(msgspec.Struct, tag_field="kind", tag="role_end", forbid_unknown_fields=True, frozen=True):
    role: str


class GenNode(msgspec.Struct, tag_field="kind", tag="gen", forbid_unknown_fields=True, frozen=True):
    params: dict[str, Any] = {}
    constraint: dict[str, Any] | None = None
    logprobs: LogprobOptions | None = None
    stream: bool = False

    def __post_init__(self) -> None:
        check_choices((self.constraint or {}).get("value"))


class SelectNode(msgspec.Struct, tag_field="kind", tag="select", forbid_unknown_fields=True, frozen=True):
    choices: list[str]
    method: str = "token_length_normalized"
    temperature: float = 0.0
    seed: int | None = None


Node = TextNode | IdsNode | RoleBeginNode | RoleEndNode | GenNode | SelectNode

ANSWERED = (GenNode, SelectNode, RoleBeginNode, RoleEndNode)
"""Nodes that end with exactly one of these events:"""
ANSWERS = ("done", "text", "error")


MOST = 2**31 - 1


def _check_hint(name: str, value: int | None, low: int) -> None:
    if value is not None and not low <= value <= MOST:
        raise RequestError(f"{name} must be an integer in [{low}, {MOST}], got {value}", param=name)


class BranchHints(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a client expects of a branch. expected_forks: how many branches will still be forked from it."""

    expected_forks: int | None = None

    def __post_init__(self) -> None:
        _check_hint("expected_forks", self.expected_forks, 0)


class ProgramHints(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a program is to be scheduled. priority: higher goes first. expected_len: tokens of its outputs, about."""

    priority: int | None = None
    expected_len: int | None = None

    def __post_init__(self) -> None:
        _check_hint("priority", self.priority, -MOST)
        _check_hint("expected_len", self.expected_len, 0)


class BranchDelta(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    id: str
    parent: str | None = None
    at: int = 0
    first: int = 0
    nodes: list[Node] = []
    end: bool = False
    hints: BranchHints | None = None


class GraphDelta(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    program: str
    branches: list[BranchDelta] = []
    end: bool = False
    tokens: bool = False  # from here on, `done` also tells the ids of the prompt
    hints: ProgramHints | None = None


_JSON = msgspec.json.Decoder(GraphDelta)


def parse_delta(given: GraphDelta | Mapping[str, Any] | bytes) -> GraphDelta:
    """Raises RequestError saying what was wrong and where (`$.branches[0].nodes[2]`)."""
    try:
        if isinstance(given, GraphDelta):
            return given
        if isinstance(given, bytes):
            return _JSON.decode(given)
        return msgspec.convert(given, GraphDelta)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise RequestError(f"malformed program graph: {error}") from None


_KINDS = (RequestError, CancelledError, EndpointError)


def error_object(error: BaseException) -> dict[str, Any]:
    """The `error` of an event: {type, message, param, status}. A stranger becomes an EndpointError of status 500."""
    status = 499 if isinstance(error, CancelledError) else getattr(error, "status", None) or 500
    kind = type(error).__name__ if isinstance(error, _KINDS) else "EndpointError"
    return {"type": kind, "message": str(error), "param": getattr(error, "param", None), "status": status}
