"""ForwardBatch: everything that the layers need to know about a step, passed by argument."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stemma.kernels.attention import AttentionBatch


@dataclass(slots=True)
class ForwardBatch:
    """T tokens of B rows. Made by the runner from a `Plan`; nothing here changes from layer to layer."""

    ids: Tensor  # int32 or int64 [T]
    cos: Tensor  # fp32 [T, D / 2], at the tokens' absolute positions
    sin: Tensor  # fp32 [T, D / 2]
    slots: Tensor  # int32 or int64 [T], where keys and values go
    attention: AttentionBatch
    keys: list[Tensor]  # the pool of each layer, [num_slots, Hkv, D]
    values: list[Tensor]
