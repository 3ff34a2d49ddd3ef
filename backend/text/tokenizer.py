"""Text to ids and back, without surprises: user text never becomes a special token, every id has exact bytes.

`Tokenizer` wraps the `tokenizers` library. Three things are done here and not there: special tokens are found only
where a marker allows them, the SentencePiece dummy prefix appears only at the start of a sequence, and decoding goes
through one table of bytes, so that streaming, stop strings and grammars all agree on what a token says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from stemma.backend.grammar.base import Vocabulary
from stemma.backend.text.segment_cache import SegmentCache
from stemma.backend.text.token_bytes import table_of_bytes
from stemma.lang.errors import RequestError

Piece = tuple[str, bool]  # (text, special tokens are recognised in it)


class Tokenizer:
    """One model's tokenizer. Thread-safe: nothing is toggled after `load`."""

    def __init__(self, spec: dict[str, Any], settings: ModelSettings) -> None:
        spec = dict(spec, truncation=None, padding=None)
        bare, self._prefix_scheme = without_dummy_prefix(spec)
        self._plain = _backend(bare)
        self._at_start = self._plain if self._prefix_scheme == "never" else _backend(spec)
        self._cache = SegmentCache()

        added = {t["id"]: t for t in spec.get("added_tokens") or ()}
        self._special = {i: t["content"] for i, t in added.items() if t.get("special")}
        self._special_id = {text: i for i, text in self._special.items()}
        self._strips = {i: (bool(t.get("lstrip")), bool(t.get("rstrip"))) for i, t in added.items()}
        longest_first = sorted(self._special_id, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

        self.token_bytes: list[bytes | None] = table_of_bytes(spec, self._plain.get_vocab(with_added_tokens=True))
        self.vocab_size = len(self.token_bytes)
        self.special_ids = frozenset(self._special)
        self.bos_id, self.add_bos = self._bos(spec, settings)
        self.eos_ids = self._eos(settings)
        self._rendered: list[bytes] | None = None

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """From a directory in Hugging Face form. Raises RequestError naming the file that is missing or broken."""
        model_dir = Path(model_dir)
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise RequestError(
                f"no tokenizer at {path}; the model directory must hold tokenizer.json. If the model has only a "
                "SentencePiece or vocab.json tokenizer, load it once with transformers.AutoTokenizer and call "
                "save_pretrained on that directory",
                param="model_path",
            )
        return cls(read_json(path), ModelSettings.load(model_dir))

    # Encoding

    def encode(self, text: str, *, special: bool = False, start: bool = False) -> list[int]:
        """Ids of `text`, without BOS. Special tokens written in it are recognised only with `special=True`.

        `start=True` says that the text begins a sequence: a SentencePiece tokenizer then adds its dummy prefix space.
        """
        return self.encode_pieces([(text, special)], start=start)

    def encode_pieces(self, pieces: Iterable[Piece], *, start: bool = False) -> list[int]:
        """Ids of the concatenated pieces, special tokens recognised only inside pieces marked True.

        Whatever lies between two special tokens is tokenised as one segment, across the borders of pieces.
        """
        ids: list[int] = []
        prefix = start
        for segment in self._segments(pieces):
            if isinstance(segment, int):
                ids.append(segment)
                prefix = self._prefix_scheme == "always"
            else:
                ids += self._encode_segment(segment, prefix)
        return ids

    def _segments(self, pieces: Iterable[Piece]) -> list[str | int]:
        """Plain texts (never adjacent, never empty) and special ids, in order."""
        found: list[str | int] = []
        plain: list[str] = []
        strip_next = False

        def close(strip_right: bool = False) -> None:
            text = "".join(plain)
            plain.clear()
            text = text.lstrip() if strip_next else text
            text = text.rstrip() if strip_right else text
            if text:
                found.append(text)

        for text, marker in _joined(pieces):
            end = 0
            if marker and self._special_pattern is not None:
                for match in self._special_pattern.finditer(text):
                    token = self._special_id[match.group()]
                    strips_left, strips_right = self._strips[token]
                    plain.append(text[end : match.start()])
                    close(strips_left)
                    found.append(token)
                    strip_next, end = strips_right, match.end()
            plain.append(text[end:])
        close()
        return found

    def _encode_segment(self, text: str, prefix: bool) -> Sequence[int]:
        key = (text, prefix and self._at_start is not self._plain)
        ids = self._cache.get(key)
        if ids is None:
            backend = self._at_start if key[1] else self._plain
            ids = tuple(backend.encode(text, add_special_tokens=False).ids)
            self._cache.put(key, ids)
        return ids

    # Decoding

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text that these ids stand for inside a longer text. Broken UTF-8 becomes U+FFFD."""
        table = self.token_bytes if skip_special else self.rendered_bytes
        size = self.vocab_size
        return b"".join(table[i] or b"" for i in ids if 0 <= i < size).decode("utf-8", "replace")

    @property
    def rendered_bytes(self) -> list[bytes]:
        """`token_bytes` with special tokens as their text: what is shown when they are not skipped."""
        if self._rendered is None:
            self._rendered = [
                self._special.get(i, "").encode() if token is None else token
                for i, token in enumerate(self.token_bytes)
            ]
        return self._rendered

    def special_text(self, token_id: int) -> str | None:
        """The text of a special token, None for any other id."""
        return self._special.get(token_id)

    def special_id(self, text: str) -> int | None:
        """The id of the special token with this text, None if there is none."""
        return self._special_id.get(text)

    def vocabulary(self, logits_size: int) -> Vocabulary:
        """What the grammar engine needs: bytes of every token, EOS, and the canonical encoding."""
        return Vocabulary(self.token_bytes, logits_size, self.eos_ids, self.encode)

    # BOS and EOS

    def _id_of(self, text: str | None) -> int | None:
        return None if text is None else self._plain.token_to_id(text)

    def _bos(self, spec: dict[str, Any], settings: ModelSettings) -> tuple[int | None, bool]:
        """The tokenizer's own answer is what its post-processor puts first; `add_bos_token` overrules it."""
        bos = self._id_of(settings.bos_token)
        if bos is None:
            bos = settings.bos_token_id
        first = _backend(spec).encode("a").ids[:1] if spec.get("post_processor") else []
        if bos is None and first and first[0] in self._special:
            bos = first[0]
        adds = bos is not None and first == [bos]
        if settings.add_bos_token is not None:
            adds = settings.add_bos_token
        return bos, adds and bos is not None

    def _eos(self, settings: ModelSettings) -> frozenset[int]:
        ids = set(settings.eos_token_ids)
        named = self._id_of(settings.eos_token)
        return frozenset(ids if named is None else ids | {named})


class ModelSettings:
    """What the model's JSON files say about special tokens: tokenizer_config, generation_config, config."""

    def __init__(self, tokenizer_config: dict[str, Any], generation: dict[str, Any], config: dict[str, Any]) -> None:
        self.bos_token = token_text(tokenizer_config.get("bos_token"))
        self.eos_token = token_text(tokenizer_config.get("eos_token"))
        add = tokenizer_config.get("add_bos_token")
        self.add_bos_token: bool | None = add if isinstance(add, bool) else None
        nested = config.get("text_config")
        sources = [generation, config, nested if isinstance(nested, dict) else {}]
        self.bos_token_id = next((i for s in sources for i in _ids(s.get("bos_token_id"))), None)
        self.eos_token_ids = [i for s in sources for i in _ids(s.get("eos_token_id"))]

    @classmethod
    def load(cls, model_dir: Path) -> ModelSettings:
        names = ("tokenizer_config.json", "generation_config.json", "config.json")
        return cls(*(read_json(model_dir / n) if (model_dir / n).is_file() else {} for n in names))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; RequestError naming the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}", param="model_path") from None
    if not isinstance(value, dict):
        raise RequestError(f"{path} must hold a JSON object, not {type(value).__name__}", param="model_path")
    return value


