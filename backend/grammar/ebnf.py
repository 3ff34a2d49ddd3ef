r"""The EBNF front end: a context-free grammar in GBNF or Lark notation becomes IR with rules.

The language is that of the grammar over characters: the text as a whole is derived from the start rule (`root` in GBNF,
`start` in Lark), whichever way; terminals are not matched ahead of the rules, greedily or by priority. With Lark's
`%ignore`, the ignored text may stand before, behind and between terminals.

The automaton enters calls without reading, and remembers where each comes back to. So rules are rewritten for it:

- Left recursion goes. The rules of a cycle become graphs: a state for each rule, "a text of it has been read"; `A: B x`
  is an edge from B to A that reads x, and alternatives without a rule of the cycle in front lead in from the start.
- Alternatives that begin with the same recursive rule share it: `t "+" e | t "-" e | t` becomes `t ("+" e | "-" e)?`.
  Otherwise an automaton that is n calls deep could have come there in 3^n ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from stemma.backend.grammar import ir
from stemma.backend.grammar.ebnf_loader import Rules, read_rules
from stemma.backend.grammar.json_schema import Lowered
from stemma.backend.grammar.limits import MAX_SIZE, Deadline
from stemma.lang.errors import ConstraintError

INLINE = 24  # rules up to this size, and without calls, are written out where they are used
MAX_EXPANSIONS = 64  # calls written out so that the alternatives of one rule can share their beginning

_Piece = tuple[int | None, ir.Node]  # a rule of the cycle, or none, and what follows it


def parse_ebnf(text: str, deadline: Deadline) -> Lowered:
    """The IR of a grammar. ConstraintError for what is malformed (with line, column and a caret), not supported, too
    large, or matches nothing."""
    try:
        return _Lowering(read_rules(text, deadline), deadline).lowered()
    except RecursionError:
        raise ConstraintError("ebnf: the grammar's groups and rules are nested too deeply", param="ebnf") from None


class _Lowering:
    def __init__(self, rules: Rules, deadline: Deadline) -> None:
        self._node = rules.node
        self._names = rules.names
        self._bodies = rules.bodies
        self._deadline = deadline
        self._nonempty: dict[int, int] = {}  # rule: the rule of its texts that are not empty
        self._heads_of: dict[int, frozenset[int]] = {}

    def lowered(self) -> Lowered:
        self._drop_endless()
        self._mark_nullable()
        for cycle in _cycles([_heads(body) for body in self._bodies], self._deadline):
            self._unwind(cycle)
        self._check_size(self._bodies)
        self._share_beginnings()
        self._inline()
        return self._gathered()

    def _check_size(self, bodies: Iterable[ir.Node]) -> None:
        self._deadline.check()
        size = sum(body.size for body in bodies)
        if size > MAX_SIZE:
            raise ConstraintError(
                f"ebnf: the grammar needs {size} characters when repeats are written out, the limit is {MAX_SIZE}",
                param="ebnf",
            )

    def _rewrite(self, call: Callable[[ir.Call], ir.Node]) -> None:
        self._bodies = [self._mapped(body, call) for body in self._bodies]
        self._node = self._mapped(self._node, call)

    def _mapped(self, node: ir.Node, call: Callable[[ir.Call], ir.Node]) -> ir.Node:
        self._deadline.check()
        return _mapped(node, call)

    # -- what rules match

    def _least(self, holds: Callable[[ir.Node, set[int]], bool]) -> set[int]:
        """The rules of which this holds, given that it holds of others: the least solution."""
        callers: list[set[int]] = [set() for _ in self._bodies]
        for rule, body in enumerate(self._bodies):
            for called in _calls(body):
                callers[called].add(rule)
        found: set[int] = set()
        todo = list(range(len(self._bodies)))
        while todo:
            self._deadline.check()
            rule = todo.pop()
            if rule not in found and holds(self._bodies[rule], found):
                found.add(rule)
                todo.extend(callers[rule] - found)
        return found

    def _drop_endless(self) -> None:
        """Rules that call themselves in every alternative have no texts."""
        ending = self._least(_ends)
        if not _ends(self._node, ending):
            start = max(_calls(self._node) - ending)
            raise ConstraintError(
                f"ebnf: the rule '{self._names[start]}' matches no text: all its alternatives lead back to themselves",
                param="ebnf",
            )
        self._rewrite(lambda call: call if call.rule in ending else ir.NOTHING)

    def _mark_nullable(self) -> None:
        nullable = self._least(_nullable)
        self._rewrite(lambda call: ir.Call(call.rule, nullable=call.rule in nullable))

    def _without_empty(self, node: ir.Node) -> ir.Node:
        """The texts of `node` that are not empty; `ir.without_empty` may give up."""
        self._deadline.check()
        if not node.nullable:
            return node
        if isinstance(node, ir.Call):
            if node.rule not in self._nonempty:
                self._nonempty[node.rule] = len(self._bodies)
                self._names.append(self._names[node.rule])
                self._bodies.append(ir.NOTHING)
                body = self._without_empty(self._bodies[node.rule])
                self._bodies[self._nonempty[node.rule]] = body
            rule = self._nonempty[node.rule]
            return ir.Call(rule)
        if isinstance(node, ir.Alt):
            return ir.alt([self._without_empty(option) for option in node.options])
        if isinstance(node, ir.Repeat):
            high = None if node.high is None else node.high - 1
            return ir.seq([self._without_empty(node.node), ir.repeat(node.node, 0, high)])
        if isinstance(node, ir.Seq):
            return ir.alt(
                [ir.seq([self._without_empty(part), *node.parts[i + 1 :]]) for i, part in enumerate(node.parts)]
            )
        return ir.without_empty(node)

    # -- left recursion

    def _unwind(self, cycle: list[int]) -> None:
        """Replace the rules of a cycle by graphs; the rules that they begin with have been dealt with."""
        state = {rule: i + 1 for i, rule in enumerate(cycle)}
        edges: list[tuple[int, ir.Node, int]] = []
        for rule in cycle:
            for head, rest in self._pieces(self._bodies[rule], set(cycle)):
                if rest != ir.EMPTY or head != rule:
                    edges.append((0 if head is None else state[head], rest, state[rule]))
        edges = list(dict.fromkeys(edges))
        begins = any(source == 0 for source, _, _ in edges)
        if len(cycle) * sum(node.size for _, node, _ in edges) > MAX_SIZE:
            names = " -> ".join(self._names[rule] for rule in [*cycle[:6], cycle[0]])
            raise ConstraintError(f"ebnf: the left recursion of {names} is too large to be unwound", param="ebnf")
        for rule in cycle:
            texts = ir.graph(len(cycle) + 1, edges, [state[rule]]) if begins else ir.NOTHING
            nullable = self._bodies[rule].nullable
            self._bodies[rule] = ir.alt([texts, ir.EMPTY]) if nullable else texts

    def _pieces(self, node: ir.Node, cycle: set[int]) -> list[_Piece]:
        """The texts of `node` that are not empty, by the rule of the cycle that they begin with."""
        self._deadline.check()
        if _heads(node).isdisjoint(cycle):
            texts = self._without_empty(node)
            return [] if texts == ir.NOTHING else [(None, texts)]
        if isinstance(node, ir.Call):
            return [(node.rule, ir.EMPTY)]
        if isinstance(node, ir.Alt):
            return [piece for option in node.options for piece in self._pieces(option, cycle)]
        if isinstance(node, ir.Repeat):
            high = None if node.high is None else node.high - 1
            more = ir.repeat(node.node, max(node.low - 1, 0), high)
            return _followed(self._pieces(node.node, cycle), more)
        if not isinstance(node, ir.Seq):
            raise AssertionError(f"unexpected {type(node).__name__} in a rule")
        first, rest = node.parts[0], ir.seq(node.parts[1:])
        found = _followed(self._pieces(first, cycle), rest)
        return found + self._pieces(rest, cycle) if first.nullable else found

    # -- alternatives

    def _share_beginnings(self) -> None:
        heads = [_heads(body) for body in self._bodies]
        calls = [_calls(body) for body in self._bodies]
        recursive = {rule for cycle in _cycles(calls, self._deadline) for rule in cycle}
        for rule in [r for component in _components(heads, self._deadline) for r in component]:
            reach = frozenset[int]().union(*(self._heads_of[head] for head in heads[rule]))
            self._heads_of[rule] = reach | ({rule} if rule in recursive else set())
        self._bodies = [self._shared(body) for body in self._bodies]
        self._check_size(self._bodies)

    def _shared(self, node: ir.Node) -> ir.Node:
        self._deadline.check()
        if isinstance(node, ir.Seq):
            return ir.seq([self._shared(part) for part in node.parts])
        if isinstance(node, ir.Repeat):
            return ir.repeat(self._shared(node.node), node.low, node.high)
        if isinstance(node, ir.Graph):
            return ir.graph(node.states, [(a, self._shared(label), b) for a, label, b in node.edges], node.finals)
        if not isinstance(node, ir.Alt):
            return node
        rests: dict[ir.Node, list[ir.Node]] = {}
        for option in self._with_equal_heads(list(node.options)):
            parts = option.parts if isinstance(option, ir.Seq) else (option,)
            rests.setdefault(parts[0], []).append(ir.seq(parts[1:]))
        found = [ir.seq([first, self._shared(ir.alt(rest))]) for first, rest in rests.items()]
        return ir.alt(found)

    def _with_equal_heads(self, options: list[ir.Node]) -> list[ir.Node]:
        """Write out the calls in front until those that may begin with the same recursive rule do so visibly."""
        for _ in range(MAX_EXPANSIONS):
            self._deadline.check()
            heads = {call.rule for option in options if (call := _first_call(option))}
            expand = next((rule for rule in heads if self._hides_head(rule, heads)), None)
            if expand is None:
                break
            body = self._bodies[expand]
            written = []
            for option in options:
                if (call := _first_call(option)) and call.rule == expand:
                    rest = option.parts[1:] if isinstance(option, ir.Seq) else ()
                    written += [
                        ir.seq([first, *rest]) for first in (body.options if isinstance(body, ir.Alt) else [body])
                    ]
                else:
                    written.append(option)
            joined = ir.alt(written)
            options = list(joined.options) if isinstance(joined, ir.Alt) else [joined]
        return options

    def _hides_head(self, rule: int, heads: set[int]) -> bool:
        """The rule is to be written out: another head shares a first rule with it, and is not itself that rule's."""
        if isinstance(self._bodies[rule], ir.Graph):
            return False
        return any(
            rule != other and rule not in self._heads_of[other] and self._heads_of[rule] & self._heads_of[other]
            for other in heads
        )

    # -- the result

    def _inline(self) -> None:
        """Write out small rules, callees first; what recurses is not written out, as it calls."""
        small: dict[int, ir.Node] = {}
        components = _components([_calls(body) for body in self._bodies], self._deadline)
        for rule in [r for component in components for r in component]:
            body = self._mapped(self._bodies[rule], lambda call: small.get(call.rule, call))
            self._bodies[rule] = body
            if body.size <= INLINE and not _calls(body) and not isinstance(body, ir.Graph):
                small[rule] = body
        self._node = self._mapped(self._node, lambda call: small.get(call.rule, call))

    def _gathered(self) -> Lowered:
        """Only the rules in use, numbered anew."""
        number: dict[int, int] = {}
        todo = sorted(_calls(self._node))
        while todo:
            rule = todo.pop()
            if rule not in number:
                number[rule] = len(number)
                todo.extend(sorted(_calls(self._bodies[rule])))
        self._rewrite(lambda call: replace(call, rule=number.get(call.rule, 0)))
        rules = tuple(self._bodies[rule] for rule in number)
        self._check_size([self._node, *rules])
        return Lowered(self._node, rules)


