"""The dense Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3 (after the model code of Hugging Face transformers)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from stemma.backend.layers.attention import SelfAttention
from stemma.backend.layers.batch import ForwardBatch
from stemma.backend.layers.config import ModelConfig, Weights
from stemma.backend.layers.linear import Linear
from stemma.backend.layers.mlp import GatedMLP
from stemma.backend.layers.rotary import RotaryTable
from stemma.kernels.decode_step import DecoderWeights, LayerWeights
from stemma.kernels.dispatch import Kernels


class DecoderLayer:
    """x += attention(norm(x)); x += mlp(norm(x)). Additions are fused with the following norm."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        index: int,
        biases: tuple[bool, bool],
        qk_norm: bool,
        kernels: Kernels,
    ) -> None:
        prefix = f"model.layers.{index}."
        self.kernels = kernels
        self.eps = config.rms_norm_eps
        self.input_norm = weights.take(prefix + "input_layernorm.weight")
        self.post_norm = weights.take(prefix + "post_attention_layernorm.weight")
        self.attention = SelfAttention(config, weights, index, biases, qk_norm, kernels)
        self.mlp = GatedMLP(config, weights, index, kernels)

    def __call__(self, x: Tensor, residual: Tensor, batch: ForwardBatch) -> Tensor:
        """x [T, H] is what to add to residual [T, H] (updated in place); returns the next thing to add."""
        x = self.kernels.add_rms_norm(x, residual, self.input_norm, self.eps)
        x = self.attention(x, batch)
        x = self.kernels.add_rms_norm(x, residual, self.post_norm, self.eps)
        return self.mlp(x)


class LlamaForCausalLM:
    """A decoder with its head. Weights are plain tensors; everything about a step comes in the `ForwardBatch`."""

    qk_norm: ClassVar[bool] = False

    @classmethod
    def biases(cls, config: ModelConfig) -> tuple[bool, bool]:
        """Whether (q, k, v) and o have biases."""
        return config.attention_bias, config.attention_bias

    @classmethod
    def expected(cls, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a checkpoint must hold."""
        h, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
        q, kv = config.num_heads * d, config.num_kv_heads * d
        qkv_bias, o_bias = cls.biases(config)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, h)}
        for i in range(config.num_layers):
            p = f"model.layers.{i}."
            linears = {
                "self_attn.q_proj": (q, h, qkv_bias),
                "self_attn.k_proj": (kv, h, qkv_bias),
                "self_attn.v_proj": (kv, h, qkv_bias),
                "self_attn.o_proj": (h, q, o_bias),
                "mlp.gate_proj": (inner, h, config.mlp_bias),
                "mlp.up_proj": (inner, h, config.mlp_bias),
                "mlp.down_proj": (h, inner, config.mlp_bias),
            }
            for name, (rows, columns, bias) in linears.items():
                shapes[f"{p}{name}.weight"] = (rows, columns)
                if bias:
                    shapes[f"{p}{name}.bias"] = (rows,)
            shapes[p + "input_layernorm.weight"] = shapes[p + "post_attention_layernorm.weight"] = (h,)
            if cls.qk_norm:
                shapes[p + "self_attn.q_norm.weight"] = shapes[p + "self_attn.k_norm.weight"] = (d,)
        shapes["model.norm.weight"] = (h,)
        if not config.tie_embeddings:
            shapes["lm_head.weight"] = (config.vocab_size, h)
        return shapes

    def __init__(
        self, config: ModelConfig, weights: Weights, kernels: Kernels, context_length: int, device: torch.device
    ) -> None:
        self.config = config
        self.kernels = kernels
        self.embedding = weights.take("model.embed_tokens.weight")
        biases = self.biases(config)
        self.layers = [
            DecoderLayer(config, weights, i, biases, self.qk_norm, kernels) for i in range(config.num_layers)
        ]
        self.norm = weights.take("model.norm.weight")
        self.head = Linear(self.embedding if config.tie_embeddings else weights.take("lm_head.weight"))
        if config.tie_embeddings:
            self.embedding = self.head.weight
        self.rotary = RotaryTable(config.rope, config.head_dim, context_length, device)

    def hidden(self, batch: ForwardBatch) -> Tensor:
        """Runs all layers on the step's tokens; returns [T, H] after the final norm."""
        residual = self.embedding.index_select(0, batch.ids)
        x = torch.zeros_like(residual)
        for layer in self.layers:
            x = layer(x, residual, batch)
        return self.kernels.add_rms_norm(x, residual, self.norm, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, H] from `hidden` to fp32 logits [N, vocab]."""
        return self.head(hidden).float()

    def decoder_weights(self, keys: list[Tensor], values: list[Tensor]) -> DecoderWeights:
        """The same weights, with the pools of each layer, as the fused decoder wants them."""
        layers = [
            LayerWeights(
                input_norm=layer.input_norm,
                qkv=layer.attention.qkv.weight,
                qkv_bias=layer.attention.qkv.bias,
                q_norm=layer.attention.q_norm,
                k_norm=layer.attention.k_norm,
                o=layer.attention.o.weight,
                o_bias=layer.attention.o.bias,
                post_norm=layer.post_norm,
                gate_up=layer.mlp.gate_up.weight,
                gate_up_bias=layer.mlp.gate_up.bias,
                down=layer.mlp.down.weight,
                down_bias=layer.mlp.down.bias,
                keys=keys[i],
                values=values[i],
            )
            for i, layer in enumerate(self.layers)
        ]
        c = self.config
        return DecoderWeights(
            embedding=self.embedding,
            layers=layers,
            norm=self.norm,
            head=self.head.weight,
            cos=self.rotary.cos,
            sin=self.rotary.sin,
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            dim=c.head_dim,
            eps=c.rms_norm_eps,
            scale=c.head_dim**-0.5,
        )


class MistralForCausalLM(LlamaForCausalLM):
    """Llama without biases."""

    @classmethod
    def biases(cls, config: ModelConfig) -> tuple[bool, bool]:
        """None, whatever the configuration says."""
        return False, False


class Qwen2ForCausalLM(LlamaForCausalLM):
    """Llama with q, k and v biases."""

    @classmethod
    def biases(cls, config: ModelConfig) -> tuple[bool, bool]:
        """Always q, k and v, never o."""
        return True, False


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Llama with q and k normalised for each head before the rotation."""

    qk_norm = True
