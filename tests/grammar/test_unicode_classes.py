r"""`\p{…}`: categories as `unicodedata` has them, scripts as the `regex` package has them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

import pytest

from stemma.backend.grammar import charset
from stemma.backend.grammar.compiler import matches
from stemma.backend.grammar.unicode_classes import CATEGORIES, TABLE, property_named
from stemma.lang.params import Constraint

EVERY = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


def write_table(regex: Any) -> str:
    """The table of scripts, as the `regex` package knows them; wrapped at 116 columns it is `TABLE`."""

    def digits(number: int) -> str:
        rest, digit = divmod(number, 36)
        return (digits(rest) if rest else "") + "0123456789abcdefghijklmnopqrstuvwxyz"[digit]

    names: dict[int, list[str]] = {}
    for name, number in regex._regex_core.PROPERTIES["SCRIPT"][1].items():
        names.setdefault(number, []).append(name.lower())
    whole = "".join(map(chr, range(0x110000)))
    lines = []
    for number in sorted(names):
        spans = [m.span() for m in regex.finditer(rf"\p{{Script={names[number][0]}}}+", whole)]
        parts, at = [], 0
        for low, end in spans:
            parts.append(digits(low - at) + (f",{digits(end - low - 1)}" if end - low > 1 else ""))
            at = end
        if parts and "unknown" not in names[number]:
            lines.append(f"{' '.join(sorted(names[number], key=len, reverse=True))}: {' '.join(parts)}")
    return "\n".join(lines)


def by_names(table: str) -> dict[str, str]:
    rows = [line.partition(": ") for line in table.splitlines()]
    return {names: ranges for names, _, ranges in rows}


def test_scripts_are_those_of_another_library() -> None:
    regex = pytest.importorskip("regex", reason="the scripts are compared with those of the regex package")
    theirs, ours = by_names(write_table(regex)), by_names(TABLE.replace("\n  ", " ").strip())
    assert len(ours) > 170
    assert {names: ours[names] == theirs.get(names) for names in ours} == dict.fromkeys(ours, True)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("Greek", "αΩἀ", "aя"),
        ("Script=Grek", "αΩ", "a"),
        ("sc=Cyrl", "яЖ", "aα"),
        ("Han", "東京", "ひア"),
        ("Hiragana", "ひら", "ア東"),
        ("Letter", "aé東", "1 _"),
        ("Uppercase_Letter", "AÉ", "aé1"),
        ("uppercase letter", "AÉ", "aé1"),
        ("gc=Decimal_Number", "1٣", "a½"),
        ("General_Category=Nd", "1٣", "a½"),
        ("LC", "aÉ", "東1"),
        ("ASCII", "a\x7f", "é"),
        ("Assigned", "a東", "\U0010fffe"),
        ("^Lu", "a1", "A"),
    ],
)
def test_a_property_by_any_of_its_names(name: str, inside: str, outside: str) -> None:
    for given, held, free in ((rf"\p{{{name}}}", inside, outside), (rf"\P{{{name}}}", outside, inside)):
        assert all(matches(Constraint("regex", given), char) for char in held)
        assert not any(matches(Constraint("regex", given), char) for char in free)


def test_categories_are_those_of_unicodedata() -> None:
    sizes = Counter(unicodedata.category(c) for c in EVERY)
    for long, short in CATEGORIES.items():
        found = property_named(long)
        if short == "Cs":
            assert found is None  # surrogates are no characters here
            continue
        assert found is not None
        assert sum(high - low + 1 for low, high in found) == sum(n for k, n in sizes.items() if k.startswith(short))
        assert all(unicodedata.category(chr(p)).startswith(short) for ends in found for p in ends)


def test_any_holds_every_character() -> None:
    assert property_named("Any") == charset.ALL
    assert property_named("no such name") is None


def test_a_property_in_a_class_and_in_a_schema() -> None:
    assert matches(Constraint("regex", r"[\p{Greek}\p{Nd}_-]+"), "αβ1_-")
    assert matches(Constraint("json_schema", '{"type": "string", "pattern": "^\\\\p{Script=Greek}+$"}'), '"αβγ"')
    assert not matches(Constraint("json_schema", '{"type": "string", "pattern": "^\\\\p{Script=Greek}+$"}'), '"abc"')
