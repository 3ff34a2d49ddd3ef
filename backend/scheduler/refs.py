"""References: literal text that other nodes of the program come to say. What may be referred to, and what it says.

A reference may mean any nodes that are known when it comes: sent before, or anywhere in the same delta. So whatever it
waits for is already under way, and only the nodes of one delta can wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping

from stemma.backend.messages import GraphDelta, IdsNode, Node, RefNode, TextNode
from stemma.backend.scheduler.branch import Branch, Program
from stemma.lang.errors import CancelledError, EndpointError, RequestError, StemmaError


def check_refs(delta: GraphDelta, program: Program | None, counts: Mapping[str, int]) -> None:
    """Raise RequestError for a reference to what is not known, has no text, or waits for the reference itself.

    `counts`: how many nodes each branch of the program has, with the delta.
    """
    refs = [(given.id, node) for given in delta.branches for node in given.nodes if isinstance(node, RefNode)]
    if not refs:
        return
    known = {} if program is None else program.branches
    new: dict[str, list[Node]] = {}
    for given in delta.branches:
        new.setdefault(given.id, []).extend(given.nodes)

    def node_at(branch: str, index: int) -> Node:
        old = known[branch].nodes if branch in known else []
        return old[index] if index < len(old) else new[branch][index - len(old)]

    circular = False
    for id, ref in refs:
        where = f"branch {id!r} of program {delta.program!r}"
        if ref.branch not in counts:
            raise RequestError(f"{where}: a ref to the unknown branch {ref.branch!r}", param="branch")
        if ref.end > counts[ref.branch]:
            raise RequestError(
                f"{where}: a ref to node {ref.end - 1} of branch {ref.branch!r}, which has {counts[ref.branch]} nodes; "
                "send those nodes before, or in the same delta",
                param="node",
            )
        for k in range(ref.node, ref.end):
            if ref.part == "text" and isinstance(node_at(ref.branch, k), IdsNode):
                raise RequestError(
                    f"{where}: a ref to node {k} of branch {ref.branch!r}, which is ids and has no text", param="node"
                )
        circular = circular or ref.end > (len(known[ref.branch].nodes) if ref.branch in known else 0)
    if circular:
        _check_circles(delta, known, counts)


def _check_circles(delta: GraphDelta, known: Mapping[str, Branch], counts: Mapping[str, int]) -> None:
    """Let the delta's nodes come one after the other as far as they can: those left wait for each other."""
    reached = {id: len(known[id].nodes) if id in known else 0 for id in counts}
    nodes: dict[str, list[Node]] = {}
    fork: dict[str, tuple[str, int]] = {}
    for given in delta.branches:
        nodes.setdefault(given.id, []).extend(given.nodes)
        if given.id not in known and given.parent is not None:
            fork.setdefault(given.id, (given.parent, given.at))
    first = dict(reached)
    waiting: dict[str, list[tuple[int, str]]] = {}
    todo = list(nodes)
    while todo:
        id = todo.pop()
        if id in fork and reached[fork[id][0]] < fork[id][1]:
            waiting.setdefault(fork[id][0], []).append((fork[id][1], id))
            continue
        while reached[id] < counts[id]:
            node = nodes[id][reached[id] - first[id]]
            if isinstance(node, RefNode) and reached[node.branch] < node.end:
                waiting.setdefault(node.branch, []).append((node.end, id))
                break
            reached[id] += 1
        still = waiting.pop(id, [])
        todo += [who for need, who in still if need <= reached[id]]
        if later := [(need, who) for need, who in still if need > reached[id]]:
            waiting.setdefault(id, []).extend(later)
    stuck = [id for id in nodes if reached[id] < counts[id]]
    if stuck:
        shown = ", ".join(f"node {reached[id]} of branch {id!r}" for id in stuck[:4])
        raise RequestError(f"program {delta.program!r}: refs wait for each other in a circle: {shown}", param="branch")


def woken(source: Branch, reached: int) -> list[Branch]:
    """The branches that were waiting for nodes of the source which are there now, or never will be: to look again."""
    found = [branch for branch, end in source.dependents.items() if end <= reached]
    for branch in found:
        del source.dependents[branch]
    return found


def quoted(branch: Branch, ref: RefNode) -> str | None:
    """The text that a reference of this branch stands for; None while it is not there yet.

    Raises what the nodes failed with, naming them.
    """
    source = branch.program.branches[ref.branch]
    if len(source.marks) <= ref.end:
        if source.error is not None:
            raise _failed(source, ref)
        return None
    if ref.part == "none":
        return ""
    return "".join(_text(source, k) for k in range(ref.node, ref.end))


def _text(source: Branch, index: int) -> str:
    node = source.nodes[index]
    return node.text if isinstance(node, TextNode) else source.texts[index]


def _failed(source: Branch, ref: RefNode) -> StemmaError:
    error = source.error or {}
    what = f"node {ref.node}" if ref.count == 1 else f"one of the nodes {ref.node} to {ref.end - 1}"
    message = f"{what} of branch {source.id!r}, which it refers to, has no text: {error.get('message')}"
    if error.get("type") == "CancelledError":
        return CancelledError(message)
    if error.get("type") in ("RequestError", "ConstraintError"):
        return RequestError(message, param=error.get("param"), status=error.get("status") or 400)
    return EndpointError(message, status=error.get("status"))
