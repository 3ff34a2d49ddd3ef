"""What a step needs to know on the GPU, in one pinned host buffer, sent in one copy.

Everything is int32. Sections have fixed places for a given `Layout`, so that a CUDA graph captured on views of the
device buffer can be replayed after the next copy. The slots of all rows come last: their number changes every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stemma.backend.core import Int32
from stemma.kernels.attention.work import FIELDS, MERGE_FIELDS

ALIGN = 64  # words; copies and loads of 16 bytes want aligned sections
RING = 2  # host buffers: one may still be read by the copy of the step before


def aligned(words: int) -> int:
    return -(-words // ALIGN) * ALIGN


@dataclass(frozen=True)
class Layout:
    """Sizes of the sections: tokens; draws (and tokens that the step before draws); items for few queries, items for
    many, merges; words for family attention."""

    tokens: int
    draws: int
    few: int
    many: int
    merges: int
    family: int = 0
    starts: dict[str, int] = field(init=False, compare=False, hash=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        at = 0
        for name, words in (
            ("ids", self.tokens),
            ("positions", self.tokens),
            ("out_slots", self.tokens),
            ("last", self.draws),
            ("relay_to", self.draws),
            ("relay_from", self.draws),
            ("few", self.few * FIELDS),
            ("many", self.many * FIELDS),
            ("merges", self.merges * MERGE_FIELDS),
            ("family", self.family),
        ):
            self.starts[name] = at
            at += aligned(words)
        self.starts["slots"] = at

    @property
    def head(self) -> int:
        """Words in front of the slots."""
        return self.starts["slots"]


class Staging:
    """A ring of pinned host buffers and one device buffer, which grow together."""

    def __init__(self, words: int, device: torch.device) -> None:
        self.device = device
        self.generation = 0  # counts device buffers: views of an older one are stale
        self._allocate(words)

    def _allocate(self, words: int) -> None:
        pin = self.device.type == "cuda"
        self.words = words
        self._hosts = [torch.empty(words, dtype=torch.int32, pin_memory=pin) for _ in range(RING)]
        self._arrays = [host.numpy() for host in self._hosts]
        self._sent: list[torch.cuda.Event | None] = [None] * RING
        self.buffer = torch.zeros(words, dtype=torch.int32, device=self.device)
        self._turn = 0
        self.generation += 1

    def begin(self, words: int) -> Int32:
        """The next host buffer, with room for so many words; waits until its last copy is done."""
        if words > self.words:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._allocate(max(words, 2 * self.words))
        self._turn = (self._turn + 1) % RING
        sent = self._sent[self._turn]
        if sent is not None:
            sent.synchronize()
        return self._arrays[self._turn]

    def send(self, words: int) -> None:
        """Copies the first words of the current host buffer, in stream order."""
        self.buffer[:words].copy_(self._hosts[self._turn][:words], non_blocking=True)
        if self.device.type == "cuda":
            event = self._sent[self._turn]
            if event is None:
                event = self._sent[self._turn] = torch.cuda.Event()
            event.record()

    def view(self, layout: Layout, name: str, size: int) -> Tensor:
        """A section on the device, `size` words of it."""
        start = layout.starts[name]
        return self.buffer[start : start + size]


def put(array: Int32, start: int, values: Int32, size: int) -> None:
    """values at `start`, zeros up to `size` words."""
    flat = values.reshape(-1)
    array[start : start + len(flat)] = flat
    array[start + len(flat) : start + size] = 0


def words_for(tokens: int, keys: int) -> int:
    """A buffer size that serves steps of that many tokens over so many keys in all."""
    return 6 * aligned(tokens) + aligned(2 * tokens * FIELDS) + aligned(tokens * MERGE_FIELDS) + 64 * ALIGN + keys
