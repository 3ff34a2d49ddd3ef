"""Fixtures that several rooms use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiny import write_tiny_model

if TYPE_CHECKING:
    from stemma.backend.engine import Engine


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
