"""Functions as tools: what is derived from hints and docstrings, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jsonschema
import pytest

from stemma import gen, gen_int
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.nodes import Gen
from stemma.lang.tools import ParsedCall, ToolSpec, describe_tools, result_text, tool_of, tools_spec


@dataclass
class Place:
    name: str
    lat: float = 0.0


def weather(place: Place, days: int = 1, unit: Literal["C", "F"] = "C") -> str:
    """Say what the weather will be.

    It is always fine.

    Args:
        place: where it is asked for,
            in the world
        days (int): how far ahead

    Returns:
        place: not a parameter here
    """
    return f"{place.name}: fine for {days} days"


def add(a: int, b: Annotated[int, "what is added"] = 0, /) -> int:
    "Add."
    return a + b


def nothing() -> None: ...


def call(tool: str, **arguments: Any) -> str:
    return json.dumps({"name": tool, "arguments": arguments})


def test_a_tool_is_its_name_docstring_and_parameters():
    tool = tool_of(weather)
    assert (tool.name, tool.description) == ("weather", "Say what the weather will be. It is always fine.")
    properties = tool.parameters["properties"]
    assert properties["place"]["description"] == "where it is asked for, in the world"
    assert properties["days"] == {"type": "integer", "description": "how far ahead"}
    assert properties["unit"] == {"enum": ["C", "F"]}
    assert tool.parameters["required"] == ["place"]
    jsonschema.validate({"place": {"name": "x"}, "days": 2}, tool.parameters)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"place": {"name": 3}}, tool.parameters)
    assert tool.to_dict()["function"]["parameters"] == tool.parameters


def test_notes_of_annotated_describe_and_nothing_needs_nothing():
    assert tool_of(add).parameters["properties"]["b"] == {"type": "integer", "description": "what is added"}
    assert tool_of(nothing).parameters["properties"] == {}
    assert tool_of(nothing).description == ""


def test_arguments_are_values_of_their_types():
    parsed = tools_spec([weather, add]).value_of(call("weather", place={"name": "Rome"}))
    assert isinstance(parsed, ParsedCall) and parsed.arguments == {"place": Place("Rome")}
    assert parsed.tool(parsed.arguments) == "Rome: fine for 1 days"
    parsed = tools_spec([weather, add]).value_of(call("add", a=3))
    assert parsed.tool(parsed.arguments) == 3  # positional-only parameters too
    assert parsed.given == {"a": 3}


def test_methods_are_tools():
    class Shop:
        def __init__(self) -> None:
            self.sold: list[str] = []

        def sell(self, item: str) -> int:
            self.sold.append(item)
            return len(self.sold)

    shop = Shop()
    parsed = tools_spec([shop.sell]).value_of(call("sell", item="axe"))
    assert parsed.tool(parsed.arguments) == 1 and shop.sold == ["axe"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "it is not JSON"),
        ("[]", 'an object with "name" and "arguments"'),
        ('{"name": "add"}', 'an object with "name" and "arguments"'),
        (call("sub", a=1), "there is no tool 'sub'; the tools are 'weather', 'add'"),
        (call("add", a="1"), "arguments.a must be an integer, got"),
        (call("add", b=1), "arguments has no 'a'"),
        (call("add", a=1, c=1), "arguments has 'c'"),
    ],
)
def test_a_text_that_is_no_call_says_why(text: str, reason: str):
    with pytest.raises(ValueError, match=r"is not a value of type call of weather \| add") as caught:
        tools_spec([weather, add]).value_of(text)
    assert reason in str(caught.value)


def test_the_constraint_is_a_schema_of_one_call():
    spec = tools_spec([weather, add])
    assert isinstance(spec, ToolSpec) and spec.constraint.kind == "json_schema"
    schema = json.loads(str(spec.constraint.value))
    jsonschema.validate(json.loads(call("add", a=1)), schema)
    jsonschema.validate(json.loads(call("weather", place={"name": "x"}, unit="F")), schema)
    for wrong in (call("add"), call("add", a=1, unit="F"), call("weather", place="x"), call("sub", a=1)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(wrong), schema)


def test_tool_choice_narrows_to_one_tool():
    for choice in ("add", add, tool_of(add)):
        schema = json.loads(str(tools_spec([weather, add], choice).constraint.value))
        assert "weather" not in json.dumps(schema) and schema["properties"]["name"] == {"enum": ["add"]}


def test_auto_is_a_call_or_text_and_tells_them_apart():
    spec = tools_spec([weather, add], "auto")
    assert spec.constraint.kind == "composed"
    assert spec.value_of("It is fine.") == "It is fine." and spec.value_of("") == ""
    assert spec.value_of(call("add", a=1)).tool.name == "add"
    with pytest.raises(ValueError, match="there is no tool"):
        spec.value_of(call("sub"))


def test_parallel_calls_are_a_list():
    spec = tools_spec([weather, add], parallel=True)
    first, second = spec.value_of(f"[{call('add', a=1)}, {call('add', a=2, b=3)}]")
    assert (first.arguments, second.arguments) == ({"a": 1}, {"a": 2, "b": 3})
    assert json.loads(str(spec.constraint.value))["minItems"] == 1
    with pytest.raises(ValueError, match="array of calls"):
        spec.value_of("[]")
    auto = tools_spec([add], "auto", True)
    assert auto.value_of("no") == "no" and len(auto.value_of(f"[{call('add', a=1)}]")) == 1


def test_gen_takes_tools():
    node = gen("c", 32, tools=[weather, add], temperature=0.5, timeout=3)
    assert isinstance(node, Gen) and isinstance(node.type, ToolSpec) and node.constraint == node.type.constraint
    assert gen("c", tools=[add], whitespace="compact").constraint.whitespace == "compact"  # type: ignore[union-attr]


def untyped(a): ...  # type: ignore[no-untyped-def]


def many(*words: str) -> None: ...


def some(**words: str) -> None: ...


def odd(a: complex) -> None: ...


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([], "at least one function"),
        (add, "tools must be a list of functions"),
        ("add", "tools must be a list of functions"),
        ([3], "a tool must be a function, got 3"),
        ([int], "a tool must be a function, got <class 'int'>"),
        ([lambda: 1], "a tool needs a name of letters, digits, _ and -, got '<lambda>'"),
        ([untyped], "tool 'untyped': parameter 'a' needs a type hint"),
        ([many], r"tool 'many': \*words.* has no schema"),
        ([some], r"tool 'some': \*\*words.* has no schema"),
        ([odd], "tool 'odd': type must be made of .*complex"),
        ([add, add], "two tools are named 'add'"),
    ],
)
def test_what_is_no_tool_is_refused_where_it_is_written(tools: Any, message: str):
    with pytest.raises(RequestError, match=message):
        gen("c", tools=tools)


def test_other_arguments_are_checked():
    with pytest.raises(RequestError, match="must be 'auto', 'required' or one of the tools \\('add'\\), got 'sub'"):
        gen("c", tools=[add], tool_choice="sub")
    with pytest.raises(RequestError, match="tool_choice='auto' needs tools"):
        gen("c", tool_choice="auto")
    with pytest.raises(RequestError, match="parallel_tool_calls=True needs tools"):
        gen("c", parallel_tool_calls=True)
    with pytest.raises(RequestError, match="parallel_tool_calls must be true or false, got 2"):
        gen("c", tools=[add], parallel_tool_calls=2)  # type: ignore[arg-type]
    others: list[dict[str, Any]] = [{"regex": "a"}, {"type": int}, {"json_schema": {}}]
    for other in others:
        with pytest.raises(ConstraintError, match="only one constraint may be given"):
            gen("c", tools=[add], **other)
    with pytest.raises(RequestError, match="remove tools="):
        gen("c", tools=[add], choices=["a"])
    with pytest.raises(RequestError, match="gen_int fixes the type"):
        gen_int("c", tools=[add])


def test_tools_are_described_to_the_model():
    text = describe_tools([weather, add])
    assert text.count("\n") == 3 and '"name": "add"' in text and "how far ahead" in text


def test_results_are_text_as_a_model_reads_it():
    assert result_text("as is") == "as is"
    assert result_text({"a": [1, None]}) == '{"a": [1, null]}'
    assert result_text(Place("Rome", 41.9)) == '{"name": "Rome", "lat": 41.9}'
    assert result_text(None) == "null" and result_text({1}) == "[1]"
    assert result_text({(1, 2): 3}) == "{(1, 2): 3}"
