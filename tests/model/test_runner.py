"""The runner: log-probabilities, sizes, errors, weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stemma.backend.core import LogprobRequest
from stemma.backend.executor import logprobs
from stemma.backend.executor.runner import ModelRunner
from stemma.backend.models import model_class
from stemma.lang.errors import RequestError

from plans import Sequences  # isort: skip

Make = Callable[..., Path]
VOCAB = 307


def dummy(path: Path, **options: object) -> ModelRunner:
    return ModelRunner(path, load_format="dummy", max_total_tokens=2100, **options)  # pyright: ignore[reportArgumentType]


def save_checkpoint(path: Path, shards: int = 1) -> dict[str, torch.Tensor]:
    """Writes random weights that fit the directory's config.json."""
    runner = ModelRunner(path, load_format="dummy", max_total_tokens=300)
    generator = torch.Generator().manual_seed(1)
    shapes = model_class(runner.config.architecture).expected(runner.config)
    tensors = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return tensors
    names = list(tensors)
    index = {}
    for k in range(shards):
        part = {name: tensors[name] for name in names[k::shards]}
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, path / file)
        index.update(dict.fromkeys(part, file))
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return tensors


@pytest.mark.parametrize("count", [4, 40])
def test_logprobs_are_the_raw_log_softmax(count: int, tiny_dir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 7 * VOCAB)  # several chunks
    runner = dummy(tiny_dir())
    ids = np.random.default_rng(0).integers(0, VOCAB, count).tolist()
    table = Sequences(VOCAB)
    wanted = torch.log_softmax(runner.forward_logits(table.extend([(0, ids)])), -1)
    table = Sequences(VOCAB)
    plan = table.extend(
        [(0, ids), (1, [3])],
        logprobs=[LogprobRequest(0, input_from=1, input_to=count, output=True, top=3, ids=(5, 0))],
        temperature=0.7,
        seed=4,
        repetition_penalty=1.5,
        bias=((0, ((9, 50.0),)),),
    )
    output = runner.run(plan)
    assert list(output.logprobs) == [0]
    result = output.logprobs[0]
    assert output.next_ids[0] == 9
    assert result.input_start == 1
    np.testing.assert_allclose(result.input, [wanted[i, ids[i + 1]].item() for i in range(count - 1)], atol=2e-5)
    assert len(result.input_top) == len(result.input_ids) == count - 1
    for i, top in enumerate(result.input_top):
        values, best = wanted[i].topk(3)
        assert [token for _, token in top] == best.tolist()
        np.testing.assert_allclose([p for p, _ in top], values.numpy(), atol=2e-5)
        np.testing.assert_allclose([p for p, _ in result.input_ids[i]], wanted[i, [5, 0]].numpy(), atol=2e-5)
    assert result.output == pytest.approx(wanted[-1, 9].item(), abs=2e-5)
    assert result.output_top is not None and result.output_top[0][1] == int(wanted[-1].argmax())
    assert result.output_ids is not None and [token for _, token in result.output_ids] == [5, 0]


def test_logprobs_of_a_chunk_reach_one_token_beyond_it(tiny_dir: Make) -> None:
    runner = dummy(tiny_dir())
    ids = list(range(1, 21))
    table = Sequences(VOCAB)
    wanted = torch.log_softmax(runner.forward_logits(table.extend([(0, ids)])), -1)
    for begin, end, first, last in ((10, 20, 11, 20), (10, 20, 15, 18), (0, 12, 3, 13), (7, 15, 15, 16)):
        table = Sequences(VOCAB)
        if begin:
            runner.run(table.extend([(0, ids[:begin])]))
        table.id_table[0, :20] = ids  # what follows the chunk is known already
        request = LogprobRequest(0, input_from=first, input_to=last)
        result = runner.run(table.extend([(0, ids[begin:end])], sample=[False], logprobs=[request])).logprobs[0]
        assert result.input_start == first
        np.testing.assert_allclose(result.input, [wanted[p - 1, ids[p]].item() for p in range(first, last)], atol=2e-5)
        assert result.input_top == [] and result.output is None


