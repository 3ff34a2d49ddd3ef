"""Composed constraints without an engine: what a fake needs to give the captures of a scripted reply.

Patterns go by Python's `re`, and a JSON leaf is any JSON text, whatever its schema says; grammars are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from stemma.lang.errors import RequestError
from stemma.lang.spans import Search, leaves, read_tree

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def scripted_captures(constraint: str, reply: str) -> dict[str, list[list[int]]] | None:
    """The captures of a reply as an engine would give them; None if the reply as a whole does not match.

    Raises `ConstraintError` for a malformed tree, `RequestError` for a leaf that cannot be read here.
    """
    tree = read_tree(constraint)
    leaf_ends = [_leaf(kind, value) for kind, value in leaves(tree)]
    spans = Search(tree).spans(len(reply), lambda leaf, start: leaf_ends[leaf](reply, start))
    return None if spans is None else {name: [list(span) for span in found] for name, found in spans.items()}


def _leaf(kind: str, value: Any) -> Any:
    if kind == "literal":
        return lambda text, start: [start + len(value)] if text.startswith(value, start) else []
    if kind == "json_schema":
        return _json_ends
    if kind == "regex":
        return lambda text, start: _regex_ends(_compiled(value), text, start)
    raise RequestError("a scripted endpoint cannot read ebnf grammars inside a composed constraint", param="constraint")


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RequestError(f"a scripted endpoint cannot read the regex {pattern!r}: {error}", param="regex") from None


def _regex_ends(pattern: re.Pattern[str], text: str, start: int) -> Iterable[int]:
    return [end for end in range(len(text), start - 1, -1) if pattern.fullmatch(text[start:end])]


def _json_ends(text: str, start: int) -> Iterable[int]:
    if _NUMBER.match(text, start):
        return [end for end in range(len(text), start, -1) if _NUMBER.fullmatch(text, start, end)]
    if text[start : start + 1].isspace():
        return []
    try:
        return [json.JSONDecoder().raw_decode(text, start)[1]]
    except ValueError:
        return []
