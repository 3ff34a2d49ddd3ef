"""Tracing a program without a model: it runs on an endpoint that answers every node with a placeholder of its kind.

The placeholder of a constrained gen satisfies the constraint, so that a program may read and convert it: the first
choice, the shortest match of a regex, the smallest instance of a JSON schema. What the program would do with other
answers is not explored: the graph is the one of this run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stemma.interpreter.endpoints.scripted import ScriptedEndpoint
from stemma.lang.errors import RequestError

_DEPTH = 32  # of references inside a schema
_LIKELY = "a0A_ -.x1" + "".join(map(chr, range(32, 127))) + "\n"
_CATEGORIES = {"CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_SPACE": r"\s"} | {
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}


class TracingEndpoint(ScriptedEndpoint):
    """Answers each gen and select with a placeholder."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, node: placeholder(node))

    def info(self) -> dict[str, Any]:
        return {"endpoint": "TracingEndpoint", "model": "placeholders"}


def placeholder(node: Mapping[str, Any]) -> str:
    """A text that the node might have. Raises `RequestError` for a constraint that none is known for."""
    if node["kind"] == "select":
        return node["choices"][0]
    constraint = node.get("constraint")
    name = str(node.get("name") or "text")
    if not constraint or constraint["kind"] not in ("choices", "regex", "json_schema"):
        return f"<{name}>"
    value = constraint["value"]
    if constraint["kind"] == "choices":
        return value[0]
    if constraint["kind"] == "regex":
        return shortest_match(value)
    return json.dumps(smallest_instance(json.loads(value) if isinstance(value, str) else value))


def shortest_match(pattern: str) -> str:
    """A short string that the whole pattern matches. Raises `RequestError` where none is found."""
    parser: Any = re._parser  # type: ignore[attr-defined]  # the standard library's own, under its new name
    try:
        found = _match(parser.parse(pattern))
        if re.fullmatch(pattern, found):
            return found
    except (re.error, KeyError, ValueError, RecursionError) as error:
        raise RequestError(f"no placeholder is known for the regex {pattern!r}: {error}", param="regex") from error
    raise RequestError(
        f"no placeholder is known for the regex {pattern!r}; trace with backend=ScriptedEndpoint({{name: text}})",
        param="regex",
    )


def _match(items: Any) -> str:
    return "".join(_one(str(op), value) for op, value in items)


def _one(op: str, value: Any) -> str:
    match op:
        case "LITERAL":
            return chr(value)
        case "ANY":
            return "a"
        case "NOT_LITERAL":
            return next(c for c in _LIKELY if ord(c) != value)
        case "IN":
            return _char(value)
        case "BRANCH":
            return min((_match(option) for option in value[1]), key=len)
        case "SUBPATTERN":
            return _match(value[3])
        case "ATOMIC_GROUP":
            return _match(value)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return _match(value[2]) * value[0]
        case "AT" | "ASSERT" | "ASSERT_NOT":
            return ""
    raise ValueError(f"{op.lower()} is not understood")


def _char(members: Sequence[tuple[Any, Any]]) -> str:
    negated = bool(members) and str(members[0][0]) == "NEGATE"
    own = [chr(v if str(op) == "LITERAL" else v[0]) for op, v in members if str(op) in ("LITERAL", "RANGE")]
    for c in [*([] if negated else own), *_LIKELY, *map(chr, range(0xA1, 0x500))]:
        if any(_is_in(c, str(op), value) for op, value in members) != negated:
            return c
    raise ValueError("no character fits")


def _is_in(c: str, op: str, value: Any) -> bool:
    if op == "LITERAL":
        return ord(c) == value
    if op == "RANGE":
        return value[0] <= ord(c) <= value[1]
    return op == "CATEGORY" and re.fullmatch(_CATEGORIES[str(value)], c) is not None


def smallest_instance(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """A small value that the schema describes, by its commonest keywords; what others ask for may not be met.

    Raises `RequestError` for references that never end.
    """
    root = schema if root is None else root
    if depth > _DEPTH:
        raise RequestError(
            "no placeholder is known for a schema that refers to itself without end", param="json_schema"
        )
    if not isinstance(schema, Mapping):
        return None
    inner = lambda given: smallest_instance(given, root, depth + 1)  # noqa: E731
    if "$ref" in schema:
        return inner(_resolved(schema["$ref"], root))
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return inner(min(schema[key], key=lambda option: len(json.dumps(option))))
    if schema.get("allOf"):
        merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for part in schema["allOf"]:
            merged |= _resolved(part["$ref"], root) if "$ref" in part else part
        return inner(merged)
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    return _of_type(kind[0] if isinstance(kind, list) else kind, schema, inner)


def _of_type(kind: str, schema: Mapping[str, Any], inner: Any) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: inner(properties.get(name, {})) for name in schema.get("required", ())}
        case "array":
            first = list(schema.get("prefixItems", ()))
            rest = max(schema.get("minItems", 0) - len(first), 0)
            return [inner(item) for item in first] + [inner(schema.get("items", {})) for _ in range(rest)]
        case "string":
            if "pattern" in schema:
                pattern = schema["pattern"]
                return shortest_match(pattern.removeprefix("^").removesuffix("$"))
            return "x" * max(schema.get("minLength", 0), 1)
        case "integer" | "number":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            value = max(low, 0) if schema.get("maximum", 0) >= 0 else schema["maximum"]
            step = schema.get("multipleOf")
            value = -(-value // step) * step if step else value
            return int(value) if kind == "integer" else value
        case "boolean":
            return False
    return None


def _resolved(reference: str, root: Any) -> Any:
    found = root
    for part in reference.removeprefix("#").split("/")[1:]:
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found
