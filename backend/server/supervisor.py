"""One engine process after another: when one dies, its callers are told why, and the next is started.

A restart begins at once after the first death, later after pauses that double, and not at all when the engine has died
too often within the window: then the server ends with exit status 1, and whoever supervises it decides.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.backend.config import EngineConfig
from stemma.backend.messages import GraphDelta
from stemma.backend.server.client import EngineClient, Sink
from stemma.backend.server.remote import RemoteClient
from stemma.lang.errors import EndpointError, EngineDeadError, RequestError

FIRST_PAUSE = 0.5  # seconds before the second restart within the window; doubles with each
LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often the engine may die within `window` seconds. limit 0: its first death ends the server."""

    limit: int = 5
    window: float = 600.0

    def pause(self, deaths: int) -> float:
        """Seconds to wait after so many deaths within the window."""
        return 0.0 if deaths < 2 else min(FIRST_PAUSE * 2 ** (deaths - 2), LONGEST_PAUSE)


class Supervisor(EngineClient):
    """The engine client of a server. Made by `start`; ended by `stop`."""

    def __init__(self, config: EngineConfig, factory: str | None, restarts: Restarts) -> None:
        self.restarts = 0
        self.last_failure: str | None = None
        self.failure: str | None = None  # why no further engine is started
        self.on_failure: Callable[[], None] = lambda: None
        self.draining = self.stopping = False
        self._config, self._factory, self._policy = config, factory, restarts
        self._client: RemoteClient | None = None
        self._deaths: deque[float] = deque(maxlen=restarts.limit + 1)
        self._restarting: asyncio.Task[None] | None = None
        self._load_seconds = 1.0
        self._back_at = 0.0  # when the next engine is likely to be ready
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def start(
        cls, config: EngineConfig, factory: str | None = None, restarts: Restarts | None = None
    ) -> tuple[Supervisor, dict[str, Any]]:
        """The first engine process, with its model loaded, and its `info()`. EngineDeadError when it cannot start."""
        supervisor = cls(config, factory, restarts or Restarts())
        return supervisor, await supervisor._start()

    async def _start(self) -> dict[str, Any]:
        begin = self._loop.time()
        client, info = await RemoteClient.start(self._config, self._factory)
        self._load_seconds = self._loop.time() - begin
        self._client = client
        client.on_death = lambda: self._died(client)
        if client.death is not None:  # already, and nobody listened yet
            self._died(client)
        return info

    # EngineClient

    async def submit(self, delta: GraphDelta, sink: Sink) -> None:
        try:
            await self._engine().submit(delta, sink)
        except RequestError as error:
            if (error.status, error.param) != (410, "program") or not self.restarts:
                raise
            raise EngineDeadError(
                f"program {delta.program!r} is lost: the engine was restarted after: {self.last_failure}"
            ) from None

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        if self._client is not None:
            self._client.cancel(program, branches)

    async def flush_cache(self) -> bool:
        return await self._engine().flush_cache()

    async def info(self) -> dict[str, Any]:
        return await self._engine().info()

    async def state(self) -> dict[str, Any]:
        return await self._engine().state()

    @property
    def problem(self) -> str | None:
        if self.failure:
            return self.failure
        if self.stopping or self.draining:
            return "the server is shutting down"
        if self._client is None:
            return f"the engine is restarting after: {self.last_failure}"
        return self._client.problem

    @property
    def finishing(self) -> bool:
        return self.draining and not self.stopping and self._client is not None and not self._client.problem

    @property
    def retry_after(self) -> float:
        if self._client is None and self._restarting is not None:
            return max(self._back_at - self._loop.time(), 1.0)
        return 1.0

    @property
    def health(self) -> dict[str, Any]:
        stopping = self.stopping or self.draining
        status = "failed" if self.failure else "stopping" if stopping else "restarting" if not self._client else None
        status = status or ("unresponsive" if self._client and self._client.problem else "ready")
        return {"status": status, "problem": self.problem, "restarts": self.restarts, "last_failure": self.last_failure}

    def _engine(self) -> RemoteClient:
        if self._client is None or self.stopping or self.failure:
            raise EndpointError(self.problem or "the server is shutting down", status=503, retry_after=self.retry_after)
        return self._client

    # Deaths

    def _died(self, client: RemoteClient) -> None:
        if self._client is client:
            self._client = None
        self._lost(client.death or "the engine died")

    def _lost(self, cause: str) -> None:
        """An engine died, or did not start."""
        self.last_failure = cause
        now = self._loop.time()
        if self.stopping:
            return
        print(f"stemma serve: {cause}", file=sys.stderr, flush=True)
        while self._deaths and now - self._deaths[0] > self._policy.window:
            self._deaths.popleft()
        self._deaths.append(now)
        if self.draining:
            return  # nobody is left to serve
        if len(self._deaths) > self._policy.limit:
            self.failure = cause
            if self._policy.limit:
                times, window = len(self._deaths), self._policy.window
                self.failure = f"the engine died {times} times within {window:g} s and is given up; at last: {cause}"
                print(f"stemma serve: {self.failure}", file=sys.stderr, flush=True)
            self.on_failure()
            return
        pause = self._policy.pause(len(self._deaths))
        self._back_at = now + pause + self._load_seconds
        self._restarting = asyncio.create_task(self._restart(pause))

    async def _restart(self, pause: float) -> None:
        await asyncio.sleep(pause)
        try:
            await self._start()
        except EngineDeadError as error:
            self._lost(str(error))
            return
        self.restarts += 1
        print(f"stemma serve: the engine is back (restart {self.restarts})", file=sys.stderr, flush=True)

    # The end

    def drain(self) -> None:
        """Take no new programs. Those that run go on."""
        self.draining = True

    def fail_running(self) -> None:
        """Settle what still runs with an error."""
        if self._client is not None:
            self._client.drain()

    async def stop(self) -> None:
        """End the engine process, by force if it does not go; also one that is being started."""
        self.stopping = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait([self._restarting])
        if self._client is not None:
            await self._client.stop()
