"""Ids to text, a few at a time, never showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Incremental decoder. The texts returned, joined, equal one decoding of all the bytes.

    `token_bytes` is `Tokenizer.token_bytes` (special tokens are skipped) or `Tokenizer.rendered_bytes` (shown).
    """

    __slots__ = ("_decoder", "_table")

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self._table = token_bytes
        self._decoder = _UTF8("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The new text. Bytes of an unfinished character wait for the next call."""
        table = self._table
        size = len(table)
        return self.push_bytes(b"".join(table[i] or b"" for i in ids if i < size))

    def push_bytes(self, data: bytes | bytearray) -> str:
        """The same for bytes."""
        if data.isascii() and not self._decoder.buffer:
            return data.decode("ascii")  # most text; the incremental decoder is several times slower
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The end: an unfinished character becomes U+FFFD. Ready for another text afterwards."""
        return self._decoder.decode(b"", True)
