"""The GPU's runner gives the tokens of the CPU's. Without a GPU its kernels are interpreted (`pretend_gpu`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.backend.core import LogprobRequest, Verify
from stemma.backend.executor.cuda_runner import CudaRunner, graph_sizes
from stemma.backend.executor.runner import ModelRunner
from stemma.lang.errors import RequestError

from plans import Sequences  # isort: skip
from pretend_gpu import pretend  # isort: skip
from test_runner import save_checkpoint  # isort: skip

VOCAB = 307
ROWS = 8
pytest.importorskip("triton")


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(CPU, GPU or pretended GPU) with the same weights, fp32."""
    from conftest import TINY  # pyright: ignore[reportMissingImports]

    path: Path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(TINY))
    save_checkpoint(path)
    cpu = ModelRunner(path, max_total_tokens=2100)
    with pytest.MonkeyPatch.context() as patch:
        cls = CudaRunner if torch.cuda.is_available() else pretend(patch)
        gpu = cls(
            path, dtype="float32", max_total_tokens=2100, max_step_tokens=8, max_running_requests=ROWS, num_threads=1
        )
        yield cpu, gpu


def both(runners: Any, run: Callable[[Any, Sequences], Any]) -> tuple[Any, Any]:
    cpu, gpu = runners
    return run(cpu, Sequences(VOCAB, ROWS)), run(gpu, Sequences(VOCAB, ROWS))


def ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def test_prefill_decode_and_mixed_steps_give_equal_tokens(runners: Any) -> None:
    def run(runner: Any, table: Sequences) -> list[list[int]]:
        found = [runner.run(table.extend([(0, ids(70, 0)), (1, ids(3, 1)), (2, ids(9, 2))])).next_ids.tolist()]
        for step in range(4):
            last = found[-1]
            pieces = [(0, [last[0]]), (1, [last[1]]), (2, [last[2]])]
            if step == 2:
                pieces.append((3, ids(10, 3)))  # a prompt beside decoding rows
            if step == 3:
                pieces[1] = (1, ids(4, 4))  # forced tokens: small enough for a graph
                pieces.append((3, [last[3]]))
            found.append(runner.run(table.extend(pieces)).next_ids.tolist())
        return found

    cpu, gpu = both(runners, run)
    assert cpu == gpu


def test_logits_are_those_of_the_cpu(runners: Any) -> None:
    def run(runner: Any, table: Sequences) -> torch.Tensor:
        parts = [runner.forward_logits(table.extend([(0, ids(40, 5)), (1, ids(9, 6))]))]
        parts += [runner.forward_logits(table.extend([(0, [7]), (1, [8])]), all_positions=False) for _ in range(2)]
        return torch.cat(parts).cpu()

    cpu, gpu = both(runners, run)
    assert (cpu - gpu).abs().max() < 2e-4


