"""Constrained batches through the engine: the same ids with and without overlap of masks, and waits are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stemma.backend.engine import Engine
from stemma.backend.grammar.adapters import available

OPTIONS: dict[str, Any] = {"load_format": "dummy", "max_total_tokens": 6000, "num_threads": 1}


def requests(engine: Engine) -> tuple[list[str], list[dict[str, Any]]]:
    """Twelve schemas, six regexes and four free ones, some greedy, some seeded, some with a least length."""
    params: list[dict[str, Any]] = []
    for i in range(12):
        properties = {f"p{i}": {"type": "string", "maxLength": 4 + i}, "n": {"type": "integer"}}
        schema = {"type": "object", "properties": properties, "required": [f"p{i}"]}
        params.append({"json_schema": json.dumps(schema), "min_new_tokens": i % 3})
    params += [{"regex": rf"[a-z]{{1,{3 + i}}}( [0-9]{{{1 + i}}})?", "min_new_tokens": i} for i in range(6)]
    params += [{"min_new_tokens": 4 * i} for i in range(4)]
    for i, each in enumerate(params):
        each |= {"max_new_tokens": 24, "temperature": [0.0, 0.7, 1.2][i % 3], "seed": i, "top_p": [1.0, 0.9][i % 2]}
    return [f"Name: {i}" for i in range(len(params))], params


def outputs(engine: Engine) -> list[Any]:
    results = engine.generate(*requests(engine))
    return [(r["output_ids"], r["text"], r["meta_info"]["finish_reason"]) for r in results]


@pytest.mark.parametrize("backend", available())
def test_overlap_changes_no_token(tiny_model: Path, backend: str) -> None:
    found: list[list[Any]] = []
    for off in (True, False):
        for jump in (True, False):
            with Engine(
                tiny_model,
                grammar_backend=backend,
                disable_mask_overlap=off,
                disable_jump_forward=not jump,
                **OPTIONS,
            ) as engine:
                found += [outputs(engine), outputs(engine)]  # cold and warm grammars
                engine.check()
    assert all(other == found[0] for other in found[1:])


def test_waits_and_interned_rows_are_counted(tiny_model: Path) -> None:
    with Engine(tiny_model, disable_mask_overlap=True, **OPTIONS) as engine:
        outputs(engine)
        load, table = engine.load(), engine.runner.masks.figures()
        assert 0 < load["mask_wait_steps"] <= load["mask_steps"] < load["mask_rows"]
        assert load["mask_wait_seconds"] >= load["mask_seconds"] * 0.5 > 0
        assert table["mask_table_rows"] >= load["mask_rows"]
        assert 0 < table["mask_table_uploads"] < table["mask_table_rows"]
        again = engine.load()["mask_rows"]
        engine.generate("free text", {"max_new_tokens": 4})
        assert engine.load()["mask_rows"] == again
        assert {"mask_wait_steps", "disable_mask_overlap", "mask_table_uploads"} <= set(engine.info())
