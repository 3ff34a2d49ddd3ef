"""The words of a program: each checks its arguments where it is written and returns a node. Nothing runs here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stemma.lang import compose
from stemma.lang.choices import ChoicesMethod, ChoicesSamplingMethod, any_method, token_length_normalized
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.nodes import Gen, Logprobs, NodeList, RoleBegin, RoleEnd, Select, as_nodes, caller
from stemma.lang.params import Constraint, SamplingParams
from stemma.lang.reasoning import Reasoning, reasoning_format
from stemma.lang.tools import ToolSpec, tools_spec
from stemma.lang.types import TypeSpec, json_spec, type_spec


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: Any = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesSamplingMethod | str | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | Any = None,
    *,
    type: Any = None,
    repetition_penalty: float | None = None,
    finish_in_budget: bool | None = None,
    seed: int | None = None,
    token_ids_logprob: Sequence[int] | None = None,
    ebnf: str | None = None,
    structural_tag: str | Mapping[str, Any] | None = None,
    constraint: compose.Part | Constraint | None = None,
    constraint_after: str | None = None,
    tools: Sequence[Callable[..., Any]] | None = None,
    tool_choice: str | Callable[..., Any] | None = None,
    parallel_tool_calls: bool | None = None,
    timeout: float | None = None,
    lenient: bool | None = None,
    whitespace: str | None = None,
) -> Gen | Select:
    """Generate text here, and keep it under `name` if one is given. `None` means: as the run says.

    With `n` > 1, `n` texts are drawn side by side, and `s[name]` is the list of them; the program's text goes on with
    the first. `return_text_in_logprobs` adds each token's text to the log-probability entries. Positional arguments
    are in SGLang's order.

    `type` (or `dtype`) names a Python type: the text is constrained to it and `s[name]` is the value. `json_schema`
    takes a schema as text or dict, a pydantic model or another type, and `s[name]` is the text. `constraint` is made of
    `sequence`, `choice`, `repeat`, `capture` and the like (see `compose`). At most one of `type`, `regex`,
    `json_schema`, `ebnf`, `structural_tag`, `constraint`, `tools` may be given. With `choices` this is a `select`, and
    takes `choices_method`, `temperature` and `seed` and nothing else. `timeout` is how many seconds it may take once
    everything before it is there; then it fails, and so does what follows it.

    `lenient` and `whitespace` are for JSON (see `Constraint`): with `lenient=True` what cannot be enforced of a schema
    is dropped, and `s.get_meta_info(name)["constraint_warnings"]` says what. With `finish_in_budget` a constrained text
    is a whole match within `max_tokens`: it takes the shortest way to its end before it is too late. With
    `constraint_after="</think>"` the text is free up to and including the first such marker, and the constraint is for
    what follows; `s[name]` is the whole text.

    `tools` are functions with type hints, and `s[name]` is a `ToolCall` of one of them, ready to `run()`. `tool_choice`
    is "required" (a call, the default), "auto" (a call or text) or the name of a tool; with `parallel_tool_calls=True`
    it is a list of one or more calls.

    Raises `RequestError` (a `ValueError`) naming the argument and its value, `ConstraintError` for a constraint.
    """
    given = {k: v for k, v in locals().items() if v is not None}
    if choices is not None:
        return _select_of(given)
    if choices_method is not None:
        raise RequestError(f"choices_method={choices_method!r} needs choices", param="choices_method")
    refuse_stop_regex(stop_regex)
    spec = _tools(given) or _one_type(dtype, type)
    return Gen(
        name=_name(name),
        overrides=_overrides(given),
        constraint=_with_options(_one_constraint(given, spec), lenient, whitespace),
        type=spec,
        logprobs=check_logprobs(
            return_logprob, logprob_start_len, top_logprobs_num, token_ids_logprob, return_text_in_logprobs
        ),
        samples=check_samples(n),
        timeout=_seconds(timeout),
        captures=compose.captures_of(constraint, name) if isinstance(constraint, compose.Part) else (),
        where=caller(),
    )


def gen_int(
    name: str | None = None,
    max_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    **options: Any,
) -> Gen | Select:
    """`gen` of an integer: `s[name]` is an `int`. Takes `gen`'s sampling arguments and raises what `gen` raises."""
    given = {k: v for k, v in locals().items() if k != "options" and v is not None}
    return _gen_typed("gen_int", int, {**given, **options})


