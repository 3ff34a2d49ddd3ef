"""What a program's names stand for. Values are read late: a name can be bound, copied to forks and gathered by a join
long before its text exists, and only reading it waits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stemma.interpreter.graph import GraphBranch, GraphNode
from stemma.interpreter.runtime import Run
from stemma.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from stemma.lang.errors import EndpointError, ProgramError, RequestError, TruncatedError
from stemma.lang.nodes import Capture
from stemma.lang.params import SamplingParams
from stemma.lang.reasoning import Reasoning
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

    def nodes(self) -> list[GraphNode]:
        """What must settle before it can be read without waiting."""
        node = self.node()
        return [] if node is None else [node]

    def quote(self, run: Run) -> str:
        """The text that stands for it where it is quoted. Called once its nodes have settled."""
        return str(self.raw(run))

    def reference(self) -> dict[str, Any] | None:
        """The `ref` node that stands for it on the wire; None if it is more than the text of nodes that follow each
        other in a branch, so that only `quote` can tell."""
        return None

    def meta(self, run: Run, timeout: float | None = None) -> dict[str, Any] | None:
        """The endpoint's account of what made it, waiting for it if need be; None if no gen or select did."""
        node = self.node()
        if node is None:
            return None
        run.wait([node], timeout)
        return dict(node.meta)


def typed(node: GraphNode, type: TypeSpec, text: str) -> Any:
    """The value of a gen's type. Raises `ProgramError` naming the gen when the text stands for none."""
    try:
        return type.value_of(text)
    except ValueError as error:
        raise unreadable(node, error) from error


def _reference(nodes: Sequence[GraphNode], **more: Any) -> dict[str, Any] | None:
    if not nodes or any(node.kind == "image" for node in nodes):
        return None
    first = nodes[0]
    count = {"count": len(nodes)} if len(nodes) > 1 else {}
    return {"kind": "ref", "branch": first.branch.id, "node": first.index, **count, **more}


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
        return text if self.type is None else typed(self.made_by, self.type, text)

    def raw(self, run: Run, timeout: float | None = None) -> str:
        run.wait([self.made_by], timeout)
        return self.made_by.text or ""

    def node(self) -> GraphNode:
        return self.made_by

    def reference(self) -> dict[str, Any] | None:
        return _reference([self.made_by])


@dataclass(frozen=True, slots=True)
class Thought(Value):
    """One part of what a gen wrote, by its reasoning format: the answer, or the reasoning before it."""

    made_by: GraphNode
    format: Reasoning
    type: TypeSpec | None = None
    answer: bool = True

    def read(self, run: Run, timeout: float | None = None) -> Any:
        reasoning, answer = self.format.split(self.raw(run, timeout))
        if not self.answer:
            return reasoning
        return answer if self.type is None else typed(self.made_by, self.type, answer)

    def raw(self, run: Run, timeout: float | None = None) -> str:
        run.wait([self.made_by], timeout)
        return self.made_by.text or ""

    def quote(self, run: Run) -> str:
        return self.format.split(self.raw(run))[self.answer]

    def nodes(self) -> list[GraphNode]:
        return [self.made_by]

    def meta(self, run: Run, timeout: float | None = None) -> dict[str, Any]:
        run.wait([self.made_by], timeout)
        return dict(self.made_by.meta)


