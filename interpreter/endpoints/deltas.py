"""Deltas held to their form, before anything of them is taken."""

from __future__ import annotations

from collections.abc import Mapping

from stemma.interpreter.endpoints.base import Delta, OnEvent
from stemma.interpreter.graph import FILLED, ROLES
from stemma.interpreter.wire import error_to_wire
from stemma.lang.errors import RequestError, StemmaError

ANSWERED = (*FILLED, *ROLES)  # nodes that an event must speak of
_BRANCH_FIELDS = {"id", "parent", "at", "first", "nodes", "end"}
_DELTA_FIELDS = {"program", "branches", "end", "hints", "tokens"}  # services do not tell tokens; graph servers do
NODE_FIELDS = {
    # the interpreter minds a gen's `timeout` itself; engines do so too
    "gen": {"kind", "params", "constraint", "logprobs", "stream", "timeout", "name", "where"},
    "select": {"kind", "choices", "method", "temperature", "seed", "name", "where"},
}
_NODE_TEXTS = {"text": ("text",), "role_begin": ("role",), "role_end": ("role",), "image": ("data", "mime")}


def check_delta(delta: Delta, known: Mapping[str, int], ended: bool) -> None:
    """Hold a delta to docs/graph.md. `known`: how many nodes each branch of the program has. Raises `RequestError`."""
    if set(delta) - _DELTA_FIELDS:
        raise RequestError(f"unknown fields in the delta: {sorted(set(delta) - _DELTA_FIELDS)}")
    if ended and delta["branches"]:
        raise RequestError(f"program {delta['program']!r} has ended; use a new program id", param="program")
    counts = dict(known)
    for entry in delta["branches"]:
        where = f"branch {entry.get('id')!r}"
        if set(entry) - _BRANCH_FIELDS:
            raise RequestError(f"{where}: unknown fields {sorted(set(entry) - _BRANCH_FIELDS)}")
        parent = entry.get("parent")
        if entry.get("first", 0) != counts.get(entry["id"], 0):
            raise RequestError(f"{where}: first must be {counts.get(entry['id'], 0)}, got {entry['first']}")
        if entry["id"] not in counts and parent is not None and not 0 <= entry.get("at", 0) <= counts.get(parent, -1):
            raise RequestError(f"{where}: at={entry.get('at')!r} of parent {parent!r} is not known", param="parent")
        counts[entry["id"]] = entry.get("first", 0) + len(entry["nodes"])
        for i, node in enumerate(entry["nodes"], entry.get("first", 0)):
            for name in _NODE_TEXTS.get(node["kind"], ()):
                if not isinstance(node.get(name), str):
                    raise RequestError(f"{where}: node {i}: {name} must be a string, got {node.get(name)!r}")


def refuse(delta: Delta, on_event: OnEvent, error: StemmaError) -> None:
    wire = error_to_wire(error)
    for entry in delta.get("branches") or ():
        for i, node in enumerate(entry.get("nodes") or (), entry.get("first", 0)):
            if node.get("kind") in ANSWERED:
                on_event({"event": "error", "branch": entry.get("id"), "node": i, "error": wire})
