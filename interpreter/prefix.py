"""The constant beginning of a program: found by running its body up to the first thing that is not known."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stemma.interpreter.endpoints.base import Delta, Endpoint, OnEvent
from stemma.interpreter.runtime import Run
from stemma.interpreter.wire import RunOptions, error_to_wire
from stemma.lang.errors import ProgramError, RequestError
from stemma.lang.params import SamplingParams

if TYPE_CHECKING:
    from stemma.interpreter.program import Program


class _Used(BaseException):
    """An argument that was not given has been used. Not an `Exception`, so that bodies do not catch it."""


class _NotGiven:
    """Stands for an argument that was not given. Whatever is done with it raises `_Used`."""

    __slots__ = ()

    def _use(self, *_: Any, **__: Any) -> Any:
        raise _Used

    __getattribute__ = _use
    __str__ = __repr__ = __format__ = __bool__ = __len__ = __iter__ = __call__ = __getitem__ = __contains__ = _use
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _use
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __and__ = __rand__ = __or__ = _use
    __ror__ = __neg__ = __int__ = __float__ = __index__ = __enter__ = __exit__ = __setitem__ = __await__ = _use
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _use  # pyright: ignore[reportAssignmentType]


class _Nothing(Endpoint):
    """Answers no gen: the body goes no further than to the first value that it reads."""

    quiet_seconds = None

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        error = error_to_wire(RequestError("only the text before it was wanted"))
        for branch in delta["branches"]:
            for index, node in enumerate(branch["nodes"], branch.get("first", 0)):
                if node["kind"] != "text":
                    on_event({"event": "error", "branch": branch["id"], "node": index, "error": error})

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        return None


def constant_prefix(
    program: Program[..., Any], parameters: Sequence[inspect.Parameter], given: dict[str, Any]
) -> list[dict[str, Any]]:
    """The literals and role markers, as wire nodes, that a program says before anything unknown. Raises its errors."""
    words, args = dict(given), []
    for parameter in parameters:
        missing = parameter.name not in words and parameter.default is parameter.empty
        if parameter.kind is parameter.POSITIONAL_ONLY:
            args.append(words.pop(parameter.name, _NotGiven() if missing else parameter.default))
        elif missing and parameter.kind is not parameter.VAR_POSITIONAL:
            words[parameter.name] = _NotGiven()
    call = program._call(tuple(args), {**words, "backend": _Nothing(), "trace": False})
    started = program._begin(call)
    try:
        if program.is_async:
            program._run_async(started)
        else:
            program._run_body(started)
    except _Used:
        pass
    except ProgramError as error:
        if not _ends_here(started.run, error):
            raise
    nodes: list[dict[str, Any]] = []
    for node in started.run.graph.root.nodes:
        if node.kind not in ("text", "role_begin", "role_end") or node.source is not None:
            break
        nodes.append(dict(node.wire))
    return nodes


def _ends_here(run: Run, error: ProgramError) -> bool:
    """Whether the error is our own endpoint's answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RequestError) and "only the text before it was wanted" in str(cause):
            return True
        cause = cause.__cause__
    return False


def keep_prefix(endpoint: Endpoint, nodes: list[dict[str, Any]]) -> int:
    """Have an endpoint compute a prompt, and generate nothing. The number of its tokens."""
    if not nodes:
        return 0
    run = Run(endpoint, RunOptions())
    run.graph.name = f"cache-{uuid.uuid4().hex[:8]}"
    root = run.graph.root
    gen = {"kind": "gen", "params": SamplingParams(max_new_tokens=0).to_dict(), "constraint": None, "logprobs": None}
    with run.changed:
        for wire in nodes:
            run.graph.append(root, wire, where="", name=None, text=wire.get("text"))
        last = run.graph.append(root, {**gen, "stream": False}, where="", name=None, text=None)
    run.finish(None)
    run.wait([last])
    return int(last.meta.get("prompt_tokens") or 0)
