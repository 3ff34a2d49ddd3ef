"""The front process's side of the engine process: spawn it, talk to it, and know when and why it died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from stemma.backend.config import EngineConfig
from stemma.backend.messages import GraphDelta
from stemma.backend.requests import error_from_event
from stemma.backend.server import ipc
from stemma.backend.server.client import EngineClient, Sink, Submission
from stemma.lang.errors import EngineDeadError, RequestError

SILENCE_SECONDS = 60.0  # without a heartbeat the engine process counts as stuck
KILL_AFTER = 30.0  # and as many seconds longer than its own watchdog waits, it is ended
EXIT_SECONDS = 10.0  # how long it may take to end after it was asked


class RemoteClient(EngineClient):
    """An engine in a child process. Made by `start`; ended by `stop`."""

    def __init__(self, process: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
        self.process = process
        self.death: str | None = None  # why the engine is gone
        self.stopping = False
        self._silent: str | None = None  # that it was ended for giving no sign of life
        self.on_death: Callable[[], None] = lambda: None
        self._writer = writer
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._submissions: dict[int, Submission] = {}
        self._heard = time.monotonic()
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: EngineConfig, factory: str | None = None) -> tuple[RemoteClient, dict[str, Any]]:
        """Spawn the engine process and wait until its model is loaded. The client, and the engine's `info()`.

        Raises EngineDeadError with the engine's own words when it cannot start.
        """
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "stemma.backend.server.engine_process", str(theirs.fileno())]
        # A session of its own, so that Ctrl-C reaches only the front process, which then ends the engine in order.
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        client = cls(process, writer)
        patience = config.watchdog_timeout + KILL_AFTER if config.watchdog_timeout else None
        try:
            writer.write(ipc.frame(ipc.Start(asdict(config), factory)))
            first = await asyncio.wait_for(ipc.read_to_front(reader), patience)
            while isinstance(first, ipc.Heartbeat):
                first = await asyncio.wait_for(ipc.read_to_front(reader), patience)
        except TimeoutError:
            client._kill()
            raise EngineDeadError(f"the engine process was silent for {patience:g} s while starting") from None
        except (EOFError, OSError):
            await client._wait_exit()
            raise EngineDeadError(f"the engine process ended while starting: {client._exit_cause()}") from None
        except asyncio.CancelledError:
            await client.stop()
            raise
        if not isinstance(first, ipc.Ready):
            await client._wait_exit()
            raise EngineDeadError(first.message if isinstance(first, ipc.Fatal) else f"unexpected {first!r}")
        client._heard = time.monotonic()
        client._reading = asyncio.create_task(client._read(reader))
        if patience is not None:
            client._watching = asyncio.create_task(client._watch(patience))
        return client, first.info

    # EngineClient

    @property
    def problem(self) -> str | None:
        if self.death:
            return self.death
        if self.stopping:
            return "the server is shutting down"
        if time.monotonic() - self._heard > SILENCE_SECONDS:
            return f"the engine process has been silent for {SILENCE_SECONDS:.0f} seconds"
        return None

    async def submit(self, delta: GraphDelta, sink: Sink) -> None:
        id = next(self._ids)
        submission = Submission(delta, sink)
        if submission.open:
            self._submissions[id] = submission
        try:
            await self._ask(ipc.Submit(id, delta))
        except BaseException as error:
            self._submissions.pop(id, None)
            if isinstance(error, asyncio.CancelledError):
                self.cancel(delta.program)  # it may have been accepted
            raise

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        self._send(ipc.Cancel(program, None if branches is None else list(branches)))

    async def flush_cache(self) -> bool:
        return await self._ask(ipc.Control(next(self._ids), "flush"))

    async def info(self) -> dict[str, Any]:
        return await self._ask(ipc.Control(next(self._ids), "info"))

    async def state(self) -> dict[str, Any]:
        return await self._ask(ipc.Control(next(self._ids), "state"))

    # The socket

    def _send(self, message: ipc.ToEngine) -> None:
        if self.death is None and not self._writer.is_closing():
            self._writer.write(ipc.frame(message))

    async def _ask(self, message: ipc.Submit | ipc.Control) -> Any:
        if self.death is not None or self.stopping:
            raise EngineDeadError(self.death or "the server is shutting down")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[message.id] = answer
        try:
            self._send(message)
            await self._writer.drain()
            return await answer
        except ConnectionError:
            return await answer  # the reader notices the death and says why
        finally:
            self._answers.pop(message.id, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        words = None
        try:
            while True:
                message = await ipc.read_to_front(reader)
                self._heard = time.monotonic()
                if isinstance(message, ipc.Events):
                    self._deliver(message.events)
                elif isinstance(message, ipc.Answer):
                    self._settle(message)
                elif isinstance(message, ipc.Fatal):
                    words = message.message
        except (EOFError, OSError):
            pass
        if not await self._wait_exit():
            self._kill()
        self._writer.close()
        self._fail(words)

    async def _watch(self, patience: float) -> None:
        """End an engine process that gives no sign of life, whose own watchdog cannot run either. It says where its
        threads are when it gets SIGABRT."""
        while self.death is None and time.monotonic() - self._heard <= patience:
            await asyncio.sleep(min(patience / 8, 5.0))
        if self.death is None and not self.stopping:
            self._silent = f"the engine process was silent for {patience:g} s and was ended"
            self.process.send_signal(signal.SIGABRT)
            await asyncio.sleep(2.0)
            self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def _deliver(self, events: list[tuple[int, dict[str, Any]]]) -> None:
        for id, event in events:
            submission = self._submissions.get(id)
            if submission is not None and not submission.push(event):
                del self._submissions[id]

    def _settle(self, message: ipc.Answer) -> None:
        answer = self._answers.get(message.id)
        if answer is None or answer.done():
            return
        if message.error is None:
            answer.set_result(message.value)
        else:
            answer.set_exception(error_from_event({"error": message.error}))

    # Death

    def _fail(self, words: str | None) -> None:
        """Everyone who waits gets the cause."""
        if self._watching is not None:
            self._watching.cancel()
        cause = words or self._silent or f"the engine died: {self._exit_cause()}"
        self.death = "the server is shutting down" if self.stopping else cause
        error = EngineDeadError(self.death)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        submissions, self._submissions = self._submissions, {}
        for submission in submissions.values():
            submission.fail(error)
        if not self.stopping:
            self.on_death()

    def drain(self) -> None:
        """Take no more requests and settle the running ones with an error."""
        self.stopping = True
        error = EngineDeadError("the server is shutting down")
        submissions, self._submissions = self._submissions, {}
        for submission in submissions.values():
            submission.fail(error)

    async def stop(self) -> None:
        """End the engine process, by force if it does not go."""
        self.stopping = True
        if self._watching is not None:
            self._watching.cancel()
        self._send(ipc.Control(0, "shutdown"))
        if not await self._wait_exit():
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
        self._writer.close()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=EXIT_SECONDS)

    async def _wait_exit(self) -> bool:
        """True when the process has ended within the time allowed. Its socket is closed or it was asked to end."""
        deadline = time.monotonic() + EXIT_SECONDS
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def _exit_cause(self) -> str:
        code = self.process.poll()
        if code is None:
            return "it closed its connection"
        if code < 0:
            return f"killed by signal {signal.Signals(-code).name}"
        return f"it exited with status {code}"


def check_factory(name: str | None) -> str | None:
    """`module:callable`, or None."""
    if name is not None and name.count(":") != 1:
        raise RequestError(f"engine_factory must be 'module:callable', got {name!r}", param="engine_factory")
    return name
