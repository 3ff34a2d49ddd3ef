"""The `stemma` command: help that teaches, errors that name what was wrong, `run` on an endpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stemma
from stemma.__main__ import COMMANDS, main
from stemma.kernels.dispatch import OPERATIONS

PROGRAM = """
import sys
import stemma

@stemma.function
def hello(s, name):
    s += f"Hello {name}" + stemma.gen("x", max_tokens=3)

print("said", len(hello.run(sys.argv[1], temperature=0)["x"]) > 0, sys.argv[1:])
"""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0 and main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["run"],
        ["doctor"],
        ["bench", "scheduler"],
        ["bench", "offline"],
        ["bench", "masks"],
        ["bench", "one-batch"],
    ],
)
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert f"stemma {' '.join(command)}" in capsys.readouterr().out


def test_the_doctor_names_every_operation_and_why(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    found = json.loads(capsys.readouterr().out)
    chosen = {row["operation"]: row for row in found["operations"]}
    assert set(chosen) == set(OPERATIONS)
    assert chosen["attention"]["implementation"] == "sdpa" and "needs a GPU" in chosen["attention"]["why"]
    assert found["packages"]["torch"] and found["device"] == "cpu" and found["dtype"] == "bfloat16"
    assert bool(found["gpus"]) or found["no_gpu_because"]
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(operation in out for operation in OPERATIONS) and "GPUs:" in out


def test_the_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"stemma {stemma.__version__}\n"


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]):
    assert main(["sevre"]) == 2
    assert "'sevre'" in capsys.readouterr().err
    assert main(["bench", "nothing"]) == 2
    assert "'nothing'" in capsys.readouterr().err


def test_run_runs_a_file_on_a_server(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    try:
        assert main(["run", "--url", server, str(path), "Ada", "--flag"]) == 0
    finally:
        stemma.set_default_backend(None)
    assert "said True ['Ada', '--flag']" in capsys.readouterr().out


def test_run_takes_its_options_after_the_file_too_and_leaves_the_rest_to_the_program(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM + "print(type(stemma.get_default_backend()).__name__)")
    cases = {
        ("Ada", "--url", server, "--flag", "-x"): "['Ada', '--flag', '-x']",
        ("--url", server, "Ada", "--", "--url", "mine", "--"): "['Ada', '--url', 'mine', '--']",
    }
    for given, passed in cases.items():
        try:
            assert main(["run", str(path), *given]) == 0
        finally:
            stemma.set_default_backend(None)
        assert capsys.readouterr().out == f"said True {passed}\nRuntimeEndpoint\n"


def test_run_says_which_file_is_missing(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["run", "/nowhere/program.py"])
    assert "/nowhere/program.py" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_an_error_and_no_traceback(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "--model", "/nowhere/model", __file__]) == 1
    assert "/nowhere/model" in capsys.readouterr().err


def test_the_scheduler_benchmark_prints_its_table(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "scheduler", "--rows", "2", "--steps", "5", "--repeats", "1"]) == 0
    assert "median µs" in capsys.readouterr().out
