"""Fixtures for tests of the model, the runner and the sampler; puts the plan helper on the path."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when a kernel is defined

sys.path.insert(0, str(Path(__file__).parent))

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 307,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "hidden_act": "silu",
}


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory that holds only a config.json: the tiny Llama with the given changes."""

    def make(**changes: Any) -> Path:
        config = {**TINY, **changes}
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return tmp_path

    return make
