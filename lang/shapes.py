"""Python types as JSON: the schema that a value's text satisfies, and the way back from parsed JSON to the value.

int, float, bool, str, None, Any
date, datetime, UUID    strings of JSON Schema's formats; a datetime has its offset from UTC
Annotated[T, …]         bounds on T: see `bounds`
Literal, Enum           by value; an enum whose values are not all str, int or bool by name
list, set, frozenset    arrays; `Sequence` reads as a list
tuple[A, B], tuple[A, ...]
dict[str, T]            keys may also be a Literal or an Enum of strings
Union, Optional         the first member that fits
TypedDict, dataclass, NamedTuple    objects; what has a default may be left out
pydantic models, TypeAdapter        their own schema and validation

Classes become definitions (`$defs`), so they may refer to each other and to themselves.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from stemma.lang.bounds import Mismatch, Reader, Schema, Shape, bounded, shown
from stemma.lang.errors import RequestError

SUPPORTED = (
    "int, float, bool, str, date, datetime, UUID, None, Any, Literal[…], Enum, Annotated[…], list[…], set[…], "
    "tuple[…], dict[str, …], Optional, Union, TypedDict, dataclass, NamedTuple, pydantic models"
)
_LISTS = (list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Iterable)
_SETS = {set: set, frozenset: frozenset, collections.abc.Set: set, collections.abc.MutableSet: set}
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_MAX_FRAMES = 32  # how far up the stack the names of local classes are looked for


def shape_of(given: Any) -> Shape:
    """The shape of a type, with its definitions inside. Raises `RequestError` naming what is not supported."""
    shapes = _Shapes()
    shape = shapes.of(given)
    return Shape(shapes.document(shape.schema), shape.read)


def unaliased(given: Any) -> Any:
    """What a `NewType` or a `type` alias stands for."""
    while not isinstance(given, type):
        if hasattr(given, "__supertype__"):
            given = given.__supertype__
        elif type(given).__name__ == "TypeAliasType" and not _recursive_alias(given):
            given = given.__value__
        else:
            break
    return given


def is_pydantic(given: Any) -> bool:
    """A pydantic (v2) model class. Nothing is imported to find out."""
    return isinstance(given, type) and _has_methods(given, "model_json_schema", "model_validate_json")


def is_adapter(given: Any) -> bool:
    """A pydantic `TypeAdapter`."""
    return not isinstance(given, type) and _has_methods(given, "json_schema", "validate_json")


def literal_text(value: Any) -> Any:
    """What stands for an enum's member: its value where all values are str, int or bool, else its name."""
    if not isinstance(value, enum.Enum):
        return value
    by_value = all(isinstance(member.value, (str, int, bool)) for member in type(value))
    return value.value if by_value else value.name


