"""The text of one generation as it grows: detokeniser and stop strings together."""

from __future__ import annotations

from collections.abc import Sequence

from stemma.backend.text.detokenize import Detokenizer
from stemma.backend.text.stops import StopChecker, StopMatch, split_at_cut


class TextStream:
    """Feed every generated token to `push`; take text with `new_text` (stream) and `text` (all so far).

    `new_text` holds back what a stop string may still take away and the bytes of an unfinished character; the parts,
    joined and ended with `new_text(final=True)`, equal `text()`.
    """

    __slots__ = ("_data", "_decoder", "_ids", "_sent", "_stops", "_table", "match")

    def __init__(
        self, token_bytes: Sequence[bytes | None], stops: tuple[str, ...] = (), no_stop_trim: bool = False
    ) -> None:
        self._table = token_bytes
        self._stops = StopChecker(stops, token_bytes, no_stop_trim) if stops else None
        self._decoder = Detokenizer(token_bytes)
        self._data = bytearray()
        self._ids: list[int] = []
        self._sent = 0
        self.match: StopMatch | None = None

    def push(self, token_id: int) -> StopMatch | None:
        """One more token. After a match nothing more may be pushed."""
        assert self.match is None, "the generation has stopped"
        self._ids.append(token_id)
        data = self._table[token_id] if token_id < len(self._table) else None
        if data:
            self._data += data
            if self._stops is not None:
                self.match = self._stops.push_bytes(data)
        return self.match

    def push_new(self, token_id: int) -> str:
        """`push` and `new_text` in one, for a stream without stop strings."""
        assert self._stops is None
        self._ids.append(token_id)
        data = self._table[token_id] if token_id < len(self._table) else None
        if not data:
            return self.new_text()
        buffer, sent = self._data, self._sent
        fresh = data if sent == len(buffer) else buffer[sent:] + data
        buffer += data
        self._sent = len(buffer)
        return self._decoder.push_bytes(fresh)

    @property
    def _safe(self) -> int:
        """Bytes that are certain to stay."""
        if self.match is not None:
            return self.match.cut
        return len(self._data) - (self._stops.held if self._stops is not None else 0)

    def new_text(self, final: bool = False) -> str:
        """Text not given out before. With `final`, everything that is left."""
        end = self._safe
        if final and self.match is None:
            end = len(self._data)
        text = self._decoder.push_bytes(self._data[self._sent : end]) if end > self._sent else ""
        self._sent = end
        return text + self._decoder.flush() if final else text

    def text(self) -> str:
        """All text so far, cut at the stop string."""
        end = self.match.cut if self.match is not None else len(self._data)
        return self._data[:end].decode("utf-8", "replace")

    def kept(self) -> tuple[int, str]:
        """How many of the pushed ids stay, and the text after them that must become literal tail."""
        if self.match is None:
            return len(self._ids), ""
        return split_at_cut(self._ids, self._table, self.match.cut)
