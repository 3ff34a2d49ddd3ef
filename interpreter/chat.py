"""Roles and messages: nodes as a list of chat messages, and plain markers for endpoints that have no template."""

from __future__ import annotations

from collections.abc import Iterable

from stemma.interpreter.graph import GraphNode
from stemma.lang.errors import RequestError


def to_messages(nodes: Iterable[GraphNode]) -> list[dict[str, str]]:
    """`[{"role", "content"}, …]` in the OpenAI form; a message that is still open comes last, as far as it got.

    Raises `RequestError` for text outside the roles, which no message could hold; white space there is left out.
    """
    messages: list[dict[str, str]] = []
    role: str | None = None
    parts: list[str] = []
    for node in nodes:
        if node.kind == "role_begin":
            role, parts = node.wire["role"], []
        elif node.kind == "role_end":
            messages.append({"role": node.wire["role"], "content": "".join(parts)})
            role, parts = None, []
        elif role is not None:
            parts.append(node.text or "")
        elif (node.text or "").strip():
            raise RequestError(f"{node.describe()} is outside of every role, so messages() cannot hold it; use text()")
    if role is not None and parts:
        messages.append({"role": role, "content": "".join(parts)})
    return messages


def plain_marker(kind: str, role: str) -> str:
    """The text of a role node where no chat template exists: `user: … ` and a new line."""
    return f"{role}: " if kind == "role_begin" else "\n"
