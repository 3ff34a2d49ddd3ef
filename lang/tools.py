"""Functions as tools: what a model may call, from type hints and docstrings, and a call back from the model's text.

def add(a: int, b: int = 0) -> int:
    "Add two numbers."

A call is JSON, `{"name": "add", "arguments": {"a": 1}}`. `tools_spec` is the type of such a text, so that a gen with
tools is a gen of a type: constrained, and read as a value.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin

from stemma.lang import compose
from stemma.lang.bounds import Mismatch, Reader
from stemma.lang.errors import RequestError
from stemma.lang.params import Constraint
from stemma.lang.shapes import hints_of, shape_of
from stemma.lang.types import TypeSpec

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):\s*$")
_typed_dict: Any = typing.TypedDict  # made at run time, of which type checkers know nothing
_union: Any = typing.Union
_PARAMETER = re.compile(r"(\w+)\s*(\([^)]*\))?\s*:\s*(.*)")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters` is the JSON schema of its arguments, `read` makes them values."""

    name: str
    description: str
    parameters: dict[str, Any] = field(compare=False)
    func: Callable[..., Any]
    arguments: Any = field(compare=False, repr=False)  # a TypedDict of the parameters
    read: Reader = field(compare=False, repr=False)
    positional: tuple[tuple[str, Any], ...] = field(compare=False, repr=False, default=())

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.func) or inspect.iscoroutinefunction(type(self.func).__call__)

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """Call the function with these arguments, by name."""
        first = [arguments.get(name, default) for name, default in self.positional]
        taken = {name for name, _ in self.positional}
        return self.func(*first, **{name: value for name, value in arguments.items() if name not in taken})

    def to_dict(self) -> dict[str, Any]:
        """As chat APIs write a tool: `{"type": "function", "function": {"name", "description", "parameters"}}`."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One call as the model wrote it: `given` is the JSON of its arguments, `arguments` their values."""

    tool: Tool
    given: dict[str, Any]
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolSpec(TypeSpec):
    """The type of a call, of a list of calls, or of either or text."""


def tool_of(function: Callable[..., Any] | Tool) -> Tool:
    """The tool that a function is: its name, docstring, and parameters by their type hints.

    The docstring's `Args:` section describes parameters, and so does text in `Annotated[T, "…"]`. What has a default
    may be left out. Raises `RequestError` for what is no function, or has a parameter that no schema can be made of.
    """
    if isinstance(function, Tool):
        return function
    name = getattr(function, "__name__", None)
    if not callable(function) or isinstance(function, type):
        raise RequestError(f"a tool must be a function, got {function!r:.80}", param="tools")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"a tool needs a name of letters, digits, _ and -, got {name!r} of {function!r:.80}; use `def`",
            param="tools",
        )
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise RequestError(f"tool {name!r} has no signature: {error}", param="tools") from None
    hints = hints_of(function if inspect.isroutine(function) else type(function).__call__)
    description, notes = _described(inspect.getdoc(function) or "")
    fields: dict[str, Any] = {}
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RequestError(
                f"tool {name!r}: {parameter} has no schema; name the parameters one by one", param="tools"
            )
        if parameter.name not in hints:
            raise RequestError(f"tool {name!r}: parameter {parameter.name!r} needs a type hint", param="tools")
        hint = hints[parameter.name]
        said = [extra for extra in get_args(hint)[1:] if isinstance(extra, str)] if _annotated(hint) else []
        notes = {**notes, parameter.name: " ".join(said)} if said else notes
        optional = parameter.default is not parameter.empty
        fields[parameter.name] = typing.NotRequired[hint] if optional else hint
    arguments = _typed_dict(f"{name}_arguments", fields)
    try:
        shape = shape_of(arguments)
    except RequestError as error:
        raise RequestError(f"tool {name!r}: {error}", param="tools") from None
    schema = {**shape.schema, "properties": dict(shape.schema["properties"])}
    for key, note in notes.items():
        if key in schema["properties"]:
            schema["properties"][key] = {**schema["properties"][key], "description": note}
    positional = tuple((p.name, p.default) for p in parameters.values() if p.kind is p.POSITIONAL_ONLY)
    return Tool(name, description, schema, function, arguments, shape.read, positional)


