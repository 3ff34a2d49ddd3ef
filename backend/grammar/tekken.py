"""Mistral's tekken vocabularies: one JSON file with the split pattern, the tokens as base64, and the control tokens.

The ids of control tokens come first; a token's id is its rank behind them. The file may hold more tokens than the model
has: those behind `default_vocab_size` are not used.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from stemma.backend.grammar.base import Vocabulary
from stemma.lang.errors import RequestError

_EOS, _EOS_ID = "</s>", 2  # where the file does not list its control tokens, as older ones do not


def tekken_vocabulary(path: Path, given: dict[str, Any]) -> Vocabulary:
    """From what the file holds. Raises RequestError naming the file and what is wrong with it."""
    import tiktoken

    config, vocab = given.get("config"), given.get("vocab")
    if not isinstance(config, dict) or not isinstance(vocab, list):
        raise RequestError(f"{path} is no tekken file: it needs 'config' and 'vocab'", param="tokenizer")
    size = _count(path, config, "default_vocab_size")
    controls = _count(path, config, "default_num_special_tokens")
    if not controls < size:
        raise RequestError(f"{path}: {controls} control tokens leave no room in {size} ids", param="tokenizer")
    ranks = {text: rank for rank, text in enumerate(_texts(path, vocab[: size - controls]))}
    try:
        encoding = tiktoken.Encoding(
            path.stem, pat_str=str(config.get("pattern")), mergeable_ranks=ranks, special_tokens={}
        )
    except ValueError as error:
        raise RequestError(f"{path} cannot be read with its pattern: {error}", param="tokenizer") from None
    token_bytes: list[bytes | None] = [None] * controls
    token_bytes.extend(ranks)
    return Vocabulary(
        token_bytes,
        size,
        frozenset([_eos(path, given, controls)]),
        lambda text: [controls + rank for rank in encoding.encode_ordinary(text)],
    )


def _count(path: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 0:
        raise RequestError(f"{path}: config.{name} must be a whole number, got {value!r}", param="tokenizer")
    return value


def _texts(path: Path, vocab: list[Any]) -> list[bytes]:
    texts: list[bytes] = []
    for i, entry in enumerate(vocab):
        try:
            text = base64.b64decode(entry["token_bytes"], validate=True)
            if entry["rank"] != i or not text:
                raise ValueError
        except (TypeError, KeyError, ValueError, binascii.Error):
            raise RequestError(
                f"{path}: vocab[{i}] must be a token with rank {i} and token_bytes in base64, got {entry!r:.80}",
                param="tokenizer",
            ) from None
        texts.append(text)
    if len(set(texts)) < len(texts) or not {bytes([b]) for b in range(256)} <= set(texts):
        raise RequestError(f"{path}: the vocab repeats tokens, or lacks some of the 256 bytes", param="tokenizer")
    return texts


def _eos(path: Path, given: dict[str, Any], controls: int) -> int:
    listed = given.get("special_tokens")
    if not listed:
        return _EOS_ID
    for entry in listed:
        if isinstance(entry, dict) and entry.get("token_str") == _EOS and type(entry.get("rank")) is int:
            if entry["rank"] < controls:
                return entry["rank"]
            break
    raise RequestError(f"{path}: special_tokens hold no {_EOS!r} with a rank below {controls}", param="tokenizer")
