"""Anthropic's messages API, through the `anthropic` package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stemma.interpreter.endpoints.asking import Answer, Asked, Call
from stemma.interpreter.endpoints.hosted import (
    HostedEndpoint,
    client_failure,
    closed_schema,
    given,
    sdk,
    wrapped_schema,
)
from stemma.interpreter.endpoints.openai_form import check_schema, constrained_text, schema_of
from stemma.interpreter.endpoints.prompt import Prompt, Shape
from stemma.interpreter.endpoints.retry import CONNECT_SECONDS, Failed
from stemma.lang.errors import EndpointError, RequestError

FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "stop"}


class Anthropic(HostedEndpoint):
    """A Claude model behind the messages API.

    System messages go into the request's `system` and must come first. A gen that is not the first thing in
    `assistant(…)` is sent with what stands before it as the beginning of the answer, which the model goes on from;
    models that do not take this answer with an error. JSON schemas are sent as `output_config.format`.
    `extra_body`: fields added to every request as they are. `client_options` go to the `anthropic` client. `api_key`
    and `base_url` default to `ANTHROPIC_API_KEY` and `ANTHROPIC_BASE_URL`.

    Raises `RequestError` for options, `EndpointError` when the package is missing.
    """

    chat = True
    images = True
    limit_needed = True
    takes = frozenset({"temperature", "top_p", "top_k", "stop", "no_stop_trim"})
    constraints = frozenset({"json_schema", "choices", "regex"})

    def __init__(
        self,
        model_name: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        max_in_flight: int = 64,
        max_retries: int = 2,
        timeout: float | None = 600.0,
        **client_options: Any,
    ) -> None:
        super().__init__(model_name, max_in_flight=max_in_flight, max_retries=max_retries, timeout=timeout)
        self._extra_body = dict(extra_body or {})
        self._sdk = sdk("anthropic")
        self._client_options = {**client_options, "api_key": api_key, "base_url": base_url}
        self._client: Any = self._connect()
        self.base_url = str(self._client.base_url).rstrip("/")

    def _begin(self) -> None:
        super()._begin()
        self._client = None

    def _connect(self) -> Any:
        options = {name: value for name, value in self._client_options.items() if value is not None}
        options["timeout"] = self._sdk.Timeout(self.timeout, connect=CONNECT_SECONDS)
        try:
            return self._sdk.AsyncAnthropic(max_retries=0, **options)
        except self._sdk.AnthropicError as error:
            raise EndpointError(f"{self!r}: {error}") from error

    @property
    def _api(self) -> Any:
        if self._client is None:
            self._client = self._connect()
        return self._client

    async def disconnect(self) -> None:
        await self._api.close()

    def failed(self, error: Exception) -> Failed:
        return client_failure(self._sdk, repr(self), error)

    def info(self) -> dict[str, Any]:
        return {**super().info(), "base_url": self.base_url}

    # --- checks

    def check(self, node: dict[str, Any], asked: Asked | None, shape: Shape, speculative: bool) -> None:
        super().check(node, asked, shape, speculative)
        if node["kind"] == "role_begin" and node["role"] not in ("system", "user", "assistant"):
            raise RequestError(
                f"{self!r} knows system, user and assistant messages, not {node['role']!r}", param="role"
            )
        if node["kind"] == "role_begin" and node["role"] == "system" and shape.messages and not shape.system:
            raise RequestError(f"{self!r} takes system messages only before all others", param="role")
        if node["kind"] == "image" and shape.role not in (None, "user"):
            raise RequestError(f"{self!r} takes images in user messages only", param="image")

    def check_gen(self, asked: Asked, shape: Shape) -> None:
        check_schema(self, asked.constraint)
        if asked.constraint is not None and shape.role is not None and shape.filled:
            raise RequestError(f"{self!r} cannot both go on from the beginning of a message and keep to a schema")
        if asked.params.temperature > 1.0:
            raise RequestError(
                f"{self!r} takes temperature in [0, 1], got {asked.params.temperature!r}", param="temperature"
            )

    # --- requests

    async def generate(self, prompt: Prompt, asked: Asked, call: Call) -> Answer:
        messages = prompt.messages(_image, open_message=True)
        system = [message["content"] for message in messages if message["role"] == "system"]
        messages = [message for message in messages if message["role"] != "system"]
        blank = ""
        if prompt.role is not None and messages and messages[-1]["role"] == "assistant":
            begun = prompt.open_text()
            if begun:  # the service refuses white space at the end; the answer then begins with it
                blank = begun[len(begun.rstrip()) :]
                messages[-1] = {"role": "assistant", "content": begun.rstrip()}
                messages = messages if begun.rstrip() else messages[:-1]
        # sampling parameters travel in the body as they are: newer clients have no arguments for them
        body = {**self._extra_body, **given(asked.params, {"temperature", "top_p", "top_k"})}
        if asked.constraint is not None:
            schema, _ = wrapped_schema(schema_of(asked.constraint))
            body["output_config"] = {"format": {"type": "json_schema", "schema": closed_schema(schema)}}
        fields: dict[str, Any] = {
            "model": self.model_name,
            "messages": messages,
            "max_tokens": asked.params.max_new_tokens,
            **({"system": "\n\n".join(system)} if system else {}),
            **({"stop_sequences": list(asked.params.stop)} if asked.params.stop else {}),
            **({"extra_body": body} if body else {}),
        }
        trim = _Trim(blank)

        async def ask() -> Any:
            if not call.streams or asked.constraint is not None:
                return await self._api.messages.create(**fields)
            async with self._api.messages.stream(**fields) as stream:
                async for piece in stream.text_stream:
                    call.text(trim.first(piece))
                return await stream.get_final_message()

        message = await call.send(ask)
        text = _Trim(blank).first("".join(block.text for block in message.content if block.type == "text"))
        if message.stop_reason == "refusal":
            raise EndpointError(f"the model refused: {text or 'it gave no reason'}")
        if message.stop_reason == "stop_sequence" and asked.params.no_stop_trim and message.stop_sequence:
            text += message.stop_sequence
            call.text(message.stop_sequence)
        answer = _answer(message, text)
        if asked.constraint is not None:
            answer.text = constrained_text(asked.constraint, text, answer.finish_reason)
            call.text(answer.text)
        return answer


class _Trim:
    """Takes white space that was held back from the prompt off the front of the answer."""

    def __init__(self, blank: str) -> None:
        self._blank = blank

    def first(self, piece: str) -> str:
        while piece and self._blank and piece[0] == self._blank[0]:
            piece, self._blank = piece[1:], self._blank[1:]
        if piece:
            self._blank = ""
        return piece


def _image(data: str, mime: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": mime, "data": data}}


def _answer(message: Any, text: str) -> Answer:
    usage = message.usage
    cached = usage.cache_read_input_tokens or 0
    prompt = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
    kind = FINISH.get(message.stop_reason or "", "abort")
    finish: dict[str, Any] = {"type": kind}
    if kind == "stop":
        finish["matched"] = message.stop_sequence
    elif kind == "length":
        finish["length"] = usage.output_tokens
    else:
        finish["message"] = str(message.stop_reason)
    return Answer(text, finish, prompt, usage.output_tokens, cached, more={"id": message.id})
