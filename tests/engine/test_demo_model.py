"""The bundled model: our engine writes what transformers writes, and the examples do what they say."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import stemma
from stemma.backend.config import DEMO_MODEL
from stemma.backend.engine import Engine

ROOT = Path(__file__).parent.parent.parent

QUESTIONS = [
    *(f"What is the capital of {c}?" for c in ("France", "Italy", "Japan", "Egypt", "Spain", "Peru", "Cuba", "Norway")),
    *(f"What is {a} + {b}?" for a, b in ((12, 30), (45, 17), (81, 9), (33, 58), (70, 22), (19, 64), (7, 38), (56, 41))),
    *(f"What color is {x}?" for x in ("the sky", "grass", "snow", "a banana", "coal", "blood")),
    *(f"What is the opposite of {w}?" for w in ("hot", "big", "up", "old", "fast", "happy", "light", "open")),
    *(f"How many legs does a {a} have?" for a in ("dog", "spider", "bird", "cat", "bee", "horse")),
    *(f"Extract the name and age: {n} is {k} years old." for n, k in (("Orla Fenwick", 37), ("Bram Tolley", 64))),
    *(f"Give two tips for {t}." for t in ("sleeping well", "saving money", "learning a language", "staying healthy")),
    "Hello!", "Who are you?", "Thank you.", "Tell me about the moon.", "Is water wet?", "Name three fruits.",
    "Is this review positive or negative? I loved every minute of it.", "What day comes after Monday?",
]  # fmt: skip


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with Engine(num_threads=1) as engine:
        yield engine
        engine.check()


def test_greedy_text_equals_transformers(demo: Engine):
    transformers = pytest.importorskip("transformers")
    assert len(QUESTIONS) == 50
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    prompts = [
        demo.chat.render([{"role": "user", "content": question}], add_generation_prompt=True) for question in QUESTIONS
    ]
    ids = [demo.tokenizer.encode(prompt, special=True) for prompt in prompts]
    ours = demo.generate(input_ids=ids, sampling_params={"temperature": 0.0, "max_new_tokens": 32})
    for question, prompt, result in zip(ids, prompts, ours, strict=True):
        assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == question
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([question]),
                attention_mask=torch.ones(1, len(question), dtype=torch.int64),
                max_new_tokens=32,
                do_sample=False,
                pad_token_id=0,
            )
        theirs = out[0, len(question) :].tolist()
        assert result["output_ids"] == theirs
        assert result["text"] == tokenizer.decode(theirs, skip_special_tokens=True)


def test_the_quickstart_runs_and_says_what_it_computed(demo: Engine, capsys: pytest.CaptureFixture[str]):
    stemma.set_default_backend(demo)
    try:
        runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    finally:
        stemma.set_default_backend(None)
    out = capsys.readouterr().out
    for said in ("Paris", "negative", "Clara Berg", "7 am", "lemon cake", "'age': 52", "forced"):
        assert said in out, out


def test_the_readme_program_prints_what_the_readme_says(demo: Engine, capsys: pytest.CaptureFixture[str]):
    readme = (ROOT / "README.md").read_text()
    program = readme.split("```python\n", 1)[1].split("```", 1)[0]
    shown = readme.split("```text\n", 1)[1].split("```", 1)[0]
    stemma.set_default_backend(demo)
    try:
        exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})
    finally:
        stemma.set_default_backend(None)
    assert capsys.readouterr().out.strip() == shown.strip()


def test_no_example_needs_more_than_the_bundled_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", ["remote.py", "http://127.0.0.1:9"])
    remote = runpy.run_path(str(ROOT / "examples" / "remote.py"))
    assert remote["main"]() == 1  # no server there: a clear message, not a traceback


def test_the_trace_example_writes_its_page_and_shares_its_prefixes(
    demo: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stemma.set_default_backend(demo)
    try:
        example = runpy.run_path(str(ROOT / "examples" / "trace.py"))
        example["main"](str(tmp_path / "run.html"))
        demo.flush_cache()
        plan = example["plan_a_morning"].run("Where shall we eat?", temperature=0.8, seed=1).explain()
    finally:
        stemma.set_default_backend(None)
    shown = capsys.readouterr().out
    assert "├─ fork 0/3" in shown and "select place" in shown and "distinct prefixes" in shown
    assert (tmp_path / "run.html").stat().st_size > 30_000
    assert plan.exact and plan.nodes == 11
    assert plan.computed_prompt <= 1.05 * plan.distinct_tokens
