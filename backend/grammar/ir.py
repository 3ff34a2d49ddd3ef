"""The language IR: what every front end (regex, choices, and later schemas and grammars) lowers into.

Nine node types, immutable, with no empty language inside: the builders below fold `NOTHING` away, so every part of a
non-`NOTHING` tree matches some text. The automaton relies on that: none of its states can be a dead end.
Build nodes with the functions, not the classes; they keep `size` and `nullable` right.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stemma.backend.grammar import charset
from stemma.backend.grammar.charset import Ranges


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of `ranges` (code points, sorted, disjoint, no surrogates, not empty).

    `quoted`: as it may be written between the quotes of a JSON string: the form of `json_text.quoted_tree`.
    """

    ranges: Ranges
    quoted: str = ""
    size: int = field(default=1, compare=False)
    nullable: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Words:
    """One of these byte strings (sorted, distinct, at least one; a lone one is a literal)."""

    words: tuple[bytes, ...]
    size: int = field(compare=False)
    nullable: bool = field(compare=False)


@dataclass(frozen=True, slots=True)
class Seq:
    """The parts in a row; at least two."""

    parts: tuple[Node, ...]
    size: int = field(compare=False)
    nullable: bool = field(compare=False)


@dataclass(frozen=True, slots=True)
class Alt:
    """Any one of the options; no options at all is `NOTHING`, the empty language."""

    options: tuple[Node, ...]
    size: int = field(compare=False)
    nullable: bool = field(compare=False)


@dataclass(frozen=True, slots=True)
class Repeat:
    """`node` from `low` to `high` times (`None`: without bound). `node` itself is not nullable if `low` > 0."""

    node: Node
    low: int
    high: int | None
    size: int = field(compare=False)
    nullable: bool = field(compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    """What the rule of this number matches. Rules stand beside the tree and may call each other."""

    rule: int
    size: int = field(default=1, compare=False)
    nullable: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """What is read along `edges` (from, node, to) from state 0 to one of `finals`.

    Every state must be able to reach a final one, as no part of a tree may be a dead end.
    """

    states: int
    edges: tuple[tuple[int, Node, int], ...]
    finals: tuple[int, ...]
    size: int
    nullable: bool


@dataclass(frozen=True, slots=True, eq=False)
class Except:
    """What `node` matches, but none of what `names` does. Both end with one character that stands nowhere else in
    them, and each beginning of a match of `node` also begins one that is not in `names`."""

    node: Node
    names: Node
    size: int
    nullable: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """What `node` matches, of up to `high` characters, counted as they are read and not written out. Only a whole rule,
    and without calls in it."""

    node: Node
    high: int
    size: int
    nullable: bool


Node = Chars | Words | Seq | Alt | Repeat | Call | Graph | Except | Counted

EMPTY = Words((b"",), 0, True)
NOTHING = Alt((), 0, False)

UNFOLD_GROWTH = 4  # how much larger `without_empty` may make a repeated node
UNFOLD_SIZE = 64  # the largest row of optional parts that it touches


def chars(ranges: Ranges) -> Node:
    return Chars(ranges) if ranges else NOTHING


def graph(states: int, edges: Iterable[tuple[int, Node, int]], finals: Iterable[int]) -> Graph:
    """States that cannot reach a final one, and edges without a text, are left out by the caller."""
    edges, finals = tuple(edges), tuple(finals)
    return Graph(states, edges, finals, sum(node.size for _, node, _ in edges) + states, 0 in finals)


def words(given: Iterable[bytes]) -> Node:
    distinct = tuple(sorted(set(given)))
    if not distinct:
        return NOTHING
    return Words(distinct, sum(map(len, distinct)), distinct[0] == b"")


def seq(parts: Iterable[Node]) -> Node:
    flat: list[Node] = []
    for part in parts:
        if part == NOTHING:
            return NOTHING
        flat.extend(part.parts if isinstance(part, Seq) else () if part == EMPTY else (part,))
    joined: list[Node] = []
    for part in flat:
        if joined and (literal := _joined_literal(joined[-1], part)):
            joined[-1] = literal
        else:
            joined.append(part)
    if not joined:
        return EMPTY
    if len(joined) == 1:
        return joined[0]
    return Seq(tuple(joined), sum(p.size for p in joined), all(p.nullable for p in joined))


def _joined_literal(left: Node, right: Node) -> Node | None:
    if isinstance(left, Words) and isinstance(right, Words) and len(left.words) == len(right.words) == 1:
        return words([left.words[0] + right.words[0]])
    return None


def alt(options: Iterable[Node]) -> Node:
    """The union. Plain words are gathered into one node, so that a long list of literals becomes a trie."""
    literals: list[bytes] = []
    others: dict[Node, None] = {}
    for option in options:
        for one in option.options if isinstance(option, Alt) else (option,):
            if isinstance(one, Words):
                literals.extend(one.words)
            else:
                others[one] = None
    nodes = ([words(literals)] if literals else []) + list(others)
    if len(nodes) == 1:
        return nodes[0]
    if not nodes:
        return NOTHING
    return Alt(tuple(nodes), sum(n.size for n in nodes), any(n.nullable for n in nodes))


def repeat(node: Node, low: int, high: int | None) -> Node:
    """`node{low,high}`, normalised so that nested optional parts do not multiply the automaton's empty moves."""
    if high == 0 or node == EMPTY:
        return EMPTY
    if node == NOTHING:
        return EMPTY if low == 0 else NOTHING
    if low == high == 1:
        return node
    if node.nullable:
        stripped = without_empty(node)
        low = 0
        if stripped.size <= UNFOLD_GROWTH * node.size + 16:
            node = stripped
    if isinstance(node, Repeat) and node.high is None and node.low <= 1:
        node, high = node.node, None  # (x+){3,5} is x{3,}
    return Repeat(node, low, high, node.size * max(low if high is None else high, 1), low == 0 or node.nullable)


def without_empty(node: Node) -> Node:
    """The language of `node` without the empty text; `node` itself where that would grow too much.

    A row of optional parts grows quadratically: `a?b?c?` becomes `ab?c?|bc?|c`.
    """
    if not node.nullable:
        return node
    if isinstance(node, Words):
        return words(node.words[1:])
    if isinstance(node, Alt):
        return alt([without_empty(option) for option in node.options])
    if isinstance(node, Repeat):
        inner = without_empty(node.node)
        return repeat(inner, 1, node.high)
    if isinstance(node, Seq) and node.size <= UNFOLD_SIZE:
        return alt([seq([without_empty(part), *node.parts[i + 1 :]]) for i, part in enumerate(node.parts)])
    return node


def first_characters(node: Node) -> Ranges:
    """The characters that a match may begin with."""
    if isinstance(node, Chars):
        return node.ranges
    if isinstance(node, Words):
        return charset.ranges((ord(text[0]), ord(text[0])) for word in node.words if (text := word.decode()))
    if isinstance(node, Repeat):
        return first_characters(node.node)
    if isinstance(node, Call | Graph | Except | Counted):
        return charset.ALL
    found: list[tuple[int, int]] = []
    for part in node.parts if isinstance(node, Seq) else node.options:
        found.extend(first_characters(part))
        if isinstance(node, Seq) and not part.nullable:
            break
    return charset.ranges(found)
