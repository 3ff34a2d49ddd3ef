"""Encoding never lets user text become a special token; decoding and bytes agree exactly."""

from __future__ import annotations

import pytest

from stemma.backend.text import Tokenizer
from stemma.backend.text.segment_cache import SegmentCache
from stemma.lang.errors import RequestError

TEXTS = ["hello world", " the there", "Grüße 東京 😀!", "a\n\n  b\t", "", " ", "x <|im_end|> y", "\u0000\u200d"]


@pytest.fixture
def gpt(save, byte_level_backend) -> Tokenizer:
    return Tokenizer.load(save(byte_level_backend))


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_round_trip(gpt, text):
    ids = gpt.encode(text)
    assert gpt.decode(ids) == text
    assert b"".join(gpt.token_bytes[i] or b"" for i in ids) == text.encode()


def test_plain_encoding_equals_the_library(gpt, byte_level_backend):
    for text in TEXTS:
        if "<|" not in text:
            assert gpt.encode(text) == byte_level_backend.encode(text, add_special_tokens=False).ids


def test_special_text_in_user_text_stays_text(gpt):
    ids = gpt.encode("<|im_start|>system<|im_end|><|endoftext|>")
    assert not set(ids) & gpt.special_ids
    assert gpt.decode(ids) == "<|im_start|>system<|im_end|><|endoftext|>"


def test_special_true_recognises_them(gpt):
    ids = gpt.encode("<|im_start|>user\n", special=True)
    assert ids[0] == gpt.special_id("<|im_start|>")
    assert ids[1:] == gpt.encode("user\n")
    assert gpt.special_text(ids[0]) == "<|im_start|>"
    assert gpt.decode(ids) == "user\n"
    assert gpt.decode(ids, skip_special=False) == "<|im_start|>user\n"


def test_adjacent_plain_pieces_are_one_piece(gpt):
    assert gpt.encode_pieces([("hel", False), ("lo wor", False), ("ld", False)]) == gpt.encode("hello world")


def test_marker_text_merges_with_plain_neighbours(gpt):
    start, end = gpt.special_id("<|im_start|>"), gpt.special_id("<|im_end|>")
    pieces = [("<|im_start|>user\n", True), ("\n<|im_end|>hello", False), ("<|im_end|>\n", True), ("the", False)]
    expected = [start, *gpt.encode("user\n\n<|im_end|>hello"), end, *gpt.encode("\nthe")]
    assert gpt.encode_pieces(pieces) == expected


def test_a_special_token_is_not_formed_across_a_plain_border(gpt):
    assert not set(gpt.encode_pieces([("<|im_", True), ("start|>", False)])) & gpt.special_ids
    assert not set(gpt.encode_pieces([("<|im_", False), ("start|>", True)])) & gpt.special_ids
    assert gpt.encode_pieces([("<|im_", True), ("start|>", True)]) == [gpt.special_id("<|im_start|>")]


def test_added_plain_tokens_have_bytes_and_are_not_special(gpt):
    (tool,) = gpt.encode("<tool>")
    assert gpt.token_bytes[tool] == b"<tool>"
    assert tool not in gpt.special_ids


def test_special_tokens_have_no_bytes(gpt):
    assert all(gpt.token_bytes[i] is None for i in gpt.special_ids)
    assert sum(b is None for b in gpt.token_bytes) == len(gpt.special_ids) == 5


def test_stripping_special_tokens_take_the_white_space_beside_them(save, byte_level_backend):
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(byte_level_backend.to_str())
    backend.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True)])
    tok = Tokenizer.load(save(backend))
    assert tok.encode("a <|end|> b", special=True) == backend.encode("a <|end|> b", add_special_tokens=False).ids


def test_plain_and_special_encoding_agree_with_the_library_on_markers(gpt, byte_level_backend):
    for text in ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>", "<s></s>x", "a<s>b"):
        assert gpt.encode(text, special=True) == byte_level_backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("scheme", ["prepend", "first", "always", "never"])
def test_sentencepiece_prefix_only_at_the_start(save, sentencepiece_backend, scheme):
    backend = sentencepiece_backend(scheme)
    tok = Tokenizer.load(save(backend))
    plain = tok.encode("hello the 😀")
    assert tok.decode(plain) == "hello the 😀"
    assert b"".join(tok.token_bytes[i] or b"" for i in plain) == "hello the 😀".encode()
    assert tok.encode("hello the", start=True) == backend.encode("hello the", add_special_tokens=False).ids
    assert (tok.encode("hello", start=True) != tok.encode("hello")) == (scheme != "never")
    assert tok.add_bos and tok.bos_id == backend.token_to_id("<s>") and tok.bos_id not in plain


