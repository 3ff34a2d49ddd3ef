"""`stemma bench jump_forward`: its figures add up, and a changed token is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stemma.backend.bench import jump_forward as bench
from stemma.backend.bench.jump_forward import Case, Run, main, read_cases, summarise

SCHEMAS = [
    {"stratum": "flat", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
    {"name": "second", "schema": '{"enum": ["a long constant text", "another"]}'},
    {"stratum": "flat", "schema": {"type": "nonsense"}},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "schemas.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in SCHEMAS))
    return path


def test_lines_are_read(file: Path) -> None:
    cases = read_cases(file, 2)
    assert [(c.name, c.family) for c in cases] == [("1", "flat"), ("second", "all")]
    assert json.loads(cases[0].schema)["type"] == "object"


def test_sums_are_over_what_all_settings_finished() -> None:
    cases = [Case("a", "x", "{}"), Case("b", "y", "{}")]
    assert summarise(cases[:1], {"off": [Run(note="slow")] * 2, "jump": [Run((1,))] * 2})["all"].equal == 2
    good, other, refused = Run((1, 2), "stop", forced=1, forwards=2), Run((1, 3), "stop", forwards=1), Run(note="no")
    families = summarise(cases, {"off": [good, refused, good, good], "jump": [good, refused, good, other]})
    assert (families["all"].cases, families["all"].equal, families["all"].refused) == (4, 3, 1)
    assert families["x"].totals["off"].tokens == 4 and families["x"].totals["off"].forwards == 4
    assert families["y"].equal == 1 and families["y"].totals["jump"].forwards == 1


def test_the_command_prints_a_line_for_each_family(
    file: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in bench.SETTINGS.values():
        monkeypatch.setitem(options, "load_format", "dummy")
        monkeypatch.setitem(options, "max_total_tokens", 1000)
    assert main([str(file), "--model", str(tiny_model), "--max-new-tokens", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 schemas")
    all_of_them = lines[-1].split()
    assert all_of_them[:4] == ["all", "6", "6", "2"] and int(all_of_them[4]) > 0
    assert any(line.startswith("flat") for line in lines)


def test_differing_ids_are_a_failure(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"off": [Run((1,), "stop")] * 6, "jump": [Run((2,), "stop")] * 6, "jump+draft": [Run((1,), "stop")] * 6}
    monkeypatch.setattr(bench, "measure", lambda *args: runs)
    assert main([str(file)]) == 1
