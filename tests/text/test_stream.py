"""Detokenising and stop strings, byte by byte against the obvious slow answer."""

from __future__ import annotations

import random

import pytest

from stemma.backend.text import Detokenizer, StopChecker, TextStream, split_at_cut

BYTES: list[bytes | None] = [bytes([b]) for b in range(256)]


def table(*tokens: bytes | None) -> list[bytes | None]:
    return list(tokens)


def test_half_a_character_waits():
    out = Detokenizer(BYTES)
    parts = [out.push([b]) for b in "é東😀a".encode()]
    assert parts == ["", "é", "", "", "東", "", "", "", "😀", "a"]


def test_flush_shows_what_is_left_as_a_replacement():
    out = Detokenizer(BYTES)
    assert out.push("東".encode()[:2]) == ""
    assert out.flush() == "\ufffd" and out.flush() == ""


@pytest.mark.parametrize("seed", range(20))
def test_joined_parts_equal_decoding_at_once_even_for_garbage(seed):
    rng = random.Random(seed)
    data = bytes(rng.choice([rng.randrange(256), *"é😀".encode()]) for _ in range(60))
    out = Detokenizer(BYTES)
    assert "".join(out.push([b]) for b in data) + out.flush() == data.decode("utf-8", "replace")


def test_special_tokens_have_no_text():
    assert Detokenizer(table(b"a", None)).push([0, 1, 0, 7]) == "aa"


def run(stops: tuple[str, ...], tokens: list[bytes | None], keep: bool = False):
    checker = StopChecker(stops, tokens, keep)
    return next((m for i in range(len(tokens)) if (m := checker.push(i))), None)


def test_stop_inside_a_token():
    match = run(("\n\n",), [b"ab", b"c\n", b"\nrest"])
    assert match is not None and (match.stop, match.start, match.end, match.cut) == ("\n\n", 3, 5, 3)


def test_no_stop_trim_cuts_after_the_stop():
    match = run(("END",), [b"xE", b"NDy"], keep=True)
    assert match is not None and match.cut == 4


def test_the_stop_that_is_complete_first_wins_and_the_longer_of_two_that_end_together():
    first = run(("abc", "b"), [b"abc"])
    longer = run(("b", "ab"), [b"xab"])
    assert first is not None and (first.stop, first.cut) == ("b", 1)
    assert longer is not None and (longer.stop, longer.cut) == ("ab", 1)


def test_special_tokens_neither_match_nor_break_a_match():
    match = run(("ab",), [b"a", None, b"b"])
    assert match is not None and match.start == 0


@pytest.mark.parametrize("seed", range(150))
def test_matching_does_not_depend_on_the_split_into_tokens(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("abé", k=24)).encode()
    stops = tuple({"".join(rng.choices("abé", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))})
    one_by_one = run(stops, [bytes([b]) for b in text])
    cuts = sorted(rng.sample(range(1, len(text)), 6))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(stops, list(pieces)) == one_by_one
    ends = [(e, e - len(s.encode()), s) for s in stops for e in range(len(text) + 1) if text[:e].endswith(s.encode())]
    if one_by_one is None:
        assert not ends
    else:
        assert (one_by_one.end, one_by_one.start, one_by_one.stop) == min(ends)


def test_held_is_the_longest_tail_that_may_begin_a_stop():
    checker = StopChecker(("User:", "\n\n"), BYTES)
    seen = []
    for b in b"hi\nUse it\n":
        checker.push(b)
        seen.append(checker.held)
    assert seen == [0, 0, 1, 1, 2, 3, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("tokens", "cut", "expected"),
    [
        ([b"ab", b"cd", b"ef"], 4, (2, "")),
        ([b"ab", b"cd", b"ef"], 3, (1, "c")),
        ([b"ab", None, b"cd"], 2, (2, "")),
        ([b"ab", "é".encode()[:1], "é".encode()[1:] + b"xy"], 5, (1, "éx")),
        ([b"abcd"], 0, (0, "")),
        ([b"\xff\xff", b"a\xffb"], 4, (1, "a\ufffd")),
    ],
)
def test_split_at_cut(tokens, cut, expected):
    assert split_at_cut(list(range(len(tokens))), tokens, cut) == expected


def test_stream_never_shows_what_the_stop_takes_away():
    text = "Hello é\nUser is here\nUser: no"
    stream = TextStream(BYTES, ("\nUser:",))
    shown = []
    for b in text.encode():
        match = stream.push(b)
        shown.append(stream.new_text())
        if match:
            break
    shown.append(stream.new_text(final=True))
    assert "".join(shown) == stream.text() == "Hello é\nUser is here"
    assert stream.kept() == (len("Hello é\nUser is here".encode()), "")


def test_stream_without_a_match_gives_everything_at_the_end():
    stream = TextStream(table(b"a\n", b"\xe6\x9d"), ("\n\n",))
    stream.push(0)
    assert stream.new_text() == "a"
    stream.push(1)
    assert stream.new_text() + stream.new_text(final=True) == "\n\ufffd"
    assert stream.text() == "a\n\ufffd" and stream.kept() == (2, "")


@pytest.mark.parametrize("seed", range(60))
def test_streamed_parts_equal_the_text_and_the_kept_ids_and_tail_spell_it(seed):
    rng = random.Random(seed)
    tokens = list({"".join(rng.choices("ab é\n", k=rng.randint(1, 4))).encode() for _ in range(20)})
    stream = TextStream(tokens, ("ba", "\n a", "éé"), no_stop_trim=bool(seed % 2))
    parts, ids = [], []
    for _ in range(30):
        ids.append(rng.randrange(len(tokens)))
        match = stream.push(ids[-1])
        parts.append(stream.new_text())
        if match:
            break
    parts.append(stream.new_text(final=True))
    n, tail = stream.kept()
    assert "".join(parts) == stream.text() == b"".join(tokens[i] for i in ids[:n]).decode() + tail


@pytest.mark.parametrize("seed", range(20))
def test_push_new_is_push_and_new_text(seed):
    rng = random.Random(seed)
    tokens = table(*BYTES, "é東".encode(), b"abc", None, b"")
    quick, slow = TextStream(tokens), TextStream(tokens)
    parts: list[str] = []
    for _ in range(80):
        token = rng.choice([*range(256, 262), *"é😀a".encode()])
        slow.push(token)
        if rng.random() < 0.7:
            parts.append(quick.push_new(token))
        else:
            quick.push(token)
        assert quick.kept() == slow.kept() and quick.text() == slow.text()
    assert "".join(parts) + quick.new_text(final=True) == slow.text()
