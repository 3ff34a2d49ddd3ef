"""The OpenAI wire format: bodies checked and lowered to a `GenerateRequest`, results put into its objects."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from stemma.backend.messages import IdsNode, LogprobOptions, Node, RoleBeginNode, RoleEndNode, TextNode, check_salt
from stemma.backend.requests import (
    GenerateRequest,
    Item,
    check_flag,
    check_ids,
    check_priority,
    parse_constraint,
    parse_sampling,
    parse_timeout,
    refuse_unsupported,
)
from stemma.lang.errors import RequestError

MAX_TOP_LOGPROBS = 20

_SAME = (
    "top_p", "top_k", "min_p", "stop", "stop_token_ids", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "logit_bias", "seed", "no_stop_trim", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "n",
    "finish_in_budget",
)  # fmt: skip

_BOTH: dict[str, tuple[Any, ...]] = {
    "lora_path": (None,),
    "session_params": (None,),
    "stop_regex": (None,),
    "custom_logit_processor": (None,),
    "custom_params": (None,),
    "return_hidden_states": (None, False),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "structured_outputs": (None,),
    "prompt_logprobs": (None,),
    "echo": (None, False),
}
UNSUPPORTED_CHAT: dict[str, tuple[Any, ...]] = _BOTH | {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, "text"),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "documents": (None, []),
    "best_of": (None,),
    "json_schema": (None,),
    "structural_tag": (None,),
}
UNSUPPORTED_COMPLETION: dict[str, tuple[Any, ...]] = _BOTH | {
    "suffix": (None, ""),
    "structural_tag": (None,),
}
_UNSUPPORTED_MESSAGE: dict[str, tuple[Any, ...]] = {
    "name": (None,),
    "tool_calls": (None, []),
    "tool_call_id": (None,),
    "function_call": (None,),
    "audio": (None,),
    "refusal": (None,),
    "reasoning_content": (None,),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A checked OpenAI request: what to run, and how to answer."""

    request: GenerateRequest
    model: str
    include_usage: bool
    logprobs: bool
    top_logprobs: int


ROLES = ("system", "developer", "user", "assistant", "tool")


