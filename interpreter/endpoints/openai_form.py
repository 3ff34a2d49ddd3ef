"""Chat requests and answers in the form of the OpenAI API, which several clients share."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from stemma.interpreter.endpoints.asking import Answer, Asked, Call
from stemma.interpreter.endpoints.hosted import closed_schema, unwrapped, wrapped_schema
from stemma.lang.errors import ConstraintError, EndpointError
from stemma.lang.params import Constraint
from stemma.lang.types import REGEX_BOOL, REGEX_FLOAT, REGEX_INT, REGEX_STR

PARAMS = frozenset({"temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "logit_bias"})

# the patterns of plain types, as the JSON schemas that mean the same
_TYPES = {
    REGEX_INT: {"type": "integer"},
    REGEX_FLOAT: {"type": "number"},
    REGEX_BOOL: {"type": "boolean"},
    REGEX_STR: {"type": "string"},
}


def schema_of(constraint: Constraint) -> Any:
    """The JSON schema that a constraint amounts to; None if it amounts to none."""
    if constraint.kind == "json_schema":
        return json.loads(str(constraint.value))
    if constraint.kind == "choices":
        return {"type": "string", "enum": list(constraint.value)}
    return _TYPES.get(str(constraint.value)) if constraint.kind == "regex" else None


def check_schema(who: object, constraint: Constraint | None) -> None:
    """Raise `ConstraintError` for a constraint that is no JSON schema and amounts to none."""
    if constraint is not None and schema_of(constraint) is None:
        raise ConstraintError(
            f"{who!r} enforces JSON schemas, and cannot enforce this {constraint.kind} constraint: "
            f"{str(constraint.value)!r:.120}",
            param=constraint.kind,
        )


def response_format(constraint: Constraint, strict: bool) -> dict[str, Any]:
    """`response_format` for a constraint that `check_schema` let pass."""
    schema, _ = wrapped_schema(schema_of(constraint))
    schema = closed_schema(schema) if strict else schema
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": strict}}


def constrained_text(constraint: Constraint, text: str, finish: Mapping[str, Any] | None) -> str:
    """The node's text out of an answer to `response_format`. Raises `EndpointError` if it does not keep to it."""
    _, wrapped = wrapped_schema(schema_of(constraint))
    if wrapped:
        text = unwrapped(text, dict(finish or {}), as_json=constraint.kind != "choices")
    if constraint.kind == "choices" and text not in constraint.value:
        raise EndpointError(f"the answer {text!r:.80} is none of the choices {list(constraint.value)!r}")
    if constraint.kind == "regex" and not re.fullmatch(str(constraint.value), text):
        raise EndpointError(f"the answer {text!r:.80} is not of the type that was asked for")
    return text


def finish_reason(given: str | None, choice: Any, tokens: int | None) -> dict[str, Any]:
    """A `finish_reason` as docs/graph.md has it."""
    if given == "length":
        return {"type": "length", "length": tokens}
    if given in ("content_filter", "abort"):
        return {"type": "abort", "message": given}
    matched = getattr(choice, "matched_stop", None)  # SGLang and Stemma tell; vLLM calls it stop_reason
    return {"type": "stop", "matched": getattr(choice, "stop_reason", None) if matched is None else matched}


def counts(usage: Any) -> dict[str, int | None]:
    """Token counts of a `usage` object, or Nones if there is none."""
    if usage is None:
        return {"prompt_tokens": None, "completion_tokens": None, "cached_tokens": None}
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": getattr(details, "cached_tokens", None) or 0,
    }


def chat_logprobs(content: Any) -> dict[str, Any]:
    """`logprobs.content` as `output_token_logprobs` and `output_top_logprobs`: (logprob, None, token text)."""
    if not content:
        return {}
    found: dict[str, Any] = {"output_token_logprobs": [[entry.logprob, None, entry.token] for entry in content]}
    if any(entry.top_logprobs for entry in content):
        found["output_top_logprobs"] = [[[t.logprob, None, t.token] for t in e.top_logprobs or ()] for e in content]
    return found


def chat_answer(response: Any) -> Answer:
    """From a chat completion. Raises `EndpointError` for a refusal or an empty list of choices."""
    if not response.choices:
        raise EndpointError("the service answered without choices")
    choice = response.choices[0]
    if getattr(choice.message, "refusal", None):
        raise EndpointError(f"the model refused: {choice.message.refusal}")
    more = {"id": response.id, **chat_logprobs(getattr(getattr(choice, "logprobs", None), "content", None))}
    reasoning = getattr(choice.message, "reasoning_content", None)
    if reasoning:
        more["reasoning_content"] = reasoning
    told = counts(response.usage)
    reason = finish_reason(choice.finish_reason, choice, told["completion_tokens"])
    return Answer(choice.message.content or "", reason, **told, more=more)


async def chat_stream(chunks: AsyncIterator[Any], call: Call) -> Answer:
    """From the chunks of a streamed chat completion, passing the text on."""
    parts: list[str] = []
    logprobs: list[Any] = []
    refusal, reasoning, last, usage, id = "", "", None, None, None
    async for chunk in chunks:
        id, usage = chunk.id or id, getattr(chunk, "usage", None) or usage
        for choice in chunk.choices[:1]:
            delta = choice.delta
            if delta is not None and delta.content:
                parts.append(delta.content)
                call.text(delta.content)
            refusal += getattr(delta, "refusal", None) or ""
            reasoning += getattr(delta, "reasoning_content", None) or ""
            logprobs += getattr(getattr(choice, "logprobs", None), "content", None) or []
            last = choice if choice.finish_reason else last
    if refusal:
        raise EndpointError(f"the model refused: {refusal}")
    if last is None:
        raise EndpointError("the stream ended before the answer was finished")
    more = {"id": id, **chat_logprobs(logprobs), **({"reasoning_content": reasoning} if reasoning else {})}
    told = counts(usage)
    return Answer("".join(parts), finish_reason(last.finish_reason, last, told["completion_tokens"]), **told, more=more)


def logprob_fields(asked: Asked) -> dict[str, Any]:
    """The fields of a chat request that ask for log-probabilities."""
    if asked.logprobs is None:
        return {}
    top = asked.logprobs.get("top") or 0
    return {"logprobs": True, **({"top_logprobs": top} if top else {})}
