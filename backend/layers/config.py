"""ModelConfig: what a Hugging Face config.json says about a dense decoder, read once and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from stemma.lang.errors import RequestError


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding parameters. `kind` is default, linear or llama3."""

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0  # linear, llama3
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_context: int = 8192  # llama3


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A dense Llama-like decoder. Sizes are counts of elements; `max_context` is in tokens."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_context: int
    rope: RopeConfig
    tie_embeddings: bool
    sliding_window: int | None
    attention_bias: bool
    mlp_bias: bool
    dtype: str | None
    initializer_range: float


class Weights(Protocol):
    """Where a model takes its tensors from, by checkpoint name; already in the engine's dtype and on its device."""

    def take(self, name: str) -> Tensor: ...


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `RequestError` naming the path when it is missing or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}", param="model_path") from error
    except ValueError as error:
        raise RequestError(f"{path} is not valid JSON: {error}", param="model_path") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path} must hold a JSON object, got {type(value).__name__}", param="model_path")
    return value


def _rope(config: Mapping[str, Any]) -> RopeConfig:
    """Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
    given: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise RequestError(f"config.json: {key} must be an object or null, got {value!r}", param="model_path")
        given.update(value or {})
    kind = given.get("rope_type", given.get("type", "default")) or "default"
    if kind not in ("default", "linear", "llama3"):
        raise RequestError(
            f"config.json: rope scaling {kind!r} is not supported; supported: default, linear, llama3",
            param="model_path",
        )
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise RequestError(f"config.json: partial_rotary_factor {partial!r} is not supported", param="model_path")
    need = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ())
    missing = [name for name in need if not isinstance(given.get(name), (int, float))]
    if missing:
        raise RequestError(f"config.json: rope scaling {kind!r} needs {', '.join(missing)}", param="model_path")
    theta = given.get("rope_theta", config.get("rope_theta", 10000.0))
    original = given.get("original_max_position_embeddings", config.get("max_position_embeddings", 8192))
    return RopeConfig(
        kind=kind,
        theta=float(theta),
        factor=float(given.get("factor") or 1.0),
        low_freq_factor=float(given.get("low_freq_factor") or 1.0),
        high_freq_factor=float(given.get("high_freq_factor") or 4.0),
        original_context=int(original),
    )


def _sliding_window(config: Mapping[str, Any]) -> int | None:
    if config.get("use_sliding_window", True) is False:
        return None
    kinds = config.get("layer_types")
    if kinds and all(kind == "full_attention" for kind in kinds):
        return None
    return config.get("sliding_window")


def parse_config(config: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Checks a config.json object. Raises `RequestError` naming what is missing or unsupported."""
    architectures = config.get("architectures") or []
    if not architectures:
        raise RequestError(f"{source} names no architecture (key 'architectures')", param="model_path")
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    bad = [name for name in required if not isinstance(config.get(name), int) or config[name] < 1]
    if bad:
        raise RequestError(f"{source}: {', '.join(bad)} must be integers >= 1", param="model_path")
    if config.get("quantization_config"):
        raise RequestError(f"{source}: quantised weights (quantization_config) are not supported", param="model_path")
    if config.get("hidden_act", "silu") != "silu":
        raise RequestError(
            f"{source}: hidden_act {config['hidden_act']!r} is not supported (only silu)", param="model_path"
        )
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    qwen3 = architectures[0].startswith("Qwen3")
    head_dim = config.get("head_dim") or (128 if qwen3 else config["hidden_size"] // heads)
    if heads % kv_heads:
        raise RequestError(
            f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}",
            param="model_path",
        )
    if head_dim % 2:
        raise RequestError(f"{source}: head_dim must be even, got {head_dim}", param="model_path")
    return ModelConfig(
        architecture=architectures[0],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        max_context=int(config.get("max_position_embeddings", 2048)),
        rope=_rope(config),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        sliding_window=_sliding_window(config),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        dtype=config.get("dtype") or config.get("torch_dtype"),
        initializer_range=float(config.get("initializer_range", 0.02)),
    )
