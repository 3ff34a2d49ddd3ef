"""Stop strings, found in bytes as tokens arrive, and the cut that follows a match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string was found. Offsets count the bytes generated since the checker was made.

    `cut` is where the kept text ends: before the stop string, or after it with `no_stop_trim`.
    """

    stop: str
    start: int
    end: int
    cut: int


class StopChecker:
    """Watches one generation. Feed every token; O(longest stop + token) work for each.

    Of several stop strings the one that is complete first wins, of two that end together the longer: the same answer
    however the text was split into tokens. Stop strings are whole characters, so a match never splits one.
    """

    __slots__ = ("_beginnings", "_keep", "_lasts", "_stops", "_table", "_tail", "length", "no_stop_trim")

    def __init__(self, stops: tuple[str, ...], token_bytes: Sequence[bytes | None], no_stop_trim: bool = False) -> None:
        self._stops = [(s.encode(), s) for s in stops]
        self._lasts = frozenset(b[-1] for b, _ in self._stops)
        self._beginnings = frozenset(b[:n] for b, _ in self._stops for n in range(1, len(b)))
        self._keep = max((len(b) for b, _ in self._stops), default=1) - 1
        self._table = token_bytes
        self._tail = b""
        self.length = 0  # bytes seen
        self.no_stop_trim = no_stop_trim

    def push(self, token_id: int) -> StopMatch | None:
        """Look at one more token. After a match the checker is spent."""
        table = self._table
        data = table[token_id] if token_id < len(table) else None
        return self.push_bytes(data) if data else None

    def push_bytes(self, data: bytes) -> StopMatch | None:
        tail = self._tail
        window = tail + data
        base = self.length - len(tail)
        self.length += len(data)
        self._tail = window[-self._keep :] if self._keep else b""
        if self._lasts.isdisjoint(data):
            return None
        best: tuple[int, int, str] | None = None  # (end, start, stop): the smallest is the winner
        for stop, text in self._stops:
            # A match inside the old tail would have been found before, so any match ends in the new bytes.
            at = window.find(stop)
            if at >= 0 and (best is None or (at + len(stop), at) < best[:2]):
                best = (at + len(stop), at, text)
        if best is None:
            return None
        end, start, text = best
        return StopMatch(text, base + start, base + end, base + (end if self.no_stop_trim else start))

    @property
    def held(self) -> int:
        """How many of the last bytes may be the beginning of a stop string: a stream must not show them yet."""
        tail, beginnings = self._tail, self._beginnings
        for n in range(len(tail), 0, -1):
            if tail[-n:] in beginnings:
                return n
        return 0


def split_at_cut(ids: Sequence[int], token_bytes: Sequence[bytes | None], cut: int) -> tuple[int, str]:
    """How many of `ids` lie wholly inside the first `cut` bytes, and the text left over, which becomes literal tail.

    A token that would leave the remainder beginning inside a character is given up too, so that the remainder is text.
    """
    ends = [0]
    pieces: list[bytes] = []
    for token in ids:
        data = (token_bytes[token] if token < len(token_bytes) else None) or b""
        if ends[-1] + len(data) > cut:
            pieces.append(data)
            break
        ends.append(ends[-1] + len(data))
        pieces.append(data)
    kept = b"".join(pieces)[:cut]
    for n in range(len(ends) - 1, -1, -1):
        try:
            return n, kept[ends[n] :].decode()
        except UnicodeDecodeError:
            continue
    whole = len(ends) - 1  # the model itself wrote broken UTF-8
    return whole, kept[ends[whole] :].decode("utf-8", "replace")
