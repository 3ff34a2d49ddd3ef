"""Everything that LiteLLM reaches, through the `litellm` package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.interpreter.endpoints.asking import Answer, Asked, Call
from stemma.interpreter.endpoints.hosted import HostedEndpoint, given, sdk
from stemma.interpreter.endpoints.openai_form import (
    PARAMS,
    chat_answer,
    chat_stream,
    check_schema,
    constrained_text,
    logprob_fields,
    response_format,
)
from stemma.interpreter.endpoints.prompt import Prompt, Shape, image_url
from stemma.interpreter.endpoints.retry import Failed, of_status
from stemma.lang.errors import EndpointError, RequestError


class LiteLLM(HostedEndpoint):
    """A chat model by its LiteLLM name: `LiteLLM("openai/gpt-4o")`, `LiteLLM("anthropic/…")`, `"ollama_chat/…"`, …

    What the provider behind the name does not take, LiteLLM refuses before it sends anything. `prefill`: the provider
    goes on from an assistant message that is sent last. `strict`: JSON schemas are closed and sent with
    `strict: true`. `call_options` go to every `litellm.acompletion`.

    Raises `RequestError` for options, `EndpointError` when the package is missing.
    """

    chat = True
    images = True
    logprobs = True
    takes = PARAMS
    constraints = frozenset({"json_schema", "choices", "regex"})

    def __init__(
        self,
        model_name: str,
        chat_template: None = None,
        api_key: str | None = None,
        organization: str | None = None,
        base_url: str | None = None,
        timeout: float | None = 600.0,
        max_retries: int = 2,
        default_headers: Mapping[str, str] | None = None,
        *,
        prefill: bool = False,
        strict: bool = True,
        max_in_flight: int = 64,
        **call_options: Any,
    ) -> None:
        if chat_template is not None:
            raise RequestError("LiteLLM sends messages: a chat_template would change nothing", param="chat_template")
        super().__init__(model_name, max_in_flight=max_in_flight, max_retries=max_retries, timeout=timeout)
        self.continues = prefill
        self._strict = strict
        self._sdk: Any = sdk("litellm", "litellm")
        named = {"api_key": api_key, "organization": organization, "api_base": base_url, "timeout": timeout}
        self._options = {name: value for name, value in named.items() if value is not None} | call_options
        if default_headers:
            self._options["extra_headers"] = dict(default_headers)

    def failed(self, error: Exception) -> Failed:
        shown = f"{self!r}: {type(error).__name__}: {error}"
        if isinstance(error, self._sdk.UnsupportedParamsError):
            return Failed(RequestError(shown))
        causes = {type(cause).__name__ for cause in _causes(error)}
        status = getattr(error, "status_code", None)
        if causes & _BROKEN or not isinstance(status, int):  # LiteLLM gives such errors a status that nobody sent
            return Failed(EndpointError(shown), again=bool(causes & _NEVER_CONNECTED))
        response = getattr(error, "response", None)
        headers = getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None)
        return of_status(status, shown, headers)

    def check_gen(self, asked: Asked, shape: Shape) -> None:
        check_schema(self, asked.constraint)
        if asked.constraint is not None and shape.role is not None and shape.filled and self.continues:
            raise RequestError(f"{self!r} cannot both go on from the beginning of a message and keep to a schema")

    async def generate(self, prompt: Prompt, asked: Asked, call: Call) -> Answer:
        constraint = asked.constraint
        fields: dict[str, Any] = {
            **self._options,
            "model": self.model_name,
            "messages": prompt.messages(image_url, open_message=self.continues),
            **given(asked.params, self.takes),
            **logprob_fields(asked),
            "num_retries": 0,
            "max_retries": 0,
        }
        if asked.params.max_new_tokens is not None:
            fields["max_tokens"] = asked.params.max_new_tokens
        if constraint is not None:
            fields["response_format"] = response_format(constraint, self._strict)

        async def ask() -> Answer:
            if not call.streams or constraint is not None:
                return chat_answer(await self._sdk.acompletion(**fields))
            options = {"stream": True, "stream_options": {"include_usage": True}}
            return await chat_stream(await self._sdk.acompletion(**fields, **options), call)

        answer = await call.send(ask)
        if constraint is not None:
            answer.text = constrained_text(constraint, answer.text, answer.finish_reason)
            call.text(answer.text)
        return answer


_NEVER_CONNECTED = {"ConnectError", "ConnectTimeout", "ClientConnectorError", "ConnectionTimeoutError"}
_BROKEN = _NEVER_CONNECTED | {"APIConnectionError", "APITimeoutError", "Timeout", "ReadError", "RemoteProtocolError"}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
