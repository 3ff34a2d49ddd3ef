"""The engine as the routes see it: deltas in, events out, on one asyncio loop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from stemma.backend.messages import ANSWERED, ANSWERS, GraphDelta, error_object

Event = dict[str, Any]
Sink = Callable[[Event], None]
Address = tuple[str, int]


class EngineLike(Protocol):
    """What the server needs of `stemma.backend.engine.Engine`. Thread-safe; events come from a thread of its own."""

    def submit(self, delta: GraphDelta, on_event: Sink) -> None: ...
    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None: ...
    def flush_cache(self) -> bool: ...
    def info(self) -> dict[str, Any]: ...
    def state(self) -> dict[str, Any]: ...
    def shutdown(self) -> None: ...

    on_death: Callable[[str], None]


def open_nodes(delta: GraphDelta) -> set[Address]:
    """The nodes that will end with `done`, `text` or `error`."""
    return {
        (branch.id, branch.first + i)
        for branch in delta.branches
        for i, node in enumerate(branch.nodes)
        if isinstance(node, ANSWERED)
    }


class Submission:
    """One accepted delta: passes its events on until every `gen` and `select` node has settled."""

    __slots__ = ("_sink", "open")

    def __init__(self, delta: GraphDelta, sink: Sink) -> None:
        self.open = open_nodes(delta)
        self._sink = sink

    def push(self, event: Event) -> bool:
        """False when the submission is settled."""
        if event["event"] in ANSWERS:
            self.open.discard((event["branch"], event["node"]))
        self._sink(event)
        return bool(self.open)

    def fail(self, error: BaseException) -> None:
        """Settle every open node with this error."""
        for branch, node in sorted(self.open):
            self.push({"event": "error", "branch": branch, "node": node, "error": error_object(error)})


class EngineClient(ABC):
    """All methods are called on the event loop; sinks are called on it too."""

    @abstractmethod
    async def submit(self, delta: GraphDelta, sink: Sink) -> None:
        """Returns when the engine has accepted the delta. RequestError if it refuses, EngineDeadError if it is gone.

        `sink` then gets the events of the delta's nodes. Every `gen` and `select` ends with `done` or `error`, also
        when the engine dies.
        """

    @abstractmethod
    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        """Cancel a program or some of its branches; unknown ones are ignored."""

    @abstractmethod
    async def flush_cache(self) -> bool: ...

    @abstractmethod
    async def info(self) -> dict[str, Any]: ...

    @abstractmethod
    async def state(self) -> dict[str, Any]:
        """What ought to be nothing when the engine is idle, and the figures of its process."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """Why no request can be served (restarting, stopping, dead), or None."""

    @property
    def finishing(self) -> bool:
        """Whether programs under way are still served though new ones are not."""
        return False

    @property
    def retry_after(self) -> float:
        """Seconds after which a request that was refused for a `problem` may be taken."""
        return 1.0

    @property
    def health(self) -> dict[str, Any]:
        """status (ready, or what is wrong), problem, restarts of the engine and why it failed last."""
        status = "failed" if self.problem else "ready"
        return {"status": status, "problem": self.problem, "restarts": 0, "last_failure": self.problem}


class LocalClient(EngineClient):
    """An engine in this process."""

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine

    async def submit(self, delta: GraphDelta, sink: Sink) -> None:
        loop = asyncio.get_running_loop()
        submission = Submission(delta, sink)

        def on_event(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(submission.push, event)

        self._engine.submit(delta, on_event)

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        self._engine.cancel(program, branches)

    async def flush_cache(self) -> bool:
        return await asyncio.to_thread(self._engine.flush_cache)

    async def info(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._engine.info)

    async def state(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._engine.state)

    @property
    def problem(self) -> str | None:
        return None


class Inbox:
    """Events on their way from sinks to one reader, with a tag that says where each came from.

    `full` is set when more than about `limit` bytes wait: the reader is too slow. None: no limit, for a reader that
    never waits for anything else.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.full = asyncio.Event()
        self._limit = limit
        self._size = 0
        self._events: list[tuple[int, Event]] = []
        self._ready = asyncio.Event()

    def sink(self, tag: int) -> Sink:
        def put(event: Event) -> None:
            if self._limit is not None:
                self._size += _size(event)
                if self._size > self._limit:
                    self.full.set()
            self._events.append((tag, event))
            self._ready.set()

        return put

    async def take(self) -> list[tuple[int, Event]]:
        """All that has come since the last call; waits for the first."""
        await self._ready.wait()
        self._ready.clear()
        events, self._events = self._events, []
        self._size = 0
        return events


def _size(event: Event) -> int:
    """About how many bytes an event holds."""
    size = 200 + len(event.get("text") or "") + 8 * len(event.get("ids") or ())
    for value in (event.get("meta") or {}).values():
        if isinstance(value, list):
            size += sum(32 + (32 * len(item) if isinstance(item, list) else 0) for item in value)
    return size
