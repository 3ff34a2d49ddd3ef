"""Select on services that only complete text: a walk over tokens forced by `logit_bias`, and scoring by echo.

The walk is SGLang's for its OpenAI backend: at each step the tokens that the choices go on with are raised by 100, so
that the model picks among them. Here, steps with a single way on need no request, and choices that the walk could not
tell apart are refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from stemma.lang.choices import decide
from stemma.lang.errors import EndpointError, RequestError

BIAS = 100
MOST_BIASES = 300  # what the OpenAI API takes


def check_walk(choices: Sequence[str], ids: Sequence[Sequence[int]], *, first_only: bool = False) -> None:
    """Raise `RequestError` for choices that the walk cannot tell apart. `first_only`: it has one step."""
    for i, a in enumerate(ids):
        for j, b in enumerate(ids[:i]):
            if first_only and a[:1] == b[:1]:
                raise RequestError(
                    f"choices {choices[j]!r} and {choices[i]!r} begin with the same token; a chat model can only be "
                    "made to choose by the first",
                    param="choices",
                )
            if a[: len(b)] == b[: len(a)]:
                raise RequestError(
                    f"one of the choices {choices[j]!r} and {choices[i]!r} begins with the other, token for token: "
                    "logit_bias cannot make a model stop",
                    param="choices",
                )
    if len({row[0] for row in ids}) > MOST_BIASES:
        raise RequestError(f"select by logit_bias takes at most {MOST_BIASES} first tokens", param="choices")


async def walk(
    ids: Sequence[Sequence[int]], pick: Callable[[list[int], list[int]], Awaitable[int]]
) -> tuple[int, list[int]]:
    """The chosen index, and for each choice how many of its tokens were taken.

    `pick(taken, candidates)` asks the model for one of the candidate tokens after those taken.
    """
    alive, taken = list(range(len(ids))), []
    scores = [0] * len(ids)
    while len(alive) > 1:
        candidates = sorted({ids[i][len(taken)] for i in alive})
        token = candidates[0] if len(candidates) == 1 else await pick(taken, candidates)
        alive = [i for i in alive if ids[i][len(taken)] == token]
        for i in alive:
            scores[i] += 1
        taken.append(token)
    scores[alive[0]] = len(ids[alive[0]])
    return alive[0], scores


def token_of(text: str, candidates: Sequence[int], decode: Callable[[list[int]], str]) -> int:
    """The candidate that a one-token answer is. Raises `EndpointError` if it is none of them."""
    texts = {decode([token]): token for token in candidates}
    for known in (text, text.strip()):
        if known in texts:
            return texts[known]
    for shown, token in texts.items():
        if shown.strip() and text.strip() == shown.strip():
            return token
    raise EndpointError(
        f"the service answered {text!r}, which is none of the tokens it was limited to: {list(texts)!r}"
    )


def echoed(tokens: Sequence[str], logprobs: Sequence[float | None], prompt: str) -> list[float | None]:
    """The log-probabilities of the tokens that reach beyond the prompt, out of an echoed completion."""
    end, found = 0, []
    for token, logprob in zip(tokens, logprobs, strict=True):
        end += len(token)
        if end > len(prompt):
            found.append(logprob)
    return found


def decided(
    node: Mapping[str, Any],
    rows: Sequence[Sequence[float | None]],
    unconditional: Sequence[Sequence[float | None]] | None = None,
    ids: Sequence[Sequence[int]] | None = None,
) -> tuple[int, dict[str, Any]]:
    """The index that a select's method picks, and what its meta says of the scores.

    A token without a log-probability, the first of a text, counts as 0.
    """
    values = [[0.0 if value is None else value for value in row] for row in rows]
    draw = {"temperature": node.get("temperature") or 0.0, "seed": node.get("seed")}
    decision = decide(node["method"], node["choices"], values, unconditional, ids=ids, **draw)
    shown = {"choice": decision.index, "scores": list(decision.scores), **decision.details}
    shown["probabilities"] = list(decision.probabilities)
    shown["normalized_prompt_logprobs"] = [sum(row) / len(row) for row in values]
    return decision.index, shown
