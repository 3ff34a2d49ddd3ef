"""Vocabularies of each family, made here, in front of grammars: exact bytes, canonical tokens that go through, and
special tokens that no text matches."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.command import load_vocabulary
from stemma.backend.grammar.compiler import compile_constraint
from stemma.lang.errors import RequestError
from stemma.lang.params import Constraint

WORDS = [b"he", b"ll", b"hell", b"hello", b" w", b" wor", b"ld", b'{"', b'":', b'"}', b"na", b"\xc3\xaf", b"12", b": "]
TEXTS = ["hello world", "  a  b", "naïve 東京 😀", '{"name": "naïve"}', "12\n\t</s><s>", "▂ _"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def byte_level(path: Path) -> Path:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tok.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["</s>", "<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(TEXTS * 3, trainer)
    tok.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps({"eos_token_id": tok.token_to_id("</s>"), "vocab_size": 330}))
    return path


def sentencepiece(path: Path, *, fallback: bool = True) -> Path:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256) if fallback)]
    letters = ["▁", *'helowrdabn{}":,_ïn1276543098amei</s>']
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("▁", "w"), ("{", '"'), ('"', ":"), ("▁", "▁"), ("n", "a")]
    vocab = {p: i for i, p in enumerate(dict.fromkeys([*pieces, *letters, *("".join(m) for m in merges)]))}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback))
    tok.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tok.decoder = decoders.Sequence(parts)  # type: ignore[assignment]
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    tok.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    return path


def tiktoken_file(path: Path) -> Path:
    words = [*(bytes([b]) for b in range(256)), *WORDS]
    file = path / "tiny_cl100k.tiktoken"
    file.write_bytes(b"\n".join(base64.b64encode(word) + b" %d" % i for i, word in enumerate(words)))
    return file


def tekken(path: Path, **changes: Any) -> Path:
    words = [*(bytes([b]) for b in range(256)), *WORDS, b"beyond the model's size"]
    given = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            "num_vocab_tokens": len(words),
            "default_vocab_size": 10 + len(words) - 1,
            "default_num_special_tokens": 10,
            "version": "v3",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(w).decode(), "token_str": w.decode(errors="replace")}
            for i, w in enumerate(words)
        ],
        "special_tokens": [
            {"rank": i, "token_str": s, "is_control": True} for i, s in enumerate(["<unk>", "<s>", "</s>"])
        ],
    }
    file = path / "tekken.json"
    file.write_text(json.dumps(given | changes))
    return file


FAMILIES = {
    "byte-level BPE": byte_level,
    "SentencePiece": sentencepiece,
    "tiktoken": tiktoken_file,
    "tekken": tekken,
    "tekken in a directory": lambda path: tekken(path).parent,
}


@pytest.fixture(scope="module", params=FAMILIES)
def vocab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return load_vocabulary(FAMILIES[request.param](tmp_path_factory.mktemp("tokenizer")))


def spelled(vocab: Vocabulary, ids: list[int]) -> bytes:
    return b"".join(vocab.token_bytes[i] or b"" for i in ids)


def allowed(row: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_spell_the_text_exactly(vocab: Vocabulary, text: str) -> None:
    ids = vocab.encode(text)
    assert spelled(vocab, ids) == text.encode()
    assert all(vocab.token_bytes[i] is not None for i in ids)


@pytest.mark.parametrize("text", TEXTS)
def test_canonical_tokens_go_through_a_grammar_of_their_text(vocab: Vocabulary, text: str) -> None:
    for constraint in (Constraint("choices", (text, text + "!")), Constraint("regex", r"(?s).*")):
        matcher = compile_constraint(constraint, vocab).matcher()
        assert all(matcher.accept(token) for token in vocab.encode(text))
        assert matcher.is_complete()


def test_special_tokens_are_never_matched_by_text(vocab: Vocabulary) -> None:
    special = {i for i, token in enumerate(vocab.token_bytes) if token is None}
    assert special >= vocab.eos_ids and special
    grammar = compile_constraint(Constraint("regex", r"(?s)(</s>|<s>|<unk>|<\|endoftext\|>|.)*"), vocab)
    matcher = grammar.matcher()
    for token in vocab.encode("a</s>"):
        assert allowed(matcher.mask()) & special == vocab.eos_ids  # the end, which any text may have
        assert matcher.accept(token)
    forced = compile_constraint(Constraint("regex", "</s>x"), vocab).matcher()
    assert not allowed(forced.mask()) & special


def test_a_schema_is_written_through(vocab: Vocabulary) -> None:
    matcher = compile_constraint(Constraint("json_schema", json.dumps(SCHEMA)), vocab).matcher()
    rest = '{"name": "naïve 東", "n": 12}'.encode()
    while rest:
        fitting = [i for i in allowed(matcher.mask()) if (t := vocab.token_bytes[i]) and rest.startswith(t)]
        longest = max(fitting, key=lambda i: len(vocab.token_bytes[i] or b""))
        assert matcher.accept(longest)
        rest = rest.removeprefix(vocab.token_bytes[longest] or b"")
    assert matcher.is_complete() and matcher.is_finished()


def test_bytes_of_a_character_are_tokens_of_their_own_with_byte_fallback(tmp_path: Path) -> None:
    vocab = load_vocabulary(sentencepiece(tmp_path))
    matcher = compile_constraint(Constraint("regex", "[京-東]!?"), vocab).matcher()
    fallback = {vocab.token_bytes[i]: i for i in range(3, 259)}
    for byte in "東".encode():
        assert not matcher.is_complete()
        assert matcher.accept(fallback[bytes([byte])])
    assert matcher.is_complete()


def test_without_byte_fallback_what_cannot_be_spelled_is_not_begun(tmp_path: Path) -> None:
    vocab = load_vocabulary(sentencepiece(tmp_path, fallback=False))
    matcher = compile_constraint(Constraint("choices", ("hell", "h東")), vocab).matcher()
    texts = {vocab.token_bytes[i] for i in allowed(matcher.mask())}
    assert texts == {b"h", b"he", b"hell"} or len(texts) == 1
    with pytest.raises(ValueError, match="cannot spell any match"):
        compile_constraint(Constraint("regex", "東"), vocab)


def test_the_dummy_prefix_is_no_part_of_a_generation(tmp_path: Path) -> None:
    vocab = load_vocabulary(sentencepiece(tmp_path))
    assert spelled(vocab, vocab.encode("hello")) == b"hello"
    matcher = compile_constraint(Constraint("regex", "hello"), vocab).matcher()
    space = {i for i, token in enumerate(vocab.token_bytes) if token and token.startswith(b" ")}
    assert not allowed(matcher.mask()) & space


def test_tekken_ids_stand_behind_the_control_tokens(tmp_path: Path) -> None:
    vocab = load_vocabulary(tekken(tmp_path))
    assert vocab.eos_ids == {2} and vocab.size == len(vocab.token_bytes) == 10 + 256 + len(WORDS)
    assert vocab.token_bytes[:10] == [None] * 10 and vocab.token_bytes[10 + 97] == b"a"
    assert vocab.encode("hello") == [10 + 256 + 3]
    older = load_vocabulary(tekken(tmp_path, special_tokens=None))
    assert older.eos_ids == {2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "no tekken file"),
        ({"vocab": [{"rank": 1, "token_bytes": "YQ=="}]}, r"vocab\[0\] must be a token with rank 0"),
        ({"vocab": [{"rank": 0, "token_bytes": "YQ=="}]}, "lacks some of the 256 bytes"),
        ({"config": {"default_vocab_size": "x"}}, "default_vocab_size must be a whole number, got 'x'"),
        ({"config": {"default_vocab_size": 5, "default_num_special_tokens": 9}}, "leave no room"),
        ({"special_tokens": [{"rank": 1, "token_str": "<s>"}]}, "hold no '</s>'"),
    ],
)
def test_a_broken_tekken_file_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load_vocabulary(tekken(tmp_path, **changes))
    assert "tekken.json" in str(caught.value)
