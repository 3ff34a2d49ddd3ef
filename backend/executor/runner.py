"""ModelRunner: loads a model and executes plans."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stemma.backend.cache.kv_pool import KVPool
from stemma.backend.core import Int32, Plan, RowLogprobs, SamplingArrays, StepOutput
from stemma.backend.executor.ahead import Ahead, LaunchedStep
from stemma.backend.executor.draws import Draws, every_draw
from stemma.backend.executor.host_pool import HostPool
from stemma.backend.executor.logprobs import check_ids, input_logprobs, output_logprobs
from stemma.backend.executor.mask_table import MaskTable
from stemma.backend.executor.sampler import sample
from stemma.backend.executor.weights import DummyWeights, SafetensorWeights, check_directory
from stemma.backend.layers.batch import ForwardBatch
from stemma.backend.layers.config import ModelConfig, parse_config, read_json
from stemma.backend.models import model_class
from stemma.kernels.attention import AttentionBatch
from stemma.kernels.decode_step import MAX_TOKENS
from stemma.kernels.dispatch import resolve
from stemma.lang.errors import RequestError

if TYPE_CHECKING:
    from stemma.kernels.decode_step.cpu import FusedDecoder

CPU_POOL_BYTES = 1 << 30  # most memory that the KV pool takes on CPU when its size is not given
CPU_POOL_SHARE = 0.25  # and the share of the free memory that it may take


def _free_memory() -> int:
    """Bytes of memory that can be taken now; 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as info:
            for line in info:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 4 << 30


def _cores() -> int:
    """Physical cores that this process may use (two hardware threads of a core share its vector units)."""
    available = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in available:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text(
                encoding="ascii"
            )
        except OSError:
            siblings = str(cpu)
        cores.add(siblings.strip())
    return max(1, len(cores))


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """'auto' is fp32 on CPU, bf16 elsewhere."""
    names = {
        "auto": torch.float32 if device.type == "cpu" else torch.bfloat16,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }
    if dtype not in names:
        raise RequestError(f"dtype must be one of {', '.join(names)}, got {dtype!r}", param="dtype")
    return names[dtype]


def _context_length(config: ModelConfig, wanted: int | None) -> int:
    if wanted is not None and wanted > config.max_context:
        raise RequestError(
            f"context_length {wanted} is longer than the model's {config.max_context} (max_position_embeddings)",
            param="context_length",
        )
    length = wanted or config.max_context
    if config.sliding_window is not None and config.sliding_window < length:
        raise RequestError(
            f"the model attends a sliding window of {config.sliding_window} tokens, which is not supported beyond that "
            f"length; give context_length <= {config.sliding_window} (it is {length})",
            param="context_length",
        )
    return length


def _ahead(runner: weakref.ref[Any]) -> Ahead:
    """The thread of `launch`. It knows the runner weakly, and so ends with it."""

    def alive() -> ModelRunner:
        made = runner()
        assert made is not None, "the runner is gone; its step has nobody to run it"
        return made

    return Ahead(lambda plan: alive()._begin(plan), lambda plan, begun: alive()._finish(plan, begun))


