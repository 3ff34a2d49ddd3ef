"""`stemma grammar check`, and the tokenizers that it takes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from stemma.backend.grammar import command
from stemma.backend.grammar.command import SPLITS, load_vocabulary, main
from stemma.lang.errors import RequestError


@pytest.fixture
def tiktoken_file(tmp_path: Path) -> Path:
    words = [*(bytes([b]) for b in range(256)), b"he", b"ll", b"hell", b" w", b"12"]
    path = tmp_path / "tiny_cl100k.tiktoken"
    path.write_bytes(b"\n".join(base64.b64encode(word) + b" %d" % i for i, word in enumerate(words)) + b"\n")
    return path


def text_of(vocab, ids: list[int]) -> bytes:
    return b"".join(vocab.token_bytes[i] for i in ids)


def test_a_tiktoken_file_becomes_a_vocabulary(tiktoken_file: Path):
    vocab = load_vocabulary(tiktoken_file)
    ids = vocab.encode("hello w 12<|endoftext|>")
    assert text_of(vocab, ids) == b"hello w 12<|endoftext|>"
    assert ids[:2] == [258, ord("o")]
    assert vocab.eos_ids == {100_257} and vocab.token_bytes[100_257] is None
    assert vocab.size == 100_288  # 100,277 ids with all special tokens, padded to a multiple of 64


def test_the_split_pattern_is_told_by_name_or_by_hand(tiktoken_file: Path, tmp_path: Path):
    renamed = tmp_path / "tiny.tiktoken"
    renamed.write_bytes(tiktoken_file.read_bytes())
    with pytest.raises(RequestError, match="give --pattern with one of o200k, cl100k, qwen"):
        load_vocabulary(renamed)
    assert load_vocabulary(renamed, "qwen").encode("12") == [ord("1"), ord("2")]
    assert load_vocabulary(renamed, "cl100k").encode("12") == [260]
    by_hand = load_vocabulary(renamed, r"[a-z]+|\s|\d+")
    assert by_hand.encode("12") == [260]
    assert by_hand.eos_ids == {261}
    with pytest.raises(RequestError, match="cannot be read with"):
        load_vocabulary(renamed, "(")


@pytest.mark.parametrize("name", SPLITS)
def test_the_patterns_keep_every_character(name: str, tiktoken_file: Path):
    vocab = load_vocabulary(tiktoken_file, name)
    text = "It's 2024: naïve ÉCOLE's\r\n\n  東京 x=1/2 \t{}\"end\"  "
    assert text_of(vocab, vocab.encode(text)) == text.encode()


def test_a_file_that_is_no_vocabulary_is_named(tmp_path: Path):
    broken = tmp_path / "o200k.tiktoken"
    for content, message in ((b"aGU= 1\nno rank\n", r":2 is not a base64 token"), (b"\n", "holds no tokens")):
        broken.write_bytes(content)
        with pytest.raises(RequestError, match=message):
            load_vocabulary(broken)
    with pytest.raises(RequestError, match="no such directory or file"):
        load_vocabulary(tmp_path / "nowhere")


def test_a_hugging_face_directory_becomes_a_vocabulary(tiny_model: Path):
    vocab = load_vocabulary(tiny_model)
    assert text_of(vocab, vocab.encode('{"a": 1}')) == b'{"a": 1}'
    assert vocab.eos_ids and vocab.size >= len(vocab.token_bytes)


def test_check_prints_one_json_object(tiny_model: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(command, "checker", _scripted)
    schemas = tmp_path / "schemas.jsonl"
    lines = [
        {"name": "one", "schema": {"texts": ["1"]}, "tests": [{"instance": 1, "valid": True}]},
        {"name": "two", "schema": {"refuse": "never"}, "tests": []},
        {"name": "three", "schema": {"texts": []}, "tests": []},
    ]
    schemas.write_text("\n".join(map(json.dumps, lines)))
    assert main(["check", str(schemas), "--tokenizer", str(tiny_model), "--limit", "2", "--progress"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["backend"], found["schemas"], found["passed"], found["refused"]) == ("native", 2, 1, 1)
    assert found["failures"] == [{"name": "two", "why": "refused: never"}]
    assert [line.split()[-1] for line in err.splitlines()] == ["passed", "never"]


def _scripted(backend: str, tokenizer: str, pattern: str | None):
    from tests.grammar_tools.fakes import scripted_handler

    assert (backend, pattern) == ("native", None) and Path(tokenizer).is_dir()
    return scripted_handler()


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RequestError, match="no such file"):
        main(["check", str(tmp_path / "x"), "--tokenizer", "t"])


def test_help_teaches_the_format_and_the_rules(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    text = capsys.readouterr().out
    for part in ('"tests": [{"instance"', "--backend", "forced_share", "examples:", ".tiktoken"):
        assert part in text
