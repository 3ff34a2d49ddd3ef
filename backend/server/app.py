"""The application: routes, authentication, CORS, and errors in the form that each family of routes promises."""

from __future__ import annotations

import hmac
import math
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from stemma.backend.messages import error_object
from stemma.backend.server import graph, native, openai
from stemma.backend.server.limits import RETRY_AFTER_SECONDS, Bodies
from stemma.backend.server.native import json_response, native_error
from stemma.backend.server.openai_format import openai_error
from stemma.backend.server.service import Service
from stemma.lang.errors import StemmaError


def create_app(service: Service, *, api_key: str | None = None) -> Starlette:
    """The ASGI application. The engine client in `service` must belong to the loop that serves it."""
    app = Starlette(
        routes=[*native.routes, *graph.routes, *openai.routes],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]),
            Middleware(Authentication, api_key=api_key),
            Middleware(Bodies, limit=service.limits.max_inflight_bytes, stall=service.limits.stall_seconds),
        ],
        exception_handlers={StemmaError: _failed, HTTPException: _no_route, Exception: _failed},
    )
    app.state.service = service
    return app


class Authentication:
    """`Authorization: Bearer KEY` on everything but OPTIONS and the health routes."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._expected is not None and scope["type"] == "http" and not self._open(scope):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await json_response({"error": "Unauthorized"}, 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    @staticmethod
    def _open(scope: Scope) -> bool:
        return scope["method"] == "OPTIONS" or scope["path"].startswith("/health")


def _is_openai(path: str) -> bool:
    return path.startswith("/v1/") and not path.startswith("/v1/graph")


def _failed(request: Request, error: Exception) -> Response:
    status = error_object(error)["status"] if isinstance(error, StemmaError) else 500
    body: dict[str, Any] = openai_error(error, status) if _is_openai(request.url.path) else native_error(error)
    response = json_response(body, status)
    if status in (429, 503):
        pause = getattr(error, "retry_after", None) or RETRY_AFTER_SECONDS
        response.headers["Retry-After"] = str(math.ceil(pause))
    if status == 429:
        request.app.state.service.metrics.count("refused_requests_total")
    return response


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    message = {
        404: f"no such route: {path}",
        405: f"{request.method} is not allowed on {path}",
    }.get(status, error.detail or HTTPStatus(status).phrase)
    if _is_openai(path):
        body = openai_error(Exception(message), status)
    else:
        body = {"error": {"message": message}}
    response = json_response(body, status)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
