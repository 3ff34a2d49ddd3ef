"""What a program's names stand for. Values are read late: a name can be bound, copied to forks and gathered by a join
long before its text exists, and only reading it waits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from stemma.interpreter.graph import GraphBranch, GraphNode
from stemma.interpreter.runtime import Run
from stemma.lang.errors import ProgramError, TruncatedError
from stemma.lang.nodes import Capture
from stemma.lang.params import SamplingParams
from stemma.lang.types import TypeSpec


def unreadable(node: GraphNode, error: object) -> ProgramError:
    """The error for a text that is not what its gen was to make: `TruncatedError` if max_tokens cut it off."""
    finish = node.meta.get("finish_reason") or {}
    described, text = node.describe(), node.text or ""
    if finish.get("type") != "length":
        return ProgramError(f"{described}: {error}", where=node.where, node=described)
    limit = SamplingParams.from_dict(node.wire.get("params") or {}).max_new_tokens
    tokens = finish.get("length", node.meta.get("completion_tokens"))
    by = f"max_tokens={limit}" if limit is not None and tokens in (limit, None) else "the end of the context"
    message = f"{described}: {error}; it was cut off by {by}"
    return TruncatedError(message, where=node.where, node=described, tokens=tokens, limit=limit, text=text)


class Value(ABC):
    """Something that a name is bound to."""

    @abstractmethod
    def read(self, run: Run, timeout: float | None = None) -> Any:
        """The value, waiting for it if need be. Raises `ProgramError`, and `TimeoutError` in time."""

    @abstractmethod
    def raw(self, run: Run, timeout: float | None = None) -> Any:
        """The text behind the value, before any type was applied."""

    def node(self) -> GraphNode | None:
        """The gen or select that makes it, if it is one."""
        return None


@dataclass(frozen=True, slots=True)
class Given(Value):
    """A value that the program assigned itself."""

    value: Any

    def read(self, run: Run, timeout: float | None = None) -> Any:
        return self.value

    def raw(self, run: Run, timeout: float | None = None) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Made(Value):
    """The text of a gen or select, as a value of its type."""

    made_by: GraphNode
    type: TypeSpec | None = None

    def read(self, run: Run, timeout: float | None = None) -> Any:
        text = self.raw(run, timeout)
        if self.type is None:
            return text
        try:
            return self.type.value_of(text)
        except ValueError as error:
            raise unreadable(self.made_by, error) from error

    def raw(self, run: Run, timeout: float | None = None) -> str:
        run.wait([self.made_by], timeout)
        return self.made_by.text or ""

    def node(self) -> GraphNode:
        return self.made_by


@dataclass(frozen=True, slots=True)
class Extracted(Value):
    """What a composed gen captured under a name: a list where that may happen several times, else one value or None."""

    made_by: GraphNode
    capture: Capture

    def read(self, run: Run, timeout: float | None = None) -> Any:
        texts, spec = self._texts(run, timeout), self.capture.type
        try:
            values = texts if spec is None else [spec.value_of(text) for text in texts]
        except ValueError as error:
            raise unreadable(self.made_by, f"capture {self.capture.name!r}: {error}") from error
        return self._one_or_all(values)

    def raw(self, run: Run, timeout: float | None = None) -> Any:
        return self._one_or_all(self._texts(run, timeout))

    def nodes(self) -> list[GraphNode]:
        """What must settle before it can be read without waiting."""
        return [self.made_by]

    def _one_or_all(self, values: list[Any]) -> Any:
        return values if self.capture.many else next(iter(values), None)

    def _texts(self, run: Run, timeout: float | None) -> list[str]:
        node, name = self.made_by, self.capture.name
        run.wait([node], timeout)
        captures, text = node.meta.get("captures"), node.text or ""
        if captures is None:
            why = node.meta.get("captures_error") or f"the text is no whole match of the constraint: {text!r:.2000}"
            raise unreadable(node, f"capture {name!r} has no value: {why}")
        return [text[start:end] for start, end in captures.get(name, ())]


@dataclass(slots=True)
class Captured(Value):
    """The text that a branch gained while a `var_scope` was open."""

    name: str
    branch: GraphBranch
    start: int
    end: int | None = None

    def read(self, run: Run, timeout: float | None = None) -> str:
        if self.end is None:
            raise ProgramError(f"{self.name!r} is read while its var_scope is still open")
        nodes = self.branch.nodes[self.start : self.end]
        run.wait(nodes, timeout)
        return "".join(node.text or "" for node in nodes)

    def raw(self, run: Run, timeout: float | None = None) -> str:
        return self.read(run, timeout)


@dataclass(frozen=True, slots=True)
class Gathered(Value):
    """One value per child of a joined fork, in the children's order; None where a child never bound the name."""

    values: tuple[Value | None, ...]

    def read(self, run: Run, timeout: float | None = None) -> list[Any]:
        return [None if value is None else value.read(run, timeout) for value in self.values]

    def raw(self, run: Run, timeout: float | None = None) -> list[Any]:
        return [None if value is None else value.raw(run, timeout) for value in self.values]
