"""The agent of the examples runs on the bundled model, and its calls fit their tools."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import stemma
from stemma.backend.engine import Engine

EXAMPLE = Path(__file__).parent.parent / "examples" / "agent.py"


def test_the_agent_example_calls_its_tools(capsys: pytest.CaptureFixture[str]):
    with Engine(num_threads=1) as engine:
        stemma.set_default_backend(engine)
        try:
            module = runpy.run_path(str(EXAMPLE), run_name="__main__")
        finally:
            stemma.set_default_backend(None)
        engine.check()
    shown = capsys.readouterr().out
    calls = re.findall(r"^  (\w+)\((\{.*\})\) -> (.+)$", shown, re.M)
    assert len(calls) >= 2 and {name for name, _, _ in calls} <= {"calculate", "capital"}
    for name, arguments, result in calls:
        assert str(module[name](**eval(arguments))) == result
    assert len(EXAMPLE.read_text().splitlines()) <= 60


def test_the_agent_loops_until_it_answers():
    agent = runpy.run_path(str(EXAMPLE))["agent"]
    replies = [
        '{"name": "calculate", "arguments": {"left": "6", "sign": "*", "right": "7"}}',
        '{"name": "capital", "arguments": {"country": "Spain"}}',
        "It is 42, and Madrid.",
    ]
    state = agent.run("?", backend=stemma.ScriptedEndpoint(replies))
    assert state.ret_value == "It is 42, and Madrid."
    said = [m["content"] for m in state.messages() if m["role"] == "user"]
    assert said == ["?", "Result of calculate: 42", "Result of capital: Madrid"]
