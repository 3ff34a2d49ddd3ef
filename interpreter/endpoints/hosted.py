"""What hosted services have in common: which options, constraints and places in a program they take.

A request is checked against these tables before anything is sent; what a service cannot do is refused, never dropped.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection
from types import ModuleType
from typing import Any

from stemma.interpreter.endpoints.asking import Asked
from stemma.interpreter.endpoints.lowering import LoweredEndpoint
from stemma.interpreter.endpoints.prompt import Markers, Shape, markers_named
from stemma.interpreter.endpoints.retry import Failed, of_status
from stemma.lang.errors import ConstraintError, EndpointError, RequestError
from stemma.lang.params import SamplingParams

# parameters that ask nothing of a service: they are kept here, or change nothing
_OURS = frozenset({"max_new_tokens", "spaces_between_special_tokens"})
_DEFAULTS = SamplingParams()


class HostedEndpoint(LoweredEndpoint):
    """A model behind a service's API. Subclasses fill in the tables, per instance where it depends on options."""

    takes: frozenset[str] = frozenset()  # sampling parameters besides max_new_tokens
    constraints: frozenset[str] = frozenset()
    images = False
    logprobs = False
    limit_needed = False  # max_new_tokens=None cannot be said

    def __init__(self, model_name: str, *, chat_template: str | Markers | None = None, **options: Any) -> None:
        if not isinstance(model_name, str) or not model_name:
            raise RequestError(f"model_name must be a non-empty string, got {model_name!r}", param="model_name")
        self.model_name = model_name
        self._markers = markers_named(chat_template)
        super().__init__(**options)

    @property
    def capabilities(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - it depends
        return super().capabilities | (frozenset({"images"}) if self.images else frozenset())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r})"

    def info(self) -> dict[str, Any]:
        """The model's name and what the endpoint takes. Asks nothing of the service."""
        return {
            "endpoint": type(self).__name__,
            "model": self.model_name,
            "chat": self.chat,
            "constraints": sorted(self.constraints),
            "sampling_params": sorted({"max_new_tokens", *self.takes}),
        }

    # --- checks

    def check(self, node: dict[str, Any], asked: Asked | None, shape: Shape, speculative: bool) -> None:
        kind = node["kind"]
        if kind in ("role_begin", "role_end"):
            self._check_role(node["role"])
        elif kind == "image":
            if not self.images:
                raise RequestError(f"{self!r} takes no images", param="image")
        elif kind == "select":
            self._check_place("select", shape, False)
            self.check_select(node, shape)
        elif asked is not None:
            self._check_params(asked)
            self._check_place("gen", shape, speculative)
            self.check_gen(asked, shape)

    def check_select(self, node: dict[str, Any], shape: Shape) -> None:
        """Raise `RequestError` for a select that cannot be done."""
        raise RequestError(
            f"{self!r} cannot select: the service does not score given texts; ask with gen, and constrain it if the "
            "service takes a JSON schema",
            param="choices",
        )

    def check_gen(self, asked: Asked, shape: Shape) -> None:
        """What else a subclass has against a gen. Raises `RequestError`."""

    def marker(self, kind: str, role: str) -> str:
        if self._markers is None:
            return super().marker(kind, role)
        return self._markers[role][kind == "role_end"]

    def _check_role(self, role: str) -> None:
        if not self.chat and self._markers is None:
            raise RequestError(
                f"{self!r} takes text, and its chat template is not known: give chat_template=…, a name such as "
                "'chatml' or a dict of role: (text before, text after)",
                param="chat_template",
            )
        if self._markers is not None and role not in self._markers:
            raise RequestError(f"chat_template has no role {role!r}; roles: {', '.join(self._markers)}", param="role")

    def _check_params(self, asked: Asked) -> None:
        for name, value in asked.params.to_dict().items():
            if name not in self.takes and name not in _OURS:
                raise RequestError(
                    f"{self!r} does not take {name}={value!r}; it takes {', '.join(sorted(self.takes))}", param=name
                )
        if asked.params.max_new_tokens is None and self.limit_needed:
            raise RequestError(f"{self!r} needs a number for max_tokens, got None", param="max_new_tokens")
        if asked.constraint is not None and asked.constraint.kind not in self.constraints:
            known = ", ".join(sorted(self.constraints)) or "none"
            raise ConstraintError(
                f"{self!r} cannot enforce a {asked.constraint.kind} constraint; it can: {known}",
                param=asked.constraint.kind,
            )
        if asked.logprobs is not None:
            self._check_logprobs(asked.logprobs)

    def _check_logprobs(self, wanted: dict[str, Any]) -> None:
        if not self.logprobs:
            raise RequestError(f"{self!r} gives no log-probabilities", param="return_logprob")
        if wanted.get("start", -1) != -1:
            raise RequestError(f"{self!r} gives no log-probabilities of the prompt", param="logprob_start_len")
        if wanted.get("ids") is not None:
            raise RequestError(f"{self!r} gives no log-probabilities of chosen ids", param="token_ids_logprob")

    def _check_place(self, what: str, shape: Shape, speculative: bool) -> None:
        """Whether an answer can come here, in a chat."""
        if not self.chat:
            return
        if shape.stray:
            raise RequestError(f"{self!r} takes messages: there is text outside of system(), user() and assistant()")
        if shape.role is None and shape.messages:
            raise RequestError(f"{self!r} takes messages: a {what} after a message must stand in assistant(…)")
        if shape.role is None:
            if not shape.filled:
                raise RequestError(f"{self!r}: the prompt is empty")
        elif shape.role != "assistant":
            raise RequestError(f"{self!r} only writes the assistant's messages: this {what} is in {shape.role}(…)")
        elif shape.filled and not (self.continues or speculative):
            raise RequestError(
                f"{self!r} cannot go on from the beginning of a message: the {what} must be the first thing in "
                "assistant(…). Or let one answer serve the whole message: @function(num_api_spec_tokens=…)"
            )


