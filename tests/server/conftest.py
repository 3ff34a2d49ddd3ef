"""An application around a scripted engine, and a small client that can also walk away."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from stemma.backend.server.app import create_app
from stemma.backend.server.client import LocalClient
from stemma.backend.server.limits import Limits
from stemma.backend.server.service import Service

HERE = Path(__file__).parent


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"stemma_tests_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FakeEngine = _load("fake_engine").FakeEngine


class Letters:
    """A tokenizer whose token n is the character n."""

    rendered_bytes = tuple(bytes([b]) for b in range(256))


class Site:
    """One application and its engine. `call` runs one request to its end, each on a fresh event loop."""

    def __init__(self, limits: Limits, api_key: str | None, settings: dict[str, Any]) -> None:
        self.engine = FakeEngine()
        self.client = LocalClient(self.engine)
        load: Any = Letters
        self.service = Service(
            self.client, info=self.engine.info(), settings=settings, limits=limits, load_tokenizer=load
        )
        self.app: Starlette = create_app(self.service, api_key=api_key)

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        if body is not None:
            options["content"] = body if isinstance(body, bytes) else json.dumps(body).encode()

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(asyncio.wait_for(run(), 10))

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.call("POST", path, body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.call("GET", path, **options)

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(asyncio.wait_for(work(), 10))


class Visit:
    """One ASGI request by hand: chunks as they come, and `leave`."""

    def __init__(self, app: Starlette, path: str, body: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        self.started = asyncio.Event()
        self.first = asyncio.Event()
        self._left = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "POST",
            "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [], "scheme": "http",
            "server": ("test", 80), "client": ("test", 1), "root_path": "",
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self.started.set()
        if message.get("body"):
            self.first.set()

    async def leave(self) -> None:
        self._left.set()
        await self.task


@pytest.fixture
def visit() -> type[Visit]:
    return Visit


@pytest.fixture
def make_site() -> Callable[..., Site]:
    def make(limits: Limits | None = None, api_key: str | None = None, **settings: Any) -> Site:
        return Site(limits or Limits(), api_key, settings)

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.fixture
def events() -> Callable[[httpx.Response], list[Any]]:
    """The decoded events of an SSE body, `[DONE]` checked and taken away."""

    def decode(response: httpx.Response) -> list[Any]:
        assert response.headers["content-type"].startswith("text/event-stream")
        parts = response.text.split("\n\n")
        assert parts.pop() == "" and parts.pop() == "data: [DONE]"
        assert all(p.startswith("data: ") for p in parts)
        return [json.loads(p.removeprefix("data: ")) for p in parts]

    return decode
