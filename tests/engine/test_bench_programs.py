"""`stemma bench programs`: both sides do the same work, and the figures say what they count."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stemma.backend.bench.command import main as bench
from stemma.backend.bench.program_cases import prose
from stemma.backend.bench.program_timed import TimedRunner
from stemma.backend.bench.programs import agreement
from stemma.backend.config import DEMO_MODEL
from stemma.backend.text.tokenizer import Tokenizer


def test_both_sides_do_the_same_work(capsys: pytest.CaptureFixture[str]):
    """A run at the smallest sizes, with a clock in the place of the model."""
    assert bench(["programs", "--timed", "--json", "--scale", "16", "--prompt-scale", "32", "--repeats", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [p["program"] for p in told["programs"]] == ["tree_of_thought", "judge", "form"]
    for program, asked, answers in zip(told["programs"], (13, 9, 6), (13, 8, 6), strict=True):
        graphs, requests, count = program["graphs"], program["requests"], program["programs"]
        assert requests["requests"] == count * asked
        assert count <= graphs["requests"] <= 3 * count  # a busy machine may make a program pause, and be sent in parts
        assert program["outputs"]["all"] == count * answers
        assert program["outputs"]["other"] == 0 and program["outputs"]["equal"] > 0
        if program["program"] != "judge":  # a choice counts as made only where it is appended, but all are run
            made, prompts = graphs["completion_tokens"], graphs["prompt_tokens"] - graphs["cached_tokens"]
            assert made == requests["completion_tokens"]
            assert 0 < graphs["tokens_run"] <= prompts + made
        assert program["ratio"] == pytest.approx(requests["wall"] / graphs["wall"])
    assert 1 <= told["joins"]["engine"]["requests"] < told["joins"]["client"]["requests"]
    assert told["joins"]["equal"]


def test_help_teaches(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench(["programs", "--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("tree_of_thought", "respelled", "--timed", "examples:"))
    assert bench(["programs", "--repeats", "0"]) == 2


def test_prose_has_the_length_that_was_asked():
    import random

    tokenizer = Tokenizer.load(DEMO_MODEL)
    for tokens in (1, 10, 200):
        assert tokens <= len(tokenizer.encode(prose(random.Random(0), tokens, tokenizer))) < tokens + 8


def node(address: str, **more: Any) -> Any:
    index = int(address.partition(":")[2])
    branch = SimpleNamespace(id="r", parent=None, nodes=[])
    return SimpleNamespace(address=address, index=index, branch=branch, kind="gen", text="", source=None, **more)


def test_an_output_that_differs_without_a_reason_is_told(monkeypatch: pytest.MonkeyPatch):
    tokenizer = Tokenizer.load(DEMO_MODEL)
    bos = [tokenizer.bos_id] if tokenizer.add_bos else []
    text = SimpleNamespace(kind="text", text="Hello there", source=None, index=0, address="r:0")
    same = [*bos, *tokenizer.encode("Hello there", start=True)]
    for ids, reason in ((same, "other"), ([*bos, 70, 71], "respelled")):
        gen = node("r:1", meta={"prompt_ids": {"start": 0, "ids": ids}}, ids=[5])
        after = SimpleNamespace(kind="gen", text="", source=None, index=2, address="r:2", branch=gen.branch, meta={})
        gen.branch.nodes += [text, gen, after]
        text.branch = gen.branch
        gen.branch.lineage = lambda branch=gen.branch: branch.nodes
        state = SimpleNamespace(graph=lambda branch=gen.branch: SimpleNamespace(branches={"r": branch}))
        counts = agreement([["a", "b"]], [["x", "y"]], [state], tokenizer)
        assert counts == {"all": 2, "equal": 0, "respelled": 0, "follows": 1, "other": 0} | {reason: 1}
        assert agreement([["a", "b"]], [["a", "b"]], [state], tokenizer)["equal"] == 2


def test_the_clock_refuses_what_it_cannot_do():
    runner = TimedRunner(10, 100, np.arange(5, 50, dtype=np.int32))
    plan: Any = SimpleNamespace(ids=[1], start=np.zeros(1, int), n=np.ones(1, int), masks=[1], verify=())
    with pytest.raises(NotImplementedError, match="no constraints"):
        runner.run(plan)
