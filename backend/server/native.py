"""The native routes: /generate, health, information and control."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from stemma import __version__
from stemma.backend.messages import IdsNode, error_object
from stemma.backend.observe.metrics import MEDIA_TYPE
from stemma.backend.observe.process import figures as process_figures
from stemma.backend.requests import GenerateRequest, Item
from stemma.backend.server.limits import read_object
from stemma.backend.server.service import Run, Service
from stemma.backend.server.sse import DONE, SSE, sse, unless_disconnected
from stemma.lang.errors import EndpointError, RequestError, StemmaError
from stemma.lang.params import SamplingParams

HEALTH_SECONDS = 20.0
FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def native_error(error: BaseException) -> dict[str, Any]:
    """The error object of the native family: the message, and what kind of error it is."""
    given = error_object(error)
    return {"error": {k: given[k] for k in ("message", "type", "param")}}


async def generate(request: Request) -> Response:
    service: Service = request.app.state.service
    parsed = GenerateRequest.parse(await read_object(request, service.limits.max_body_bytes))
    if parsed.return_text_in_logprobs:
        await service.need_tokenizer()
    if parsed.stream:
        run = await service.start(parsed)
        return service.stream(_generate_events(run), SSE, run.close, run.inbox)
    collector = await unless_disconnected(request.receive, service.complete(parsed))
    return Response() if collector is None else json_response(collector.result())


async def _generate_events(run: Run) -> AsyncGenerator[bytes, None]:
    collector = run.collector
    async for changed in run.changes():
        if collector.error is None:
            yield b"".join(sse(collector.stream_item(i)) for i in sorted(changed))
    if collector.error is not None:
        yield sse(native_error(collector.error))
    yield DONE


async def health(request: Request) -> Response:
    service: Service = request.app.state.service
    return json_response(service.client.health, 503 if service.client.problem else 200)


async def health_generate(request: Request) -> Response:
    """One token from the model itself."""
    service: Service = request.app.state.service
    params = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
    probe = GenerateRequest((Item(f"health-{time.monotonic_ns()}", (IdsNode([0]),), params),), log_metrics=False)
    try:
        await asyncio.wait_for(service.complete(probe), HEALTH_SECONDS)
    except (StemmaError, TimeoutError):
        return Response(status_code=503)
    return Response()


async def metrics(request: Request) -> Response:
    """For Prometheus. Answers also while there is no engine; its own figures are missing then."""
    service: Service = request.app.state.service
    health = service.client.health
    gauges: dict[str, float] = {"engine_up": 0, "num_inflight_reqs": service.flight.count}
    counters: dict[str, float] = {"engine_restarts_total": health["restarts"]}
    try:
        info = await service.client.info()
    except StemmaError:
        info = {}
    if info:
        total, free, cached = (info.get(n, 0) for n in ("total_slots", "free_slots", "evictable_slots"))
        used = total - free - cached
        counted = service.metrics.counters
        gauges |= {
            "engine_up": 1,
            "num_running_reqs": info.get("running", 0),
            "num_queue_reqs": info.get("waiting", 0),
            "num_programs": info.get("programs", 0),
            "num_used_tokens": used,
            "token_usage": used / total if total else 0.0,
            "cached_slots": info.get("cached_slots", 0),
            "cache_hit_rate": counted["cached_tokens_total"] / max(counted["prompt_tokens_total"], 1),
            "gen_throughput": service.throughput(counted["generation_tokens_total"]),
        }
        counters["computed_tokens_total"] = info.get("tokens_computed", 0)
    return PlainTextResponse(service.metrics.render(gauges, counters), media_type=MEDIA_TYPE)


async def debug_state(request: Request) -> Response:
    """What a leak would show in: counts that ought to be nothing when idle, and figures of both processes."""
    service: Service = request.app.state.service
    front = {
        "inflight": service.flight.count,
        "running": len(service.running),
        "graphs": len(service.graphs),
        "tasks": len(asyncio.all_tasks()),
        **process_figures(),
    }
    return json_response({"front": front, "engine": await service.client.state(), **service.client.health})


async def model_info(request: Request) -> Response:
    service: Service = request.app.state.service
    info = service.model_info
    names = ("model_path", "tokenizer_path", "served_model_name", "architectures", "context_length", "vocab_size")
    names += ("graph_refs",)
    return json_response({"is_generation": True, **{n: info[n] for n in names if n in info}})


async def server_info(request: Request) -> Response:
    service: Service = request.app.state.service
    info = await service.client.info()
    longest = min(info[n] for n in ("context_length", "max_total_num_tokens"))
    return json_response(
        {
            "use_mla_backend": False,
            "last_gen_throughput": service.throughput(service.metrics.counters["generation_tokens_total"]),
            **service.settings,
            **info,
            "status": "ready",
            "max_req_input_len": longest - 6,
            "inflight_requests": service.flight.count,
            "version": __version__,
        }
    )


async def flush_cache(request: Request) -> Response:
    """Refused while requests run; `?timeout=s` waits that long for them to end."""
    service: Service = request.app.state.service
    given = request.query_params.get("timeout", "0")
    try:
        timeout = float(given)
    except ValueError:
        timeout = -1.0
    if not 0.0 <= timeout <= 600.0:
        raise RequestError(f"timeout must be a number of seconds in [0, 600], got {given!r}", param="timeout")
    deadline = time.monotonic() + timeout
    while not await service.client.flush_cache():
        if time.monotonic() >= deadline:
            raise RequestError("the cache was not flushed: requests are running or waiting")
        await asyncio.sleep(0.05)
    return PlainTextResponse(FLUSHED)


async def abort_request(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_object(request, service.limits.max_body_bytes)
    rid, everything = body.get("rid"), body.get("abort_all")
    if everything not in (None, True, False) or (isinstance(everything, int) and not isinstance(everything, bool)):
        raise RequestError(f"abort_all must be true or false, got {everything!r}", param="abort_all")
    if not everything and (not isinstance(rid, str) or not rid):
        raise RequestError(f"rid must be a non-empty string unless abort_all is true, got {rid!r}", param="rid")
    service.abort(None if everything else rid)
    return Response()


async def not_offered(request: Request) -> Response:
    raise EndpointError(f"{request.url.path} is not supported by this version", status=501)


UNSUPPORTED = (
    "/encode", "/classify", "/generate_from_file", "/vertex_generate", "/invocations", "/set_internal_state",
    "/configure_logging", "/update_weights_from_disk", "/update_weights", "/init_weights_update_group",
    "/update_weights_from_distributed", "/update_weights_from_tensor", "/get_weights_by_name",
    "/release_memory_occupation", "/resume_memory_occupation", "/load_lora_adapter", "/unload_lora_adapter",
    "/start_profile", "/stop_profile", "/start_expert_distribution_record", "/stop_expert_distribution_record",
    "/dump_expert_distribution_record", "/parse_function_call", "/separate_reasoning", "/open_session",
    "/close_session", "/v1/embeddings", "/v1/files", "/v1/batches",
)  # fmt: skip

routes = [
    Route("/generate", generate, methods=["POST", "PUT"]),
    Route("/health", health),
    Route("/ready", health),
    Route("/ping", health),
    Route("/health_generate", health_generate),
    Route("/metrics", metrics),
    Route("/debug/state", debug_state),
    Route("/get_model_info", model_info),
    Route("/model_info", model_info),
    Route("/get_server_info", server_info),
    Route("/server_info", server_info),
    Route("/flush_cache", flush_cache, methods=["GET", "POST"]),
    Route("/abort_request", abort_request, methods=["POST"]),
    *(Route(path, not_offered, methods=["GET", "POST", "PUT"]) for path in UNSUPPORTED),
]
