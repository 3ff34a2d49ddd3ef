"""Ids to text, a few at a time, never showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Incremental decoder. The texts returned, joined, equal one decoding of all the bytes.

    `token_bytes` is `Tokenizer.token_bytes` (special tokens are skipped) or `Tokenizer.rendered_bytes` (shown).
    """

    __slots__ = ("_decode", "_table")

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self._table = token_bytes
        self._decode = _UTF8("replace").decode

    def push(self, ids: Iterable[int]) -> str:
        """The new text. Bytes of an unfinished character wait for the next call."""
        table = self._table
        size = len(table)
        return self._decode(b"".join(table[i] or b"" for i in ids if i < size))

    def push_bytes(self, data: bytes | bytearray) -> str:
        """The same for bytes."""
        return self._decode(data)

    def flush(self) -> str:
        """The end: an unfinished character becomes U+FFFD. Ready for another text afterwards."""
        return self._decode(b"", True)
