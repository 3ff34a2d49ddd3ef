"""One file for each architecture, and the table of their names."""

from __future__ import annotations

from stemma.backend.models.llama import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from stemma.lang.errors import RequestError

ARCHITECTURES: dict[str, type[LlamaForCausalLM]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": MistralForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


def model_class(architecture: str) -> type[LlamaForCausalLM]:
    """The class for an architecture name of config.json. Raises `RequestError` listing the supported ones."""
    try:
        return ARCHITECTURES[architecture]
    except KeyError:
        raise RequestError(
            f"architecture {architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}", param="model_path"
        ) from None
