"""Chat templates: whole conversations rendered, and the text that stands before and after one message.

A program says `role_begin` and `role_end`; models publish a Jinja template for whole conversations. `markers` gets the
one from the other: it renders conversations whose contents are sentinels and looks at the text between them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jinja2

from stemma.backend.text.chat_loader import TemplateRefused, environment, find_templates, special_tokens
from stemma.backend.text.tokenizer import Tokenizer
from stemma.lang.errors import RequestError

KNOWN_ROLES = ("system", "user", "assistant", "tool", "developer")
_MAX_CACHED = 4096


class _Unsplittable(Exception):
    """The sentinels did not come out once each, in order."""


class ChatTemplate:
    """A model's chat template. Thread-safe. A model without one can be loaded; using it raises RequestError."""

    def __init__(self, sources: Mapping[str, str], tokens: Mapping[str, str], name: str = "the model") -> None:
        self._name = name
        self._tokens = dict(tokens)
        self._templates: dict[str, jinja2.Template] = {}
        self._cache: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._dated = any("strftime_now" in source for source in sources.values())
        env = environment()
        for key, source in sources.items():
            try:
                self._templates[key] = env.from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise RequestError(
                    f"the chat template {key!r} of {name} has a syntax error in line {error.lineno}: {error.message}",
                    param="model_path",
                ) from None
        self.template_adds_bos = self._writes_bos()

    @classmethod
    def load(cls, model_dir: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """From `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json` in the model directory."""
        model_dir = Path(model_dir)
        tokens = special_tokens(model_dir)
        if tokenizer.bos_id is not None:
            bos = tokenizer.special_text(tokenizer.bos_id)
            if bos is not None:
                tokens.setdefault("bos_token", bos)
        return cls(find_templates(model_dir), tokens, str(model_dir))

    @property
    def exists(self) -> bool:
        return bool(self._templates)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a conversation. RequestError with the template's own words when it refuses."""
        try:
            return self._render(messages, add_generation_prompt, tools, **kwargs)
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise RequestError(
                f"the chat template of {self._name} refused the roles [{roles}]: {error}", param="messages"
            ) from None

    def markers(self, role: str, previous_roles: tuple[str, ...] = ()) -> tuple[str, str]:
        """The text before and after a message of `role` that follows messages of `previous_roles`.

        BOS text and a default system prompt belong to the first message's begin. The begin of an assistant message is
        the generation prompt. For ordinary templates, markers and contents joined equal `render` of the conversation
        (contents that the template trims must come trimmed; Llama-2 writes a space of its own before a finished
        answer, which here belongs to the content, as the model itself generates it).

        A template that cannot be split at this position (it drops or moves messages, or its text depends on what comes
        later) gives the markers of the message rendered alone instead. Raises RequestError for a role that the
        template does not know, and with the template's own message when it refuses the order of roles.
        """
        self._need_template()
        key = (role, previous_roles, date.today() if self._dated else None)
        found = self._cache.get(key)
        if found is None:
            found = self._find_markers(role, previous_roles)
            with self._lock:
                if len(self._cache) >= _MAX_CACHED:
                    self._cache.clear()
                self._cache[key] = found
        return found

    # Rendering with sentinels

    def _need_template(self) -> None:
        if not self._templates:
            raise RequestError(
                f"{self._name} has no chat template (none in chat_template.jinja or tokenizer_config.json): it is not "
                "a chat model. Use plain text prompts (no roles; /generate or /v1/completions), or put a "
                "chat_template.jinja into the model directory",
                param="role",
            )

    def _render(self, messages: Sequence[Mapping[str, Any]], generate: bool, tools: Any = None, **kwargs: Any) -> str:
        self._need_template()
        named = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(named) or next(iter(self._templates.values()))
        given = {"documents": None, **self._tokens, **kwargs}
        return template.render(messages=messages, tools=tools, add_generation_prompt=generate, **given)

    def _gaps(self, roles: Sequence[str], generate: bool = False) -> list[str]:
        """The texts before, between and after the contents of these messages: one more than there are roles."""
        marks = [f"\u27e6{i}\u27e7" for i in range(len(roles))]
        refused: Exception | None = None
        for wrap in (lambda s: s, lambda s: [{"type": "text", "text": s}]):
            messages = [{"role": r, "content": wrap(m)} for r, m in zip(roles, marks, strict=True)]
            try:
                rest = self._render(messages, generate)
            except TemplateRefused:
                raise
            except (jinja2.TemplateError, TypeError, ValueError) as error:
                refused = error
                continue
            gaps: list[str] = []
            for mark in marks:
                before, found, rest = rest.partition(mark)
                if not found:
                    break
                gaps.append(before)
            else:
                gaps.append(rest)
                if not any(mark in gap for gap in gaps for mark in marks):
                    return gaps
        raise _Unsplittable(str(refused or "a message is missing, repeated or moved"))

    def _end(self, roles: tuple[str, ...]) -> str:
        """The text after the last message. Where a template needs a user message to follow, all text up to it."""
        try:
            return self._gaps(roles)[-1]
        except (TemplateRefused, _Unsplittable):
            if roles[-1] == "user":
                raise
            return self._gaps((*roles, "user"))[-2]

    def _begin(self, roles: tuple[str, ...]) -> str:
        before, role = roles[:-1], roles[-1]
        end = self._end(before) if before else ""
        if role == "assistant" and before:
            prompted = self._gaps(before, generate=True)[-1]
        elif role == "assistant":
            prompted = self._opening()
        else:
            try:
                prompted = self._gaps(roles)[-2]
            except (TemplateRefused, _Unsplittable):
                if role == "user":
                    raise
                prompted = self._gaps((*roles, "user"))[-3]
        if not prompted.startswith(end):
            raise _Unsplittable("the text after a message depends on what follows it")
        return prompted[len(end) :]

    def _opening(self) -> str:
        """What comes before an assistant message that opens the conversation."""
        try:
            return self._gaps(("assistant",))[0]
        except (TemplateRefused, _Unsplittable):
            return self._render([], True)

    def _find_markers(self, role: str, previous: tuple[str, ...]) -> tuple[str, str]:
        roles = (*previous, role)
        refused: str | None = None
        try:
            return self._begin(roles), self._end(roles)
        except TemplateRefused as error:
            refused = str(error)
        except (_Unsplittable, jinja2.TemplateError, TypeError, ValueError):
            pass
        alone = self._alone(role, first=not previous)
        if alone is None:
            supported = [r for r in KNOWN_ROLES if self._alone(r, first=True) is not None]
            why = f" ({refused})" if refused else ""
            raise RequestError(
                f"the chat template of {self._name} does not support the role {role!r}{why}; "
                f"it supports {', '.join(supported) or 'no role'}",
                param="role",
            )
        if refused is not None:
            raise RequestError(
                f"the chat template of {self._name} refused the roles [{', '.join(roles)}]: {refused}", param="role"
            )
        return alone

    def _alone(self, role: str, first: bool) -> tuple[str, str] | None:
        """The markers of one message without a past; None when the template does not show it at all."""
        for roles in ((role,), (role, "user"), ("user", role)):
            at = 1 if roles[0] != role else 0
            try:
                begin, end = self._begin(roles[: at + 1]), self._end(roles[: at + 1])
            except (TemplateRefused, _Unsplittable, jinja2.TemplateError, TypeError, ValueError):
                continue
            bos = self._tokens.get("bos_token", "")
            return (begin if first or at else begin.removeprefix(bos)), end
        return None

    def _writes_bos(self) -> bool:
        """The template itself writes the BOS text, so the engine must not add BOS."""
        bos = self._tokens.get("bos_token")
        if not bos or not self._templates:
            return False
        for role in ("user", "assistant", "system"):
            try:
                return self._gaps((role,))[0].startswith(bos)
            except (TemplateRefused, _Unsplittable, jinja2.TemplateError, TypeError, ValueError):
                continue
        return False