def tools_spec(tools: Any, choice: Any = None, parallel: bool = False) -> ToolSpec:
    """The type of the text that calls one of the tools (with `parallel`, one or more: a JSON array).

    `choice`: "required" (also None) a call; "auto" a call or text; the name of a tool, or the function: a call of that
    one. Raises `RequestError` for tools that are none, two of a name, and an unknown choice.
    """
    if callable(tools) or isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise RequestError(f"tools must be a list of functions, got {tools!r:.80}", param="tools")
    if not tools:
        raise RequestError("tools must hold at least one function, got an empty list", param="tools")
    if not isinstance(parallel, bool):
        raise RequestError(f"parallel_tool_calls must be true or false, got {parallel!r}", param="parallel_tool_calls")
    known: dict[str, Tool] = {}
    for function in tools:
        tool = _tool_cached(function)
        if tool.name in known:
            raise RequestError(f"two tools are named {tool.name!r}", param="tools")
        known[tool.name] = tool
    chosen = getattr(choice, "__name__", getattr(choice, "name", None)) if callable(choice) else choice
    if chosen in known:
        known = {chosen: known[chosen]}
    elif chosen not in (None, "required", "auto"):
        names = ", ".join(map(repr, known))
        raise RequestError(
            f"tool_choice must be 'auto', 'required' or one of the tools ({names}), got {choice!r}", param="tool_choice"
        )
    return _spec(tuple(known.values()), chosen == "auto", parallel)


def describe_tools(tools: Sequence[Callable[..., Any] | Tool]) -> str:
    """Text that tells a model of its tools and how to call one; for a system message. One line of JSON per tool.

    Raises what `tool_of` raises.
    """
    lines = [json.dumps(_tool_cached(tool).to_dict()["function"], ensure_ascii=False) for tool in tools]
    how = 'To call a tool, write JSON: {"name": the name, "arguments": {…}}.'
    return "\n".join(["You may call these tools:", *lines, how])


def result_text(value: Any) -> str:
    """What a tool returned, as a model reads it: text as it is, else JSON, else what `str` makes of it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=_as_json)
    except (TypeError, ValueError):
        return str(value)


# -- the type of a call


@functools.lru_cache(maxsize=64)
def _hashed_tool(function: Any) -> Tool:
    return tool_of(function)


def _tool_cached(function: Any) -> Tool:
    try:
        return _hashed_tool(function)
    except TypeError:  # it cannot be hashed
        return tool_of(function)


class _AtLeastOne:
    min_length = 1


@functools.lru_cache(maxsize=64)
def _spec(tools: tuple[Tool, ...], auto: bool, parallel: bool) -> ToolSpec:
    calls = [_typed_dict(f"{t.name}_call", {"name": Literal[t.name], "arguments": t.arguments}) for t in tools]
    one = _union[tuple(calls)]
    shape = shape_of(Annotated[list[one], _AtLeastOne()] if parallel else one)
    constraint = Constraint("json_schema", json.dumps(shape.schema, ensure_ascii=False))
    begins = "[" if parallel else "{"
    if auto:
        text = compose.regex(rf"\s*([^\{begins}\s][\s\S]*)?")  # what does not begin as a call: no text is both
        constraint = compose.constraint_of(compose.choice(compose.json(shape.schema), text))
    known = {tool.name: tool for tool in tools}

    def convert(text: str) -> Any:
        if auto and not text.lstrip().startswith(begins):
            return text
        try:
            value = json.loads(text)
        except ValueError as error:
            raise Mismatch(f"it is not JSON: {error}") from None
        if not parallel:
            return _call(value, known)
        if not isinstance(value, list) or not value:
            raise Mismatch("it must be an array of calls")
        return [_call(item, known) for item in value]

    names = " | ".join(known)
    shown = f"list of calls of {names}" if parallel else f"call of {names}"
    return ToolSpec(f"{shown}, or text" if auto else shown, constraint, convert)


def _call(value: Any, known: Mapping[str, Tool]) -> ParsedCall:
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        raise Mismatch('a call must be an object with "name" and "arguments"')
    tool = known.get(value["name"]) if isinstance(value["name"], str) else None
    if tool is None:
        raise Mismatch(f"there is no tool {value['name']!r}; the tools are {', '.join(map(repr, known))}")
    return ParsedCall(tool, value["arguments"], tool.read(value["arguments"], "arguments"))


# -- docstrings


def _described(doc: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and what an `Args:` section says of each parameter."""
    lines = doc.splitlines()
    at = next((i for i, line in enumerate(lines) if _SECTION.match(line.strip())), len(lines))
    notes: dict[str, str] = {}
    name, indent, inside = "", 0, False
    for line in lines[at:]:
        if found := _SECTION.match(line.strip()):
            inside, name = found[1] in ("Args", "Arguments", "Parameters"), ""
            continue
        deep = len(line) - len(line.lstrip())
        if not inside or not line.strip():
            continue
        found = _PARAMETER.match(line.strip())
        if found and (not name or deep <= indent):
            name, indent = found[1], deep
            notes[name] = found[3].strip()
        elif name:
            notes[name] = f"{notes[name]} {line.strip()}".strip()
    return " ".join(" ".join(lines[:at]).split()), notes


def _annotated(hint: Any) -> bool:
    return get_origin(hint) is Annotated


def _as_json(value: Any) -> Any:
    for method in ("model_dump", "_asdict"):
        if callable(made := getattr(value, method, None)):
            return made()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, (set, frozenset)):
        return list(value)
    return str(value)
