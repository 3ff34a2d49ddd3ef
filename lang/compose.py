"""Constraints put together: one text, one request, its parts captured under names of their own.

s += "Name: " + capture("name", regex(r"[A-Z][a-z]+")) + ", age: " + capture("age", int)
assert isinstance(s["age"], int)

    regex(pattern)          text that matches
    literal(text)           just this; a plain string means the same inside the others
    choice(a, b, …)         one of them; `a | b` is the same
    json(T)                 JSON of a type or schema
    ebnf(grammar)           text of a grammar
    sequence(a, b, …)       one after the other; `a + b` is the same
    repeat(x, min, max, separator)    some of them
    optional(x)             it, or nothing
    capture(name, x)        x, and `s[name]` is its text, or its value where x is a type or `json(T)`

Where one of these is wanted, a Python type stands for its text (as in `gen(type=T)`). A part is appended to a state as
such, or given to `gen(constraint=…)` where it needs sampling arguments or a name for the whole text.
"""

from __future__ import annotations

import json as _json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.nodes import Capture, Expression, Gen, Lowering, Node, NodeList, as_nodes, caller
from stemma.lang.params import Constraint
from stemma.lang.types import TypeSpec, json_spec, type_spec

MANY = 2  # captures are counted up to here


class Part(Lowering):
    """A constraint that can be put together with others. Build parts with the functions of this module."""

    __slots__ = ()

    def tree(self) -> dict[str, Any]:
        """As the wire wants it (docs/graph.md)."""
        raise NotImplementedError

    def parts(self) -> tuple[Part, ...]:
        """What it is made of."""
        return ()

    def counts(self) -> Counter[str]:
        """For each name captured inside: 1, or `MANY` where it may be captured several times."""
        return Counter()

    def nodes(self) -> tuple[Node, ...]:
        return (Gen(constraint=constraint_of(self), captures=captures_of(self), where=caller()),)

    def __add__(self, other: Any) -> Any:
        return sequence(self, other) if _is_part(other) else NodeList((*as_nodes(self), *as_nodes(other)))

    def __radd__(self, other: Any) -> Any:
        return sequence(other, self) if _is_part(other) else NodeList((*as_nodes(other), *as_nodes(self)))

    def __or__(self, other: Any) -> Part:
        return choice(self, other)

    def __ror__(self, other: Any) -> Part:
        return choice(other, self)


@dataclass(frozen=True, slots=True)
class _Leaf(Part):
    kind: str  # literal, regex, json_schema, ebnf
    value: str
    type: TypeSpec | None = None

    def tree(self) -> dict[str, Any]:
        return {self.kind: _json.loads(self.value) if self.kind == "json_schema" else self.value}


@dataclass(frozen=True, slots=True)
class _Sequence(Part):
    items: tuple[Part, ...]

    def tree(self) -> dict[str, Any]:
        return {"sequence": [item.tree() for item in self.items]}

    def parts(self) -> tuple[Part, ...]:
        return self.items

    def counts(self) -> Counter[str]:
        return sum((item.counts() for item in self.items), Counter())


