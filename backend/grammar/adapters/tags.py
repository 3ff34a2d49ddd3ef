"""Structural tags as the peers want them: free text until a trigger, then a tag's content and its end, repeatedly."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint


class Tag(NamedTuple):
    """`trigger` is the beginning of `begin`. `content` is in xgrammar's form: an object with a `type`."""

    trigger: str
    begin: str
    content: dict[str, Any]
    end: str


def parse_tags(constraint: Constraint) -> list[Tag] | None:
    """The tags of {"structures", "triggers"} or {"format": {"type": "triggered_tags"}}; None for another format.

    Raises ConstraintError naming what is missing.
    """
    try:
        value = json.loads(str(constraint.value))
    except ValueError as error:
        raise ConstraintError(f"structural_tag must be JSON: {error}", param="structural_tag") from None
    if not isinstance(value, dict):
        raise ConstraintError(f"structural_tag must be an object, got {value!r:.80}", param="structural_tag")
    if "structures" in value:
        rows = [(t, {"type": "json_schema", "json_schema": _field(t, "schema")}) for t in _list(value, "structures")]
        triggers = _list(value, "triggers")
    elif isinstance(form := value.get("format"), dict):
        if form.get("type") != "triggered_tags" or set(form) - {"type", "triggers", "tags"}:
            return None
        rows = [(t, _field(t, "content")) for t in _list(form, "tags")]
        triggers = _list(form, "triggers")
    else:
        raise ConstraintError("structural_tag needs 'structures' and 'triggers', or 'format'", param="structural_tag")
    return [Tag(_trigger(_text(t, "begin"), triggers), _text(t, "begin"), _object(c), _text(t, "end")) for t, c in rows]


def _list(value: dict[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    if not isinstance(found, list) or not found:
        raise ConstraintError(f"structural_tag needs a list {name!r} with entries, got {found!r:.80}", param=name)
    return found


def _field(tag: Any, name: str) -> Any:
    if not isinstance(tag, dict) or name not in tag:
        raise ConstraintError(f"a tag of structural_tag needs {name!r}, got {tag!r:.80}", param="structural_tag")
    return tag[name]


def _text(tag: Any, name: str) -> str:
    if not isinstance(text := _field(tag, name), str):
        raise ConstraintError(f"{name!r} of a tag must be a string, got {text!r:.80}", param="structural_tag")
    return text


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConstraintError(f"the content of a tag must be an object, got {content!r:.80}", param="structural_tag")
    return content


def _trigger(begin: str, triggers: list[Any]) -> str:
    for trigger in triggers:
        if isinstance(trigger, str) and trigger and begin.startswith(trigger):
            return trigger
    raise ConstraintError(f"no trigger of {triggers!r:.200} begins the tag {begin!r:.80}", param="structural_tag")
