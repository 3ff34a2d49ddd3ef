"""Constraints that want to take the engine's time and memory: ten of each kind, and mutations of schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from stemma.lang.params import ConstraintKind


class Hostile(NamedTuple):
    """A constraint as a request has it."""

    name: str
    kind: ConstraintKind
    value: str | tuple[str, ...]


def _nested(levels: int, wrap: Callable[[Any], Any], inner: Any) -> Any:
    for _ in range(levels):
        inner = wrap(inner)
    return inner


def regexes() -> dict[str, str]:
    return {
        "a repeat of 100,000": "a{100000}",
        "repeats in repeats": "((((a{30}){30}){30}){30}){30}",
        "a state bomb": "(a|b)*a(a|b){24}",
        "optional parts": "(a?){50000}a{50000}",
        "starred stars": "(" * 49 + "a" + "*)" * 49,
        "5,000 groups deep": "(" * 5000 + "a" + ")" * 5000,
        "wide classes": "".join(f"[^{chr(0x4E00 + i)}-{chr(0x4E40 + 2 * i)}]" for i in range(6000)),
        "ambiguous words": r"(\w+\s?){200}(\w*\s*){200}x",
        "alternatives": "|".join(f"(x{i}{chr(0x4E00 + i)}|[a-f]{{3}})" for i in range(6000)),
        "5 MB": "ab|" * 1_700_000,
    }


def schemas() -> dict[str, str]:
    wide = {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{0,{i}}}x"} for i in range(400)}
    clash = {"allOf": [{"pattern": f"^(.*{chr(97 + i)}.*){{3}}$"} for i in range(12)], "type": "string"}
    ones = {"oneOf": [{"properties": {f"k{i}": {"const": i}}, "required": [f"k{i}"]} for i in range(40)]}
    chain: dict[str, Any] = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
    chain["d60"] = {"type": "null"}
    loops = {f"r{i}": {"anyOf": [{"$ref": f"#/$defs/r{(i * 7 + j) % 300}"} for j in range(20)]} for i in range(300)}
    return {
        "5 MB": json.dumps({"enum": [f"value {i:06d}" for i in range(250_000)]}),
        "400,000 values": json.dumps({"enum": list(range(400_000))}),
        "5,000 levels": '{"items":' * 5000 + "true" + "}" * 5000,
        "60 levels": json.dumps(_nested(60, lambda s: {"properties": {"a": s}, "not": {"required": ["b"]}}, True)),
        "items by the 100,000": json.dumps({"items": {"type": "string", "minLength": 100_000}, "minItems": 100_000}),
        "patterns that meet": json.dumps(clash),
        "one of forty": json.dumps(ones),
        "references that double": json.dumps({"$ref": "#/$defs/d0", "$defs": chain}),
        "references in circles": json.dumps({"$ref": "#/$defs/r0", "$defs": loops}),
        "400 counted properties": json.dumps({"type": "object", "properties": wide, "minProperties": 200}),
    }


def grammars() -> dict[str, str]:
    chain = "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(200))
    row = "\n".join(f'x{i} ::= "{i}" x{i + 1}' for i in range(3000))
    left = "\n".join(
        f"r{i} ::= r{(i + 1) % 300} r{(i * 3) % 300} | r{(i * 7) % 300} | 'x'".replace("'", '"') for i in range(300)
    )
    return {
        "doubling rules": f'root ::= r0\n{chain}\nr200 ::= "a"',
        "nullable doubling": f'root ::= r0\n{chain}\nr200 ::= "a"?',
        "left recursion in circles": f"root ::= r0\n{left}",
        "ambiguous": 'root ::= root root | root root root | "a" | ""',
        "a repeat of 100,000": 'root ::= "ab"{100000}',
        "repeats in repeats": 'root ::= ((("a"{99}){99}){99}){99}',
        "deep groups": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000,
        "3,000 rules": f'root ::= x0\n{row}\nx3000 ::= "e"',
        "a rule without end": "root ::= root",
        "5 MB": 'root ::= "a"\n' + "# comment\n" * 500_000,
    }


def choices() -> dict[str, tuple[str, ...]]:
    draw = random.Random(7)
    return {
        "a million": tuple(str(i) for i in range(1_000_000)),
        "5 MB": tuple(f"{i:050d}" for i in range(100_000)),
        "one of 5 MB": ("x" * 5_000_000,),
        "just under the limit": tuple(f"{i:08d}" for i in range(12_500)),
        "of one letter": tuple("a" * i for i in range(1, 440)),
        "far apart": tuple("".join(map(chr, draw.sample(range(0x4E00, 0x9F00), 10))) for _ in range(3_000)),
        "long ones alike": tuple("z" * 9_000 + str(i) for i in range(10)),
        "every character": tuple(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0xF000)]))[:30_000],
        "lone surrogates": tuple("a" * i + "\ud800" for i in range(1, 300)),
        "control characters": tuple(chr(i % 32) * (1 + i // 32) for i in range(1, 3_000)),
    }


def tags() -> dict[str, str]:
    def tag(begin: str, schema: Any, end: str = "</f>") -> dict[str, Any]:
        return {"begin": begin, "schema": schema, "end": end}

    def whole(structures: list[dict[str, Any]], triggers: list[str]) -> str:
        return json.dumps({"type": "structural_tag", "structures": structures, "triggers": triggers})

    deep = _nested(150, lambda s: {"items": s}, {"type": "string"})
    bomb = json.loads(schemas()["patterns that meet"])
    return {
        "10,000 structures": whole([tag(f"<f{i}>", {}) for i in range(10_000)], ["<f"]),
        "10,000 triggers": whole([tag(f"<f{i}>", {}) for i in range(10_000)], [f"<f{i}>" for i in range(10_000)]),
        "a trigger of 100,000": whole([tag("<" * 100_000, {})], ["<" * 100_000]),
        "triggers in triggers": whole([tag("a" * i, {}) for i in range(1, 400)], ["a" * i for i in range(1, 400)]),
        "a schema bomb": whole([tag("<f>", bomb)], ["<f"]),
        "100 schema bombs": whole([tag(f"<f{i}>", bomb) for i in range(100)], ["<f"]),
        "deep schemas": whole([tag(f"<f{i}>", deep) for i in range(50)], ["<f"]),
        "an end of 1 MB": whole([tag("<f>", {}, "e" * 1_000_000)], ["<f"]),
        "5 MB": whole([tag("<f>", {"enum": [f"value {i:06d}" for i in range(250_000)]})], ["<f"]),
        "a schema 5,000 deep": whole([tag("<f>", "SCHEMA")], ["<f"]).replace(
            '"SCHEMA"', '{"items":' * 5000 + "{}" + "}" * 5000
        ),
    }


def every() -> Iterator[Hostile]:
    """Ten of each of the five kinds."""
    kinds: dict[ConstraintKind, dict[str, Any]] = {
        "regex": regexes(),
        "json_schema": schemas(),
        "ebnf": grammars(),
        "choices": choices(),
        "structural_tag": tags(),
    }
    for kind, values in kinds.items():
        for name, value in values.items():
            yield Hostile(f"{kind}: {name}", kind, value)


_KEYWORDS = [
    "type", "enum", "const", "minimum", "maximum", "multipleOf", "minLength", "maxLength", "pattern", "format", "items",
    "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "properties", "required", "additionalProperties",
    "patternProperties", "propertyNames", "minProperties", "dependentRequired", "dependentSchemas", "allOf", "anyOf",
    "oneOf", "not", "if", "then", "else", "$ref", "$defs", "$anchor", "$id", "unevaluatedProperties",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 1e308, -0.5, 2**70, "", "a", "string", "object", "array", "integer", "^[a-z]+$",
    "(a", "#", "#/$defs/x", "date", [], ["string", "null"], ["a", "a"], [{}], [True, False], {}, {"a": {}},
    {"x": {"type": "string"}}, {"^a": {"type": "integer"}}, {"a": ["b"]}, {"$ref": "#"}, {"type": "string"},
]  # fmt: skip


def mutations(seed: int, count: int) -> Iterator[Any]:
    """Schemas, mostly wrong, made from a few by putting any value behind any keyword, anywhere."""
    draw = random.Random(seed)
    seeds: list[Any] = [
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]},
        {"type": "array", "items": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/x"}]}, "$defs": {"x": {}}},
        {"allOf": [{"minLength": 1}, {"maxLength": 9}], "type": "string"},
    ]
    for _ in range(count):
        schema = json.loads(json.dumps(draw.choice(seeds)))
        for _ in range(draw.randint(1, 4)):
            at = draw.choice([part for part in _parts(schema) if isinstance(part, dict)])
            at[draw.choice(_KEYWORDS)] = json.loads(json.dumps(draw.choice(_VALUES)))
        yield schema


def _parts(value: Any) -> Iterator[Any]:
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(part)