def test_sampling_penalties_bias_and_masks_draw_the_same_tokens(runners: Any) -> None:
    mask = np.zeros((VOCAB + 31) // 32, np.int32)
    mask[:4] = -1

    def run(runner: Any, table: Sequences) -> list[list[int]]:
        found = []
        runner.run(table.extend([(row, ids(4 + row, row)) for row in range(5)]))
        for step in range(3):
            plan = table.extend(
                [(row, ids(1, 10 * step + row)) for row in range(5)],
                masks=[(1, mask), (4, mask)],
                temperature=[0.0, 0.9, 1.3, 0.6, 0.0],
                top_p=[1.0, 0.9, 1.0, 0.5, 1.0],
                top_k=[VOCAB, VOCAB, 20, 50, VOCAB],
                min_p=[0.0, 0.0, 0.05, 0.0, 0.0],
                seed=[1, 2, 3, 4, 5],
                repetition_penalty=[1.0, 1.2, 1.0, 1.0, 1.4],
                frequency_penalty=[0.0, 0.3, 0.0, 0.5, 0.0],
                presence_penalty=[0.0, 0.0, 0.4, 0.0, 0.0],
                prompt_len=[3, 3, 3, 3, 3],
                bias=[(0, ((5, 2.0), (9, -1.0))), (4, ((3, 4.0), (17, 1.5)))],
            )
            found.append(runner.run(plan).next_ids.tolist())
        return found

    cpu, gpu = both(runners, run)
    assert cpu == gpu


def test_a_mask_that_allows_nothing_gives_no_token(runners: Any) -> None:
    nothing = np.zeros((VOCAB + 31) // 32, np.int32)
    for runner in runners:
        plan = Sequences(VOCAB, ROWS).extend([(0, [1]), (1, [2])], masks=[(1, nothing)])
        assert (runner.run(plan).next_ids < 0).tolist() == [False, True]


def test_log_probabilities_are_those_of_the_cpu(runners: Any) -> None:
    def run(runner: Any, table: Sequences) -> Any:
        want = [
            LogprobRequest(0, input_from=2, input_to=9, output=True, top=3, ids=(4, 5)),
            LogprobRequest(1, output=True),
        ]
        return runner.run(table.extend([(0, ids(9, 1)), (1, [3])], logprobs=want))

    cpu, gpu = both(runners, run)
    assert cpu.next_ids.tolist() == gpu.next_ids.tolist()
    for i in (0, 1):
        a, b = cpu.logprobs[i], gpu.logprobs[i]
        np.testing.assert_allclose(a.input, b.input, atol=1e-4)
        np.testing.assert_allclose(a.output, b.output, atol=1e-4)
        assert [[token for _, token in top] for top in a.input_top] == [
            [token for _, token in top] for top in b.input_top
        ]


def test_drafts_are_verified(runners: Any) -> None:
    def run(runner: Any, table: Sequences) -> Any:
        runner.run(table.extend([(0, ids(12, 1)), (1, ids(5, 2))]))
        plan = table.extend([(0, [3, 4, 5]), (1, [6])], temperature=[0.8, 0.0], seed=[5, 6])
        out = runner.run(replace(plan, verify=[Verify(0, 2, [None, None])]))
        return out.next_ids.tolist(), out.verified[0].tolist()

    cpu, gpu = both(runners, run)
    assert cpu == gpu


def test_a_token_goes_from_one_launched_step_to_the_next(runners: Any) -> None:
    _, gpu = runners

    def alone() -> list[list[int]]:
        table = Sequences(VOCAB, ROWS)
        found = [gpu.run(table.extend([(0, ids(9, 1)), (1, ids(3, 2))], temperature=[0.0, 0.7])).next_ids.tolist()]
        for _ in range(3):
            plan = table.extend([(0, [found[-1][0]]), (1, [found[-1][1]])], temperature=[0.0, 0.7])
            found.append(gpu.run(plan).next_ids.tolist())
        return found

    def ahead() -> list[list[int]]:
        table = Sequences(VOCAB, ROWS)
        under_way = gpu.launch(table.extend([(0, ids(9, 1)), (1, ids(3, 2))], temperature=[0.0, 0.7]))
        found = []
        for step in range(3):
            plan = table.extend([(0, [-1]), (1, [-1])], temperature=[0.0, 0.7])
            plan = replace(
                plan, relay_to=np.array([0, 1], np.int32), relay_from=np.array([0, 1], np.int32), late=step % 2 == 1
            )
            following = gpu.launch(plan)
            found.append(under_way.result().next_ids.tolist())
            if plan.late:
                following.sample()
            under_way = following
        return [*found, under_way.result().next_ids.tolist()]

    assert alone() == ahead()


def test_small_steps_are_replayed_and_padded(runners: Any) -> None:
    _, gpu = runners
    table = Sequences(VOCAB, ROWS)
    gpu.run(table.extend([(row, ids(3, row)) for row in range(3)]))
    gpu.run(table.extend([(row, [1]) for row in range(3)]))
    assert 4 in gpu.model_info()["graphs"]


def test_graph_sizes_reach_the_most() -> None:
    assert graph_sizes(256)[:6] == [1, 2, 4, 8, 16, 24] and graph_sizes(256)[-1] == 256
    assert graph_sizes(1) == [1] and graph_sizes(5) == [1, 2, 4, 5] and graph_sizes(8) == [1, 2, 4, 8]


def test_the_staging_buffer_grows_and_graphs_are_captured_again(runners: Any) -> None:
    _, gpu = runners
    table = Sequences(VOCAB, ROWS)
    first = gpu.run(table.extend([(0, [1, 2, 3])])).next_ids.tolist()
    gpu.run(table.extend([(0, first)]))
    assert gpu._graphs
    gpu._staging.begin(gpu._staging.words + 1)
    again = Sequences(VOCAB, ROWS)
    assert gpu.run(again.extend([(0, [1, 2, 3])])).next_ids.tolist() == first
    assert gpu._generation == gpu._staging.generation


def test_what_does_not_fit_says_which_option_to_turn(runners: Any) -> None:
    _, gpu = runners
    path = gpu.model_dir
    make = lambda **options: type(gpu)(path, dtype="float32", max_step_tokens=2, max_running_requests=2, **options)  # noqa: E731
    with pytest.raises(RequestError, match=r"max_total_tokens .* lower it, or lower chunked_prefill_size"):
        make(max_total_tokens=10**9)
    with pytest.raises(RequestError, match=r"lower context_length.*raise mem_fraction_static"):
        make(mem_fraction_static=1e-9)
