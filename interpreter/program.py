"""Programs: functions decorated with `@function`, and the ways to run them."""

from __future__ import annotations

import atexit
import contextvars
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, cast, overload

from stemma.interpreter.batch import run_batch
from stemma.interpreter.endpoints.base import Endpoint
from stemma.interpreter.runtime import Run
from stemma.interpreter.state import ProgramState
from stemma.interpreter.wire import OPTION_NAMES, RunOptions
from stemma.lang.errors import EndpointError, RequestError

P = ParamSpec("P")
R = TypeVar("R")

_default: Endpoint | None = None
_default_lock = threading.Lock()
_current: contextvars.ContextVar[Endpoint | None] = contextvars.ContextVar("stemma_endpoint", default=None)


@overload
def function(func: Callable[Concatenate[ProgramState, P], R]) -> Program[P, R]: ...
@overload
def function(*, num_api_spec_tokens: int | None = None) -> Callable[
    [Callable[Concatenate[ProgramState, P], R]], Program[P, R]
]: ...  # fmt: skip
def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None) -> Any:
    """Make a program of a function whose first parameter is the state: `@function` or `@function(…)`.

    `num_api_spec_tokens`: on hosted endpoints, ask for this many tokens at a time and let one answer serve the gens
    that follow, as long as the literals between them are what the model wrote. Elsewhere it has nothing to save.

    Raises `RequestError` for something that cannot be a program: no first parameter, `async def`, a generator.
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
    `top_logprobs_num`, `token_ids_logprob`. A keyword that the function has as a parameter goes to the function.
    With `seed`, every gen draws with a seed derived from it and the gen's place, so forks still differ.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self,
        func: Callable[Concatenate[ProgramState, P], R],
        bound: Mapping[str, Any] | None = None,
        num_api_spec_tokens: int | None = None,
    ) -> None:
        name = getattr(func, "__qualname__", repr(func))
        if inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func):
            raise RequestError(f"{name} is an async function: async programs are not built yet; write `def`")
        if inspect.isgeneratorfunction(func):
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
        self.bound = dict(bound or {})
        self.num_api_spec_tokens = num_api_spec_tokens
        self._own = {p.name for p in parameters[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        functools.update_wrapper(cast(Any, self), func)

    def __repr__(self) -> str:
        return f"<Program {self.func.__qualname__}{self._signature}>"

    @overload
    def __call__(self, state: ProgramState, /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ProgramState: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """With a state first: go on inline in that state, and return what the function returns. Else `run`.

        Inline, sampling keywords hold for the time of the call.
        """
        if not args or not isinstance(args[0], ProgramState):
            return self.run(*args, **kwargs)
        state = args[0]
        args, kwargs, options = self._split(args[1:], kwargs)
        self._check(args, kwargs)
        before = state._options
        state._options = RunOptions.of(options, base=before)
        try:
            return self.func(state, *args, **kwargs)
        finally:
            state._options = before

    def run(self, *args: Any, **kwargs: Any) -> ProgramState:
        """Run the program and return its state as soon as the body has returned; gens may still be running.

        Besides the function's arguments and the sampling keywords (see the class): `backend`, an endpoint or an
        `Engine`, else the default one; `stream=True` runs the body in a thread, to be read with `text_iter`.
        Raises `TypeError` for arguments that do not fit, `RequestError` for sampling values, and what the body raises;
        with `stream=True` the body's error reaches the readers instead.
        """
        args, kwargs, options = self._split(args, kwargs)
        stream = bool(options.pop("stream", False))
        endpoint = resolve_endpoint(options.pop("backend", None))
        self._check(args, kwargs)
        return self._start(endpoint, RunOptions.of(options, stream=stream), args, kwargs)

    def run_batch(
        self,
        batch: Iterable[Mapping[str, Any] | Sequence[Any]],
        *,
        num_threads: int | Literal["auto"] = "auto",
        progress_bar: bool | None = False,
        backend: Any = None,
        generator_style: bool = False,
        on_error: Literal["raise", "return"] = "raise",
        **kwargs: Any,
    ) -> list[Any] | Iterator[Any]:
        """Run the program once per item, at most `num_threads` (auto: 64) at a time; the states, in the items' order.

        An item is a dict of arguments or a tuple of positional ones; keywords are sampling defaults and arguments for
        all. Items are complete when they come back. All run even if some fail; then `ProgramError` for the first
        failed item is raised, or with `on_error="return"` the errors stand in the list in their items' places.
        `generator_style=True` gives an iterator in the same order that starts more items as it is consumed, raises at
        a failed item, and cancels what is outstanding when closed. `progress_bar=None` shows one on a terminal only.
        Raises `TypeError` or `RequestError` for a wrong item before anything runs.
        """
        if on_error not in ("raise", "return"):
            raise RequestError(f"on_error must be raise or return, got {on_error!r}", param="on_error")
        _, shared, options = self._split((), kwargs)
        if options.pop("stream", False):
            raise RequestError("run_batch does not stream; use run(stream=True)", param="stream")
        bound_backend = options.pop("backend", None)
        run_options = RunOptions.of(options)
        calls = [self._item(i, item, shared) for i, item in enumerate(batch)]
        endpoint = resolve_endpoint(backend if backend is not None else bound_backend)
        starts = [functools.partial(self._start, endpoint, run_options, a, k) for a, k in calls]
        return run_batch(starts, num_threads, progress_bar, generator_style, on_error)

    def bind(self, **kwargs: Any) -> Program[..., R]:
        """The program with some arguments or sampling defaults filled in; a call may still override them.

        Raises `TypeError` for a name that is neither.
        """
        takes_any = any(p.kind is p.VAR_KEYWORD for p in self._signature.parameters.values())
        for name in kwargs:
            if name not in self._own and name not in OPTION_NAMES and name != "backend" and not takes_any:
                raise TypeError(f"{self.func.__qualname__}{self._signature} has no parameter {name!r} to bind")
        return Program(self.func, {**self.bound, **kwargs}, self.num_api_spec_tokens)

    def _split(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        """The function's arguments, bound ones included, and the run's options."""
        positional = list(self._signature.parameters)[1 : 1 + len(args)]
        given = {**{k: v for k, v in self.bound.items() if k not in positional}, **kwargs}
        options = {k: v for k, v in given.items() if k not in self._own and k in (*OPTION_NAMES, "stream", "backend")}
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

    def _start(
        self,
        endpoint: Endpoint,
        options: RunOptions,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        created: Callable[[ProgramState], None] | None = None,
    ) -> ProgramState:
        run = Run(endpoint, dataclasses.replace(options, num_api_spec_tokens=self.num_api_spec_tokens))
        state = ProgramState(run, run.graph.root)
        if created is not None:
            created(state)
        if not options.stream:
            self._run_body(run, state, args, kwargs)
            return state
        context = contextvars.copy_context()

        def body() -> None:
            try:
                context.run(self._run_body, run, state, args, kwargs)
            except BaseException as error:  # a thread has no caller: the readers are told, through the run
                assert run.failure is not None and run.failure.cause is error

        threading.Thread(target=body, name=f"stemma-{self.func.__name__}", daemon=True).start()
        return state._from_outside()

    def _run_body(self, run: Run, state: ProgramState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        token = _current.set(run.endpoint)
        try:
            result = self.func(state, *args, **kwargs)
        except BaseException as error:
            run.abort(error)
            raise
        finally:
            _current.reset(token)
        run.finish(result)


def set_default_backend(backend: Any) -> None:
    """What programs run on when no `backend` is given: an endpoint or an `Engine`; None for the bundled engine.

    Raises `RequestError` for something that a program cannot run on.
    """
    global _default
    with _default_lock:
        _default = None if backend is None else as_endpoint(backend)


def get_default_backend() -> Endpoint:
    """The default endpoint; the bundled engine is started on the first use if none was set.

    Raises `EndpointError` with a hint when the engine is not installed.
    """
    global _default
    with _default_lock:
        if _default is None:
            _default = _bundled_engine()
        return _default


def as_endpoint(backend: Any) -> Endpoint:
    """The endpoint itself, or an engine wrapped as one. Raises `RequestError` for anything else."""
    if isinstance(backend, Endpoint):
        return backend
    if callable(getattr(backend, "submit", None)) and callable(getattr(backend, "cancel", None)):
        from stemma.interpreter.endpoints.local import LocalEndpoint  # only programs on an engine need it

        return LocalEndpoint(backend)
    raise RequestError(f"backend must be an Engine or an endpoint such as RuntimeEndpoint(url), got {backend!r}")


def resolve_endpoint(backend: Any) -> Endpoint:
    """The one that was given, else that of the program we are called in, else the default."""
    if backend is not None:
        return as_endpoint(backend)
    return _current.get() or get_default_backend()


def _bundled_engine() -> Endpoint:
    from stemma.interpreter.endpoints.local import LocalEndpoint  # starts the engine, which loads torch

    try:
        endpoint = LocalEndpoint()
    except ImportError as error:
        raise EndpointError(
            f"no backend is set, and the bundled engine cannot be loaded: {error}. "
            "Set one, for example set_default_backend(RuntimeEndpoint('http://localhost:30000'))"
        ) from error
    atexit.register(endpoint.close)
    return endpoint
