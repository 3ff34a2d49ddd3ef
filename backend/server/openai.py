"""The OpenAI routes: /v1/chat/completions, /v1/completions, /v1/models. Lowered to the same programs as /generate."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stemma.backend.server.limits import read_object
from stemma.backend.server.native import json_response
from stemma.backend.server.openai_format import (
    Call,
    LogprobFormat,
    finish,
    openai_error,
    parse_chat,
    parse_completion,
    usage,
)
from stemma.backend.server.service import Run, Service
from stemma.backend.server.sse import DONE, SSE, sse, unless_disconnected
from stemma.lang.errors import RequestError, StemmaError


class Chat:
    """How chat completions are written."""

    prefix, object, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    @staticmethod
    def choice(index: int, text: str, logprobs: LogprobFormat | None, meta: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text or None, "reasoning_content": None, "tool_calls": None}
        chosen = None if logprobs is None else logprobs.chat(meta)
        return {"index": index, "message": message, "logprobs": chosen, **finish(meta)}

    @staticmethod
    def opening(index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    @staticmethod
    def piece(index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None}

    @staticmethod
    def closing(index: int, meta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, **finish(meta)}

    @staticmethod
    def logprobs(form: LogprobFormat, meta: dict[str, Any], start: int) -> dict[str, Any]:
        return form.chat(meta, start)


class Completion:
    """How text completions are written."""

    prefix, object, chunk = "cmpl-", "text_completion", "text_completion"

    @staticmethod
    def choice(index: int, text: str, logprobs: LogprobFormat | None, meta: dict[str, Any]) -> dict[str, Any]:
        chosen = None if logprobs is None else logprobs.completion(meta)
        return {"index": index, "text": text, "logprobs": chosen, **finish(meta)}

    @staticmethod
    def opening(index: int) -> dict[str, Any] | None:
        return None

    @staticmethod
    def piece(index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    @staticmethod
    def closing(index: int, meta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, **finish(meta)}

    @staticmethod
    def logprobs(form: LogprobFormat, meta: dict[str, Any], start: int) -> dict[str, Any]:
        return form.completion(meta, start)


Style = type[Chat] | type[Completion]


async def _answer(request: Request, call: Call, style: Style) -> Response:
    service: Service = request.app.state.service
    form = None
    if call.logprobs:
        await service.need_tokenizer()
        form = LogprobFormat(service.token_bytes, call.top_logprobs)
    head = {
        "id": style.prefix + call.request.items[0].rid,
        "object": style.chunk if call.request.stream else style.object,
        "created": int(time.time()),
        "model": call.model,
    }
    cache_report = bool(service.settings.get("enable_cache_report"))
    if call.request.stream:
        run = await service.start(call.request)
        return service.stream(_chunks(run, call, style, form, head, cache_report), SSE, run.close, run.inbox)
    collector = await unless_disconnected(request.receive, service.complete(call.request))
    if collector is None:
        return Response()
    items = [collector.item(i) for i in range(len(collector.samples))]
    choices = [style.choice(i, item["text"], form, item["meta_info"]) for i, item in enumerate(items)]
    return json_response({**head, "choices": choices, "usage": usage(items, call.request.n, cache_report)})


async def _chunks(
    run: Run, call: Call, style: Style, form: LogprobFormat | None, head: dict[str, Any], cache_report: bool
) -> AsyncGenerator[bytes, None]:
    """For each choice: an opening, pieces of text, a closing with the finish reason; then the usage if asked for."""
    collector = run.collector
    count = len(collector.samples)
    sent, scored = [0] * count, [0] * count

    def chunk(choice: dict[str, Any]) -> bytes:
        return sse({**head, "choices": [choice], "usage": None})

    openings = [o for i in range(count) if (o := style.opening(i)) is not None]
    if openings:
        yield b"".join(map(chunk, openings))
    async for changed in run.changes():
        if collector.error is not None:
            break
        out: list[bytes] = []
        for i in sorted(changed):
            sample = collector.samples[i]
            text = sample.text[sent[i] :]
            sent[i] += len(text)
            known = len(sample.meta.get("output_token_logprobs") or ())
            logprobs = style.logprobs(form, sample.meta, scored[i]) if form and known > scored[i] else None
            scored[i] = max(known, scored[i])
            if text or logprobs is not None:
                out.append(chunk(style.piece(i, text, logprobs)))
            if sample.finished:
                out.append(chunk(style.closing(i, sample.meta)))
        if out:
            yield b"".join(out)
    if collector.error is not None:
        status = getattr(collector.error, "status", None) or 500
        yield sse({"error": openai_error(collector.error, status)})
    elif call.include_usage:
        items = [collector.item(i) for i in range(count)]
        yield sse({**head, "choices": [], "usage": usage(items, call.request.n, cache_report)})
    yield DONE


async def chat_completions(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_object(request, service.limits.max_body_bytes)
    return await _answer(request, parse_chat(body), Chat)


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_object(request, service.limits.max_body_bytes)
    return await _answer(request, parse_completion(body), Completion)


def _model(service: Service) -> dict[str, Any]:
    info = service.model_info
    name = info["served_model_name"]
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "stemma",
        "root": info.get("model_path", name),
        "max_model_len": info.get("context_length"),
    }


async def models(request: Request) -> Response:
    return json_response({"object": "list", "data": [_model(request.app.state.service)]})


async def model(request: Request) -> Response:
    card, asked = _model(request.app.state.service), request.path_params["id"]
    if asked != card["id"]:
        raise _not_found(asked, card["id"])
    return json_response(card)


def _not_found(asked: str, served: str) -> StemmaError:
    return RequestError(f"there is no model {asked!r} here; this server serves {served!r}", param="model", status=404)


routes = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", models),
    Route("/v1/models/{id:path}", model),
]
