"""From sets of values to the IR of their JSON texts: a rule for each formula, a graph for each array and object."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from stemma.backend.grammar import ir
from stemma.backend.grammar.chardfa import always_extends
from stemma.backend.grammar.json_layout import Layout
from stemma.backend.grammar.json_numbers import NumberSet, number_texts
from stemma.backend.grammar.json_strings import ANY_STRING, StringSet
from stemma.backend.grammar.json_text import FREE, QUOTE, STRICT, quoted, spellings, strict_name
from stemma.backend.grammar.json_values import Algebra, ArrayShape, Formula, ObjectShape, Section, Unsupported, Values
from stemma.backend.grammar.limits import MAX_SIZE

INLINE = 24  # nodes up to this size are written out where they are used
MAX_GRAPH = 20_000  # states of one array or object
MAX_UNIQUE = 10  # different values of the items of an array with uniqueItems


def _word(text: bytes) -> ir.Node:
    return ir.words([text])


class _Graph:
    """States by any key; the first one asked for is the start."""

    def __init__(self) -> None:
        self._ids: dict[object, int] = {}
        self._edges: list[tuple[int, ir.Node, int]] = []

    def add(self, source: object, node: ir.Node, target: object) -> None:
        if node != ir.NOTHING:
            self._edges.append((self.state(source), node, self.state(target)))

    def state(self, key: object) -> int:
        found = self._ids.setdefault(key, len(self._ids))
        if found > MAX_GRAPH:
            raise Unsupported(f"its counts need more than {MAX_GRAPH} states")
        return found

    def known(self, key: object) -> bool:
        return key in self._ids

    def node(self, final: object) -> ir.Node:
        """Only what lies on a way from the start to `final`."""
        self.state(final)
        sources: list[list[int]] = [[] for _ in self._ids]
        for source, _, target in self._edges:
            sources[target].append(source)
        live, todo = {self.state(final)}, [self.state(final)]
        while todo:
            new = {source for source in sources[todo.pop()] if source not in live}
            live |= new
            todo += new
        if 0 not in live:
            return ir.NOTHING
        number = {state: i for i, state in enumerate(sorted(live))}
        edges = [(number[a], node, number[b]) for a, node, b in self._edges if a in number and b in number]
        return ir.graph(len(number), edges, [number[self.state(final)]])


class Lowerer:
    """`root`, and the `rules` that it calls."""

    def __init__(self, algebra: Algebra, root: Formula, layout: Layout) -> None:
        self._algebra = algebra
        self._layout = layout
        self._deadline = algebra.deadline
        self._rule_of: dict[Formula, int] = {}
        self._todo: list[Formula] = []
        self._counted_rules: dict[tuple[StringSet, str], int] = {}
        self._scalars: dict[Values, ir.Node] = {}
        self._inlined: dict[Formula, ir.Node] = {}
        self.rules: list[ir.Node] = list(layout.rules)
        self.root = self._value(root)
        while self._todo:
            self._deadline.check()
            formula = self._todo.pop()
            self.rules[self._rule_of[formula]] = self._body(algebra.values(formula))
            if sum(rule.size for rule in self.rules[-8:]) > MAX_SIZE:
                break
        size = self.root.size + sum(rule.size for rule in self.rules)
        if size > MAX_SIZE:
            raise Unsupported(f"its texts need {size} characters when repeats are written out, the limit is {MAX_SIZE}")

    def _value(self, formula: Formula) -> ir.Node:
        """The node of a value of the formula, which is not empty."""
        if formula in self._rule_of:
            return ir.Call(self._rule_of[formula])
        if formula in self._inlined:
            return self._inlined[formula]
        values = self._algebra.values(formula)
        if not values.arrays and not values.objects:
            if values not in self._scalars:
                node = self._body(values)
                if node.size > INLINE or isinstance(node, ir.Graph):
                    self.rules.append(node)
                    node = ir.Call(len(self.rules) - 1)
                self._scalars[values] = node
            self._inlined[formula] = self._scalars[values]
            return self._inlined[formula]
        self._rule_of[formula] = len(self.rules)
        self.rules.append(ir.NOTHING)
        self._todo.append(formula)
        return ir.Call(self._rule_of[formula])

    def _body(self, values: Values) -> ir.Node:
        options = [_word(word.encode()) for word in sorted(values.words)]
        options += [numbers.node(self._deadline) for numbers in values.numbers]
        options += [self._string(strings) for strings in values.strings]
        options += [self._array(shape) for shape in values.arrays]
        options += [self._object(shape) for shape in values.objects]
        return ir.alt(options)

    def _string(self, strings: StringSet, form: str = FREE) -> ir.Node:
        """A JSON string, quotes and all."""
        if strings.finite is not None:
            return ir.words(b'"%s"' % spelling for text in strings.finite for spelling in spellings(text))
        texts = self._texts_of(strings, form)
        return ir.NOTHING if texts == ir.NOTHING else ir.seq([QUOTE, texts, QUOTE])

    def _texts_of(self, strings: StringSet, form: str) -> ir.Node:
        texts, high = strings.texts(self._deadline)
        if texts == ir.NOTHING or high is None:
            return quoted(texts, form)
        key = (strings, form)
        if key not in self._counted_rules:
            self._counted_rules[key] = len(self.rules)
            node = quoted(texts, form)
            self.rules.append(ir.Counted(node, high, node.size, node.nullable))
        return ir.Call(self._counted_rules[key])

    # -- objects

    def _object(self, shape: ObjectShape, hits: tuple[Section, ...] = ()) -> ir.Node:
        """`hits`: one member of these, whose keys are not declared, must be there."""
        empty = self._algebra.is_empty
        names = {name: formula for name, formula, _ in shape.names}
        for name in sorted(shape.required - set(names)):
            found = shape.look_up(name, self._deadline)
            names[name] = found[0] if found else self._algebra.false
        if any(empty(names[name]) for name in shape.required):
            return ir.NOTHING
        sections = [section for section in shape.sections if not empty(section.formula)]
        for keys, formula in sorted(shape.some, key=lambda some: (sorted(some[0].finite or ()), some[1].number)):
            return self._any_object(self._settled(shape, names, sections, keys, formula, hits))
        taken = list(names)
        wanted = [name for name in names if not empty(names[name])]
        frees = [node for section in sections if (node := self._free(section, taken)) != ir.NOTHING]
        needed = [node for section in hits if (node := self._free(section, taken)) != ir.NOTHING]
        if hits and not needed:
            return ir.NOTHING
        orders = [wanted]
        first = [name for name in shape.order if name in names]
        if first != [name for name in wanted if name in first]:  # `required` has an order of its own
            orders.append([*first, *(name for name in wanted if name not in first)])
        members = [[(name, names[name], name in shape.required) for name in order] for order in orders]
        return ir.alt(self._members(named, frees, needed, shape) for named in members)

    def _any_object(self, shapes: list[tuple[ObjectShape, tuple[Section, ...]]]) -> ir.Node:
        """Those of the shapes that can be written; refused if none can."""
        found, refusals = [], []
        for shape, hits in shapes:
            try:
                found.append(self._object(shape, hits))
            except Unsupported as error:
                refusals.append(error)
        if refusals and not found:
            raise refusals[0]
        return ir.alt(found)

    def _settled(
        self,
        shape: ObjectShape,
        names: dict[str, Formula],
        sections: list[Section],
        keys: StringSet,
        formula: Formula,
        hits: tuple[Section, ...],
    ) -> list[tuple[ObjectShape, tuple[Section, ...]]]:
        """The ways to have a member with such a key and value: as a declared, required name, or in some section."""
        both, deadline = self._algebra.both, self._deadline
        shape = replace(
            shape, some=shape.some - {(keys, formula)}, names=tuple((n, f, False) for n, f in names.items())
        )
        known = [name for name in names if keys.accepts(name, deadline)]
        options = [_with_name(shape, name, both(names[name], formula)) for name in known]
        free: list[Section] = []
        for section in sections:
            common = self._algebra.except_names(section.keys.both(keys, deadline), names)
            if common.finite is not None:
                found = both(section.formula, formula)
                options.extend(_with_name(shape, name, found) for name in sorted(common.finite))
            elif not common.is_empty(deadline):
                free.append(Section(common, both(section.formula, formula)))
        free = [section for section in free if not self._algebra.is_empty(section.formula)]
        found = [(option, hits) for option in options]
        if free and not hits:
            found.append((shape, tuple(free)))
        if not found and free:
            raise Unsupported("several conditions that some key must meet are not supported together")
        return found

    def _free(self, section: Section, names: list[str]) -> ir.Node:
        """A member of the section, whose key is none of the names."""
        value = ir.seq([self._layout.colon, self._value(section.formula)])
        taken = [n for n in names if section.keys == ANY_STRING or section.keys.accepts(n, self._deadline)]
        if section.keys.finite is not None:
            kept = replace(section.keys, finite=section.keys.finite - set(taken))
            return ir.seq([self._string(kept), value])
        keys = section.keys
        texts, high = keys.texts(self._deadline)
        if taken and (high is not None or not always_extends(texts, self._deadline)):
            keys, taken = self._algebra.except_names(keys, taken), []
        key = self._string(keys, STRICT)
        if key == ir.NOTHING:
            return ir.NOTHING
        if taken:
            names_node = ir.seq([QUOTE, ir.alt(strict_name(name) for name in taken), QUOTE])
            key = ir.Except(key, names_node, key.size + names_node.size)
        return ir.seq([key, value])

    def _members(
        self, named: list[tuple[str, Formula, bool]], frees: list[ir.Node], needed: list[ir.Node], shape: ObjectShape
    ) -> ir.Node:
        """The declared names in their order. Other keys come behind the last required one, between and behind the
        optional ones: where a name is required next, it stays the only choice. One of `needed`, if there are any, is
        the last of them: a key that is written again replaces its first value.

        States: (the next name, members so far, whether a free one is among them, whether names were skipped here,
        whether one of `needed` is still to come).
        """
        low, high, last = shape.low, shape.high, len(named)
        cap = max(low, 1) if high is None else max(high, 1)
        once = bool(frees) and low > max(1, len(shape.required))  # free keys may repeat, so only the first one counts
        if once and needed:
            raise Unsupported("minProperties above 1 together with a condition that some key must meet")
        if once and (high is not None or low > last + 1):
            raise Unsupported("minProperties above 1 is supported only where at most one key needs to be a free one")
        open_from = max([i + 1 for i, (_, _, required) in enumerate(named) if required], default=0)
        graph = _Graph()
        free = ir.alt(frees)
        if frees and last > open_from and free.size > INLINE:
            self.rules.append(free)
            free = ir.Call(len(self.rules) - 1)
        hit = ir.alt(needed)
        if hit.size > INLINE:
            self.rules.append(hit)
            hit = ir.Call(len(self.rules) - 1)
        start = (0, 0, False, False, bool(needed))
        graph.add("open", _word(b"{"), start)
        todo: list[tuple[int, int, bool, bool, bool]] = [start]
        seen = set(todo)

        def go(source: object, node: ir.Node, target: tuple[int, int, bool, bool, bool]) -> None:
            graph.add(source, node, target)
            if target not in seen:
                seen.add(target)
                todo.append(target)

        while todo:
            state = todo.pop()
            i, count, freed, skipped, waits = state
            comma = self._layout.comma if count else self._layout.inside
            after = min(count + 1, cap)
            allowed = high is None or count < high
            if waits and allowed and not skipped and i >= open_from:
                target = (i, after, once, False, False)
                graph.add(state, comma, ("hit", target))
                if not graph.known(("hit", target, "done")):
                    go(("hit", target), hit, target)
                    graph.state(("hit", target, "done"))
            if frees and allowed and not skipped and i >= open_from and waits == bool(needed):
                target = (i, max(count, 1) if once and freed else after, once, False, waits)
                graph.add(state, comma, ("free", target))
                if not graph.known(("free", target, "done")):
                    go(("free", target), free, target)
                    graph.state(("free", target, "done"))
            if i == last:
                if count >= low and not waits:
                    graph.add(state, self._closing(b"}"), "close")
                continue
            name, formula, required = named[i]
            if not required:
                go(state, ir.EMPTY, (i + 1, count, freed, True, waits))
            if allowed:
                target = (i + 1, after, freed, False, waits)
                graph.add(state, comma, ("member", target))
                if not graph.known(("member", target, "done")):
                    key = self._layout.key(b'"%s"' % s for s in spellings(name))
                    go(("member", target), ir.seq([key, self._value(formula)]), target)
                    graph.state(("member", target, "done"))
        return graph.node("close")

    def _closing(self, bracket: bytes) -> ir.Node:
        return ir.seq([self._layout.inside, _word(bracket)])

    # -- arrays

    def _item(self, before: int, item: ir.Node) -> ir.Node:
        """An item with what parts it from those before it, or from the bracket."""
        return ir.seq([self._layout.comma if before else self._layout.inside, item])

    def _array(self, shape: ArrayShape) -> ir.Node:
        empty = self._algebra.is_empty
        high = shape.high
        for i, (formula, _) in enumerate(shape.prefix):
            if empty(formula):
                high = i if high is None else min(i, high)
                break
        else:
            if empty(shape.rest[0]):
                high = len(shape.prefix) if high is None else min(len(shape.prefix), high)
        if high is not None and high < shape.low:
            return ir.NOTHING
        shape = replace(shape, high=high)
        if shape.unique and high is not None and high <= 1:
            shape = replace(shape, unique=False)
        if shape.unique:
            return self._unique(shape)
        if shape.counts:
            return self._counted(shape)
        return self._plain(shape)

    def _plain(self, shape: ArrayShape) -> ir.Node:
        low, high = shape.low, shape.high
        graph = _Graph()
        graph.add("open", _word(b"["), 0)
        size = len(shape.prefix) if high is None else min(len(shape.prefix), high)
        for i in range(size):
            if i >= low:
                graph.add(i, self._closing(b"]"), "close")
            item = self._value(shape.prefix[i][0])
            graph.add(i, self._item(i, item), i + 1)
        if high is not None and high <= size:
            graph.add(size, self._closing(b"]"), "close")
            return graph.node("close")
        item = self._value(shape.rest[0])
        more = self._item(1, item)
        if size:
            rest = ir.repeat(more, max(low - size, 0), None if high is None else high - size)
        else:
            rest = ir.seq([self._item(0, item), ir.repeat(more, max(low - 1, 0), None if high is None else high - 1)])
            if not low:
                graph.add(0, self._closing(b"]"), "close")
        graph.add(size, ir.seq([rest, self._closing(b"]")]), "close")
        return graph.node("close")

    def _counted(self, shape: ArrayShape) -> ir.Node:
        """States (items so far, of each count the items so far), each no further than it matters."""
        counts = sorted(shape.counts, key=lambda c: c.formula.number)
        if len(counts) > 3:
            raise Unsupported("more than three conditions on the number of items are not supported")
        last = max([len(shape.prefix), shape.low, *(c.start for c in counts)])
        last = max(last, shape.high) if shape.high is not None else max(last, 1)
        graph = _Graph()
        start: tuple[int, ...] = (0, *([0] * len(counts)))
        graph.add("open", _word(b"["), start)
        todo: list[tuple[int, ...]] = [start]
        seen = set(todo)
        while todo:
            self._deadline.check()
            at = todo.pop()
            if at[0] >= shape.low and all(got >= c.low for got, c in zip(at[1:], counts, strict=True)):
                graph.add(at, self._closing(b"]"), "close")
            if shape.high is not None and at[0] >= shape.high:
                continue
            for choice in product((False, True), repeat=len(counts)):
                formula, after = shape.at(at[0])[0], [min(at[0] + 1, last)]
                for count, got, taken in zip(counts, at[1:], choice, strict=True):
                    if taken and at[0] < count.start:
                        formula = self._algebra.false
                    elif taken:
                        formula = self._algebra.both(formula, count.formula)
                        got += 1
                        if count.high is not None and got > count.high:
                            formula = self._algebra.false
                        got = got if count.high is not None else min(got, count.low)
                    elif count.high is not None and at[0] >= count.start:
                        formula = self._algebra.both(formula, self._algebra.opposite(count.formula))
                    after.append(got)
                if self._algebra.is_empty(formula):
                    continue
                item = self._value(formula)
                target = tuple(after)
                graph.add(at, self._item(at[0], item), target)
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return graph.node("close")

    def _unique(self, shape: ArrayShape) -> ir.Node:
        """States are the sets of values used so far."""
        if shape.counts:
            raise Unsupported("uniqueItems together with contains is not supported")
        fields = {formula for formula, _ in shape.prefix} | (
            {shape.rest[0]} if shape.high is None or shape.high > len(shape.prefix) else set()
        )
        allowed = {formula: self._texts(formula) for formula in fields}
        texts = sorted(set().union(*allowed.values()))
        if len(texts) > MAX_UNIQUE:
            raise Unsupported(f"uniqueItems is supported for items with up to {MAX_UNIQUE} values, not {len(texts)}")
        graph = _Graph()
        start: frozenset[str] = frozenset()
        graph.add("open", _word(b"["), start)
        todo, seen = [start], {start}
        while todo:
            used = todo.pop()
            if len(used) >= shape.low:
                graph.add(used, self._closing(b"]"), "close")
            if shape.high is not None and len(used) >= shape.high:
                continue
            for text in sorted(allowed[shape.at(len(used))[0]] - used):
                target = used | {text}
                item = ir.words(_spelled(text))
                graph.add(used, self._item(len(used), item), target)
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return graph.node("close")

    def _texts(self, formula: Formula) -> set[str]:
        """The JSON texts of the values of a formula that has few; strings with a leading quote only."""
        values, found = self._algebra.values(formula), set[str]()
        found.update(values.words)
        if values.arrays or values.objects:
            raise Unsupported("uniqueItems is supported only for items that are single values from a short list")
        for numbers in values.numbers:
            found.update(_few_numbers(numbers))
        for strings in values.strings:
            if strings.finite is None:
                raise Unsupported("uniqueItems is supported only for items that are single values from a short list")
            found.update('"' + text for text in strings.finite)
        return found


def _with_name(shape: ObjectShape, name: str, formula: Formula) -> ObjectShape:
    names = [(n, formula if n == name else f, seen) for n, f, seen in shape.names]
    if all(n != name for n, _, _ in names):
        names.append((name, formula, False))
    return replace(shape, names=tuple(names), required=shape.required | {name})


def _few_numbers(numbers: NumberSet) -> set[str]:
    if numbers.finite is not None:
        return {number_texts(value)[0] for value in {_fraction(text) for text in numbers.finite}}
    if (
        numbers.whole
        and numbers.low is not None
        and numbers.high is not None
        and numbers.high - numbers.low <= MAX_UNIQUE
    ):
        first, last = -(-numbers.low // 1), numbers.high // 1
        return {str(i) for i in range(first, last + 1) if numbers.accepts(_fraction(str(i)))}
    raise Unsupported("uniqueItems is supported only for items that are single values from a short list")


def _fraction(text: str):
    from fractions import Fraction

    return Fraction(text)


def _spelled(text: str) -> list[bytes]:
    return [b'"%s"' % s for s in spellings(text[1:])] if text.startswith('"') else [text.encode()]
