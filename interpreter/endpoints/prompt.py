"""What stands before a node, as a request wants it: one text, or chat messages.

A prompt is a linked list that shares its beginning with the prompts of sibling branches: adding to it copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stemma.lang.errors import RequestError

Kind = Literal["text", "image", "role_begin", "role_end"]
Marker = Callable[[str, str], str]

# role -> the text before and after its message
Markers = Mapping[str, tuple[str, str]]

_HEADER_3 = "<|start_header_id|>{}<|end_header_id|>\n\n"
TEMPLATES: dict[str, Markers] = {
    "plain": {role: (f"{role}: ", "\n") for role in ("system", "user", "assistant", "tool", "developer")},
    "chatml": {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant", "tool")},
    "llama-3-instruct": {role: (_HEADER_3.format(role), "<|eot_id|>") for role in ("system", "user", "assistant")},
    "gemma-it": {
        "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
        "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
    },
    "vicuna_v1.1": {"system": ("", " "), "user": ("USER: ", " "), "assistant": ("ASSISTANT: ", "</s>")},
}


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The last piece and the prompt before it. `role` is the message that is open after it, if any."""

    before: Prompt | None = field(default=None, repr=False)
    kind: Kind = "text"
    value: str = ""  # text, role, or an image in base64
    mime: str = ""
    role: str | None = None

    def text(self, text: str) -> Prompt:
        return Prompt(self, "text", text, role=self.role) if text else self

    def begin(self, role: str) -> Prompt:
        return Prompt(self, "role_begin", role, role=role)

    def end(self, role: str) -> Prompt:
        return Prompt(self, "role_end", role)

    def image(self, data: str, mime: str) -> Prompt:
        return Prompt(self, "image", data, mime, self.role)

    def pieces(self) -> list[Prompt]:
        """From the beginning to here."""
        found: list[Prompt] = []
        piece: Prompt | None = self
        while piece is not None:
            found.append(piece)
            piece = piece.before
        return found[::-1]

    def as_text(self, marker: Marker) -> str:
        """The whole as text; `marker` gives the text of a role node."""
        return "".join(
            piece.value if piece.kind == "text" else marker(piece.kind, piece.value) for piece in self.pieces()
        )

    def opening(self) -> Prompt:
        """The prompt up to the beginning of the message that is open."""
        piece = self
        while piece.before is not None and piece.kind != "role_begin":
            piece = piece.before
        return piece

    def open_text(self) -> str:
        """The text of the message that is still open."""
        parts: list[str] = []
        piece: Prompt | None = self
        while piece is not None and piece.kind not in ("role_begin", "role_end"):
            parts.append(piece.value if piece.kind == "text" else "")
            piece = piece.before
        return "".join(reversed(parts))

    def messages(self, image: Callable[[str, str], dict[str, Any]], *, open_message: bool) -> list[dict[str, Any]]:
        """The chat messages; with `open_message` also the one that is not closed yet, if anything stands in it.

        Content is a string, or a list of parts where a message has images. Text outside of every role is left out
        when it is white space; a prompt without roles is one message of the user.
        """
        pieces = self.pieces()
        if not any(piece.kind == "role_begin" for piece in pieces):
            return [{"role": "user", "content": _content(pieces, image)}]
        messages: list[dict[str, Any]] = []
        start = 0
        for i, piece in enumerate(pieces):
            if piece.kind == "role_begin":
                start = i + 1
            elif piece.kind == "role_end":
                messages.append({"role": piece.value, "content": _content(pieces[start:i], image)})
        if open_message and self.role is not None and start < len(pieces):
            messages.append({"role": self.role, "content": _content(pieces[start:], image)})
        return messages


def _content(pieces: list[Prompt], image: Callable[[str, str], dict[str, Any]]) -> Any:
    if all(piece.kind == "text" for piece in pieces):
        return "".join(piece.value for piece in pieces)
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.kind == "image":
            parts.append(image(piece.value, piece.mime))
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += piece.value
        elif piece.value:
            parts.append({"type": "text", "text": piece.value})
    return parts


def image_url(data: str, mime: str) -> dict[str, Any]:
    """An image as the OpenAI API wants it."""
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{data}"}}


@dataclass(frozen=True, slots=True)
class Shape:
    """What can be known about a place in a program before anything has run.

    role      the message that is open there, if any
    filled    something stands in that message (outside of roles: anywhere before; white space does not count there)
    messages  some message came before
    stray     text outside of every role came before
    system    every message so far is the system's
    """

    role: str | None = None
    filled: bool = False
    messages: bool = False
    stray: bool = False
    system: bool = True

    def after(self, node: Mapping[str, Any]) -> Shape:
        kind = node["kind"]
        if kind == "role_begin":
            stray = self.stray or (self.role is None and self.filled)
            return Shape(node["role"], False, True, stray, self.system and node["role"] == "system")
        if kind == "role_end":
            return Shape(None, False, True, self.stray, self.system)
        if kind == "text" and not (node["text"] if self.role else node["text"].strip()):
            return self
        stray = self.stray or (self.role is None and self.messages)
        return Shape(self.role, True, self.messages, stray, self.system)


def markers_named(given: str | Markers | None) -> Markers | None:
    """The role markers that `chat_template` names or is. Raises `RequestError` for an unknown name."""
    if given is None or isinstance(given, Mapping):
        return given
    if given not in TEMPLATES:
        raise RequestError(
            f"chat_template must be one of {', '.join(TEMPLATES)}, or a dict of role: (text before, text after), "
            f"got {given!r}",
            param="chat_template",
        )
    return TEMPLATES[given]
