"""POST /v1/graph: a delta of a program in, its events out as NDJSON. See docs/graph.md."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stemma.backend.messages import ANSWERS, parse_delta
from stemma.backend.requests import check_ids
from stemma.backend.server.client import Inbox, open_nodes
from stemma.backend.server.limits import read_body, read_object
from stemma.backend.server.native import json_response
from stemma.backend.server.service import Service
from stemma.backend.server.sse import NDJSON, line
from stemma.lang.errors import RequestError


async def graph(request: Request) -> Response:
    """The response begins when the engine has accepted the delta and ends when its nodes have settled.

    A client that leaves before that cancels the program.
    """
    service: Service = request.app.state.service
    body = await read_body(request, service.limits.max_body_bytes)
    try:
        delta = parse_delta(body)
    except (RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"malformed program graph: {error}") from None
    nodes = sum(len(branch.nodes) for branch in delta.branches)
    if nodes > service.limits.max_nodes:
        raise RequestError(f"a delta may hold at most {service.limits.max_nodes} nodes, got {nodes}", param="branches")
    timeout = service.limits.timeout(delta.timeout)
    if timeout != delta.timeout:
        delta = msgspec.structs.replace(delta, timeout=timeout)
    inbox, unsettled = Inbox(service.limits.max_client_bytes), open_nodes(delta)
    new = {branch.id for branch in delta.branches if branch.first == 0}
    goes_on = any(b.first > 0 or (b.parent is not None and b.parent not in new) for b in delta.branches)
    flight = service.enter(goes_on or not delta.branches)
    try:
        await service.submit(delta, inbox.sink(0))
    except BaseException:
        flight.__exit__(None, None, None)
        raise
    service.graphs[delta.program] = service.graphs.get(delta.program, 0) + 1
    closed = False

    async def events() -> AsyncGenerator[bytes, None]:
        while unsettled:
            lines = []
            for _, event in await inbox.take():
                if event["event"] in ANSWERS:
                    unsettled.discard((event["branch"], event["node"]))
                lines.append(line(event))
            yield b"".join(lines)

    def close() -> None:
        nonlocal closed
        if closed:
            return
        closed = True
        flight.__exit__(None, None, None)
        service.graphs[delta.program] -= 1
        if not service.graphs[delta.program]:
            del service.graphs[delta.program]
        if unsettled:
            service.client.cancel(delta.program)

    return service.stream(events(), NDJSON, close, inbox)


async def cancel(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_object(request, service.limits.max_body_bytes)
    program, branches = body.get("program"), body.get("branches")
    unknown = sorted(set(body) - {"program", "branches"})
    if unknown:
        raise RequestError(f"unknown field {unknown[0]!r}; fields are program and branches", param=unknown[0])
    if not isinstance(program, str) or not program:
        raise RequestError(f"program must be a non-empty string, got {program!r}", param="program")
    if branches is not None and not (isinstance(branches, list) and all(isinstance(b, str) for b in branches)):
        raise RequestError(f"branches must be a list of branch ids, got {branches!r}", param="branches")
    service.client.cancel(program, branches)
    return json_response({})


async def tokens(request: Request) -> Response:
    """What token ids stand for in text."""
    service: Service = request.app.state.service
    body = await read_object(request, service.limits.max_body_bytes)
    unknown = sorted(set(body) - {"ids"})
    if unknown:
        raise RequestError(f"unknown field {unknown[0]!r}; the field is ids", param=unknown[0])
    ids = check_ids("ids", body.get("ids"))
    await service.need_tokenizer()
    told = {str(i): base64.b64encode(service.token_bytes(i)).decode() for i in set(ids)}
    return json_response({"bytes": told})


routes = [
    Route("/v1/graph", graph, methods=["POST"]),
    Route("/v1/graph/cancel", cancel, methods=["POST"]),
    Route("/v1/graph/tokens", tokens, methods=["POST"]),
]
