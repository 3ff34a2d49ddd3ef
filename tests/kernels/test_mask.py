"""Masks and temperature in one pass: every implementation on every device, held to the plain torch reference."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stemma.kernels.dispatch import has_numba, has_triton
from stemma.kernels.mask import reference

ROOT = Path(__file__).parent.parent.parent
CUDA = torch.cuda.is_available()
CASES = [
    pytest.param("reference", "cpu"),
    pytest.param("cpu", "cpu"),
    pytest.param("triton", "cpu", id="triton-interpreted"),
    pytest.param("reference", "cuda", marks=pytest.mark.gpu),
    pytest.param("triton", "cuda", marks=pytest.mark.gpu),
]


def implementation(name: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
    if device == "cuda" and not CUDA:
        pytest.skip("needs an NVIDIA GPU")
    if name == "cpu" and not has_numba():
        pytest.skip("numba is not installed")
    if name == "cpu" and dtype != torch.float32:
        pytest.skip("compiled for fp32")
    if name == "triton" and not has_triton():
        pytest.skip("triton is not installed")
    if name == "triton" and device == "cpu" and CUDA:
        pytest.skip("compiled for the GPU in this process, not interpreted")
    return importlib.import_module(f"stemma.kernels.mask.{name}").apply_mask


def allowed_by(table: Tensor, vocab: int) -> np.ndarray:
    """bool [R, V], worked out with numpy."""
    return np.unpackbits(table.numpy().view(np.uint8), axis=1, bitorder="little", count=vocab) != 0


def random_table(rows: int, vocab: int, slack: int = 0) -> Tensor:
    words = (vocab + 31) // 32 + slack
    table = torch.randint(-(1 << 31), 1 << 31, (rows, words), dtype=torch.int64).to(torch.int32)
    table[0] = -1  # everything
    table[1] = 0  # nothing
    table[2, : vocab // 32] = 0
    table[2, vocab // 32 :] = -1  # only the last, incomplete word, and the bits beyond the vocabulary
    return table


@pytest.mark.parametrize(("name", "device"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 500, 4096, 5003])
def test_masks_and_temperature(name: str, device: str, dtype: torch.dtype, vocab: int) -> None:
    apply_mask = implementation(name, device, dtype)
    torch.manual_seed(vocab)
    table = random_table(7, vocab, slack=vocab % 3)
    row_ids = torch.tensor([3, -1, 4, 0, 1, 2, 6, -1, 5, 3], dtype=torch.int32)
    temperature = torch.tensor([0.0, 0.0, 0.7, 1.3, 0.3, 1.0, 0.0, 1.7, 3e-3, 2.0])
    logits = (torch.randn(10, vocab) * 20).to(dtype)
    logits[0, 0] = float("-inf")
    for t in (temperature, None):
        got = logits.to(device, copy=True)
        apply_mask(got, table.to(device), row_ids.to(device), None if t is None else t.to(device))
        allowed = allowed_by(table, vocab)
        for i, slot in enumerate(row_ids.tolist()):
            wanted = logits[i].float().numpy()
            if t is not None and t[i] != 0:
                wanted = wanted / t[i].numpy()
            wanted = torch.from_numpy(wanted).to(dtype)
            if slot >= 0:
                wanted[torch.from_numpy(~allowed[slot])] = float("-inf")
            if (name, device, dtype) == ("triton", "cpu", torch.bfloat16):  # the interpreter cuts off, GPUs round
                torch.testing.assert_close(got[i], wanted, rtol=2.0**-7, atol=0.0)
            else:
                assert torch.equal(got[i].cpu(), wanted), f"row {i} of {vocab}"


@pytest.mark.parametrize(("name", "device"), CASES)
def test_equal_to_the_reference_on_a_wide_batch(name: str, device: str) -> None:
    apply_mask = implementation(name, device)
    torch.manual_seed(0)
    vocab, rows = 9001, 24
    table = random_table(40, vocab)
    row_ids = torch.randint(-1, 40, (rows,), dtype=torch.int32)
    temperature = torch.rand(rows) * (torch.rand(rows) < 0.7)
    logits = torch.randn(rows, vocab) * 5
    wanted, got = logits.clone(), logits.to(device, copy=True)
    reference.apply_mask(wanted, table, row_ids, temperature)
    apply_mask(got, table.to(device), row_ids.to(device), temperature.to(device))
    assert torch.equal(got.cpu(), wanted)


@pytest.mark.parametrize(("name", "device"), CASES)
def test_no_rows_is_no_error(name: str, device: str) -> None:
    apply_mask = implementation(name, device)
    logits, table, row_ids = torch.empty(0, 70), torch.zeros(2, 3, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    apply_mask(logits.to(device), table.to(device), row_ids.to(device), None)


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_a_view_that_is_not_contiguous_is_refused(name: str) -> None:
    apply_mask = implementation(name, "cpu")
    table, row_ids = torch.zeros(1, 3, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    with pytest.raises(ValueError, match="contiguous"):
        apply_mask(torch.zeros(70, 4).T, table, row_ids, None)


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from stemma.kernels.mask.triton import _apply
names = dict(logits=sys.argv[1], table="*i32", row_ids="*i32", temperature="*fp32", vocab="i32", words="i32")
constants = dict(SCALED=True, BLOCK=1024)
source = ASTSource(_apply, signature=names | dict.fromkeys(constants, "constexpr"), constexprs=constants)
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(enable_fp_fusion=False))
assert made.asm["cubin"] and "div.rn" in made.asm["ptx"], "not the division that rounds correctly"
"""


def test_the_triton_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    if not has_triton():
        pytest.skip("triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", COMPILE, "*bf16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
