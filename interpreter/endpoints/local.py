"""Programs on an engine in this process. The only file of the interpreter that imports the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from stemma.interpreter.endpoints.base import Delta, Endpoint, OnEvent


class EngineLike(Protocol):
    """What an engine must offer to run programs."""

    def submit(self, delta: Delta, on_event: OnEvent) -> None: ...
    def cancel(self, program: str, branches: Any = None) -> None: ...


class LocalEndpoint(Endpoint):
    """Runs programs on an engine; without one, on an engine for `model`, which it then starts and shuts down.

    `model` is a model directory, or "demo" for the bundled model. Raises what `Engine` raises.
    """

    def __init__(self, engine: EngineLike | None = None, *, model: str = "demo") -> None:
        self._owned = engine is None
        if engine is None:
            from stemma.backend.engine import Engine  # late: it loads torch, which the client does without

            engine = Engine(model)
        self.engine: Any = engine
        if hasattr(engine, "tokenizer"):
            self.capabilities = frozenset({"tokens", "priority"})

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        """Hand the delta to the engine. What the engine refuses at once is raised, and fails the delta's nodes."""
        self.engine.submit(delta, on_event)

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        self.engine.cancel(program, list(branches) if branches is not None else None)

    def info(self) -> dict[str, Any]:
        return dict(self.engine.info())

    def token_bytes(self, ids: Iterable[int]) -> dict[int, bytes]:
        table = self.engine.tokenizer.rendered_bytes
        return {i: table[i] for i in set(ids) if 0 <= i < len(table)}

    def flush_cache(self) -> None:
        self.engine.flush_cache()

    def close(self) -> None:
        """Shut the engine down if it was started here; an engine that was given stays the giver's."""
        if self._owned:
            self.engine.shutdown()