def token_text(value: Any) -> str | None:
    """A token in tokenizer_config.json is a string or an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def without_dummy_prefix(spec: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The same tokenizer without its dummy prefix, and when it would have added one: never, first or always."""
    scheme = "never"

    def walk(part: Any) -> Any:
        nonlocal scheme
        if not isinstance(part, dict):
            return part
        kind = part.get("type")
        if kind == "Sequence":
            key = "normalizers" if "normalizers" in part else "pretokenizers"
            inner = [walk(p) for p in part[key]]
            return dict(part, **{key: [p for p in inner if p is not None]})
        if kind == "Prepend":
            scheme = "always"
            return None
        if kind == "Metaspace":
            own = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
            scheme = scheme if own == "never" else own
            return dict({k: v for k, v in part.items() if k != "add_prefix_space"}, prepend_scheme="never")
        if kind == "ByteLevel" and part.get("add_prefix_space"):
            scheme = "always"
            return dict(part, add_prefix_space=False)
        return part

    bare = dict(spec, normalizer=walk(spec.get("normalizer")), pre_tokenizer=walk(spec.get("pre_tokenizer")))
    return bare, scheme


def _backend(spec: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises plain Exception
        raise RequestError(f"tokenizer.json cannot be used: {error}", param="model_path") from None
    backend.encode_special_tokens = True  # special tokens written in a text are plain text
    return backend


def _joined(pieces: Iterable[Piece]) -> Iterable[Piece]:
    """Adjacent pieces of the same kind as one."""
    texts: list[str] = []
    kind = False
    for text, marker in pieces:
        if texts and marker != kind:
            yield "".join(texts), kind
            texts = []
        kind = marker
        texts.append(text)
    if texts:
        yield "".join(texts), kind


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
