"""Self-attention of a decoder layer: project, rotate, store, attend from the pool, project back."""

from __future__ import annotations

from torch import Tensor

from stemma.backend.layers.batch import ForwardBatch
from stemma.backend.layers.config import ModelConfig, Weights
from stemma.backend.layers.linear import Linear
from stemma.kernels.dispatch import Kernels


class SelfAttention:
    """Grouped-query attention with rotary positions; optionally q and k are normalised for each head (Qwen3)."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        index: int,
        biases: tuple[bool, bool],
        qk_norm: bool,
        kernels: Kernels,
    ) -> None:
        prefix = f"model.layers.{index}.self_attn."
        projections = [prefix + name for name in ("q_proj", "k_proj", "v_proj")]
        qkv_bias, o_bias = biases
        self.qkv = Linear.fused(
            [weights.take(p + ".weight") for p in projections],
            [weights.take(p + ".bias") for p in projections] if qkv_bias else None,
        )
        self.o = Linear(
            weights.take(prefix + "o_proj.weight"), weights.take(prefix + "o_proj.bias") if o_bias else None
        )
        self.q_norm = weights.take(prefix + "q_norm.weight") if qk_norm else None
        self.k_norm = weights.take(prefix + "k_norm.weight") if qk_norm else None
        self.index = index
        self.heads, self.kv_heads, self.dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.eps = config.rms_norm_eps
        self.scale = config.head_dim**-0.5
        self.kernels = kernels

    def __call__(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """x [T, H] -> [T, H]."""
        tokens = x.shape[0]
        q_size = self.heads * self.dim
        kv_size = self.kv_heads * self.dim
        qkv = self.qkv(x)
        q = qkv[:, :q_size].view(tokens, self.heads, self.dim)
        k = qkv[:, q_size : q_size + kv_size].view(tokens, self.kv_heads, self.dim)
        v = qkv[:, q_size + kv_size :].view(tokens, self.kv_heads, self.dim)
        kernels = self.kernels
        if self.q_norm is not None:
            kernels.rms_norm(q, self.q_norm, self.eps, q)
            kernels.rms_norm(k, self.k_norm, self.eps, k)
        k_pool, v_pool = batch.keys[self.index], batch.values[self.index]
        kernels.rope_store_kv(q, k, v, batch.cos, batch.sin, batch.slots, k_pool, v_pool)
        return self.o(kernels.attention(q, k_pool, v_pool, batch.attention, self.scale))
