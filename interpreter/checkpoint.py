"""What a batch has done so far, in a file of JSON lines, so that a later run goes on where this one stopped.

The first line names the program; each further line is one item that succeeded: its index, a digest of its arguments,
what the program returned, the values that its names had, the text behind them, and what it spent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from stemma.interpreter.state import ProgramState
from stemma.lang.errors import ProgramError, RequestError

VERSION = 1
_UNKEPT = {"unkept": True}  # stands for a value that JSON cannot hold


class BatchRecord:
    """An item of a batch that an earlier run has done: read as a state is, as far as a checkpoint keeps it."""

    def __init__(self, kept: dict[str, Any]) -> None:
        self._kept = kept

    def __repr__(self) -> str:
        return f"<BatchRecord of item {self._kept['item']}, names: {', '.join(self._kept['values']) or '-'}>"

    def __contains__(self, name: object) -> bool:
        return name in self._kept["values"]

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def get_var(self, name: str, timeout: float | None = None) -> Any:
        """The value of a name. Raises `KeyError`, and `ProgramError` for a value that JSON could not hold."""
        return self._value("value", name)

    def raw(self, name: str, timeout: float | None = None) -> Any:
        """The text behind a name, before any type was applied."""
        return self._value("raw", name)

    def _value(self, which: str, name: str) -> Any:
        values = self._kept["values"]
        if name not in values:
            known = ", ".join(map(repr, values)) or "none"
            raise KeyError(f"the record of item {self._kept['item']} has no value named {name!r}; names: {known}")
        value = values[name][which]
        if value == _UNKEPT:
            raise ProgramError(
                f"the checkpoint keeps only what JSON can hold, and {name!r} is not: read .raw({name!r})"
            )
        return value

    def text(self, timeout: float | None = None) -> str:
        """All text of the program's first branch."""
        return self._kept["text"]

    def usage(self, timeout: float | None = None) -> dict[str, float]:
        """What the program spent when it ran."""
        return dict(self._kept["usage"])

    def error(self, timeout: float | None = None) -> None:
        """None: only items that succeeded are kept."""
        return None

    def sync(self, timeout: float | None = None) -> None:
        """Nothing is left to wait for."""
        return None

    @property
    def ret_value(self) -> Any:
        """What the program returned. Raises `ProgramError` if JSON could not hold it."""
        if self._kept["returned"] == _UNKEPT:
            raise ProgramError("the checkpoint keeps only what JSON can hold, and what the program returned is not")
        return self._kept["returned"]


class Checkpoint:
    """The file, opened for a batch of these items. Raises `RequestError` when it belongs to another batch."""

    def __init__(
        self, path: str | os.PathLike[str], program: str, items: Sequence[tuple[tuple[Any, ...], Any]]
    ) -> None:
        self.path = Path(path)
        self._digests = [_digest(args, kwargs) for args, kwargs in items]
        self.kept: dict[int, BatchRecord] = {}
        head = {"checkpoint": VERSION, "program": program}
        whole = self._load(head) if self.path.exists() else 0
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._file.truncate(whole)  # a line that an interrupted run left half written
        if not whole:
            self._write(head)

    def _load(self, head: dict[str, Any]) -> int:
        """Read what was kept. Returns how many bytes are whole lines."""
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                entry: Any = None
                try:
                    entry = json.loads(line)
                    good = isinstance(entry, dict) and (entry == head if number == 1 else "item" in entry)
                except ValueError:
                    good = False
                if not good:
                    raise RequestError(
                        f"{self.path}, line {number}: not a checkpoint of {head['program']}, got {line[:80]!r}; "
                        "name another file, or remove this one",
                        param="checkpoint",
                    )
                if number > 1:
                    self._take(entry)
                whole += len(line)
        return whole

    def _take(self, entry: dict[str, Any]) -> None:
        i = entry["item"]
        if i >= len(self._digests) or entry["arguments"] != self._digests[i]:
            what = "there is no such item" if i >= len(self._digests) else "its arguments are others now"
            raise RequestError(f"{self.path} is of another batch: item {i}: {what}", param="checkpoint")
        self.kept[i] = BatchRecord(entry)

    def keep(self, i: int, state: ProgramState) -> None:
        """Write one item that succeeded."""
        values = {
            name: {"value": _plain(state.get_var(name)), "raw": _plain(state.raw(name))} for name in state._values
        }
        entry = {"item": i, "arguments": self._digests[i], "returned": _plain(state._run.result), "values": values}
        self._write({**entry, "text": state.text(), "usage": state.usage()})

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    """The value if JSON brings it back as it is."""
    try:
        return value if json.loads(json.dumps(value)) == value and not isinstance(value, tuple) else _UNKEPT
    except (TypeError, ValueError):
        return _UNKEPT


def _digest(args: tuple[Any, ...], kwargs: Any) -> str:
    """Tells one item's arguments from another's, across processes."""
    text = json.dumps([args, kwargs], sort_keys=True, default=_stable)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _stable(value: Any) -> str:
    shown = repr(value)
    if " at 0x" in shown:
        raise RequestError(
            f"a checkpoint needs arguments that look the same in every run, got {shown:.80}", param="checkpoint"
        )
    return shown