def _followed(pieces: list[_Piece], node: ir.Node) -> list[_Piece]:
    return [(head, ir.seq([rest, node])) for head, rest in pieces]


def _parts(node: ir.Node) -> Iterable[ir.Node]:
    if isinstance(node, ir.Seq):
        return node.parts
    if isinstance(node, ir.Alt):
        return node.options
    if isinstance(node, ir.Repeat):
        return (node.node,)
    return [label for _, label, _ in node.edges] if isinstance(node, ir.Graph) else ()


def _calls(node: ir.Node) -> frozenset[int]:
    if isinstance(node, ir.Call):
        return frozenset([node.rule])
    return frozenset[int]().union(*map(_calls, _parts(node)))


def _first_call(node: ir.Node) -> ir.Call | None:
    first = node.parts[0] if isinstance(node, ir.Seq) else node
    return first if isinstance(first, ir.Call) else None


def _heads(node: ir.Node) -> frozenset[int]:
    """The rules that may be called before anything is read."""
    if isinstance(node, ir.Call):
        return frozenset([node.rule])
    if isinstance(node, ir.Seq):
        found = frozenset[int]()
        for part in node.parts:
            found |= _heads(part)
            if not part.nullable:
                break
        return found
    if isinstance(node, ir.Graph):
        return frozenset[int]().union(*(_heads(label) for source, label, _ in node.edges if source == 0))
    return frozenset[int]().union(*map(_heads, _parts(node)))


