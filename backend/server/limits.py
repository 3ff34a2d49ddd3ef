"""What one request may ask, and how many may be in flight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

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

    def check(self, request: GenerateRequest) -> None:
        """RequestError when a request is too wide."""
        if len(request.items) > self.max_batch_items:
            raise RequestError(
                f"a batch may hold at most {self.max_batch_items} prompts, got {len(request.items)}", param="text"
            )
        if request.n > self.max_n:
            raise RequestError(f"n must be at most {self.max_n}, got {request.n}", param="n")


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
                f"too many requests: {self.limit} are in flight; try again after {RETRY_AFTER_SECONDS} s", status=429
            )
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


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
