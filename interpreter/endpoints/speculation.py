"""One long answer that serves several gens: what `@function(num_api_spec_tokens=N)` does on hosted endpoints.

The service is asked once, without stop strings, for N tokens or more. The first gen takes the text up to its stop
string; literals that follow must then stand word for word at the front of what is left, and the next gen takes its
part. What does not fit is asked for anew (completions), or the whole message is (chat, see `follows`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.lang.errors import RequestError
from stemma.lang.params import SamplingParams

# (text, n) -> the text of its first n tokens, or None where tokens cannot be told
Cut = Callable[[str, int], str | None]


@dataclass(slots=True)
class Ahead:
    """Text that the service wrote beyond what was taken. `whole`: it ended the text itself, nothing was cut off."""

    text: str
    params: SamplingParams
    whole: bool

    def skip(self, literal: str) -> bool:
        """Take a literal off the front, if it stands there."""
        if not self.text.startswith(literal):
            return False
        self.text = self.text[len(literal) :]
        return True

    def take(self, params: SamplingParams, cut: Cut, *, rest: bool = False) -> tuple[str, dict[str, Any]] | None:
        """The next gen's text and finish reason; None if what is left does not decide it.

        Without a stop string in sight that is the remainder when the service ended there; with `rest` also when it
        was cut off.
        """
        if not same_draw(params, self.params) or (not self.text and not rest):
            return None
        found = min(((at, stop) for stop in params.stop if (at := self.text.find(stop)) >= 0), default=None)
        if found is None and not self.whole and not rest:
            return None
        value = self.text if found is None else self.text[: found[0]]
        finish: dict[str, Any] = {"type": "stop", "matched": None if found is None else found[1]}
        limit = params.max_new_tokens
        if limit is not None and len(value.encode()) > limit:  # a token is a byte at least
            kept = cut(value, limit)
            if kept is None:
                return None
            if kept != value:
                value, finish = kept, {"type": "length", "length": limit}
        if found is None and not self.whole:
            finish = {"type": "length", "length": limit}
        self.text = self.text[len(value) :]
        return value, finish


def same_draw(a: SamplingParams, b: SamplingParams) -> bool:
    """Whether two gens draw alike, so that one's text can serve the other."""
    plain = {"stop": (), "max_new_tokens": None, "seed": None}
    return dataclasses.replace(a, **plain) == dataclasses.replace(b, **plain)


def ahead_params(params: SamplingParams, tokens: int) -> SamplingParams:
    """What the one long answer is asked for."""
    longest = tokens if params.max_new_tokens is None else max(tokens, params.max_new_tokens)
    return dataclasses.replace(params, stop=(), max_new_tokens=longest)


def follows(answer: Ahead, lead: str, turn: Sequence[str | SamplingParams], cut: Cut) -> str | None:
    """Whether an answer reads like a chat message: `lead`, then literals and gens in turn. Why not, in words; or None.

    Raises `RequestError` where no answer could be told apart: a gen in the middle without stop strings, or gens of
    different sampling.
    """
    rest = dataclasses.replace(answer)
    if not rest.skip(lead):
        return f"it begins with {rest.text[:40]!r}, not with {lead[:40]!r}"
    for i, part in enumerate(turn):
        last = all(not isinstance(later, SamplingParams) for later in turn[i + 1 :])
        if isinstance(part, str):
            if not rest.skip(part) and not (not rest.text and last):
                return f"{part[:40]!r} should come next, but it goes on with {rest.text[:40]!r}"
            continue
        if not same_draw(part, answer.params):
            raise RequestError("the gens of one speculated message must have the same sampling parameters")
        if not last and not part.stop:
            raise RequestError(
                "a gen inside a speculated message needs stop strings unless it is the last", param="stop"
            )
        if rest.take(part, cut, rest=last) is None:
            return f"none of the stop strings {list(part.stop)!r} is in {rest.text[:40]!r}"
    return None
