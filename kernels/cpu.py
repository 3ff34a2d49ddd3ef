"""What the compiled CPU kernels share: threads, raw memory, and fp32 arithmetic that vectorises.

A kernel is a C function of one pointer, compiled by numba; the pointer leads to an array of int64 arguments (`launch`).
It is started on every thread of the OpenMP team that torch already runs (GOMP_parallel of the libgomp inside torch), so
the matrix products of torch and our kernels take turns on one set of threads; a second pool would fight it for the
cores. Where that library is not found (macOS, torch built otherwise) kernels run on the calling thread.

Compiled code is cached (`compiled`). Symbols are looked up by name when code is loaded, so the cache stays valid from
process to process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic as numba_intrinsic
from numba.np.arrayobj import make_array
from numba.np.numpy_support import carray

intrinsic: Any = numba_intrinsic  # the compiled functions do not have the signatures written here

numba_config: Any = config

# Sums may be reordered and contracted; NaN and infinity keep their meaning; no check for a division by zero.
FAST: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}
SIGNATURE = types.void(types.voidptr)

PATIENCE = 500  # turns of a waiting loop before a thread offers its core to others

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_LOG2E = np.float32(1.44269504088896341)
_LN2_HI = np.float32(0.693359375)
_LN2_LO = np.float32(-2.12194440e-4)
_LIMIT = np.float32(87.0)
_P0 = np.float32(1.9875691500e-4)
_P1 = np.float32(1.3981999507e-3)
_P2 = np.float32(8.3334519073e-3)
_P3 = np.float32(4.1665795894e-2)
_P4 = np.float32(1.6666665459e-1)
_P5 = np.float32(5.0000001201e-1)


def _cache_directory() -> str:
    """Where compiled kernels are kept, named after their sources.

    numba compares the time of the file that defines a function, not of what the function calls: the hash makes an edit
    here reach every kernel. In NUMBA_CACHE_DIR, else beside this file, else in the user's cache.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(here.rglob("*.py")):
        digest.update(path.read_bytes())
    name = f"stemma-kernels-{digest.hexdigest()[:16]}"
    if numba_config.CACHE_DIR:
        return str(Path(numba_config.CACHE_DIR) / name)
    if os.access(here, os.W_OK):
        return str(here / "__pycache__" / name)
    return str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stemma" / name)


_CACHE = _cache_directory()
if not os.path.isdir(_CACHE):
    print("stemma: compiling the CPU kernels for this machine; about ten seconds, once", file=sys.stderr, flush=True)


def compiled(signature: Any) -> Callable[[Any], Any]:
    """Decorator: a cached C function of this signature, compiled when the module is imported."""

    def decorate(function: Any) -> Any:
        before = numba_config.CACHE_DIR
        numba_config.CACHE_DIR = _CACHE
        try:
            return cfunc(signature, cache=True)(function)
        finally:
            numba_config.CACHE_DIR = before

    return decorate


@compiled(types.int32())
def _alone_index() -> int:
    return 0


@compiled(types.int32())
def _alone_count() -> int:
    return 1


@compiled(types.int32())
def _alone_yield() -> int:
    return 0


def _sched_yield() -> Any:
    try:
        return ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError, TypeError):
        return None


