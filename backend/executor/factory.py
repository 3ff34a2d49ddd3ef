"""Which runner serves a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stemma.backend.executor.runner import ModelRunner
from stemma.kernels.dispatch import has_triton
from stemma.lang.errors import RequestError


def choose_device(device: str) -> str:
    """'cpu' or 'cuda'; 'auto' is the GPU where torch sees one and Triton is installed. Raises `RequestError` when a GPU
    is asked for and cannot be used, saying why."""
    if device == "cpu":
        return "cpu"
    if device not in ("auto", "cuda"):
        raise RequestError(f"device must be one of auto, cpu, cuda, got {device!r}", param="device")
    why = None
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "no NVIDIA GPU or driver was found" if built else f"torch {torch.__version__} is built without CUDA"
    elif not has_triton():
        why = "triton is not installed: pip install triton"
    elif torch.cuda.get_device_capability() < (8, 0):
        why = f"{torch.cuda.get_device_name()} is older than Ampere (compute capability 8.0)"
    if why is None:
        return "cuda"
    if device == "cuda":
        raise RequestError(f"device 'cuda' cannot be used: {why}; 'stemma doctor' tells more", param="device")
    return "cpu"


def make_runner(
    model_dir: Path,
    *,
    device: str = "auto",
    max_step_tokens: int = 2048,
    mem_fraction_static: float | None = None,
    cuda_graphs: bool = True,
    family: bool = True,
    **options: Any,
) -> ModelRunner:
    """The runner for a device. options: those that `ModelRunner` takes; the others concern GPUs (`CudaRunner`)."""
    if choose_device(device) == "cpu":
        return ModelRunner(model_dir, device="cpu", mem_fraction_static=mem_fraction_static, family=family, **options)
    from stemma.backend.executor.cuda_runner import CudaRunner  # late: needs triton

    return CudaRunner(
        model_dir,
        max_step_tokens=max_step_tokens,
        mem_fraction_static=mem_fraction_static,
        cuda_graphs=cuda_graphs,
        family=family,
        **options,
    )