def _ends(node: ir.Node, ending: set[int]) -> bool:
    if isinstance(node, ir.Call):
        return node.rule in ending
    if isinstance(node, ir.Alt):
        return any(_ends(option, ending) for option in node.options)
    if isinstance(node, ir.Repeat) and node.low == 0:
        return True
    return all(_ends(part, ending) for part in _parts(node))


def _nullable(node: ir.Node, nullable: set[int]) -> bool:
    if isinstance(node, ir.Call):
        return node.rule in nullable
    if isinstance(node, ir.Alt):
        return any(_nullable(option, nullable) for option in node.options)
    if isinstance(node, ir.Seq):
        return all(_nullable(part, nullable) for part in node.parts)
    return node.nullable or (isinstance(node, ir.Repeat) and _nullable(node.node, nullable))


def _mapped(node: ir.Node, call: Callable[[ir.Call], ir.Node]) -> ir.Node:
    """The node with its calls replaced."""
    if isinstance(node, ir.Call):
        return call(node)
    if isinstance(node, ir.Seq):
        return ir.seq([_mapped(part, call) for part in node.parts])
    if isinstance(node, ir.Alt):
        return ir.alt([_mapped(option, call) for option in node.options])
    if isinstance(node, ir.Repeat):
        return ir.repeat(_mapped(node.node, call), node.low, node.high)
    if isinstance(node, ir.Graph):
        return ir.graph(node.states, [(a, _mapped(label, call), b) for a, label, b in node.edges], node.finals)
    return node


def _cycles(following: list[frozenset[int]], deadline: Deadline) -> list[list[int]]:
    """The components that are cycles, those that others lead to first."""
    return [c for c in _components(following, deadline) if len(c) > 1 or c[0] in following[c[0]]]


def _components(following: list[frozenset[int]], deadline: Deadline) -> list[list[int]]:
    """Strongly connected components, those that others lead to first (Tarjan, without recursion)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    open_: list[int] = []
    done: set[int] = set()
    found: list[list[int]] = []
    for root in range(len(following)):
        if root in order:
            continue
        path = [(root, iter(sorted(following[root])))]
        order[root] = low[root] = len(order)
        open_.append(root)
        while path:
            deadline.check()
            at, rest = path[-1]
            for to in rest:
                if to not in order:
                    order[to] = low[to] = len(order)
                    open_.append(to)
                    path.append((to, iter(sorted(following[to]))))
                    break
                if to not in done:
                    low[at] = min(low[at], order[to])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[at])
                if low[at] == order[at]:
                    begin = open_.index(at)
                    found.append(sorted(open_[begin:]))
                    done.update(open_[begin:])
                    del open_[begin:]
    return found