def parse_chat(body: Mapping[str, Any]) -> Call:
    """The body of /v1/chat/completions."""
    refuse_unsupported(body, UNSUPPORTED_CHAT)
    for name in ("separate_reasoning", "stream_reasoning", "parallel_tool_calls"):
        check_flag(name, body.get(name), True)  # without reasoning parser and tools they change nothing
    nodes = chat_nodes(
        body.get("messages"), check_flag("continue_final_message", body.get("continue_final_message"), False)
    )
    longest = body.get("max_completion_tokens")
    name = "max_tokens" if longest is None else "max_completion_tokens"
    wanted = check_flag("logprobs", body.get("logprobs"), False)
    top = _count("top_logprobs", body.get("top_logprobs"), MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    constraints = _response_format(body.get("response_format")) | {k: body.get(k) for k in ("regex", "ebnf")}
    given = _sampling(body, name, body.get(name), temperature=0.7)
    return _call(body, [nodes], given, constraints, top or 0 if wanted else None, as_list=False)


def parse_completion(body: Mapping[str, Any]) -> Call:
    """The body of /v1/completions."""
    refuse_unsupported(body, UNSUPPORTED_COMPLETION)
    n, best_of = body.get("n"), body.get("best_of")
    if best_of is not None and best_of != (1 if n is None else n):
        raise RequestError("best_of is not supported by this version unless it equals n", param="best_of")
    top = _count("logprobs", body.get("logprobs"), MAX_TOP_LOGPROBS)
    constraints = _response_format(body.get("response_format"))
    for k in ("regex", "ebnf", "json_schema"):
        if body.get(k) is not None:
            if constraints.get(k) is not None:
                raise RequestError(f"{k} cannot be combined with response_format", param=k)
            constraints[k] = body[k]
    longest = body.get("max_tokens")
    given = _sampling(body, "max_tokens", 16 if longest is None else longest, temperature=1.0)
    prompts = _completion_prompts(body.get("prompt"))
    return _call(body, [(p,) for p in prompts], given, constraints, top, as_list=len(prompts) > 1)


def _call(
    body: Mapping[str, Any],
    prompts: Sequence[tuple[Node, ...]],
    given: dict[str, Any],
    constraints: Mapping[str, Any],
    top: int | None,
    as_list: bool,
) -> Call:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError(f"model must be a non-empty string, got {model!r}", param="model")
    user = body.get("user")
    if user is not None and not isinstance(user, str):
        raise RequestError(f"user must be a string, got {user!r}", param="user")
    rid = body.get("rid")
    if rid is not None and (not isinstance(rid, str) or not rid):
        raise RequestError(f"rid must be a non-empty string, got {rid!r}", param="rid")
    rid = rid or uuid.uuid4().hex
    stream = check_flag("stream", body.get("stream"), False)
    include_usage = _stream_options(body.get("stream_options"), stream)
    params, _, n = _renamed(given)
    logprobs = None if top is None else LogprobOptions(-1, top)
    salt = check_salt(body.get("cache_salt"))
    constraint = parse_constraint({**constraints, "constraint_after": body.get("constraint_after")})
    priority = check_priority(body.get("priority"))
    items = tuple(
        Item(rid if len(prompts) == 1 else f"{rid}-{i}", nodes, params, constraint, logprobs, salt, priority=priority)
        for i, nodes in enumerate(prompts)
    )
    request = GenerateRequest(
        items,
        n,
        stream,
        as_list or n > 1,
        timeout=parse_timeout(body.get("timeout")),
        log_metrics=check_flag("log_metrics", body.get("log_metrics"), True),
    )
    return Call(request, model, include_usage, top is not None, top or 0)


def _sampling(body: Mapping[str, Any], name: str, longest: Any, temperature: float) -> dict[str, Any]:
    given = {k: body[k] for k in _SAME if body.get(k) is not None}
    given["temperature"] = temperature if body.get("temperature") is None else body["temperature"]
    if body.get("min_tokens") is not None:
        given["min_new_tokens"] = body["min_tokens"]
    given["max_new_tokens"] = longest
    given["_name"] = name
    return given


def _renamed(given: dict[str, Any]) -> Any:
    """Parsed sampling parameters; errors speak of the names that the client used."""
    names = {"max_new_tokens": given.pop("_name"), "min_new_tokens": "min_tokens"}
    try:
        return parse_sampling(given)
    except RequestError as error:
        message = str(error)
        for ours, theirs in names.items():
            message = message.replace(ours, theirs)
        raise RequestError(message, param=names.get(error.param or "", error.param)) from None


def _count(name: str, value: Any, most: int) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= most:
        raise RequestError(f"{name} must be an integer in [0, {most}], got {value!r}", param=name)
    return value


def _stream_options(value: Any, stream: bool) -> bool:
    if value is None:
        return False
    if not isinstance(value, Mapping):
        raise RequestError(f"stream_options must be an object, got {value!r}", param="stream_options")
    if not stream:
        raise RequestError("stream_options needs stream to be true", param="stream_options")
    refuse_unsupported(value, {"continuous_usage_stats": (None, False)})
    return check_flag("stream_options.include_usage", value.get("include_usage"), False)


def _response_format(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"response_format must be an object, got {value!r}", param="response_format")
    kind = value.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": '{"type": "object"}'}
    if kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(schema, (Mapping, bool)):
            raise RequestError("response_format.json_schema.schema must be an object", param="response_format")
        # Without `strict` the schema is followed as far as it can be, and the answer says what was dropped of it.
        strict = check_flag("response_format.json_schema.strict", inner.get("strict"), False)
        return {"json_schema": msgspec.json.encode(schema).decode(), "lenient": not strict}
    if kind == "structural_tag":
        return {"structural_tag": msgspec.json.encode(value).decode()}
    raise RequestError(
        f"response_format.type must be text, json_object, json_schema or structural_tag, got {kind!r}",
        param="response_format",
    )


def _completion_prompts(value: Any) -> list[Node]:
    if isinstance(value, str):
        return [TextNode(value)]
    if isinstance(value, list) and value:
        if all(isinstance(p, str) for p in value):
            return [TextNode(p) for p in value]
        if isinstance(value[0], list):
            return [IdsNode(check_ids("prompt", ids)) for ids in value]
        if type(value[0]) is int:
            return [IdsNode(check_ids("prompt", value))]
    raise RequestError(
        "prompt must be a string, a list of strings, a list of token ids or a list of such lists, not empty",
        param="prompt",
    )


def chat_nodes(messages: Any, continue_last: bool = False) -> tuple[Node, ...]:
    """The conversation as nodes, ready for the assistant to speak; a last assistant message is a prefix to continue."""
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message", param="messages")
    nodes: list[Node] = []
    role = ""
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise RequestError(f"{where} must be an object, got {message!r}", param="messages")
        role = message.get("role")
        if role not in ROLES:
            raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}, got {role!r}", param="messages")
        try:
            refuse_unsupported(message, _UNSUPPORTED_MESSAGE)
        except RequestError as error:
            raise RequestError(f"{where}.{error}", param="messages") from None
        text = _content(message.get("content"), where)
        nodes.append(RoleBeginNode(role))
        if text:
            nodes.append(TextNode(text))
        nodes.append(RoleEndNode(role))
    if role == "assistant":
        nodes.pop()
    elif continue_last:
        raise RequestError("continue_final_message needs the last message to be from the assistant", param="messages")
    else:
        nodes.append(RoleBeginNode("assistant"))
    return tuple(nodes)


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be a string or a list of parts, got {content!r}", param="messages")
    texts: list[str] = []
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image_url", "audio_url", "video_url", "input_audio", "image", "file"):
            raise RequestError(f"{where}.content[{j}]: {kind} is not supported by this version", param="messages")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f'{where}.content[{j}] must be {{"type": "text", "text": …}}, got {part!r}', param="messages"
            )
        texts.append(part["text"])
    return "".join(texts)