class _Shapes:
    """The shapes of one type and of all that it is made of."""

    def __init__(self) -> None:
        self._names: dict[Any, str] = {}
        self._aliases: dict[str, Any] = {}  # recursive ones, which know themselves by name
        self._defs: dict[str, Schema] = {}
        self._readers: dict[str, Reader] = {}

    def document(self, schema: Schema) -> Schema:
        """The schema with the definitions that it needs; one of its own stands at the root."""
        defs = dict(self._defs)
        if schema.keys() == {"$ref"}:
            name = schema["$ref"].rpartition("/")[2]
            schema = defs[name]
            if f'"#/$defs/{name}"' not in json.dumps(defs):
                del defs[name]
        return {**schema, "$defs": defs} if defs else dict(schema)

    def of(self, given: Any, bound: Mapping[Any, Any] | None = None) -> Shape:
        """The shape of a type. `bound`: what the type variables stand for."""
        bound = bound or {}
        given = bound.get(given, given) if isinstance(given, typing.TypeVar) else unaliased(given)
        if given in (None, types.NoneType):
            return Shape({"type": "null"}, _reader("null", lambda value: value is None))
        if given in (Any, object):
            return Shape({}, lambda value, path: value)
        if isinstance(given, type) and (scalar := _SCALARS.get(given) or _of_format(given)):
            return scalar
        given = self._aliases.get(_reference(given) or "", given)
        if type(given).__name__ == "TypeAliasType":
            self._aliases[given.__name__] = given
            return self._named(given, given.__name__, lambda: self.of(given.__value__, bound))
        return self._of_class(given, bound) or self._of_generic(given, bound)

    def _of_generic(self, given: Any, bound: Mapping[Any, Any]) -> Shape:
        origin, args = get_origin(given), get_args(given)
        inner = [bound.get(arg, arg) if isinstance(arg, typing.TypeVar) else arg for arg in args]
        if origin is typing.Annotated:
            return bounded(self.of(args[0], bound), args[1:], given)
        if origin is typing.Literal:
            return _literal(args, given)
        if origin in (typing.Union, types.UnionType):
            return _union([self.of(arg, bound) for arg in args], given)
        if origin in _LISTS:
            return _array(self.of(inner[0], bound), list)
        if origin in _SETS:
            return _array(self.of(inner[0], bound), _SETS[origin])
        if origin in _DICTS:
            return _mapping(_keys(self.of(inner[0], bound), given), self.of(inner[1], bound))
        if origin is tuple:
            if len(inner) == 2 and inner[1] is Ellipsis:
                return _array(self.of(inner[0], bound), tuple)
            return _tuple([self.of(arg, bound) for arg in inner])
        if origin in (typing.Final, typing.ClassVar) and args:
            return self.of(args[0], bound)
        if given in (list, set, frozenset, dict, tuple):
            _refuse(given, f"; say of what: {given.__name__}[{'str, int' if given is dict else 'int'}]")
        if isinstance(given, (str, typing.ForwardRef)):
            _refuse(given, "; a name in quotes is found inside a dataclass, TypedDict or NamedTuple only")
        _refuse(given)

    # -- classes

    def _of_class(self, given: Any, bound: Mapping[Any, Any]) -> Shape | None:
        cls, args = get_origin(given) or given, get_args(given)
        if is_adapter(given):
            return self._named(given, "Value", lambda: self._pydantic(given, given.json_schema, given.validate_json))
        if is_pydantic(given):
            make = lambda: self._pydantic(given, given.model_json_schema, given.model_validate_json)  # noqa: E731
            return self._named(given, given.__name__, make)
        if not isinstance(cls, type):
            return None
        if issubclass(cls, enum.Enum):
            return _literal(tuple(cls), cls)
        if dataclasses.is_dataclass(cls):
            fields = _dataclass_fields
        elif hasattr(cls, "__required_keys__"):
            fields = _typed_dict_fields
        elif issubclass(cls, tuple) and hasattr(cls, "_fields"):
            fields = _named_tuple_fields
        else:
            return None
        inside = dict(zip(getattr(cls, "__parameters__", ()), (bound.get(a, a) for a in args), strict=False))
        name = "_".join([cls.__name__, *(shown(inside[p]) for p in inside)])
        return self._named(given if args else cls, name, lambda: self._object(cls, fields(cls), inside))

    def _named(self, key: Any, name: str, make: Callable[[], Shape]) -> Shape:
        """A reference to the definition of `key`, which is made at the first use."""
        if key not in self._names:
            name = re.sub(r"\W+", "_", name)
            unique = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 10_000))) if n not in self._defs)
            self._names[key] = unique
            self._defs[unique] = {}
            made = make()
            self._defs[unique], self._readers[unique] = made.schema, made.read
        name = self._names[key]
        return Shape({"$ref": f"#/$defs/{name}"}, lambda value, path: self._readers[name](value, path))

    def _object(self, cls: Any, fields: Mapping[str, tuple[Any, bool]], bound: Mapping[Any, Any]) -> Shape:
        shapes = {name: self.of(hint, bound) for name, (hint, _) in fields.items()}
        required = [name for name, (_, needed) in fields.items() if needed]

        def read(value: Any, path: str) -> Any:
            if not isinstance(value, dict):
                _fail(path, f"an object ({cls.__name__})", value)
            for name in required:
                if name not in value:
                    raise Mismatch(f"{path or 'it'} has no {name!r}, which {cls.__name__} needs")
            for name in value:
                if name not in shapes:
                    raise Mismatch(f"{path or 'it'} has {name!r}, which {cls.__name__} does not know")
            read = {name: shapes[name].read(item, f"{path}.{name}") for name, item in value.items()}
            return _made(cls, read, path)

        properties = {name: shape.schema for name, shape in shapes.items()}
        return Shape(
            {"type": "object", "properties": properties, "required": required, "additionalProperties": False}, read
        )

    def _pydantic(self, given: Any, schema_of: Callable[..., Schema], validate: Callable[[str], Any]) -> Shape:
        name = self._names[given]
        schema = schema_of(ref_template=f"#/$defs/{name}.{{model}}")
        for key, definition in schema.pop("$defs", {}).items():
            self._defs[f"{name}.{key}"] = _closed(definition)

        def read(value: Any, path: str) -> Any:
            try:
                return validate(json.dumps(value))
            except ValueError as error:  # pydantic's ValidationError is one
                raise Mismatch(f"{path or 'it'}: {_reasons(error)}") from error

        return Shape(_closed(schema), read)


