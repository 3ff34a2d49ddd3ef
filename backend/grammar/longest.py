"""How long a match can be at most: the scheduler keeps no memory for more."""

from __future__ import annotations

from collections import deque

from stemma.backend.grammar import ir

QUOTED_MOST = 12  # bytes of one character in a JSON string: an escaped surrogate pair
MAX_STATES = 2000  # of a graph that is looked through


def longest_text(node: ir.Node, rules: tuple[ir.Node, ...] = ()) -> int | None:
    """An upper bound on the bytes of a match, or None where there is none (or it is not known). Every token of a text
    has at least one byte, so it bounds the tokens too."""
    try:
        return _longest(node, rules, {})
    except RecursionError:
        return None


def _longest(node: ir.Node, rules: tuple[ir.Node, ...], known: dict[int, int | None]) -> int | None:
    if isinstance(node, ir.Chars):
        return QUOTED_MOST if node.quoted else len(chr(node.ranges[-1][1]).encode("utf-8", "surrogatepass"))
    if isinstance(node, ir.Words):
        return max(map(len, node.words))
    if isinstance(node, ir.Repeat):
        if node.high is None:
            return None
        one = _longest(node.node, rules, known)
        return None if one is None else one * node.high
    if isinstance(node, ir.Call):
        if node.rule not in known:
            known[node.rule] = None  # what calls itself is without bound
            known[node.rule] = _longest(rules[node.rule], rules, known)
        return known[node.rule]
    if isinstance(node, ir.Graph):
        return _longest_path(node, rules, known)
    if isinstance(node, ir.Except | ir.Counted):
        return _longest(node.node, rules, known)
    parts = [_longest(part, rules, known) for part in (node.parts if isinstance(node, ir.Seq) else node.options)]
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    return sum(whole) if isinstance(node, ir.Seq) else max(whole, default=0)


def _longest_path(graph: ir.Graph, rules: tuple[ir.Node, ...], known: dict[int, int | None]) -> int | None:
    """Kahn's topological order; a cycle has no bound."""
    if graph.states > MAX_STATES:
        return None
    out: list[list[tuple[int, int]]] = [[] for _ in range(graph.states)]
    into = [0] * graph.states
    for begin, node, end in graph.edges:
        length = _longest(node, rules, known)
        if length is None:
            return None
        out[begin].append((end, length))
        into[end] += 1
    farthest = [0] * graph.states
    ready = deque(state for state in range(graph.states) if not into[state])
    seen = 0
    while ready:
        state = ready.popleft()
        seen += 1
        for end, length in out[state]:
            farthest[end] = max(farthest[end], farthest[state] + length)
            into[end] -= 1
            if not into[end]:
                ready.append(end)
    return max(farthest[state] for state in graph.finals) if seen == graph.states else None
