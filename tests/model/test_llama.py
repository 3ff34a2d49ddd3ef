"""Our logits are those of transformers, for every architecture and every way to cut a sequence into steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.backend.core import Group
from stemma.backend.executor.runner import ModelRunner

from plans import Sequences  # isort: skip

VOCAB = 307
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {}),
    "llama2-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4}),
    "llama-one-kv-head": ("Llama", {"num_key_value_heads": 1}),
    "mistral": ("Mistral", {"head_dim": 24, "sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}
TOLERANCE = 2e-4


def make_model(name: str, path: Path) -> Any:
    """A random transformers model of this variant, saved to `path`."""
    import transformers

    kind, changes = VARIANTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        for tensor_name, tensor in model.named_parameters():
            if "norm" in tensor_name or "bias" in tensor_name:
                torch.nn.init.normal_(tensor, mean=float("norm" in tensor_name), std=0.3)
        model.save_pretrained(path)
    return model


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    made: dict[str, tuple[Any, Path]] = {}

    def get(name: str) -> tuple[Any, Path]:
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            made[name] = make_model(name, path), path
        return made[name]

    return get


def expected_logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def random_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("kernels", ["reference", "sdpa", "cpu"])
@pytest.mark.parametrize("name", VARIANTS)
def test_prefill_and_cached_decode_give_the_logits_of_transformers(
    name: str, kernels: str, variants: Callable[[str], tuple[Any, Path]]
) -> None:
    model, path = variants(name)
    table = Sequences(VOCAB)
    runner = ModelRunner(path, kernels=kernels, max_total_tokens=table.slots_needed)
    ids = random_ids(70)
    wanted = expected_logits(model, ids)
    assert_close(runner.forward_logits(table.extend([(0, ids[:60])])), wanted[:60])
    for position in range(60, 65):
        assert_close(runner.forward_logits(table.extend([(0, ids[position : position + 1])])), wanted[[position]])
    assert_close(runner.forward_logits(table.extend([(0, ids[65:])]), all_positions=False), wanted[-1:])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 8, 9, 33])
def test_chunked_prefill_gives_the_logits_of_one_prefill(
    chunk: int, fused: bool, variants: Callable[[str], tuple[Any, Path]]
) -> None:
    model, path = variants("qwen3")
    table = Sequences(VOCAB)
    runner = ModelRunner(path, max_total_tokens=table.slots_needed, fused=fused)
    ids = random_ids(100)
    parts = [runner.forward_logits(table.extend([(0, ids[i : i + chunk])])) for i in range(0, 100, chunk)]
    assert_close(torch.cat(parts), expected_logits(model, ids))


@pytest.mark.parametrize("kernels", ["reference", "sdpa", "cpu"])
def test_a_mixed_batch_gives_each_row_its_own_logits(kernels: str, variants: Callable[[str], tuple[Any, Path]]) -> None:
    model, path = variants("llama3")
    table = Sequences(VOCAB)
    runner = ModelRunner(path, kernels=kernels, max_total_tokens=table.slots_needed)
    sequences = [random_ids(length, seed) for seed, length in enumerate((40, 90, 13, 130))]
    runner.run(table.extend([(0, sequences[0][:39]), (2, sequences[2][:5])]))
    runner.run(table.extend([(3, sequences[3][:100])]))
    plan = table.extend(
        [(0, sequences[0][39:]), (1, sequences[1]), (2, sequences[2][5:]), (3, sequences[3][100:])],
    )
    got = runner.forward_logits(plan)
    begins = (39, 0, 5, 100)
    for i, (ids, begin) in enumerate(zip(sequences, begins, strict=True)):
        assert_close(got[plan.offsets[i] : plan.offsets[i + 1]], expected_logits(model, ids)[begin:])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kernels", ["reference", "sdpa", "cpu"])
def test_rows_may_read_slots_that_a_leader_writes_in_the_same_step(
    kernels: str, grouped: bool, variants: Callable[[str], tuple[Any, Path]]
) -> None:
    model, path = variants("llama3")
    table = Sequences(VOCAB)
    runner = ModelRunner(path, kernels=kernels, max_total_tokens=table.slots_needed)
    prefix = random_ids(75)
    tails = [random_ids(length, 10 + length) for length in (1, 4, 20)]
    spans = [(0, *table.put(0, prefix + tails[0]))]
    for row, tail in ((1, tails[1]), (2, tails[2])):
        table.share(0, row, 75)
        spans.append((row, *table.put(row, tail)))
    plan = table.plan(spans, groups=[Group(0, 3, 75)] if grouped else [])
    got = runner.forward_logits(plan)
    assert_close(got[:76], expected_logits(model, prefix + tails[0]))
    assert_close(got[76:80], expected_logits(model, prefix + tails[1])[75:])
    assert_close(got[80:], expected_logits(model, prefix + tails[2])[75:])


@pytest.mark.parametrize("rows", [3, 30])
def test_grouped_decode_equals_plain_decode(rows: int, variants: Callable[[str], tuple[Any, Path]]) -> None:
    _, path = variants("llama3")
    table = Sequences(VOCAB, max_rows=rows + 2)
    runner = ModelRunner(path, max_total_tokens=table.slots_needed, fused=False)
    runner.run(table.extend([(0, random_ids(101))]))
    for row in range(1, rows):
        table.share(0, row, 101)
    runner.run(table.extend([(row, random_ids(row % 5 + 1, row)) for row in range(rows)]))
    spans = [(row, *table.put(row, random_ids(1, row))) for row in range(rows)]
    plain = runner.forward_logits(table.plan(spans))
    grouped = runner.forward_logits(table.plan(spans, groups=[Group(1, rows - 1, 101)]))
    assert_close(grouped, plain)


def test_the_fused_decoder_equals_the_model_operation_by_operation(
    variants: Callable[[str], tuple[Any, Path]],
) -> None:
    for name in VARIANTS:
        _, path = variants(name)
        tables = [Sequences(VOCAB), Sequences(VOCAB)]
        runners = [ModelRunner(path, max_total_tokens=tables[0].slots_needed, fused=fused) for fused in (True, False)]
        results = []
        for table, runner in zip(tables, runners, strict=True):
            parts = [
                runner.forward_logits(table.extend([(0, random_ids(8))])),
                runner.forward_logits(table.extend([(0, [5]), (1, random_ids(5)), (2, [7, 8])])),
                runner.forward_logits(table.extend([(1, [9]), (0, [4]), (2, [3])])),
            ]
            results.append(torch.cat(parts))
            assert runner.run(table.extend([(0, [1, 2]), (2, [3])], sample=[False, True])).next_ids[0] == -1
        assert_close(*results)


def test_greedy_tokens_do_not_depend_on_batch_or_chunks(variants: Callable[[str], tuple[Any, Path]]) -> None:
    _, path = variants("llama2")
    prompts = [random_ids(length, length) for length in (5, 21, 60, 37)]

    def decode(runner: ModelRunner, table: Sequences, rows: list[int], chunk: int, steps: int = 20) -> list[list[int]]:
        last: dict[int, int] = {}
        for row in rows:
            for i in range(0, len(prompts[row]), chunk):
                last[row] = int(runner.run(table.extend([(row, prompts[row][i : i + chunk])])).next_ids[0])
        out = {row: [last[row]] for row in rows}
        for _ in range(steps):
            step = runner.run(table.extend([(row, [out[row][-1]]) for row in rows])).next_ids
            for row, token in zip(rows, step.tolist(), strict=True):
                out[row].append(token)
        return [out[row] for row in rows]

    runner = ModelRunner(path, max_total_tokens=2100)
    together = decode(runner, Sequences(VOCAB), [0, 1, 2, 3], 1000)
    for chunk in (1, 7):
        alone = [decode(runner, Sequences(VOCAB, shuffle=None), [row], chunk)[0] for row in range(4)]
        assert alone == together


def test_bfloat16_is_close(variants: Callable[[str], tuple[Any, Path]]) -> None:
    model, path = variants("qwen2")
    table = Sequences(VOCAB)
    runner = ModelRunner(path, dtype="bfloat16", max_total_tokens=table.slots_needed)
    assert runner.model_info()["dtype"] == "bfloat16"
    ids = random_ids(30)
    got = runner.forward_logits(table.extend([(0, ids)]))
    wanted = expected_logits(model, ids)
    assert got.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(got, wanted).min() > 0.99
    assert runner.run(table.extend([(0, [1])])).next_ids[0] >= 0
