"""The engine as a library: a model, a scheduler, and one thread that steps them. No processes of its own.

engine = Engine()                                  # the bundled model, on CPU
engine.generate("The capital of France is", {"max_new_tokens": 8})["text"]
engine.shutdown()
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import asdict, replace
from typing import Any

from stemma.backend.captures import Captures
from stemma.backend.config import EngineConfig
from stemma.backend.grammar.base import Grammar
from stemma.backend.grammar.give_way import collect_all, set_aside
from stemma.backend.grammar.service import GrammarService
from stemma.backend.messages import GraphDelta, parse_delta
from stemma.backend.observe.process import figures as process_figures
from stemma.backend.observe.watchdog import Watchdog
from stemma.backend.requests import Collector, GenerateRequest
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.text.chat import ChatTemplate
from stemma.backend.text.stream import TextStream
from stemma.backend.text.tokenizer import Tokenizer
from stemma.lang.errors import EndpointError, EngineDeadError
from stemma.lang.params import Constraint, SamplingParams

Event = dict[str, Any]
Sink = Callable[[Event], None]
SHRINKS = 4  # a tokenizer's normalisation makes no text shorter than a fourth
IDLE_SECONDS = 1.0  # how long an idle engine sleeps before it looks at its leases


class ModelText:
    """What the scheduler may ask about text: the model's tokenizer and chat template."""

    def __init__(self, tokenizer: Tokenizer, chat: ChatTemplate) -> None:
        self.tokenizer, self.chat = tokenizer, chat

    def markers(self, role: str, previous: tuple[str, ...]) -> tuple[str, str]:
        return self.chat.markers(role, previous)

    def stream(self, params: SamplingParams) -> TextStream:
        table = self.tokenizer.token_bytes if params.skip_special_tokens else self.tokenizer.rendered_bytes
        return TextStream(table, params.stop, params.no_stop_trim)


