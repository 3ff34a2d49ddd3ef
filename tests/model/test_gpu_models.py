"""On a GPU: logits are those of transformers for every architecture, and the engine says what it says on CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stemma.backend.executor.factory import choose_device, make_runner
from stemma.lang.errors import RequestError

from plans import Sequences  # isort: skip
from test_llama import VARIANTS, VOCAB, expected_logits, random_ids, variants  # isort: skip

__all__ = ["variants"]  # a fixture
CUDA = torch.cuda.is_available()
SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


@pytest.fixture
def gpu() -> None:
    if not CUDA:
        pytest.skip("needs an NVIDIA GPU")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "kernels"), [("float32", None), ("float32", "reference"), ("bfloat16", None)])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(
    name: str, dtype: str, kernels: str | None, gpu: None, variants: Callable[[str], tuple[Any, Path]]
) -> None:
    model, path = variants(name)
    table = Sequences(VOCAB)
    runner = make_runner(
        path, device="cuda", dtype=dtype, kernels=kernels, max_total_tokens=table.slots_needed, max_step_tokens=128
    )
    ids = random_ids(200)
    wanted = expected_logits(model, ids)
    got = [runner.forward_logits(table.extend([(0, ids[:150])]))]
    got += [runner.forward_logits(table.extend([(0, ids[p : p + 1])]), all_positions=False) for p in range(150, 160)]
    got += [runner.forward_logits(table.extend([(0, ids[160:163])]))]
    got += [runner.forward_logits(table.extend([(0, ids[163:])]))]
    found = torch.cat(got).cpu()
    if dtype == "float32":
        assert (found - wanted).abs().max() < 3e-4
    else:
        with torch.inference_mode():
            theirs = model.to("cuda", torch.bfloat16)(torch.tensor([ids], device="cuda")).logits[0].float().cpu()
        model.to("cpu", torch.float32)
        # bf16 rounds everywhere: ours may be as far from the fp32 logits as theirs are, and half as far again
        ours, them = float((found - wanted).norm()), float((theirs - wanted).norm())
        assert ours < 1.5 * them + 1e-3
        assert torch.nn.functional.cosine_similarity(found, wanted).min() > 0.98


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Any, Any]]:
    if not CUDA:
        pytest.skip("needs an NVIDIA GPU")
    from stemma.backend.engine import Engine

    options: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 20_000}
    with Engine(device="cpu", **options) as cpu, Engine(device="cuda", **options) as cuda:
        yield cpu, cuda
        cuda.check()


@pytest.mark.gpu
def test_the_bundled_model_says_the_same_on_both(engines: tuple[Any, Any]) -> None:
    prompts = [
        "The capital of France is",
        "Q: What is 2 + 2?\nA:",
        "Name three colours:",
        "Once upon a time",
        "x" * 700,
    ]
    wants: list[dict[str, Any]] = [
        {"max_new_tokens": 40, "temperature": 0.0},
        {"max_new_tokens": 24, "temperature": 0.9, "top_p": 0.8, "seed": 5},
        {"max_new_tokens": 24, "temperature": 1.0, "top_k": 20, "min_p": 0.02, "seed": 6},
        {"max_new_tokens": 24, "temperature": 0.7, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "seed": 7},
        {"max_new_tokens": 30, "temperature": 0.0, "regex": r"[a-z]{3,9}( [a-z]{3,9}){2}"},
        {"max_new_tokens": 60, "temperature": 0.0, "json_schema": SCHEMA},
    ]  # fmt: skip
    both = []
    for engine in engines:
        engine.flush_cache()
        found = [engine.generate(prompts, [want] * len(prompts)) for want in wants]
        both.append([[r["output_ids"] for r in results] for results in found])
    assert both[0] == both[1]


@pytest.mark.gpu
def test_programs_give_the_same_on_both(engines: tuple[Any, Any]) -> None:
    import stemma
    from stemma import gen, select

    @stemma.function
    def tree(s: Any, question: str) -> None:
        s += "Question: " + question + "\n"
        forks = s.fork(3)
        for i, branch in enumerate(forks):
            branch += f"Idea {i}:" + gen("idea", max_tokens=16, temperature=0.6, seed=i)
        s += "Ideas: " + "; ".join(branch["idea"] for branch in forks) + "\nBest:"
        s += gen("best", max_tokens=12, temperature=0) + "\nSure? " + select("sure", choices=["yes", "no"])

    found = []
    for engine in engines:
        stemma.set_default_backend(engine)
        states = tree.run_batch([{"question": q} for q in ("Why is the sky blue?", "What is a cat?", "Is it late?")])
        found.append([(s["best"], s["sure"], s.text()) for s in states])
    stemma.set_default_backend(None)
    assert found[0] == found[1]


def test_a_device_that_is_not_there_says_why() -> None:
    if CUDA:
        assert choose_device("auto") == choose_device("cuda") == "cuda"
    else:
        assert choose_device("auto") == "cpu"
        with pytest.raises(RequestError, match=r"device 'cuda' cannot be used: .*stemma doctor"):
            choose_device("cuda")
    with pytest.raises(RequestError, match="auto, cpu, cuda, got 'tpu'"):
        choose_device("tpu")
