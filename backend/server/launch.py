"""`stemma serve`: options, the front process, and an orderly beginning and end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

import uvicorn

from stemma.backend.config import EngineConfig
from stemma.backend.server.app import create_app
from stemma.backend.server.limits import Limits
from stemma.backend.server.remote import check_factory
from stemma.backend.server.service import Service
from stemma.backend.server.sse import Connections
from stemma.backend.server.supervisor import Restarts, Supervisor
from stemma.backend.text import Tokenizer
from stemma.lang.errors import EngineDeadError, RequestError

LINGER_SECONDS = 0.5  # after the engine was given up: time for waiting clients to read the cause
CLOSE_SECONDS = 5  # time for the last answers to be read
QUIET_SECONDS = 0.2  # without a request in flight: a program's next delta may be on its way until then


def _opt(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help, "choices": None})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Options of the HTTP server; the engine's own are in EngineConfig."""

    host: str = _opt("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in, then set an api key")
    port: int = _opt(30000, "port to listen on; 0 takes a free one and prints it")
    api_key: str | None = _opt(
        None, "key that clients must send as 'Authorization: Bearer KEY'; default: $STEMMA_API_KEY, if set"
    )
    max_body_mb: int = _opt(64, "longest request body in MiB; longer ones get status 413")
    max_batch_items: int = _opt(4096, "most prompts in one request")
    max_n: int = _opt(256, "most samples of one prompt (n)")
    max_inflight: int = _opt(4096, "most requests at a time; more get status 429 and Retry-After")
    max_inflight_mb: int = _opt(
        1024, "most MiB of bodies of requests that are not answered yet; more get status 429 and Retry-After"
    )
    max_client_buffer_kb: int = _opt(
        4096, "KiB that may wait for a streaming client to read them; a slower one is disconnected and its work aborted"
    )
    client_stall_timeout: float = _opt(
        60.0, "seconds that a client may take to read one piece of a stream before it is disconnected"
    )
    default_timeout: float | None = _opt(None, "seconds that a request may take which names no timeout of its own")
    max_timeout: float | None = _opt(None, "longest timeout in seconds that a request may name, and have by default")
    max_engine_restarts: int = _opt(
        5,
        "how often the engine may die within engine_restart_window and be started again; one death more ends the "
        "server with status 1",
    )
    engine_restart_window: float = _opt(600.0, "seconds over which deaths of the engine are counted")
    metrics_prefix: str = _opt("stemma_", "how the names on /metrics begin")
    enable_cache_report: bool = _opt(False, "tell in usage.prompt_tokens_details how many prompt tokens were cached")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RequestError(f"port must be in [0, 65535], got {self.port}", param="port")
        for name in ("client_stall_timeout", "engine_restart_window", "default_timeout", "max_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise RequestError(f"{name} must be a number of seconds > 0, got {value!r}", param=name)
        if (
            self.default_timeout is not None
            and self.max_timeout is not None
            and self.default_timeout > self.max_timeout
        ):
            raise RequestError(
                f"default_timeout {self.default_timeout} is longer than max_timeout {self.max_timeout}",
                param="default_timeout",
            )
        if self.max_engine_restarts < 0:
            raise RequestError(
                f"max_engine_restarts must be >= 0, got {self.max_engine_restarts}", param="max_engine_restarts"
            )
        if not re.fullmatch("[a-zA-Z_:][a-zA-Z0-9_:]*", self.metrics_prefix):
            raise RequestError(
                f"metrics_prefix must be letters, digits, '_' and ':', got {self.metrics_prefix!r}",
                param="metrics_prefix",
            )
        for name in (
            "max_body_mb", "max_batch_items", "max_n", "max_inflight", "max_inflight_mb", "max_client_buffer_kb"
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be >= 1, got {getattr(self, name)}", param=name)

    @property
    def limits(self) -> Limits:
        return Limits(
            max_body_bytes=self.max_body_mb << 20,
            max_batch_items=self.max_batch_items,
            max_n=self.max_n,
            max_inflight=self.max_inflight,
            max_inflight_bytes=self.max_inflight_mb << 20,
            max_client_bytes=self.max_client_buffer_kb << 10,
            stall_seconds=self.client_stall_timeout,
            default_timeout=self.default_timeout,
            max_timeout=self.max_timeout,
        )


def parser() -> argparse.ArgumentParser:
    """One flag for each field of ServerConfig and EngineConfig."""
    made = argparse.ArgumentParser(
        prog="stemma serve",
        description="Serve a model over HTTP: /v1/graph for programs, /generate, and the OpenAI routes.",
        epilog="Try: stemma serve --port 0   (the bundled demo model on a free port), then "
        'curl -s URL/generate -d \'{"text": "Hello"}\'',
    )
    made.add_argument("--engine-factory", default=None, help=argparse.SUPPRESS)
    for config, title in ((ServerConfig, "server"), (EngineConfig, "engine")):
        group = made.add_argument_group(title)
        hints = typing.get_type_hints(config)
        for f in fields(config):
            _add_flag(group, f.name, hints[f.name], f.default, f.metadata)
    return made


def _add_flag(group: Any, name: str, hint: Any, default: Any, metadata: Any) -> None:
    assert default is not MISSING
    flag = "--" + name.replace("_", "-")
    text = metadata["help"].replace("%", "%%")
    if hint is bool:
        group.add_argument(flag, action="store_true", help=text)
        return
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    if default is not None:
        text += f" (default: {default})"
    group.add_argument(flag, type=hint, default=default, choices=metadata["choices"], metavar=None, help=text)


def configs(options: argparse.Namespace) -> tuple[ServerConfig, EngineConfig]:
    """The checked configurations of a parsed command line."""
    given = vars(options)
    made = [c(**{f.name: given[f.name] for f in fields(c)}) for c in (ServerConfig, EngineConfig)]
    return typing.cast("tuple[ServerConfig, EngineConfig]", tuple(made))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal or the engine's death. The exit status: 0, or 1 with the cause on stderr."""
    options = parser().parse_args(argv)
    if options.api_key is None:
        options.api_key = os.environ.get("STEMMA_API_KEY") or None
    try:
        server, engine = configs(options)
        listener = _listen(server)
        with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serve(server, engine, listener, check_factory(options.engine_factory)))
    except (RequestError, EngineDeadError) as error:
        print(f"stemma serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: streams cost about half."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _listen(server: ServerConfig) -> socket.socket:
    """Take the port before the model is loaded, so that a conflict shows at once."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # also for answers that are not streams: they lie with the kernel
        patience = int(1000 * (server.client_stall_timeout + 15))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
    try:
        listener.bind((server.host, server.port))
    except OSError as error:
        listener.close()
        raise RequestError(
            f"cannot listen on {server.host}:{server.port}: {error.strerror or error}; "
            "choose another --port, or 0 for a free one",
            param="port",
        ) from None
    return listener


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the front process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(server: ServerConfig, engine: EngineConfig, listener: socket.socket, factory: str | None) -> int:
    """Start the engine process, serve until told to stop, leave nothing behind.

    The first signal stops new programs and lets those that run finish, up to `drain_timeout`; the second one fails
    them at once.
    """
    loop = asyncio.get_running_loop()
    server = replace(server, port=listener.getsockname()[1])
    stop, hurry = asyncio.Event(), asyncio.Event()
    this_task = asyncio.current_task()
    starting = True

    def on_signal() -> None:
        if starting and this_task is not None:
            this_task.cancel()
        elif hurry.is_set() and http is not None:
            http.force_exit = True
        elif stop.is_set():
            hurry.set()
        stop.set()

    http: _HttpServer | None = None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        restarts = Restarts(server.max_engine_restarts, server.engine_restart_window)
        client, info = await Supervisor.start(engine, factory, restarts)
    except asyncio.CancelledError:
        return 0  # told to stop while the model was loading
    finally:
        starting = False
    client.on_failure = stop.set
    try:
        service = _service(server, engine, client, info)
        http = _HttpServer(_http_config(service, server))
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        while not http.started and not serving.done():
            await asyncio.sleep(0.005)
        if not serving.done():
            host = f"[{server.host}]" if ":" in server.host else server.host
            print(f"Stemma ready on http://{host}:{server.port} (model {info['served_model_name']})", flush=True)
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait([waiting, serving], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if client.failure is None:
            await _drain(service, client, engine.drain_timeout, hurry)
        if client.failure is not None:
            await asyncio.sleep(LINGER_SECONDS)
        http.should_exit = True
        await serving
    finally:
        await client.stop()
    return 1 if client.failure else 0


async def _drain(service: Service, client: Supervisor, seconds: float, hurry: asyncio.Event) -> None:
    """Let what runs finish, then settle the rest with an error. Ends early on `hurry`, and when there is no engine."""
    client.drain()
    if service.flight.count:
        count = service.flight.count
        what = f"finishing {count} request{'s' if count > 1 else ''}, at most {seconds:g} s; again to stop at once"
        print(f"stemma serve: {what}", file=sys.stderr, flush=True)
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    quiet_since = loop.time()
    while loop.time() < until and not hurry.is_set() and client.finishing:
        if service.flight.count:
            quiet_since = loop.time()
        elif loop.time() - quiet_since >= QUIET_SECONDS:
            break
        await asyncio.sleep(0.02)
    client.fail_running()


def _service(server: ServerConfig, engine: EngineConfig, client: Supervisor, info: dict[str, Any]) -> Service:
    settings = {k: v for k, v in {**asdict(server), **asdict(engine)}.items() if k != "api_key"}
    return Service(
        client,
        info=info,
        settings=settings,
        limits=server.limits,
        load_tokenizer=lambda: Tokenizer.load(engine.model_dir),
    )


def _http_config(service: Service, server: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        Connections(create_app(service, api_key=server.api_key)),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )


if __name__ == "__main__":
    sys.exit(main())
