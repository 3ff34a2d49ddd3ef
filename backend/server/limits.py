"""What one request may ask, and how many may be in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stemma.backend.requests import GenerateRequest
from stemma.lang.errors import RequestError

RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep one client from taking the whole server."""

    max_body_bytes: int = 64 << 20
    max_batch_items: int = 4096
    max_n: int = 256
    max_inflight: int = 4096
    max_nodes: int = 100_000  # in one delta
    max_inflight_bytes: int = 1024 << 20  # of bodies of requests that are not answered yet
    max_client_bytes: int = 4 << 20  # that wait for one client to read them
    stall_seconds: float = 60.0  # that one client may take to read a piece
    default_timeout: float | None = None
    max_timeout: float | None = None

    def timeout(self, asked: float | None) -> float | None:
        """The seconds that a request may take. RequestError when it asks for more than it may."""
        if asked is None:
            return self.max_timeout if self.default_timeout is None else self.default_timeout
        if self.max_timeout is not None and asked > self.max_timeout:
            raise RequestError(f"timeout must be at most {self.max_timeout:g} s here, got {asked:g}", param="timeout")
        return asked

    def check(self, request: GenerateRequest) -> GenerateRequest:
        """The request with its timeout. RequestError when it is too wide."""
        if len(request.items) > self.max_batch_items:
            raise RequestError(
                f"a batch may hold at most {self.max_batch_items} prompts, got {len(request.items)}", param="text"
            )
        if request.n > self.max_n:
            raise RequestError(f"n must be at most {self.max_n}, got {request.n}", param="n")
        timeout = self.timeout(request.timeout)
        return request if timeout == request.timeout else replace(request, timeout=timeout)


class Flight:
    """Counts the requests that hold the engine."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Raises RequestError with status 429 when too many are in flight."""
        if self.count >= self.limit:
            raise RequestError(
                f"too many requests: {self.limit} are in flight; try again after {RETRY_AFTER_SECONDS} s",
                status=429,
                retry_after=RETRY_AFTER_SECONDS,
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


class Bodies:
    """Counts the bytes of all bodies whose requests are not answered yet, and refuses more than `limit` together.

    A body whose next piece does not come within `stall` seconds is not waited for.
    """

    def __init__(self, app: ASGIApp, limit: int, stall: float) -> None:
        self._app, self._limit, self._stall = app, limit, stall
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        mine, whole = 0, False

        async def counted() -> Message:
            nonlocal mine, whole
            if whole:  # what comes now is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout(self._stall):
                    message = await receive()
            except TimeoutError:
                raise RequestError(f"the request body did not arrive within {self._stall:g} s", status=408) from None
            whole = not message.get("more_body")
            size = len(message.get("body") or b"")
            if self.held + size > self._limit and size:
                raise RequestError(
                    f"too many requests: their bodies hold more than {self._limit} bytes together; try again after "
                    f"{RETRY_AFTER_SECONDS} s",
                    status=429,
                    retry_after=RETRY_AFTER_SECONDS,
                )
            mine += size
            self.held += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self.held -= mine


async def read_body(request: Request, limit: int) -> bytes:
    """The body; RequestError with status 413 as soon as it is known to be too long."""
    refusal = RequestError(f"the request body is longer than {limit} bytes", status=413)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise refusal
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise refusal
            parts.append(part)
    except ClientDisconnect:
        raise RequestError("the client went away while sending") from None
    return b"".join(parts)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The body as a JSON object; RequestError for anything else."""
    body = await read_body(request, limit)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise RequestError(f"the request body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the request body must be a JSON object, got {type(value).__name__}")
    return value