class Engine:
    """Runs program graphs on one model.

    `model_path` is a directory in Hugging Face form, "demo" (the default: the bundled model), or an `EngineConfig`;
    `options` are the other fields of `EngineConfig`. Raises `RequestError` when the model or an option is wrong.
    Thread-safe. Use it as a context manager, or call `shutdown`.
    """

    def __init__(self, model_path: str | os.PathLike[str] | EngineConfig | None = None, **options: Any) -> None:
        if isinstance(model_path, EngineConfig):
            self.config = replace(model_path, **options) if options else model_path
        else:
            if model_path is not None:
                options["model_path"] = os.fspath(model_path)
            self.config = make_config(options)
        from stemma.backend.executor.factory import make_runner  # torch begins here

        config, chunk = self.config, self.config.chunked_prefill_size
        self.runner = make_runner(
            config.model_dir,
            load_format=config.load_format,
            dtype=config.dtype,
            device=config.device,
            max_total_tokens=config.max_total_tokens,
            context_length=config.context_length,
            max_running_requests=config.max_running_requests,
            page_size=config.page_size,
            host_tokens=config.host_cache_tokens,
            host_path=config.host_cache_path,
            seed=config.random_seed,
            num_threads=config.num_threads,
            mem_fraction_static=config.mem_fraction_static,
            family=not config.disable_family_attention,
            max_step_tokens=chunk if chunk > 0 else config.max_prefill_tokens,
        )
        self.tokenizer = Tokenizer.load(config.model_dir)
        self.chat = ChatTemplate.load(config.model_dir, self.tokenizer)
        self.text = ModelText(self.tokenizer, self.chat)
        vocabulary = self.tokenizer.vocabulary(self.runner.vocab_size)
        self._grammars = GrammarService(
            vocabulary, config.grammar_backend, config.grammar_workers, lambda: bool(self.scheduler.memory.running),
            config.grammar_cache_mb << 20,
        )  # fmt: skip
        self._captures = Captures()
        self.runner.warm_up()
        self.scheduler = Scheduler(
            self.runner,
            self.text,
            self._compile,
            context=self.runner.context_length,
            max_rows=config.max_running_requests,
            chunk=chunk if chunk > 0 else max(self.runner.context_length, config.max_prefill_tokens),
            policy=config.schedule_policy,
            conservativeness=config.schedule_conservativeness,
            radix=not config.disable_radix_cache,
            page_size=config.page_size,
            eviction=config.radix_eviction_policy,
            host=self.runner if config.host_cache_tokens else None,
            jump_forward=not config.disable_jump_forward,
            mask_overlap=not config.disable_mask_overlap,
            draft=config.draft,
            overlap=self._overlaps(),
            seed=config.random_seed,
            lease=config.lease_seconds,
            max_prefill=config.max_prefill_tokens,
            same_step_sharing=not config.disable_same_step_sharing,
            mixed_chunk=not config.disable_mixed_chunk,
            max_queued=config.max_queued_requests or None,
        )
        self.on_death: Callable[[str], None] = lambda cause: None
        """Called with the cause when the engine stops by itself, from the thread that notices."""
        self._draining = False
        self._act: Any = None  # what the engine's thread does now, besides steps
        self._watchdog = Watchdog(config.watchdog_timeout, self._hangs)
        longest = max((len(token) for token in self.tokenizer.rendered_bytes if token), default=1)
        self.scheduler.graph.max_chars = SHRINKS * longest * self.runner.context_length
        self._inbox: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._dead: EngineDeadError | None = None
        set_aside()
        self._thread = threading.Thread(target=self._loop, name="stemma-engine", daemon=True)
        self._thread.start()
        _alive.add(self)

    def _overlaps(self) -> bool:
        """What `overlap_schedule` means here. On CPU the planning competes with the model for the cores."""
        wanted = self.config.overlap_schedule
        return wanted == "on" or (wanted == "auto" and self.runner.device.type == "cuda")

    # -- graphs ----------------------------------------------------------------------------------------------------

    def submit(self, delta: GraphDelta | Mapping[str, Any] | bytes, on_event: Sink) -> None:
        """Run a graph delta (docs/graph.md). Returns at once; events come from the engine's thread.

        Raises `RequestError` if the delta is malformed or does not fit what was sent before, `EngineDeadError` if the
        engine has stopped. `on_event` must be quick and must not raise.
        """
        self._submit_all([(parse_delta(delta), on_event)])

    def _submit_all(self, deltas: Sequence[tuple[GraphDelta, Sink]]) -> None:
        """Several deltas that the engine takes up between the same two steps."""
        with self._gate:
            if self._dead is not None:
                raise self._dead
            if self._draining and any(d.program not in self.scheduler.graph.programs for d, _ in deltas):
                raise EndpointError("the engine is shutting down and takes no new programs", status=503)
            acts = [self.scheduler.submit(delta, self._captures.watch(delta, sink)) for delta, sink in deltas]
            self._inbox.put(acts[0] if len(acts) == 1 else lambda: [act() for act in acts])

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        """Cancel a program, or some of its branches with all that was forked from them. Unknown names are ignored."""
        chosen = None if branches is None else list(branches)
        self._inbox.put(lambda: self.scheduler.graph.cancel(program, chosen))

    # -- requests --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        **fields: Any,
    ) -> Any:
        """One prompt or many, as text or ids. Returns `{text, output_ids, meta_info}` (a list for many, or for n > 1).

        With `stream` an iterator of such items whose text is cumulative. `fields` are the other fields of `/generate`:
        return_logprob, logprob_start_len, top_logprobs_num, token_ids_logprob, rid … Raises `RequestError` (a
        `ValueError`) naming the field and the value, `EngineDeadError` when the engine has stopped.
        """
        request = _request(prompt, sampling_params, input_ids, stream, fields)
        items = self._stream(request)
        return items if stream else next(items)

    def _stream(self, request: GenerateRequest) -> Iterator[Any]:
        collector = Collector(request, self._token_text)
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        deltas = request.deltas()
        try:
            self._submit_all([(d, lambda event, item=i: events.put((item, event))) for i, d in enumerate(deltas)])
            while not collector.done:
                index = collector.feed(*events.get())
                if collector.error is not None:
                    raise collector.error
                if request.stream and index is not None:
                    yield collector.stream_item(index)
            if not request.stream:
                yield collector.result()
        finally:
            if not collector.done:
                for delta in deltas:
                    self.cancel(delta.program)

    async def async_generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        stream: bool = False,
        **fields: Any,
    ) -> Any:
        """`generate` for asyncio; with `stream`, await it for an async iterator. A cancelled task cancels its work."""
        request = _request(prompt, sampling_params, input_ids, stream, fields)
        items = self._astream(request)
        return items if stream else await anext(items)

    async def _astream(self, request: GenerateRequest) -> AsyncIterator[Any]:
        collector = Collector(request, self._token_text)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        deltas = request.deltas()

        def deliver(item: int, event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, (item, event))

        try:
            self._submit_all([(d, lambda event, item=i: deliver(item, event)) for i, d in enumerate(deltas)])
            while not collector.done:
                index = collector.feed(*await events.get())
                if collector.error is not None:
                    raise collector.error
                if request.stream and index is not None:
                    yield collector.stream_item(index)
            if not request.stream:
                yield collector.result()
        finally:
            if not collector.done:
                for delta in deltas:
                    self.cancel(delta.program)

    def _token_text(self, token_id: int) -> str:
        return self.tokenizer.decode([token_id], skip_special=False)

    # -- control ---------------------------------------------------------------------------------------------------

    def flush_cache(self) -> bool:
        """Forget all cached prefixes. False, and nothing happens, while requests are running or waiting."""
        return bool(self._ask(self.scheduler.flush_cache))

    def check(self) -> None:
        """Prove that no KV slot is lost or owned twice. Raises AssertionError."""
        self._ask(self.scheduler.check)

    def load(self) -> dict[str, Any]:
        """How busy the engine is: running and waiting branches, slots."""
        return self._ask(self.scheduler.load)

    def state(self) -> dict[str, Any]:
        """What ought to be nothing when the engine is idle, the memory and threads of its process, and whether `check`
        holds: JSON-ready. `error` says why not, or is None."""
        return self._ask(self._state)

    def _state(self) -> dict[str, Any]:
        scheduler, error = self.scheduler, None
        try:
            scheduler.check()
        except AssertionError as broken:
            error = str(broken)
        memory = scheduler.memory
        return {
            "error": error,
            **scheduler.load(),
            "rows_used": scheduler.rows.max_rows - scheduler.rows.free_count,
            "leases": len(memory.leases),
            "unsettled": scheduler.graph.pressure.unsettled,
            "deadlines": len(scheduler.graph.deadlines),
            "queued_acts": self._inbox.qsize(),
            "oldest_programs": scheduler.graph.oldest(5),
            **process_figures(),
        }

    def info(self) -> dict[str, Any]:
        """The model, the options and the load, as one flat JSON-ready object."""
        info = asdict(self.config) | self.runner.model_info() | self.load() | self.runner.masks.figures()
        info |= {
            "model_path": self.config.model_path,
            "tokenizer_path": self.config.model_path,
            "served_model_name": self.config.model_name,
            "architectures": [info["architecture"]],
            "is_generation": True,
            "max_total_num_tokens": info["total_slots"],
            "max_req_input_len": min(info["context_length"], info["total_slots"]) - 1,
            "has_chat_template": self.chat.exists,
            "graph_refs": True,
        }
        return info

    def drain(self, timeout: float | None = None) -> bool:
        """Take no new programs, and wait until those that run have nothing left to do. True if they ended in time.

        `timeout` in seconds; None: the option `drain_timeout`. Call `shutdown` afterwards.
        """
        with self._gate:
            self._draining = True
        until = time.monotonic() + (self.config.drain_timeout if timeout is None else timeout)
        while self.scheduler.graph.pressure.unsettled and self._dead is None:
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        return True

    def shutdown(self) -> None:
        """Stop. Unfinished work gets an `EngineDeadError`. Calling it twice is fine."""
        with self._gate:
            stopped = self._dead is not None
            self._dead = self._dead or EngineDeadError("the engine was shut down")
        if not stopped:
            self._inbox.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=1 if self._watchdog.fired else 30)
            if not self._thread.is_alive():
                self.runner.close()
        self._watchdog.close()
        self._grammars.close()
        self._captures.close()
        _alive.discard(self)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        scheduler, inbox, watchdog = self.scheduler, self._inbox, self._watchdog
        try:
            while True:
                wait = scheduler.idle
                while True:
                    try:
                        act = inbox.get(timeout=scheduler.next_wake(IDLE_SECONDS)) if wait else inbox.get_nowait()
                    except queue.Empty:
                        collect_all(busy=not wait)
                        break
                    if act is None:
                        raise EngineDeadError("it was shut down")
                    self._act = act
                    watchdog.begin()
                    act()
                    watchdog.end()
                    self._act = None
                    wait = False
                watchdog.begin()
                scheduler.step()
                watchdog.end()
                if watchdog.fired:
                    raise EngineDeadError(watchdog.cause)  # it came back, but everybody was told that it did not
        except BaseException as error:  # whatever it is, nobody may be left waiting
            with self._gate:
                self._dead = self._dead or EngineDeadError(f"the engine stopped: {type(error).__name__}: {error}")
            watchdog.end()
            scheduler.graph.fail_all(error)
            self._drain()
            self.on_death(str(self._dead))
            if not isinstance(error, EngineDeadError):
                raise

    def _hangs(self, cause: str) -> None:
        """The engine's thread has not come back from a step or an act: answer everybody in its place."""
        with self._gate:
            self._dead = self._dead or EngineDeadError(cause)
        if isinstance(self._act, _Call):
            with contextlib.suppress(InvalidStateError):
                self._act.future.set_exception(EngineDeadError(cause))
        self.scheduler.graph.fail_all(EngineDeadError(cause))
        self._drain()
        self.on_death(cause)

    def _drain(self) -> None:
        """After the end: answer what still came in (control calls wait for a reply)."""
        while True:
            try:
                act = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(act, _Call):
                with contextlib.suppress(InvalidStateError):
                    act.future.set_exception(self._dead or EngineDeadError("the engine stopped"))

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Run a call in the engine's thread, between two steps, and return its result."""
        asked = _Call(call)
        with self._gate:
            if self._dead is not None:
                raise self._dead
            self._inbox.put(asked)
        return asked.future.result()

    def _compile(self, constraint: Constraint, done: Callable[[Grammar | Exception], None]) -> None:
        ready = self._grammars.peek(constraint)
        if ready is not None:
            done(ready)
        else:
            wanted = getattr(done, "wanted", None) or (lambda: True)
            self._grammars.submit(constraint, lambda made: self._inbox.put(lambda: done(made)), wanted)


class _Call:
    """A function to run in the engine's thread, and where its result goes."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.future: Future[Any] = Future()

    def __call__(self) -> None:
        try:
            result = self.call()
        except BaseException as error:
            with contextlib.suppress(InvalidStateError):
                self.future.set_exception(error)
        else:
            with contextlib.suppress(InvalidStateError):  # the watchdog gave up on it
                self.future.set_result(result)


def make_config(options: Mapping[str, Any]) -> EngineConfig:
    """EngineConfig from keyword options; an unknown one is a RequestError that suggests the nearest."""
    import difflib
    from dataclasses import fields

    from stemma.lang.errors import RequestError

    known = [f.name for f in fields(EngineConfig)]
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the options are {', '.join(known)}"
            raise RequestError(f"unknown engine option {name}={value!r}{hint}", param=name)
    return EngineConfig(**options)


def _request(
    prompt: Any, sampling_params: Any, input_ids: Any, stream: bool, fields: Mapping[str, Any]
) -> GenerateRequest:
    body = {"text": prompt, "sampling_params": sampling_params, "input_ids": input_ids, "stream": stream, **fields}
    return GenerateRequest.parse(body)


_alive: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _shutdown_all() -> None:
    for engine in list(_alive):
        engine.shutdown()