def gen_string(
    name: str | None = None,
    max_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    **options: Any,
) -> Gen | Select:
    """`gen` of a JSON string, quotes included: `s[name]` is the string without them. Raises what `gen` raises."""
    given = {k: v for k, v in locals().items() if k != "options" and v is not None}
    return _gen_typed("gen_string", str, {**given, **options})


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesSamplingMethod | str = token_length_normalized,
    *,
    seed: int | None = None,
) -> Select:
    """Score each choice in this context, append the best, and keep it under `name` if one is given.

    `choices_method` is one of `token_length_normalized`, `greedy_token_selection`,
    `unconditional_likelihood_normalized`, or an instance of your own subclass of `ChoicesSamplingMethod`. With a
    temperature the choice is drawn by softmax(scores / temperature). Raises `RequestError` for choices that are
    missing, empty or repeated, and for a temperature with a method of your own.
    """
    checked = SamplingParams(temperature=temperature, seed=seed)
    method = any_method(choices_method)
    if checked.temperature > 0 and not isinstance(method, ChoicesMethod):
        raise RequestError(
            f"temperature={temperature!r} draws by scores, which {type(method).__name__} does not give",
            param="temperature",
        )
    return Select(_name(name), _choices(choices), method, checked.temperature, seed, caller())


def separate_reasoning(expr: Any = None, model_type: str | Reasoning | None = None) -> NodeList:
    """Read the gens of `expr` in two parts: `s["x"]` is the answer, `s["x_reasoning_content"]` the reasoning.

    `model_type` says how the model marks its reasoning: a name such as "deepseek-r1" or "qwen3", or a
    `Reasoning(begin, end)`. The text of the program stays what the model wrote; `s.raw("x")` is the whole of it. A
    type or constraint of a gen is for the answer, which then begins behind the first end of reasoning. Raises
    `RequestError` for an unknown model type, an expression without gens, or a gen without a name.
    """
    if model_type is None:
        raise RequestError("separate_reasoning needs a model_type, such as 'qwen3', got None", param="model_type")
    format = reasoning_format(model_type)
    nodes = () if expr is None else as_nodes(expr)
    gens = [node for node in nodes if isinstance(node, Gen)]
    if not gens or any(node.name is None for node in gens):
        what = "has a gen without a name" if gens else "has no gen"
        raise RequestError(f"separate_reasoning needs gens with names; {expr!r:.80} {what}", param="expr")
    return NodeList(tuple(_reasons(node, format) if isinstance(node, Gen) else node for node in nodes))


def _reasons(node: Gen, format: Reasoning) -> Gen:
    """Its constraint, if it has one, is for the answer."""
    constraint = node.constraint
    if constraint is not None and constraint.after is None:
        constraint = replace(constraint, after=format.end)
    return replace(node, reasoning=format, constraint=constraint)


def system(expr: Any = None) -> NodeList:
    """A system message: role begin, `expr` (text, nodes or a list of these), role end."""
    return _message("system", expr)


def user(expr: Any = None) -> NodeList:
    """A user message: role begin, `expr` (text, nodes or a list of these), role end."""
    return _message("user", expr)


def assistant(expr: Any = None) -> NodeList:
    """An assistant message: role begin, `expr` (text, nodes or a list of these), role end."""
    return _message("assistant", expr)


def system_begin() -> RoleBegin:
    """The system message starts."""
    return RoleBegin("system", caller())


def system_end() -> RoleEnd:
    """The system message ends."""
    return RoleEnd("system", caller())


def user_begin() -> RoleBegin:
    """A user message starts."""
    return RoleBegin("user", caller())


def user_end() -> RoleEnd:
    """The user message ends."""
    return RoleEnd("user", caller())