@dataclass(slots=True, eq=False)
class Decided(Value):
    """What a choices method of the user's own picks, once the endpoint has scored the choices in a branch beside."""

    scored: GraphNode
    method: ChoicesSamplingMethod
    choices: tuple[str, ...]
    made: ChoicesDecision | None = None

    def _decide(self, run: Run, timeout: float | None) -> ChoicesDecision:
        run.wait([self.scored], timeout)
        if self.made is None:
            meta = self.scored.meta
            rows = meta.get("input_token_logprobs")
            if not rows or len(rows) != len(self.choices):
                raise EndpointError(f"{self.scored.describe()}: the endpoint gives no log-probabilities of the choices")
            made = self.method(
                choices=list(self.choices),
                normalized_prompt_logprobs=list(meta["normalized_prompt_logprobs"]),
                input_token_logprobs=rows,
                output_token_logprobs=[[] for _ in self.choices],
                unconditional_token_logprobs=meta.get("unconditional_token_logprobs"),
            )
            if not isinstance(made, ChoicesDecision) or made.decision not in self.choices:
                name = type(self.method).__name__
                raise RequestError(f"{name} must answer a ChoicesDecision for one of {self.choices!r}, got {made!r}")
            self.made = made
        return self.made

    def read(self, run: Run, timeout: float | None = None) -> str:
        return self._decide(run, timeout).decision

    def raw(self, run: Run, timeout: float | None = None) -> str:
        return self.read(run, timeout)

    def nodes(self) -> list[GraphNode]:
        return [self.scored]

    def meta(self, run: Run, timeout: float | None = None) -> dict[str, Any]:
        made = self._decide(run, timeout)
        mine = {"choice": self.choices.index(made.decision), **(made.meta_info or {})}
        return {**self.scored.meta, **mine}


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

    def quote(self, run: Run) -> str:
        if self.capture.many:
            raise RequestError(f"{self.capture.name!r} is captured many times: quote what you make of the list")
        return self.raw(run) or ""

    def nodes(self) -> list[GraphNode]:
        return [self.made_by]

    def meta(self, run: Run, timeout: float | None = None) -> dict[str, Any]:
        run.wait([self.made_by], timeout)
        return dict(self.made_by.meta)

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

    def nodes(self) -> list[GraphNode]:
        return self.branch.nodes[self.start : self.end]

    def reference(self) -> dict[str, Any] | None:
        return _reference(self.nodes())


@dataclass(frozen=True, slots=True)
class Whole(Value):
    """No text of its own; there once all these nodes are."""

    parts: tuple[GraphNode, ...]

    def read(self, run: Run, timeout: float | None = None) -> str:
        run.wait(self.parts, timeout)
        return ""

    def raw(self, run: Run, timeout: float | None = None) -> str:
        return self.read(run, timeout)

    def nodes(self) -> list[GraphNode]:
        return list(self.parts)

    def reference(self) -> dict[str, Any] | None:
        return _reference(self.parts, part="none")


@dataclass(frozen=True, slots=True)
class Gathered(Value):
    """One value per child of a joined fork, in the children's order; None where a child never bound the name.

    `on_error` says what stands for a child's value that has failed: `raise` nothing, the reader gets the error;
    `collect` the `ProgramError` itself; `skip` leaves it out of the list.
    """

    values: tuple[Value | None, ...]
    on_error: Literal["raise", "collect", "skip"] = "raise"

    def read(self, run: Run, timeout: float | None = None) -> list[Any]:
        return self._each(lambda value: value.read(run, timeout))

    def raw(self, run: Run, timeout: float | None = None) -> list[Any]:
        return self._each(lambda value: value.raw(run, timeout))

    def _each(self, get: Callable[[Value], Any]) -> list[Any]:
        gathered: list[Any] = []
        for value in self.values:
            try:
                gathered.append(None if value is None else get(value))
            except ProgramError as error:
                if self.on_error == "raise":
                    raise
                if self.on_error == "collect":
                    gathered.append(error)
        return gathered

    def nodes(self) -> list[GraphNode]:
        return [node for value in self.values if value is not None for node in value.nodes()]


@dataclass(frozen=True, slots=True)
class Samples(Gathered):
    """The texts of a gen with `n` > 1, in the order of their numbers."""

    def meta(self, run: Run, timeout: float | None = None) -> dict[str, Any] | None:
        """The account of the first, and under `samples` those of all."""
        metas = [value.meta(run, timeout) or {} for value in self.values if value is not None]
        return {**metas[0], "samples": metas}
