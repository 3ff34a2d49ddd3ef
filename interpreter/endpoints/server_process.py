"""A server of one's own: started as a child process, used through its address, stopped with the program."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from stemma.interpreter.endpoints.runtime import RuntimeEndpoint
from stemma.lang.errors import EndpointError, RequestError

_READY = re.compile(r"http://[^\s]+")
STOP_SECONDS = 10.0


class Runtime:
    """Starts `stemma serve` with these options and attaches to it. Can stand wherever an endpoint can.

    `options` are those of `stemma serve`, with underscores: `model_path`, `port` (0, the default, takes a free one),
    `max_total_tokens`, … `launch_timeout` bounds the start in seconds. Raises `RequestError` for an unknown option and
    `EndpointError` with the end of the server's log when it does not come up. `shutdown` stops it; so does the end of
    the program. Use it as a context manager.
    """

    def __init__(self, *, launch_timeout: float = 300.0, log_level: str = "error", **options: Any) -> None:
        if log_level not in ("error", "info"):
            raise RequestError(f"log_level must be error or info, got {log_level!r}", param="log_level")
        command = [sys.executable, "-m", "stemma", "serve", *_flags({"port": 0, **options})]
        self._log: deque[str] = deque(maxlen=100)  # the last lines that the server said
        self._show = log_level == "info"
        # A group of its own: a Ctrl-C in the terminal is for the program, which then stops its server in order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._address: str | None = None
        self._said = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="stemma-runtime", daemon=True)
        self._listener.start()
        atexit.register(self.shutdown)
        try:
            self.url = self._await(launch_timeout)
            self.endpoint = RuntimeEndpoint(self.url, api_key=options.get("api_key"))
        except BaseException:
            self.shutdown()
            raise

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def _listen(self) -> None:
        """Keep what the server says; the first address in it is where it listens."""
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for raw in output:
                line = raw.decode(errors="replace")
                self._log.append(line)
                if self._show:
                    sys.stderr.write(line)
                found = _READY.search(line)
                if found and self._address is None:
                    self._address = found.group().rstrip("/")
                    self._said.set()
        self._said.set()

    def _await(self, seconds: float) -> str:
        until = time.monotonic() + seconds
        self._said.wait(seconds)
        if self._address is None:
            died = self._process.poll() is not None or time.monotonic() < until
            what = "ended at once" if died else f"was not ready in {seconds:g} s"
            said = "".join(self._log).strip()[-2000:] or "nothing"
            raise EndpointError(f"the server {what}; it said: {said}")
        return self._address

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """Stop the server: it finishes what is running, or is told again after some seconds. Twice is fine."""
        atexit.unregister(self.shutdown)
        if endpoint := getattr(self, "endpoint", None):
            endpoint.close()
        if self._process.poll() is None:
            for _ in range(2):  # the second time it does not wait for what runs
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)
                    break
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._listener.join(STOP_SECONDS)

    def generate(
        self, prompt: str | Sequence[str], sampling_params: Mapping[str, Any] | None = None, **fields: Any
    ) -> str:
        """One `/generate` request; the answer as JSON text. Raises `EndpointError`."""
        body = {
            "text": prompt if isinstance(prompt, str) else list(prompt),
            "sampling_params": sampling_params,
            **fields,
        }
        return json.dumps(self.endpoint._call("POST", "/generate", body))

    def get_server_info(self) -> dict[str, Any]:
        """What the server says about itself."""
        return self.endpoint.info()

    def flush_cache(self) -> None:
        """Empty the server's prefix cache."""
        self.endpoint.flush_cache()


def _flags(options: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        if not name.isidentifier():
            raise RequestError(f"options of a server are names with underscores, got {name!r}", param=name)
        if value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        flags += [flag] if value is True else [flag, str(value)]
    return flags
