"""How well an engine decides JSON schemas, by the rules of MaskBench.

A schema passes when it compiles, when every valid instance is allowed token by token under the mask, with EOS legal at
its end, and when every invalid one is stopped somewhere. Instances are spelled by `json.dumps(…, ensure_ascii=False)`
and by the tokenizer's canonical encoding. Nothing here knows which engine it is, or runs a process.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stemma.backend.grammar.base import Grammar, Matcher, Vocabulary
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.params import Constraint

Compile = Callable[[Constraint, Vocabulary], Grammar]

FAILURES_TOLD = 3  # of one schema; the rest is counted


@dataclass(frozen=True, slots=True)
class Case:
    """One schema, as JSON text, with instances: (value, is it valid)."""

    name: str
    schema: str
    tests: tuple[tuple[Any, bool], ...]


@dataclass(slots=True)
class Outcome:
    """What became of one case. `refusal` are the engine's words, `unfinished` says why the case was not run to its end.

    Times are of the engine alone: compile_ms of the compilation, mask_us of each call of `mask`. The canonical tokens
    of the valid instances' compact JSON are counted in `tokens`, those that lay inside forced spans in `forced`.
    """

    name: str
    compile_ms: float | None = None
    refusal: str = ""
    unfinished: str = ""
    false_accepts: int = 0
    false_rejects: int = 0
    wrong: list[str] = field(default_factory=list)
    mask_us: list[float] = field(default_factory=list)
    tokens: int = 0
    forced: int = 0

    @property
    def passed(self) -> bool:
        return self.compile_ms is not None and not (self.unfinished or self.false_accepts or self.false_rejects)

    @property
    def why(self) -> str:
        """Why the case did not pass; "" if it did."""
        reasons = [f"refused: {self.refusal}"] if self.refusal else self.wrong[:FAILURES_TOLD]
        if len(self.wrong) > FAILURES_TOLD:
            reasons.append(f"and {len(self.wrong) - FAILURES_TOLD} more")
        return "; ".join([*reasons, f"unfinished: {self.unfinished}"] if self.unfinished else reasons)


def parse_cases(lines: Iterable[str]) -> Iterator[Case]:
    """The cases of a JSONL file. RequestError naming the line that is none. Empty lines are skipped."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            tests = tuple((test["instance"], _flag(test["valid"])) for test in entry.get("tests", []))
            name = str(entry.get("name", f"line {number}"))
            yield Case(name, json.dumps(entry["schema"], ensure_ascii=False), tests)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RequestError(
                f"line {number} is no case ({error!r}); a line is "
                '{"name": …, "schema": …, "tests": [{"instance": …, "valid": true}, …]}',
                param="file",
            ) from None


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"valid must be true or false, got {value!r}")
    return value


def run_case(case: Case, compile: Compile, vocab: Vocabulary) -> Iterator[Outcome]:
    """The outcome as far as it is known: once when the schema has compiled, and at the end."""
    outcome = Outcome(case.name)
    begin = time.perf_counter()
    try:
        grammar = compile(Constraint("json_schema", case.schema), vocab)
    except ConstraintError as error:
        outcome.refusal = str(error)
        yield outcome
        return
    outcome.compile_ms = 1e3 * (time.perf_counter() - begin)
    yield replace(outcome)
    for i, (instance, valid) in enumerate(case.tests):
        tokens = vocab.encode(spelled(instance))
        stop = rejected_at(grammar.matcher(), tokens, vocab, outcome.mask_us)
        if valid and stop is not None:
            outcome.false_rejects += 1
            outcome.wrong.append(f"tests[{i}] is valid and {_told(stop, tokens, vocab)}")
        elif not valid and stop is None:
            outcome.false_accepts += 1
            outcome.wrong.append(f"tests[{i}] is invalid and accepted")
        if valid and stop is None:
            forced, total = forced_tokens(grammar.matcher(), vocab.encode(spelled(instance, compact=True)))
            outcome.forced += forced
            outcome.tokens += total
    yield outcome


