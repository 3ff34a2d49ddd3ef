"""Streams that notice when the client goes away or does not read, also while there is nothing to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
ABORT = "stemma.abort"  # an extension of the scope: closes the connection at once


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def line(value: Any) -> bytes:
    """One NDJSON line."""
    return msgspec.json.encode(value) + b"\n"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Connections:
    """Outermost: tells routes how to close a connection whose client does not read, without waiting for it to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = getattr(getattr(send, "__self__", None), "transport", None)  # uvicorn's request cycle has it
        if transport is not None:
            scope["extensions"] = {**(scope.get("extensions") or {}), ABORT: transport.abort}
        await self._app(scope, receive, send)


class Stream(Response):
    """Sends the chunks of a generator. When the client disconnects, the generator is closed at once.

    So it is when the client is too slow: when `full` is set, or one piece takes longer than `stall` seconds to be
    taken. Then the connection is closed without an end, which no client can mistake for the whole answer.
    `close` is called at the end in every case, also when the generator never started; it must be idempotent.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        media_type: str,
        close: Callable[[], None],
        *,
        full: asyncio.Event,
        stall: float,
        slow: Callable[[], None],
    ) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._close = chunks, close
        self._full, self._stall, self._slow = full, stall, slow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(_gone(receive))
        full = asyncio.create_task(self._full.wait())
        tasks = (pump, gone, full)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            late = full.done() or (pump.done() and isinstance(pump.exception(), TimeoutError))
            if late and not gone.done():
                self._close()
                self._slow()
                abort = (scope.get("extensions") or {}).get(ABORT)
                if abort is not None:
                    abort()
                    await asyncio.wait([gone], timeout=1.0)
        finally:
            for task in tasks:
                task.cancel()
            self._close()
            await asyncio.wait(tasks)
            await self._chunks.aclose()
        if not pump.cancelled() and not isinstance(pump.exception(), TimeoutError):
            pump.result()

    async def _pump(self, send: Send) -> None:
        async def give(message: dict[str, Any]) -> None:
            async with asyncio.timeout(self._stall):
                await send(message)

        try:
            await give({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._chunks:
                await give({"type": "http.response.body", "body": chunk, "more_body": True})
            await give({"type": "http.response.body", "body": b""})
        except TimeoutError:
            raise
        except OSError:
            pass  # the client is gone


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None after cancelling it because the client went away."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    return None if task.cancelled() else task.result()
