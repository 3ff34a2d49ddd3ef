"""CudaRunner: executes plans on an NVIDIA GPU.

A step is: one copy of everything the kernels need to know (`staging`), the forward pass, sampling, one copy of the ids
back. Nothing waits in between, so a step can be launched while the one before it runs; tokens go from one to the next
on the device. Steps in which every row has few tokens (decoding, forced tokens, drafts) are replayed from CUDA graphs,
one for each number of tokens in `graph_sizes`, captured when it is first needed; the step is padded to that number with
tokens on slot 0. Steps that only decode read what families of rows share once (`cuda_family`), in graphs of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.backend.cache.kv_pool import KVPool
from stemma.backend.core import Int32, Int64, Plan, Segment, StepOutput
from stemma.backend.executor.cuda_family import Families
from stemma.backend.executor.cuda_graph import Graph, graph_sizes, record
from stemma.backend.executor.cuda_step import CudaStep, out_of_memory
from stemma.backend.executor.draws import Draws
from stemma.backend.executor.idle import idle_plan
from stemma.backend.executor.runner import ModelRunner
from stemma.backend.executor.staging import Layout, Staging, put, words_for
from stemma.backend.layers.batch import ForwardBatch
from stemma.kernels.attention import AttentionBatch
from stemma.kernels.attention.family_plan import FAMILY
from stemma.kernels.attention.triton import DeviceWork
from stemma.kernels.attention.work import (
    FEW,
    FIELDS,
    MERGE_FIELDS,
    Work,
    gather_slots,
    make_work,
    most_items,
    most_merges,
    most_partials,
)
from stemma.lang.errors import RequestError

GRAPH_TOKENS = 256  # most tokens of a step that is replayed from a graph
FIRST_KEYS = 1 << 20  # slots that the first staging buffer has room for
MARGIN = 0.03  # of the GPU's memory stays free for what cannot be measured beforehand: fragmentation, code, workspaces
RESULTS = 3  # host buffers for results: two steps under way, and one being read


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


class CudaRunner(ModelRunner):
    """The device side of the engine on one NVIDIA GPU (compute capability 8.0 or more).

    `run` executes a plan, `launch` starts one (`core.AheadRunner`). Raises `RequestError` at construction as
    `ModelRunner` does, and when model and pool do not fit into the GPU's memory: it says what to change.
    """

    overlap = True
    takes_followers = False  # n samples of one prompt each compute its last token

    def __init__(
        self,
        model_dir: Path,
        *,
        load_format: str = "auto",
        dtype: str = "auto",
        max_total_tokens: int | None = None,
        context_length: int | None = None,
        max_running_requests: int = 256,
        page_size: int = 1,
        host_tokens: int = 0,
        host_path: str | None = None,
        seed: int = 0,
        num_threads: int | None = None,
        kernels: str | None = None,
        max_step_tokens: int = 2048,
        mem_fraction_static: float | None = None,
        cuda_graphs: bool = True,
        family: bool = True,
    ) -> None:
        """Loads the model. Options as for `ModelRunner`, and:

        max_step_tokens: the most prompt tokens of a step; what such a step needs is measured, and the pool gets the
        rest of the memory. mem_fraction_static: the most of the GPU's memory that weights and pool may take together;
        None is no such limit. cuda_graphs: replay small steps from graphs. family: in those that only decode, read
        what rows share once (query heads: at most 16 to a KV head, a power of two as head dimension).
        """
        began = time.perf_counter()
        self.max_step_tokens = max_step_tokens
        self._sizes: list[int] = []
        # by tokens, and whether partial results are merged; with family attention, rows of the widest tile
        self._graphs: dict[tuple[int, bool | str], Graph] = {}
        self._families: Families | None = None
        self._logits: Tensor | None = None  # of all graphs
        self._partial: Tensor | None = None
        self._generation = 1  # of the staging buffer that the graphs read
        self._results: list[Tensor] = []
        self._turn = 0
        self._previous: tuple[Tensor, Int64, Draws] | None = None
        self._fused = self.host = None
        try:
            self._load(
                model_dir,
                self._choose_gpu(),
                load_format=load_format,
                dtype=dtype,
                context_length=context_length,
                max_running_requests=max_running_requests,
                seed=seed,
                num_threads=num_threads,
                kernels=kernels,
            )
        except torch.cuda.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info()
            raise RequestError(
                f"the weights do not fit into the GPU's {_gib(total)} ({_gib(free)} are free now): take a smaller "
                "model, dtype='bfloat16' if it is float32, or end what else uses the GPU",
                param="model_path",
            ) from error
        c = self.config
        self.group = c.num_heads // c.num_kv_heads
        self._triton = self.kernels.chosen["attention"] == "triton"
        keys = min(FIRST_KEYS, max_running_requests * self.context_length)
        self._staging = Staging(words_for(max_step_tokens + max_running_requests, keys), self.device)
        if family and cuda_graphs and self._triton and self.group <= 16 and c.head_dim in (16, 32, 64, 128, 256):
            rows = min(GRAPH_TOKENS, max_running_requests)
            self._families = Families(
                self.group,
                c.num_kv_heads,
                c.head_dim,
                rows,
                rows * self.context_length,
                self._processors(),
                self.device,
            )
        self.num_slots, self.pool = 0, self._make_pool(1)
        self.num_slots = max(1, self._fit_slots(max_total_tokens, mem_fraction_static) // page_size) * page_size
        with out_of_memory(self._pool_advice()):
            self.pool = self._make_pool(self.num_slots)
        self.host = self._make_host(host_tokens, page_size, host_path)
        if cuda_graphs and self._triton:
            self._sizes = graph_sizes(min(GRAPH_TOKENS, max_running_requests))
        self.load_seconds = time.perf_counter() - began

    @staticmethod
    def _choose_gpu() -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def _processors(self) -> int:
        return torch.cuda.get_device_properties(self.device).multi_processor_count

    # -- memory ----------------------------------------------------------------------------------------------------

    def _pool_advice(self) -> str:
        return "The KV pool does not fit: lower max_total_tokens or mem_fraction_static"

    def step_advice(self, tokens: int) -> str:
        """What to change when a step runs out of memory."""
        return (
            f"A step of {tokens} tokens does not fit beside the weights and a KV pool of {self.num_slots} slots: lower "
            f"chunked_prefill_size (now {self.max_step_tokens}), max_running_requests (now "
            f"{self.max_running_requests}), max_total_tokens or mem_fraction_static"
        )

    @torch.inference_mode()
    def _measure(self) -> int:
        """Bytes that the largest step takes beside weights and pool, measured by running it on a pool of its own."""
        tokens = self.max_step_tokens + self.max_running_requests
        draws = min(self.max_running_requests, tokens)
        rows = max(draws, -(-tokens // self.context_length))
        self.num_slots = 1  # everything on the padding slot
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        with out_of_memory(f"The largest step ({tokens} tokens) does not fit: lower chunked_prefill_size"):
            self.run(self._idle_plan(0, -(-tokens // rows), sampled=True, rows=rows))
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_reserved() - before
        torch.cuda.empty_cache()
        return peak

    def _fit_slots(self, max_total_tokens: int | None, fraction: float | None) -> int:
        c = self.config
        each = KVPool.bytes_per_slot(c.num_layers, c.num_kv_heads, c.head_dim, self.dtype)
        step = self._measure()
        # graphs keep their own memory: what a step of as many tokens takes, and the logits that they write
        graphs = step * GRAPH_TOKENS // (self.max_step_tokens + self.max_running_requests)
        graphs += GRAPH_TOKENS * self.vocab_size * self.dtype.itemsize
        free, total = torch.cuda.mem_get_info()
        budget = free - step - graphs - int(total * MARGIN)
        if fraction is not None:
            budget = min(budget, int(total * fraction) - (total - free))
        self.memory = {"free": free, "step": step, "graphs": graphs, "slot": each}
        room = budget // each - 1
        if max_total_tokens is not None:
            if max_total_tokens > room:
                raise RequestError(
                    f"max_total_tokens {max_total_tokens} needs {_gib(each * max_total_tokens)}, there is room for "
                    f"{max(0, room)}: lower it, or lower chunked_prefill_size (its largest step takes {_gib(step)})"
                    + (", or raise mem_fraction_static" if fraction is not None else ""),
                    param="max_total_tokens",
                )
            return max_total_tokens + 1
        if room < self.context_length:
            raise RequestError(
                f"beside the weights there is room for {max(0, room)} KV slots, less than one context of "
                f"{self.context_length} tokens ({_gib(each * self.context_length)}): lower context_length"
                + (f" to {room} or less" if room > 0 else "")
                + f", lower chunked_prefill_size (its largest step takes {_gib(step)})"
                + (", or raise mem_fraction_static" if fraction is not None else ""),
                param="context_length",
            )
        return min(room, self.max_running_requests * self.context_length) + 1

    def model_info(self) -> dict[str, Any]:
        """Facts about the model, its pool and the GPU, JSON-ready."""
        return {
            **super().model_info(),
            "gpu": torch.cuda.get_device_name(self.device),
            "step_bytes": self.memory["step"],
            "graphs": sorted({size for size, _ in self._graphs}),
            "family_graphs": sorted({size for size, kind in self._graphs if isinstance(kind, str)}),
        }

    def reset(self) -> None:
        """Forgets everything stored: the KV pool is zero again. Weights and graphs stay."""
        torch.cuda.synchronize(self.device)
        super().reset()

    def copy_out(self, slots: Int32, host: Int32) -> None:
        """See `cache.host.HostCopies`. On the stream of the steps, so in their order."""
        assert self.host is not None
        self.host.copy_out(slots, host)

    def copy_in(self, host: Int32, slots: Int32) -> None:
        assert self.host is not None
        self.host.copy_in(host, slots)

    def close(self) -> None:
        """Waits until nothing runs any more."""
        torch.cuda.synchronize(self.device)

    # -- the forward pass ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def enqueue(self, plan: Plan, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Enqueues the forward pass: hidden [T, H], raw logits [N, V] in the model's dtype and the likeliest ids [N]
        at the flat positions `draws.at`. Valid until the next call."""
        if len(plan.relay_to):  # -1 until the step before has drawn them
            known = plan.ids.copy()
            known[plan.relay_to] = 0
            plan = replace(plan, ids=known)
        self._check(plan)
        tokens, wanted = len(plan.ids), len(draws.at)
        keys = int(plan.start.sum(dtype=np.int64)) + tokens
        size = self._graph_size(plan)
        if self._families is not None:
            graph = None if size is None else self._family_graph(plan, draws.at, size, self._families)
            if graph is not None:
                graph.replay()
                return graph.hidden, graph.logits[:wanted], graph.best[:wanted]
            self._families.forget()
        layout, work = self._stage(plan, draws.at, keys, size)
        self._relay_ids(layout, plan)
        if size is not None:
            merged = len(work.merges) > 0
            graph = self._graphs.get((size, merged))
            if graph is None:
                graph = self._graphs[size, merged] = self._capture_flat(size, layout, merged)
            graph.replay()
            return graph.hidden, graph.logits[:wanted], graph.best[:wanted]
        device = None
        if self._triton:
            heads, dim = self.config.num_heads, self.config.head_dim
            device = self._device_work(layout)
            device.partial = torch.empty(work.partials, heads, dim, dtype=torch.float32, device=self.device)
            device.partial_lse = torch.empty(work.partials, heads, dtype=torch.float32, device=self.device)
        batch = self._forward_batch(layout, self._rows_of(plan, device))
        return self._body(batch, self._staging.view(layout, "last", wanted), None)

    def _graph_size(self, plan: Plan) -> int | None:
        tokens = len(plan.ids)
        if not self._sizes or tokens > self._sizes[-1] or int(plan.n.max()) * self.group > FEW:
            return None
        return next(size for size in self._sizes if size >= tokens)

    def _stage(self, plan: Plan, last: Int32, keys: int, size: int | None) -> tuple[Layout, Work]:
        """Fills and sends the staging buffer. size: the tokens of the graph that the step is padded to."""
        batch = self._rows_of(plan)
        if self._triton:
            work = make_work(batch, self.group, self.config.num_kv_heads)
        else:
            nothing = np.zeros((0, FIELDS), np.int32)
            work, keys = Work(nothing, nothing, np.zeros((0, MERGE_FIELDS), np.int32), 0), 0
        if size is None:
            draws = max(len(last), len(plan.relay_to))
            layout = Layout(len(plan.ids), draws, len(work.few), len(work.many), len(work.merges))
        else:
            layout = self._graph_layout(size)
        array, starts = self._stage_tokens(plan, last, layout, keys), layout.starts
        put(array, starts["few"], work.few, layout.few * FIELDS)
        put(array, starts["many"], work.many, layout.many * FIELDS)
        put(array, starts["merges"], work.merges, layout.merges * MERGE_FIELDS)
        if keys:
            gather_slots(batch, array[layout.head : layout.head + keys])
        self._staging.send(layout.head + keys)
        return layout, work

    def _stage_tokens(self, plan: Plan, last: Int32, layout: Layout, slots: int) -> Int32:
        """A host buffer with room for so many slots behind the head, and what both kinds of attention need in it."""
        array, starts = self._staging.begin(layout.head + slots), layout.starts
        if self._staging.generation != self._generation:
            self._graphs.clear()  # they read a buffer that is gone
            self._generation = self._staging.generation
        put(array, starts["ids"], plan.ids, layout.tokens)
        put(array, starts["positions"], plan.positions, layout.tokens)
        put(array, starts["out_slots"], plan.out_slots, layout.tokens)
        put(array, starts["last"], last, layout.draws)
        if len(plan.relay_to):
            put(array, starts["relay_to"], plan.relay_to, layout.draws)
            put(array, starts["relay_from"], self._relay_from(plan.relay_from), layout.draws)
        return array

    def _family_graph(self, plan: Plan, last: Int32, size: int, families: Families) -> Graph | None:
        """Stages a step that reads what rows share once: the graph to replay, None if that is not worth it."""
        section = families.take(plan, size)
        if section is None:
            return None
        layout = Layout(size, size, 0, 0, 0, section.words)
        slots, head, at = families.words, layout.head, layout.starts["family"]
        array = self._stage_tokens(plan, last, layout, slots)
        families.fill(plan, array[at : at + section.words], array[head : head + slots])
        self._staging.send(head + slots)
        self._relay_ids(layout, plan)
        kind = f"family of {families.widest}"
        graph = self._graphs.get((size, kind))
        if graph is None:
            view, buffer = self._staging.view, self._staging.buffer
            numbers, out_slots = view(layout, "family", section.words), view(layout, "out_slots", size)
            work = families.tensors(section, families.widest, numbers, out_slots, buffer[head:])
            graph = self._graphs[size, kind] = self._capture(size, layout, {"family": work}, work.lay)
        return graph

    def _graph_layout(self, size: int) -> Layout:
        kv_heads = self.config.num_kv_heads
        return Layout(size, size, most_items(size, kv_heads), 0, most_merges(size, self.group, kv_heads))

    def _device_work(self, layout: Layout) -> DeviceWork:
        """Views of the staging buffer. Where partial results go is for the caller to say."""
        empty = torch.empty(0, device=self.device)
        fields = {"few": (layout.few, FIELDS), "many": (layout.many, FIELDS), "merges": (layout.merges, MERGE_FIELDS)}
        few, many, merges = (self._staging.view(layout, name, n * k).view(n, k) for name, (n, k) in fields.items())
        return DeviceWork(self._staging.buffer[layout.head :], few, many, merges, empty, empty)

    @staticmethod
    def _rows_of(plan: Plan, work: DeviceWork | None = None) -> AttentionBatch:
        batch = AttentionBatch(plan.slot_table, plan.rows, plan.start, plan.n, plan.offsets)
        if work is not None:
            batch.prepared["triton"] = work
        return batch

    def _forward_batch(self, layout: Layout, attention: AttentionBatch) -> ForwardBatch:
        view = self._staging.view
        positions = view(layout, "positions", layout.tokens)
        return ForwardBatch(
            ids=view(layout, "ids", layout.tokens),
            cos=self.model.rotary.cos.index_select(0, positions),
            sin=self.model.rotary.sin.index_select(0, positions),
            slots=view(layout, "out_slots", layout.tokens),
            attention=attention,
            keys=self.pool.keys,
            values=self.pool.values,
        )

    def _body(self, batch: ForwardBatch, last: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.model.hidden(batch)
        chosen = hidden.index_select(0, last)
        logits = torch.mm(chosen, self.model.head.weight.t(), out=out)
        return hidden, logits, self.kernels.argmax(logits)

    def _forward(self, plan: Plan, last: Int32) -> tuple[Tensor, Tensor]:
        draws = Draws(plan, np.zeros(0, np.int64), last, np.zeros(0, np.int64))
        hidden, logits, _ = self.enqueue(plan, draws)
        return hidden[: len(plan.ids)].clone(), logits.to(torch.float32, copy=True)  # a replay overwrites them

    # -- graphs ----------------------------------------------------------------------------------------------------

    def _capture_flat(self, size: int, layout: Layout, merged: bool) -> Graph:
        """A graph whose attention follows work items."""
        heads, dim = self.config.num_heads, self.config.head_dim
        if self._partial is None:
            rows = most_partials(self._sizes[-1], self.group, self.config.num_kv_heads)
            self._partial = torch.empty(rows, heads, dim, dtype=torch.float32, device=self.device)
            self._partial_lse = torch.empty(rows, heads, dtype=torch.float32, device=self.device)
        work = self._device_work(layout)
        work.partial, work.partial_lse = self._partial, self._partial_lse
        if not merged:
            work.merges = work.merges[:0]  # a launch that does nothing still takes its time in every layer
        return self._capture(size, layout, {"triton": work}, lambda: None)

    def _capture(self, size: int, layout: Layout, prepared: dict[str, Any], before: Callable[[], None]) -> Graph:
        """Captures the forward pass of `size` tokens. What it reads is in the staging buffer already. prepared: for
        attention; before: enqueues what the layers need first."""
        if self._logits is None:
            self._logits = torch.empty(self._sizes[-1], self.vocab_size, dtype=self.dtype, device=self.device)
        if not self._graphs:
            self._pool_id = torch.cuda.graph_pool_handle()  # a pool without graphs cannot be used again
        logits = self._logits[:size]
        nothing = np.zeros(0, np.int32)
        attention = AttentionBatch(nothing, nothing, nothing, nothing, nothing, prepared=prepared)
        last = self._staging.view(layout, "last", size)

        def body() -> tuple[Tensor, Tensor, Tensor]:
            before()
            return self._body(self._forward_batch(layout, attention), last, logits)

        replay, (hidden, logits, best) = self._record(body)
        return Graph(replay, hidden, logits, best)

    def _record(self, body: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> tuple[Callable[[], None], Any]:
        return record(body, self._pool_id)

    # -- from step to step -----------------------------------------------------------------------------------------

    def relay(self, ids: Tensor, places: Int64, draws: Draws) -> None:
        """Remembers what a step draws, on the device, for the step after it."""
        self._previous = ids, places, draws

    def _relay_from(self, indices: Int32) -> Int32:
        """Where the draws behind plan indices of the step before stand among its drawn ids."""
        assert self._previous is not None, "a step relays from one that drew nothing"
        _, places, draws = self._previous
        return draws.where[np.searchsorted(places, indices)].astype(np.int32)

    def _relay_ids(self, layout: Layout, plan: Plan) -> None:
        count = len(plan.relay_to)
        if not count:
            return
        assert self._previous is not None
        drawn = self._previous[0].index_select(0, self._staging.view(layout, "relay_from", count))
        to = self._staging.view(layout, "relay_to", count).long()
        self._staging.view(layout, "ids", layout.tokens).index_copy_(0, to, drawn.clamp_min(0).int())

    def send_back(self, ids: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Starts the copy of drawn ids to a pinned buffer; both are there when the event is."""
        count = ids.shape[0]
        self._turn = (self._turn + 1) % RESULTS
        if len(self._results) < RESULTS or self._results[self._turn].shape[0] < count:
            room = max(count, 2 * self.max_running_requests)
            self._results = [torch.empty(room, dtype=torch.int64, pin_memory=True) for _ in range(RESULTS)]
        host = self._results[self._turn][:count]
        host.copy_(ids, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return host, event

    def launch(self, plan: Plan) -> CudaStep:
        """Starts a step; see `core.AheadRunner`."""
        return CudaStep(self, plan)

    def run(self, plan: Plan) -> StepOutput:
        """Executes a plan. next_ids[i] is -1 where row i does not sample, or where its grammar mask allows nothing."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def warm_up(self) -> float:
        """Compiles every kernel (or reads it from Triton's cache) and captures a few graphs; returns the seconds.
        Leaves the pool as it was, apart from slot 0."""
        began = time.perf_counter()
        for tokens in (1, min(64, self.context_length)):
            for sampled in (False, True):
                self.run(self._idle_plan(0, tokens, sampled))
        # one query on many keys: partial results are merged
        self.run(self._idle_plan(min(1024, self.context_length) - 1, 1, sampled=False))
        start = min(1024, self.context_length) - 1
        for rows in self._families.classes if self._families is not None else ():
            if rows > 1 and rows <= self._sizes[-1] and start > FAMILY:
                plan = self._idle_plan(start, 1, sampled=False, rows=rows)
                self.run(replace(plan, segments=[Segment(0, 0, rows, 0, start)]))
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def _idle_plan(self, start: int, n: int, sampled: bool, rows: int = 1) -> Plan:
        return idle_plan(self.vocab_size, self.masks.words, start, n, sampled, rows)
