"""The closed set of things a program can say. Frozen, and they know nothing: interpreters give them meaning.

    Text        literal text
    Image       an image
    Gen         generate
    Select      score the choices here, append the best
    RoleBegin   a chat turn starts
    RoleEnd     a chat turn ends
    Ref         the text of a value of another branch, once it is there
    NodeList    several of them in order; `+` builds it: `"Q: " + gen("a") + "."`
    Lowering    what becomes nodes when it is appended

Every node carries `where`, the user's `file:line` that wrote it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stemma.lang.choices import ChoicesSamplingMethod
from stemma.lang.errors import RequestError
from stemma.lang.params import Constraint
from stemma.lang.reasoning import Reasoning
from stemma.lang.types import TypeSpec

_OURS = ("stemma.lang.", "stemma.interpreter.")
_shown: dict[str, str] = {}


def caller() -> str:
    """The `file:line` of the innermost frame that is not ours: the user's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        frame = frame.f_back
    name = frame.f_code.co_filename
    shown = _shown.get(name)
    if shown is None:
        here = os.getcwd() + os.sep
        shown = _shown[name] = name[len(here) :] if name.startswith(here) else name
    return f"{shown}:{frame.f_lineno}"


class Expression:
    """Something that can stand behind `s +=`, and be added to text and to its like."""

    __slots__ = ()

    def __add__(self, other: Any) -> NodeList:
        return NodeList((*as_nodes(self), *as_nodes(other)))

    def __radd__(self, other: Any) -> NodeList:
        return NodeList((*as_nodes(other), *as_nodes(self)))

    def __format__(self, spec: str) -> str:
        """What our own messages call it. In a program's f-string that would pass for its text, so it is an error."""
        if sys._getframe(1).f_globals.get("__name__", "").startswith(_OURS):
            return format(str(self), spec)
        raise RequestError(
            f"{self!s:.80} stands in an f-string at {caller()}, but has no text yet: add it, as in 'text' + gen('x'), "
            "or read the value first"
        )


class Lowering(Expression):
    """An expression that becomes nodes when it is appended."""

    __slots__ = ()

    def nodes(self) -> tuple[Node, ...]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Text(Expression):
    """Literal text. Never read as special tokens."""

    text: str
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"text {self.text[:24]!r}"


@dataclass(frozen=True, slots=True)
class Image(Expression):
    """An image: its `data` in base64 and its MIME type, or else the `url` that the endpoint gets it from."""

    data: str = field(default="", repr=False)
    mime: str = ""
    url: str = ""
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"image {self.url or self.mime}"


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Which log-probabilities a gen asks for; `None` means: as the run says."""

    wanted: bool | None = None
    start: int | None = None
    top: int | None = None
    ids: tuple[int, ...] | None = None
    text: bool | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """A part of a composed gen's text that has a name: once, or `many` times; its type, where it is not just text."""

    name: str
    many: bool = False
    type: TypeSpec | None = None


@dataclass(frozen=True, slots=True)
class Gen(Expression):
    """Generate. `overrides` are the sampling parameters given here; the rest come from the run."""

    name: str | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    constraint: Constraint | None = None
    type: TypeSpec | None = None
    logprobs: Logprobs = Logprobs()
    timeout: float | None = None
    reasoning: Reasoning | None = None
    captures: tuple[Capture, ...] = ()
    samples: int | None = None
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"gen {self.name!r}" if self.name else "gen"


@dataclass(frozen=True, slots=True)
class Select(Expression):
    """Score each choice in this context and append the one that the method picks."""

    name: str | None
    choices: tuple[str, ...]
    method: ChoicesSamplingMethod
    temperature: float = 0.0
    seed: int | None = None
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"select {self.name!r}" if self.name else "select"


@dataclass(frozen=True, slots=True)
class RoleBegin(Expression):
    """A chat turn of this role starts."""

    role: str
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.role}_begin"


@dataclass(frozen=True, slots=True)
class RoleEnd(Expression):
    """The chat turn of this role ends."""

    role: str
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.role}_end"


@dataclass(frozen=True, eq=False)
class Ref(Expression):
    """The text of a value that may not be there yet; appending it waits for nothing. `value` is the interpreter's."""

    name: str
    value: Any = field(repr=False)
    where: str = ""

    def __str__(self) -> str:
        return f"ref {self.name!r}"


Node = Text | Image | Gen | Select | RoleBegin | RoleEnd | Ref


@dataclass(frozen=True, slots=True)
class NodeList(Expression):
    """Nodes in order."""

    nodes: tuple[Node, ...] = ()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


def as_nodes(value: Any) -> tuple[Node, ...]:
    """What may be appended, as nodes: a string, a node, or a list of these. Raises `RequestError` for anything else."""
    if isinstance(value, str):
        return (Text(value, caller()),) if value else ()
    if isinstance(value, Node):
        return (value,)
    if isinstance(value, NodeList):
        return value.nodes
    if isinstance(value, Lowering):
        return value.nodes()
    if isinstance(value, (list, tuple)):
        return tuple(node for item in value for node in as_nodes(item))
    shown = f"{value!r:.80} ({type(value).__name__})"
    hint = "write str(…) around it" if isinstance(value, (int, float)) else "a state is appended by its .text()"
    hint = hint if isinstance(value, (int, float)) or hasattr(value, "messages") else "gen(…), select(…) make nodes"
    raise RequestError(f"only text and nodes can be appended, got {shown}; {hint}")
