"""What a generation may be asked: sampling parameters and constraints. Frozen, and checked at birth."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from stemma.lang.errors import ConstraintError, RequestError

ConstraintKind = Literal["regex", "choices", "json_schema", "ebnf", "structural_tag", "composed"]

JSON_KINDS = ("json_schema", "structural_tag", "composed")  # the kinds that `lenient` and `whitespace` are for

GREEDY_TEMPERATURE = 1e-6  # below this, sampling takes the argmax
MAX_CHOICES = 50_000  # strings of one constraint


def _number(name: str, value: Any, low: float, high: float, legal: str, *, open_low: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RequestError(f"{name} must be a number in {legal}, got {value!r}", param=name)
    if value > high or value < low or (open_low and value == low):
        raise RequestError(f"{name} must be in {legal}, got {value!r}", param=name)
    return float(value)


def _integer(name: str, value: Any, low: int, legal: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be an integer {legal}, got {value!r}", param=name)
    if value < low:
        raise RequestError(f"{name} must be an integer {legal}, got {value!r}", param=name)
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {value!r}", param=name)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one generation are drawn and when it stops.

    `max_new_tokens=None` means: up to the context limit. `temperature` below 1e-6 is greedy. `stop` accepts a string
    or several; the text is cut before the match unless `no_stop_trim`. `top_k=-1` is off. `seed` makes the draw
    reproducible whatever else shares the batch; `None` lets the engine pick one. `logit_bias` maps token id to an
    addend in [-100, 100]. `finish_in_budget` ends a constrained text as a whole match within `max_new_tokens`, by its
    shortest completion when nothing else fits; a constraint whose shortest match is longer is an error.
    `spaces_between_special_tokens` is there for compatibility and changes nothing: as with transformers' fast
    tokenizers, no spaces are put between special tokens. Raises `RequestError` (a `ValueError`) naming the field, the
    legal range and the value.
    """

    max_new_tokens: int | None = 128
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    finish_in_budget: bool = False

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - the class is frozen
        if self.max_new_tokens is not None:
            _integer("max_new_tokens", self.max_new_tokens, 0, ">= 0")
        _integer("min_new_tokens", self.min_new_tokens, 0, ">= 0")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"min_new_tokens must be at most max_new_tokens ({self.max_new_tokens}), got {self.min_new_tokens}",
                param="min_new_tokens",
            )
        put("stop", _strings("stop", self.stop))
        put("stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        put("temperature", _number("temperature", self.temperature, 0.0, math.inf, "[0, inf)"))
        put("top_p", _number("top_p", self.top_p, 0.0, 1.0, "(0, 1]", open_low=True))
        if self.top_k != -1:
            _integer("top_k", self.top_k, 1, ">= 1, or -1 for off")
        put("min_p", _number("min_p", self.min_p, 0.0, 1.0, "[0, 1]"))
        put("frequency_penalty", _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "[-2, 2]"))
        put("presence_penalty", _number("presence_penalty", self.presence_penalty, -2.0, 2.0, "[-2, 2]"))
        put(
            "repetition_penalty",
            _number("repetition_penalty", self.repetition_penalty, 0.0, 2.0, "(0, 2]", open_low=True),
        )
        for name in (
            "ignore_eos",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "no_stop_trim",
            "finish_in_budget",
        ):
            _flag(name, getattr(self, name))
        if self.seed is not None:
            put("seed", _integer("seed", self.seed, 0, ">= 0") & 0x7FFF_FFFF_FFFF_FFFF)
        put("logit_bias", _bias(self.logit_bias))

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE or self.top_k == 1

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> SamplingParams:
        """From a JSON object. `None` means the default. An unknown name is an error that suggests the nearest."""
        if not isinstance(given, Mapping):
            raise RequestError(f"sampling_params must be an object, got {given!r}", param="sampling_params")
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name == "sampling_seed":
                name = "seed"
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise RequestError(f"unknown sampling parameter {name!r} (value {value!r}){hint}", param=str(name))
            if value is not None or name == "max_new_tokens":
                values[name] = value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object, only the fields that differ from the default."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                if f.name == "logit_bias":
                    value = {str(k): v for k, v in value}
                out[f.name] = list(value) if isinstance(value, tuple) else value
        return out


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (list, tuple)) or not all(isinstance(s, str) for s in value):
        raise RequestError(f"{name} must be a string or a list of strings, got {value!r}", param=name)
    if "" in value:
        raise RequestError(f"{name} must not contain an empty string, got {list(value)!r}", param=name)
    return tuple(value)


