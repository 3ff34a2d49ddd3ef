"""Schemas as sets of JSON values that can be intersected and complemented.

A set of values is a union of shapes of each JSON type (`Values`). What stands in an array or object is a formula, not a
set. It stands for "values of this schema", "of all of these" or "of none of that", and is worked out once, when it is
needed.
So a recursive schema is finite, and `allOf`, `oneOf`, `not` and conditions are plain set operations on shapes.
Shapes also remember which of their members a keyword looked at (`seen`), which is what `unevaluated…` asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from stemma.backend.grammar.chardfa import words_language
from stemma.backend.grammar.json_numbers import ANY_NUMBER, NumberSet
from stemma.backend.grammar.json_strings import ANY_STRING, StringSet
from stemma.backend.grammar.limits import Deadline

MAX_SHAPES = 256


class Unsupported(Exception):
    """The sets asked for cannot be worked out; the message says why."""


class Unknown(Exception):
    """Whether the formula has values is asked for while its schema is being read."""


@dataclass(frozen=True, slots=True, eq=False)
class Formula:
    """`kind`: "true", "false", "schema" (args: its number), "const" (its JSON text), "and" (formulas), "not" (one).

    Made by `Algebra`, equal formulas are the same object.
    """

    kind: str
    args: tuple = ()
    number: int = field(default=0)


@dataclass(frozen=True, slots=True)
class Section:
    """Members with these keys; the sections of a shape are disjoint, and its names are in none of them."""

    keys: StringSet
    formula: Formula
    seen: bool = False


@dataclass(frozen=True, slots=True)
class ObjectShape:
    """`names`: (name, formula, seen) in order. `some`: for each there is a member with such a key and such a value.
    `order`: of the required names, as the schema lists them."""

    names: tuple[tuple[str, Formula, bool], ...]
    sections: tuple[Section, ...]
    required: frozenset[str] = frozenset()
    low: int = 0
    high: int | None = None
    some: frozenset[tuple[StringSet, Formula]] = frozenset()
    order: tuple[str, ...] = ()

    def look_up(self, name: str, deadline: Deadline) -> tuple[Formula, bool] | None:
        for known, formula, seen in self.names:
            if known == name:
                return formula, seen
        for section in self.sections:
            if section.keys == ANY_STRING or section.keys.accepts(name, deadline):
                return section.formula, section.seen
        return None


@dataclass(frozen=True, slots=True)
class Count:
    """`low` to `high` of the items from `start` on are of `formula`."""

    formula: Formula
    low: int
    high: int | None
    start: int = 0


@dataclass(frozen=True, slots=True)
class ArrayShape:
    prefix: tuple[tuple[Formula, bool], ...]
    rest: tuple[Formula, bool]
    low: int = 0
    high: int | None = None
    unique: bool = False
    counts: frozenset[Count] = frozenset()

    def at(self, i: int) -> tuple[Formula, bool]:
        return self.prefix[i] if i < len(self.prefix) else self.rest


@dataclass(frozen=True, slots=True)
class Values:
    """`words`: which of null, true and false."""

    words: frozenset[str] = frozenset()
    numbers: tuple[NumberSet, ...] = ()
    strings: tuple[StringSet, ...] = ()
    arrays: tuple[ArrayShape, ...] = ()
    objects: tuple[ObjectShape, ...] = ()


WORDS = frozenset(("null", "true", "false"))
NO_VALUES = Values()


class Algebra:
    """Makes formulas and works on values. `schema_values` of a subclass gives the values of a schema by its number."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self._formulas: dict[tuple, Formula] = {}
        self.true, self.false = self._formula("true"), self._formula("false")
        self.any_array = ArrayShape((), (self.true, False))
        self.any_object = ObjectShape((), (Section(ANY_STRING, self.true),))
        self.all = Values(WORDS, (ANY_NUMBER,), (ANY_STRING,), (self.any_array,), (self.any_object,))
        self._values: dict[Formula, Values] = {}
        self._occupied: set[Formula] = set()
        self._vacant: set[Formula] = set()
        self._asked: list[Formula] = []
        self.asking = 0
        self.guessed = False  # some answer may be "there are values" where there are none
        self._assumed = 0  # how deep in `_asked` the outermost assumption of the current answer lies

    def schema_values(self, number: int) -> Values:
        raise NotImplementedError

    def const_values(self, text: str) -> Values:
        raise NotImplementedError

    # -- formulas

    def _formula(self, kind: str, *args: object) -> Formula:
        found = self._formulas.get((kind, *args))
        if found is None:
            self.deadline.check()
            found = self._formulas[kind, *args] = Formula(kind, args, len(self._formulas))
        return found

    def schema(self, number: int) -> Formula:
        return self._formula("schema", number)

    def const(self, text: str) -> Formula:
        return self._formula("const", text)

    def both(self, *formulas: Formula) -> Formula:
        parts: set[Formula] = set()
        for formula in formulas:
            parts.update(formula.args if formula.kind == "and" else [formula])
        parts.discard(self.true)
        if self.false in parts or any(p.kind == "not" and p.args[0] in parts for p in parts):
            return self.false
        if not parts:
            return self.true
        ordered = sorted(parts, key=lambda p: p.number)
        return ordered[0] if len(ordered) == 1 else self._formula("and", *ordered)

    def opposite(self, formula: Formula) -> Formula:
        if formula.kind == "true":
            return self.false
        if formula.kind == "false":
            return self.true
        return formula.args[0] if formula.kind == "not" else self._formula("not", formula)

    def values(self, formula: Formula) -> Values:
        found = self._values.get(formula)
        if found is None:
            found = self._values[formula] = self._work_out(formula)
        return found

    def _work_out(self, formula: Formula) -> Values:
        self.deadline.check()
        if formula.kind == "true":
            return self.all
        if formula.kind == "false":
            return NO_VALUES
        if formula.kind == "schema":
            return self.schema_values(formula.args[0])
        if formula.kind == "const":
            return self.const_values(formula.args[0])
        if formula.kind == "not":
            return self.without(self.values(formula.args[0]))
        found = self.all
        for part in sorted(formula.args, key=lambda part: part.kind == "not"):
            found = self.narrowed(found, part)
        return found

    def narrowed(self, values: Values, formula: Formula) -> Values:
        if formula.kind == "not" and values is not self.all:  # of all that it forbids, only what is left matters
            return self.difference(values, self.values(formula.args[0]))
        return self.intersection(values, self.values(formula))

    # -- set operations

    def union(self, all_values: Iterable[Values]) -> Values:
        given = list(all_values)
        return Values(
            frozenset().union(*(v.words for v in given)),
            _limited(n for v in given for n in v.numbers),
            _limited(s for v in given for s in v.strings),
            _limited(a for v in given for a in v.arrays),
            _limited(o for v in given for o in v.objects),
        )

    def intersection(self, a: Values, b: Values) -> Values:
        if a is self.all or b is self.all:
            return b if a is self.all else a
        deadline = self.deadline
        numbers = (x.both(y) for x in a.numbers for y in b.numbers)
        strings = (x if y == ANY_STRING else x.both(y, deadline) for x in a.strings for y in b.strings)
        arrays = (self._arrays(x, y) for x in a.arrays for y in b.arrays)
        objects = (self._objects(x, y) for x in a.objects for y in b.objects)
        return Values(
            a.words & b.words,
            _limited(n for n in numbers if n.finite is None or n.finite),
            _limited(s for s in strings if (s.finite is None or s.finite) and (s.high is None or s.low <= s.high)),
            _limited(x for x in arrays if x.high is None or x.low <= x.high),
            _limited(o for o in objects if o is not None),
        )

    def without(self, values: Values) -> Values:
        """All other values."""
        found = Values(WORDS - values.words, (ANY_NUMBER,), (ANY_STRING,), (self.any_array,), (self.any_object,))
        for number in values.numbers:
            found = self.intersection(found, replace(self.all, numbers=tuple(number.without())))
        for string in values.strings:
            found = self.intersection(found, replace(self.all, strings=tuple(string.without())))
        for array in values.arrays:
            found = self.intersection(found, replace(self.all, arrays=tuple(self._other_arrays(array))))
        for shape in values.objects:
            found = self.intersection(found, replace(self.all, objects=tuple(self._other_objects(shape))))
        return found

    def difference(self, a: Values, b: Values) -> Values:
        """What is in `a` but not in `b`: shape by shape, leaving alone what has nothing in common with `b`."""
        found = replace(a, words=a.words - b.words)
        for name in ("numbers", "strings", "arrays", "objects"):
            for taken in getattr(b, name):
                one = replace(NO_VALUES, **{name: (taken,)})
                kept, rest = [], None
                for shape in getattr(found, name):
                    mine = replace(NO_VALUES, **{name: (shape,)})
                    if not self.has_value(self.intersection(mine, one)):
                        kept.append(shape)
                        continue
                    rest = rest or self.without(one)
                    parts = getattr(self.intersection(mine, rest), name)
                    kept.extend(p for p in parts if self.has_value(replace(NO_VALUES, **{name: (p,)})))
                found = replace(found, **{name: _limited(kept)})
        return found

    def has_value(self, values: Values) -> bool:
        """False only if there is none."""
        self.asking += 1
        try:
            return self._has_value(values)
        except Unknown:
            self.guessed = True
            return True
        finally:
            self.asking -= 1

    def _arrays(self, a: ArrayShape, b: ArrayShape) -> ArrayShape:
        def join(x: tuple[Formula, bool], y: tuple[Formula, bool]) -> tuple[Formula, bool]:
            return self.both(x[0], y[0]), x[1] or y[1]

        size = max(len(a.prefix), len(b.prefix))
        highs = [h for h in (a.high, b.high) if h is not None]
        return ArrayShape(
            tuple(join(a.at(i), b.at(i)) for i in range(size)),
            join(a.rest, b.rest),
            max(a.low, b.low),
            min(highs) if highs else None,
            a.unique or b.unique,
            a.counts | b.counts,
        )

    def _objects(self, a: ObjectShape, b: ObjectShape) -> ObjectShape | None:
        if a == self.any_object or b == self.any_object:
            return b if a == self.any_object else a
        required = a.required | b.required
        names = []
        for name in _merged([n for n, _, _ in a.names], [n for n, _, _ in b.names]):
            found = [f for f in (a.look_up(name, self.deadline), b.look_up(name, self.deadline)) if f]
            formula = self.both(found[0][0], found[1][0]) if len(found) == 2 else self.false
            if formula is self.false and name in required:
                return None
            names.append((name, formula, any(seen for _, seen in found)))
        highs = [h for h in (a.high, b.high) if h is not None]
        low, high = max(a.low, b.low), min(highs) if highs else None
        order = tuple(_merged(list(a.order), list(b.order)))
        if high is not None and high < max(low, len(required)):
            return None
        return ObjectShape(tuple(names), self._sections(a, b), required, low, high, a.some | b.some, order)

    def _sections(self, a: ObjectShape, b: ObjectShape) -> tuple[Section, ...]:
        found = []
        for x in a.sections:
            for y in b.sections:
                formula = self.both(x.formula, y.formula)
                if formula is self.false:
                    continue
                keys = x.keys.both(y.keys, self.deadline)
                plain = x.keys == ANY_STRING or y.keys == ANY_STRING
                if plain or not keys.is_empty(self.deadline):
                    found.append(Section(keys, formula, x.seen or y.seen))
        return _limited(found)

    def _other_arrays(self, a: ArrayShape) -> Iterator[ArrayShape]:
        if a.unique:
            raise Unsupported("the opposite of uniqueItems is not supported")
        free = (self.true, False)
        for i, (formula, _) in enumerate(a.prefix):
            if formula is not self.true:
                yield ArrayShape(((free,) * i) + ((self.opposite(formula), False),), free, i + 1)
        if a.rest[0] is not self.true:
            count = Count(self.opposite(a.rest[0]), 1, None, len(a.prefix))
            yield replace(self.any_array, counts=frozenset([count]))
        if a.low:
            yield replace(self.any_array, high=a.low - 1)
        if a.high is not None:
            yield replace(self.any_array, low=a.high + 1)
        for count in a.counts:
            if count.low:
                yield replace(self.any_array, counts=frozenset([replace(count, low=0, high=count.low - 1)]))
            if count.high is not None:
                yield replace(self.any_array, counts=frozenset([replace(count, low=count.high + 1, high=None)]))

    def _other_objects(self, shape: ObjectShape) -> Iterator[ObjectShape]:
        free = self.any_object
        for name, formula, _ in shape.names:
            if formula is not self.true:
                other = self.opposite(formula)
                yield replace(free, names=((name, other, False),), required=frozenset([name]))
        for name in sorted(shape.required):
            yield replace(free, names=((name, self.false, False),))
        names = [name for name, _, _ in shape.names]
        for section in shape.sections:
            if section.formula is not self.true:
                keys = self.except_names(section.keys, names)
                yield replace(free, some=frozenset([(keys, self.opposite(section.formula))]))
        uncovered = [self.except_names(ANY_STRING, names)]
        for section in shape.sections:
            if section.keys == ANY_STRING:
                uncovered = []
                break
            others = section.keys.without()
            uncovered = [u.both(o, self.deadline) for u in uncovered for o in others]
        for keys in uncovered:
            if not keys.is_empty(self.deadline):
                yield replace(free, some=frozenset([(keys, self.true)]))
        if shape.low:
            yield replace(free, high=shape.low - 1)
        if shape.high is not None:
            yield replace(free, low=shape.high + 1)
        for keys, formula in shape.some:
            rest = [Section(other, self.true) for other in self.disjoint(keys.without())]
            inside = self.opposite(formula)
            yield replace(free, sections=(*([] if inside is self.false else [Section(keys, inside)]), *rest))

    def disjoint(self, sets: Iterable[StringSet]) -> list[StringSet]:
        """The same union, of sets without common strings."""
        found: list[StringSet] = []
        for keys in sets:
            parts = [keys]
            for before in found:
                parts = [part.both(other, self.deadline) for part in parts for other in before.without()]
            found.extend(part for part in parts if not part.is_empty(self.deadline))
            if len(found) > 64:
                raise Unsupported("its conditions on keys overlap in too many ways")
        return found

    def except_names(self, keys: StringSet, names: Iterable[str]) -> StringSet:
        taken = [name for name in names if keys == ANY_STRING or keys.accepts(name, self.deadline)]
        if not taken:
            return keys
        if keys.finite is not None:
            return replace(keys, finite=keys.finite - set(taken))
        return replace(keys, no=keys.no | {words_language(taken)})

    # -- emptiness: the least fixed point, so a schema that needs itself for ever has no values

    def is_empty(self, formula: Formula) -> bool:
        if formula in self._occupied or formula is self.true:
            return False
        if formula in self._vacant or formula is self.false:
            return True
        if formula in self._asked:
            self._assumed = min(self._assumed, self._asked.index(formula))
            return True
        depth, before = len(self._asked), self._assumed
        self._assumed = depth
        self._asked.append(formula)
        try:
            empty = not self._has_value(self.values(formula))
        finally:
            self._asked.pop()
        if not empty:
            self._occupied.add(formula)
        elif self._assumed >= depth:
            self._vacant.add(formula)
        self._assumed = min(before, self._assumed) if empty else before
        return empty

    def _has_value(self, values: Values) -> bool:
        return (
            bool(values.words)
            or any(not n.is_empty(self.deadline) for n in values.numbers)
            or any(not s.is_empty(self.deadline) for s in values.strings)
            or any(self._has_array(a) for a in values.arrays)
            or any(self._has_object(o) for o in values.objects)
        )

    def _has_array(self, a: ArrayShape) -> bool:
        needed = a.low
        for count in a.counts:
            needed = max(needed, count.start + count.low if count.low else 0)
            if count.high is not None and count.high < count.low:
                return False
        if a.high is not None and needed > a.high:
            return False
        if any(self.is_empty(formula) for formula, _ in a.prefix[:needed]):
            return False
        if needed > len(a.prefix) and self.is_empty(a.rest[0]):
            return False
        for count in a.counts:
            at = [f for f, _ in [*a.prefix[count.start : a.high], a.rest]]
            if count.low and all(self.is_empty(self.both(count.formula, f)) for f in at):
                return False
        return True

    def _has_object(self, o: ObjectShape) -> bool:
        for name in o.required:
            found = o.look_up(name, self.deadline)
            if found is None or self.is_empty(found[0]):
                return False
        if o.high is not None and max(o.low, len(o.required)) > o.high:
            return False
        if o.low > len(o.required) and not any(not self.is_empty(s.formula) for s in o.sections):
            possible = sum(1 for _, formula, _ in o.names if not self.is_empty(formula))
            if possible < o.low:
                return False
        return all(self._has_member(o, keys, formula) for keys, formula in o.some)

    def _has_member(self, o: ObjectShape, keys: StringSet, formula: Formula) -> bool:
        for name, known, _ in o.names:
            if keys.accepts(name, self.deadline) and not self.is_empty(self.both(known, formula)):
                return True
        for section in o.sections:
            both = self.both(section.formula, formula)
            if not section.keys.both(keys, self.deadline).is_empty(self.deadline) and not self.is_empty(both):
                return True
        return False


def _merged(first: list[str], second: list[str]) -> list[str]:
    """Both orders in one, where they agree: a new name of the second stands before the next one that both have."""
    known, waiting = set(first), list[str]()
    before: dict[str, list[str]] = {}
    for name in second:
        if name not in known:
            waiting.append(name)
        else:
            before[name], waiting = waiting, []
    return [new for name in first for new in (*before.get(name, ()), name)] + waiting


def _limited(given: Iterable) -> tuple:
    """Without repetitions."""
    found: dict[object, None] = {}
    for one in given:
        found[one] = None
        if len(found) > MAX_SHAPES:
            raise Unsupported(f"its alternatives combine to more than {MAX_SHAPES} cases")
    return tuple(found)
