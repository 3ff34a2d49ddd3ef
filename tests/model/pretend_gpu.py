"""The GPU's runner where there is no GPU: tensors are on the CPU, Triton kernels are interpreted, and a graph is a step
that is computed again. What is tested so: staging, padding, work items, launching ahead, relayed tokens, sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stemma.backend.executor.cuda_runner import CudaRunner
from stemma.kernels import dispatch


class _Event:
    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class PretendRunner(CudaRunner):
    """`CudaRunner` on CPU tensors."""

    replays = 0

    @staticmethod
    def _choose_gpu() -> torch.device:
        return torch.device("cpu")

    def _processors(self) -> int:
        return 1  # a small grid: programs are interpreted one by one

    def _record(self, body: Any) -> Any:
        found = tuple(x.clone() for x in body())

        def replay() -> None:
            self.replays += 1
            for old, new in zip(found, body(), strict=True):
                old.copy_(new)

        return replay, found


def pretend(patch: pytest.MonkeyPatch) -> type[PretendRunner]:
    """Lets `PretendRunner` be made: Triton's kernels are taken for fit, and the driver answers."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the real runner is tested")
    if not dispatch.has_triton():
        pytest.skip("triton is not installed")
    patch.setattr(dispatch, "unfit", lambda name, device, dtype: None if name in ("triton", "reference") else "no")
    # what the padding leaves unwritten would make numpy warn
    patch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: torch.zeros(*a, **k))
    for name, value in {
        "mem_get_info": lambda *a: (64 << 20, 80 << 20),
        "memory_reserved": lambda *a: 0,
        "max_memory_reserved": lambda *a: 1 << 20,
        "reset_peak_memory_stats": lambda *a: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *a: None,
        "graph_pool_handle": lambda: None,
        "get_device_name": lambda *a: "pretended",
        "Event": _Event,
    }.items():
        patch.setattr(torch.cuda, name, value)
    return PretendRunner
