"""Compiles every Triton kernel for a Hopper GPU that need not be here; prints registers, spills and shared memory.

Run by a test, in a process of its own: kernels are defined without the interpreter. Arguments: names of the kernels to
compile (default: all).
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stemma.kernels.adjust_logits import triton as adjust_logits
from stemma.kernels.argmax import triton as argmax
from stemma.kernels.attention import family
from stemma.kernels.attention import triton as attention
from stemma.kernels.filter_scores import triton as filter_scores
from stemma.kernels.rmsnorm import triton as rmsnorm
from stemma.kernels.rope_store_kv import triton as rope_store_kv
from stemma.kernels.sampling import triton as sampling
from stemma.kernels.silu_and_mul import triton as silu_and_mul

F32, I32, I64 = "*fp32", "*i32", "*i64"


def attend(kind: str, rows: int, dim: int, group: int, **changes: Any) -> tuple[Any, dict[str, str], dict[str, Any]]:
    size = 4 if kind == F32 else 2
    block_d = triton.next_power_of_2(dim)
    signature = dict.fromkeys(("q", "keys", "values", "out"), kind) | {
        "slots": I32, "items": I32, "lse": F32, "partial": F32, "partial_lse": F32, "scale": "fp32", "q_stride": "i32",
    }  # fmt: skip
    constants = {
        "HEADS": 8 * group, "GROUP": group, "DIM": dim, "BLOCK_D": block_d, "WITH_LSE": False,
        "PRECISION": "ieee" if kind == F32 else "tf32", **attention._shape(rows, group, block_d, size), **changes,
    }  # fmt: skip
    return attention._attend, signature, constants


def shares(kind: str, dim: int, ratio: int, rows: int) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """rows: of the widest tile."""
    pad = family.ratio_pad(ratio)
    tuning = family.fitting(dim, 4 if kind == F32 else 2)
    numbers = ("line_slot", "line_who", "group_first", "group_count", "group_start", "share_group", "length")
    signature = dict.fromkeys(("q", "k_pool", "v_pool"), kind) | dict.fromkeys(numbers, I32)
    signature |= {"part_out": F32, "part_lse": F32, "scale": "fp32", "stride_q": "i32", "stride_slot": "i32"}
    constants = {
        "KV_HEADS": 8, "RATIO": ratio, "RATIO_PAD": pad, "D": dim, "BM": max(16, pad), "BM_WIDE": max(16, rows * pad),
        "BN": tuning.tile, "STAGES": tuning.stages, "STAGES_WIDE": tuning.stages_wide,
        "PRECISION": "ieee" if kind == F32 else "tf32", "num_warps": tuning.warps,
    }  # fmt: skip
    return family._shares, signature, constants


CASES: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "attend few bf16 128": attend("*bf16", 16, 128, 4),
    "attend many bf16 128": attend("*bf16", 64, 128, 4),
    "attend many bf16 256": attend("*bf16", 64, 256, 8),
    "attend few bf16 64": attend("*bf16", 16, 64, 1),
    "attend few fp32 128": attend(F32, 16, 128, 4),
    "attend many fp32 256": attend(F32, 64, 256, 8),
    "attend few fp32 24": attend(F32, 16, 24, 2, WITH_LSE=True),
    "merge": (
        attention._merge,
        {"partial": F32, "partial_lse": F32, "merges": I32, "out": "*bf16", "lse": F32},
        {"HEADS": 32, "DIM": 128, "BLOCK_D": 128, "PARTS": 16, "WITH_LSE": True, "num_warps": 2},
    ),
    "shares narrow bf16 128": shares("*bf16", 128, 4, 4),
    "shares middle bf16 128": shares("*bf16", 128, 4, 8),
    "shares wide bf16 128": shares("*bf16", 128, 4, 16),
    "shares wide bf16 64": shares("*bf16", 64, 1, 64),
    "shares wide bf16 256": shares("*bf16", 256, 8, 8),
    "shares wide fp32 128": shares(F32, 128, 4, 16),
    "shares wide fp32 256": shares(F32, 256, 4, 16),
    "lay": (
        family._lay,
        dict.fromkeys(
            ("store", "piece_at", "piece_own", "piece_who", "piece_start", "out_slots", "line_slot", "line_who"), I32
        ),
        {"BLOCK": 512, "num_warps": 4},
    ),
    "family merge": (
        family._merge,
        dict.fromkeys(("row_group", "group_first", "group_start", "length"), I32)
        | {"part_out": F32, "part_lse": F32, "out": "*bf16", "lse_out": "*bf16", "stride_out": "i32"},
        {
            "KV_HEADS": 8, "RATIO": 4, "RATIO_PAD": 4, "D": 128, "BM_MAX": 64, "AT_ONCE": 4, "LSE": False,
            "num_warps": 1,
        },
    ),
    "norm": (
        rmsnorm._norm,
        dict.fromkeys(("x", "residual", "weight", "out"), "*bf16")
        | {"inner": "i32", "x_stride": "i32", "out_stride": "i32", "eps": "fp32"},
        {"DIM": 4096, "BLOCK": 4096, "ADD": True, "num_warps": 8},
    ),
    "rope and store": (
        rope_store_kv._rope_store,
        dict.fromkeys(("q", "k", "v", "k_pool", "v_pool"), "*bf16")
        | {"cos": F32, "sin": F32, "slots": I32, "q_stride": "i32", "k_stride": "i32", "v_stride": "i32"},
        {
            "KV_HEADS": 8, "GROUP": 4, "GROUP_BLOCK": 4, "DIM": 128, "HALF_BLOCK": 64, "ROTATE": True, "STORE": True,
            "num_warps": 1,
        },
    ),
    "silu": (silu_and_mul._gate, {"gate_up": "*bf16", "out": "*bf16", "size": "i32"}, {"BLOCK": 1024}),
    "argmax": (
        argmax._best,
        {"scores": "*bf16", "best": F32, "best_id": I32, "vocab": "i32"},
        {"BLOCK": argmax.BLOCK},
    ),
    "best of": (
        argmax._best_of,
        {"best": "*fp64", "best_id": I32, "ids": I64, "blocks": "i32", "vocab": "i32"},
        {"BLOCK": 32, "num_warps": 1},
    ),
    "draw": (
        sampling._draw,
        {"scores": F32, "seeds": I64, "positions": I64, "best": "*fp64", "best_id": I32, "vocab": "i32"},
        {"BLOCK": 1024},
    ),
    "adjust": (
        adjust_logits._adjust,
        dict.fromkeys(("logits", "add", "divide", "minus"), F32)
        | {"rows": I32, "ids": I32, "count": "i32", "vocab": "i32"},
        {"BLOCK": 256, "enable_fp_fusion": False},
    ),
    "filter": (
        filter_scores._filter,
        {"scores": F32, "top_k": I32, "top_p": F32, "min_p": F32, "vocab": "i32"},
        {"BLOCK": 4096, "num_warps": 8},
    ),
}  # fmt: skip


def main() -> None:
    wanted = sys.argv[1:] or list(CASES)
    for name in wanted:
        kernel, signature, constants = CASES[name]
        options = {k: constants[k] for k in constants if not k.isupper()}
        constants = {k: v for k, v in constants.items() if k.isupper()}
        names = [p.name for p in kernel.params]
        kinds = {n: signature.get(n, "constexpr") for n in names}
        wide = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if kinds[n] != "constexpr" and
                (kinds[n].startswith("*") or "stride" in n or n in ("vocab", "size"))}  # fmt: skip
        source = ASTSource(kernel, signature=kinds, constexprs=constants, attrs=wide)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert made.asm["cubin"]
        tensor_cores = ", wgmma" if "wgmma" in made.asm["ptx"] else ", mma" if "mma.sync" in made.asm["ptx"] else ""
        pipelined = ", cp.async" if "cp.async.cg" in made.asm["ptx"] else ""
        print(f"{name:<24} shared memory {made.metadata.shared:>7}{tensor_cores}{pipelined}", flush=True)


if __name__ == "__main__":
    main()