# Answers

ERROR_TYPES = {
    400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 405: "MethodNotAllowedError",
    413: "RequestTooLargeError", 429: "RateLimitError", 501: "NotImplementedError", 503: "ServiceUnavailableError",
}  # fmt: skip


def openai_error(error: BaseException, status: int) -> dict[str, Any]:
    """The error object of the OpenAI family."""
    return {
        "object": "error",
        "message": str(error),
        "type": ERROR_TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError"),
        "param": getattr(error, "param", None),
        "code": status,
    }


def finish(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`finish_reason` and `matched_stop` of a choice, and `constraint_warnings` where there are any."""
    reason = meta.get("finish_reason") or {}
    warnings = meta.get("constraint_warnings")
    told = {"constraint_warnings": warnings} if warnings else {}
    return {"finish_reason": reason.get("type"), "matched_stop": reason.get("matched"), **told}


def usage(items: Sequence[Mapping[str, Any]], n: int, cache_report: bool) -> dict[str, Any]:
    """Token counts of a request; each prompt counts once whatever n is."""
    metas = [item["meta_info"] for item in items]
    prompt = sum(meta.get("prompt_tokens") or 0 for meta in metas[::n])
    completion = sum(meta.get("completion_tokens") or 0 for meta in metas)
    cached = sum(meta.get("cached_tokens") or 0 for meta in metas[::n])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached} if cache_report else None,
    }


class LogprobFormat:
    """Logprob lists of `meta_info` in OpenAI's two forms. `token_bytes` gives a token's own bytes."""

    def __init__(self, token_bytes: Callable[[int], bytes], top: int) -> None:
        self._bytes = token_bytes
        self._top = top

    def _token(self, id: int) -> str:
        return self._bytes(id).decode("utf-8", "replace")

    def _entry(self, logprob: float | None, id: int) -> dict[str, Any]:
        return {"token": self._token(id), "bytes": list(self._bytes(id)), "logprob": logprob}

    def chat(self, meta: Mapping[str, Any], start: int = 0) -> dict[str, Any]:
        """From output position `start` on."""
        content = []
        for chosen, top in self._positions(meta, start):
            entry = self._entry(chosen[0], chosen[1])
            content.append(entry | {"top_logprobs": [self._entry(t[0], t[1]) for t in top]})
        return {"content": content}

    def completion(self, meta: Mapping[str, Any], start: int = 0) -> dict[str, Any]:
        positions = self._positions(meta, start)
        tops = [{self._token(t[1]): t[0] for t in top} for _, top in positions]
        return {
            "text_offset": [-1] * len(positions),
            "token_logprobs": [chosen[0] for chosen, _ in positions],
            "tokens": [self._token(chosen[1]) for chosen, _ in positions],
            "top_logprobs": tops if self._top else None,
        }

    def _positions(self, meta: Mapping[str, Any], start: int) -> list[tuple[Sequence[Any], Sequence[Any]]]:
        chosen = (meta.get("output_token_logprobs") or [])[start:]
        tops = (meta.get("output_top_logprobs") or [])[start:] if self._top else []
        tops = list(tops) + [None] * (len(chosen) - len(tops))
        return [(c, t or ()) for c, t in zip(chosen, tops, strict=False)]
