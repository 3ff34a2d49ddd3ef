"""Programs: functions decorated with `@function`, and the ways to run them."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import inspect
import math
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, cast, overload

from stemma.interpreter.async_state import AsyncProgramState
from stemma.interpreter.background import background_loop, bodies, body_depth, on_background_loop
from stemma.interpreter.batch import Batch, BatchOptions, Call, OnError, Order, Started, drive
from stemma.interpreter.branch_state import BranchState
from stemma.interpreter.budget import Budget
from stemma.interpreter.default_endpoint import current_endpoint, resolve_endpoint
from stemma.interpreter.graph import ProgramGraph
from stemma.interpreter.rewrite import plain, rewriting, wants_tokens
from stemma.interpreter.runtime import Run
from stemma.interpreter.state import ProgramState
from stemma.interpreter.wire import OPTION_NAMES, RUN_WORDS, RunOptions
from stemma.lang.errors import CancelledError, RequestError

P = ParamSpec("P")
R = TypeVar("R")

CONTROLS = ("stream", "backend", "timeout", "budget", "use_thread", *RUN_WORDS)


@overload
def function(func: Callable[Concatenate[AsyncProgramState, P], Coroutine[Any, Any, R]]) -> Program[P, R]: ...
@overload
def function(func: Callable[Concatenate[ProgramState, P], R]) -> Program[P, R]: ...
@overload
def function(func: Callable[..., Any]) -> Program[..., Any]: ...  # a method: the state is its second parameter
@overload
def function(
    *, num_api_spec_tokens: int | None = None
) -> Callable[[Callable[Concatenate[Any, P], Any]], Program[P, Any]]: ...
def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None) -> Any:
    """Make a program of a function whose first parameter is the state: `@function` or `@function(…)`.

    `num_api_spec_tokens`: on hosted endpoints, ask for this many tokens at a time and let one answer serve the gens
    that follow, as long as the literals between them are what the model wrote. Elsewhere it has nothing to save.

    The function may be `async def`: what it reads it then awaits. Raises `RequestError` for something that cannot be
    a program: no first parameter, a generator.
    """
    if num_api_spec_tokens is not None and (type(num_api_spec_tokens) is not int or num_api_spec_tokens < 1):
        raise RequestError(
            f"num_api_spec_tokens must be an integer >= 1, got {num_api_spec_tokens!r}", param="num_api_spec_tokens"
        )
    if func is None:
        return functools.partial(Program, num_api_spec_tokens=num_api_spec_tokens)
    return Program(func, num_api_spec_tokens=num_api_spec_tokens)


class Program(Generic[P, R]):
    """A function that writes prompts, generates, chooses, forks and joins.

    `run` and `run_batch` take the function's own arguments and, as keywords, the defaults of its gens:
    `max_new_tokens`, `min_new_tokens`, `stop`, `stop_token_ids`, `temperature`, `top_p`, `top_k`, `min_p`,
    `frequency_penalty`, `presence_penalty`, `repetition_penalty`, `ignore_eos`, `skip_special_tokens`,
    `spaces_between_special_tokens`, `no_stop_trim`, `seed`, `logit_bias`, `return_logprob`, `logprob_start_len`,
    `top_logprobs_num`, `token_ids_logprob`, `return_text_in_logprobs`, `n`. A keyword that the
    function has as a parameter goes to the function.
    With `seed`, every gen draws with a seed derived from it and the gen's place, so forks still differ.

    What bounds a run: `timeout`, seconds until what has no value yet fails, and `budget`, a `Budget` of tokens or
    money that stops the program when it is used up.

    What is sent: `trace=True` asks for the prompts' tokens, for `state.trace()` and exact numbers in `explain()` (on by
    itself for `run` where the endpoint is in this process); `merge_identical=True` runs gens that must give the same
    text only once; `drop_unread=True` sends nothing before a value is read, and when the body returns drops what was
    not sent by then. `priority=n`: programs of a higher one go first in the engine's queue (0 without); an endpoint
    that has no such queue refuses it.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self,
        func: Callable[Concatenate[Any, P], Any],
        bound: Mapping[str, Any] | None = None,
        num_api_spec_tokens: int | None = None,
    ) -> None:
        name = getattr(func, "__qualname__", repr(func))
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise RequestError(
                f"{name} yields: a program is a plain function; stream with run(stream=True).text_iter()"
            )
        self._signature = inspect.signature(func)
        parameters = list(self._signature.parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise RequestError(f"{name} needs a first parameter for the state: `def {name}(s, …)`")
        self.func = func
        self.is_async = inspect.iscoroutinefunction(func)
        self.bound = dict(bound or {})
        self.num_api_spec_tokens = num_api_spec_tokens
        self._own = {p.name for p in parameters[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        functools.update_wrapper(cast(Any, self), func)

    def __get__(self, instance: Any, owner: Any = None) -> Program[..., Any]:
        """A program that is a method: `instance.program.run(…)`; its second parameter is the state."""
        return (
            self
            if instance is None
            else Program(self.func.__get__(instance, owner), self.bound, self.num_api_spec_tokens)
        )

    def __repr__(self) -> str:
        return f"<Program {self.func.__qualname__}{self._signature}>"

    @overload
    def __call__(self, state: BranchState, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, **kwargs: Any) -> ProgramState: ...  # the arguments, and what `run` takes besides
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """With a state first: go on inline in that state, and return what the function returns. Else `run`.

        Inline, sampling keywords hold for the time of the call. An async program is called from an async one, and
        awaited. Raises `RequestError` when a sync program calls an async one inline.
        """
        if not args or not isinstance(args[0], BranchState):
            return self.run(*args, **kwargs)
        state = args[0]
        if self.is_async and not isinstance(state, AsyncProgramState):
            raise RequestError(f"{self.func.__qualname__} is async: it can go on inline only in an async program")
        args, kwargs, options = self._split(args[1:], kwargs)
        self._check(args, kwargs)
        if controls := [name for name in CONTROLS if name in options]:
            raise RequestError(
                f"{controls[0]}={options[controls[0]]!r} is of a whole run: give it to run, not to an inline call",
                param=controls[0],
            )
        before, during = state._options, RunOptions.of(options, base=state._options)
        if self.is_async:
            return self._inline(state, before, during, args, kwargs)
        state._options = during
        try:
            return self.func(state, *args, **kwargs)
        finally:
            state._options = before

    async def _inline(
        self, state: BranchState, before: RunOptions, during: RunOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        state._options = during
        try:
            return await self.func(state, *args, **kwargs)
        finally:
            state._options = before

    def run(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Run the program and return its state as soon as the body has returned; gens may still be running.

        Besides the function's arguments and the sampling keywords (see the class): `backend`, an endpoint or an
        `Engine`, else the default one; `stream=True` runs the body beside the caller, to be read with `text_iter`;
        `timeout` and `budget`; `use_thread=False` waits until everything has run, and raises what failed. Raises
        `TypeError` for arguments that do not fit, `RequestError` for sampling values, and what the body raises; with
        `stream=True` the body's error reaches the readers instead.
        """
        call = self._call(args, kwargs)
        started = self._begin(call)
        if self.is_async:
            return self._waited(self._run_async(started), call)
        if not call.options.stream:
            self._run_body(started)
            return self._waited(started.state, call)
        context = contextvars.copy_context()
        threading.Thread(
            target=lambda: context.run(_told_readers, self._run_body, started),
            name=f"stemma-{self.func.__name__}",
            daemon=True,
        ).start()
        return started.state._from_outside()

    def _waited(self, state: ProgramState, call: Call) -> ProgramState:
        if not call.use_thread and not call.options.stream:
            state.sync()
        return state

    def _run_async(self, started: Started) -> ProgramState:
        if on_background_loop():
            raise RequestError(
                f"{self.func.__qualname__} is async, and run() would wait inside another async program: await arun()"
            )
        future = asyncio.run_coroutine_threadsafe(self._run_body_async(started), background_loop())
        if started.call.options.stream:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())  # the readers are told
            return started.state._from_outside()
        try:
            future.result()
        except BaseException:
            future.cancel()  # a Ctrl-C here must stop the body there
            raise
        return started.state

    async def arun(self, *args: Any, **kwargs: Any) -> ProgramState:
        """`run` for coroutines: returns the state when the whole program has run, so that reading it waits no more.

        With `stream=True` it returns at once, to be read with `text_async_iter`. A sync body runs in a thread. If the
        task is cancelled, so is the program. Raises as `run` does; a failed gen raises where it is read.
        """
        call = self._call(args, kwargs)
        started = self._begin(call)
        if call.options.stream:
            self._run_aside(started)
            return started.state._from_outside()
        await self._finish(started, bodies(body_depth.get()))
        return started.state

    def _run_aside(self, started: Started) -> None:
        """Run the body beside the caller. Its loop may end at any time: a sync body goes on, an async one is cancelled.

        Nobody awaits it: what it raises reaches the readers, through the run.
        """
        run = started.run
        if not self.is_async:
            context = contextvars.copy_context()
            bodies(body_depth.get()).submit(context.run, _told_readers, self._run_deeper, started)
            return

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                assert task.exception() is None or run.failure is not None
            elif not run.finished:  # cancelled before it could begin
                run.abort(CancelledError("the task that ran the program was cancelled"))

        task = asyncio.get_running_loop().create_task(self._run_body_async(started))
        task.add_done_callback(ended)
        run.body = task

    async def _finish(self, started: Started, threads: ThreadPoolExecutor) -> None:
        """Run the body, then wait for everything that it has said."""
        run = started.run
        try:
            await self._body_anywhere(started, threads)
            await run.settle_async(run.filled(list(run.graph.branches.values())))
        except asyncio.CancelledError:
            run.stop(CancelledError("the task that ran the program was cancelled"))
            raise

    async def _body_anywhere(self, started: Started, threads: ThreadPoolExecutor) -> None:
        if self.is_async:
            await self._run_body_async(started)
        else:
            context = contextvars.copy_context()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(threads, lambda: context.run(self._run_deeper, started))

    def _run_deeper(self, started: Started) -> None:
        """Run a body on a thread that futures wait for, which cannot carry a `StopIteration`."""
        body_depth.set(body_depth.get() + 1)
        try:
            self._run_body(started)
        except StopIteration as error:
            raise RuntimeError(f"{self.func.__qualname__} raised StopIteration") from error

    @overload
    def run_batch(
        self, batch: Iterable[Mapping[str, Any] | Sequence[Any]], *, generator_style: Literal[True], **kwargs: Any
    ) -> Generator[Any, None, None]: ...
    @overload
    def run_batch(
        self,
        batch: Iterable[Mapping[str, Any] | Sequence[Any]],
        *,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool | None = False,
        backend: Any = None,
        generator_style: Literal[False] = False,
        on_error: OnError = "raise",
        order: Order = "input",
        checkpoint: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> list[Any]: ...
    def run_batch(
        self,
        batch: Iterable[Mapping[str, Any] | Sequence[Any]],
        *,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool | None = False,
        backend: Any = None,
        generator_style: bool = False,
        on_error: OnError = "raise",
        order: Order = "input",
        checkpoint: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> list[Any] | Generator[Any, None, None]:
        """Run the program once per item, at most `num_threads` at a time; the states, in the items' order.

        An item is a dict of arguments or a tuple of positional ones; keywords are sampling defaults and arguments for
        all. `num_threads`: auto is 64 for a sync program, 1,024 for an async one (which needs no threads). Items are
        complete when they come back. All run even if some fail; then `ProgramError` for the first failed item is
        raised, or with `on_error="return"` the errors stand in the list in their items' places.
        `generator_style=True` gives an iterator that starts more items as it is consumed, raises at a failed item,
        and cancels what is outstanding when closed. `order="completed"` gives pairs (item's index, state), first done
        first. `progress_bar=None` shows one on a terminal only. `checkpoint` names a file of JSON lines: each item
        that succeeds is kept there, and items kept by an earlier run come back as `BatchRecord`s without running.
        Raises `TypeError` or `RequestError` for a wrong item, or a checkpoint of other items, before anything runs.
        """
        options = BatchOptions(num_threads, progress_bar, on_error, order, checkpoint, lazy=generator_style)
        return drive(self._batch(batch, options, backend, kwargs))

    def abatch(
        self,
        batch: Iterable[Mapping[str, Any] | Sequence[Any]],
        *,
        concurrency: int | Literal["auto"] = "auto",
        progress_bar: bool | None = False,
        backend: Any = None,
        on_error: OnError = "raise",
        order: Order = "input",
        checkpoint: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Batch:
        """`run_batch` for coroutines: `await` it for the list of states, or `async for` it to take them as they come.

        Iterating starts more items as it goes; leaving the loop cancels what is outstanding (at once when the batch
        is closed with `aclose`, else when it is collected). The other arguments are those of `run_batch`.
        """
        options = BatchOptions(concurrency, progress_bar, on_error, order, checkpoint, lazy=False)
        return self._batch(batch, options, backend, kwargs)

    def _batch(self, batch: Iterable[Any], options: BatchOptions, backend: Any, kwargs: dict[str, Any]) -> Batch:
        _, shared, given = self._split((), kwargs)
        if given.pop("stream", False):
            raise RequestError("run_batch does not stream; use run(stream=True)", param="stream")
        bound = given.pop("backend", None)
        controls = {name: given.pop(name, None) for name in ("timeout", "budget", "use_thread")}
        said = {"trace": False} | {name: given.pop(name) for name in RUN_WORDS if name in given}
        run_options = self._options(given).of_run(said)
        items = [self._item(i, item, shared) for i, item in enumerate(batch)]
        endpoint = resolve_endpoint(backend if backend is not None else bound)
        calls = [
            Call(endpoint.for_item(i), run_options, args, kwargs, **_controls(controls))
            for i, (args, kwargs) in enumerate(items)
        ]
        return Batch(self.func.__qualname__, calls, options, self.is_async, self._begin, self._finish)

    def trace(self, *args: Any, backend: Any = None, **kwargs: Any) -> ProgramGraph:
        """The program graph of a run in which every gen and select is answered by a placeholder; no model is needed.

        Takes what `run` takes; the function's own arguments must be given. `backend`, usually a `ScriptedEndpoint`,
        gives other answers than placeholders that fit the constraints. Raises what the body raises, and `ProgramError`
        for a node that no placeholder is known for.
        """
        from stemma.interpreter.placeholders import TracingEndpoint  # only for tracing

        state = self.run(*args, backend=TracingEndpoint() if backend is None else backend, **kwargs)
        state.sync()
        graph = state.graph()
        for node in state._run.filled(graph.branches.values()):  # a fake's token counts say nothing
            node.meta = {name: value for name, value in node.meta.items() if not name.endswith("_tokens")}
        return graph

    def cache(self, backend: Any = None, **kwargs: Any) -> int:
        """Compute the text that the program always begins with, and leave it in the endpoint's prefix cache.

        Takes what `run` takes. That text is what the program says before it reads a generated value, or uses an
        argument that was given neither here nor by `bind` and has no default. To find it the body is run once, up to
        there, and nothing is generated. Returns the number of tokens, 0 if the program begins with no constant text.
        Raises what the body raises, and `ProgramError` for an endpoint that cannot take a prompt alone.
        """
        from stemma.interpreter.prefix import constant_prefix, keep_prefix  # only for this

        positional = [p for p in list(self._signature.parameters.values())[1:] if p.kind is not p.VAR_KEYWORD]
        _, words, options = self._split((), kwargs)
        endpoint = resolve_endpoint(backend if backend is not None else options.pop("backend", None))
        return keep_prefix(endpoint, constant_prefix(self, positional, words))

    def bind(self, **kwargs: Any) -> Program[..., R]:
        """The program with some arguments or sampling defaults filled in; a call may still override them.

        Raises `TypeError` for a name that is neither.
        """
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self._signature.parameters.values())
        for name in kwargs:
            if name not in self._own and name not in OPTION_NAMES and name not in CONTROLS and not takes_any:
                raise TypeError(f"{self.func.__qualname__}{self._signature} has no parameter {name!r} to bind")
        return Program(self.func, {**self.bound, **kwargs}, self.num_api_spec_tokens)

    def _split(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        """The function's arguments, bound ones included, and the run's options."""
        positional = list(self._signature.parameters)[1 : 1 + len(args)]
        given = {**{k: v for k, v in self.bound.items() if k not in positional}, **kwargs}
        options = {k: v for k, v in given.items() if k not in self._own and k in (*OPTION_NAMES, *CONTROLS)}
        return args, {k: v for k, v in given.items() if k not in options}, options

    def _check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            self._signature.bind(None, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.func.__qualname__}{self._signature}: {error}") from None

    def _item(
        self, index: int, item: Mapping[str, Any] | Sequence[Any], shared: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(item, Mapping):
            args, kwargs = (), {**shared, **item}
        elif isinstance(item, (tuple, list)):
            args = tuple(item)
            taken = list(self._signature.parameters)[1 : 1 + len(args)]
            kwargs = {name: value for name, value in shared.items() if name not in taken}
        else:
            raise TypeError(f"item {index} of the batch must be a dict or a tuple of arguments, got {item!r:.80}")
        try:
            self._check(args, kwargs)
        except TypeError as error:
            raise TypeError(f"item {index} of the batch: {error}") from None
        return args, kwargs

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        args, kwargs, options = self._split(args, kwargs)
        stream = bool(options.pop("stream", False))
        endpoint = resolve_endpoint(options.pop("backend", None))
        controls = _controls({name: options.pop(name, None) for name in ("timeout", "budget", "use_thread")})
        said = {name: options.pop(name) for name in RUN_WORDS if name in options}
        self._check(args, kwargs)
        return Call(endpoint, self._options(options, stream).of_run(said), args, dict(kwargs), **controls)

    def _options(self, given: Mapping[str, Any], stream: bool = False) -> RunOptions:
        return dataclasses.replace(RunOptions.of(given, stream=stream), num_api_spec_tokens=self.num_api_spec_tokens)

    def _begin(self, call: Call) -> Started:
        endpoint = rewriting(call.endpoint, call.options)
        run = Run(endpoint, call.options, timeout=call.timeout, budget=call.budget)
        run.graph.name, run.graph.tokens = self.func.__qualname__, wants_tokens(endpoint, call.options)
        inner = (AsyncProgramState if self.is_async else ProgramState)(run, run.graph.root)
        state = inner._here if isinstance(inner, AsyncProgramState) else inner
        return Started(call, run, inner, state)

    def _run_body(self, started: Started) -> None:
        run = started.run
        token = current_endpoint.set(plain(run.endpoint))
        try:
            result = self.func(started.inner, *started.call.args, **started.call.kwargs)
        except BaseException as error:
            run.abort(error)
            raise
        finally:
            current_endpoint.reset(token)
        run.finish(result)

    async def _run_body_async(self, started: Started) -> None:
        run = started.run
        token = current_endpoint.set(plain(run.endpoint))
        try:
            result = await self.func(started.inner, *started.call.args, **started.call.kwargs)
        except asyncio.CancelledError:
            run.abort(CancelledError("the task that ran the program was cancelled"))
            raise
        except BaseException as error:
            run.abort(error)
            raise
        finally:
            current_endpoint.reset(token)
        run.finish(result)


def _told_readers(body: Callable[[Started], None], started: Started) -> None:
    """Run a body that has no caller: what it raises reaches the readers, through the run."""
    try:
        body(started)
    except BaseException:
        assert started.run.failure is not None


def _controls(given: Mapping[str, Any]) -> dict[str, Any]:
    """`timeout`, `budget` and `use_thread`, checked."""
    timeout, budget = given["timeout"], given["budget"]
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf
    ):
        raise RequestError(f"timeout must be a number of seconds > 0, got {timeout!r}", param="timeout")
    if isinstance(budget, int) and not isinstance(budget, bool):
        budget = Budget(budget)
    if budget is not None and not isinstance(budget, Budget):
        raise RequestError(f"budget must be a Budget or a number of tokens, got {budget!r}", param="budget")
    use_thread = given["use_thread"]
    if use_thread not in (None, True, False):
        raise RequestError(f"use_thread must be true or false, got {use_thread!r}", param="use_thread")
    return {"timeout": timeout, "budget": budget, "use_thread": use_thread is not False}