@pytest.mark.parametrize("scheme", ["prepend", "first", "always"])
def test_sentencepiece_after_special_tokens_like_the_library(save, sentencepiece_backend, scheme):
    backend = sentencepiece_backend(scheme)
    tok = Tokenizer.load(save(backend))
    text = "<s>hello</s><s>the"
    expected = backend.encode(text, add_special_tokens=False).ids
    assert tok.encode_pieces([(text, True)], start=True) == expected


def test_byte_fallback_tokens_are_single_bytes(save, sentencepiece_backend):
    tok = Tokenizer.load(save(sentencepiece_backend("prepend")))
    assert [tok.token_bytes[3 + b] for b in range(256)] == [bytes([b]) for b in range(256)]
    assert tok.encode("☃") == [3 + b for b in "☃".encode()]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config__json": {"eos_token_id": [0, 2]}}, {0, 2}),
        ({"config__json": {"eos_token_id": 1}}, {1}),
        ({"config__json": {"text_config": {"eos_token_id": 1}}}, {1}),
        ({"tokenizer_config__json": {"eos_token": "<|im_end|>"}}, {2}),
        (
            {"tokenizer_config__json": {"eos_token": {"content": "<|im_end|>"}}, "config__json": {"eos_token_id": 0}},
            {0, 2},
        ),
        ({"config__json": {"eos_token_id": None}}, set()),
    ],
)
def test_eos_ids_from_every_file(save, byte_level_backend, files, expected):
    assert Tokenizer.load(save(byte_level_backend, **files)).eos_ids == expected


@pytest.mark.parametrize(
    ("config", "bos", "adds"),
    [
        ({}, None, False),
        ({"bos_token": "<s>"}, "<s>", False),
        ({"bos_token": "<s>", "add_bos_token": True}, "<s>", True),
    ],
)
def test_bos_setting(save, byte_level_backend, config, bos, adds):
    tok = Tokenizer.load(save(byte_level_backend, tokenizer_config__json=config))
    assert (tok.bos_id, tok.add_bos) == (None if bos is None else tok.special_id(bos), adds)


def test_add_bos_token_overrules_the_post_processor(save, sentencepiece_backend):
    config = {"bos_token": "<s>", "add_bos_token": False}
    assert not Tokenizer.load(save(sentencepiece_backend("first"), tokenizer_config__json=config)).add_bos


def test_missing_tokenizer_names_the_path(tmp_path):
    with pytest.raises(RequestError, match=r"no tokenizer at .*tokenizer\.json.*save_pretrained"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_broken_tokenizer_is_a_request_error(save, content):
    with pytest.raises(RequestError, match=r"tokenizer\.json"):
        Tokenizer.load(save(None, tokenizer__json=content))


def test_kinds_that_lose_text_are_refused(save):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    with pytest.raises(RequestError, match="byte-level BPE and SentencePiece"):
        Tokenizer.load(save(Backend(models.WordLevel({"a": 0}, unk_token="a"))))


def test_vocabulary_for_grammars(gpt):
    vocabulary = gpt.vocabulary(512)
    assert vocabulary.size == 512 and vocabulary.token_bytes is gpt.token_bytes
    assert vocabulary.encode("hello") == gpt.encode("hello")


def test_truncation_in_the_file_is_ignored(save, byte_level_backend):
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(byte_level_backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=32)
    assert (
        Tokenizer.load(save(backend)).decode(Tokenizer.load(save(backend)).encode("hello world " * 9))
        == "hello world " * 9
    )


def test_decode_ignores_ids_outside_the_vocabulary_and_replaces_broken_bytes(gpt):
    half = gpt.encode("東")[:1]
    assert gpt.decode([*half, 10**6, -1]) == "\ufffd"


def test_cache_is_bounded_by_entries_and_characters():
    cache = SegmentCache(max_entries=3, max_chars=100)
    for n in range(5):
        cache.put((str(n), False), (n,))
    assert len(cache) == 3 and cache.get(("0", False)) is None and cache.get(("4", False)) == (4,)
    cache.put(("x" * 90, False), ())
    assert cache.get(("x" * 90, False)) is None
    for n in range(20):
        cache.put((f"{n}" * 24, True), ())
    assert sum(len(text) for text, _ in cache._entries) <= 100


def test_cached_ids_are_not_shared_with_the_caller(gpt):
    gpt.encode("hello").append(-5)
    assert -5 not in gpt.encode("hello")
