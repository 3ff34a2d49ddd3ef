"""`stemma bench masks`: distinct schemas, and a table of what was counted."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from stemma.backend.bench import masks as bench
from stemma.lang.errors import RequestError

SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}}, "required": ["a"]},
    {"not a schema": True, "type": "nonsense"},
    {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"},
]


def test_candidates_never_repeat_and_never_break_a_reference():
    found = list(islice(bench.candidates(SCHEMAS), 40))
    assert found[:4] == SCHEMAS
    assert len({json.dumps(schema) for schema in found}) == 40
    assert not any("$ref" in json.dumps(schema) for schema in found[4:])
    assert list(bench.candidates(SCHEMAS[3:])) == SCHEMAS[3:]


def test_a_small_run(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "schemas.jsonl"
    path.write_text("".join(json.dumps({"schema": schema}) + "\n" for schema in SCHEMAS))
    options = ["--model", str(tiny_model), "--load-format", "dummy", "--threads", "1", "--new-tokens", "6"]
    assert bench.main([*options, "--schemas", str(path), "--rows", "5", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "5 distinct schemas" in out and "outputs equal: yes" in out
    lines = {line[:36].strip(): line[36:].split() for line in out.splitlines()}
    shares = [float(value.rstrip("%")) for value in lines["steps that waited for a mask"]]
    assert len(shares) == 4 and all(0 <= share <= 100 for share in shares)
    assert float(lines["masks of a step, mean"][0]) > 1
    known = [
        float(v.rstrip("%")) for label in ("rows known by identity", "rows known by content") for v in lines[label]
    ]
    uploaded = [float(value.rstrip("%")) for value in lines["rows uploaded"]]
    assert sum(known) + sum(uploaded) == pytest.approx(400, abs=1)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RequestError, match=r"nowhere\.jsonl"):
        bench.main(["--schemas", str(tmp_path / "nowhere.jsonl")])