def given(params: SamplingParams, names: Collection[str]) -> dict[str, Any]:
    """Those of the named parameters that differ from the default, as JSON values."""
    return {name: value for name, value in params.to_dict().items() if name in names}


def sdk(name: str, extra: str = "hosted") -> ModuleType:
    """A service's own client library. Raises `EndpointError` with the pip line when it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != name.split(".")[0]:
            raise
        raise EndpointError(
            f"this endpoint needs the package {name!r}. Try: pip install 'stemma-lang[{extra}]'"
        ) from error


# --- JSON schemas for services that want an object at the top

WRAPPED = "value"


def wrapped_schema(schema: Any) -> tuple[dict[str, Any], bool]:
    """A schema whose top is an object; True if the wanted value had to be put into a field of one."""
    if isinstance(schema, dict) and (schema.get("type") == "object" or "properties" in schema):
        return schema, False
    definitions = {}
    if isinstance(schema, dict):
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        schema = {key: value for key, value in schema.items() if key not in definitions}
    top = {"type": "object", "properties": {WRAPPED: schema}, "required": [WRAPPED], "additionalProperties": False}
    return {**top, **definitions}, True


_OPEN_ENDED = ("not", "if", "oneOf", "allOf", "dependentSchemas", "patternProperties")  # closing changes their meaning
_VALUES = ("enum", "const", "default", "examples")


def closed_schema(schema: Any) -> Any:
    """The schema with every object closed and all its fields required, as strict services want it.

    What matches the result matches the given schema as well; a schema for which that could not be said stays as it is.
    """
    return schema if _has_key(schema, _OPEN_ENDED) else _closed(schema)


def _has_key(schema: Any, keys: Collection[str]) -> bool:
    if isinstance(schema, list):
        return any(_has_key(item, keys) for item in schema)
    return isinstance(schema, dict) and any(key in keys or _has_key(value, keys) for key, value in schema.items())


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: value if key in _VALUES else _closed(value) for key, value in schema.items()}
    fields = schema.get("properties")
    if schema.get("type") == "object" and isinstance(fields, dict):
        out.setdefault("additionalProperties", False)
        out["required"] = [*fields, *(name for name in schema.get("required", ()) if name not in fields)]
    return out


def unwrapped(text: str, finish: dict[str, Any] | None, *, as_json: bool) -> str:
    """The wanted value out of the object, as JSON or, if it is a string, as its bare text.

    Raises `EndpointError` for text that is no such object.
    """
    try:
        value = json.loads(text)[WRAPPED]
    except (ValueError, KeyError, TypeError):
        cut = " (it was cut off by max_tokens)" if (finish or {}).get("type") == "length" else ""
        raise EndpointError(f"the answer is not the JSON that was asked for{cut}: {text!r:.200}") from None
    return value if isinstance(value, str) and not as_json else json.dumps(value, ensure_ascii=False)


def client_failure(module: Any, who: str, error: Exception) -> Failed:
    """What an exception of the OpenAI or Anthropic client means; the two are built alike."""
    if isinstance(error, module.APIStatusError):
        response: Any = error
        body = response.body if isinstance(response.body, dict) else {}
        told = body.get("error", body)
        message = told.get("message") if isinstance(told, dict) else told
        shown = f"{who} answered {response.status_code}: {message or response.message}"
        return of_status(response.status_code, shown, response.response.headers)
    cause = f": {type(error.__cause__).__name__}: {error.__cause__}" if error.__cause__ is not None else ""
    shown = EndpointError(f"{who}: {type(error).__name__}: {error}{cause}")
    return Failed(shown, again=type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"))