# -- classes


def _made(cls: Any, values: dict[str, Any], path: str) -> Any:
    try:
        return cls(**values)
    except Exception as error:  # the user's own checks
        raise Mismatch(f"{path or 'it'}: {cls.__name__} raised {type(error).__name__}: {error}") from error


def _dataclass_fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    every = cls.__dataclass_fields__.values()
    for field in every:
        if field._field_type.name == "_FIELD_INITVAR":
            raise RequestError(f"{cls.__name__}.{field.name}: InitVar is not supported", param="type")
    hints = hints_of(cls)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
        if f.init
    }


def _typed_dict_fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    found = {}
    for name, hint in hints_of(cls).items():
        needed = name in cls.__required_keys__
        while (word := str(get_origin(hint)).rpartition(".")[2]) in ("Required", "NotRequired", "ReadOnly"):
            needed = needed if word == "ReadOnly" else word == "Required"
            (hint,) = get_args(hint)
        found[name] = (hint, needed)
    return found


def _named_tuple_fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    hints = hints_of(cls)
    return {name: (hints.get(name, Any), name not in cls._field_defaults) for name in cls._fields}


def hints_of(cls: Any) -> dict[str, Any]:
    """The annotations, evaluated. Names of local classes are looked for in the functions that are running."""
    names: dict[str, Any] = {cls.__name__: cls}
    frame = sys._getframe(1)
    for left in reversed(range(_MAX_FRAMES)):
        try:
            return get_type_hints(cls, localns=names, include_extras=True)
        except NameError as error:
            if frame is None or not left:
                raise RequestError(f"an annotation of {cls.__name__}: {error}", param="type") from None
        names = {**frame.f_globals, **frame.f_locals, cls.__name__: cls}
        frame = frame.f_back
    raise AssertionError("the last try returns or raises")


def _recursive_alias(given: Any) -> bool:
    """Whether a `type` alias mentions itself, directly or inside."""
    seen: list[Any] = []
    todo = [given.__value__]
    while todo:
        at = todo.pop()
        if at is given or _reference(at) == given.__name__:
            return True
        if not any(at is one for one in seen):
            seen.append(at)
            todo += [*get_args(at), *([at.__value__] if type(at).__name__ == "TypeAliasType" else [])]
    return False


def _reference(given: Any) -> str | None:
    """The name in quotes that stands for a type."""
    return given if isinstance(given, str) else getattr(given, "__forward_arg__", None)


def _has_methods(given: Any, *names: str) -> bool:
    return all(callable(getattr(given, name, None)) for name in names)


def _reasons(error: Any) -> str:
    """pydantic's report in one line."""
    listed = error.errors() if callable(getattr(error, "errors", None)) else ()
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}".lstrip(": ") for one in listed) or str(error)


