"""Between the language and the wire: run options, nodes as the wire wants them, errors both ways."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from stemma.lang.api import check_logprobs, check_samples, refuse_stop_regex
from stemma.lang.choices import ChoicesMethod
from stemma.lang.errors import (
    CancelledError,
    ConstraintError,
    EndpointError,
    EngineDeadError,
    ReplayError,
    RequestError,
    StemmaError,
)
from stemma.lang.nodes import Gen, Image, Node, Ref, RoleBegin, RoleEnd, Select, Text
from stemma.lang.params import SamplingParams

_SAMPLING = tuple(f.name for f in dataclasses.fields(SamplingParams))
_LOGPROBS = (
    "return_logprob", "logprob_start_len", "top_logprobs_num", "token_ids_logprob", "return_text_in_logprobs",
)  # fmt: skip
OPTION_NAMES = frozenset((*_SAMPLING, *_LOGPROBS, "n", "stop_regex"))
RUN_WORDS = ("trace", "merge_identical", "drop_unread", "priority")  # said of a run as a whole


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run says for all its gens: the defaults of sampling and log-probabilities, and whether to stream."""

    params: SamplingParams = field(default_factory=SamplingParams)
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = 0
    token_ids_logprob: tuple[int, ...] | None = None
    return_text_in_logprobs: bool = False
    n: int = 1
    stream: bool = False
    num_api_spec_tokens: int | None = None  # `@function(num_api_spec_tokens=…)`
    trace: bool | None = None
    merge_identical: bool = False
    drop_unread: bool = False
    priority: int | None = None  # of the whole program: higher goes first

    def of_run(self, said: Mapping[str, Any]) -> RunOptions:
        """With what a run says of itself as a whole. Raises `RequestError` naming the word and the value."""
        for name, value in said.items():
            if name == "priority":
                if value is not None and (type(value) is not int or abs(value) >= 2**31):
                    raise RequestError(f"priority must be an integer of 32 bits, got {value!r}", param=name)
            elif not isinstance(value, bool) and not (name == "trace" and value is None):
                raise RequestError(f"{name} must be true or false, got {value!r}", param=name)
        return dataclasses.replace(self, **said)

    def hints(self, capabilities: frozenset[str]) -> dict[str, Any]:
        """What a delta tells the endpoint of the program as a whole."""
        said: dict[str, Any] = {}
        if self.num_api_spec_tokens is not None and "speculation" in capabilities:
            said["num_api_spec_tokens"] = self.num_api_spec_tokens
        if self.priority is not None:
            said["priority"] = self.priority
        return said

    @classmethod
    def of(cls, given: Mapping[str, Any], *, stream: bool = False, base: RunOptions | None = None) -> RunOptions:
        """From `run`'s keyword arguments, on top of `base`. Raises `RequestError` naming the argument."""
        base = base or cls(stream=stream)
        named: dict[str, Any] = {k: v for k, v in given.items() if v is not None or k == "max_new_tokens"}
        unknown = [name for name in named if name not in OPTION_NAMES]
        if unknown:
            near = difflib.get_close_matches(unknown[0], OPTION_NAMES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RequestError(f"unknown run option {unknown[0]!r}{hint}", param=unknown[0])
        refuse_stop_regex(named.get("stop_regex"))
        samples = check_samples(named.get("n"))
        logprobs: dict[str, Any] = {name: named[name] for name in _LOGPROBS if name in named}
        check_logprobs(**{name: named.get(name) for name in _LOGPROBS})
        if "token_ids_logprob" in named:
            logprobs["token_ids_logprob"] = tuple(named["token_ids_logprob"])
        params = dataclasses.replace(base.params, **{k: v for k, v in named.items() if k in _SAMPLING})
        return dataclasses.replace(base, params=params, n=base.n if samples is None else samples, **logprobs)


def wire_node(node: Node, options: RunOptions, place: str) -> dict[str, Any]:
    """The node as the wire wants it, the run's defaults merged in. `place` tells this node from all others.

    Raises `RequestError` when what the gen and the run ask for do not fit together.
    """
    match node:
        case Text(text=text):
            return {"kind": "text", "text": text}
        case Ref():
            return {"kind": "text", "text": ""}  # the runtime fills it in before it is sent
        case Image(data=data, mime=mime, url=url):
            return {"kind": "image", "url": url} if url else {"kind": "image", "data": data, "mime": mime}
        case RoleBegin(role=role):
            return {"kind": "role_begin", "role": role}
        case RoleEnd(role=role):
            return {"kind": "role_end", "role": role}
        case Select():
            seed = node.seed
            if seed is None and node.temperature > 0:
                seed = seed_at(options.params.seed, place)
            return {
                "kind": "select",
                "choices": list(node.choices),
                "method": cast(ChoicesMethod, node.method).name,
                "temperature": node.temperature,
                "seed": seed,
            }
        case Gen():
            return {
                "kind": "gen",
                "params": _params(node, options, place).to_dict(),
                "constraint": node.constraint.to_dict() if node.constraint else None,
                "logprobs": _logprobs(node, options),
                "stream": options.stream,
            }


def _params(node: Gen, options: RunOptions, place: str) -> SamplingParams:
    given = dict(node.overrides)
    if "seed" not in given and options.params.seed is not None:
        given["seed"] = seed_at(options.params.seed, place)
    if node.constraint is None and "finish_in_budget" not in given:
        given["finish_in_budget"] = False  # the run means the gens that have something to finish
    return dataclasses.replace(options.params, **given)


def seed_at(seed: int | None, place: str) -> int | None:
    """A seed for one node from the run's: forks that say the same still draw differently, and reruns draw the same."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) & 0x7FFF_FFFF_FFFF_FFFF


def _logprobs(node: Gen, options: RunOptions) -> dict[str, Any] | None:
    asked = node.logprobs
    if not (options.return_logprob if asked.wanted is None else asked.wanted):
        if asked.wanted is None and (asked.start, asked.top, asked.ids) != (None, None, None):
            raise RequestError(f"{node} asks about log-probabilities; set return_logprob=True", param="return_logprob")
        return None
    ids = asked.ids if asked.ids is not None else options.token_ids_logprob
    text = asked.text if asked.text is not None else options.return_text_in_logprobs
    return {
        "start": asked.start if asked.start is not None else options.logprob_start_len,
        "top": asked.top if asked.top is not None else options.top_logprobs_num,
        "ids": list(ids) if ids is not None else None,
        **({"text": True} if text else {}),
    }


_ERRORS = {
    e.__name__: e for e in (RequestError, ConstraintError, EndpointError, EngineDeadError, CancelledError, ReplayError)
}


def error_to_wire(error: BaseException) -> dict[str, Any]:
    """An exception as the `error` object of an event."""
    known = isinstance(error, StemmaError)
    return {
        "type": type(error).__name__ if known else "EndpointError",
        "message": str(error) if known else f"{type(error).__name__}: {error}",
        "param": getattr(error, "param", None),
        "status": getattr(error, "status", None),
    }


def error_from_wire(given: Mapping[str, Any]) -> StemmaError:
    """The exception that an `error` object stands for. A type that we do not know becomes an `EndpointError`."""
    message, kind = str(given.get("message") or given), _ERRORS.get(str(given.get("type")))
    status = given.get("status")
    if kind is None:
        shown = f"{given['type']}: {message}" if given.get("type") else message
        return EndpointError(shown, status=status)
    if issubclass(kind, RequestError):
        return kind(message, param=given.get("param"), status=status if isinstance(status, int) else 400)
    return kind(message, status=status) if kind is EndpointError else kind(message)
