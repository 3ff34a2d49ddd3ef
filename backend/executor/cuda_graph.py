"""CUDA graphs of whole steps: for which sizes, and how one is captured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def graph_sizes(most: int) -> list[int]:
    """Token counts that graphs are captured for, ascending: 1, 2, 4, 8, then every 8."""
    return [size for size in (1, 2, 4, *range(8, most + 8, 8)) if size < most] + [most]


@dataclass(slots=True)
class Graph:
    """A captured step. The tensors are overwritten by every replay."""

    replay: Callable[[], None]
    hidden: Tensor  # [tokens, H]
    logits: Tensor  # [tokens, V], in the model's dtype
    best: Tensor  # int64 [tokens]


def record(body: Callable[[], tuple[Tensor, Tensor, Tensor]], pool: Any) -> tuple[Callable[[], None], Any]:
    """Captures what `body` enqueues, with memory from a graph pool: (the replay, the tensors that it overwrites)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        body()  # compiles kernels and opens libraries, which must not happen while capturing
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        found = body()
    return graph.replay, found