def _closed(schema: Any) -> Any:
    """A pydantic schema in which objects with named properties have no others, where the model does not say."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            out[key] = {name: _closed(one) for name, one in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = _closed(value)
        elif key in ("anyOf", "oneOf", "prefixItems"):
            out[key] = [_closed(one) for one in value]
    if out.get("type") == "object" and "properties" in out:
        out.setdefault("additionalProperties", False)
    return out


# -- scalars


def _fail(path: str, wanted: str, value: Any) -> NoReturn:
    raise Mismatch(f"{path or 'it'} must be {wanted}, got {json.dumps(value, ensure_ascii=False):.80}")


def _reader(wanted: str, fits: Callable[[Any], bool], make: Callable[[Any], Any] | None = None) -> Reader:
    def read(value: Any, path: str) -> Any:
        if not fits(value):
            _fail(path, wanted, value)
        return value if make is None else make(value)

    return read


def _is_float(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


_SCALARS: dict[type, Shape] = {
    int: Shape({"type": "integer"}, _reader("an integer", lambda value: type(value) is int)),
    float: Shape({"type": "number"}, _reader("a number that a float can hold", _is_float, float)),
    bool: Shape({"type": "boolean"}, _reader("true or false", lambda value: isinstance(value, bool))),
    str: Shape({"type": "string"}, _reader("a string", lambda value: isinstance(value, str))),
}


def _formatted(format: str, make: Callable[[str], Any]) -> Shape:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, str):
            _fail(path, f"a {format} in quotes", value)
        try:
            return make(value)
        except ValueError as error:  # the year 0000 and leap seconds too, which Python's calendar has not
            raise Mismatch(f"{path or 'it'} must be a {format}: {error}") from error

    return Shape({"type": "string", "format": format}, read)


def _of_format(given: type) -> Shape | None:
    """By name, so that who does not use these types does not load their modules."""
    name = f"{given.__module__}.{given.__qualname__}"
    made: Any = given
    if name == "datetime.date":
        return _formatted("date", made.fromisoformat)
    if name == "datetime.datetime":
        return _formatted("date-time", lambda text: made.fromisoformat(text.upper()))
    return _formatted("uuid", made) if name == "uuid.UUID" else None


def _literal(values: Iterable[Any], given: Any) -> Shape:
    meanings: dict[tuple[type, Any], Any] = {}
    for value in values:
        text = literal_text(value)
        if text is not None and type(text) not in (str, int, bool):
            raise RequestError(f"{shown(given)} may hold str, int, bool and None, got {value!r}", param="type")
        if meanings.setdefault((type(text), text), value) is not value:
            raise RequestError(f"two values of {shown(given)} are written {json.dumps(text)}", param="type")
    if not meanings:
        raise RequestError(f"type {shown(given)} has no members to choose from", param="type")
    texts = [text for _, text in meanings]

    def read(value: Any, path: str) -> Any:
        if type(value) is float and value.is_integer():
            value = int(value)
        key = (type(value), value)
        if isinstance(value, (list, dict)) or key not in meanings:
            _fail(path, f"one of {json.dumps(texts, ensure_ascii=False):.200}", value)
        return meanings[key]

    return Shape({"enum": texts}, read)


# -- containers


def _array(item: Shape, make: Callable[[list[Any]], Any]) -> Shape:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, list):
            _fail(path, "an array", value)
        try:
            return make([item.read(one, f"{path}[{i}]") for i, one in enumerate(value)])
        except TypeError as error:  # a set of what cannot be hashed
            raise Mismatch(f"{path or 'it'}: {error}") from error

    return Shape({"type": "array", "items": item.schema}, read)


def _tuple(items: list[Shape]) -> Shape:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, list) or len(value) != len(items):
            _fail(path, f"an array of {len(items)} items", value)
        return tuple(item.read(one, f"{path}[{i}]") for i, (item, one) in enumerate(zip(items, value, strict=True)))

    size = len(items)
    schema: Schema = {"type": "array", "minItems": size, "maxItems": size, "items": False}
    return Shape({**schema, "prefixItems": [item.schema for item in items]} if items else schema, read)


def _keys(key: Shape, given: Any) -> Shape:
    texts = key.schema.get("enum", [""] if key.schema.get("type") == "string" else [0])
    if not all(isinstance(text, str) for text in texts):
        _refuse(given, "; the keys of JSON objects are strings")
    return key


def _mapping(key: Shape, item: Shape) -> Shape:
    def read(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            _fail(path, "an object", value)
        return {key.read(k, f"a key of {path or 'it'}"): item.read(v, f"{path}[{k!r}]") for k, v in value.items()}

    names = {"propertyNames": key.schema} if key.schema != {"type": "string"} else {}
    return Shape({"type": "object", "additionalProperties": item.schema, **names}, read)


def _union(options: list[Shape], given: Any) -> Shape:
    def read(value: Any, path: str) -> Any:
        reasons = []
        for option in options:
            try:
                return option.read(value, path)
            except Mismatch as error:
                reasons.append(str(error))
        raise Mismatch(f"{path or 'it'} fits no member of {shown(given)}: {'; '.join(reasons)}")

    return Shape({"anyOf": [option.schema for option in options]}, read)


def _refuse(given: Any, hint: str = "") -> NoReturn:
    raise RequestError(f"type must be made of {SUPPORTED}, got {given!r}{hint}", param="type")
