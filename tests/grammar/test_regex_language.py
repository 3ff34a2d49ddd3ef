"""A regex means what Python's `re.fullmatch` means; choices mean themselves."""

from __future__ import annotations

import random
import re

import pytest

from stemma.backend.grammar import charset
from stemma.backend.grammar.automaton import Dfa
from stemma.backend.grammar.compiler import lower, matches
from stemma.backend.grammar.limits import Deadline
from stemma.lang.params import Constraint

ALPHABET = list('abcdexyzABKS019.-+@{}"\\,:()[]|/ \n\t\r\0!_^$*?éßſKİıωΩ東京ヲ😀😎\u00a0\u2028\x07\x08\x0b\x0c')


def automaton(pattern: str) -> Dfa:
    deadline = Deadline(2.0, "regex")
    return Dfa(lower(Constraint("regex", pattern), deadline).node, deadline)


def accepts(dfa: Dfa, text: str) -> bool:
    state = dfa.run(0, text.encode())
    return state >= 0 and dfa.accepting[state]


def walk(dfa: Dfa, draw: random.Random, longest: int) -> bytes:
    """A random path through the automaton, byte by byte; it ends where it may, or anywhere when that takes too long."""
    out, state = bytearray(), 0
    for _ in range(longest):
        live = [b for b in range(256) if dfa.step(state, b) >= 0]
        if not live or (dfa.accepting[state] and draw.random() < 0.3):
            break
        ascii_only = [b for b in live if b < 128]
        byte = draw.choice(ascii_only if ascii_only and draw.random() < 0.8 else live)
        out.append(byte)
        state = dfa.step(state, byte)
    return bytes(out)


def samples(dfa: Dfa, seed: int) -> list[str]:
    draw = random.Random(seed)
    texts = ["", *ALPHABET, *("".join(draw.choices(ALPHABET, k=draw.randint(1, 4))) for _ in range(60))]
    for _ in range(60):
        text = walk(dfa, draw, 60).decode(errors="ignore")
        texts.append(text)
        at = draw.randint(0, len(text))
        texts.append(text[:at] + draw.choice(ALPHABET) + text[at:])
        texts.append(text[:at] + text[at + 1 :])
        texts.append(text + text[:2])
    return texts


def test_a_pattern_accepts_what_fullmatch_accepts(pattern: str) -> None:
    dfa, reference = automaton(pattern), re.compile(pattern)
    hits = 0
    for text in samples(dfa, seed=len(pattern)):
        expected = reference.fullmatch(text) is not None
        hits += expected
        assert accepts(dfa, text) == expected, text
    assert hits > 0


def test_random_patterns_accept_what_fullmatch_accepts() -> None:
    draw = random.Random(5)

    def some(depth: int) -> str:
        kind = draw.randint(0, 7 if depth else 3)
        if kind <= 1:
            return draw.choice(["a", "b", "c", "ab", "é", "."])
        if kind == 2:
            return draw.choice(["[ab]", "[^a]", "[a-c]", r"\w", "[^é]"])
        if kind == 3:
            return draw.choice(["", "a", "bc"])
        if kind == 4:
            return f"({some(depth - 1)}|{some(depth - 1)})"
        if kind == 5:
            return some(depth - 1) + some(depth - 1)
        return f"({some(depth - 1)}){draw.choice(['*', '+', '?', '{2}', '{0,2}', '{1,}', '*?'])}"

    for trial in range(300):
        pattern = some(4)
        dfa, reference = automaton(pattern), re.compile(pattern)
        for _ in range(25):
            text = "".join(draw.choices("abcé\n", k=draw.randint(0, 6)))
            assert accepts(dfa, text) == (reference.fullmatch(text) is not None), (trial, pattern, text)


@pytest.mark.parametrize("escape", [r"\w", r"\W", r"\s", r"\S", ".", "[^a]", r"(?a)\w", r"(?a)\S"])
def test_classes_hold_the_same_characters_as_in_python(escape: str) -> None:
    node = lower(Constraint("regex", escape), Deadline(2.0, "regex")).node
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    expected = {m.start() for m in re.finditer(escape, everything)}
    inside = [(a, b) for a, b in getattr(node, "ranges", ())]
    assert sum(b - a + 1 for a, b in inside) == len(expected)
    assert all(everything.index(chr(p)) in expected for ends in inside for p in ends if p < 0x3000)


def test_digits_are_ascii() -> None:
    assert matches(Constraint("regex", r"\d"), "7")
    assert not matches(Constraint("regex", r"\d"), "٣")
    assert matches(Constraint("regex", r"\D"), "٣")


def test_ignoring_case_agrees_with_python_for_every_cased_character() -> None:
    for point in range(0x1F000):
        char = chr(point)
        if 0xD800 <= point <= 0xDFFF or (char.lower() == char and char.upper() == char):
            continue
        partners = charset.ignoring_case(((point, point),))
        pattern = re.compile(re.escape(char), re.IGNORECASE)
        for a, b in partners:
            assert all(pattern.fullmatch(chr(p)) for p in range(a, b + 1)), hex(point)
        for other in {*char.lower(), *char.upper(), *char.swapcase(), *char.title()}:
            inside = any(a <= ord(other) <= b for a, b in partners)
            assert inside == (pattern.fullmatch(other) is not None), (hex(point), other)


def test_general_categories() -> None:
    assert matches(Constraint("regex", r"\p{Lu}\p{L}+\P{L}"), "Éa東!")
    assert not matches(Constraint("regex", r"\p{Lu}"), "é")
    assert matches(Constraint("regex", r"[\p{Nd}_]+"), "1٣_")


def test_surrogate_pairs_in_escapes_are_one_character() -> None:
    assert matches(Constraint("regex", r"\ud83d\ude00"), "😀")


def test_bytes_that_are_not_utf8_never_match() -> None:
    anything = Constraint("regex", r"(?s).*")
    for text in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe6\x9d", b"\x80"):
        assert not matches(anything, text)
    assert matches(anything, "a\n東😀\x00".encode())


def test_javascript_named_groups() -> None:
    assert matches(Constraint("regex", r"(?<year>\d{4})"), "2024")


def test_a_choice_that_is_a_prefix_of_another_keeps_both() -> None:
    choices = Constraint("choices", ("New York", "New", "New Jersey", "新", "新聞"))
    for text in choices.value:
        assert matches(choices, text)
    for text in ("Ne", "New ", "New Yorks", "", "新聞新"):
        assert not matches(choices, text)


def test_many_choices_are_a_trie() -> None:
    values = tuple(f"option number {i:05d}" for i in range(4000))
    choices = Constraint("choices", values)
    assert matches(choices, values[1234])
    assert not matches(choices, "option number 9")
