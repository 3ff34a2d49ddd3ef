"""Servers in processes of their own, for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

HERE = Path(__file__).parent
TIMEOUT = 30


class Running:
    """A `stemma serve` process that has said it is ready."""

    def __init__(self, *options: str, expect_ready: bool = True) -> None:
        environment = dict(os.environ, PYTHONPATH=str(HERE))
        command = [sys.executable, "-m", "stemma.backend.server.launch"]
        if "--engine-factory" not in options:
            command += ["--engine-factory", "fake_engine:FakeEngine"]
        self.process = subprocess.Popen(
            [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.url = ""
        if expect_ready:
            assert self.process.stdout is not None
            self.ready = self.process.stdout.readline()
            assert self.ready.startswith("Stemma ready on http://"), self.end()
            self.url = self.ready.split()[3]

    @property
    def engine_pid(self) -> int:
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    @property
    def engines(self) -> list[int]:
        """Engine processes that run now: none between two of them."""
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> tuple[int, str]:
        """Exit status and stderr."""
        _, stderr = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, stderr


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


@contextlib.contextmanager
def serving(*options: str) -> Iterator[Running]:
    running = Running("--port", "0", *options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


def post_in_background(url: str, body: object) -> tuple[threading.Thread, list[httpx.Response]]:
    got: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: got.append(httpx.post(url, json=body, timeout=TIMEOUT)))
    thread.start()
    return thread, got


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_request(running: Running, count: int = 1) -> None:
    deadline = time.monotonic() + 10
    while httpx.get(running.url + "/get_server_info").json()["inflight_requests"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
