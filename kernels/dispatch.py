"""Chooses the implementation of every operation, once.

`resolve(device, dtype)` returns a `Kernels` whose fields are the chosen callables; `Kernels.table()` says which they
are. An implementation is a module `stemma.kernels.<op>.<name>`; the first of an operation's candidates that fits the
device and dtype and whose packages import is taken. `only` forces a choice (tests hold them all to the reference).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# operation -> (package, candidates best first). "cpu" is numba, fp32; "triton" needs a GPU; "sdpa" and "reference" are
# torch.
OPERATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rms_norm": ("rmsnorm", ("cpu", "reference")),
    "add_rms_norm": ("rmsnorm", ("cpu", "reference")),
    "apply_rope": ("rope", ("cpu", "reference")),
    "silu_and_mul": ("silu_and_mul", ("cpu", "reference")),
    "store_kv": ("store_kv", ("cpu", "reference")),
    "attention": ("attention", ("cpu", "sdpa", "reference")),
    "apply_mask": ("mask", ("triton", "cpu", "reference")),
    "draw": ("sampling", ("cpu", "reference")),
}


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operations of one engine, as chosen by `resolve`. Contracts: the docstring of each package."""

    rms_norm: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    apply_rope: Callable[..., Any]
    silu_and_mul: Callable[..., Any]
    store_kv: Callable[..., Any]
    attention: Callable[..., Any]
    apply_mask: Callable[..., Any]
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


def _fits(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    if name == "cpu":
        return device.type == "cpu" and dtype == torch.float32 and has_numba()
    if name == "triton":
        return device.type == "cuda" and has_triton()
    return True


def resolve(device: torch.device, dtype: torch.dtype, only: str | None = None) -> Kernels:
    """The best implementations for a device and dtype, or `only` one kind where an operation has it."""
    functions: dict[str, Callable[..., Any]] = {}
    chosen: dict[str, str] = {}
    for operation, (package, candidates) in OPERATIONS.items():
        fitting = [name for name in candidates if _fits(name, device, dtype)]
        name = only if only in fitting else fitting[0] if only is None else fitting[-1]
        functions[operation] = getattr(importlib.import_module(f"stemma.kernels.{package}.{name}"), operation)
        chosen[operation] = name
    return Kernels(**functions, chosen=chosen)
