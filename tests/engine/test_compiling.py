"""An engine and the processes that compile its constraints."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stemma.backend.config import EngineConfig
from stemma.backend.engine import Engine
from stemma.backend.messages import parse_delta
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.params import MAX_CHOICES, Constraint

OPTIONS = {"load_format": "dummy", "max_total_tokens": 2000, "num_threads": 1}


def test_with_and_without_a_process_the_text_is_the_same(engine: Engine, tiny_model: Path):
    params = {"temperature": 1.0, "seed": 4, "max_new_tokens": 24}
    asked = [{"regex": "[a-f]{4,9}x?"}, {"json_schema": '{"properties": {"a": {"type": "integer"}}}'}]
    with Engine(tiny_model, grammar_workers=0, **OPTIONS) as alone:
        assert alone._grammars.pids == []
        for constraint in asked:
            expected = alone.generate("hello", params | constraint)["output_ids"]
            assert engine.generate("hello", params | constraint)["output_ids"] == expected
    assert len(engine._grammars.pids) == 1


def test_the_process_ends_with_the_engine(tiny_model: Path):
    engine = Engine(tiny_model, grammar_workers=2, **OPTIONS)
    pids = engine._grammars.pids
    assert len(pids) == 2
    engine.generate("x", {"regex": "a+", "max_new_tokens": 2})
    engine.shutdown()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_refusal_reaches_the_caller_again_and_again(engine: Engine):
    for _ in range(2):
        with pytest.raises(ConstraintError, match=r"regex: .*the limit is 100000; lower the repeat counts"):
            engine.generate("x", {"regex": "(a{1000}){1000}"})
    engine.check()


@pytest.mark.parametrize("value", [-1, True, 1.5])
def test_the_number_of_processes_is_checked(value: object):
    with pytest.raises(RequestError, match="grammar_workers must be an integer >= 0"):
        EngineConfig(grammar_workers=value)  # type: ignore[arg-type]


def test_too_many_choices_are_refused_before_they_are_looked_at():
    choices = ["a"] * (MAX_CHOICES + 1)
    with pytest.raises(ConstraintError, match=r"choices holds 50001 strings, the limit is 50000"):
        Constraint("choices", tuple(choices))
    gen = {"kind": "gen", "constraint": {"kind": "choices", "value": choices}}
    with pytest.raises(RequestError, match=r"choices holds 50001 strings.*\$\.branches\[0\]\.nodes\[0\]"):
        parse_delta({"program": "p", "branches": [{"id": "r", "nodes": [gen]}]})
