"""A whole decoder for a handful of tokens in one kernel: embedding, all layers, final norm, head.

For few tokens a step is bound by reading the weights, and calling a hundred small operations costs as much again.
`FusedDecoder(weights)` runs them in one parallel region; its definition is the same model computed operation by
operation (`stemma.backend.models.llama`), and a test holds it to that.

`fused(ids, positions, slots, batch, wanted) -> (hidden, logits)`
    ids, positions and slots int32 [T], T <= `MAX_TOKENS`; batch as for attention; wanted int32 [N], N <= T,
    ascending: token indices whose logits are computed. hidden fp32 [T, H] after the final norm, logits fp32 [N, V].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MAX_TOKENS = 8


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; matrices [out, in], contiguous fp32; keys and values are its pools [num_slots, Hkv, D]."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    o: Tensor
    o_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The whole decoder; cos and sin are tables over positions [context, D / 2]."""

    embedding: Tensor  # [V, H]
    layers: list[LayerWeights]
    norm: Tensor
    head: Tensor  # [V, H]
    cos: Tensor
    sin: Tensor
    heads: int
    kv_heads: int
    dim: int
    eps: float
    scale: float