def check_choices(value: Any) -> None:
    """ConstraintError for more than MAX_CHOICES. Looks at their number alone."""
    if isinstance(value, (list, tuple)) and len(value) > MAX_CHOICES:
        raise ConstraintError(
            f"choices holds {len(value)} strings, the limit is {MAX_CHOICES}; use a regex or a grammar", param="choices"
        )


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise RequestError(f"{name} must be a list of token ids, got {value!r}", param=name)
    return tuple(_integer(name, v, 0, ">= 0") for v in value)


def _bias(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None or value == ():
        return ()
    if isinstance(value, Mapping):
        value = tuple(value.items())
    if not isinstance(value, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in value):
        raise RequestError(f"logit_bias must map token ids to numbers, got {value!r}", param="logit_bias")
    out = []
    for key, bias in value:
        try:
            token = int(key)
        except (TypeError, ValueError):
            raise RequestError(f"logit_bias keys must be token ids, got {key!r}", param="logit_bias") from None
        _integer("logit_bias", token, 0, "token id >= 0")
        out.append((token, _number("logit_bias", bias, -100.0, 100.0, "[-100, 100]")))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a generation's text must match, whole.

    `kind` names the front end; `value` is the pattern, the schema or grammar text, the tuple of choices, or
    for "composed" the JSON text of a tree of these (see lang/compose.py). Whether the
    value compiles is known only to the engine; here only its shape is checked. Hashable: engines cache by it.

    Two options are for JSON (`json_schema`, and the schemas of a `structural_tag`). `lenient`: what cannot be enforced
    of a schema is dropped and reported, not refused. `whitespace` between the parts of JSON: `None` allows one space
    behind `,` and `:` or none; "compact" none; "any" up to 64 characters of JSON white space; any other text is a
    regex for what stands in each such place. Raises `ConstraintError` naming the field and its value.

    With `after` the text is free up to and including the first occurrence of that marker (the end of a model's
    reasoning, say), and only what follows must match.
    """

    kind: ConstraintKind
    value: str | tuple[str, ...]
    lenient: bool = False
    whitespace: str | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            kinds = ", ".join(get_args(ConstraintKind))
            raise ConstraintError(f"unknown constraint kind {self.kind!r}; one of {kinds}", param="constraint")
        if self.kind == "choices":
            check_choices(self.value)
            choices = _strings("choices", self.value)
            if not choices:
                raise ConstraintError("choices must hold at least one string, got an empty list", param="choices")
            object.__setattr__(self, "value", choices)
        elif not isinstance(self.value, str):
            raise ConstraintError(f"{self.kind} must be a string, got {self.value!r}", param=self.kind)
        if not isinstance(self.lenient, bool):
            raise ConstraintError(f"lenient must be true or false, got {self.lenient!r}", param="lenient")
        if self.whitespace is not None and (not isinstance(self.whitespace, str) or not self.whitespace):
            raise ConstraintError(
                f'whitespace must be "compact", "any" or a regex, got {self.whitespace!r}', param="whitespace"
            )
        if self.after is not None:
            _marker(self.after)
        for option in ("lenient", "whitespace"):
            if getattr(self, option) and self.kind not in JSON_KINDS:
                raise ConstraintError(
                    f"{option}={getattr(self, option)!r} is for json_schema and structural_tag, not for {self.kind}",
                    param=option,
                )

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Constraint:
        known = {"kind", "value", "lenient", "whitespace", "after"}
        if not isinstance(given, Mapping) or not {"kind", "value"} <= set(given) <= known:
            raise ConstraintError(
                'constraint must be {"kind": …, "value": …}, with "lenient", "whitespace" and "after" where wanted, '
                f"got {given!r}",
                param="constraint",
            )
        value = given["value"]
        value = tuple(value) if isinstance(value, list) else value
        return cls(given["kind"], value, given.get("lenient", False), given.get("whitespace"), given.get("after"))

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; options only where they are given."""
        out: dict[str, Any] = {
            "kind": self.kind,
            "value": list(self.value) if isinstance(self.value, tuple) else self.value,
        }
        if self.lenient:
            out["lenient"] = True
        if self.whitespace is not None:
            out["whitespace"] = self.whitespace
        if self.after is not None:
            out["after"] = self.after
        return out


MAX_MARKER = 1_000  # characters of `Constraint.after`


def _marker(marker: Any) -> None:
    if not isinstance(marker, str) or not 0 < len(marker) <= MAX_MARKER:
        raise ConstraintError(
            f"constraint_after must be a string of 1 to {MAX_MARKER} characters, got {marker!r:.80}",
            param="constraint_after",
        )
    try:
        marker.encode()
    except UnicodeEncodeError:
        raise ConstraintError(
            f"constraint_after holds a lone surrogate, which is no character: {marker!r}", param="constraint_after"
        ) from None
