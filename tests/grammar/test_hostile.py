"""Ten hostile constraints of each kind against a real server: answers in bounded time and memory, and life goes on."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from stemma.backend.grammar.limits import MEMORY_LIMIT, TIME_LIMIT
from tests.grammar.hostile import Hostile, every

SLACK = 2.0  # seconds for everything but the compilation, on a busy machine; without other work no case takes 2.5 s
ADVICE = re.compile(
    r"limit|make it smaller|lower|more than|use |nested|recursion|refers? to|too large|lone surrogate|lead back|cases"
)


def ask(url: str, **params: Any) -> httpx.Response:
    with httpx.Client(timeout=120) as client:
        return client.post(
            url + "/generate",
            json={"text": "x", "sampling_params": {"max_new_tokens": 4, **params}},
        )


def field(case: Hostile) -> dict[str, Any]:
    return {case.kind: case.value if isinstance(case.value, str) else list(case.value)}


@pytest.fixture(scope="module")
def cases() -> list[Hostile]:
    found = [case for case in every() if "lone surrogates" not in case.name]  # which JSON over HTTP cannot carry
    assert len(found) == 49
    return found


def largest_worker() -> int:
    """Bytes of private memory that the largest compiling process of this machine's user holds."""
    sizes = [0]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"stemma.backend.grammar.worker" in (folder / "cmdline").read_bytes():
                status = (folder / "status").read_text()
                sizes.append(int(re.findall(r"VmData:\s*(\d+) kB", status)[0]) << 10)
        except (OSError, IndexError):
            continue
    return max(sizes)


def test_ten_of_each_kind_one_after_the_other(server: str, cases: list[Hostile]) -> None:
    refused: list[tuple[Hostile, str]] = []
    for case in cases:
        begin = time.monotonic()
        response = ask(server, **field(case))
        took = time.monotonic() - begin
        assert response.status_code in (200, 400), (case.name, response.text[:500])
        assert took < TIME_LIMIT + 0.5 + SLACK, (case.name, took)
        assert largest_worker() <= MEMORY_LIMIT
        if response.status_code == 400:
            error = response.json()["error"]
            refused.append((case, error["message"]))
            assert case.kind in error["message"] or error["param"] == case.kind, (case.name, error)
            assert ADVICE.search(error["message"]), (case.name, error)
            assert len(error["message"]) < 2000
    assert 25 < len(refused) < 45
    for case, message in refused:  # remembered: what is left is to read the request
        begin = time.monotonic()
        response = ask(server, **field(case))
        assert response.json()["error"]["message"] == message, case.name
        assert time.monotonic() - begin < 1 + SLACK / 2, case.name
    assert ask(server, regex="[ab]{3}").json()["text"].strip("ab") == ""


def test_all_at_once_and_others_are_served_meanwhile(server: str, cases: list[Hostile]) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(ask, server, **(field(case) | {"max_new_tokens": 2})) for case in cases]
        for i in range(10):
            begin = time.monotonic()
            assert ask(server).status_code == 200
            assert len(ask(server, regex=f"[ab]{{{i + 1}}}").json()["text"]) <= 4 * 8
            assert httpx.get(server + "/health", timeout=60).status_code == 200
            assert time.monotonic() - begin < 20
        assert {answer.result().status_code for answer in answers} == {200, 400}
