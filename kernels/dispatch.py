"""Chooses the implementation of every operation, once.

`resolve(device, dtype)` returns a `Kernels` whose fields are the chosen callables; `Kernels.table()` says which they
are, `reasons` why. An implementation is a module `stemma.kernels.<op>.<name>`; the first of an operation's candidates
that fits the device and dtype and whose packages import is taken. `only` forces a choice (tests hold them all to the
reference).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# operation -> (package, candidates best first). "cpu" is numba, fp32; "triton" needs a GPU; "sdpa", "shortlist" and
# "reference" are torch.
OPERATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rms_norm": ("rmsnorm", ("triton", "cpu", "reference")),
    "add_rms_norm": ("rmsnorm", ("triton", "cpu", "reference")),
    "apply_rope": ("rope", ("triton", "cpu", "reference")),
    "store_kv": ("store_kv", ("triton", "cpu", "reference")),
    "rope_store_kv": ("rope_store_kv", ("triton", "cpu", "reference")),
    "silu_and_mul": ("silu_and_mul", ("triton", "cpu", "reference")),
    "attention": ("attention", ("triton", "cpu", "sdpa", "reference")),
    "adjust_logits": ("adjust_logits", ("triton", "reference")),
    "apply_mask": ("mask", ("triton", "cpu", "reference")),
    "filter_scores": ("filter_scores", ("triton", "shortlist", "reference")),
    "argmax": ("argmax", ("triton", "cpu", "reference")),
    "draw": ("sampling", ("triton", "cpu", "reference")),
}


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operations of one engine, as chosen by `resolve`. Contracts: the docstring of each package."""

    rms_norm: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    apply_rope: Callable[..., Any]
    store_kv: Callable[..., Any]
    rope_store_kv: Callable[..., Any]
    silu_and_mul: Callable[..., Any]
    attention: Callable[..., Any]
    adjust_logits: Callable[..., Any]
    apply_mask: Callable[..., Any]
    filter_scores: Callable[..., Any]
    argmax: Callable[..., Any]
    draw: Callable[..., Any]
    chosen: Mapping[str, str] = field(default_factory=dict)  # operation -> implementation

    @property
    def compiled(self) -> bool:
        """Whether the compiled CPU kernels are in use (then the fused decoder step can be, too)."""
        return self.chosen.get("attention") == "cpu"

    def table(self) -> str:
        """Operation and implementation, one line each."""
        return "\n".join(f"{name:<14} {choice}" for name, choice in self.chosen.items())


def has_numba() -> bool:
    """Whether the compiled CPU kernels can be built here."""
    return importlib.util.find_spec("numba") is not None


def has_triton() -> bool:
    """Whether the Triton kernels can be imported here."""
    return importlib.util.find_spec("triton") is not None


def unfit(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an implementation cannot serve this device and dtype; None when it can."""
    if name == "cpu":
        if device.type != "cpu" or dtype != torch.float32:
            return "fp32 on CPU only"
        return None if has_numba() else "numba is not installed: pip install numba"
    if name == "triton":
        if device.type != "cuda":
            return "needs a GPU"
        return None if has_triton() else "triton is not installed: pip install triton"
    return None


def reasons(device: torch.device, dtype: torch.dtype) -> list[tuple[str, str, str]]:
    """(operation, implementation, why no better one) for everything that `resolve` would choose."""
    found = []
    for operation, (_, candidates) in OPERATIONS.items():
        passed = [(name, unfit(name, device, dtype)) for name in candidates]
        chosen = next(i for i, (_, why) in enumerate(passed) if why is None)
        better = "; ".join(f"not {name}: {why}" for name, why in passed[:chosen])
        found.append((operation, passed[chosen][0], better or "the fastest there is"))
    return found


def resolve(device: torch.device, dtype: torch.dtype, only: str | None = None) -> Kernels:
    """The best implementations for a device and dtype, or `only` one kind where an operation has it."""
    functions: dict[str, Callable[..., Any]] = {}
    chosen: dict[str, str] = {}
    for operation, (package, candidates) in OPERATIONS.items():
        fitting = [name for name in candidates if unfit(name, device, dtype) is None]
        name = only if only in fitting else fitting[0] if only is None else fitting[-1]
        functions[operation] = getattr(importlib.import_module(f"stemma.kernels.{package}.{name}"), operation)
        chosen[operation] = name
    return Kernels(**functions, chosen=chosen)
