"""`stemma doctor`: what this machine offers, which implementation every operation would get, and what to install."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch

from stemma import __version__
from stemma.backend.executor.factory import choose_device
from stemma.backend.executor.runner import resolve_dtype
from stemma.kernels.dispatch import has_numba, has_triton, reasons
from stemma.lang.errors import RequestError

# package -> what lacks without it
PACKAGES = {
    "torch": "the engine",
    "numpy": "the engine",
    "numba": "compiled CPU kernels and constraints: without it CPU steps are several times slower",
    "triton": "GPU kernels: without it the model runs on CPU only",
    "transformers": "some tokenizers",
    "tokenizers": "tokenizers",
    "safetensors": "reading weights",
    "uvicorn": "stemma serve",
    "llguidance": "grammar_backend='llguidance' (optional)",
    "xgrammar": "grammar_backend='xgrammar' (optional)",
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[dict[str, Any]]:
    found = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        found.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "memory_bytes": total,
                "free_bytes": free,
            }
        )
    return found


def _refusal() -> str | None:
    """Why a GPU cannot be used, or None."""
    try:
        choose_device("cuda")
    except RequestError as error:
        return str(error).removeprefix("device 'cuda' cannot be used: ").split(";")[0]
    return None


def _advice() -> list[str]:
    advice = []
    if torch.cuda.is_available() and not has_triton():
        advice.append("a GPU is there, its kernels are not: pip install triton")
    if torch.version.cuda is None and sys.platform == "linux":
        advice.append("this torch is built for CPU; for an NVIDIA GPU install torch from its CUDA index (pytorch.org)")
    if not has_numba():
        advice.append("CPU kernels are plain torch: pip install numba")
    return advice


def examine(device: str, dtype: str) -> dict[str, Any]:
    """Everything that is printed, JSON-ready."""
    chosen = choose_device(device)
    kind = resolve_dtype(dtype, torch.device(chosen))
    return {
        "stemma": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "gpus": _gpus(),
        "no_gpu_because": _refusal(),
        "device": chosen,
        "dtype": str(kind).removeprefix("torch."),
        "operations": [
            {"operation": operation, "implementation": name, "why": why}
            for operation, name, why in reasons(torch.device(chosen), kind)
        ],
        "advice": _advice(),
    }


def _print(found: dict[str, Any]) -> None:
    print(f"stemma {found['stemma']}, Python {found['python']}, {found['platform']}")
    for name, version in found["packages"].items():
        print(f"  {name:<14} {version or 'not installed: needed for ' + PACKAGES[name]}")
    print("\nGPUs:" if found["gpus"] else f"\nGPUs: none that can be used: {found['no_gpu_because']}")
    for gpu in found["gpus"]:
        memory = f"{gpu['free_bytes'] / 2**30:.1f} of {gpu['memory_bytes'] / 2**30:.1f} GiB free"
        print(f"  {gpu['name']}, compute capability {gpu['compute_capability']}, {memory}, CUDA {found['cuda']}")
    if found["gpus"] and found["no_gpu_because"]:
        print(f"  cannot be used: {found['no_gpu_because']}")
    print(f"\na model would run on {found['device']} in {found['dtype']}, with")
    for row in found["operations"]:
        print(f"  {row['operation']:<14} {row['implementation']:<10} {row['why']}")
    for line in found["advice"]:
        print(f"\n{line}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma doctor",
        description="Versions, GPUs, the implementation chosen for every operation and why, and what to install.",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    found = examine(args.device, args.dtype)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0