class ModelRunner:
    """The device side of the engine: one model, its KV pool, its kernels.

    `run` executes a plan, `launch` starts one (`core.AheadRunner`); call them from one thread at a time. Raises
    `RequestError` at construction when the model's directory, configuration or weights are wrong or unsupported.
    """

    takes_followers = True
    overlap = True

    def __init__(
        self,
        model_dir: Path,
        *,
        load_format: str = "auto",
        dtype: str = "auto",
        device: str = "auto",
        max_total_tokens: int | None = None,
        context_length: int | None = None,
        max_running_requests: int = 256,
        page_size: int = 1,
        host_tokens: int = 0,
        host_path: str | None = None,
        seed: int = 0,
        num_threads: int | None = None,
        kernels: str | None = None,
        fused: bool = True,
        mem_fraction_static: float | None = None,
        family: bool = True,
    ) -> None:
        """Loads the model.

        max_total_tokens: KV slots, the padding page excluded; None is what memory allows. page_size: tokens of a page;
        the pool holds whole pages (max_total_tokens is rounded down). host_tokens: tokens for which `host` has room, 0
        for none; host_path: a directory for it, else it is in memory. num_threads: None is the physical
        cores; products of small matrices are bound by the caches' bandwidth, which one core cannot use up. kernels:
        forces one kind of kernels ('reference', 'sdpa', 'cpu'; see `stemma.kernels.dispatch`). fused: whether steps of
        a few tokens may use the fused decoder. mem_fraction_static: share of the memory that is free without the
        weights which weights and KV pool take together; None is a quarter of what is free beside the weights for the
        pool, and at most 1 GiB. family: read what adjacent rows share once.
        """
        self._family = family
        if device not in ("auto", "cpu"):
            raise RequestError(f"device {device!r} is not supported by this runner; supported: cpu", param="device")
        began = time.perf_counter()
        self._load(
            model_dir,
            torch.device("cpu"),
            load_format=load_format,
            dtype=dtype,
            context_length=context_length,
            max_running_requests=max_running_requests,
            seed=seed,
            num_threads=num_threads,
            kernels=kernels,
        )
        self.num_slots = self._choose_slots(max_total_tokens, page_size, mem_fraction_static)
        self.pool = self._make_pool(self.num_slots)
        self.host = self._make_host(host_tokens, page_size, host_path)
        self._fused = self._fuse() if fused and self.kernels.compiled else None
        self._ahead = _ahead(weakref.ref(self))
        self.load_seconds = time.perf_counter() - began

    def _load(
        self,
        model_dir: Path,
        device: torch.device,
        *,
        load_format: str,
        dtype: str,
        context_length: int | None,
        max_running_requests: int,
        seed: int,
        num_threads: int | None,
        kernels: str | None,
    ) -> None:
        """Configuration, kernels and weights: everything but the pool."""
        self.device = device
        self.dtype = resolve_dtype(dtype, self.device)
        self.num_threads = num_threads or _cores()
        torch.set_num_threads(self.num_threads)
        self.model_dir = Path(model_dir)
        self.config = parse_config(read_json(check_directory(self.model_dir)), str(self.model_dir / "config.json"))
        cls = model_class(self.config.architecture)
        self.vocab_size = self.config.vocab_size
        self.context_length = _context_length(self.config, context_length)
        self.max_running_requests = max_running_requests
        self.kernels = resolve(self.device, self.dtype, kernels)
        expected = cls.expected(self.config)
        if load_format == "dummy":
            weights = DummyWeights(expected, self.dtype, self.device, seed, self.config.initializer_range)
        elif load_format == "auto":
            weights = SafetensorWeights(self.model_dir, expected, self.dtype, self.device, self.config.tie_embeddings)
        else:
            raise RequestError(f"load_format must be 'auto' or 'dummy', got {load_format!r}", param="load_format")
        self.model = cls(self.config, weights, self.kernels, self.context_length, self.device)
        self.masks = MaskTable(self.vocab_size, self.device)
        self.parameters = sum(int(np.prod(shape)) for shape in expected.values())

    def _make_pool(self, num_slots: int) -> KVPool:
        c = self.config
        return KVPool(c.num_layers, num_slots, c.num_kv_heads, c.head_dim, self.dtype, self.device)

    def _make_host(self, tokens: int, page_size: int, path: str | None) -> HostPool | None:
        if not tokens:
            return None
        return HostPool(self.pool, (tokens // page_size + 1) * page_size, _free_memory(), path)

    def _choose_slots(
        self, max_total_tokens: int | None, page_size: int, mem_fraction_static: float | None = None
    ) -> int:
        if max_total_tokens is not None:
            return (max_total_tokens // page_size + 1) * page_size
        c = self.config
        each = KVPool.bytes_per_slot(c.num_layers, c.num_kv_heads, c.head_dim, self.dtype)
        if mem_fraction_static is not None:
            weights, free = self.parameters * self.dtype.itemsize, _free_memory()
            budget = int((free + weights) * mem_fraction_static) - weights
            if budget < each * self.context_length:
                raise RequestError(
                    f"mem_fraction_static={mem_fraction_static} of {(free + weights) >> 20} MiB leaves "
                    f"{max(budget, 0) >> 20} MiB for the KV pool beside {weights >> 20} MiB of weights; one sequence "
                    f"of {self.context_length} tokens needs {(each * self.context_length) >> 20} MiB; raise it, or "
                    "give a smaller context_length",
                    param="mem_fraction_static",
                )
        else:
            budget = min(CPU_POOL_BYTES, int(_free_memory() * CPU_POOL_SHARE))
        most = self.max_running_requests * self.context_length  # more can never be in use at once
        return (-(-max(min(budget // each, most), self.context_length) // page_size) + 1) * page_size

    def model_info(self) -> dict[str, Any]:
        """Facts about the model and its pool, JSON-ready."""
        return {
            "model_path": str(self.model_dir),
            "architecture": self.config.architecture,
            "vocab_size": self.vocab_size,
            "context_length": self.context_length,
            "parameters": self.parameters,
            "layers": self.config.num_layers,
            "hidden_size": self.config.hidden_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "num_slots": self.num_slots,
            "kv_pool_bytes": self.pool.nbytes,
            "host_pool_bytes": self.host.nbytes if self.host else 0,
            "num_threads": self.num_threads,
            "load_seconds": round(self.load_seconds, 3),
            "kernels": dict(self.kernels.chosen),
        }

    # The host side, see `cache.host.HostCopies`: only with `host_tokens`.

    @property
    def host_slots(self) -> int:
        return self.host.host_slots if self.host else 0

    def copy_out(self, slots: Int32, host: Int32) -> None:
        pool = self.host
        assert pool is not None
        slots, host = slots.copy(), host.copy()
        self._ahead.in_order(lambda: pool.copy_out(slots, host))

    def copy_in(self, host: Int32, slots: Int32) -> None:
        pool = self.host
        assert pool is not None
        slots, host = slots.copy(), host.copy()
        self._ahead.in_order(lambda: pool.copy_in(host, slots))

    def copy_seconds(self, tokens: int) -> float:
        assert self.host is not None
        return self.host.copy_seconds(tokens)

    def reset(self) -> None:
        """Forgets everything stored: the KV pool is zero again. Weights stay."""
        self.pool.clear()

    def _fuse(self) -> FusedDecoder:
        from stemma.kernels.decode_step.cpu import FusedDecoder  # late: needs numba

        return FusedDecoder(self.model.decoder_weights(self.pool.keys, self.pool.values))

    def _table(self, plan: Plan) -> AttentionBatch:
        groups = [(g.first, g.count, g.shared) for g in plan.groups if g.count > 1 and g.shared > 0 and self._family]
        return AttentionBatch(plan.slot_table, plan.rows, plan.start, plan.n, plan.offsets, groups)

    def _batch(self, plan: Plan) -> ForwardBatch:
        positions = torch.from_numpy(plan.positions.astype(np.int64))
        return ForwardBatch(
            ids=torch.from_numpy(plan.ids.astype(np.int64)),
            cos=self.model.rotary.cos.index_select(0, positions),
            sin=self.model.rotary.sin.index_select(0, positions),
            slots=torch.from_numpy(plan.out_slots.astype(np.int64)),
            attention=self._table(plan),
            keys=self.pool.keys,
            values=self.pool.values,
        )

    def _check(self, plan: Plan) -> None:
        """Compiled kernels do not check bounds: a wrong id or slot must not reach them. Raises `ValueError`."""
        if not plan.ids.size:
            raise ValueError("a plan must have at least one token")
        for name, values, limit, where in (
            ("token id", plan.ids, self.vocab_size, "vocabulary"),
            ("slot", plan.out_slots, self.num_slots, "pool"),
            ("position", plan.positions, self.context_length, "context"),
        ):
            # lists are faster than numpy's reductions for the few values of a decode step
            few = values.tolist() if values.size <= 64 else (values.min().item(), values.max().item())
            low, high = min(few), max(few)
            if low < 0 or high >= limit:
                raise ValueError(f"{name} {low if low < 0 else high} is outside the {where} of {limit}")

    @torch.inference_mode()
    def warm_up(self) -> float:
        """Runs every path once on the padding slot, so that no first-use cost falls into serving; returns the seconds.

        Compiled kernels are built (or read from their cache) when the runner is made; what is left for here is torch's
        own first-use work. Leaves the pool as it was, apart from slot 0.
        """
        began = time.perf_counter()
        for tokens in (1, MAX_TOKENS, min(64, self.context_length)):
            self.run(self._padding_plan(tokens, sampled=False))
            self.run(self._padding_plan(tokens, sampled=True))
        return time.perf_counter() - began

    def _padding_plan(self, tokens: int, sampled: bool) -> Plan:
        integers = lambda *values: np.array(values, np.int32)  # noqa: E731
        floats = lambda value: np.full(1, value, np.float32)  # noqa: E731
        return Plan(
            step=0,
            rows=integers(0),
            start=integers(0),
            n=integers(tokens),
            offsets=integers(0, tokens),
            ids=np.zeros(tokens, np.int32),
            positions=np.arange(tokens, dtype=np.int32),
            out_slots=np.zeros(tokens, np.int32),
            sample=np.ones(1, np.bool_),
            slot_table=np.zeros((1, tokens), np.int32),
            id_table=np.zeros((1, tokens), np.int32),
            sampling=SamplingArrays(
                temperature=floats(1.0 if sampled else 0.0),
                top_p=floats(0.9 if sampled else 1.0),
                top_k=integers(self.vocab_size),
                min_p=floats(0.0),
                seed=np.zeros(1, np.int64),
                repetition_penalty=floats(1.1 if sampled else 1.0),
                frequency_penalty=floats(0.0),
                presence_penalty=floats(0.0),
                prompt_len=integers(tokens),
                all_greedy=not sampled,
                any_filter=sampled,
                any_penalty=sampled,
            ),
            masks=[(0, np.full(self.masks.words, -1, np.int32))],
        )

    def run(self, plan: Plan) -> StepOutput:
        """Executes a plan. next_ids[i] is -1 where row i does not sample, or where its grammar mask allows nothing."""
        self._ahead.wait()
        return self._finish(plan, self._begin(plan))

    def launch(self, plan: Plan) -> LaunchedStep:
        """Executes a plan in a thread, after those launched before. Not at the same time as `run`."""
        return self._ahead.launch(plan)

    def close(self) -> None:
        """Wait until nothing runs any more. What was launched and not asked for is lost."""
        self._ahead.abandon()

    @torch.inference_mode()
    def _begin(self, plan: Plan) -> tuple[Draws, Tensor, Tensor]:
        """All but sampling: where to draw, hidden states and raw logits there."""
        draws = every_draw(plan, np.flatnonzero(plan.sample))
        return draws, *self._forward(plan, draws.at)

    @torch.inference_mode()
    def _finish(self, plan: Plan, begun: tuple[Draws, Tensor, Tensor]) -> StepOutput:
        draws, hidden, logits = begun
        next_ids = np.full(len(plan.rows), -1, np.int32)
        places = np.flatnonzero(plan.sample)
        if draws.take is not None:
            logits = logits[torch.from_numpy(draws.take)]
        results: dict[int, RowLogprobs] = {}
        raw: Tensor | None = None
        outputs = []
        if plan.logprobs:
            for request in plan.logprobs:
                check_ids(request, self.vocab_size)
                result = results[request.index] = RowLogprobs()
                if request.input_from >= 0:
                    input_logprobs(plan, request, hidden, self.model.logits, self.vocab_size, result)
                if request.output and (request.index >= len(plan.rows) or plan.sample[request.index]):
                    outputs.append(request)
            if outputs:
                # sampling works in place: keep the raw rows
                named = np.concatenate([places, len(plan.rows) + np.arange(len(plan.followers))])
                raw = logits[torch.from_numpy(draws.where[np.searchsorted(named, [r.index for r in outputs])])]
        verified: dict[int, Int32] = {}
        followed = np.empty(0, np.int32)
        if places.size:
            drawn = sample(logits, draws.plan, draws.places, self.kernels, self.masks).numpy()[draws.where]
            next_ids[places] = drawn[: places.size]
            followed = drawn[places.size : places.size + len(plan.followers)].astype(np.int32)
            verified = draws.verified(drawn)
        if raw is not None:
            every_id = np.concatenate([next_ids, followed])
            output_logprobs(outputs, raw, [int(every_id[r.index]) for r in outputs], results)
        return StepOutput(next_ids, results, verified, followed)

    def _forward(self, plan: Plan, last: Int32) -> tuple[Tensor, Tensor]:
        """hidden [T, H] after the final norm, and raw fp32 logits [N, V] at the flat positions `last`."""
        self._check(plan)
        if self._fused is not None and len(plan.ids) <= MAX_TOKENS:
            return self._fused(plan.ids, plan.positions, plan.out_slots, self._table(plan), last)
        hidden = self.model.hidden(self._batch(plan))
        return hidden, self.model.logits(hidden.index_select(0, torch.from_numpy(last.astype(np.int64))))

    @torch.inference_mode()
    def forward_logits(self, plan: Plan, all_positions: bool = True) -> Tensor:
        """Runs a plan without sampling; raw fp32 logits of every token [T, V], or of each row's last token [B, V]."""
        if not all_positions:
            return self._forward(plan, plan.offsets[1:] - 1)[1]
        hidden, _ = self._forward(plan, np.zeros(0, np.int32))
        return self.model.logits(hidden)
