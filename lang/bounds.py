"""Bounds on a type, from the extras of `Annotated`: as JSON Schema keywords, and as checks of the values.

Known are `Regex` and, whoever made them (annotated-types, pydantic's Field), objects with `ge`, `gt`, `le`, `lt`,
`multiple_of`, `min_length`, `max_length` or `pattern`. Other extras say nothing, as `Annotated` wants it, but for the
validators and constraints of those two packages: they are refused, for nothing would enforce them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from stemma.lang.errors import RequestError

Schema = dict[str, Any]
Reader = Callable[[Any, str], Any]  # parsed JSON and its path -> the value; raises Mismatch


class Mismatch(ValueError):
    """Parsed JSON that is no value of the type; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Regex:
    """In `Annotated[str, Regex(r"[A-Z]{2}\\d{4}")]`: the whole string matches the pattern."""

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise RequestError(f"Regex needs a pattern, got {self.pattern!r}", param="type")


@dataclass(frozen=True, slots=True)
class Shape:
    """A type in JSON: its schema, in which classes are references to definitions, and the reader of its values."""

    schema: Schema
    read: Reader


def shown(given: Any) -> str:
    """The type as users write it."""
    return given.__name__ if isinstance(given, type) and not get_args(given) else str(given).replace("typing.", "")


_NUMBER = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
_BOUNDS = {
    "integer": _NUMBER,
    "number": _NUMBER,
    "string": {"min_length": "minLength", "max_length": "maxLength", "pattern": "pattern", "regex": "pattern"},
    "array": {"min_length": "minItems", "max_length": "maxItems"},
    "object": {"min_length": "minProperties", "max_length": "maxProperties"},
}
_MARKS = (*_NUMBER, "min_length", "max_length", "pattern")
_MAKERS = ("annotated_types", "pydantic", "pydantic_core")
_SAYS_NOTHING = ("FieldInfo", "Unit", "DocInfo", "Strict", "GroupedMetadata")
_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": lambda value, bound: value >= bound,
    "gt": lambda value, bound: value > bound,
    "le": lambda value, bound: value <= bound,
    "lt": lambda value, bound: value < bound,
    "multiple_of": lambda value, bound: _is_multiple(value, bound),
    "min_length": lambda value, bound: len(value) >= bound,
    "max_length": lambda value, bound: len(value) <= bound,
    "pattern": lambda value, bound: _finds(re.search, bound, value),
    "regex": lambda value, bound: _finds(re.fullmatch, bound, value),
}


def marks_of(metadata: Iterable[Any], given: Any) -> list[tuple[str, Any]]:
    """What the extras of an `Annotated` ask for. Raises `RequestError` for a constraint that is not known."""
    found: list[tuple[str, Any]] = []
    for mark in metadata:
        if isinstance(mark, Regex):
            found.append(("regex", mark.pattern))
            continue
        known = [(name, value) for name in _MARKS if (value := getattr(mark, name, None)) is not None]
        inner = getattr(mark, "metadata", None)
        if isinstance(inner, (list, tuple)):  # pydantic's Field
            found += marks_of(inner, given)
        elif known:
            found += known
        elif type(mark).__module__.split(".")[0] in _MAKERS and type(mark).__name__ not in _SAYS_NOTHING:
            raise RequestError(f"{mark!r} in {shown(given)} cannot be enforced", param="type")
    return found


def bounded(shape: Shape, metadata: Iterable[Any], given: Any) -> Shape:
    marks = [
        (name, value.pattern if isinstance(value, re.Pattern) else value) for name, value in marks_of(metadata, given)
    ]
    if not marks:
        return shape
    kind = shape.schema.get("type", "")
    fixed = "prefixItems" in shape.schema or "properties" in shape.schema
    keywords = {} if fixed or "format" in shape.schema else _BOUNDS.get(kind, {})
    if kind == "array" and _is_set(get_args(given)[0]):
        keywords = {}  # equal items would count in the text and not in the set
    schema = dict(shape.schema)
    for name, bound in marks:
        if name not in keywords:
            raise RequestError(f"{name}={bound!r} means nothing for {shown(get_args(given)[0])}", param="type")
        keyword = keywords[name]
        value = _whole(bound) if name == "regex" else bound
        if keyword in schema:
            schema["allOf"] = [*schema.get("allOf", []), {keyword: value}]
        else:
            schema[keyword] = value

    def read(value: Any, path: str) -> Any:
        made = shape.read(value, path)
        for name, bound in marks:
            if not _HOLDS[name](made, bound):
                raise Mismatch(f"{path or 'it'} must have {name}={bound!r}, got {value!r:.80}")
        return made

    return Shape(schema, read)


def _whole(pattern: str) -> str:
    """The pattern, which matches whole strings, for JSON Schema, which searches."""
    flags = re.match(r"\(\?[a-z]+\)", pattern)
    start = flags.end() if flags else 0
    body = pattern[start:]
    if "|" not in body:
        body = body.removeprefix("^")
        body = body.removesuffix("$") if not body.endswith("\\$") else body
    return f"{pattern[:start]}^(?:{body})$"


def _is_set(given: Any) -> bool:
    origin = get_origin(given)
    return isinstance(origin, type) and issubclass(origin, Set)


def _is_multiple(value: Any, bound: Any) -> bool:
    from decimal import Decimal  # as the decimals that are written, which floats are not; few need it

    return Decimal(repr(value)) % Decimal(repr(bound)) == 0


def _finds(search: Callable[..., Any], pattern: str, text: str) -> bool:
    """Whether the pattern matches as the engine means it: `\\w` and `\\d` of ASCII or not. True if `re` cannot say."""
    try:
        return any(search(pattern, text, flags) for flags in (re.ASCII, re.NOFLAG))
    except re.error:
        return True
