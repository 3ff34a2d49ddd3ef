"""What the routes share: the engine client, the limits, and the requests that are running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import cached_property
from typing import Any

from stemma.backend.messages import ANSWERS, GraphDelta
from stemma.backend.observe.metrics import Metrics
from stemma.backend.requests import Collector, GenerateRequest
from stemma.backend.server.client import EngineClient, Event, Inbox, Sink, open_nodes
from stemma.backend.server.limits import Flight, Limits
from stemma.backend.server.sse import Stream
from stemma.backend.text import Tokenizer
from stemma.lang.errors import EndpointError, RequestError


class Run:
    """The programs of one request, from submission to the last event. `close` must be called, however it ends."""

    def __init__(self, service: Service, request: GenerateRequest) -> None:
        self.request = request
        self._service = service
        self.inbox = Inbox(service.limits.max_client_bytes if request.stream else None)
        texts = service.token_text if request.return_text_in_logprobs else None
        self.collector = Collector(request, texts)
        self._deltas = request.deltas()
        self._open = [open_nodes(delta) for delta in self._deltas]
        self._flight = service.enter()
        for item in request.items:
            if item.rid in service.running:
                self._flight.__exit__(None, None, None)
                raise RequestError(f"rid {item.rid!r} is already running", param="rid")
        service.running.update((item.rid, item.program) for item in request.items)
        self._closed = False

    async def submit(self) -> None:
        """Hand everything to the engine. If it refuses a part, the rest is taken back."""
        submits = [
            self._service.submit(delta, self.inbox.sink(i), self.request.log_metrics)
            for i, delta in enumerate(self._deltas)
        ]
        results = await asyncio.gather(*submits, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def changes(self) -> AsyncGenerator[set[int], None]:
        """The flat indexes of the results that changed, until all are finished or one has failed."""
        while not self.collector.done and self.collector.error is None:
            changed: set[int] = set()
            for item, event in await self.inbox.take():
                if event["event"] in ANSWERS:
                    self._open[item].discard((event["branch"], event["node"]))
                index = self.collector.feed(item, event)
                if index is not None:
                    changed.add(index)
            if changed:
                yield changed

    def close(self) -> None:
        """Cancel what still runs and leave the books. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._flight.__exit__(None, None, None)
        for item, still_open in zip(self.request.items, self._open, strict=True):
            self._service.running.pop(item.rid, None)
            if still_open:
                self._service.client.cancel(item.program)


class Service:
    """One per application.

    `info` is the engine's `info()` at start, `settings` every server argument by name (no secrets), `load_tokenizer`
    is called once, when a request first needs the text of single tokens.
    """

    def __init__(
        self,
        client: EngineClient,
        *,
        info: dict[str, Any],
        settings: dict[str, Any] | None = None,
        limits: Limits | None = None,
        load_tokenizer: Callable[[], Tokenizer] | None = None,
    ) -> None:
        self.client = client
        self.model_info = info
        self.settings = settings or {}
        self.limits = limits or Limits()
        self.created = int(time.time())
        self.flight = Flight(self.limits.max_inflight)
        self.running: dict[str, str] = {}  # rid → program
        self.graphs: dict[str, int] = {}  # program → open streams
        self.metrics = Metrics(self.settings.get("metrics_prefix") or "stemma_", info.get("served_model_name") or "")
        self._load_tokenizer = load_tokenizer
        self._looked = time.monotonic(), 0, 0.0

    def enter(self, goes_on: bool = False) -> Any:
        """Check that a request can be served and count it; leave with `__exit__`. `goes_on`: it is the next delta of a
        program, which is served while others finish before the end."""
        problem = self.client.problem
        if problem and not (goes_on and self.client.finishing):
            raise EndpointError(problem, status=503, retry_after=self.client.retry_after)
        flight = self.flight.enter()
        flight.__enter__()
        return flight

    async def submit(self, delta: GraphDelta, sink: Sink, log_metrics: bool = True) -> None:
        """To the engine, with its events on their way back counted."""

        def counted(event: Event) -> None:
            self.metrics.observe(event)
            sink(event)

        await self.client.submit(delta, counted if log_metrics else sink)

    async def start(self, request: GenerateRequest) -> Run:
        """Submit a request. The caller must `close` the run."""
        run = Run(self, self.limits.check(request))
        try:
            await run.submit()
        except BaseException:
            run.close()
            raise
        return run

    async def complete(self, request: GenerateRequest) -> Collector:
        """Run a request to its end. Raises the first error."""
        run = await self.start(request)
        try:
            async for _ in run.changes():
                pass
        finally:
            run.close()
        if run.collector.error is not None:
            raise run.collector.error
        return run.collector

    def stream(
        self, chunks: AsyncGenerator[bytes, None], media_type: str, close: Callable[[], None], inbox: Inbox
    ) -> Stream:
        """A response that streams what comes into the inbox, and gives a slow client up."""

        def slow() -> None:
            self.metrics.count("slow_clients_total")

        return Stream(chunks, media_type, close, full=inbox.full, stall=self.limits.stall_seconds, slow=slow)

    def abort(self, rid: str | None) -> None:
        """Cancel one request, or with None everything that runs. Unknown ids are ignored."""
        if rid is not None:
            programs = [self.running[rid]] if rid in self.running else []
        else:
            programs = [*self.running.values(), *self.graphs]
        for program in programs:
            self.client.cancel(program)

    def throughput(self, generated: int) -> float:
        """Generated tokens per second since a look at least a second before."""
        now = time.monotonic()
        then, tokens, rate = self._looked
        if now - then >= 1.0:
            rate = (generated - tokens) / (now - then)
            self._looked = now, generated, rate
        return rate

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """For the text of single tokens in logprobs."""
        if self._load_tokenizer is None:
            raise RequestError("the text of tokens is not available on this server", param="logprobs")
        return self._load_tokenizer()

    async def need_tokenizer(self) -> None:
        """Load it now, off the event loop."""
        await asyncio.to_thread(lambda: self.tokenizer)

    def token_bytes(self, token_id: int) -> bytes:
        table = self.tokenizer.rendered_bytes
        return table[token_id] if 0 <= token_id < len(table) else b""

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")
