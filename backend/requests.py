"""Requests as programs: a `/generate` body (or `Engine.generate` arguments) to graph deltas, and events to results.

`GenerateRequest.parse` checks everything that can be checked without the model, `deltas` lowers to one program for each
prompt, and a `Collector` turns the events of those programs into result items. The OpenAI routes build a
`GenerateRequest` of their own and share the rest.
"""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from stemma.backend.messages import (
    MOST,
    BranchDelta,
    GenNode,
    GraphDelta,
    IdsNode,
    LogprobOptions,
    Node,
    ProgramHints,
    TextNode,
    check_salt,
)
from stemma.lang.errors import (
    CancelledError,
    ConstraintError,
    DeadlineError,
    EndpointError,
    EngineDeadError,
    RequestError,
)
from stemma.lang.params import Constraint, SamplingParams

CONSTRAINTS = ("json_schema", "regex", "ebnf")

# Fields of the wire format that this version cannot honour, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "input_embeds": (None,),
    "image_data": (None,),
    "audio_data": (None,),
    "video_data": (None,),
    "modalities": (None,),
    "return_hidden_states": (None, False),
    "lora_path": (None,),
    "session_params": (None,),
    "custom_logit_processor": (None,),
    "extra_key": (None,),
    "data_parallel_rank": (None,),
    "bootstrap_host": (None,),
    "bootstrap_port": (None,),
    "bootstrap_room": (None,),
}
UNSUPPORTED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "custom_params": (None,),
    "stop_regex": (None,),
    "stream_interval": (None, 1),
}
FIELDS = (
    "text", "input_ids", "sampling_params", "rid", "stream", "return_logprob", "logprob_start_len", "top_logprobs_num",
    "token_ids_logprob", "return_text_in_logprobs", "log_metrics", "cache_salt", "priority", "timeout",
)  # fmt: skip
CONSTRAINT_OPTIONS = ("lenient", "whitespace")  # of json_schema and structural_tag
_SAMPLING_FIELDS = {f.name for f in fields(SamplingParams)} | {
    *("n", *CONSTRAINTS, "structural_tag", *CONSTRAINT_OPTIONS, "constraint_after"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt: the nodes before the generation, and the generation. `rid` names it to the caller, `program` to the
    engine (a caller may use a rid again as soon as it has its answer)."""

    rid: str
    nodes: tuple[Node, ...]
    params: SamplingParams
    constraint: Constraint | None = None
    logprobs: LogprobOptions | None = None
    cache_salt: str | None = None
    program: str = field(default_factory=lambda: uuid.uuid4().hex)
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A checked request. Results are a flat request-major list: `len(items) * n` of them."""

    items: tuple[Item, ...]
    n: int = 1
    stream: bool = False
    as_list: bool = False  # the answer is a list even when it holds one result
    return_text_in_logprobs: bool = False
    timeout: float | None = None  # seconds from submission to the last result
    log_metrics: bool = True

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> GenerateRequest:
        """From the JSON object of `/generate`. Raises RequestError for whatever is wrong or not supported."""
        if not isinstance(body, Mapping):
            raise RequestError(f"the request must be an object, got {type(body).__name__}")
        refuse_unsupported(body, UNSUPPORTED)
        _refuse_misplaced(body)
        prompts, batch = _prompts(body)
        count = len(prompts)
        sampling = _spread("sampling_params", body, count, batch, {}, _mapping, "an object")
        parsed = [parse_sampling(s) for s in sampling]
        samples = {n for _, _, n in parsed}
        if len(samples) > 1:
            raise RequestError(f"n must be the same for all prompts of a batch, got {sorted(samples)}", param="n")
        rids = _rids(body.get("rid"), count, batch)
        logprobs = _logprobs(body, count, batch)
        salts = _spread("cache_salt", body, count, batch, None, lambda v: isinstance(v, str), "a string")
        priorities = _spread("priority", body, count, batch, None, _is_priority, "an integer")
        n = samples.pop()
        return cls(
            items=tuple(
                Item(rid, (prompt,), params, constraint, wanted, check_salt(salt), priority=priority)
                for rid, prompt, (params, constraint, _), wanted, salt, priority in zip(
                    rids, prompts, parsed, logprobs, salts, priorities, strict=True
                )
            ),
            n=n,
            stream=check_flag("stream", body.get("stream"), False),
            as_list=batch or n > 1,
            return_text_in_logprobs=check_flag("return_text_in_logprobs", body.get("return_text_in_logprobs"), False),
            timeout=parse_timeout(body.get("timeout")),
            log_metrics=check_flag("log_metrics", body.get("log_metrics"), True),
        )

    def deltas(self) -> list[GraphDelta]:
        """One whole program for each prompt: branch `r`, and for n > 1 a child branch for each sample."""
        return [
            GraphDelta(
                item.program,
                self._branches(item),
                end=True,
                cache_salt=item.cache_salt,
                hints=None if item.priority is None else ProgramHints(priority=item.priority),
                timeout=self.timeout,
            )
            for item in self.items
        ]

    def _branches(self, item: Item) -> list[BranchDelta]:
        if self.n == 1:
            return [BranchDelta("r", nodes=[*item.nodes, self._gen(item, item.params)], end=True)]
        seed = item.params.seed
        children = [
            BranchDelta(
                f"r.{i}",
                parent="r",
                at=len(item.nodes),
                nodes=[self._gen(item, item.params if seed is None else replace(item.params, seed=seed + i))],
                end=True,
            )
            for i in range(self.n)
        ]
        return [BranchDelta("r", nodes=list(item.nodes), end=True), *children]

    def _gen(self, item: Item, params: SamplingParams) -> GenNode:
        constraint = item.constraint.to_dict() if item.constraint else None
        return GenNode(params.to_dict(), constraint, item.logprobs, self.stream)


def parse_timeout(value: Any) -> float | None:
    """Seconds that a request may take, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise RequestError(f"timeout must be a number of seconds > 0, got {_short(value)}", param="timeout")
    return float(value)


def parse_sampling(given: Mapping[str, Any]) -> tuple[SamplingParams, Constraint | None, int]:
    """A `sampling_params` object: the parameters, the constraint and n."""
    refuse_unsupported(given, UNSUPPORTED_SAMPLING)
    rest = {k: v for k, v in given.items() if k not in UNSUPPORTED_SAMPLING}
    n = rest.pop("n", None)
    if n is None:
        n = 1
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise RequestError(f"n must be an integer >= 1, got {n!r}", param="n")
    if not isinstance(rest.get("logit_bias") or {}, Mapping):
        raise RequestError(f"logit_bias must be an object, got {_short(rest['logit_bias'])}", param="logit_bias")
    named = (*CONSTRAINTS, "structural_tag", *CONSTRAINT_OPTIONS, "constraint_after")
    constraint = parse_constraint({k: rest.pop(k, None) for k in named})
    return SamplingParams.from_dict(rest), constraint, n


def parse_constraint(given: Mapping[str, Any]) -> Constraint | None:
    """At most one of json_schema, regex, ebnf, structural_tag, and options for it; null means not given."""
    named = {k: v for k, v in given.items() if v is not None}
    options = {k: named.pop(k) for k in CONSTRAINT_OPTIONS if k in named}
    after = named.pop("constraint_after", None)
    if after is not None and not named:
        raise RequestError("constraint_after needs a constraint that begins there", param="constraint_after")
    if sum(k in named for k in CONSTRAINTS) > 1:
        raise RequestError("Only one of regex, json_schema, or ebnf can be set.")
    if len(named) > 1:
        raise RequestError(f"structural_tag cannot be combined with {next(k for k in CONSTRAINTS if k in named)}.")
    if not named and options.get("lenient", False) is False:
        options.pop("lenient", None)
    if not named and options:
        option, value = next(iter(options.items()))
        raise RequestError(f"{option}={value!r} needs json_schema or structural_tag", param=option)
    return next((Constraint(kind, value, after=after, **options) for kind, value in named.items()), None)  # type: ignore[arg-type]


def refuse_unsupported(given: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]]) -> None:
    """RequestError naming the first field that asks for something this version cannot do."""
    for name, idle in table.items():
        value = given.get(name)
        values = value if isinstance(value, list) and value else [value]
        if not all(any(v is i or (v == i and type(v) is type(i)) for i in idle) for v in values):
            raise RequestError(f"{name} is not supported by this version", param=name)


def check_flag(name: str, value: Any, default: bool) -> bool:
    """A boolean field; null means the default."""
    if value is None:
        return default
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {value!r}", param=name)
    return value


def check_ids(name: str, value: Any) -> list[int]:
    """A list of token ids, not empty."""
    if not isinstance(value, (list, tuple)) or not all(type(i) is int and 0 <= i < 2**31 for i in value):
        raise RequestError(f"{name} must be a list of token ids (integers >= 0), got {_short(value)}", param=name)
    if not value:
        raise RequestError(f"{name} must not be empty", param=name)
    return list(value)


def _refuse_misplaced(body: Mapping[str, Any]) -> None:
    """Unknown fields are ignored, but not a sampling parameter in the wrong place, nor a misspelt name."""
    for name, value in body.items():
        if value is None or name in FIELDS or name in UNSUPPORTED:
            continue
        if name in _SAMPLING_FIELDS:
            raise RequestError(f"{name} belongs inside sampling_params", param=name)
        near = difflib.get_close_matches(str(name), FIELDS, 1, cutoff=0.8)
        if near:
            raise RequestError(f"unknown field {name!r}; did you mean {near[0]!r}?", param=str(name))


def _prompts(body: Mapping[str, Any]) -> tuple[list[Node], bool]:
    """The prompt nodes, and whether they came as a batch."""
    given = [name for name in ("text", "input_ids") if body.get(name) is not None]
    if len(given) != 1:
        raise RequestError(
            f"exactly one of text and input_ids must be given, got {' and '.join(given) or 'neither'}", param="text"
        )
    name = given[0]
    value = body[name]
    if name == "text":
        batch = isinstance(value, (list, tuple))
        texts = list(value) if batch else [value]
        if not all(isinstance(t, str) for t in texts):
            raise RequestError(f"text must be a string or a list of strings, got {_short(value)}", param="text")
        nodes: list[Node] = [TextNode(t) for t in texts]
    else:
        batch = isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (list, tuple))
        nodes = [IdsNode(check_ids("input_ids", ids)) for ids in (value if batch else [value])]
    if not nodes:
        raise RequestError(f"{name} must not be empty", param=name)
    return nodes, batch


def _spread(
    name: str,
    body: Mapping[str, Any],
    count: int,
    batch: bool,
    default: Any,
    is_one: Callable[[Any], bool],
    what: str,
) -> list[Any]:
    """One value for each prompt: a single value is for all, a list (in a batch only) must have one for each."""
    value = body.get(name)
    if value is None:
        return [default] * count
    if is_one(value):
        return [value] * count
    if batch and isinstance(value, (list, tuple)):
        if len(value) != count:
            raise RequestError(f"{name} has {len(value)} entries for {count} prompts", param=name)
        values = [default if v is None else v for v in value]
        if all(v is default or is_one(v) for v in values):
            return values
    listed = f" or a list of {count} of them" if batch else ""
    raise RequestError(f"{name} must be {what}{listed}, got {_short(value)}", param=name)


def _logprobs(body: Mapping[str, Any], count: int, batch: bool) -> list[LogprobOptions | None]:
    wanted = _spread("return_logprob", body, count, batch, False, lambda v: isinstance(v, bool), "true or false")
    starts = _spread("logprob_start_len", body, count, batch, -1, _at_least(-1), "an integer >= -1")
    tops = _spread("top_logprobs_num", body, count, batch, 0, _at_least(0), "an integer >= 0")
    ids = _spread("token_ids_logprob", body, count, batch, None, _is_ids, "a list of token ids")
    out: list[LogprobOptions | None] = []
    for want, start, top, chosen in zip(wanted, starts, tops, ids, strict=True):
        if want:
            out.append(LogprobOptions(start, top, list(chosen) if chosen else None))
            continue
        for name, set_ in (
            ("logprob_start_len", start != -1),
            ("top_logprobs_num", top),
            ("token_ids_logprob", chosen),
        ):
            if set_:
                raise RequestError(f"{name} needs return_logprob", param=name)
        out.append(None)
    return out


def _rids(value: Any, count: int, batch: bool) -> list[str]:
    if value is None:
        return [uuid.uuid4().hex for _ in range(count)]
    if batch != isinstance(value, (list, tuple)):
        what = f"a list of {count} strings for a batch" if batch else "a string"
        raise RequestError(f"rid must be {what}, got {_short(value)}", param="rid")
    rids = list(value) if batch else [value]
    if not all(isinstance(r, str) and r for r in rids):
        raise RequestError(f"rid must hold non-empty strings, got {_short(value)}", param="rid")
    if len(rids) != count:
        raise RequestError(f"rid has {len(rids)} entries for {count} prompts", param="rid")
    if len(set(rids)) != count:
        raise RequestError(f"rid must be unique in a batch, got {_short(rids)}", param="rid")
    return rids


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_priority(value: Any) -> bool:
    return type(value) is int and abs(value) <= MOST


def check_priority(value: Any) -> int | None:
    """A request's priority; null means none."""
    if value is not None and not _is_priority(value):
        raise RequestError(f"priority must be an integer in [-{MOST}, {MOST}], got {_short(value)}", param="priority")
    return value


def _at_least(low: int) -> Callable[[Any], bool]:
    return lambda v: type(v) is int and v >= low


def _is_ids(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(i) is int and i >= 0 for i in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Events back


def error_from_event(event: Mapping[str, Any]) -> Exception:
    """The exception that an `error` event stands for; an unknown type becomes an EndpointError."""
    given = event["error"]
    kind, message = given.get("type"), str(given.get("message"))
    if kind in ("RequestError", "ConstraintError"):
        made = RequestError if kind == "RequestError" else ConstraintError
        pause = given.get("retry_after")
        return made(message, param=given.get("param"), status=given.get("status") or 400, retry_after=pause)
    if kind == "DeadlineError":
        return DeadlineError(message)
    if kind == "CancelledError":
        return CancelledError(message)
    if kind == "EngineDeadError":
        return EngineDeadError(message)
    return EndpointError(message, status=given.get("status") or 500, retry_after=given.get("retry_after"))


_GROWING = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")


class Sample:
    """What is known so far of one generation."""

    __slots__ = ("error", "finished", "id", "ids", "meta", "text")

    def __init__(self, id: str) -> None:
        self.id = id
        self.text = ""
        self.ids: list[int] = []
        self.meta: dict[str, Any] = {}
        self.finished = False
        self.error: Exception | None = None

    def take(self, event: Mapping[str, Any]) -> bool:
        """True if the event says something new."""
        kind = event["event"]
        if self.finished or kind not in ("delta", "done", "error"):
            return False
        if kind == "delta":
            self.text += event["text"]
            self.ids += event["ids"]
            for name, value in (event.get("meta") or {}).items():
                self.meta[name] = self.meta.get(name, []) + value if name in _GROWING else value
            return True
        self.finished = True
        if kind == "done":
            self.text, self.ids, self.meta = event["text"], list(event["ids"]), dict(event["meta"])
            return True
        error = error_from_event(event)
        if isinstance(error, CancelledError):
            self.meta["finish_reason"] = {"type": "abort", "message": str(error)}
        else:
            self.error = error
        return True


class Collector:
    """Turns the events of a request's programs into result items. Not thread-safe.

    A cancelled generation is a result with finish reason `abort`; any other failure is `error`, the first one seen.
    `token_text` (id → text) fills the third element of logprob triples when the request asked for it.
    """

    def __init__(self, request: GenerateRequest, token_text: Callable[[int], str] | None = None) -> None:
        self.request = request
        self.error: Exception | None = None
        n = request.n
        self.samples = [Sample(item.rid if n == 1 else f"{item.rid}_{i}") for item in request.items for i in range(n)]
        self._prompt_ids = [
            len(item.nodes[0].ids) if isinstance(item.nodes[0], IdsNode) else None for item in request.items
        ]
        self._token_text = token_text if request.return_text_in_logprobs else None

    def feed(self, item: int, event: Mapping[str, Any]) -> int | None:
        """An event of the program of `request.items[item]`. The flat index of the result that changed, if any."""
        index = self._index(item, event)
        if index is None or not self.samples[index].take(event):
            return None
        self.error = self.error or self.samples[index].error
        return index

    def _index(self, item: int, event: Mapping[str, Any]) -> int | None:
        n, branch, node = self.request.n, event.get("branch"), event.get("node")
        if n == 1:
            return item if branch == "r" and node == len(self.request.items[item].nodes) else None
        if branch == "r" or node != 0 or not isinstance(branch, str):
            return None
        return item * n + int(branch.removeprefix("r."))

    @property
    def done(self) -> bool:
        return all(s.finished for s in self.samples)

    def item(self, index: int) -> dict[str, Any]:
        """The result item, as far as it is known: text and ids are cumulative."""
        sample = self.samples[index]
        meta: dict[str, Any] = {"id": sample.id, "finish_reason": None}
        meta["prompt_tokens"] = self._prompt_ids[index // self.request.n]
        meta["completion_tokens"] = len(sample.ids)
        meta["cached_tokens"] = None
        meta.update(sample.meta)
        if self._token_text is not None:
            meta.update({k: self._with_text(v) for k, v in meta.items() if k.endswith("_logprobs")})
        return {"text": sample.text, "output_ids": list(sample.ids), "meta_info": meta}

    def stream_item(self, index: int) -> dict[str, Any]:
        """The same for a stream, with its place in the flat list when there are several."""
        item = self.item(index)
        return {**item, "index": index} if self.request.as_list else item

    def result(self) -> dict[str, Any] | list[dict[str, Any]]:
        """All items, or the single one. Raises the error if one failed."""
        if self.error is not None:
            raise self.error
        items = [self.item(i) for i in range(len(self.samples))]
        return items if self.request.as_list else items[0]

    def _with_text(self, value: Any) -> Any:
        """Logprob triples at any depth, with the token's text as third element."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value
        if len(value) == 3 and type(value[1]) is int and not isinstance(value[0], Sequence):
            assert self._token_text is not None
            return [value[0], value[1], self._token_text(value[1])]
        return [self._with_text(v) for v in value]
