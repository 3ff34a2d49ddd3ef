"""Weights in huge pages: a decode step streams all of them, which with 4 KiB pages is thousands of page walks."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import torch
from torch import Tensor

HUGE = 2 << 20  # bytes of a huge page on x86-64 and most arm64 kernels
CHUNK = 16 * HUGE
ALIGN = 64


class Pages:
    """A bump allocator over chunks of anonymous memory that ask for huge pages. Memory lives as long as its tensors."""

    def __init__(self) -> None:
        self._chunk = np.empty(0, np.uint8)
        self._used = 0

    def place(self, tensor: Tensor) -> Tensor:
        """A copy of a contiguous CPU tensor in huge pages; the tensor itself where there are none."""
        size = tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return tensor
        if self._used + size > len(self._chunk):
            self._open(size)
        room = self._chunk[self._used : self._used + size]
        self._used += -(-size // ALIGN) * ALIGN
        placed = torch.from_numpy(room).view(tensor.dtype).view(tensor.shape)
        return placed.copy_(tensor)

    def _open(self, size: int) -> None:
        total = max(CHUNK, -(-size // HUGE) * HUGE) + HUGE
        memory = mmap.mmap(-1, total)
        with contextlib.suppress(OSError):  # a kernel without them: plain pages do
            memory.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(memory, np.uint8)
        start = -whole.__array_interface__["data"][0] % HUGE
        self._chunk, self._used = whole[start : start + total - HUGE], 0


_pages = Pages()


def place(tensor: Tensor) -> Tensor:
    """`Pages.place` in the process's own pages."""
    return _pages.place(tensor.contiguous())
