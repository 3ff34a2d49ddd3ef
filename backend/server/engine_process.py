"""The engine process: `python -m stemma.backend.server.engine_process FD`, spawned by the front process.

A reader thread takes messages from the socket, a writer thread sends what has gathered since its last write as one
frame. The process ends when the front process says so or when its end of the socket closes: no orphans.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from dataclasses import replace
from typing import Any

from stemma.backend.config import EngineConfig
from stemma.backend.messages import error_object
from stemma.backend.server import ipc
from stemma.backend.server.client import EngineLike
from stemma.lang.errors import EngineDeadError, RequestError, StemmaError

MAX_PENDING = 65_536  # events that wait to be sent; then the engine waits for the front process
EVENTS_IN_FRAME = 512
BLOCK = 1 << 20  # bytes of one write, about
QUEUED_PER_ROW = 64  # max_queued_requests, unless it is given


class Writer:
    """Gathers messages and events from any thread and sends them in order, as many as there are in one write.

    Whoever has an event waits while MAX_PENDING others do: a front process that does not read holds the engine up, and
    not the memory.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ready = threading.Condition()
        self._messages: list[ipc.ToFront] = []
        self._pending = 0  # events
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ipc-writer", daemon=True)
        self._thread.start()

    def send(self, message: ipc.ToFront) -> None:
        with self._ready:
            self._messages.append(message)
            self._ready.notify_all()

    def event(self, id: int, event: dict[str, Any]) -> None:
        with self._ready:
            while self._pending >= MAX_PENDING and not self._closed:
                self._ready.wait()
            self._pending += 1
            last = self._messages[-1] if self._messages else None
            if isinstance(last, ipc.Events) and len(last.events) < EVENTS_IN_FRAME:
                last.events.append((id, event))
            else:
                self._messages.append(ipc.Events([(id, event)]))
                self._ready.notify_all()

    def close(self) -> None:
        """Send what is left, then stop."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            with self._ready:
                if not self._messages and not self._closed:
                    self._ready.wait(ipc.HEARTBEAT_SECONDS)
                messages, self._messages = self._messages, []
                if not messages and self._closed:
                    return
            try:
                self._send_all(messages or [ipc.Heartbeat()])
            except OSError:
                self._free(MAX_PENDING, closed=True)
                return  # the front process is gone; the reader ends this process
            except Exception as error:
                _last_words(self._sock, f"an event cannot be sent: {error}")

    def _send_all(self, messages: list[ipc.ToFront]) -> None:
        block, sent = bytearray(), 0
        for message in messages:
            block += ipc.frame(message)
            sent += len(message.events) if isinstance(message, ipc.Events) else 0
            if len(block) >= BLOCK:
                self._sock.sendall(block)
                self._free(sent)
                block, sent = bytearray(), 0
        self._sock.sendall(block)
        self._free(sent)

    def _free(self, events: int, closed: bool = False) -> None:
        with self._ready:
            full = self._pending >= MAX_PENDING
            self._pending = max(self._pending - events, 0)
            self._closed = self._closed or closed
            if full or closed:
                self._ready.notify_all()


def _last_words(sock: socket.socket, message: str) -> None:
    """Report a failure that nobody can recover from, and end the process."""
    try:
        sock.sendall(ipc.frame(ipc.Fatal(message)))
    finally:
        os._exit(1)


class Server:
    """Answers messages with an engine, built in the main thread while the reader already watches the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._writer = Writer(sock)
        self._engine: EngineLike | None = None
        self._stop = threading.Event()
        self._cause: str | None = None  # why the engine stopped by itself

    def run(self) -> int:
        start = ipc.read_to_engine(self._sock)
        assert isinstance(start, ipc.Start), "the first message starts the engine"
        threading.Thread(target=self._read, name="ipc-reader", daemon=True).start()
        try:
            self._engine = build(start)
            self._engine.on_death = self._engine_died
            self._writer.send(ipc.Ready(self._engine.info()))
        except Exception as error:
            if not isinstance(error, RequestError):
                traceback.print_exc()
            self._writer.send(ipc.Fatal(f"{error}" if isinstance(error, StemmaError) else repr(error)))
            self._writer.close()
            return 1
        self._stop.wait()
        if self._cause is None:
            self._engine.shutdown()
            self._writer.close()
            return 0
        self._writer.send(ipc.Fatal(self._cause))
        self._writer.close()
        ending = threading.Thread(target=self._engine.shutdown, daemon=True)  # it may be stuck
        ending.start()
        ending.join(timeout=2)
        return 1

    def _engine_died(self, cause: str) -> None:
        """The engine's thread is gone: the process has no more use. Waiting callers already have their errors."""
        if not self._stop.is_set():
            self._cause = cause
            self._stop.set()

    def _read(self) -> None:
        try:
            while not self._stop.is_set():
                self._handle(ipc.read_to_engine(self._sock))
        except (EOFError, OSError):
            os._exit(0)  # the front process is gone: nobody is left to serve, whatever the engine is doing
        except Exception as error:
            traceback.print_exc()
            _last_words(self._sock, f"reading a message failed: {error!r}")

    def _handle(self, message: ipc.ToEngine) -> None:
        engine, writer = self._engine, self._writer
        if isinstance(message, ipc.Control) and message.action == "shutdown":
            if engine is None:
                os._exit(0)
            self._stop.set()
            return
        assert engine is not None, "nothing is asked before Ready"
        if isinstance(message, ipc.Submit):
            submit = message

            def on_event(event: dict[str, Any]) -> None:
                writer.event(submit.id, event)
                if event["event"] == "error" and event["error"]["type"] == "EngineDeadError":
                    self._engine_died(event["error"]["message"])

            self._answer(submit.id, lambda: engine.submit(submit.delta, on_event))
        elif isinstance(message, ipc.Cancel):
            with contextlib.suppress(StemmaError):  # the program may be gone already
                engine.cancel(message.program, message.branches)
        elif isinstance(message, ipc.Control):
            actions = {"flush": engine.flush_cache, "info": engine.info, "state": engine.state}
            self._answer(message.id, actions[message.action])

    def _answer(self, id: int, act: Any) -> None:
        try:
            self._writer.send(ipc.Answer(id, value=act()))
        except Exception as error:
            if not isinstance(error, StemmaError):
                traceback.print_exc()
            self._writer.send(ipc.Answer(id, error=error_object(error)))
            if isinstance(error, EngineDeadError):
                self._engine_died(str(error))


def build(start: ipc.Start) -> EngineLike:
    """The engine that the front process asked for."""
    config = EngineConfig(**start.config)
    if config.max_queued_requests is None:
        config = replace(config, max_queued_requests=QUEUED_PER_ROW * config.max_running_requests)
    name = start.factory or "stemma.backend.engine:Engine"
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)(config)


def main() -> int:
    faulthandler.enable()  # stacks on stderr when it crashes, or is sent SIGABRT for giving no sign of life
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front process decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        return Server(sock).run()
    except EOFError:
        return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # no waiting for daemon threads or native pools
