"""What a schema allows: instances accepted and rejected, keyword by keyword."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.compiler import lower
from stemma.backend.grammar.limits import Deadline
from stemma.lang.params import Constraint

Text = str


class Checker:
    def __init__(self, schema: Any) -> None:
        deadline = Deadline(10.0, "json_schema")
        lowered = lower(Constraint("json_schema", json.dumps(schema)), deadline)
        self._dfa = Dfa(lowered.node, deadline, rules=lowered.rules, trim=lowered.trim)

    def text(self, text: str) -> bool:
        state = self._dfa.run(0, text.encode())
        return state != DEAD and self._dfa.accepting[state]

    def value(self, value: Any) -> bool:
        """The verdict on a value, the same for each way in which `json.dumps` may write it."""
        texts = [
            json.dumps(value),
            json.dumps(value, ensure_ascii=False),
            json.dumps(value, separators=(",", ":")),
        ]
        verdicts = {self.text(text) for text in texts}
        assert len(verdicts) == 1, texts
        return verdicts.pop()


LEAF = {"type": "integer"}
TREE = {
    "$defs": {"tree": {"type": "object", "properties": {"v": LEAF, "kids": {"items": {"$ref": "#/$defs/tree"}}}}},
    "$ref": "#/$defs/tree",
}

# schema, accepted, rejected
TABLE: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "true": (True, [None, 0, "x", [1, {"a": [True]}], {}], []),
    "type": ({"type": "string"}, ["", 'é\n"\\/'], [1, None, [], {}]),
    "type list": ({"type": ["null", "boolean"]}, [None, True, False], [0, "null"]),
    "integer": ({"type": "integer"}, [0, -1, 10**20], [1.5, "1", True]),
    "number": ({"type": "number"}, [0, -1.5, 1e300, 1e-7, 0.1], ["1", None]),
    "enum": (
        {"enum": [1, "a", None, [1, {"b": 2}], {"k": "é"}]},
        [1, "a", None, [1, {"b": 2}], {"k": "é"}],
        [2, "b", [1]],
    ),
    "enum with a type": ({"type": "string", "enum": ["a", 1]}, ["a"], [1, "b"]),
    "const": ({"const": {"a": [1, 2]}}, [{"a": [1, 2]}], [{"a": [1]}, {}, {"a": [1, 2], "b": 1}]),
    "minimum": ({"type": "integer", "minimum": -3}, [-3, 0, 999], [-4, -10]),
    "maximum": ({"type": "number", "maximum": 2.5}, [2.5, 2.49, -9, 0.001], [2.51, 3, 10]),
    "exclusive": (
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        [0.5, 0.0001, 0.999],
        [0, 1, -0.5, 1.5],
    ),
    "range": ({"type": "integer", "minimum": 18, "maximum": 120}, [18, 99, 100, 120], [17, 121, 1000, 1]),
    "negative range": ({"minimum": -20, "maximum": -5}, [-20, -5, -7.5, "x"], [-21, -4.9, 0, 5]),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, [0, 7, -14, 700], [1, 8, 71]),
    "multipleOf decimals": ({"type": "number", "multipleOf": 0.01}, [0.01, 1, 1.25, -3.1], [0.001, 1.255]),
    "two multiples": ({"multipleOf": 4, "minimum": 1, "maximum": 12, "type": "integer"}, [4, 8, 12], [0, 6, 16]),
    "minLength": ({"minLength": 2}, ["ab", "é東", "\n\t", 1], ["", "a", "😀"]),
    "maxLength": ({"maxLength": 2}, ["", "ab", "😀😀", '\n"'], ["abc", "😀😀😀"]),
    "long maxLength": ({"type": "string", "maxLength": 3000}, ["x" * 3000], ["x" * 3001]),
    "pattern is searched for": ({"pattern": "b+"}, ["abc", "b", 5], ["ac", ""]),
    "pattern anchored": ({"pattern": "^a.c$"}, ["abc", 'a"c', "a\\c"], ["xabc", "abcd", "a\nc"]),
    "anchors of alternatives": ({"pattern": "^a|b$"}, ["ax", "xb"], ["xa", "bx"]),
    "anchors in groups": ({"pattern": "^$|(^a+$)"}, ["", "aa"], ["b", "ab"]),
    "pattern and lengths": (
        {"pattern": "^[a-z]+$", "minLength": 2, "maxLength": 40},
        ["ab", "a" * 40],
        ["a", "a" * 41, "A1"],
    ),
    "words and length": (
        {"pattern": r"^(\S+\s){0,3}\S+$", "maxLength": 20},
        ["a b c d", "x" * 20],
        ["a b c d e", "x" * 21, "a "],
    ),
    "two patterns": ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, ["ab", "ba"], ["a", "b"]),
    "lookahead": ({"pattern": "^(?!ab)[a-z]+$"}, ["b", "ac"], ["abc", "ab"]),
    "not pattern": ({"type": "string", "not": {"pattern": "^a"}}, ["b", ""], ["a", "ab"]),
    "items": ({"items": LEAF}, [[], [1, 2], {}], [["a"], [1, None]]),
    "prefixItems": (
        {"prefixItems": [LEAF, {"type": "string"}], "items": False},
        [[], [1], [1, "a"]],
        [["a"], [1, "a", 2]],
    ),
    "tuples of old": ({"items": [LEAF], "additionalItems": {"type": "null"}}, [[1], [1, None]], [[None], [1, 2]]),
    "minItems": ({"type": "array", "minItems": 2, "maxItems": 3}, [[1, 2], [1, 2, 3]], [[1], [1, 2, 3, 4]]),
    "contains": ({"contains": {"const": 1}}, [[1], [0, 1, 1]], [[], [0]]),
    "counted contains": (
        {"items": LEAF, "contains": {"const": 1}, "minContains": 2, "maxContains": 3},
        [[1, 1], [1, 0, 1, 1]],
        [[1], [1, 1, 1, 1]],
    ),
    "contains none": ({"contains": {"const": 1}, "minContains": 0, "maxContains": 0}, [[], [0]], [[1]]),
    "uniqueItems": (
        {"items": {"enum": ["a", "b", 1]}, "uniqueItems": True},
        [[], ["a", 1, "b"]],
        [["a", "a"], [1, "b", 1]],
    ),
    "required": ({"required": ["b", "a"]}, [{"b": 1, "a": 2}, 5], [{}, {"a": 1}]),
    "properties": (
        {"properties": {"a": LEAF, "b": {"type": "null"}}},
        [{}, {"a": 1}, {"b": None}, {"a": 1, "b": None, "c": []}],
        [{"a": "x"}, {"b": 1}],
    ),
    "closed": (
        {"properties": {"a": LEAF}, "additionalProperties": False},
        [{}, {"a": 1}],
        [{"b": 1}, {"a": 1, "b": 1}],
    ),
    "other properties": ({"properties": {"a": True}, "additionalProperties": LEAF}, [{"a": "x", "b": 1}], [{"b": "x"}]),
    "declared names are not free": (
        {"properties": {"ab": LEAF}},
        [{"a": "", "abc": ""}],
        [{"ab": ""}, {"c": 1, "ab": ""}],
    ),
    "patternProperties": ({"patternProperties": {"^n": LEAF}}, [{"n": 1, "x": "y"}], [{"n": "x"}, {"no": None}]),
    "two patternProperties": (
        {"patternProperties": {"a": LEAF, "b": {"minimum": 5}}},
        [{"a": 1, "b": 5, "ab": 6, "c": 0}],
        [{"ab": 1}, {"b": 1}],
    ),
    "patternProperties closed": (
        {"patternProperties": {"^x": LEAF}, "additionalProperties": False, "properties": {"xy": {"maximum": 3}}},
        [{"xy": 1, "xz": 9}],
        [{"xy": 4}, {"y": 1}],
    ),
    "propertyNames": ({"propertyNames": {"maxLength": 2}}, [{"a": 1, "bc": 2}], [{"abc": 1}]),
    "minProperties": ({"minProperties": 1}, [{"a": 1}, []], [{}]),
    "minProperties of declared": (
        {"properties": {"a": LEAF, "b": LEAF, "c": LEAF}, "additionalProperties": False, "minProperties": 2},
        [{"a": 1, "c": 2}],
        [{"b": 1}],
    ),
    "maxProperties": ({"maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    "dependentSchemas": (
        {"dependentSchemas": {"a": {"properties": {"b": LEAF}}}},
        [{"b": "x"}, {"a": 1, "b": 1}],
        [{"a": 1, "b": "x"}],
    ),
    "dependencies": (
        {"dependencies": {"a": ["b"], "c": {"required": ["d"]}}},
        [{}, {"c": 1, "d": 1}],
        [{"a": 1}, {"c": 1}],
    ),
    "anyOf": ({"anyOf": [LEAF, {"minLength": 2}]}, [1, "ab", None], ["a"]),
    "anyOf of objects": (
        {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}],
        [{}, {"c": 1}],
    ),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"minimum": 2, "type": "number"}]}, [1, 2.5], [3, 1.5]),
    "oneOf of objects": (
        {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 2}],
    ),
    "oneOf by a constant": (
        {
            "type": "object",
            "required": ["t"],
            "oneOf": [{"properties": {"t": {"const": "x"}, "n": LEAF}}, {"properties": {"t": {"const": "y"}}}],
        },
        [{"t": "x", "n": 1}, {"t": "y", "n": "s"}],
        [{"t": "x", "n": "s"}, {"t": "z"}],
    ),
    "allOf": ({"allOf": [{"minimum": 2}, {"maximum": 4}], "type": "integer"}, [2, 4], [1, 5]),
    "allOf of objects": (
        {"allOf": [{"properties": {"a": {"minimum": 1}}}, {"properties": {"a": LEAF}, "required": ["a"]}]},
        [{"a": 1}],
        [{"a": 0}, {"a": 1.5}, {}],
    ),
    "not": ({"not": {"type": ["string", "object"]}}, [1, [], None], ["a", {}]),
    "not required": ({"type": "object", "not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}]),
    "not enum": ({"type": "integer", "not": {"enum": [1, 2]}}, [0, 3, 12], [1, 2]),
    "not of a property": ({"type": "object", "not": {"properties": {"a": LEAF}}}, [{"a": "x"}], [{}, {"a": 1}]),
    "if": (
        {
            "if": {"properties": {"t": {"const": 1}}, "required": ["t"]},
            "then": {"required": ["u"]},
            "else": {"required": ["v"]},
            "type": "object",
        },
        [{"t": 1, "u": 1}, {"t": 2, "v": 1}, {"v": 1}],
        [{"t": 1}, {"t": 2, "u": 1}],
    ),
    "ref": ({"$defs": {"n": LEAF}, "items": {"$ref": "#/$defs/n"}}, [[1]], [["a"]]),
    "ref with siblings": ({"$defs": {"n": LEAF}, "$ref": "#/$defs/n", "minimum": 3}, [3], [2, "a"]),
    "anchor": ({"$defs": {"x": {"$anchor": "here", "type": "null"}}, "$ref": "#here"}, [None], [1]),
    "identifier": (
        {"$id": "http://e.x/root", "$defs": {"x": {"$id": "other", "type": "null"}}, "$ref": "other"},
        [None],
        [1],
    ),
    "recursion": (TREE, [{}, {"v": 1, "kids": [{"kids": []}, {"v": 2}]}], [{"kids": [{"v": "x"}]}, 5]),
    "recursion to the root": (
        {"properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
        [{"a": {"a": {}}}],
        [{"a": {"b": 1}}],
    ),
    "unevaluatedProperties": (
        {"allOf": [{"properties": {"a": LEAF}}], "properties": {"b": LEAF}, "unevaluatedProperties": False},
        [{"b": 1, "a": 1}, {}],
        [{"c": 1}],
    ),
    "unevaluatedItems": ({"prefixItems": [LEAF], "unevaluatedItems": False}, [[1], []], [[1, 2]]),
    "annotations": (
        {
            "title": "t",
            "description": "d",
            "default": 1,
            "examples": [2],
            "$comment": "c",
            "deprecated": True,
            "type": "null",
        },
        [None],
        [1],
    ),
    "not all members": (
        {"type": "object", "properties": {"n": LEAF}, "not": {"additionalProperties": {"type": "string"}}},
        [{"x": 1}, {"n": 1, "x": "a", "y": 2}, {"n": 1, "x": None}],
        [{}, {"x": "a"}, {"n": "b", "x": 1}, {"x": "a", "y": "b"}],
    ),
    "not all keys": (
        {"type": "object", "not": {"propertyNames": {"pattern": "^a"}}},
        [{"b": 1}, {"a": 1, "b": 1}, {"b": 1}],
        [{}, {"a": 1}, {"ab": 1, "a": 2}],
    ),
    "contains beside unevaluatedItems": (
        {"prefixItems": [{}], "contains": {"type": "string"}, "unevaluatedItems": {"type": "null"}},
        [["a"], [1, "a"], [1, None, "b"], "x"],
        [[1, 2, "a"], [1], [], [None, None]],
    ),
    "oneOf of objects that recurse": (
        {
            "$defs": {
                "v": {
                    "oneOf": [
                        {"type": "string"},
                        {
                            "type": "object",
                            "properties": {"ref": LEAF},
                            "required": ["ref"],
                            "additionalProperties": False,
                        },
                        {
                            "type": "object",
                            "patternProperties": {"^...?$": {"$ref": "#/$defs/v"}},
                            "additionalProperties": False,
                            "minProperties": 1,
                            "not": {"required": ["ios"]},
                        },
                    ]
                }
            },
            "$ref": "#/$defs/v",
        },
        ["a", {"abc": {"de": "f"}}, {"ref": {"ab": "x"}}, {"ref": 1}, {"ref": "x"}],
        [{"ios": "a"}, {}, {"abcd": "x"}, {"ab": {"ref": None}}],
    ),
    "keywords that JSON Schema does not know": ({"type": "null", "x-order": 1}, [None], [1]),
    "duplicate keywords": ({"a": 1, "maximum": 5, "type": "integer"}, [5], [6]),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_keyword_accepts_and_rejects(name: str) -> None:
    schema, accepted, rejected = TABLE[name]
    checker = Checker(schema)
    for value in accepted:
        assert checker.value(value), value
    for value in rejected:
        assert not checker.value(value), value


FORMATS = {
    "date": (["2024-02-29", "1999-12-31"], ["2023-02-29", "2024-13-01", "24-01-01", "2024-1-1"]),
    "time": (["12:00:00Z", "23:59:60Z", "01:02:03.5+01:00"], ["24:00:00Z", "12:00:00", "12:60:00Z", "12:00:60Z"]),
    "date-time": (["2024-02-29T12:00:00Z", "1985-04-12T23:20:50.52-08:00"], ["2024-02-29", "2024-02-30T00:00:00Z"]),
    "duration": (["P1D", "P1Y2M3DT4H5M6S", "P2W", "PT1S"], ["P", "PT", "1D", "P1D2Y", "P1W2D"]),
    "email": (["a.b+c@example.org"], ["a@", "@b", "a b@c", "a..b@c.d", ".a@b"]),
    "hostname": (["example.org", "a", "x-1.y"], ["-a", "a-", "a..b", "a_b", "", "a" * 64]),
    "ipv4": (["0.0.0.0", "255.249.1.99"], ["256.1.1.1", "1.2.3", "01.2.3.4", "1.2.3.4.5"]),
    "ipv6": (
        ["::", "::1", "1:2:3:4:5:6:7:8", "fe80::1:2", "::ffff:1.2.3.4", "1::8"],
        ["1:2", ":::", "12345::", "1::2::3", "1:2:3:4:5:6:7:8:9"],
    ),
    "uuid": (
        ["123e4567-e89b-12d3-a456-426614174000"],
        ["123e4567e89b12d3a456426614174000", "g23e4567-e89b-12d3-a456-426614174000"],
    ),
    "uri": (
        ["http://a.b/c?d=e#f", "urn:x:y", "mailto:a@b.c", "http://[::1]:80/"],
        ["//a", "a", "http://a b", "http://[::g]"],
    ),
    "uri-reference": (["", "/a", "#f", "../x", "http://a"], ["\\a", "a b", "#a#b"]),
    "json-pointer": (["", "/a/b~0", "/"], ["a", "/~2"]),
    "regex": (["^a{1,20}(b|[^a-z]+)*$", "", "\\d+?"], ["(", "*a", "\\", "[", "a)", "a**", "[z-a]", "a{3,2}"]),
    "uri-template": (["", "/a/{b}", "{+x:3,y*}{?q%20z,r.s}é"], ["{", "}", "{}", "{a b}", "{a:0}", "{=a}", "a b", "%2"]),
    "relative-json-pointer": (["0", "1/a", "2#"], ["/a", "01/a", "-1"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_enforced(name: str) -> None:
    checker = Checker({"type": "string", "format": name})
    accepted, rejected = FORMATS[name]
    assert [text for text in accepted if not checker.value(text)] == []
    assert [text for text in rejected if checker.value(text)] == []


def test_each_escape_counts_as_one_character() -> None:
    checker = Checker({"type": "string", "minLength": 1, "maxLength": 1})
    for text in (
        '"a"',
        r'"\n"',
        r'"\u00e9"',
        r'"\u00E9"',
        '"é"',
        r'"\""',
        r'"\/"',
        '"😀"',
        r'"\ud83d\ude00"',
        r'"\u0041"',
    ):
        assert checker.text(text), text
    for text in ('""', r'"\n\n"', r'"\ud83d"', r'"\ude00"', '"\n"', r'"\x41"', r'"\u12"'):
        assert not checker.text(text), text


def test_whitespace_is_at_most_one_space_behind_a_separator() -> None:
    checker = Checker({"type": "object", "properties": {"a": {"items": LEAF}}})
    for text in ('{"a":[1,2]}', '{"a": [1, 2]}', '{"a":[1, 2],"b": 1}'):
        assert checker.text(text), text
    for text in ('{ "a":[1]}', '{"a":  [1]}', '{"a":[1 ]}', '{"a":[1],\n"b":1}', ' {"a":[]}', '{"a":[]} '):
        assert not checker.text(text), text


def test_properties_keep_the_order_of_the_schema() -> None:
    checker = Checker({"properties": {"b": LEAF, "a": LEAF}, "required": ["a"]})
    assert checker.text('{"b":1,"a":1,"z":null}')
    assert not checker.text('{"a":1,"b":1}')
    assert not checker.text('{"z":1,"a":1}')


def test_a_name_is_met_only_in_its_own_place_however_it_is_escaped() -> None:
    checker = Checker({"properties": {"a": LEAF, "é": LEAF}, "required": ["a"]})
    for text in (r'{"a":1,"\u0061":"x"}', r'{"a":1,"\u00e9":"x"}', '{"a":1,"a":"x"}'):
        assert not checker.text(text), text
    assert checker.text(r'{"a":1,"\u00e9":2}') and checker.text('{"a":1,"é":2,"b":3}')


def test_numbers_have_bounded_digits() -> None:
    checker = Checker({"type": "number"})
    assert checker.text("1" * 24) and checker.text("0." + "1" * 24) and checker.text("-1.5e-300")
    for text in ("1" * 25, "0." + "1" * 25, "1e1000", "01", "-", "1.", ".5", "+1"):
        assert not checker.text(text), text
