"""Family attention in the GPU's runner: the tokens of the CPU's runner, and of rows attended one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.backend.core import Plan, Segment
from stemma.backend.executor.cuda_runner import CudaRunner
from stemma.backend.executor.runner import ModelRunner
from stemma.kernels.attention import family_plan

from plans import Sequences  # isort: skip
from pretend_gpu import pretend  # isort: skip
from test_runner import save_checkpoint  # isort: skip

VOCAB, ROWS = 307, 4
SHAPE = {"num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 1}  # two rows fill a narrow tile
SHARED, BRANCH = 60, 20
TREE = [Segment(0, 0, 3, 0, SHARED), Segment(1, 1, 2, SHARED, SHARED + BRANCH)]  # rows 0 to 2; 3 stands alone
pytest.importorskip("triton")


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModelRunner, Any, Any]]:
    """CPU; GPU (or pretended GPU) with and without family attention. The same weights, fp32."""
    from conftest import TINY  # pyright: ignore[reportMissingImports]

    path: Path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps({**TINY, **SHAPE}))
    save_checkpoint(path)
    options: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 2100, "max_running_requests": ROWS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_plan, "FAMILY", 32)
        patch.setattr(family_plan, "LEAST", 16)
        cls = CudaRunner if torch.cuda.is_available() else pretend(patch)
        with_family, without = (cls(path, max_step_tokens=8, family=on, **options) for on in (True, False))
        yield ModelRunner(path, **options), with_family, without


def ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def family(runners: Any, runner: Any) -> tuple[Sequences, list[int]]:
    """Four rows behind their prompts, three of them a tree; the token that each draws next. Prompts are computed on the
    CPU, and their keys and values copied."""
    cpu = runners[0]
    table = Sequences(VOCAB, ROWS)
    cpu.run(table.extend([(0, ids(SHARED, 0))]))
    for row in (1, 2):
        table.share(0, row, SHARED)
    cpu.run(table.extend([(1, ids(BRANCH, 1))]))
    table.share(1, 2, SHARED + BRANCH)
    found = cpu.run(table.extend([(row, ids(3 + row, 10 + row)) for row in range(4)]))
    if runner is not cpu:
        for mine, theirs in ((runner.pool.keys, cpu.pool.keys), (runner.pool.values, cpu.pool.values)):
            for to, source in zip(mine, theirs, strict=True):
                to[: table.slots_needed].copy_(source[: table.slots_needed])
    return table, found.next_ids.tolist()


def decode(table: Sequences, tokens: list[int], tree: list[Segment], **given: Any) -> Plan:
    return replace(table.extend([(row, [token]) for row, token in enumerate(tokens)], **given), segments=tree)


def used(runner: Any) -> list[int]:
    return runner.model_info()["family_graphs"]


def test_decode_steps_of_families_give_the_same_tokens(runners: Any) -> None:
    found = []
    for runner in runners:
        table, tokens = family(runners, runner)
        steps = [tokens]
        for step in range(4):
            plan = decode(table, steps[-1], TREE, temperature=[0.0, 0.9] * 2, seed=step)
            if step == 2:
                table.computed[3] -= 2  # another step comes between, and its slots lie where the family's did
                runner.run(table.extend([(3, [3, 4])]))
            steps.append(runner.run(plan).next_ids.tolist())
        found.append(steps)
    assert found[0] == found[1] == found[2]
    assert used(runners[1]) == [4] and used(runners[2]) == []


def test_logits_are_those_of_the_cpu(runners: Any) -> None:
    found = []
    for runner in runners:
        table, _ = family(runners, runner)
        plans = (decode(table, ids(4, 40 + step), TREE) for step in range(2))
        found.append(torch.cat([runner.forward_logits(plan, all_positions=False).cpu() for plan in plans]))
    assert (found[0] - found[1]).abs().max() < 2e-4 and (found[0] - found[2]).abs().max() < 2e-4


def test_slots_are_sent_when_rows_change_or_outgrow_their_room(runners: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stemma.backend.executor import cuda_family

    monkeypatch.setattr(cuda_family, "ROOM", 2)
    _, runner, plain = runners
    sent: list[int] = []
    send = runner._staging.send
    monkeypatch.setattr(runner._staging, "send", lambda words: (sent.append(words), send(words)))
    both = []
    for which in (runner, plain):
        table, tokens = family(runners, which)
        del sent[:]
        steps = [tokens]
        for step in range(6):
            tree = TREE if step < 4 else [Segment(0, 0, 2, 0, SHARED)]  # a row of the family has gone
            rows = [0, 1, 2, 3] if step < 4 else [0, 1, 3]
            tokens = [steps[-1][i] for i in rows] if step == 4 else steps[-1]
            plan = replace(table.extend(list(zip(rows, [[t] for t in tokens], strict=True))), segments=tree)
            steps.append(which.run(plan).next_ids.tolist())
        both.append(steps)
        if which is runner:
            head = min(sent)
            assert [words > head for words in sent] == [k in (0, 2, 4, 5) for k in range(6)]
    assert both[0] == both[1]


def test_relayed_tokens_go_through_family_steps(runners: Any) -> None:
    _, runner, plain = runners

    def ahead(which: Any) -> list[list[int]]:
        table, tokens = family(runners, which)
        under_way = which.launch(decode(table, tokens, TREE, temperature=0.7))
        found = []
        every = np.arange(4, dtype=np.int32)
        for _ in range(2):
            plan = replace(decode(table, [-1] * 4, TREE, temperature=0.7), relay_to=every, relay_from=every)
            following = which.launch(plan)
            found.append(under_way.result().next_ids.tolist())
            under_way = following
        return [*found, under_way.result().next_ids.tolist()]

    assert ahead(runner) == ahead(plain)


def test_what_rows_share_must_be_worth_it(runners: Any) -> None:
    _, runner, _ = runners
    runner._graphs.clear()
    table, tokens = family(runners, runner)
    runner.run(decode(table, tokens, [Segment(0, 0, 2, 0, 16)]))
    assert used(runner) == []
    runner.run(decode(table, tokens, TREE))
    assert used(runner) == [4]


def test_a_line_that_is_too_long_is_attended_row_by_row(runners: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, runner, _ = runners
    runner._graphs.clear()
    monkeypatch.setattr(runner._families, "keys", 300)
    found = []
    for which in (cpu, runner):
        table, tokens = family(runners, which)
        found.append([which.run(decode(table, tokens, TREE)).next_ids.tolist() for _ in range(2)])
    assert found[0] == found[1] and used(runner) == []


def test_warming_up_compiles_what_families_need(runners: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for runner in runners[1:]:
        runner._graphs.clear()
        run = runner.run
        monkeypatch.setattr(runner, "run", lambda plan, run=run: run(plan) if plan.segments else None)
        runner.warm_up()
    assert used(runners[1]) == [2, 4]  # the classes are 2, 4 and 8 rows, and 4 the most here
    assert used(runners[2]) == []
