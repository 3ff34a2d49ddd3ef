"""How models mark what they think before they answer, and how a text is split by it. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from stemma.lang.errors import RequestError


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The markers around a model's reasoning. `implicit`: it thinks from the start, whether or not it says `begin`."""

    begin: str
    end: str
    implicit: bool = False

    def split(self, text: str) -> tuple[str, str]:
        """(reasoning, answer), each without surrounding whitespace.

        Without `begin`, a text of an explicit format is all answer; a text whose reasoning does not end is all
        reasoning.
        """
        before, opened, rest = text.partition(self.begin)
        if not opened:
            if not self.implicit:
                return "", text.strip()
            before, rest = "", text
        thought, closed, answer = rest.partition(self.end)
        if not closed:
            return thought.strip(), before.strip()
        return thought.strip(), (before + answer).strip()


_THINK = Reasoning("<think>", "</think>")
_IMPLICIT = Reasoning("<think>", "</think>", implicit=True)

FORMATS: dict[str, Reasoning] = {
    "deepseek-r1": _IMPLICIT,
    "deepseek-v3": _THINK,
    "glm45": _THINK,
    "kimi": Reasoning("◁think▷", "◁/think▷"),
    "qwen3": _THINK,
    "qwen3-thinking": _IMPLICIT,
    "step3": _IMPLICIT,
}


def reasoning_format(given: str | Reasoning) -> Reasoning:
    """The format of a kind of model, by name, or one of your own. Raises `RequestError` for an unknown name."""
    if isinstance(given, Reasoning):
        return given
    if not isinstance(given, str) or given.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise RequestError(
            f"model_type must be one of {known}, or a Reasoning(begin, end), got {given!r}", param="model_type"
        )
    return FORMATS[given.lower()]
