"""The structural-tag front end: free text, and JSON between the tags that a trigger begins. What tool calls need.

Text is free until one of the triggers has been written, as a whole and wherever it stands. From there on it must be the
rest of a `begin` that starts with this trigger, a JSON text of its schema, and `end`; then it is free again. The text
may end wherever it is free.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.json_schema import Lowered, read_schema
from stemma.backend.grammar.limits import MAX_SIZE, MAX_TEXT, Deadline
from stemma.lang.errors import ConstraintError

MAX_TRIGGERS = 5_000  # characters of all triggers together


def _refuse(where: str, problem: str) -> NoReturn:
    raise ConstraintError(f"structural_tag: {where}{': ' if where else ''}{problem}", param="structural_tag")


@dataclass(frozen=True, slots=True)
class Tag:
    begin: str
    schema: str  # JSON
    end: str


def parse_structural_tag(
    text: str, deadline: Deadline, *, lenient: bool = False, whitespace: str | None = None
) -> Lowered:
    """The IR of the texts that the tags allow. ConstraintError names the field; the options are for the schemas."""
    tags, triggers = _read(text)
    rules = _Rules(deadline, lenient, whitespace)
    after = {trigger: _tags_after(trigger, tags, rules) for trigger in triggers}
    node = _free_text(triggers, after, deadline)
    size = node.size + sum(rule.size for rule in rules.rules)
    if size > MAX_SIZE:
        _refuse("", f"it needs {size} characters when repeats are written out, the limit is {MAX_SIZE}")
    return Lowered(node, tuple(rules.rules), tuple(dict.fromkeys(rules.warnings)), rules.trim)


# -- the JSON


def _read(text: str) -> tuple[list[Tag], list[str]]:
    if len(text) > MAX_TEXT:
        _refuse("", f"it has {len(text)} characters, the limit is {MAX_TEXT}")
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse("", f"it is not JSON: {error}")
    _check_fields(given, "", ("structures", "triggers"), ("type",))
    if given.get("type", "structural_tag") != "structural_tag":
        _refuse("type", f"must be 'structural_tag', got {given['type']!r}")
    triggers = list(dict.fromkeys(_text(t, f"triggers[{i}]") for i, t in enumerate(_list(given, "triggers"))))
    if sum(map(len, triggers)) > MAX_TRIGGERS:
        _refuse("triggers", f"they have {sum(map(len, triggers))} characters, the limit is {MAX_TRIGGERS}")
    tags = [_tag(entry, f"structures[{i}]") for i, entry in enumerate(_list(given, "structures"))]
    for i, tag in enumerate(tags):
        if not any(tag.begin.startswith(trigger) for trigger in triggers):
            _refuse(f"structures[{i}].begin", f"{tag.begin!r} starts with none of the triggers {triggers!r}")
    for trigger in triggers:
        where = f"triggers[{_list(given, 'triggers').index(trigger)}]"
        if not any(tag.begin.startswith(trigger) for tag in tags):
            _refuse(where, f"no structure's begin starts with {trigger!r}, so nothing could follow it")
        inside = next((other for other in triggers if other in trigger[1:-1]), None)
        if inside is not None:
            _refuse(where, f"{trigger!r} can never be written, as the trigger {inside!r} is inside it")
    return tags, triggers


def _check_fields(given: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    if not isinstance(given, dict):
        _refuse(where, f"must be an object, got {str(given)[:40]!r}")
    for name in given:
        if name not in (*required, *optional):
            _refuse(f"{where}.{name}".lstrip("."), f"is not a known field; known are {', '.join(required + optional)}")
    for name in required:
        if name not in given:
            _refuse(f"{where}.{name}".lstrip("."), "is missing")


def _list(given: dict[str, Any], name: str) -> list[Any]:
    value = given[name]
    if not isinstance(value, list) or not value:
        _refuse(name, f"must be a list of at least one entry, got {str(value)[:40]!r}")
    return value


def _text(value: Any, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        _refuse(where, f"must be a string{'' if empty else ' that is not empty'}, got {str(value)[:40]!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(where, f"holds a lone surrogate, which is no character: {value!r}")
    return value


def _tag(given: Any, where: str) -> Tag:
    _check_fields(given, where, ("begin", "schema", "end"))
    schema = given["schema"]
    if not isinstance(schema, dict | bool):
        _refuse(f"{where}.schema", f"must be a schema (an object or a boolean), got {str(schema)[:40]!r}")
    end = _text(given["end"], f"{where}.end", empty=True)
    return Tag(_text(given["begin"], f"{where}.begin"), json.dumps(schema), end)


# -- tags


@dataclass(slots=True)
class _Rules:
    """The rules of all schemas in one list; each schema is read once."""

    deadline: Deadline
    lenient: bool
    whitespace: str | None
    rules: list[ir.Node] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    trim: bool = False
    known: dict[str, ir.Node] = field(default_factory=dict)

    def schema(self, text: str, where: str) -> ir.Node:
        if text in self.known:
            return self.known[text]
        try:
            lowered = read_schema(text, self.deadline, lenient=self.lenient, whitespace=self.whitespace)
        except ConstraintError as error:
            if error.param == self.deadline.what:  # the time is up
                raise
            _refuse(where, str(error))
        offset = len(self.rules)
        self.rules.extend(_moved(rule, offset) for rule in lowered.rules)
        self.rules.append(_moved(lowered.node, offset))
        self.warnings.extend(f"structural_tag: {where}: {warning}" for warning in lowered.warnings)
        self.trim = self.trim or lowered.trim
        self.known[text] = ir.Call(len(self.rules) - 1)
        return self.known[text]


def _moved(node: ir.Node, offset: int) -> ir.Node:
    """The node with its calls' numbers raised."""
    if isinstance(node, ir.Call):
        return replace(node, rule=node.rule + offset)
    if isinstance(node, ir.Seq):
        return replace(node, parts=tuple([_moved(part, offset) for part in node.parts]))
    if isinstance(node, ir.Alt):
        return replace(node, options=tuple([_moved(option, offset) for option in node.options]))
    if isinstance(node, ir.Repeat):
        return replace(node, node=_moved(node.node, offset))
    if isinstance(node, ir.Graph):
        return replace(node, edges=tuple([(a, _moved(label, offset), b) for a, label, b in node.edges]))
    if isinstance(node, ir.Except):
        return replace(node, node=_moved(node.node, offset), names=_moved(node.names, offset))
    return node


