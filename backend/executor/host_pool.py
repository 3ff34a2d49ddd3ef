"""The host side of the KV pool: keys and values of evicted tokens, in pinned memory, plain memory or a file."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stemma.backend.cache.kv_pool import KVPool
from stemma.backend.core import Int32
from stemma.lang.errors import RequestError

SETTLE = 0.2  # weight of a new measurement
TRIAL = 256  # tokens copied to measure


class HostPool:
    """See `cache.host.HostCopies` for the contract.

    One token's keys and values of all layers lie together: [host_slots, 2, layers, Hkv, D]. On CUDA the memory is
    pinned, and copies are enqueued on the current stream, one for each run of neighbouring host slots: call from the
    thread (with the stream) that launches steps. On CPU a copy is done when it returns.

    directory: where an unnamed file holds it all instead of memory; the system removes it when the process ends,
    however it ends. Raises RequestError when there is not enough memory or disk for `host_slots` tokens.
    """

    def __init__(
        self, pool: KVPool, host_slots: int, free_memory: int, directory: str | os.PathLike[str] | None = None
    ) -> None:
        """free_memory: bytes that it may take, where no directory is given."""
        self.host_slots = host_slots
        self._keys, self._values = pool.stacked()
        layers, _, heads, dim = self._keys.shape
        shape = (host_slots, 2, layers, heads, dim)
        self.nbytes = int(np.prod(shape)) * self._keys.element_size()
        self._cuda = self._keys.device.type == "cuda"
        self._file: mmap.mmap | None = None
        self._data = self._in_memory(shape, free_memory) if directory is None else self._on_disk(shape, Path(directory))
        self._fixed = self._each = 0.0
        self._measure()

    # -- storage ---------------------------------------------------------------------------------------------------

    def _in_memory(self, shape: tuple[int, ...], free: int) -> Tensor:
        if self.nbytes > free:
            raise RequestError(
                f"host_cache_tokens: {self.host_slots} tokens take {_gib(self.nbytes)} of memory, {_gib(free)} are "
                "free; give fewer, or a host_cache_path",
                param="host_cache_tokens",
            )
        try:
            return torch.empty(shape, dtype=self._keys.dtype, pin_memory=self._cuda)
        except RuntimeError as error:
            raise RequestError(
                f"host_cache_tokens: no {_gib(self.nbytes)} of memory can be {'pinned' if self._cuda else 'taken'}: "
                f"{error}; give fewer",
                param="host_cache_tokens",
            ) from None

    def _on_disk(self, shape: tuple[int, ...], directory: Path) -> Tensor:
        if not directory.is_dir():
            raise RequestError(
                f"host_cache_path must be an existing directory, got {directory}", param="host_cache_path"
            )
        free = shutil.disk_usage(directory).free
        if self.nbytes > free:
            raise RequestError(
                f"host_cache_path: {self.host_slots} tokens take {_gib(self.nbytes)}, {_gib(free)} are free in "
                f"{directory}; give fewer host_cache_tokens or another directory",
                param="host_cache_path",
            )
        try:
            with tempfile.TemporaryFile(dir=directory, prefix="stemma-kv-") as file:
                os.posix_fallocate(file.fileno(), 0, self.nbytes)  # a disk that fills up later must not kill us
                self._file = mmap.mmap(file.fileno(), self.nbytes)
        except OSError as error:
            raise RequestError(
                f"host_cache_path: cannot make a file in {directory}: {error}", param="host_cache_path"
            ) from None
        return torch.frombuffer(self._file, dtype=self._keys.dtype).view(shape)

    # -- copies ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def copy_out(self, slots: Int32, host: Int32) -> None:
        """See `HostCopies`."""
        at = torch.from_numpy(slots.astype(np.int64)).to(self._keys.device)
        gathered = torch.stack([self._keys.index_select(1, at), self._values.index_select(1, at)])  # [2, L, n, H, D]
        tokens = gathered.permute(2, 0, 1, 3, 4)
        if not self._cuda:
            self._data[torch.from_numpy(host.astype(np.int64))] = tokens
            return
        tokens = tokens.contiguous()
        for begin, end, to in _runs(host):
            self._data[to : to + end - begin].copy_(tokens[begin:end], non_blocking=True)

    @torch.inference_mode()
    def copy_in(self, host: Int32, slots: Int32) -> None:
        """See `HostCopies`."""
        began = time.perf_counter()
        self._copy_in(host, slots)
        if not self._cuda and len(host) >= TRIAL // 4:  # on CUDA it has only been enqueued
            each = max(time.perf_counter() - began - self._fixed, 0.0) / len(host)
            self._each += (each - self._each) * SETTLE

    def _copy_in(self, host: Int32, slots: Int32) -> None:
        device = self._keys.device
        if self._cuda:
            tokens = torch.empty((len(host), *self._data.shape[1:]), dtype=self._data.dtype, device=device)
            for begin, end, start in _runs(host):
                tokens[begin:end].copy_(self._data[start : start + end - begin], non_blocking=True)
        else:
            tokens = self._data[torch.from_numpy(host.astype(np.int64))]
        at = torch.from_numpy(slots.astype(np.int64)).to(device)
        self._keys.index_copy_(1, at, tokens[:, 0].transpose(0, 1))
        self._values.index_copy_(1, at, tokens[:, 1].transpose(0, 1))

    def copy_seconds(self, tokens: int) -> float:
        """Measured when the pool was made, and on CPU (where a file may have gone cold) by every longer copy since."""
        return self._fixed + tokens * self._each

    def _measure(self) -> None:
        """Copies one token and many to the padding slot."""
        took, many = [], min(TRIAL, self.host_slots)
        self._data[:many].zero_()  # what is read must be a number, even into padding
        for tokens in (1, many):
            host, padding = np.arange(tokens, dtype=np.int32), np.zeros(tokens, np.int32)
            best = float("inf")
            for _ in range(3):
                began = time.perf_counter()
                self._copy_in(host, padding)
                if self._cuda:
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - began)
            took.append(best)
        self._each = max(took[1] - took[0], 0.0) / max(many - 1, 1)
        self._fixed = max(took[0] - self._each, 0.0)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _runs(host: Int32) -> list[tuple[int, int, int]]:
    """Runs of neighbouring host slots: (first index, index behind the last, first host slot)."""
    cuts = [0, *(np.flatnonzero(np.diff(host) != 1) + 1).tolist(), len(host)]
    return [(a, b, int(host[a])) for a, b in pairwise(cuts)]
