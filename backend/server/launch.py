"""`stemma serve`: options, the front process, and an orderly beginning and end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
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
from stemma.backend.server.remote import RemoteClient, check_factory
from stemma.backend.server.service import Service
from stemma.backend.text import Tokenizer
from stemma.lang.errors import EngineDeadError, RequestError

LINGER_SECONDS = 0.5  # after the engine died: time for waiting clients to read the cause
DRAIN_SECONDS = 5


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
    enable_cache_report: bool = _opt(False, "tell in usage.prompt_tokens_details how many prompt tokens were cached")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RequestError(f"port must be in [0, 65535], got {self.port}", param="port")
        for name in ("max_body_mb", "max_batch_items", "max_n", "max_inflight"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be >= 1, got {getattr(self, name)}", param=name)

    @property
    def limits(self) -> Limits:
        return Limits(self.max_body_mb << 20, self.max_batch_items, self.max_n, self.max_inflight)


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
    """Start the engine process, serve until told to stop, leave nothing behind."""
    loop = asyncio.get_running_loop()
    server = replace(server, port=listener.getsockname()[1])
    stop = asyncio.Event()
    this_task = asyncio.current_task()
    starting = True

    def on_signal() -> None:
        if starting and this_task is not None:
            this_task.cancel()
        elif stop.is_set() and http is not None:
            http.force_exit = True
        stop.set()

    http: _HttpServer | None = None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        client, info = await RemoteClient.start(engine, factory)
    except asyncio.CancelledError:
        return 0  # told to stop while the model was loading
    finally:
        starting = False
    client.on_death = stop.set
    try:
        http = _HttpServer(_http_config(server, engine, client, info))
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        while not http.started and not serving.done():
            await asyncio.sleep(0.005)
        if not serving.done():
            host = f"[{server.host}]" if ":" in server.host else server.host
            print(f"Stemma ready on http://{host}:{server.port} (model {info['served_model_name']})", flush=True)
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait([waiting, serving], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if client.death:
            print(f"stemma serve: {client.death}", file=sys.stderr, flush=True)
            await asyncio.sleep(LINGER_SECONDS)
        else:
            client.drain()
        http.should_exit = True
        await serving
    finally:
        died = client.death is not None and not client.stopping
        await client.stop()
    return 1 if died else 0


def _http_config(
    server: ServerConfig, engine: EngineConfig, client: RemoteClient, info: dict[str, Any]
) -> uvicorn.Config:
    settings = {k: v for k, v in {**asdict(server), **asdict(engine)}.items() if k != "api_key"}
    service = Service(
        client,
        info=info,
        settings=settings,
        limits=server.limits,
        load_tokenizer=lambda: Tokenizer.load(engine.model_dir),
    )
    app = create_app(service, api_key=server.api_key)
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


if __name__ == "__main__":
    sys.exit(main())
