"""A tiny model directory: a real byte-level BPE tokenizer trained on the spot, a chat template, and dummy weights."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = """The capital of France is Paris. The capital of Italy is Rome. Name: Ada Lovelace, age: 36, city: London.
What is 12 + 30? It is 42. yes no maybe positive negative neutral {"name": "Ada", "age": 36} hello there friend,
once upon a time there was a small program that shared its prefix with many others, and every branch was happy.
red green blue one two three four five six seven eight nine ten. Please answer the question in one short sentence."""

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|bos|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def write_tiny_model(path: Path, *, vocab: int = 420, layers: int = 2, context: int = 512) -> Path:
    """Everything but weights (use load_format='dummy'). Llama, fp32, GQA 4/2, hidden 32."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|bos|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE})
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "initializer_range": 0.3,
        "bos_token_id": tokenizer.token_to_id("<|bos|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    (path / "config.json").write_text(json.dumps(config))
    return path