def spelled(instance: Any, *, compact: bool = False) -> str:
    """The instance as JSON text. A lone surrogate, which has no UTF-8, is written as an escape."""
    separators = (",", ":") if compact else None
    text = json.dumps(instance, ensure_ascii=False, separators=separators)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(instance, separators=separators)
    return text


def rejected_at(matcher: Matcher, tokens: Sequence[int], vocab: Vocabulary, mask_us: list[float]) -> int | None:
    """The first position whose token the mask forbids; len(tokens) if EOS is illegal at the end; None: accepted.

    Adds the microseconds of every mask to `mask_us`. RuntimeError if `accept` contradicts the mask.
    """
    clock = time.perf_counter_ns
    for i in range(len(tokens) + 1):
        begin = clock()
        row = matcher.mask()
        mask_us.append((clock() - begin) / 1e3)
        if i == len(tokens):
            return None if any(_bit(row, eos) for eos in vocab.eos_ids) else i
        if not _bit(row, tokens[i]):
            return i
        if not matcher.accept(tokens[i]):
            raise RuntimeError(f"mask and accept disagree about token {tokens[i]} at position {i}")
    raise AssertionError("unreachable")


def _bit(row: Any, token: int) -> bool:
    return 0 <= token < 32 * len(row) and bool(int(row[token >> 5]) >> (token & 31) & 1)


def _told(stop: int, tokens: Sequence[int], vocab: Vocabulary) -> str:
    before = b"".join(vocab.token_bytes[t] or b"" for t in tokens[max(0, stop - 8) : stop]).decode("utf-8", "replace")
    if stop == len(tokens):
        return f"EOS is illegal at its end, after {before!r}"
    token = (vocab.token_bytes[tokens[stop]] or b"").decode("utf-8", "replace")
    return f"rejected at token {stop}, {token!r}, after {before!r}"


def forced_tokens(matcher: Matcher, tokens: Sequence[int]) -> tuple[int, int]:
    """How many of these tokens lie inside spans that `forced` gives, and how many there are: (0, 0) if not accepted."""
    at = inside = 0
    while at < len(tokens):
        span = 0
        for token, expected in zip(matcher.forced(), tokens[at:], strict=False):
            if token != expected:
                break
            span += 1
        inside += span
        for token in tokens[at : at + max(span, 1)]:
            if not matcher.accept(token):
                return 0, 0
        at += max(span, 1)
    return inside, len(tokens)


def figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a run, as one JSON object. `unfinished`: cases that the time limit or a crash ended."""
    masks = [us for o in outcomes for us in o.mask_us]
    tokens = sum(o.tokens for o in outcomes)
    return {
        "schemas": len(outcomes),
        "compiled": sum(o.compile_ms is not None for o in outcomes),
        "refused": sum(bool(o.refusal) for o in outcomes),
        "unfinished": sum(bool(o.unfinished) for o in outcomes),
        "passed": sum(o.passed for o in outcomes),
        "false_accepts": sum(o.false_accepts for o in outcomes),
        "false_rejects": sum(o.false_rejects for o in outcomes),
        "compile_ms": percentiles([o.compile_ms for o in outcomes if o.compile_ms is not None], (50, 90)),
        "mask_us": percentiles(masks, (50, 99)),
        "forced_share": round(sum(o.forced for o in outcomes) / tokens, 4) if tokens else None,
        "failures": [{"name": o.name, "why": o.why} for o in outcomes if not o.passed],
    }


def percentiles(values: Sequence[float], ranks: Iterable[int]) -> dict[str, float | None]:
    """{"p50": …, "max": …} by nearest rank, to four digits; None where there are no values."""
    ordered = sorted(values)
    at = {f"p{rank}": math.ceil(rank / 100 * len(ordered)) - 1 for rank in ranks} | {"max": len(ordered) - 1}
    return {name: float(f"{ordered[max(i, 0)]:.4g}") if ordered else None for name, i in at.items()}
