"""OpenAI and everything that speaks its API: chat completions and completions, through the `openai` package."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from stemma.interpreter.endpoints.asking import Answer, Asked, Call
from stemma.interpreter.endpoints.base import Delta, OnEvent
from stemma.interpreter.endpoints.hosted import HostedEndpoint, client_failure, given, sdk
from stemma.interpreter.endpoints.openai_form import (
    PARAMS,
    chat_answer,
    chat_stream,
    check_schema,
    constrained_text,
    counts,
    finish_reason,
    logprob_fields,
    response_format,
)
from stemma.interpreter.endpoints.prompt import Markers, Prompt, Shape, image_url
from stemma.interpreter.endpoints.retry import CONNECT_SECONDS, Failed
from stemma.interpreter.endpoints.selecting import BIAS, check_walk, decided, echoed, token_of, walk
from stemma.lang.choices import needs_unconditional
from stemma.lang.errors import EndpointError, RequestError

COMPLETION_MODELS = ("gpt-3.5-turbo-instruct", "davinci-002", "babbage-002")
OFFICIAL = "api.openai.com"

# what servers such as SGLang, vLLM and Stemma take besides, as fields of the body
EXTRA_PARAMS = frozenset(
    {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "skip_special_tokens", "no_stop_trim"}
    | {"min_tokens", "regex", "ebnf", "json_schema"}
)


class OpenAI(HostedEndpoint):
    """A model behind the OpenAI API, or behind any server that speaks it (`base_url`).

    `is_chat_model`: chat completions or completions; None: chat, unless the name is one of OpenAI's completion models.
    `chat_template`: for completions, the markers of roles: a name ("chatml", …) or {role: (before, after)}.
    `prefill`: the server goes on from an assistant message that is sent last; OpenAI itself does not.
    `strict`: JSON schemas are closed and sent with `strict: true`, so that the service enforces them.
    `extra_params`: names out of `EXTRA_PARAMS` that the server takes as additional fields.
    `encoding`: the model's tiktoken encoding, or its name, for select; None: looked up by the model's name.
    `select_by`: "logit_bias" or "echo" (completions only: scoring by log-probabilities of the echoed prompt); None:
    logit_bias on OpenAI itself or with `encoding`, else echo.
    `max_tokens_field`: "max_tokens" or "max_completion_tokens"; None: the latter on OpenAI's chat models.
    `extra_body`: fields added to every request as they are. `client_options` go to the `openai` client: `organization`,
    `default_headers`, … `api_key` and `base_url` default to `OPENAI_API_KEY` and `OPENAI_BASE_URL`.

    Raises `RequestError` for options, `EndpointError` when the package or the key is missing.
    """

    logprobs = True

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: str | Markers | None = None,
        is_azure: bool = False,
        *,
        api_key: Any = None,
        base_url: str | None = None,
        prefill: bool = False,
        strict: bool = True,
        extra_params: Collection[str] = (),
        encoding: Any = None,
        select_by: Literal["logit_bias", "echo"] | None = None,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        max_in_flight: int = 64,
        max_retries: int = 2,
        timeout: float | None = 600.0,
        **client_options: Any,
    ) -> None:
        super().__init__(
            model_name,
            chat_template=chat_template,
            max_in_flight=max_in_flight,
            max_retries=max_retries,
            timeout=timeout,
        )
        unknown = sorted(set(extra_params) - EXTRA_PARAMS)
        if unknown:
            raise RequestError(
                f"extra_params may hold {', '.join(sorted(EXTRA_PARAMS))}; got {unknown}", param="extra_params"
            )
        if select_by not in (None, "logit_bias", "echo"):
            raise RequestError(f"select_by must be 'logit_bias' or 'echo', got {select_by!r}", param="select_by")
        if max_tokens_field not in (None, "max_tokens", "max_completion_tokens"):
            raise RequestError(f"unknown max_tokens_field {max_tokens_field!r}", param="max_tokens_field")
        self.chat = model_name not in COMPLETION_MODELS if is_chat_model is None else is_chat_model
        self.continues = prefill or not self.chat
        self.images = self.chat
        self._strict = strict
        self._extra = frozenset(extra_params)
        self._extra_body = dict(extra_body or {})
        self._sdk = sdk("openai")
        self._azure = is_azure
        self._client_options = {**client_options, "api_key": api_key, "base_url": base_url}
        self._client: Any = self._connect()
        self.base_url = str(self._client.base_url).rstrip("/")
        official = OFFICIAL in self.base_url or is_azure
        self._limit = max_tokens_field or ("max_completion_tokens" if official and self.chat else "max_tokens")
        self._select_by = select_by or ("logit_bias" if official or encoding is not None else "echo")
        self._encoding: Any = encoding
        self._encoding_error: RequestError | None = None
        self.takes = PARAMS | (self._extra & {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos"})
        self.takes |= self._extra & {"skip_special_tokens", "no_stop_trim"}
        self.takes |= {"min_new_tokens"} if "min_tokens" in self._extra else set()
        by_schema = {"json_schema", "choices", "regex"} if self.chat else set()
        self.constraints = frozenset(by_schema | (self._extra & {"regex", "ebnf", "json_schema"}))
        self.limit_needed = not self.chat and official

    def _begin(self) -> None:
        super()._begin()
        self._client = None
        self._gate = threading.Lock()
        self._waiting: list[Callable[[], None]] | None = None  # what came while the encoding is being loaded

    def _connect(self) -> Any:
        options = {name: value for name, value in self._client_options.items() if value is not None}
        if options.get("base_url") and "api_key" not in options and not os.environ.get("OPENAI_API_KEY"):
            options["api_key"] = "none"  # a server of one's own may want no key, but the client does
        if self._azure and "base_url" in options:
            options["azure_endpoint"] = options.pop("base_url")
        options["timeout"] = self._sdk.Timeout(self.timeout, connect=CONNECT_SECONDS)
        make = self._sdk.AsyncAzureOpenAI if self._azure else self._sdk.AsyncOpenAI
        try:
            return make(max_retries=0, **options)
        except self._sdk.OpenAIError as error:
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

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        selects = any(n.get("kind") == "select" for b in delta["branches"] for n in b["nodes"])
        self._in_order(lambda: super(OpenAI, self).submit(delta, on_event), selects and self._needs_encoding())

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        self._in_order(lambda: super(OpenAI, self).cancel(program, branches), False)

    def _in_order(self, act: Callable[[], None], needs_encoding: bool) -> None:
        """Do it now; or, while the encoding is being loaded, when it is there: tiktoken may have to download it."""
        with self._gate:
            if self._waiting is not None:
                self._waiting.append(act)
            elif needs_encoding:
                self._waiting = [act]
                threading.Thread(target=self._load_and_go_on, name="stemma-tiktoken", daemon=True).start()
            else:
                act()

    def _load_and_go_on(self) -> None:
        self._load_encoding()
        with self._gate:
            waiting, self._waiting = self._waiting or [], None
            for act in waiting:
                act()

    def _needs_encoding(self) -> bool:
        walks = self.chat or self._select_by == "logit_bias"
        return walks and not self._knows_tokens() and self._encoding_error is None

    def _knows_tokens(self) -> bool:
        return not isinstance(self._encoding, (str, type(None)))

    def _load_encoding(self) -> None:
        try:
            tiktoken = sdk("tiktoken")
            named = self._encoding is not None
            self._encoding = tiktoken.get_encoding(self._encoding) if named else tiktoken.encoding_for_model(
                self.model_name
            )  # fmt: skip
        except Exception as error:
            self._encoding_error = RequestError(
                f"select on {self!r} needs the model's tokens: give encoding=, a tiktoken encoding or its name "
                f"({type(error).__name__}: {error})",
                param="encoding",
            )

    def check_gen(self, asked: Asked, shape: Shape) -> None:
        constraint = asked.constraint
        if constraint is None or constraint.kind in self._extra:
            return
        check_schema(self, constraint)
        if shape.role is not None and shape.filled and self.continues:
            raise RequestError(f"{self!r} cannot both go on from the beginning of a message and keep to a schema")

    def check_select(self, node: dict[str, Any], shape: Shape) -> None:
        choices = node["choices"]
        if not self.chat and self._select_by == "echo":
            return
        if needs_unconditional(node["method"]):
            raise RequestError(f"{self!r} cannot select by {node['method']}", param="choices_method")
        if not self._knows_tokens():
            raise self._encoding_error or RequestError(f"select on {self!r} needs encoding=", param="encoding")
        if self.chat and shape.filled and shape.role is not None:
            raise RequestError(f"{self!r} can only select as the first thing in assistant(…)", param="choices")
        check_walk(choices, self._ids(choices), first_only=self.chat)

    # --- requests

    def _fields(self, asked: Asked) -> dict[str, Any]:
        """What chat and completions have in common."""
        params = asked.params
        fields: dict[str, Any] = {"model": self.model_name, **given(params, PARAMS)}
        if params.max_new_tokens is not None:
            fields[self._limit] = params.max_new_tokens
        extra = {**self._extra_body, **given(params, self.takes - PARAMS)}
        if "min_new_tokens" in extra:
            extra["min_tokens"] = extra.pop("min_new_tokens")
        if asked.constraint is not None and asked.constraint.kind in self._extra:
            extra[asked.constraint.kind] = asked.constraint.value
        return {**fields, **({"extra_body": extra} if extra else {})}

    async def generate(self, prompt: Prompt, asked: Asked, call: Call) -> Answer:
        return await (self._chat if self.chat else self._complete)(prompt, asked, call)

    async def _chat(self, prompt: Prompt, asked: Asked, call: Call) -> Answer:
        fields = {**self._fields(asked), **logprob_fields(asked)}
        fields["messages"] = prompt.messages(image_url, open_message=self.continues)
        constraint = asked.constraint if asked.constraint and asked.constraint.kind not in self._extra else None
        if constraint is not None:
            fields["response_format"] = response_format(constraint, self._strict)

        async def ask() -> Answer:
            if not call.streams or constraint is not None:
                return chat_answer(await self._api.chat.completions.create(**fields))
            options = {"stream": True, "stream_options": {"include_usage": True}}
            async with await self._api.chat.completions.create(**fields, **options) as chunks:
                return await chat_stream(chunks, call)

        answer = await call.send(ask)
        if constraint is not None:
            answer.text = constrained_text(constraint, answer.text, answer.finish_reason)
            call.text(answer.text)
        return answer

    async def _complete(self, prompt: Prompt, asked: Asked, call: Call) -> Answer:
        fields = {**self._fields(asked), "prompt": prompt.as_text(self.marker)}
        if asked.logprobs is not None:
            fields["logprobs"] = asked.logprobs.get("top") or 0

        async def ask() -> Answer:
            if not call.streams:
                response = await self._api.completions.create(**fields)
                return _completion([response])
            options = {"stream": True, "stream_options": {"include_usage": True}}
            chunks = []
            async with await self._api.completions.create(**fields, **options) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
                    if chunk.choices and chunk.choices[0].text:
                        call.text(chunk.choices[0].text)
            return _completion(chunks)

        return await call.send(ask)

    # --- select

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [self._encoding.encode(text, disallowed_special=()) for text in texts]

    def cut(self, text: str, tokens: int) -> str | None:
        if not self._knows_tokens():
            return None
        return self._encoding.decode(self._encoding.encode(text, disallowed_special=())[:tokens])

    async def choose(self, prompt: Prompt, node: dict[str, Any], call: Call) -> Answer:
        if not self.chat and self._select_by == "echo":
            return await self._score(prompt, node, call)
        choices = node["choices"]
        ids = self._ids(choices)
        used = Answer("", None, 0, 0, 0)
        draw = {"temperature": node.get("temperature") or 0.0}
        if node.get("seed") is not None:
            draw["seed"] = node["seed"]

        async def pick(taken: list[int], candidates: list[int]) -> int:
            fields = {"model": self.model_name, "logit_bias": {str(t): BIAS for t in candidates}, **draw}
            fields[self._limit] = 1
            if self._extra_body:
                fields["extra_body"] = self._extra_body
            if self.chat:
                messages = prompt.messages(image_url, open_message=False)
                answer = chat_answer(
                    await call.send(lambda: self._api.chat.completions.create(messages=messages, **fields))
                )
            else:
                before = self._ids([prompt.as_text(self.marker)])[0]
                response = await call.send(lambda: self._api.completions.create(prompt=[*before, *taken], **fields))
                answer = _completion([response])
            for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
                setattr(used, name, (getattr(used, name) or 0) + (getattr(answer, name) or 0))
            return token_of(answer.text, candidates, self._encoding.decode)

        rows = [row[:1] for row in ids] if self.chat else ids
        chosen, scores = await walk(rows, pick)
        used.text = choices[chosen]
        used.more = {"choice": chosen, "scores": scores, "method": "logit_bias"}
        return used

    async def _score(self, prompt: Prompt, node: dict[str, Any], call: Call) -> Answer:
        text, choices, method = prompt.as_text(self.marker), node["choices"], node["method"]

        async def rows(before: str) -> tuple[list[list[float | None]], Any]:
            response = await call.send(
                lambda: self._api.completions.create(
                    model=self.model_name,
                    prompt=[before + choice for choice in choices],
                    max_tokens=0,
                    temperature=0.0,
                    echo=True,
                    logprobs=0,
                    extra_body=self._extra_body or None,
                )
            )
            found: list[list[float | None]] = [[] for _ in choices]
            for choice in response.choices:
                if choice.logprobs is None or not choice.logprobs.tokens:
                    raise EndpointError(f"{self!r} does not echo log-probabilities; try select_by='logit_bias'")
                found[choice.index] = echoed(choice.logprobs.tokens, choice.logprobs.token_logprobs, before)
            return found, response.usage

        scored, usage = await rows(text)
        free = (await rows(""))[0] if needs_unconditional(method) else None
        chosen, more = decided(node, scored, free)
        more["input_token_logprobs"] = [[[value, None, None] for value in row] for row in scored]
        told = counts(usage)
        return Answer(choices[chosen], None, **told, more=more)


def _completion(chunks: list[Any]) -> Answer:
    """From a completion, or all chunks of a streamed one. Raises `EndpointError` if it is not finished."""
    told = [choice for chunk in chunks for choice in chunk.choices[:1]]
    last = next((choice for choice in reversed(told) if choice.finish_reason), None)
    if last is None:
        raise EndpointError("the answer ended before it was finished")
    usage = counts(next((chunk.usage for chunk in reversed(chunks) if chunk.usage is not None), None))
    more: dict[str, Any] = {"id": chunks[0].id}
    known = [choice.logprobs for choice in told if choice.logprobs is not None]
    if known:
        pairs = [p for part in known for p in zip(part.token_logprobs or (), part.tokens or (), strict=False)]
        more["output_token_logprobs"] = [[logprob, None, token] for logprob, token in pairs]
        tops = [top for part in known for top in part.top_logprobs or ()]
        if any(tops):
            more["output_top_logprobs"] = [[[lp, None, token] for token, lp in (top or {}).items()] for top in tops]
    reason = finish_reason(last.finish_reason, last, usage["completion_tokens"])
    return Answer("".join(choice.text or "" for choice in told), reason, **usage, more=more)
