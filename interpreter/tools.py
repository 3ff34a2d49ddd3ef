"""Calls of tools inside programs: what a gen with `tools` reads as, run and recorded.

What a call did is kept with the gen that made it, under `tool_calls` of its meta: so `get_meta_info`, the graph and the
trace show it. A program that is replayed from a record gets recorded results where JSON holds them exactly, and runs
the function again where it does not.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from stemma.interpreter.background import background_loop, on_background_loop
from stemma.interpreter.graph import GraphNode
from stemma.interpreter.runtime import Run
from stemma.interpreter.values import Value
from stemma.lang.errors import RequestError
from stemma.lang.nodes import Node, NodeList, RoleBegin, RoleEnd, Text, caller
from stemma.lang.tools import ParsedCall, result_text

OnError = Literal["raise", "return"]
_NOTHING: Any = object()


class ToolCall:
    """One call that a model asked for. `arguments` are checked and of the types that the function's hints say.

    `run()` or `await arun()` calls the function; then `result` is what it returned, or `error` what it raised. It may
    be run again.
    """

    __slots__ = ("_first", "_node", "_parsed", "_run", "error", "result")

    def __init__(self, parsed: ParsedCall, run: Run, node: GraphNode, first: dict[str, Any] | None) -> None:
        self._parsed = parsed
        self._run = run
        self._node = node
        self._first = first  # what a record says of this call
        self.result: Any = _NOTHING
        self.error: Exception | None = None

    @property
    def name(self) -> str:
        """The name of the tool."""
        return self._parsed.tool.name

    @property
    def arguments(self) -> dict[str, Any]:
        """By name; what the model left out is not in it."""
        return self._parsed.arguments

    @property
    def done(self) -> bool:
        """Whether it was run."""
        return self.result is not _NOTHING or self.error is not None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"ToolCall({self.name}({shown}))"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ToolCall):
            return NotImplemented
        return (self.name, self.arguments) == (other.name, other.arguments)

    __hash__ = None  # type: ignore[assignment]

    def text(self) -> str:
        """The result as a model reads it: text as it is, other values as JSON; of a call that failed, the error.

        Raises `RequestError` when it was not run.
        """
        if self.error is not None:
            return f"Error: {type(self.error).__name__}: {self.error}"
        if self.result is _NOTHING:
            raise RequestError(f"{self!r} was not run, so it has no result; call its run() first", param="call")
        return result_text(self.result)

    def run(self, on_error: OnError = "raise") -> Any:
        """Call the function, record the result, and return it. An async function runs on a loop of its own meanwhile.

        What the function raises goes through; with `on_error="return"` it is kept in `error`, `text()` says it, and
        None is returned, so that the model may be told. Raises `RequestError` for an async function where waiting for
        it would block the loop of other programs: await `arun()` there.
        """
        if self._parsed.tool.is_async and on_background_loop():
            raise RequestError(f"tool {self.name!r} is async, and run() would block its loop: await call.arun()")
        entry, began = self._begin(on_error), time.perf_counter()
        if "value" in entry:
            return entry["value"]
        try:
            result = self._parsed.tool(self.arguments)
            if inspect.isawaitable(result):
                result = asyncio.run_coroutine_threadsafe(_awaited(result), background_loop()).result()
        except BaseException as error:
            return self._failed(entry, began, error, on_error)
        return self._finished(entry, began, result)

    async def arun(self, on_error: OnError = "raise") -> Any:
        """`run` for coroutines. An async function is awaited, another runs in a thread."""
        entry, began = self._begin(on_error), time.perf_counter()
        if "value" in entry:
            return entry["value"]
        try:
            if self._parsed.tool.is_async:
                result = await self._parsed.tool(self.arguments)
            else:
                context = contextvars.copy_context()
                result = await asyncio.to_thread(context.run, self._parsed.tool, self.arguments)
                if inspect.isawaitable(result):
                    result = await result
        except BaseException as error:
            return self._failed(entry, began, error, on_error)
        return self._finished(entry, began, result)

    # --- the record

    def _begin(self, on_error: OnError) -> dict[str, Any]:
        """The entry of this call in the record; with its `value` if a replayed record holds it."""
        if on_error not in ("raise", "return"):
            raise RequestError(f"on_error must be raise or return, got {on_error!r}", param="on_error")
        self.result, self.error = _NOTHING, None
        entry: dict[str, Any] = {"name": self.name, "arguments": self._parsed.given, "where": caller()}
        run = self._run
        with run.changed:
            run.log.tool(self._node, entry, ended=False)
            first = self._first
            if first is not None and "value" in first:
                self.result, self._first = first["value"], None
                entry.update(first)
                run.log.tool(self._node, entry, ended=True)
            run.wake()
        return entry

    def _finished(self, entry: dict[str, Any], began: float, result: Any) -> Any:
        self.result = result
        self._record(entry, began, {"result": result_text(result), **({"value": result} if _exact(result) else {})})
        return result

    def _failed(self, entry: dict[str, Any], began: float, error: BaseException, on_error: OnError) -> None:
        self._record(entry, began, {"error": f"{type(error).__name__}: {error}"})
        if not isinstance(error, Exception):
            raise error
        self.error = error
        if on_error == "raise":
            error.add_note(f"raised by the tool {self.name!r}, called by {self._node.describe()}")
            raise error

    def _record(self, entry: dict[str, Any], began: float, outcome: dict[str, Any]) -> None:
        """Keep what came of it, in the place of what a replayed record says of the same call."""
        entry |= {**outcome, "seconds": round(time.perf_counter() - began, 6)}
        first, self._first = self._first, None
        node, run = self._node, self._run
        with run.changed:
            entries = [one for one in node.meta.get("tool_calls") or () if one is not first]
            node.meta = {**node.meta, "tool_calls": [*entries, entry]}
            run.log.tool(node, entry, ended=True)
            run.wake()


@dataclass(slots=True, eq=False)
class Called(Value):
    """What a gen with tools reads as: calls to run, or text. Reading again gives the same calls."""

    inner: Value
    made_by: GraphNode
    made: Any = field(default=_NOTHING)

    def read(self, run: Run, timeout: float | None = None) -> Any:
        if self.made is _NOTHING:
            parsed = self.inner.read(run, timeout)
            with run.changed:
                if self.made is _NOTHING:
                    self.made = self._bound(parsed, run)
        return self.made

    def _bound(self, parsed: Any, run: Run) -> Any:
        record: list[dict[str, Any]] = []
        if "replay" in run.endpoint.capabilities:
            record += self.made_by.meta.get("tool_calls") or ()
        if isinstance(parsed, ParsedCall):
            return ToolCall(parsed, run, self.made_by, _taken(record, parsed))
        if isinstance(parsed, list):
            return [ToolCall(one, run, self.made_by, _taken(record, one)) for one in parsed]
        return parsed

    def raw(self, run: Run, timeout: float | None = None) -> Any:
        return self.inner.raw(run, timeout)

    def node(self) -> GraphNode | None:
        return self.inner.node()

    def nodes(self) -> list[GraphNode]:
        return self.inner.nodes()

    def quote(self, run: Run) -> str:
        return self.inner.quote(run)

    def meta(self, run: Run, timeout: float | None = None) -> dict[str, Any] | None:
        return self.inner.meta(run, timeout)


def tool_result(call: Any, role: str | None = "tool") -> NodeList:
    """The results of one call, or of a list of them, as messages: nodes to append, one message for each call.

    `role` is the message's role. Where the model's chat template has none for tools, `role="user"` makes it a message
    of the user, `Result of add: 3`. None gives that text alone, to be appended inside a message. Raises `RequestError`
    for a call that was not run, and for what is no call.
    """
    calls = call if isinstance(call, (list, tuple)) else [call]
    where = caller()
    nodes: list[Node] = []
    for one in calls:
        if not isinstance(one, ToolCall):
            raise RequestError(f"tool_result takes calls as s[name] gives them, got {one!r:.80}", param="call")
        text = one.text() if role == "tool" else f"Result of {one.name}: {one.text()}"
        inside = Text(text, where)
        nodes += [inside] if role is None else [RoleBegin(role, where), inside, RoleEnd(role, where)]
    return NodeList(tuple(nodes))


def _taken(record: list[dict[str, Any]], parsed: ParsedCall) -> dict[str, Any] | None:
    """The first entry of this call, taken out of the record."""
    for i, entry in enumerate(record):
        if (entry.get("name"), entry.get("arguments")) == (parsed.tool.name, parsed.given):
            return record.pop(i)
    return None


def _exact(value: Any) -> bool:
    """Whether JSON brings it back as it is."""
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and _exact(item) for key, item in value.items())
    if isinstance(value, list):
        return type(value) is list and all(map(_exact, value))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))


async def _awaited(given: Any) -> Any:
    return await given
