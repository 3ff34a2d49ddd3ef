"""A graph server in a few lines: the HTTP side of docs/graph.md over a scripted endpoint."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from stemma import ScriptedEndpoint
from stemma.interpreter.endpoints.base import Endpoint
from tests.interpreter.services import Reply, Service

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import fetches a price list

ANSWERED = ("gen", "select", "role_begin", "role_end")


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # a batch connects all at once; the default of 5 would reset some


class GraphServer:
    """Serves an endpoint on a free port of 127.0.0.1. `handle`, when given, may answer a request in its own way."""

    def __init__(self, endpoint: Endpoint | None = None, handle: Callable[[Handler], bool] | None = None) -> None:
        self.endpoint = endpoint or ScriptedEndpoint()
        self.handle = handle
        self.requests: list[tuple[str, str, Any, dict[str, str]]] = []
        self.arrived = threading.Condition()
        self._http = _Http(("127.0.0.1", 0), Handler)
        self._http.graph = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def wait_for(self, path: str) -> Any:
        """The body of the first request to that path, once it has come."""

        def found() -> list[Any]:
            return [body for _, asked, body, _ in self.requests if asked == path]

        with self.arrived:
            assert self.arrived.wait_for(found, 5), path
        return found()[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return None

    @property
    def graph(self) -> GraphServer:
        return self.server.graph  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._take(None)

    def do_POST(self) -> None:
        self._take(json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null"))

    def _take(self, body: Any) -> None:
        self.body = body
        with self.graph.arrived:
            self.graph.requests.append((self.command, self.path, body, dict(self.headers)))
            self.graph.arrived.notify_all()
        if self.graph.handle is not None and self.graph.handle(self):
            return
        if self.path == "/v1/graph":
            self._run(body)
        elif self.path == "/v1/graph/cancel":
            self.graph.endpoint.cancel(body["program"], body.get("branches"))
            self.answer(200, {})
        elif self.path == "/get_model_info":
            self.answer(200, self.graph.endpoint.info())
        else:
            self.answer(200, b"flushed")

    def answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _run(self, delta: Any) -> None:
        events: queue.Queue[Any] = queue.Queue()
        left = {
            (branch["id"], i)
            for branch in delta["branches"]
            for i, node in enumerate(branch["nodes"], branch["first"])
            if node["kind"] in ANSWERED
        }
        self.graph.endpoint.submit(delta, events.put)
        self.begin_stream()
        while left:
            event = events.get(timeout=10)
            if event["event"] != "delta":
                left.discard((event["branch"], event["node"]))
            line = json.dumps(event).encode() + b"\n"
            self.chunk(line[:7])  # lines may come in pieces
            self.chunk(line[7:])
        self.chunk(b"")


@pytest.fixture
def serve() -> Iterator[Callable[..., GraphServer]]:
    """Start a graph server; it is closed after the test."""
    servers: list[GraphServer] = []

    def start(endpoint: Endpoint | None = None, handle: Callable[[Handler], bool] | None = None) -> GraphServer:
        servers.append(GraphServer(endpoint, handle))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[GraphServer]:
    """One server for tests that only need some server."""
    server = GraphServer()
    yield server
    server.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    """Start a service; it is closed after the test."""
    services: list[Service] = []

    def begin(make: Callable[..., Service], reply: Reply | None = None) -> Service:
        services.append(make(reply))
        return services[-1]

    yield begin
    for service in services:
        service.close()
