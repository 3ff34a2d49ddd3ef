"""The gated MLP of a decoder layer."""

from __future__ import annotations

from torch import Tensor

from stemma.backend.layers.config import ModelConfig, Weights
from stemma.backend.layers.linear import Linear
from stemma.kernels.dispatch import Kernels


class GatedMLP:
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, config: ModelConfig, weights: Weights, index: int, kernels: Kernels) -> None:
        prefix = f"model.layers.{index}.mlp."
        names = [prefix + "gate_proj", prefix + "up_proj"]
        self.gate_up = Linear.fused(
            [weights.take(name + ".weight") for name in names],
            [weights.take(name + ".bias") for name in names] if config.mlp_bias else None,
        )
        self.down = Linear(
            weights.take(prefix + "down_proj.weight"),
            weights.take(prefix + "down_proj.bias") if config.mlp_bias else None,
        )
        self.kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] -> [T, H]."""
        return self.down(self.kernels.silu_and_mul(self.gate_up(x)))
