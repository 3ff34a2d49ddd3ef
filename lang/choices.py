"""How a select decides: three pure functions from token log-probabilities to scores, and from scores to one choice.

The engine scores every choice in its context and calls `decide`; users name a method by its singleton
(`gen(choices=…, choices_method=greedy_token_selection)`), and the singleton's `name` is what goes on the wire.
Standard library only: the engine imports this module.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stemma.lang.errors import RequestError

Rows = Sequence[Sequence[float]]
OpenRows = Sequence[Sequence[float | None]]  # None: the first token of a sequence has no log-probability


@dataclass(frozen=True, slots=True)
class ChoicesDecision:
    """Which choice won, the score of each (higher is better), and what the method wants to show besides.

    `probabilities`: what a draw goes by, the softmax of scores / temperature (of the scores themselves at 0).
    """

    index: int
    scores: tuple[float, ...]
    details: dict[str, Any] = field(default_factory=dict)
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoicesMethod:
    """A way to decide a select. `needs_unconditional`: it also wants each choice scored without its context."""

    name: str
    needs_unconditional: bool = False

    def __call__(
        self, choices: Sequence[str], logprobs: Rows, unconditional: OpenRows | None = None
    ) -> ChoicesDecision:
        """`decide` by this method."""
        return decide(self.name, choices, logprobs, unconditional)


token_length_normalized = ChoicesMethod("token_length_normalized")
greedy_token_selection = ChoicesMethod("greedy_token_selection")
unconditional_likelihood_normalized = ChoicesMethod("unconditional_likelihood_normalized", needs_unconditional=True)

METHODS = {m.name: m for m in (token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized)}


def method_named(method: str | ChoicesMethod) -> ChoicesMethod:
    """The method of that name. Raises `RequestError` for one that does not exist."""
    found = METHODS.get(method) if isinstance(method, str) else method
    if not isinstance(found, ChoicesMethod) or found.name not in METHODS:
        raise RequestError(
            f"choices_method must be one of {', '.join(METHODS)}, got {method!r}", param="choices_method"
        )
    return found


def needs_unconditional(method: str) -> bool:
    """Whether `decide` wants the choices' log-probabilities without their context as well."""
    return method_named(method).needs_unconditional


def decide(
    method: str,
    choices: Sequence[str],
    logprobs: Rows,
    unconditional: OpenRows | None = None,
    *,
    ids: Sequence[Sequence[int]] | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
) -> ChoicesDecision:
    """Pick one of `choices`, given the log-probability of every token of each.

    At temperature 0 the method decides; above, the choice is drawn with the probabilities softmax(scores /
    temperature), always the same one for the same `seed`.

    Every token counts, those of log-probability 0.0 as well. A choice without tokens, or with a token that the model
    rules out (`-inf` or `nan`), scores `-inf`. Ties go to the lower index. `ids`, the choices' token ids, let the
    greedy method see that two choices share a token even where rounding gave it two log-probabilities. Raises
    `RequestError` when a row is missing or the method is unknown.
    """
    chosen = method_named(method)
    if not choices:
        raise RequestError("choices must hold at least one string, got an empty list", param="choices")
    _check_rows("logprobs", choices, logprobs)
    if chosen is greedy_token_selection:
        decision = _greedy(logprobs, ids)
    elif chosen is token_length_normalized:
        scores = tuple(_mean(row) for row in logprobs)
        decision = ChoicesDecision(_best(scores), scores)
    else:
        if unconditional is None:
            raise RequestError(
                f"{chosen.name} needs the unconditional log-probabilities, got None", param="unconditional"
            )
        _check_rows("unconditional", choices, unconditional)
        decision = _unconditional(choices, logprobs, unconditional)
    chances = probabilities(decision.scores, temperature)
    index = decision.index if temperature == 0 else _draw(chances, seed)
    return replace(decision, index=index, probabilities=chances)


def probabilities(scores: Sequence[float], temperature: float = 0.0) -> tuple[float, ...]:
    """The softmax of scores / temperature; at temperature 0, of the scores. All equal when every score is -inf."""
    top = max(scores)
    if top == -math.inf:
        return tuple(1 / len(scores) for _ in scores)
    weights = [math.exp((score - top) / (temperature or 1.0)) for score in scores]
    return tuple(weight / math.fsum(weights) for weight in weights)


def _draw(chances: Sequence[float], seed: int | None) -> int:
    left = random.Random(seed).random() * math.fsum(chances)
    for i, chance in enumerate(chances):
        left -= chance
        if left < 0:
            return i
    return _best(chances)


def _greedy(logprobs: Rows, ids: Sequence[Sequence[int]] | None) -> ChoicesDecision:
    """Walk the tokens in step, each time keeping the choices whose token is likeliest.

    A choice that has run out of tokens goes on with its own mean, so that a short one can still win.
    """
    means = [_mean(row) for row in logprobs]
    width = max(len(row) for row in logprobs)
    matrix = [[*map(_clean, row), *[mean] * (width - len(row))] for row, mean in zip(logprobs, means, strict=True)]
    alive = [i for i, mean in enumerate(means) if mean > -math.inf] or list(range(len(means)))
    for column in range(width):
        if len(alive) == 1:
            break
        top = max(alive, key=lambda i: (matrix[i][column], -i))
        alive = [i for i in alive if matrix[i][column] == matrix[top][column] or _same_token(ids, i, top, column)]
    return ChoicesDecision(alive[0], tuple(means), {"greedy_logprob_matrix": matrix})


def _same_token(ids: Sequence[Sequence[int]] | None, i: int, j: int, column: int) -> bool:
    return ids is not None and column < min(len(ids[i]), len(ids[j])) and ids[i][column] == ids[j][column]


def _unconditional(choices: Sequence[str], logprobs: Rows, unconditional: OpenRows) -> ChoicesDecision:
    """How much likelier the context makes each choice, per token.

    The first token of a sequence has no unconditional log-probability where nothing precedes it: it is None, or its
    row is one shorter; either way it counts as 0. Rows are compared from the end, where they agree.
    """
    scores = []
    for choice, given, free in zip(choices, logprobs, unconditional, strict=True):
        if len(free) > len(given):
            raise RequestError(
                f"unconditional has {len(free)} tokens for choice {choice!r}, logprobs only {len(given)}",
                param="unconditional",
            )
        padded = [0.0] * (len(given) - len(free)) + [_finite(value) for value in free]
        scores.append(_mean([_clean(c) - u for c, u in zip(given, padded, strict=True)]))
    means = [_mean([_finite(value) for value in row]) for row in unconditional]
    return ChoicesDecision(_best(scores), tuple(scores), {"normalized_unconditional_prompt_logprobs": means})


def _mean(row: Sequence[float]) -> float:
    return math.fsum(_clean(v) for v in row) / len(row) if row and not _ruled_out(row) else -math.inf


def _ruled_out(row: Sequence[float]) -> bool:
    return any(_clean(value) == -math.inf for value in row)


def _clean(value: float) -> float:
    return -math.inf if math.isnan(value) else float(value)


def _finite(value: float | None) -> float:
    return 0.0 if value is None or not math.isfinite(value) else float(value)


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def _check_rows(name: str, choices: Sequence[str], rows: OpenRows) -> None:
    if len(rows) != len(choices):
        raise RequestError(f"{name} has {len(rows)} rows for {len(choices)} choices", param=name)
