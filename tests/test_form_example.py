"""The typed form filling of the examples runs, and says what it should, on the bundled model."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import stemma
from stemma.backend.engine import Engine

EXAMPLE = Path(__file__).parent.parent / "examples" / "form.py"


def test_the_form_example_fills_its_forms(capsys: pytest.CaptureFixture[str]):
    with Engine(num_threads=1) as engine:
        stemma.set_default_backend(engine)
        try:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        finally:
            stemma.set_default_backend(None)
        engine.check()
    shown = capsys.readouterr().out
    assert "Person(name='Tomas Brandvik', age=52" in shown
    assert "name='Clara Berg' age=34 " in shown
    assert "tokens were forced, not sampled" in shown
    assert len(EXAMPLE.read_text().splitlines()) <= 60
