"""Where the parts of a schema document are: pointers, identifiers, anchors and references between them."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from stemma.backend.grammar.limits import MAX_NESTING, MAX_NODES, Deadline
from stemma.lang.errors import ConstraintError

# Where schemas stand: as the value of these keywords, in objects or in lists. Elsewhere "$id" is no identifier.
_ONE = frozenset(
    [
        "additionalProperties",
        "propertyNames",
        "items",
        "contains",
        "additionalItems",
        "not",
        "if",
        "then",
        "else",
        "unevaluatedProperties",
        "unevaluatedItems",
        "contentSchema",
    ]
)
_MAP = frozenset(["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"])
_LIST = frozenset(["allOf", "anyOf", "oneOf", "prefixItems", "items"])
_SCHEMA, _SCHEMAS, _OTHER = "schema", "schemas", "other"


def _kind(keyword: str, value: Any) -> str:
    if isinstance(value, list):
        return _SCHEMAS if keyword in _LIST else _OTHER
    return _SCHEMA if keyword in _ONE else _SCHEMAS if keyword in _MAP else _OTHER


def refuse_at(pointer: str, keyword: str, problem: str) -> ConstraintError:
    where = f" at {pointer or '/'}" if keyword else ""
    return ConstraintError(f"json_schema: {keyword or 'the schema'}{where}: {problem}", param="json_schema")


class Document:
    """A parsed schema: the base identifier and pointer of every object in it."""

    def __init__(self, root: Any, deadline: Deadline) -> None:
        self.root = root
        self.pointers: dict[int, str] = {}
        self._bases: dict[int, str] = {}
        self._resources: dict[str, Any] = {"": root}
        self._anchors: dict[str, Any] = {}
        self._dynamic: dict[str, list[Any]] = {}
        self._deadline = deadline
        self._scan(root)

    def _scan(self, root: Any) -> None:
        todo: list[tuple[Any, str, str, int, str]] = [(root, "", "", 0, _SCHEMA)]
        count = 0
        while todo:
            node, pointer, base, depth, kind = todo.pop()
            count += 1
            if count % 1024 == 0:
                self._deadline.check()
            if count > MAX_NODES:
                raise refuse_at("", "", f"it has more than {MAX_NODES} parts")
            if depth > MAX_NESTING:
                raise refuse_at(pointer[:200], "nesting", f"schemas are nested more than {MAX_NESTING} deep")
            inner = _SCHEMA if kind == _SCHEMAS else _OTHER
            if isinstance(node, list):
                todo.extend((item, f"{pointer}/{i}", base, depth + 1, inner) for i, item in enumerate(node))
            elif isinstance(node, dict):
                self.pointers[id(node)] = pointer
                if kind == _SCHEMA:
                    base = self._identify(node, base)
                self._bases[id(node)] = base
                for key, value in node.items():
                    step = key.replace("~", "~0").replace("/", "~1")
                    below = _kind(key, value) if kind == _SCHEMA else inner
                    todo.append((value, f"{pointer}/{step}", base, depth + 1, below))

    def _identify(self, node: dict[str, Any], base: str) -> str:
        given = node.get("$id", node.get("id") if "$ref" not in node else None)
        if isinstance(given, str):
            if given.startswith("#"):  # draft 4 to 7: an anchor
                self._anchors.setdefault(base + given, node)
            else:
                base = urldefrag(urljoin(base, given))[0]
                self._resources.setdefault(base, node)
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(name := node.get(keyword), str):
                self._anchors.setdefault(f"{base}#{name}", node)
                if keyword == "$dynamicAnchor":
                    self._dynamic.setdefault(name, []).append(node)
        return base

    def resolve(self, node: dict[str, Any], keyword: str) -> Any:
        """The schema that `node[keyword]` refers to."""
        given, pointer = node[keyword], self.pointers.get(id(node), "")
        if not isinstance(given, str):
            raise refuse_at(pointer, keyword, f"must be a string, got {given!r}")
        if keyword == "$dynamicRef" and len(self._dynamic.get(given.partition("#")[2], [])) > 1:
            raise refuse_at(pointer, keyword, f"{given!r} depends on the way to it; write '$ref'")
        base = self._bases.get(id(node), "")
        url, fragment = urldefrag(urljoin(base, given) if given.partition("#")[0] or base else given)
        if given.startswith("#"):
            url = base
        found = self._anchors.get(f"{url}#{fragment}")
        if found is not None:
            return found
        if url not in self._resources:
            raise refuse_at(pointer, keyword, f"{given!r} is not in this schema; references to other files are refused")
        target = self._resources[url]
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            raise refuse_at(pointer, keyword, f"there is no anchor {fragment!r}")
        return self._follow(target, fragment, pointer, keyword, given)

    def _follow(self, target: Any, fragment: str, pointer: str, keyword: str, given: str) -> Any:
        for step in fragment.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and step in target:
                target = target[step]
            elif isinstance(target, list) and step.isdecimal() and int(step) < len(target):
                target = target[int(step)]
            else:
                raise refuse_at(pointer, keyword, f"{given!r} points to nothing in this schema")
        return target