def test_output_logprobs_only(tiny_dir: Make) -> None:
    runner = dummy(tiny_dir())
    plan = Sequences(VOCAB).extend([(0, [1]), (1, [2, 3])], logprobs=[LogprobRequest(1, output=True)])
    output = runner.run(plan)
    assert output.logprobs[1].input == [] and output.logprobs[1].output_top is None
    assert output.logprobs[1].output is not None and output.logprobs[1].output < 0


def test_a_plan_outside_the_model_is_refused(tiny_dir: Make) -> None:
    runner = dummy(tiny_dir())
    with pytest.raises(ValueError, match=r"token id 307 .*vocabulary of 307"):
        runner.run(Sequences(VOCAB).extend([(0, [1, 307])]))
    with pytest.raises(ValueError, match="slot 99999"):
        plan = Sequences(VOCAB).extend([(0, [1])])
        plan.out_slots[0] = 99999
        runner.run(plan)
    with pytest.raises(ValueError, match="logprob id 400"):
        runner.run(Sequences(VOCAB).extend([(0, [1])], logprobs=[LogprobRequest(0, output=True, ids=(400,))]))


def test_a_sampling_row_knows_nothing_of_rows_that_do_not_sample(tiny_dir: Make) -> None:
    runner = dummy(tiny_dir())
    table = Sequences(VOCAB)
    plan = table.extend([(0, [4] * 12), (1, [5] * 3)], sample=[False, True], temperature=1.0, seed=3)
    got = runner.run(plan).next_ids
    alone = runner.run(Sequences(VOCAB).extend([(0, [5] * 3)], temperature=1.0, seed=3)).next_ids
    assert got.tolist() == [-1, int(alone[0])]


def test_dummy_weights_follow_the_seed(tiny_dir: Make) -> None:
    plan = lambda: Sequences(VOCAB).extend([(0, [1, 2, 3])])  # noqa: E731
    first, again, other = (dummy(tiny_dir(), seed=s).forward_logits(plan()) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sizes_and_facts(tiny_dir: Make) -> None:
    runner = ModelRunner(tiny_dir(), load_format="dummy", context_length=100, max_running_requests=8)
    assert runner.num_slots == 8 * 100 + 1  # more can never be in use
    assert (runner.vocab_size, runner.context_length) == (VOCAB, 100)
    info = json.loads(json.dumps(runner.model_info()))
    assert info["architecture"] == "LlamaForCausalLM" and info["num_slots"] == runner.num_slots
    assert info["kv_pool_bytes"] == 2 * 2 * 801 * 2 * 16 * 4
    assert dummy(tiny_dir()).num_slots == 2101
    runner.run(Sequences(VOCAB, max_rows=3).extend([(0, [1])]))
    assert any(bool(k.any()) for k in runner.pool.keys)
    runner.reset()
    assert not any(bool(k.any()) for k in runner.pool.keys)


def test_warm_up_leaves_no_trace(tiny_dir: Make) -> None:
    runner = dummy(tiny_dir())
    assert runner.warm_up() > 0
    assert not any(bool(k[1:].any()) for k in runner.pool.keys)


@pytest.mark.parametrize("shards", [1, 3])
def test_checkpoints_are_read_from_one_file_or_shards(shards: int, tiny_dir: Make) -> None:
    path = tiny_dir()
    tensors = save_checkpoint(path, shards)
    runner = ModelRunner(path, max_total_tokens=300)
    assert torch.equal(runner.model.embedding, tensors["model.embed_tokens.weight"])
    assert torch.equal(runner.model.layers[1].mlp.down.weight, tensors["model.layers.1.mlp.down_proj.weight"])


def test_missing_unexpected_and_misshapen_tensors_are_named(tiny_dir: Make) -> None:
    path = tiny_dir()
    file = path / "model.safetensors"
    save_checkpoint(path)
    tensors = load_file(file)
    changed = dict(tensors)
    del changed["model.norm.weight"]
    changed["model.extra"] = torch.zeros(1)
    changed["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(1)  # old checkpoints keep it: ignored
    save_file(changed, file)
    with pytest.raises(RequestError, match=r"missing 1: model.norm.weight; unexpected 1: model.extra"):
        ModelRunner(path)
    tensors["lm_head.weight"] = torch.zeros(VOCAB, 4)
    save_file(tensors, file)
    with pytest.raises(RequestError, match=r"lm_head.weight is \[307, 4\], config.json says \[307, 48\]"):
        ModelRunner(path)


def test_wrong_directories_say_what_to_try(tiny_dir: Make, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist; give a directory"):
        ModelRunner(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"holds no config\.json"):
        ModelRunner(tmp_path)
    path = tiny_dir()
    with pytest.raises(RequestError, match="is a file"):
        ModelRunner(path / "config.json")
    with pytest.raises(RequestError, match="load_format='dummy'"):
        ModelRunner(path)
    (path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RequestError, match=r"cannot read .*model\.safetensors"):
        ModelRunner(path)
    (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(RequestError, match=r"files that are missing: gone\.safetensors"):
        ModelRunner(path)
    (path / "config.json").write_text("{")
    with pytest.raises(RequestError, match="not valid JSON"):
        ModelRunner(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"'GPT2LMHeadModel' is not supported; supported: LlamaForCausalLM, "),
        ({"architectures": None}, "names no architecture"),
        ({"hidden_size": None}, "hidden_size must be integers"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "needs low_freq_factor"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 128}, "context_length <= 128"),
    ],
)
def test_unsupported_configurations_are_named(changes: dict[str, object], message: str, tiny_dir: Make) -> None:
    with pytest.raises(RequestError, match=message):
        dummy(tiny_dir(**changes))


def test_a_sliding_window_that_is_never_reached_is_fine(tiny_dir: Make) -> None:
    path = tiny_dir(architectures=["MistralForCausalLM"], sliding_window=128)
    assert dummy(path, context_length=128).context_length == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 1000}, "longer than the model's 256"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"device": "cuda"}, "device 'cuda'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str, tiny_dir: Make) -> None:
    with pytest.raises(RequestError, match=message):
        dummy(tiny_dir(), **options)


