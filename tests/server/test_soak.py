"""The short form of `stemma bench soak`."""

from __future__ import annotations

import subprocess
import sys

OPTIONS = [
    "--minutes",
    "0.2",
    "--clients",
    "5",
    "--kill-every",
    "5",
    "--variants",
    "1",
    "--settle",
    "0.5",
    "--seed",
    "3",
]


def test_no_answer_is_lost_and_nothing_is_left_behind():
    command = [sys.executable, "-m", "stemma", "bench", "soak", *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "passed: no answer lost, nothing left behind" in done.stdout, said
    assert "engine killed" in done.stdout and "answered as in the quiet run" in done.stdout, said