def _find_team() -> ctypes.CDLL | None:
    """libgomp as torch loaded it, or None."""
    torch.get_num_threads()  # the library is in memory from here on
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libgomp" in line}
    except OSError:
        return None
    inside = [p for p in paths if Path(p).is_relative_to(Path(torch.__file__).parent.parent)]
    for path in inside or sorted(paths):
        try:
            library = ctypes.CDLL(path)
            if all(hasattr(library, n) for n in ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")):
                return library
        except OSError:
            continue
    return None


_team = _find_team()


def _register() -> None:
    symbols = {
        "stemma_thread_index": (_team and _team.omp_get_thread_num, _alone_index),
        "stemma_thread_count": (_team and _team.omp_get_num_threads, _alone_count),
        "stemma_yield": (_sched_yield(), _alone_yield),
    }
    for name, (function, alone) in symbols.items():
        address = ctypes.cast(function, ctypes.c_void_p).value if function else alone.address
        llvmlite.binding.add_symbol(name, address)


_register()
thread_index = types.ExternalFunction("stemma_thread_index", types.int32())
thread_count = types.ExternalFunction("stemma_thread_count", types.int32())
_yield = types.ExternalFunction("stemma_yield", types.int32())


def threads() -> int:
    """Threads that `launch` uses: torch's setting, or 1 where the team was not found."""
    return torch.get_num_threads() if _team is not None else 1


if _team is not None:
    _parallel = _team.GOMP_parallel
    _parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    _parallel.restype = None


def launch(kernel: Any, arguments: np.ndarray, team: int | None = None) -> None:
    """Runs a kernel on all threads and waits. arguments: contiguous int64 array; releases the GIL."""
    address = arguments.__array_interface__["data"][0]
    if _team is None:
        kernel.ctypes(address)
    else:
        _parallel(kernel.address, address, team or torch.get_num_threads(), 0)


ALONE = 1 << 16  # elements that one thread handles sooner than a second thread wakes up


def team_for(elements: int) -> int | None:
    """The `team` of a launch over that many elements: one thread for little work, else all."""
    return 1 if elements < ALONE else None


def pack(*values: int | float) -> np.ndarray:
    """Arguments of a kernel; floats are stored as the bits of a float64 (read them through a float64 view)."""
    array = np.empty(len(values), np.int64)
    floats = array.view(np.float64)
    for i, value in enumerate(values):
        if isinstance(value, float):
            floats[i] = value
        else:
            array[i] = value
    return array


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


@intrinsic
def _nearest(context: Any, x: Any) -> Any:
    """The nearest integer as int32, for |x| < 128. (numba's own conversions pass through int64.)"""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        positive = builder.fadd(arguments[0], ir.Constant(ir.FloatType(), 128.5))  # truncation is floor here
        return builder.sub(builder.fptosi(positive, ir.IntType(32)), ir.Constant(ir.IntType(32), 128))

    return types.int32(types.float32), build


@intrinsic
def prefetch(context: Any, array: Any, index: Any) -> Any:
    """Asks for the cache line of array[index]; the index need not be valid."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type] + [ir.IntType(32)] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, *(ir.Constant(ir.IntType(32), v) for v in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), build


@intrinsic
def _power_of_two(context: Any, n: Any) -> Any:
    """2^n as float32, for -126 <= n <= 127."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        constant = lambda value: ir.Constant(ir.IntType(32), value)  # noqa: E731
        biased = builder.shl(builder.add(arguments[0], constant(127)), constant(23))
        return builder.bitcast(biased, ir.FloatType())

    return types.float32(types.int32), build


@intrinsic
def fetch_add(context: Any, address: Any, amount: Any) -> Any:
    """Atomically adds to an int64 in memory; returns what was there."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), build


# x[i] in compiled code first asks whether i is negative, which keeps loops over x[at + j] from vectorising.
# In hot loops we read and write through these two: no sign check, no bounds check.


@intrinsic
def get(context: Any, array: Any, index: Any) -> Any:
    """array[index] for an index >= 0."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data
        return context.unpack_value(builder, signature.return_type, builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.int64), build


@intrinsic
def put(context: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] = value for an index >= 0."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, arguments[0]).data
        context.pack_value(builder, signature.args[2], arguments[2], builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), build


@intrinsic
def _read(context: Any, address: Any) -> Any:
    """An int64 in memory, as other threads wrote it."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()), "acquire", 8)

    return types.int64(types.int64), build


@intrinsic
def _pause(context: Any) -> Any:
    """Tells the processor that this is a waiting loop."""

    def build(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), build


@njit
def barrier(address, target):
    """Waits until all threads are here: each adds one to the int64 at `address` (0 at the launch), which must reach
    `target` = threads x barriers passed. Spins for some microseconds, then offers its core: when another process
    holds the other cores, the thread we wait for may need ours, and libgomp's barrier would spin for milliseconds."""
    fetch_add(address, 1)
    turns = 0
    while _read(address) < target:
        turns += 1
        if turns < PATIENCE:
            _pause()
        else:
            _yield()


@njit(inline="always")
def f32(address, size):
    """Memory as a float32 array."""
    return carray(_pointer(address), (size,), np.float32)


@njit(inline="always")
def i32(address, size):
    """Memory as an int32 array."""
    return carray(_pointer(address), (size,), np.int32)


@njit(inline="always")
def i64(address, size):
    """Memory as an int64 array."""
    return carray(_pointer(address), (size,), np.int64)


@njit(inline="always")
def f64(address, size):
    """Memory as a float64 array."""
    return carray(_pointer(address), (size,), np.float64)


@njit(inline="always", **FAST)
def _exp(x):
    """e^x for |x| <= 87, relative error about 2e-7 (the polynomial of Cephes expf)."""
    n = _nearest(x * _LOG2E)
    f = np.float32(n)
    r = x - f * _LN2_HI - f * _LN2_LO
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + _ONE) * _power_of_two(n)


@njit(inline="always", **FAST)
def exp_down(x):
    """e^x for x <= 0; below -87 it stays at e^-87."""
    return _exp(max(x, -_LIMIT))


@njit(inline="always", **FAST)
def silu(x):
    """x / (1 + e^-x)."""
    return x / (_ONE + _exp(min(max(-x, -_LIMIT), _LIMIT)))


@njit(inline="always")
def _larger(a, b):
    return a if a > b else b


@njit
def highest(x, at, size):
    """The maximum of x[at : at + size], size > 0, in eight independent chains (LLVM keeps one chain serial)."""
    a = get(x, at)
    if size < 8:
        for j in range(at + 1, at + size):
            a = _larger(a, get(x, j))
        return a
    b, c, d = get(x, at + 1), get(x, at + 2), get(x, at + 3)
    e, f, g, h = get(x, at + 4), get(x, at + 5), get(x, at + 6), get(x, at + 7)
    for k in range(8, size + 7, 8):
        j = at + min(k, size - 8)  # the last block may overlap the one before
        a, b = _larger(a, get(x, j)), _larger(b, get(x, j + 1))
        c, d = _larger(c, get(x, j + 2)), _larger(d, get(x, j + 3))
        e, f = _larger(e, get(x, j + 4)), _larger(f, get(x, j + 5))
        g, h = _larger(g, get(x, j + 6)), _larger(h, get(x, j + 7))
    return _larger(_larger(_larger(a, b), _larger(c, d)), _larger(_larger(e, f), _larger(g, h)))


@njit(**FAST)
def norm_row(x, at, weight, eps, out, to, size):
    """out[to:] = x[at:] / rms * weight over `size` elements."""
    total = _ZERO
    for j in range(size):
        total += get(x, at + j) * get(x, at + j)
    factor = np.float32(1.0 / np.sqrt(np.float64(total) / size + eps))
    for j in range(size):
        put(out, to + j, get(x, at + j) * factor * get(weight, j))


@njit(**FAST)
def rotate_row(x, at, cos, sin, row, half):
    """Rotates the head at x[at : at + 2 * half] by row `row` of cos and sin [., half]."""
    base = row * half
    for j in range(half):
        a = get(x, at + j)
        b = get(x, at + half + j)
        c = get(cos, base + j)
        s = get(sin, base + j)
        put(x, at + j, a * c - b * s)
        put(x, at + half + j, b * c + a * s)
