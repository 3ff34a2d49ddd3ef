"""What enters the engine: program graph deltas, checked at the border. Wire form: docs/graph.md.

`parse_delta` accepts a dict (in process), JSON bytes (HTTP) or an already decoded struct. Events leave as plain dicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from stemma.lang.errors import CancelledError, DeadlineError, EndpointError, RequestError
from stemma.lang.params import check_choices

MAX_ID = 512  # characters of a program's id
MAX_CHOICES = 10_000  # of a select


class LogprobOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    start: int = -1
    top: int = 0
    ids: list[int] | None = None
    text: bool = False  # each entry's third element is the token's text, not None


def check_seconds(timeout: float | None) -> None:
    """Raises RequestError unless it is None or a positive number of seconds."""
    if timeout is not None and not 0 < timeout < float("inf"):
        raise RequestError(f"timeout must be a number of seconds > 0, got {timeout!r}", param="timeout")


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
    timeout: float | None = None  # seconds that it may take once all before it is there

    def __post_init__(self) -> None:
        check_choices((self.constraint or {}).get("value"))
        check_seconds(self.timeout)


class SelectNode(msgspec.Struct, tag_field="kind", tag="select", forbid_unknown_fields=True, frozen=True):
    choices: list[str]
    method: str = "token_length_normalized"
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if len(self.choices) > MAX_CHOICES:
            raise RequestError(
                f"a select may have at most {MAX_CHOICES} choices, got {len(self.choices)}", param="choices"
            )


class RefNode(msgspec.Struct, tag_field="kind", tag="ref", forbid_unknown_fields=True, frozen=True):
    """Literal text that is not known yet: what `count` nodes of a branch of the same program, from `node` on, come to
    say. With `part` "none" they are only waited for."""

    branch: str
    node: Annotated[int, msgspec.Meta(ge=0)]
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    part: Literal["text", "none"] = "text"

    @property
    def end(self) -> int:
        """The first node behind those meant."""
        return self.node + self.count


Node = TextNode | IdsNode | RoleBeginNode | RoleEndNode | GenNode | SelectNode | RefNode

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
    cache_salt: str | None = None  # programs share cached prefixes only with those of the same salt; set once
    hints: ProgramHints | None = None
    timeout: float | None = None  # seconds from now on that the nodes of this delta may take

    def __post_init__(self) -> None:
        check_seconds(self.timeout)
        if len(self.program) > MAX_ID:
            raise RequestError(
                f"a program id has at most {MAX_ID} characters, got {len(self.program)}", param="program"
            )


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


MAX_SALT = 1024  # characters


def check_salt(given: Any) -> str | None:
    """A `cache_salt`: null, or a string that is not empty. Raises RequestError."""
    if given is not None and not (isinstance(given, str) and 0 < len(given) <= MAX_SALT):
        shown = f"{len(given)} characters" if isinstance(given, str) and given else repr(given)
        raise RequestError(
            f"cache_salt must be a string of 1 to {MAX_SALT} characters, got {shown}", param="cache_salt"
        )
    return given


_KINDS = (RequestError, CancelledError, DeadlineError, EndpointError)


def error_object(error: BaseException) -> dict[str, Any]:
    """The `error` of an event: {type, message, param, status}, and `retry_after` if it is known.

    A stranger becomes an EndpointError of status 500.
    """
    status = 499 if isinstance(error, CancelledError) else getattr(error, "status", None) or 500
    kind = type(error).__name__ if isinstance(error, _KINDS) else "EndpointError"
    made = {"type": kind, "message": str(error), "param": getattr(error, "param", None), "status": status}
    pause = getattr(error, "retry_after", None)
    return made if pause is None else {**made, "retry_after": pause}
