"""What a gen asks of a service, what comes back, and the sending in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stemma.interpreter.endpoints.retry import Failed, pause_before
from stemma.lang.errors import StemmaError
from stemma.lang.params import Constraint, SamplingParams

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a gen asks for."""

    params: SamplingParams
    constraint: Constraint | None = None
    logprobs: dict[str, Any] | None = None
    stream: bool = False

    @classmethod
    def of(cls, node: dict[str, Any]) -> Asked:
        """From the wire. Raises `RequestError`."""
        constraint = node.get("constraint")
        return cls(
            SamplingParams.from_dict(node.get("params") or {}),
            Constraint.from_dict(constraint) if constraint else None,
            node.get("logprobs"),
            bool(node.get("stream")),
        )


@dataclass(slots=True)
class Answer:
    """What the service said. Counts that it did not tell are None."""

    text: str
    finish_reason: dict[str, Any] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def meta(self) -> dict[str, Any]:
        prompt, made, cached = self.prompt_tokens, self.completion_tokens, self.cached_tokens
        computed = None if prompt is None or made is None else prompt + made - (cached or 0)
        counts = {"prompt_tokens": prompt, "completion_tokens": made, "cached_tokens": cached or 0}
        reason = {} if self.finish_reason is None else {"finish_reason": self.finish_reason}
        return {**counts, "computed_tokens": computed, "forced_tokens": 0, **reason, **self.more}


class Call:
    """One node on its way: sends its requests with retries, and passes streamed text on."""

    def __init__(
        self, failed: Callable[[Exception], Failed], max_retries: int, on_text: Callable[[str], None] | None = None
    ) -> None:
        self._failed, self._max_retries = failed, max_retries
        self._on_text = on_text
        self.retries = 0
        self.began = time.perf_counter()
        self.first_text: float | None = None

    @property
    def streams(self) -> bool:
        return self._on_text is not None

    def text(self, piece: str) -> None:
        """A piece of the answer has come. From now on nothing is sent again."""
        if self.first_text is None:
            self.first_text = time.perf_counter()
        if self._on_text is not None and piece:
            self._on_text(piece)

    def apart(self) -> Call:
        """A call for text that is not passed on as it is."""
        return Call(self._failed, self._max_retries)

    async def send(self, request: Callable[[], Awaitable[T]]) -> T:
        """The request's result; sent again where `retry.py` allows it. Raises `StemmaError`."""
        attempt = 0
        while True:
            try:
                return await request()
            except StemmaError:
                raise
            except Exception as error:
                failed = self._failed(error)
                pause = pause_before(attempt, failed, self._max_retries)
                if pause is None or self.first_text is not None:
                    raise failed.error from error
            attempt += 1
            self.retries += 1
            await asyncio.sleep(pause)


class TokenUsage:
    """Tokens that an endpoint has been charged for, over all programs, as far as the service told."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def reset(self) -> None:
        self.prompt_tokens = self.completion_tokens = 0

    def __repr__(self) -> str:
        return f"TokenUsage(prompt_tokens={self.prompt_tokens}, completion_tokens={self.completion_tokens})"
