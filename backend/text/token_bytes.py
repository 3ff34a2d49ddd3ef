"""The exact bytes that each token stands for inside a text, read from tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stemma.lang.errors import RequestError

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def table_of_bytes(spec: Mapping[str, Any], vocab: Mapping[str, int]) -> list[bytes | None]:
    """One entry for each id up to the largest; None for special tokens and for ids without a token.

    Byte-level BPE tokens go through the byte alphabet; SentencePiece tokens turn U+2581 into a space and `<0xNN>` into
    a byte. Added tokens stand for their text. Other kinds (WordPiece, word level) lose white space: RequestError.
    """
    read = _reader(spec)
    table: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    added = {t["id"]: t for t in spec.get("added_tokens") or ()}
    for token, i in vocab.items():
        if i not in added:
            table[i] = read(token)
    for i, token in added.items():
        if 0 <= i < len(table):
            table[i] = None if token.get("special") else token["content"].encode()
    unknown = _unknown_id(spec, vocab)
    if unknown is not None:
        table[unknown] = None
    return table


def byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte: Latin-1 where printable, then from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _reader(spec: Mapping[str, Any]) -> Callable[[str], bytes]:
    parts = [p for key in ("normalizer", "pre_tokenizer", "decoder") for p in _parts(spec.get(key))]
    kinds = {p.get("type") for p in parts}
    if "ByteLevel" in kinds:
        return _read_byte_level
    spaced = "Metaspace" in kinds or any(
        p.get("type") == "Replace" and "\u2581" in (p.get("content"), *(p.get("pattern") or {}).values()) for p in parts
    )
    if spaced:
        fallback = bool((spec.get("model") or {}).get("byte_fallback")) or "ByteFallback" in kinds
        return _read_sentencepiece_with_bytes if fallback else _read_sentencepiece
    kind = (spec.get("model") or {}).get("type")
    raise RequestError(
        f"tokenizer.json is of a kind that does not keep text exactly (model {kind!r}); "
        "byte-level BPE and SentencePiece tokenizers are supported",
        param="model_path",
    )


_ALPHABET = byte_alphabet()


def _read_byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[c] for c in token)
    except KeyError:  # not written in the byte alphabet
        return token.encode()


def _read_sentencepiece(token: str) -> bytes:
    return token.replace("\u2581", " ").encode()


def _read_sentencepiece_with_bytes(token: str) -> bytes:
    match = _FALLBACK.fullmatch(token)
    return bytes([int(match.group(1), 16)]) if match else _read_sentencepiece(token)


def _parts(part: Any) -> Iterator[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer or decoder, and all inside it."""
    if isinstance(part, Mapping):
        yield part
        for key in ("normalizers", "pretokenizers", "decoders"):
            for inner in part.get(key) or ():
                yield from _parts(inner)


def _unknown_id(spec: Mapping[str, Any], vocab: Mapping[str, int]) -> int | None:
    model = spec.get("model") or {}
    if isinstance(model.get("unk_id"), int):
        return model["unk_id"]
    unknown = model.get("unk_token")
    return vocab.get(unknown) if isinstance(unknown, str) else None