@dataclass(frozen=True, slots=True)
class _Choice(Part):
    options: tuple[Part, ...]
    type: TypeSpec | None = None

    def tree(self) -> dict[str, Any]:
        return {"choice": [option.tree() for option in self.options]}

    def parts(self) -> tuple[Part, ...]:
        return self.options

    def counts(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for option in self.options:
            found |= option.counts()
        return found


@dataclass(frozen=True, slots=True)
class _Repeat(Part):
    item: Part
    min: int
    max: int | None
    separator: Part | None

    def tree(self) -> dict[str, Any]:
        tree: dict[str, Any] = {"repeat": self.item.tree(), "min": self.min, "max": self.max}
        return tree if self.separator is None else {**tree, "separator": self.separator.tree()}

    def parts(self) -> tuple[Part, ...]:
        return (self.item,) if self.separator is None else (self.item, self.separator)

    def counts(self) -> Counter[str]:
        times = MANY if self.max is None else min(self.max, MANY)
        found = Counter({name: count * times for name, count in self.item.counts().items()})
        if self.separator is not None:
            between = MANY if self.max is None else min(max(self.max - 1, 0), MANY)
            found += Counter({name: count * between for name, count in self.separator.counts().items()})
        return found


@dataclass(frozen=True, slots=True)
class _Capture(Part):
    name: str
    item: Part
    type: TypeSpec | None = None

    def tree(self) -> dict[str, Any]:
        return {"capture": self.item.tree(), "name": self.name}

    def parts(self) -> tuple[Part, ...]:
        return (self.item,)

    def counts(self) -> Counter[str]:
        return self.item.counts() + Counter([self.name])


# -- building


def regex(pattern: str) -> Part:
    """Text that matches the pattern as a whole. Raises `ConstraintError` for something that is no text."""
    return _Leaf("regex", _text("regex", pattern))


def literal(text: str) -> Part:
    """Just this text. At the start of a generation, and wherever only this can follow, it costs no sampling."""
    return _Leaf("literal", _text("literal", text))


def ebnf(grammar: str) -> Part:
    """Text of a grammar in GBNF or Lark syntax."""
    return _Leaf("ebnf", _text("ebnf", grammar))


def json(schema: Any) -> Part:
    """JSON of a type, or of a schema given as dict or JSON text. Captured, a type gives its value, a schema its text.

    Differs from the bare type for `str`-like ones: `json(Literal["a"])` is `"a"` with quotes, `Literal["a"]` without.
    Raises `RequestError` for a type that is not supported.
    """
    if isinstance(schema, (str, Mapping)):
        try:
            value = _json.loads(schema) if isinstance(schema, str) else schema
            return _Leaf("json_schema", _json.dumps(value, ensure_ascii=False))
        except (TypeError, ValueError) as error:
            raise ConstraintError(
                f"json takes a schema or a type, got {schema!r:.200}: {error}", param="json"
            ) from None
    spec = json_spec(schema)
    return _Leaf("json_schema", str(spec.constraint.value), spec)


def sequence(*items: Any) -> Part:
    """One after the other. `a + b` is the same where one of them is a part."""
    flat: list[Part] = []
    for item in items:
        part = as_part(item)
        for one in part.items if isinstance(part, _Sequence) else (part,):
            if flat and _is_literal(one) and _is_literal(flat[-1]):
                flat[-1] = _Leaf("literal", flat[-1].value + one.value)
            else:
                flat.append(one)
    return flat[0] if len(flat) == 1 else _Sequence(tuple(flat))


def choice(*options: Any) -> Part:
    """One of them. Where a text fits several, captures are taken from the first. Raises `RequestError` for none."""
    if len(options) == 1 and isinstance(options[0], (list, tuple)):
        raise RequestError(f"choice takes the options one by one: choice(*{options[0]!r:.80})", param="choice")
    if not options:
        raise RequestError("choice needs at least one option", param="choice")
    flat: list[Part] = []
    for option in options:
        part = as_part(option)
        flat += part.options if isinstance(part, _Choice) and part.type is None else (part,)
    return flat[0] if len(flat) == 1 else _Choice(tuple(flat))


def repeat(item: Any, min: int = 0, max: int | None = None, *, separator: Any = None) -> Part:
    """`item` from `min` to `max` times (None: without bound), `separator` between them."""
    for name, value in (("min", min), ("max", max)):
        if (value is not None or name == "min") and (
            isinstance(value, bool) or not isinstance(value, int) or value < 0
        ):
            raise RequestError(f"repeat's {name} must be an integer >= 0, got {value!r}", param=name)
    if max is not None and max < min:
        raise RequestError(f"repeat's max must be at least min ({min}), got {max}", param="max")
    return _Repeat(as_part(item), min, max, None if separator is None else as_part(separator))


def optional(item: Any) -> Part:
    """The item, or nothing. What is captured inside is None where it was left out."""
    return repeat(item, 0, 1)


def capture(name: str, item: Any) -> Part:
    """The item, kept under a name: `s[name]` is its text, or the value where the item is a type or `json(T)`.

    Under a `repeat`, and for a name used twice in a row, it is the list of them; where it was not reached (another
    option was taken), None. Raises `RequestError` for a name that is no string.
    """
    if not isinstance(name, str) or not name:
        raise RequestError(f"a capture needs a name, got {name!r}", param="name")
    part = as_part(item)
    return _Capture(name, part, part.type if isinstance(part, (_Leaf, _Choice)) else None)


def as_part(value: Any) -> Part:
    """A part as it is, a string as a literal, a type as its text. Raises `RequestError` for anything else."""
    if isinstance(value, Part):
        return value
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, Constraint):
        return _of_constraint(value, None)
    if isinstance(value, (Expression, list, tuple, dict, int, float, bytes)) or value is None:
        hint = "; capture(name, …) stands for gen(name, …) here" if isinstance(value, Gen) else ""
        raise RequestError(f"a constraint is composed of parts, texts and types, got {value!r:.80}{hint}", param="item")
    spec = type_spec(value)
    return _of_constraint(spec.constraint, spec)


def _of_constraint(given: Constraint, spec: TypeSpec | None) -> Part:
    if isinstance(given.value, tuple):
        return _Choice(tuple([literal(text) for text in given.value]), spec)
    if given.kind not in ("regex", "json_schema", "ebnf"):
        raise RequestError(f"a {given.kind} constraint cannot be a part of another", param="constraint")
    return _Leaf(given.kind, given.value, spec)


# -- what a gen needs of it


def constraint_of(part: Part) -> Constraint:
    """The constraint for the wire. Equal parts give equal constraints, which endpoints compile once."""
    try:
        text = _json.dumps(part.tree(), ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        _refuse("its parts are nested too deeply")
    return Constraint("composed", text)


def captures_of(part: Part, taken: str | None = None) -> tuple[Capture, ...]:
    """What is captured, in the order of first mention. `taken` is the gen's own name.

    Raises `ConstraintError` for a name with two types, and for one that is the gen's.
    """
    types: dict[str, TypeSpec | None] = {}
    for one in _walk(part):
        if isinstance(one, _Capture):
            if one.name == taken:
                _refuse(f"the capture {one.name!r} has the name of its gen")
            known = types.setdefault(one.name, one.type)
            if known != one.type:
                both = " and ".join("text" if t is None else t.name for t in (known, one.type))
                _refuse(f"the captures named {one.name!r} have two types, {both}")
    counts = part.counts()
    return tuple([Capture(name, counts[name] >= MANY, spec) for name, spec in types.items()])


def _walk(part: Part) -> Iterator[Part]:
    yield part
    for one in part.parts():
        yield from _walk(one)


def _refuse(problem: str) -> NoReturn:
    raise ConstraintError(f"constraint: {problem}", param="constraint")


def _is_literal(part: Part) -> TypeGuard[_Leaf]:
    return isinstance(part, _Leaf) and part.kind == "literal"


def _is_part(value: Any) -> bool:
    return isinstance(value, (Part, str, type)) or not isinstance(value, (Expression, list, tuple))


def _text(word: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConstraintError(f"{word} must be a string, got {value!r:.80}", param=word)
    return value
