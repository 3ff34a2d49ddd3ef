"""Roles and messages: nodes as a list of chat messages, and plain markers for endpoints that have no template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stemma.interpreter.graph import GraphNode
from stemma.lang.errors import RequestError

Part = dict[str, Any]


def to_messages(nodes: Iterable[GraphNode]) -> list[dict[str, Any]]:
    """`[{"role", "content"}, …]` in the OpenAI form; a message that is still open comes last, as far as it got.

    Content is text; in a message with images, a list of parts in their order. Raises `RequestError` for text and images
    outside the roles, which no message could hold; white space there is left out.
    """
    messages: list[dict[str, Any]] = []
    role: str | None = None
    parts: list[Part] = []
    for node in nodes:
        if node.kind == "role_begin":
            role, parts = node.wire["role"], []
        elif node.kind == "role_end":
            messages.append({"role": node.wire["role"], "content": content_of(parts)})
            role, parts = None, []
        elif role is not None:
            parts.append(image_part(node.wire) if node.kind == "image" else text_part(node.text or ""))
        elif node.kind == "image" or (node.text or "").strip():
            raise RequestError(f"{node.describe()} is outside of every role, so messages() cannot hold it; use text()")
    if role is not None and parts:
        messages.append({"role": role, "content": content_of(parts)})
    return messages


def text_part(text: str) -> Part:
    """Text as a part of a message's content."""
    return {"type": "text", "text": text}


def image_part(node: Mapping[str, Any]) -> Part:
    """An image node of the wire as a part of a message's content: its address, or a `data:` URL."""
    url = node.get("url") or f"data:{node['mime']};base64,{node['data']}"
    return {"type": "image_url", "image_url": {"url": url}}


def content_of(parts: Iterable[Part]) -> str | list[Part]:
    """The content of a message: text where it is all text, else the parts, neighbouring texts as one."""
    merged: list[Part] = []
    for part in parts:
        if part["type"] == "text" and merged and merged[-1]["type"] == "text":
            merged[-1] = text_part(merged[-1]["text"] + part["text"])
        elif part != text_part(""):
            merged.append(part)
    if all(part["type"] == "text" for part in merged):
        return "".join([part["text"] for part in merged])
    return merged


def plain_marker(kind: str, role: str) -> str:
    """The text of a role node where no chat template exists: `user: … ` and a new line."""
    return f"{role}: " if kind == "role_begin" else "\n"
