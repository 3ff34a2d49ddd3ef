"""The keywords that say something about one JSON type: each kind of them becomes one shape."""

from __future__ import annotations

from typing import Any, Protocol

from stemma.backend.grammar.json_formats import NO_LIMIT, NUMERIC
from stemma.backend.grammar.json_numbers import NumberSet, check_multiple, exact
from stemma.backend.grammar.json_strings import ANY_STRING, StringSet, format_set, pattern_set
from stemma.backend.grammar.json_values import Algebra, ArrayShape, Count, Formula, ObjectShape, Section, Unsupported

MAX_COUNT = 10**9
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


class Reader(Protocol):
    """What the keywords need of the schema reader."""

    @property
    def algebra(self) -> Algebra: ...

    def sub(self, schema: Any, *path: str | int) -> Formula:
        """The formula of a schema below the present one."""
        ...

    def take(self, node: dict[str, Any], keyword: str) -> Any:
        """The keyword's value, ticked off; None where it is absent (or was dropped)."""
        ...


def count(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Unsupported(f"must be a whole number from 0 on, got {value!r}")
    return min(value, MAX_COUNT)


def number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unsupported(f"must be a number, got {value!r}")
    return value


def strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise Unsupported(f"must be a list of strings, got {value!r}")
    return value


def schemas(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unsupported(f"must be an object of schemas, got {value!r}")
    return value


def string_keyword(keyword: str, value: Any, algebra: Algebra) -> StringSet:
    if keyword == "minLength":
        return StringSet(low=count(value))
    if keyword == "maxLength":
        return StringSet(high=count(value))
    if not isinstance(value, str):
        raise Unsupported(f"must be a string, got {value!r}")
    if keyword == "pattern":
        return pattern_set(value, algebra.deadline)
    if value in NUMERIC or value in NO_LIMIT:
        return ANY_STRING
    return format_set(value, algebra.deadline)


def number_keyword(keyword: str, value: Any, node: dict[str, Any]) -> NumberSet:
    if keyword == "format":
        low, high = NUMERIC.get(value, (None, None)) if isinstance(value, str) else (None, None)
        return NumberSet() if low is None or high is None else NumberSet(low=exact(low), high=exact(high))
    if isinstance(value, bool) and keyword.startswith("exclusive"):  # draft 4: says how to read minimum, maximum
        return NumberSet()
    bound = exact(number(value))
    if keyword == "minimum":
        return NumberSet(low=bound, low_open=node.get("exclusiveMinimum") is True)
    if keyword == "exclusiveMinimum":
        return NumberSet(low=bound, low_open=True)
    if keyword == "maximum":
        return NumberSet(high=bound, high_open=node.get("exclusiveMaximum") is True)
    if keyword == "exclusiveMaximum":
        return NumberSet(high=bound, high_open=True)
    if bound <= 0:
        raise Unsupported(f"must be above 0, got {value!r}")
    check_multiple(bound)
    return NumberSet(multiples=frozenset([bound]))


STRING_KEYWORDS = ("minLength", "maxLength", "pattern", "format")
NUMBER_KEYWORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format")


def array_shape(reader: Reader, node: dict[str, Any]) -> ArrayShape:
    algebra = reader.algebra
    prefix, rest = [], (algebra.true, False)
    items, tuple_items = reader.take(node, "items"), reader.take(node, "prefixItems")
    additional = reader.take(node, "additionalItems")
    if isinstance(items, list):  # up to draft 2019-09
        prefix = [(reader.sub(item, "items", i), True) for i, item in enumerate(items)]
        if additional is not None:
            rest = (reader.sub(additional, "additionalItems"), True)
    else:
        if tuple_items is not None:
            if not isinstance(tuple_items, list):
                raise Unsupported(f"prefixItems must be a list, got {tuple_items!r}")
            prefix = [(reader.sub(item, "prefixItems", i), True) for i, item in enumerate(tuple_items)]
        if items is not None:
            rest = (reader.sub(items, "items"), True)
    low, high = reader.take(node, "minItems"), reader.take(node, "maxItems")
    counts = frozenset[Count]()
    contains = reader.take(node, "contains")
    least, most = reader.take(node, "minContains"), reader.take(node, "maxContains")
    if contains is not None:
        least, most = 1 if least is None else count(least), None if most is None else count(most)
        if least or most is not None:
            counts = frozenset([Count(reader.sub(contains, "contains"), least, most)])
    return ArrayShape(
        tuple(prefix),
        rest,
        0 if low is None else count(low),
        None if high is None else count(high),
        reader.take(node, "uniqueItems") is True,
        counts,
    )


def object_shape(reader: Reader, node: dict[str, Any]) -> ObjectShape:
    """`properties`, `patternProperties` and `additionalProperties` share out the keys; the rest counts them."""
    algebra = reader.algebra
    declared = schemas(_or_empty(reader.take(node, "properties")))
    patterns = schemas(_or_empty(reader.take(node, "patternProperties")))
    additional = reader.take(node, "additionalProperties")
    by_pattern = [
        (pattern_set(pattern, algebra.deadline), reader.sub(schema, "patternProperties", pattern))
        for pattern, schema in patterns.items()
    ]
    rest = algebra.true if additional is None else reader.sub(additional, "additionalProperties")
    sections = _sections(algebra, by_pattern, Section(ANY_STRING, rest, additional is not None))
    names = []
    for name, schema in declared.items():
        formulas = [formula for keys, formula in by_pattern if keys.accepts(name, algebra.deadline)]
        names.append((name, algebra.both(reader.sub(schema, "properties", name), *formulas), True))
    shape = ObjectShape(tuple(names), sections)
    required = reader.take(node, "required")
    if not isinstance(required, bool):  # a boolean is of draft 3, where it means nothing here
        wanted = strings(required or [])
        missing = [name for name in dict.fromkeys(wanted) if name not in declared]
        found = [(name, shape.look_up(name, algebra.deadline) or (algebra.false, False)) for name in missing]
        names += [(name, formula, seen) for name, (formula, seen) in found]
    else:
        wanted = []
    low, high = reader.take(node, "minProperties"), reader.take(node, "maxProperties")
    return ObjectShape(
        tuple(names),
        sections,
        frozenset(wanted),
        0 if low is None else count(low),
        None if high is None else count(high),
        order=tuple(dict.fromkeys(wanted)),
    )


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


def _sections(algebra: Algebra, patterns: list[tuple[StringSet, Formula]], rest: Section) -> tuple[Section, ...]:
    """The keys told apart by which patterns they match; in most schemas by none or one."""
    found = [rest] if rest.formula is not algebra.false else []
    untouched = rest.formula is algebra.false  # then a key must match some pattern
    sections: list[tuple[StringSet, Formula | None]] = [(ANY_STRING, None)]
    for keys, formula in patterns:
        after: list[tuple[StringSet, Formula | None]] = []
        for known, before in sections:
            inside = keys if known == ANY_STRING else known.both(keys, algebra.deadline)
            if known == ANY_STRING or not inside.is_empty(algebra.deadline):
                after.append((inside, formula if before is None else algebra.both(before, formula)))
            if untouched and before is None and len(patterns) == 1:
                continue
            for other in keys.without():
                outside = other if known == ANY_STRING else known.both(other, algebra.deadline)
                if not outside.is_empty(algebra.deadline):
                    after.append((outside, before))
        sections = after
        if len(sections) > 64:
            raise Unsupported("patternProperties overlap in too many ways")
    if patterns:
        found = [
            Section(keys, rest.formula if formula is None else formula, formula is not None or rest.seen)
            for keys, formula in sections
            if not (formula is None and rest.formula is algebra.false)
        ]
    return tuple(section for section in found if section.formula is not algebra.false)


def property_names(algebra: Algebra, names: Formula) -> list[ObjectShape]:
    """Objects whose keys are strings of the formula."""
    found = list(algebra.values(names).strings)
    if not found:
        return [ObjectShape((), (), high=0)]
    if len(found) == 1:
        return [ObjectShape((), (Section(found[0], algebra.true),))]
    sections = [Section(keys, algebra.true) for keys in algebra.disjoint(found)]
    return [ObjectShape((), tuple(sections))]
