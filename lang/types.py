"""From a Python type to the constraint that its text must match, and from the text back to the value.

int, float      JSON numbers of bounded length
bool            true, false, True or False
str             a JSON string, quotes and escapes included; the value is the string without them
Literal[…]      one of the values as text, without quotes
Enum            one of the members, by value where all are str, int or bool, by name otherwise
Annotated[str, Regex(…)]    text that matches the pattern, without quotes
all others      JSON: see `shapes`
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from stemma.lang.bounds import Mismatch, Regex, marks_of, shown
from stemma.lang.errors import RequestError
from stemma.lang.params import Constraint
from stemma.lang.shapes import shape_of, unaliased

REGEX_INT = r"-?(0|[1-9][0-9]{0,18})"
REGEX_FLOAT = r"-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?"
REGEX_BOOL = r"(true|false|True|False)"
REGEX_STR = r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """A type as the language sees it: its name, the constraint on the text, the way back from text to value."""

    name: str
    constraint: Constraint
    convert: Callable[[str], Any] = field(compare=False, repr=False)

    def value_of(self, text: str) -> Any:
        """The value that the text stands for. Raises `ValueError` naming both when it stands for none."""
        try:
            return self.convert(text)
        except (ValueError, KeyError, RecursionError) as error:
            reason = f": {error}" if isinstance(error, Mismatch) else ""
            raise ValueError(f"{text!r:.2000} is not a value of type {self.name}{reason}") from None


def type_spec(given: Any) -> TypeSpec:
    """The spec of a Python type, or of one of the names "int", "float", "bool", "str".

    Raises `RequestError` naming the type when it is not supported.
    """
    if isinstance(given, TypeSpec):
        return given
    by_name = {"int": int, "float": float, "bool": bool, "str": str}
    plain = unaliased(by_name.get(given, given) if isinstance(given, str) else given)
    if plain is bool:
        return _by_regex("bool", REGEX_BOOL, lambda text: text.lower() == "true")
    if plain is int:
        return _by_regex("int", REGEX_INT, int)
    if plain is float:
        return _by_regex("float", REGEX_FLOAT, float)
    if plain is str:
        return _by_regex("str", REGEX_STR, json.loads)
    if get_origin(plain) is Literal:
        return _literal(plain)
    if isinstance(plain, type) and issubclass(plain, enum.Enum):
        return _enum(plain)
    if get_origin(plain) is Annotated and any(isinstance(mark, Regex) for mark in get_args(plain)[1:]):
        return _bare_pattern(plain)
    return json_spec(given)


def json_spec(given: Any) -> TypeSpec:
    """The spec of a type whose text is always JSON: strings, literals and enums in quotes.

    Raises `RequestError` naming the type when it is not supported.
    """
    try:
        key = _key(given)
        known = _specs.get(key)
    except TypeError:  # it holds what cannot be hashed
        return _json_spec(given)
    if known is None:
        known = _json_spec(given)
        if len(_specs) >= _MAX_SPECS:
            _specs.clear()
        _specs[key] = known
    return known


_specs: dict[Any, TypeSpec] = {}
_MAX_SPECS = 256


def _key(given: Any) -> Any:
    """Equal only for types that are the same in order and value: `int | str == str | int`, but they read otherwise."""
    args = get_args(given)
    return (get_origin(given), tuple([_key(arg) for arg in args])) if args else (type(given), given)


def _json_spec(given: Any) -> TypeSpec:
    shape = shape_of(given)

    def convert(text: str) -> Any:
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except ValueError as error:
            raise Mismatch(f"it is not JSON: {error}") from None
        return shape.read(value, "")

    schema = json.dumps(shape.schema, ensure_ascii=False)
    return TypeSpec(shown(given), Constraint("json_schema", schema), convert)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _bare_pattern(given: Any) -> TypeSpec:
    base, *metadata = get_args(given)
    marks = marks_of(metadata, given)
    if unaliased(base) is not str or len(marks) != 1:
        raise RequestError(f"Regex stands alone, and with str: Annotated[str, Regex(…)]; got {given!r}", param="type")
    pattern: str = marks[0][1]
    read = shape_of(given).read
    return TypeSpec(shown(given), Constraint("regex", pattern), lambda text: read(text, ""))


def _by_regex(name: str, regex: str, convert: Callable[[str], Any]) -> TypeSpec:
    pattern = re.compile(regex)

    def checked(text: str) -> Any:
        if not pattern.fullmatch(text):
            raise ValueError(text)
        return convert(text)

    return TypeSpec(name, Constraint("regex", regex), checked)


def _literal(given: Any) -> TypeSpec:
    values = get_args(given)
    for value in values:
        if not isinstance(value, (str, int, bool)):
            raise RequestError(f"a Literal may hold str, int and bool, got {value!r} in {given!r}", param="type")
    return _by_text(str(given).replace("typing.", ""), {_as_text(v): v for v in values}, len(values))


def _enum(given: type[enum.Enum]) -> TypeSpec:
    members = list(given)
    by_value = all(isinstance(m.value, (str, int, bool)) for m in members)
    return _by_text(given.__name__, {_as_text(m.value) if by_value else m.name: m for m in members}, len(members))


def _as_text(value: Any) -> str:
    return str(value.value if isinstance(value, enum.Enum) else value)


def _by_text(name: str, texts: Mapping[str, Any], count: int) -> TypeSpec:
    if not texts:
        raise RequestError(f"type {name} has no members to choose from", param="type")
    if len(texts) != count:
        raise RequestError(f"two values of {name} have the same text; the texts are {list(texts)!r}", param="type")
    if "" in texts:
        raise RequestError(f"a value of {name} has the empty string as text", param="type")
    return TypeSpec(name, Constraint("choices", tuple(texts)), lambda text: texts[text])
