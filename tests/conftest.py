"""Fixtures that several rooms use."""

from __future__ import annotations

import atexit
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiny import write_tiny_model

if TYPE_CHECKING:
    from stemma.backend.engine import Engine


def pytest_unconfigure() -> None:
    """Triton's bindings list hundreds of objects that they leave to the end of the process: nothing to worry about."""
    if "triton" in sys.modules:
        atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer, a chat template and a config; load it with load_format='dummy'."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    """A running engine on the tiny model. Checked for lost slots at the end."""
    from stemma.backend.engine import Engine

    with Engine(tiny_model, load_format="dummy", max_total_tokens=4000, num_threads=1) as made:
        yield made
        made.check()


@pytest.fixture(scope="session")
def demo_engine() -> Iterator[Engine]:
    """One running engine on the bundled model for all that show what it says. Checked for lost slots at the end."""
    from stemma.backend.engine import Engine

    with Engine(num_threads=1) as made:
        yield made
        made.check()


@pytest.fixture
def demo(demo_engine: Engine) -> Iterator[Engine]:
    """The bundled model as the default backend, with nothing cached."""
    import stemma

    demo_engine.flush_cache()
    stemma.set_default_backend(demo_engine)
    yield demo_engine
    stemma.set_default_backend(None)


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[str]:
    """The URL of a real server on the tiny model: front process, engine process, HTTP."""
    command = [
        sys.executable, "-m", "stemma", "serve", "--model-path", str(tiny_model), "--load-format", "dummy",
        "--port", "0", "--max-total-tokens", "4000", "--num-threads", "1", "--chunked-prefill-size", "16",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            url = ""
            for line in process.stdout:
                if found := re.search(r"ready on (http://\S+)", line):
                    url = found.group(1)
                    break
            assert url, "the server did not start"
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield url
        finally:
            process.terminate()
            assert process.wait(30) in (0, -15)
