"""Every example runs as a user would run it, on the bundled model, and says what it should."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import pytest

from stemma.backend.engine import Engine

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))

# file -> what it prints, piece by piece and in this order
SAYS = {
    "classify_batch": [
        "4 tickets, 0 of them",
        "8 tickets, 4 of them",
        "billing    I was charged twice",
        "shipping   My",
    ],
    "few_shot": ["cached\n", "Rome", "new", "42", "Tokyo", "mice"],
    "form": [
        "Person(name='Tomas Brandvik', age=52",
        "tokens were forced, not sampled",
        "name='Clara Berg' age=34 ",
        "tokens were forced, not sampled",
    ],
    "judge": ["I loved the album", "sentiment  positive", "topic      music", "sentiment  negative", "ask a person"],
    "multi_chain": ["38 + 27 - 9 = 56", "64 + 29 - 13 = 80", "17 + 45 - 16 = 46"],
    "quickstart": ["Paris", "negative", "Clara Berg", "'city': 'Lindhaven'", "tokens computed"],
    "rag": ["Clara Berg [luna-past]", "onion soup [sol]", "1987 [luna-past]", "The documents do not say."],
    "self_consistency": ["answer 85, agreed on by", "answer 35, agreed on by", "#"],
    "skeleton": ["1. ", "Use warm water", "2. ", "3. ", "of them cached"],
    "streaming": ["the moon ", "goes around the earth", "whales ", "bread ", "chess "],
    "tree_of_thought": ["15 + 25 = 40", "closest to 74: ", "= 74\n", "came from the cache"],
}
SCRIPTED = {"chat", "extract_folder", "remote"}  # by tests of their own


def run(name: str, *args: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *args])
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SAYS)
def test_an_example_says_what_it_should(
    name: str, demo: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out, at = run(name, monkeypatch=monkeypatch, capsys=capsys), 0
    for piece in SAYS[name]:
        assert piece in out[at:], f"{name} does not say {piece!r} where it should:\n{out}"
        at = out.index(piece, at) + len(piece)


def test_the_chat_remembers_what_was_said(
    demo: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is the capital of France?\nWhat is 12 + 30?\n\n"))
    out = run("chat", monkeypatch=monkeypatch, capsys=capsys)
    assert "Paris" in out and "42" in out
    counts = [line.rpartition("(")[2].split()[0] for line in out.splitlines() if "tokens cached" in line]
    assert len(counts) == 2 and int(counts[1]) > 20, "the second turn takes the first from the cache"


def test_the_pipeline_writes_one_valid_line_for_each_file(
    tmp_path: Path, demo: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.txt").write_text("Nora Feld is 61 years old and lives in Oakford. She works as a painter.")
    (tmp_path / "b.txt").write_text("")
    path = EXAMPLES / "extract_folder.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    assert json.loads(line) == {"file": "a.txt", "name": "Nora Feld", "age": 61, "city": "Oakford", "job": "painter"}
    assert "b.txt is empty" in shown.err
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()] == [
        "anna.txt", "marco.txt", "tomas.txt",
    ]  # fmt: skip


def test_the_remote_example_runs_on_a_server_or_says_how_to_start_one(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import stemma

    path = EXAMPLES / "remote.py"
    monkeypatch.setattr(sys, "path", [*sys.path])
    for url, status in (("http://127.0.0.1:9", 1), (server, 0)):
        monkeypatch.setattr(sys, "argv", [str(path), url])
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(path), run_name="__main__")
        finally:
            stemma.set_default_backend(None)
        assert end.value.code == status
    shown = capsys.readouterr()
    assert "Start a server first: stemma serve" in shown.err
    assert f"{server} serves " in shown.out and "tokens computed" in shown.out


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_example_is_short_and_says_what_it_is(path: Path):
    text = path.read_text()
    assert text.startswith('"""') and f"examples/{path.name}" in text.split('"""')[1], "how to run it"
    assert len(text.splitlines()) <= (90 if path.stem == "quickstart" else 60)


def test_every_example_is_run_by_a_test_and_listed_in_the_docs():
    index = (EXAMPLES.parent / "docs" / "README.md").read_text()
    tested = SAYS.keys() | SCRIPTED
    for path in FILES:
        if path.stem not in tested:
            others = [p for p in (EXAMPLES.parent / "tests").rglob("test_*.py") if p != Path(__file__)]
            assert any(path.name in p.read_text() for p in others), f"no test runs examples/{path.name}"
        assert f"../examples/{path.name}" in index, f"docs/README.md does not list examples/{path.name}"
