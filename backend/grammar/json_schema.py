"""The JSON Schema front end (draft 2020-12): every keyword is enforced, or refused by name and place.

Keywords are taken off a schema one by one; what is left over in the end and could forbid a value is an error. With
`lenient`, what cannot be enforced is dropped instead and reported in `warnings`. Keywords and formats that JSON Schema
does not know say nothing, by its rules; they are reported too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from stemma.backend.grammar import ir
from stemma.backend.grammar import json_keywords as kw
from stemma.backend.grammar.json_formats import NO_LIMIT, NUMERIC, PATTERNS
from stemma.backend.grammar.json_layout import layout_of
from stemma.backend.grammar.json_lower import Lowerer
from stemma.backend.grammar.json_numbers import NumberSet, exact, number_texts
from stemma.backend.grammar.json_refs import Document, refuse_at
from stemma.backend.grammar.json_strings import StringSet
from stemma.backend.grammar.json_values import (
    NO_VALUES,
    WORDS,
    Algebra,
    ArrayShape,
    Formula,
    ObjectShape,
    Section,
    Unknown,
    Unsupported,
    Values,
)
from stemma.backend.grammar.limits import MAX_TEXT, Deadline
from stemma.lang.errors import ConstraintError

_ANNOTATIONS = frozenset(
    [
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$dynamicAnchor",
        "$comment",
        "$vocabulary",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "$recursiveAnchor",
    ]
)
_REFUSED = {
    "$recursiveRef": "it belongs to draft 2019-09; write '$ref'",
    "disallow": "it belongs to draft 3; write 'not'",
    "extends": "it belongs to draft 3; write 'allOf'",
    "divisibleBy": "it belongs to draft 3; write 'multipleOf'",
}
_IN_PLACE = frozenset(["allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef"])
MAX_WARNINGS = 64  # that one schema gives
_ORDER_ONLY = ("minContains", "maxContains", "then", "else", "additionalItems")  # mean nothing by themselves


class Lowered(NamedTuple):
    """What a front end gives: the IR, the rules it calls, what was dropped on request, and whether some rules may have
    no texts (see `Nfa`)."""

    node: ir.Node
    rules: tuple[ir.Node, ...] = ()
    warnings: tuple[str, ...] = ()
    trim: bool = False


def read_schema(text: str, deadline: Deadline, *, lenient: bool = False, whitespace: str | None = None) -> Lowered:
    """The IR of the JSON texts that the schema allows. ConstraintError names keyword and JSON pointer. The options are
    those of `Constraint`."""
    layout = layout_of(whitespace, deadline)
    reader = _Reader(_parse(text), deadline, lenient)
    try:
        root = reader.sub(reader.document.root)
        if reader.is_empty(root):
            raise refuse_at("", "", "no value satisfies it")
        lowerer = Lowerer(reader, root, layout)
    except Unsupported as error:
        raise refuse_at("", "", str(error)) from None
    except ConstraintError as error:
        raise error if error.param == "json_schema" else refuse_at("", "", str(error)) from None
    except RecursionError:
        raise refuse_at("", "", "its parts refer to each other too deeply") from None
    return Lowered(lowerer.root, tuple(lowerer.rules), _told(reader.warnings), reader.guessed)


def _told(warnings: list[str]) -> tuple[str, ...]:
    """Each once, and not without end: they go into every answer."""
    distinct = list(dict.fromkeys(warnings))
    more = len(distinct) - MAX_WARNINGS
    return (*distinct[:MAX_WARNINGS], *([f"json_schema: and {more} more"] if more > 0 else []))


def _parse(text: str) -> Any:
    if len(text) > MAX_TEXT:
        raise refuse_at("", "", f"it has {len(text)} characters, the limit is {MAX_TEXT}")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise refuse_at("", "", f"it is not JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _same_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Reader(Algebra):
    def __init__(self, root: Any, deadline: Deadline, lenient: bool) -> None:
        super().__init__(deadline)
        self.lenient = lenient
        self.warnings: list[str] = []
        self.document = Document(root, deadline)
        self._nodes: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        self._reading: set[int] = set()
        self._taken: list[set[str]] = []

    @property
    def algebra(self) -> Algebra:
        return self

    # -- what the algebra asks for

    def schema_values(self, number: int) -> Values:
        return self._read_within(number, self.all)

    def narrowed(self, values: Values, formula: Formula) -> Values:
        """The intersection. What is known already helps to tell the alternatives of a schema apart."""
        if formula.kind == "and":
            for part in sorted(formula.args, key=lambda part: part.kind == "not"):
                values = self.narrowed(values, part)
            return values
        if formula.kind == "schema" and values is not self.all:
            number = formula.args[0]
            if not _IN_PLACE.isdisjoint(self._nodes[number]):
                return self._read_within(number, values)
        return super().narrowed(values, formula)

    def _read_within(self, number: int, values: Values) -> Values:
        node = self._nodes[number]
        if number in self._reading:
            if self.asking:
                raise Unknown
            raise refuse_at(self._pointer(node), "$ref", "the schema refers to itself without end")
        self._reading.add(number)
        self._taken.append(set())
        try:
            return self._read(node, values)
        finally:
            self._taken.pop()
            self._reading.discard(number)

    def const_values(self, text: str) -> Values:
        value = json.loads(text)
        if value is None or isinstance(value, bool):
            return Values(words=frozenset([text]))
        if isinstance(value, str):
            return Values(strings=(StringSet(finite=frozenset([value])),))
        if isinstance(value, int | float):
            texts = {text, *number_texts(exact(value))}
            return Values(numbers=(NumberSet(finite=frozenset(texts)),))
        if isinstance(value, list):
            items = tuple((self.const(_same_text(item)), False) for item in value)
            return Values(arrays=(ArrayShape(items, (self.false, False), len(value), len(value)),))
        names = tuple((name, self.const(_same_text(item)), False) for name, item in value.items())
        return Values(objects=(ObjectShape(names, (), frozenset(value)),))

    # -- schemas

    def sub(self, schema: Any, *path: str | int) -> Formula:
        if isinstance(schema, bool):
            return self.true if schema else self.false
        if not isinstance(schema, dict):
            where = "/".join(str(step) for step in path)
            raise Unsupported(f"{where or 'it'} must be a schema (an object or a boolean), got {str(schema)[:40]}")
        if not schema:
            return self.true
        number = self._numbers.get(id(schema))
        if number is None:
            number = self._numbers[id(schema)] = len(self._nodes)
            self._nodes.append(schema)
        return self.schema(number)

    def take(self, node: dict[str, Any], keyword: str) -> Any:
        self._taken[-1].add(keyword)
        return node.get(keyword)

    def _pointer(self, node: dict[str, Any]) -> str:
        return self.document.pointers.get(id(node), "")

    def _read(self, node: dict[str, Any], outer: Values) -> Values:
        """Each step narrows the values; a keyword that cannot be enforced is named by the step that fails."""
        values = self.all if any(k.startswith("unevaluated") for k in node) else outer
        steps: list[tuple[str, Callable[[Values], Values]]] = []
        present = node.keys()

        def step(keyword: str, make: Callable[[], Values]) -> None:
            if keyword in present:
                steps.append((keyword, lambda known: self.intersection(known, make())))

        def inner(keyword: str, make: Callable[[Values], Values]) -> None:
            if keyword in present:
                steps.append((keyword, make))

        step("type", lambda: self._types(self.take(node, "type")))
        for keyword in kw.STRING_KEYWORDS:
            step(keyword, lambda keyword=keyword: self._string(node, keyword))
        for keyword in kw.NUMBER_KEYWORDS:
            step(keyword, lambda keyword=keyword: self._number(node, keyword))
        arrays = ("prefixItems", "items", "contains", "minItems", "maxItems", "uniqueItems")
        if found := [k for k in arrays if k in present]:
            step(found[0], lambda: self._with(arrays=(kw.array_shape(self, node),)))
        objects = [
            "properties",
            "patternProperties",
            "additionalProperties",
            "required",
            "minProperties",
            "maxProperties",
        ]
        if found := [k for k in objects if k in present]:
            step(found[0], lambda: self._with(objects=(kw.object_shape(self, node),)))
        step("propertyNames", lambda: self._property_names(node))
        step("enum", lambda: self._enum(self.take(node, "enum")))
        step("const", lambda: self.values(self.const(_same_text(self.take(node, "const")))))
        inner("$ref", lambda known: self.narrowed(known, self._reference(node, "$ref")))
        inner("$dynamicRef", lambda known: self.narrowed(known, self._reference(node, "$dynamicRef")))
        inner("allOf", lambda known: self.narrowed(known, self.both(*self._list(node, "allOf"))))
        inner("anyOf", lambda known: self._any_of(known, self._list(node, "anyOf"), node))
        inner("oneOf", lambda known: self._one_of(known, self._list(node, "oneOf")))
        inner("not", lambda known: self.difference(known, self.values(self.sub(self.take(node, "not"), "not"))))
        inner("if", lambda known: self._condition(known, node))
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            step(keyword, lambda keyword=keyword: self._dependencies(node, keyword))
        for keyword, make in steps:
            values = self._attempt(node, keyword, lambda make=make, known=values: make(known), values)
        for keyword in ("unevaluatedProperties", "unevaluatedItems"):
            if keyword in present:
                everything = values
                values = self._attempt(
                    node, keyword, lambda k=keyword, v=everything: self._unevaluated(node, k, v), values
                )
        self._check_rest(node)
        return (
            values
            if outer is self.all or not any(k.startswith("unevaluated") for k in node)
            else self.intersection(outer, values)
        )

    def _attempt(self, node: dict[str, Any], keyword: str, make: Callable[[], Values], otherwise: Values) -> Values:
        try:
            return make()
        except Unsupported as error:
            refusal = refuse_at(self._pointer(node), keyword, str(error))
        except ConstraintError as error:
            if str(error).startswith("json_schema:") or "took longer" in str(error):
                raise
            refusal = refuse_at(self._pointer(node), keyword, str(error))
        if not self.lenient:
            raise refusal from None
        self.warnings.append(str(refusal))
        self._taken[-1].add(keyword)
        return otherwise

    def _check_rest(self, node: dict[str, Any]) -> None:
        """Refuse what was not ticked off; keywords that JSON Schema does not know say nothing, by its rules."""
        for keyword in node:
            if keyword in self._taken[-1] or keyword in _ANNOTATIONS or keyword in _ORDER_ONLY:
                continue
            if keyword in _REFUSED:
                self._attempt(node, keyword, lambda k=keyword: _unsupported(_REFUSED[k]), NO_VALUES)
            elif not keyword.startswith("x-"):  # OpenAPI's mark of what others add
                self.warn(node, keyword, "not a known keyword, so it says nothing")

    def _with(self, **parts: Any) -> Values:
        """All values, but for one type."""
        return _replaced(self.all, parts)

    def _types(self, given: Any) -> Values:
        names = given if isinstance(given, list) else [given]
        found = []
        for name in names:
            if isinstance(name, dict):
                raise Unsupported("schemas in 'type' belong to draft 3; write 'anyOf'")
            if name not in kw.TYPES and name != "any":
                raise Unsupported(f"unknown type {name!r}")
            found.append(self._of_type(name))
        return self.union(found)

    def _of_type(self, name: str) -> Values:
        if name == "any":
            return self.all
        if name in ("null", "boolean"):
            return Values(words=frozenset(["null"]) if name == "null" else WORDS - {"null"})
        if name == "integer":
            return Values(numbers=(NumberSet(whole=True),))
        return Values(**{f"{name}s": getattr(self.all, f"{name}s")})

    def _string(self, node: dict[str, Any], keyword: str) -> Values:
        value = self.take(node, keyword)
        types = node.get("type")
        if (
            keyword == "format"
            and types is not None
            and "string" not in (types if isinstance(types, list) else [types])
        ):
            self._check_format(node, value)
            return self.all
        if keyword == "format" and not self._check_format(node, value):
            return self.all
        return self._with(strings=(kw.string_keyword(keyword, value, self),))

    def _check_format(self, node: dict[str, Any], value: Any) -> bool:
        """Whether JSON Schema or OpenAPI give the format a meaning."""
        if value in (*PATTERNS, *NUMERIC, *NO_LIMIT):
            return True
        if not isinstance(value, str):
            raise Unsupported(f"must be a string, got {value!r}")
        self.warn(node, "format", f"{value!r} is not a known format, so it says nothing; write a 'pattern'")
        return False

    def warn(self, node: dict[str, Any], keyword: str, problem: str) -> None:
        self.warnings.append(str(refuse_at(self._pointer(node), keyword, problem)))

    def _number(self, node: dict[str, Any], keyword: str) -> Values:
        return self._with(numbers=(kw.number_keyword(keyword, self.take(node, keyword), node),))

    def _reference(self, node: dict[str, Any], keyword: str) -> Formula:
        self.take(node, keyword)
        return self.sub(self.document.resolve(node, keyword), keyword)

    def _enum(self, given: Any) -> Values:
        if not isinstance(given, list):
            raise Unsupported(f"must be a list, got {given!r}")
        strings = {value for value in given if isinstance(value, str)}
        rest = [self.values(self.const(_same_text(value))) for value in given if not isinstance(value, str)]
        finite = set().union(*(n.finite or () for v in rest for n in v.numbers))
        found = self.union([*(_replaced(v, {"numbers": ()}) for v in rest)])
        return _replaced(
            found,
            {
                "strings": (StringSet(finite=frozenset(strings)),) if strings else (),
                "numbers": (NumberSet(finite=frozenset(finite)),) if finite else (),
            },
        )

    def _list(self, node: dict[str, Any], keyword: str) -> list[Formula]:
        given = self.take(node, keyword)
        if not isinstance(given, list) or not given:
            raise Unsupported(f"must be a list of schemas, got {str(given)[:40]}")
        return [self.sub(schema, keyword, i) for i, schema in enumerate(given)]

    def _any_of(self, known: Values, options: list[Formula], node: dict[str, Any]) -> Values:
        found = [self.narrowed(known, option) for option in dict.fromkeys(options)]
        if len(found) in (2, 3, 4) and any(k.startswith("unevaluated") for k in node):
            both = found[0]
            for other in found[1:]:
                both = self.intersection(both, other)
            pairs = [self.intersection(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
            found = [both, *pairs, *found]
        return self.union(found)

    def _one_of(self, known: Values, options: list[Formula]) -> Values:
        """Exactly one: each option without those it shares values with."""
        mine = [self.narrowed(known, option) for option in options]
        found = []
        for i, left in enumerate(mine):
            for j, other in enumerate(mine):
                if j != i:
                    left = self.difference(left, other)
            found.append(left)
        return self.union(found)

    def _condition(self, known: Values, node: dict[str, Any]) -> Values:
        condition = self.sub(self.take(node, "if"), "if")
        parts = [self.sub(self.take(node, k), k) if k in node else self.true for k in ("then", "else")]
        if parts[0] is parts[1] is self.true and not any(k.startswith("unevaluated") for k in node):
            return known
        yes = self.narrowed(self.narrowed(known, condition), parts[0])
        return self.union([yes, self.narrowed(self.difference(known, self.values(condition)), parts[1])])

    def _property_names(self, node: dict[str, Any]) -> Values:
        return self._with(objects=tuple(kw.property_names(self, self.sub(self.take(node, "propertyNames")))))

    def _dependencies(self, node: dict[str, Any], keyword: str) -> Values:
        """For each: the name is absent, or what depends on it holds."""
        found = self.all
        for name, given in kw.schemas(self.take(node, keyword)).items():
            absent = self._with(objects=(_member(self, name, self.false, required=False),))
            if isinstance(given, list) or keyword == "dependentRequired":
                needed = [name, *kw.strings(given)]
                names = tuple((n, self.true, False) for n in dict.fromkeys(needed))
                present = Values(objects=(ObjectShape(names, self.any_object.sections, frozenset(needed)),))
            else:
                there = Values(objects=(_member(self, name, self.true, required=True),))
                present = self.intersection(there, self.values(self.sub(given, keyword, name)))
            found = self.intersection(found, self.union([absent, present]))
        return found

    def _unevaluated(self, node: dict[str, Any], keyword: str, values: Values) -> Values:
        """For the members and items that no keyword has looked at."""
        formula = self.sub(self.take(node, keyword), keyword)

        contains = self.false
        if keyword == "unevaluatedItems" and "contains" in node:  # it looks at the items that it finds
            contains = self.sub(node["contains"], "contains")
            formula = self.opposite(self.both(self.opposite(formula), self.opposite(contains)))

        def narrowed(known: Formula, seen: bool) -> Formula:
            return known if seen else self.both(known, formula)

        if keyword == "unevaluatedItems":
            arrays = []
            for a in values.arrays:
                counted = {count.formula for count in a.counts}
                if any(not seen for _, seen in (*a.prefix, a.rest)) and not counted <= {contains}:
                    raise Unsupported("together with 'contains' elsewhere it is not supported")
                prefix = tuple((narrowed(*item), True) for item in a.prefix)
                arrays.append(ArrayShape(prefix, (narrowed(*a.rest), True), a.low, a.high, a.unique, a.counts))
            return _replaced(values, {"arrays": tuple(arrays)})
        objects = []
        for o in values.objects:
            names = tuple((name, narrowed(known, seen), True) for name, known, seen in o.names)
            sections = tuple(Section(s.keys, narrowed(s.formula, s.seen), True) for s in o.sections)
            kept = tuple(s for s in sections if s.formula is not self.false)
            objects.append(ObjectShape(names, kept, o.required, o.low, o.high, o.some, o.order))
        return _replaced(values, {"objects": tuple(objects)})


def _replaced(values: Values, parts: dict[str, Any]) -> Values:
    known = {name: getattr(values, name) for name in ("words", "numbers", "strings", "arrays", "objects")}
    return Values(**{**known, **parts})


def _member(algebra: Algebra, name: str, formula: Formula, *, required: bool) -> ObjectShape:
    wanted = frozenset([name]) if required else frozenset[str]()
    return ObjectShape(((name, formula, False),), algebra.any_object.sections, wanted)


def _unsupported(problem: str) -> NoReturn:
    raise Unsupported(problem)