def assistant_begin() -> RoleBegin:
    """An assistant message starts."""
    return RoleBegin("assistant", caller())


def assistant_end() -> RoleEnd:
    """The assistant message ends."""
    return RoleEnd("assistant", caller())


def _message(role: str, expr: Any) -> NodeList:
    inside = () if expr is None else as_nodes(expr)
    return NodeList((RoleBegin(role, caller()), *inside, RoleEnd(role, caller())))


def _name(name: Any) -> str | None:
    if name is not None and (not isinstance(name, str) or not name):
        raise RequestError(f"name must be a non-empty string, got {name!r}", param="name")
    return name


# gen's argument -> the sampling parameter it sets
_SAMPLING = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    **{
        name: name
        for name in (
            "stop",
            "stop_token_ids",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "frequency_penalty",
            "presence_penalty",
            "repetition_penalty",
            "ignore_eos",
            "finish_in_budget",
            "seed",
        )
    },
}


def _overrides(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The sampling parameters set here, checked and copied: a list that the user changes later changes nothing."""
    named = {field: given[argument] for argument, field in _SAMPLING.items() if argument in given}
    checked = SamplingParams(**{"max_new_tokens": None, **named})
    return tuple((field, getattr(checked, field)) for field in named)


def check_logprobs(
    return_logprob: Any = None,
    logprob_start_len: Any = None,
    top_logprobs_num: Any = None,
    token_ids_logprob: Any = None,
    return_text_in_logprobs: Any = None,
) -> Logprobs:
    """The log-probability arguments, checked. Raises `RequestError` naming the one that is wrong."""
    wanted, start, top, ids = return_logprob, logprob_start_len, top_logprobs_num, token_ids_logprob
    text = return_text_in_logprobs
    if text is not None and not isinstance(text, bool):
        raise RequestError(
            f"return_text_in_logprobs must be true or false, got {text!r}", param="return_text_in_logprobs"
        )
    if wanted is not None and not isinstance(wanted, bool):
        raise RequestError(f"return_logprob must be true or false, got {wanted!r}", param="return_logprob")
    extras = {"logprob_start_len": start, "top_logprobs_num": top, "token_ids_logprob": ids}
    for argument, value in extras.items():
        if wanted is False and value is not None:
            raise RequestError(f"{argument}={value!r} needs return_logprob=True, got False", param=argument)
    _at_least("logprob_start_len", start, -1)
    _at_least("top_logprobs_num", top, 0)
    if ids is not None:
        whole = isinstance(ids, (list, tuple)) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
        if not whole or any(i < 0 for i in ids):
            raise RequestError(f"token_ids_logprob must be a list of token ids, got {ids!r}", param="token_ids_logprob")
        ids = tuple(ids)
    return Logprobs(wanted, start, top, ids, text)


def check_samples(n: Any) -> int | None:
    """How many texts a gen draws. Raises `RequestError` for anything but an integer >= 1."""
    _at_least("n", n, 1)
    return n


def refuse_stop_regex(stop_regex: Any) -> None:
    """Raise `RequestError` when one is given."""
    if stop_regex is not None and stop_regex not in ("", [], ()):
        raise RequestError(
            f"stop_regex={stop_regex!r} is not built: use stop=, or regex= for the text that is wanted",
            param="stop_regex",
        )


def _seconds(timeout: Any) -> float | None:
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf
    ):
        raise RequestError(f"timeout must be a number of seconds > 0, got {timeout!r}", param="timeout")
    return timeout


def _at_least(argument: str, value: Any, low: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise RequestError(f"{argument} must be an integer >= {low}, got {value!r}", param=argument)


def _one_type(dtype: Any, type: Any) -> TypeSpec | None:
    if dtype is not None and type is not None:
        raise RequestError(f"type and dtype mean the same; give one, got {type!r} and {dtype!r}", param="type")
    given = type if type is not None else dtype
    return None if given is None else type_spec(given)


def _tools(given: Mapping[str, Any]) -> ToolSpec | None:
    """The type that `tools` and what belongs to it ask for."""
    if "tools" in given:
        return tools_spec(given["tools"], given.get("tool_choice"), given.get("parallel_tool_calls", False))
    for name in ("tool_choice", "parallel_tool_calls"):
        if name in given:
            raise RequestError(f"{name}={given[name]!r} needs tools", param=name)
    return None


def _one_constraint(given: Mapping[str, Any], spec: TypeSpec | None) -> Constraint | None:
    kinds = ("type", "dtype", "regex", "json_schema", "ebnf", "structural_tag", "constraint", "tools")
    present = [kind for kind in kinds if kind in given]
    if len(present) > 1:
        raise ConstraintError(f"only one constraint may be given, got {' and '.join(present)}", param=present[1])
    after = given.get("constraint_after")
    if after is not None and (spec is not None or not present):
        what = "cannot be combined with type: the value would begin behind it" if present else "needs a constraint"
        raise ConstraintError(
            f"constraint_after={after!r} {what}; use regex, json_schema, ebnf or structural_tag",
            param="constraint_after",
        )
    if spec is not None or not present:
        return spec.constraint if spec else None
    kind = present[0]
    value: Any = given[kind]
    if kind == "constraint":
        made = value if isinstance(value, Constraint) else compose.constraint_of(compose.as_part(value))
        return made if after is None else replace(made, after=after)
    if kind == "json_schema" and _is_type(value):
        return replace(json_spec(value).constraint, after=after)
    if kind in ("json_schema", "structural_tag"):
        return Constraint(kind, _as_json(kind, value), after=after)
    return Constraint("ebnf" if kind == "ebnf" else "regex", value, after=after)


def _with_options(constraint: Constraint | None, lenient: bool | None, whitespace: str | None) -> Constraint | None:
    options = {k: v for k, v in (("lenient", lenient), ("whitespace", whitespace)) if v not in (None, False)}
    if not options:
        return constraint
    if constraint is None:
        name, value = next(iter(options.items()))
        raise ConstraintError(f"{name}={value!r} needs json_schema or structural_tag", param=name)
    return replace(constraint, **options)


def _is_type(value: Any) -> bool:
    return not isinstance(value, (str, Mapping, bool, int, float, list))


def _as_json(kind: str, value: Any) -> str:
    """The value as JSON text, whether it came as an object or as text."""
    try:
        return json.dumps(json.loads(value) if isinstance(value, str) else value)
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"{kind} must be JSON, got {value!r:.200}: {error}", param=kind) from None


def _choices(choices: Any) -> tuple[str, ...]:
    if choices is None:
        raise RequestError("select needs choices, got None", param="choices")
    if isinstance(choices, str):
        raise RequestError(f"choices must be a list of strings, got the string {choices!r}", param="choices")
    listed = tuple(choices)
    if not listed:
        raise RequestError("choices must hold at least one string, got an empty list", param="choices")
    for i, choice in enumerate(listed):
        if not isinstance(choice, str) or not choice:
            raise RequestError(f"choices[{i}] must be a non-empty string, got {choice!r}", param="choices")
        if choice in listed[:i]:
            raise RequestError(f"choices[{i}] repeats {choice!r}", param="choices")
    return listed


def _select_of(given: dict[str, Any]) -> Select:
    taken = ("name", "choices", "choices_method", "temperature", "seed")
    others = [name for name in given if name not in taken]
    if others:
        shown = ", ".join(f"{name}={given[name]!r}" for name in others)
        raise RequestError(f"gen with choices scores them and generates nothing: remove {shown}", param=others[0])
    return select(**{name: given[name] for name in taken if name in given})


def _gen_typed(word: str, type: Any, options: dict[str, Any]) -> Gen | Select:
    words = ("type", "dtype", "choices", "choices_method", "regex", "json_schema", "ebnf", "structural_tag")
    fixed = [o for o in (*words, "constraint", "tools") if o in options]
    if fixed:
        raise RequestError(f"{word} fixes the type; remove {', '.join(fixed)}", param=fixed[0])
    return gen(type=type, **options)
