"""Two small tokenizers, trained here: byte-level BPE in the style of GPT-2, and SentencePiece-style BPE."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "def main():\n    return {'answer': 42}\n\n",
    "Grüße aus Köln, naïve café – 東京とパリ 😀 user\nassistant\nsystem\n",
    "hello hello world world the the there then",
]


def byte_level() -> Tokenizer:
    tok = Tokenizer(models.BPE())
    pattern = Regex(r"\p{L}+| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+")
    tok.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"],
    )
    tok.train_from_iterator(CORPUS, trainer)
    tok.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tok


def sentencepiece(scheme: str) -> Tokenizer:
    """`scheme`: 'prepend' (Llama-2's normalizer), or a Metaspace prepend scheme: first, always, never."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁"]
    letters = sorted(set("".join(CORPUS).replace(" ", "").replace("\n", "")) - set("😀東京"))
    merges = [
        ("▁", "t"),
        ("▁t", "h"),
        ("▁th", "e"),
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("▁", "hello"),
    ]
    vocab = {p: i for i, p in enumerate(dict.fromkeys([*pieces, *letters, *("".join(m) for m in merges)]))}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "prepend":
        tok.normalizer = normalizers.Sequence(  # type: ignore[assignment]
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)  # type: ignore[assignment]
    tok.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    tok.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tok


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a model directory: the tokenizer and any JSON or text files given by name (`.` written as `__`)."""

    def write(tok: Tokenizer | None, **files: Any) -> Path:
        if tok is not None:
            tok.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name.replace("__", ".")).write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture(scope="session")
def byte_level_backend() -> Tokenizer:
    return byte_level()


@pytest.fixture(scope="session")
def sentencepiece_backend() -> Callable[[str], Tokenizer]:
    made: dict[str, Tokenizer] = {}
    return lambda scheme: made.setdefault(scheme, sentencepiece(scheme))
