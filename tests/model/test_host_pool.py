"""The host side of the KV pool: bytes there and back, in memory and in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stemma.backend.cache.kv_pool import KVPool
from stemma.backend.config import EngineConfig
from stemma.backend.engine import Engine
from stemma.backend.executor.host_pool import HostPool, _runs
from stemma.lang.errors import RequestError

PLENTY = 1 << 32


def filled(dtype: torch.dtype, device: str = "cpu") -> KVPool:
    pool = KVPool(3, 40, 2, 4, dtype, torch.device(device))
    for layer in (*pool.keys, *pool.values):
        torch.nn.init.normal_(layer)
    return pool


def there_and_back(dtype: torch.dtype, directory: Path | None = None, device: str = "cpu") -> None:
    pool = filled(dtype, device)
    host = HostPool(pool, 64, PLENTY, directory)
    keys, values = (stack.clone() for stack in pool.stacked())
    slots = np.array([7, 8, 9, 30, 2], np.int32)
    to = np.array([60, 10, 11, 12, 1], np.int32)
    host.copy_out(slots, to)
    for stack in pool.stacked():
        stack.normal_()  # somebody else has the slots now
    back = np.array([11, 12, 13, 1, 39], np.int32)
    order = [4, 2, 0, 3, 1]
    host.copy_in(to[order], back)
    for stack, before in zip(pool.stacked(), (keys, values), strict=True):
        assert torch.equal(stack[:, back], before[:, slots[order]])
    untouched = [s for s in range(1, 40) if s not in back]
    host.copy_in(to[:1], back[:1])
    assert host.nbytes == 64 * 2 * 3 * 2 * 4 * dtype.itemsize
    assert not torch.equal(pool.stacked()[0][:, untouched], keys[:, untouched])
    assert host.copy_seconds(1000) >= host.copy_seconds(10) >= 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_come_back_to_other_slots(dtype: torch.dtype):
    there_and_back(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_serves_as_well_and_has_no_name(dtype: torch.dtype, tmp_path: Path):
    there_and_back(dtype, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("on_disk", [False, True])
def test_copies_on_a_gpu_keep_the_order_of_its_stream(on_disk: bool, tmp_path: Path):
    there_and_back(torch.bfloat16, tmp_path if on_disk else None, "cuda")


def test_the_padding_slot_holds_numbers_after_the_measurement():
    pool = filled(torch.float32)
    HostPool(pool, 64, PLENTY)
    assert all(bool((stack[:, 0] == 0).all()) for stack in pool.stacked())


def test_runs_of_neighbours():
    assert _runs(np.array([4, 5, 6, 9, 3, 4], np.int32)) == [(0, 3, 4), (3, 4, 9), (4, 6, 3)]
    assert _runs(np.array([8], np.int32)) == [(0, 1, 8)]


def test_what_does_not_fit_is_said_with_its_size(tmp_path: Path):
    pool = filled(torch.float32)
    with pytest.raises(RequestError, match=r"host_cache_tokens: 64 tokens take 0.00 GiB of memory"):
        HostPool(pool, 64, 100)
    with pytest.raises(RequestError, match="host_cache_path must be an existing directory"):
        HostPool(pool, 64, PLENTY, tmp_path / "nowhere")
    with pytest.raises(RequestError, match="free in"):
        HostPool(pool, 1 << 45, PLENTY, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"host_cache_tokens": -1}, "0 or an integer of at least one page"),
        ({"host_cache_tokens": 1.5}, "0 or an integer"),
        ({"host_cache_tokens": 8, "page_size": 16}, r"at least one page \(16\), got 8"),
        ({"host_cache_tokens": 8, "disable_radix_cache": True}, "needs the radix cache"),
        ({"host_cache_path": "/tmp"}, "needs host_cache_tokens"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str):
    with pytest.raises(RequestError, match=message):
        EngineConfig(**options)


def test_an_engine_brings_back_what_its_pool_had_no_room_for(tiny_model: Path, tmp_path: Path):
    prompts = [f"{i}: " + "once upon a time there was a small program " * 8 for i in range(6)]
    greedy = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    told = []
    for host in ({}, {"host_cache_tokens": 4000}, {"host_cache_tokens": 4000, "host_cache_path": str(tmp_path)}):
        with Engine(tiny_model, load_format="dummy", max_total_tokens=512, num_threads=1, **host) as engine:
            engine.scheduler.load_rule.always = True  # on a model this small, computing may be as quick
            texts = [[engine.generate(p, greedy)["text"] for p in prompts] for _ in range(2)]
            engine.check()
            told.append((texts, engine.info()))
    assert told[0][0] == told[1][0] == told[2][0]
    assert told[0][1]["host_pool_bytes"] == 0 < told[1][1]["host_pool_bytes"]
    for _, info in told[1:]:
        assert info["cache_host_loads"] >= 6 and info["host_total_tokens"] == 4000
        assert info["tokens_computed"] < 0.7 * told[0][1]["tokens_computed"]
