"""The engine as a library: a model, a scheduler, and one thread that steps them. No processes of its own.

engine = Engine()                                  # the bundled model, on CPU
engine.generate("The capital of France is", {"max_new_tokens": 8})["text"]
engine.shutdown()
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any

from stemma.backend.captures import Captures
from stemma.backend.config import EngineConfig
from stemma.backend.grammar.base import Grammar
from stemma.backend.grammar.give_way import collect_all, set_aside
from stemma.backend.grammar.service import GrammarService
from stemma.backend.messages import GraphDelta, parse_delta
from stemma.backend.requests import Collector, GenerateRequest
from stemma.backend.scheduler.loop import Scheduler
from stemma.backend.text.chat import ChatTemplate
from stemma.backend.text.stream import TextStream
from stemma.backend.text.tokenizer import Tokenizer
from stemma.lang.errors import EngineDeadError
from stemma.lang.params import Constraint, SamplingParams

Event = dict[str, Any]
Sink = Callable[[Event], None]
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

        config = self.config
        self.runner = make_runner(
            config.model_dir,
            load_format=config.load_format,
            dtype=config.dtype,
            device=config.device,
            max_total_tokens=config.max_total_tokens,
            context_length=config.context_length,
            max_running_requests=config.max_running_requests,
            seed=config.random_seed,
            num_threads=config.num_threads,
            max_step_tokens=config.chunked_prefill_size,
        )
        self.tokenizer = Tokenizer.load(config.model_dir)
        self.chat = ChatTemplate.load(config.model_dir, self.tokenizer)
        self.text = ModelText(self.tokenizer, self.chat)
        vocabulary = self.tokenizer.vocabulary(self.runner.vocab_size)
        self._grammars = GrammarService(
            vocabulary, config.grammar_backend, config.grammar_workers, lambda: bool(self.scheduler.memory.running)
        )
        self._captures = Captures()
        self.runner.warm_up()
        self.scheduler = Scheduler(
            self.runner,
            self.text,
            self._compile,
            context=self.runner.context_length,
            max_rows=config.max_running_requests,
            chunk=config.chunked_prefill_size,
            policy=config.schedule_policy,
            conservativeness=config.schedule_conservativeness,
            radix=not config.disable_radix_cache,
            jump_forward=not config.disable_jump_forward,
            mask_overlap=not config.disable_mask_overlap,
            draft=config.draft,
            seed=config.random_seed,
            lease=config.lease_seconds,
        )
        self._inbox: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._dead: EngineDeadError | None = None
        set_aside()
        self._thread = threading.Thread(target=self._loop, name="stemma-engine", daemon=True)
        self._thread.start()
        _alive.add(self)

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
        }
        return info

    def shutdown(self) -> None:
        """Stop. Unfinished work gets an `EngineDeadError`. Calling it twice is fine."""
        with self._gate:
            stopped = self._dead is not None
            self._dead = self._dead or EngineDeadError("the engine was shut down")
        if not stopped:
            self._inbox.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=30)
        self._grammars.close()
        self._captures.close()
        _alive.discard(self)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        scheduler, inbox = self.scheduler, self._inbox
        try:
            while True:
                wait = scheduler.idle
                while True:
                    try:
                        act = inbox.get(timeout=IDLE_SECONDS) if wait else inbox.get_nowait()
                    except queue.Empty:
                        if wait:
                            collect_all()
                        break
                    if act is None:
                        raise EngineDeadError("it was shut down")
                    act()
                    wait = False
                scheduler.step()
        except BaseException as error:  # whatever it is, nobody may be left waiting
            with self._gate:
                self._dead = self._dead or EngineDeadError(f"the engine stopped: {type(error).__name__}: {error}")
            scheduler.graph.fail_all(error)
            self._drain()
            if not isinstance(error, EngineDeadError):
                raise

    def _drain(self) -> None:
        """After the end: answer what still came in (control calls wait for a reply)."""
        while True:
            try:
                act = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(act, _Call):
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
            self._grammars.submit(constraint, lambda made: self._inbox.put(lambda: done(made)))


class _Call:
    """A function to run in the engine's thread, and where its result goes."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.future: Future[Any] = Future()

    def __call__(self) -> None:
        try:
            self.future.set_result(self.call())
        except BaseException as error:
            self.future.set_exception(error)


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