def test_input_logprobs_never_hold_the_prompt_times_the_vocabulary(
    tiny_dir: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    big, count = 20_000, 250
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 60 * big)
    runner = dummy(tiny_dir(vocab_size=big))
    shapes: list[tuple[int, ...]] = []
    softmax = torch.log_softmax

    def watched(values: torch.Tensor, dim: int) -> torch.Tensor:
        shapes.append(tuple(values.shape))
        return softmax(values, dim=dim)

    monkeypatch.setattr(torch, "log_softmax", watched)
    head, rows = runner.model.logits, []

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return head(hidden)

    monkeypatch.setattr(runner.model, "logits", counted)
    ids = np.random.default_rng(0).integers(0, big, count).tolist()
    table = Sequences(big, max_rows=4, context=512)
    many = [(row, [row + 1]) for row in range(1, 4)]
    wants = [LogprobRequest(0, 1, count, output=True, top=5), *(LogprobRequest(k, output=True) for k in range(1, 4))]
    output = runner.run(table.extend([(0, ids), *many], logprobs=wants))
    assert len(output.logprobs[0].input) == count - 1
    most = logprobs.CHUNK_ELEMENTS // big
    assert most < 100 and max(rows) <= most and sum(rows) == count - 1 + 4
    assert max(n for n, _ in shapes) <= most
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", 3 * big)  # the same numbers in smaller chunks
    table = Sequences(big, max_rows=4, context=512)
    again = runner.run(table.extend([(0, ids), *many], logprobs=wants))
    np.testing.assert_allclose(again.logprobs[0].input, output.logprobs[0].input, atol=1e-4)
    assert [again.logprobs[k].output for k in range(4)] == pytest.approx(
        [output.logprobs[k].output for k in range(4)], abs=1e-4
    )