def _tags_after(trigger: str, tags: list[Tag], rules: _Rules) -> ir.Node:
    """What may follow a trigger: tags with the same schema and end share them."""
    begins: dict[tuple[str, str], list[bytes]] = {}
    where: dict[str, str] = {}
    for i, tag in enumerate(tags):
        if tag.begin.startswith(trigger):
            where.setdefault(tag.schema, f"structures[{i}].schema")
            begins.setdefault((tag.schema, tag.end), []).append(tag.begin[len(trigger) :].encode())
    return ir.alt(
        [
            ir.seq([ir.words(rest), rules.schema(schema, where[schema]), ir.words([end.encode()])])
            for (schema, end), rest in begins.items()
        ]
    )


# -- free text


def _free_text(triggers: list[str], after: dict[str, ir.Node], deadline: Deadline) -> ir.Node:
    """A state for each proper beginning of a trigger: the longest one that the free text ends with (Aho and Corasick).
    A character that completes triggers leads to a state for them, and their tags lead back to the start."""
    texts = ["", *sorted({t[:i] for t in triggers for i in range(1, len(t))})]
    number = {text: i for i, text in enumerate(texts)}
    shorter = {"": ""}  # the longest other beginning that a beginning ends with
    for text in sorted(texts[1:], key=len):
        tail = shorter[text[:-1]] if len(text) > 1 else None
        while tail is not None and tail + text[-1] not in number:
            tail = shorter[tail] if tail else None
        shorter[text] = "" if tail is None else tail + text[-1]
    whole = set(triggers)
    edges: list[tuple[int, ir.Node, int]] = []
    fired: dict[tuple[str, ...], int] = {}
    reached: dict[str, dict[str, int]] = {}  # by state and character, where it is not the start
    for text in sorted(texts, key=len):
        deadline.check()
        moves = {} if text == "" else dict(reached[shorter[text]])
        own = {t[len(text)] for t in triggers if t.startswith(text) and len(t) > len(text)}
        for char in own:
            if text + char in number and text + char not in whole:
                moves[char] = number[text + char]
        for char in own | set(moves):
            ends = tuple(sorted(t for t in whole if (text + char).endswith(t)))
            if ends:
                moves[char] = len(texts) + fired.setdefault(ends, len(fired))
        reached[text] = moves
        to: dict[int, list[str]] = {0: []}
        for char, target in moves.items():
            to.setdefault(target, []).append(char)
        plain = charset.complement(charset.ranges((ord(char), ord(char)) for char in moves))
        edges.append((number[text], ir.chars(plain), 0))
        for target, characters in to.items():
            if target:
                edges.append((number[text], ir.chars(charset.ranges((ord(c), ord(c)) for c in characters)), target))
    for ends, i in fired.items():
        edges.append((len(texts) + i, ir.alt([after[trigger] for trigger in ends]), 0))
    return ir.graph(len(texts) + len(fired), edges, range(len(texts)))
