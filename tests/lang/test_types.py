"""Python types as constraints, and text as their values."""

import enum
import re
from typing import Literal

import pytest

from stemma.lang.errors import RequestError
from stemma.lang.types import type_spec


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Shape(enum.Enum):
    SQUARE = (1, 1)
    LINE = (1, 9)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@pytest.mark.parametrize(
    ("type", "text", "value"),
    [
        (int, "0", 0),
        (int, "-42", -42),
        ("int", "7", 7),
        (float, "3", 3.0),
        (float, "-0.25", -0.25),
        (float, "1e3", 1000.0),
        (bool, "True", True),
        (bool, "false", False),
        (str, '"a \\"b\\" \\n"', 'a "b" \n'),
        (Literal["yes", "no"], "no", "no"),
        (Literal[1, 2], "2", 2),
        (Literal[True, "maybe"], "True", True),
        (Colour, "blue", Colour.BLUE),
        (Shape, "LINE", Shape.LINE),
        (Level, "2", Level.HIGH),
    ],
)
def test_text_becomes_a_value_and_obeys_the_constraint(type, text, value):
    spec = type_spec(type)
    got = spec.value_of(text)
    assert got == value and got.__class__ is value.__class__
    if spec.constraint.kind == "regex":
        assert re.fullmatch(str(spec.constraint.value), text)
    else:
        assert text in spec.constraint.value


@pytest.mark.parametrize(
    ("type", "text"), [(int, "01"), (int, " 1"), (int, "1_0"), (float, "nan"), (bool, "TRUE"), (str, "bare")]
)
def test_text_outside_the_type_is_a_value_error_naming_both(type, text):
    with pytest.raises(ValueError, match=f"{re.escape(repr(text))} is not a value of type {type.__name__}"):
        type_spec(type).value_of(text)
    assert not re.fullmatch(str(type_spec(type).constraint.value), text)


def test_a_literal_outside_its_values_is_a_value_error():
    with pytest.raises(ValueError, match="'maybe' is not a value of type Literal"):
        type_spec(Literal["yes", "no"]).value_of("maybe")


@pytest.mark.parametrize(
    "type", [list, dict, complex, 3, object(), "number", Literal[b"x"], list[complex], dict[int, str]]
)
def test_other_types_are_errors_naming_what_is_supported(type):
    with pytest.raises(RequestError, match="int"):
        type_spec(type)


@pytest.mark.parametrize("type", [Literal[1, "1"], Literal["", "a"], enum.Enum("Empty", [])])
def test_values_without_a_text_of_their_own_are_errors(type):
    with pytest.raises(RequestError):
        type_spec(type)
