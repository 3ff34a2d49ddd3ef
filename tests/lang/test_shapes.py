"""Python types as JSON: derived schemas, strict reading, and values that come back as they went."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import json
import random
import re
import uuid
from dataclasses import dataclass, field
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
    Union,
)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemma import Regex
from stemma.lang.errors import RequestError
from stemma.lang.params import Constraint
from stemma.lang.types import json_spec, type_spec

annotated_types = pytest.importorskip("annotated_types")
pydantic = pytest.importorskip("pydantic")
typing_extensions = pytest.importorskip("typing_extensions")
jsonschema = pytest.importorskip("jsonschema")
compiler = pytest.importorskip("stemma.backend.grammar.compiler")

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Corner(enum.Enum):
    TOP = (0, 1)
    BOTTOM = (1, 0)


@dataclass
class Tree:
    label: str
    children: list[Tree] = field(default_factory=list)


@dataclass
class Ping:
    pong: Pong | None = None


@dataclass
class Pong:
    ping: Ping | None = None


@dataclass
class Box(Generic[T]):
    item: T


@dataclass
class Even:
    n: int

    def __post_init__(self) -> None:
        if self.n % 2:
            raise ValueError(f"{self.n} is odd")


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Loose(TypedDict, total=False):
    a: Required[int]
    b: Annotated[str, Regex("[a-z]+")]


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Person(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(pattern="^[A-Z]", max_length=20)]
    age: int = pydantic.Field(ge=0, le=150)
    friends: list[Person] = pydantic.Field(default_factory=list)


JsonTree = typing_extensions.TypeAliasType("JsonTree", Union[int, list["JsonTree"]])  # noqa: UP007


def schema_of(type: Any) -> dict[str, Any]:
    constraint = json_spec(type).constraint
    assert constraint.kind == "json_schema"
    return json.loads(str(constraint.value))


def check(type: Any, text: str, value: Any) -> None:
    """The text reads as the value, and satisfies the schema by the engine and by jsonschema."""
    spec = json_spec(type)
    got = spec.value_of(text)
    assert got == value and got.__class__ is value.__class__
    assert compiler.matches(spec.constraint, text)
    jsonschema.Draft202012Validator(schema_of(type)).validate(json.loads(text))


@pytest.mark.parametrize(
    ("type", "text", "value"),
    [
        (int, "-7", -7),
        (str, '"a\\n"', "a\n"),
        (bool, "true", True),
        (float, "2", 2.0),
        (None, "null", None),
        (Any, '{"a": [1, null]}', {"a": [1, None]}),
        (UserId, "3", 3),
        (datetime.date, '"2024-02-29"', datetime.date(2024, 2, 29)),
        (
            datetime.datetime,
            '"2024-02-29t10:20:30.5z"',
            datetime.datetime(2024, 2, 29, 10, 20, 30, 500_000, datetime.UTC),
        ),
        (uuid.UUID, '"00000000-0000-0000-0000-00000000000F"', uuid.UUID(int=15)),
        (Colour, '"blue"', Colour.BLUE),
        (Corner, '"TOP"', Corner.TOP),
        (Literal["a", 1, True, None], "true", True),
        (Literal["a", 1, True, None], "1", 1),
        (Literal["a", 1, True, None], "null", None),
        (Literal[Colour.RED], '"red"', Colour.RED),
        (list[int], "[1, 2]", [1, 2]),
        (collections.abc.Sequence[int], "[1]", [1]),
        (list[list[bool]], "[[], [true]]", [[], [True]]),
        (set[int], "[1, 2, 1]", {1, 2}),
        (frozenset[str], '["a"]', frozenset({"a"})),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (tuple[int, ...], "[1, 2, 3]", (1, 2, 3)),
        (tuple[()], "[]", ()),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (dict[Colour, int], '{"red": 1}', {Colour.RED: 1}),
        (dict[Literal["x", "y"], Any], '{"y": {}}', {"y": {}}),
        (Optional[int], "null", None),  # noqa: UP045
        (int | float, "1.5", 1.5),
        (int | str, '"1"', "1"),
        (Union[list[int], dict[str, int]], '{"a": 1}', {"a": 1}),  # noqa: UP007
        (Tree, '{"label": "a", "children": [{"label": "b"}]}', Tree("a", [Tree("b")])),
        (Ping, '{"pong": {"ping": null}}', Ping(Pong(None))),
        (Box[int], '{"item": 1}', Box(1)),
        (Box[Box[str]], '{"item": {"item": "a"}}', Box(Box("a"))),
        (Movie, '{"title": "Alien"}', {"title": "Alien"}),
        (Movie, '{"title": "Alien", "year": 1979}', {"title": "Alien", "year": 1979}),
        (Loose, '{"a": 1, "b": "x"}', {"a": 1, "b": "x"}),
        (Point, '{"x": 1.5}', Point(1.5)),
        (Even, '{"n": 2}', Even(2)),
        (list[Movie | None], '[null, {"title": "a"}]', [None, {"title": "a"}]),
        (JsonTree, "[1, [2, []]]", [1, [2, []]]),
        (Annotated[int, annotated_types.Ge(0), annotated_types.Lt(10)], "9", 9),
        (Annotated[int, annotated_types.Interval(gt=0, le=3)], "3", 3),
        (Annotated[float, annotated_types.MultipleOf(0.5)], "1.5", 1.5),
        (Annotated[list[int], annotated_types.Len(1, 2)], "[1, 2]", [1, 2]),
        (Annotated[str, annotated_types.MinLen(2), pydantic.Field(pattern="b")], '"abc"', "abc"),
        (Annotated[dict[str, int], annotated_types.MaxLen(1)], '{"a": 1}', {"a": 1}),
        (Annotated[str, "a remark"], '"x"', "x"),
        (list[Annotated[str, Regex(r"^\d{3}$")]], '["123"]', ["123"]),
        (list[Annotated[str, Regex(r"(?i)yes|no")]], '["YES"]', ["YES"]),
    ],
)
def test_json_reads_as_the_value_and_satisfies_the_schema(type, text, value):
    check(type, text, value)


@pytest.mark.parametrize(
    ("type", "text", "reason"),
    [
        (int, "1.0", "it must be an integer, got 1.0"),
        (int, "true", "it must be an integer"),
        (float, "1e999", "a number that a float can hold"),
        (float, "NaN", "NaN is no JSON"),
        (str, "1", "it must be a string"),
        (datetime.date, '"2023-02-29"', "it must be a date: day is out of range"),
        (datetime.date, "3", "it must be a date in quotes, got 3"),
        (list[int], '[1, "2"]', r'\[1\] must be an integer, got "2"'),
        (list[int], "[1,", "it is not JSON"),
        (tuple[int, str], "[1]", "an array of 2 items"),
        (dict[str, int], '{"a": null}', r"\['a'\] must be an integer, got null"),
        (dict[Colour, int], '{"green": 1}', 'a key of it must be one of \\["red", "blue"\\], got "green"'),
        (int | str, "null", r"it fits no member of int \| str: it must be an integer, got null; it must be a string"),
        (Literal[1], "true", "one of"),
        (Colour, '"green"', "one of"),
        (set[Any], "[[]]", "unhashable"),
        (Tree, '{"label": "a", "children": [{}]}', r"\.children\[0\] has no 'label', which Tree needs"),
        (Movie, '{"title": "a", "length": 3}', "it has 'length', which Movie does not know"),
        (Even, '{"n": 3}', "Even raised ValueError: 3 is odd"),
        (Loose, '{"b": "x"}', "it has no 'a'"),
        (Loose, '{"a": 1, "b": "X"}', r"\.b must have regex='\[a-z\]\+', got 'X'"),
        (Annotated[int, annotated_types.Gt(3)], "3", "it must have gt=3, got 3"),
        (Annotated[list[int], annotated_types.MinLen(1)], "[]", "min_length=1"),
        (Person, '{"name": "Ada", "age": 200}', "age: Input should be less than or equal to 150"),
        (list[Person], '[{"name": "Ada", "age": "x"}]', r"\[0\]: age: Input should be a valid integer"),
    ],
)
def test_json_that_is_no_value_is_an_error_with_place_and_reason(type, text, reason):
    with pytest.raises(ValueError, match=re.escape(text) + "' is not a value of type .*" + reason):
        json_spec(type).value_of(text)
    if text not in ("1.0", "1e999", "[[]]", '{"n": 3}'):  # these the schema cannot tell
        assert not compiler.matches(json_spec(type).constraint, text)


def test_a_pydantic_model_gives_its_schema_without_other_keys():
    check(Person, '{"name": "Ada", "age": 36, "friends": [{"name": "Bo", "age": 1}]}', Person(
        name="Ada", age=36, friends=[Person(name="Bo", age=1)]
    ))  # fmt: skip
    constraint = json_spec(Person).constraint
    assert not compiler.matches(constraint, '{"name": "ada", "age": 1}')
    assert not compiler.matches(constraint, '{"name": "Ada", "age": 1, "x": 1}')


def test_a_pydantic_model_may_stand_inside_other_types_and_a_type_adapter_is_a_type():
    check(Box[Person], '{"item": {"name": "Ada", "age": 1}}', Box(Person(name="Ada", age=1)))
    check(pydantic.TypeAdapter(list[Person]), '[{"name": "Ada", "age": 1}]', [Person(name="Ada", age=1)])


def test_two_classes_of_one_name_are_told_apart():
    def made(kind: type) -> type:
        return dataclasses.make_dataclass("Item", [("value", kind)])

    numbers, texts = made(int), made(str)
    spec = json_spec(tuple[numbers, texts])
    assert spec.value_of('[{"value": 1}, {"value": "a"}]') == (numbers(1), texts("a"))
    assert not compiler.matches(spec.constraint, '[{"value": "a"}, {"value": "a"}]')


def test_a_class_of_a_function_may_refer_to_others_of_the_function():
    @dataclass
    class Leaf:
        n: int

    @dataclass
    class Branch:
        leaf: Leaf
        more: list[Branch]

    assert json_spec(Branch).value_of('{"leaf": {"n": 1}, "more": []}') == Branch(Leaf(1), [])


def test_a_dataclass_without_recursion_is_written_out_at_the_root():
    assert schema_of(Even) == {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }


def test_types_that_python_calls_equal_are_told_apart():
    either, other = int | float, float | int
    assert either == other
    assert [type(json_spec(t).value_of("1")) for t in (either, other)] == [int, float]
    assert json_spec(list[either]).constraint != json_spec(list[other]).constraint
    assert json_spec(list[Literal[1]]).constraint != json_spec(list[Literal[True]]).constraint
    assert json_spec(list[Tree]) is json_spec(list[Tree])


def test_scalars_stay_bare_at_the_top_and_containers_are_json():
    assert type_spec(Literal["a"]).value_of("a") == "a"
    assert type_spec(UserId).constraint == type_spec(int).constraint
    assert type_spec(list[Literal["a"]]).value_of('["a"]') == ["a"]


def test_a_pattern_at_the_top_is_bare_text():
    spec = type_spec(Annotated[str, Regex(r"[A-Z]{2}\d+")])
    assert (spec.constraint.kind, spec.constraint.value) == ("regex", r"[A-Z]{2}\d+")
    assert spec.value_of("AB1") == "AB1"
    with pytest.raises(ValueError, match="'ab1' is not a value of type"):
        spec.value_of("ab1")


@dataclass
class WithInit:
    x: dataclasses.InitVar[int]


@dataclass
class Unknown:
    x: Nowhere  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


class BadEnum(enum.Enum):
    A = 1
    B = "1"


@pytest.mark.parametrize(
    ("type", "message"),
    [
        (complex, "type must be made of int, .*got <class 'complex'>"),
        (list, r"say of what: list\[int\]"),
        (dict, r"say of what: dict\[str, int\]"),
        (dict[int, str], "keys of JSON objects are strings"),
        (list["Nowhere"], "a name in quotes"),  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        (WithInit, "WithInit.x: InitVar"),
        (Unknown, "Unknown.*Nowhere"),
        (list[Literal[b"a"]], "may hold str, int, bool and None, got b'a'"),
        (Annotated[int, Regex("1")], "Regex stands alone, and with str"),
        (list[Annotated[int, Regex("1")]], "regex='1' means nothing for int"),
        (list[Annotated[bool, annotated_types.Ge(0)]], "ge=0 means nothing for bool"),
        (Annotated[datetime.date, annotated_types.MinLen(1)], "min_length=1 means nothing for date"),
        (Annotated[set[int], annotated_types.MinLen(1)], "min_length=1 means nothing"),
        (Annotated[int, annotated_types.Predicate(bool)], "cannot be enforced"),
        (Annotated[int, pydantic.AfterValidator(abs)], "cannot be enforced"),
        (Annotated[str, Regex("a"), annotated_types.MinLen(1)], "Regex stands alone"),
    ],
)
def test_a_type_that_cannot_be_had_is_an_error_saying_what(type, message):
    with pytest.raises(RequestError, match=message):
        type_spec(type)


# -- random types and values

SCALARS = [
    (int, st.integers(-(10**23), 10**23), "number"),
    (float, st.floats(allow_nan=False, allow_infinity=False), "number"),
    (bool, st.booleans(), "boolean"),
    (str, st.text(max_size=8), "string"),
    (Colour, st.sampled_from(Colour), "string"),
    (Literal["a b", '"', 3], st.sampled_from(["a b", '"', 3]), "mixed"),
    (Annotated[int, annotated_types.Ge(-5), annotated_types.Le(12)], st.integers(-5, 12), "number"),
    (Annotated[str, annotated_types.Len(1, 3)], st.text(min_size=1, max_size=3), "string"),
    (uuid.UUID, st.uuids(), "string"),
    (datetime.date, st.dates(), "string"),
    (datetime.datetime, st.datetimes(timezones=st.just(datetime.UTC)), "string"),
    (type(None), st.none(), "null"),
]


def made_class(kind: int, inner: list[tuple[Any, Any, str]]) -> tuple[Any, Any, str]:
    names = [f"f{i}" for i in range(len(inner))]
    hints = {name: hint for name, (hint, _, _) in zip(names, inner, strict=True)}
    values = {name: values for name, (_, values, _) in zip(names, inner, strict=True)}
    if kind == 0:
        cls: Any = dataclasses.make_dataclass("Made", list(hints.items()))
    elif kind == 1:
        cls = NamedTuple("Made", list(hints.items()))  # type: ignore[misc]
    else:
        cls = TypedDict("Made", hints)  # type: ignore[misc,operator]
    return cls, st.fixed_dictionaries(values).map(lambda fields: cls(**{n: fields[n] for n in names})), "object"


def containers(inner: Any) -> Any:
    hashable = st.sampled_from(SCALARS)
    return st.one_of(
        inner.map(lambda t: (list[t[0]], st.lists(t[1], max_size=3), "array")),
        hashable.map(lambda t: (set[t[0]], st.sets(t[1], max_size=3), "array")),
        inner.map(lambda t: (dict[str, t[0]], st.dictionaries(st.text(max_size=3), t[1], max_size=3), "object")),
        st.lists(inner, max_size=3).map(
            lambda ts: (tuple[tuple(t[0] for t in ts)], st.tuples(*(t[1] for t in ts)), "array")
        ),
        st.lists(inner, min_size=2, max_size=3, unique_by=lambda t: t[2])
        .filter(lambda ts: all(t[2] != "mixed" for t in ts))
        .map(lambda ts: (Union[tuple(t[0] for t in ts)], st.one_of([t[1] for t in ts]), "mixed")),  # noqa: UP007
        st.builds(made_class, st.integers(0, 2), st.lists(inner, min_size=1, max_size=3)),
    )


TYPES = st.recursive(st.sampled_from(SCALARS), containers, max_leaves=6)


def as_json(value: Any) -> Any:
    if isinstance(value, (datetime.date, uuid.UUID)):
        return value.isoformat() if isinstance(value, datetime.date) else str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if isinstance(value, (list, tuple, set)):
        return [as_json(one) for one in value]
    return {key: as_json(one) for key, one in value.items()} if isinstance(value, dict) else value


@settings(max_examples=100, deadline=None)
@given(st.data(), TYPES)
def test_random_values_of_random_types_pass_the_schema_and_come_back(data, drawn):
    type, values, _ = drawn
    spec = json_spec(type)
    value = data.draw(values)
    for ascii_only in (True, False):
        text = json.dumps(as_json(value), ensure_ascii=ascii_only)
        assert compiler.matches(spec.constraint, text), text
        assert spec.value_of(text) == value
    jsonschema.Draft202012Validator(schema_of(type)).validate(as_json(value))


def spelled(constraint: Constraint, draw: random.Random) -> str | None:
    """A random text of the constraint; after some bytes it heads for an end. None if it finds none."""
    deadline = compiler.Deadline(5, constraint.kind)
    lowered = compiler.lower(constraint, deadline)
    dfa = compiler.Dfa(lowered.node, deadline, rules=lowered.rules, trim=lowered.trim)
    state, out = 0, bytearray()
    for _ in range(400):
        live = [byte for byte in range(256) if dfa.step(state, byte) >= 0]
        if dfa.accepting[state] and (not live or draw.random() < 0.3):
            return out.decode()
        if len(out) > 40:
            live = [byte for byte in live if byte in b'"}]'] or live
        elif draw.random() < 0.7:
            live = [byte for byte in live if byte < 128] or live
        out.append(draw.choice(live))
        state = dfa.step(state, out[-1])
    return None


FIXED = [Tree, Ping, Movie, Loose, Point, Person, JsonTree, Box[Person], dict[Colour, list[int]], Any]


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(FIXED) | TYPES.map(lambda drawn: drawn[0]))
def test_every_text_that_the_schema_allows_reads_as_a_value(draw, type):
    spec = json_spec(type)
    for _ in range(3):
        text = spelled(spec.constraint, draw)
        if text is not None and not re.search(r"[eE]\+?\d{3}|0000-|:60", text):  # no float, no datetime
            spec.value_of(text)
