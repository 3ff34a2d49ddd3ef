"""The API reference is made from the docstrings, and says what they say today."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import stemma

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["make_api"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_docstrings_say(maker: ModuleType):
    same = maker.PAGE.read_text() == maker.page()
    assert same, f"docs/api.md is not what the docstrings say now; make it again: {maker.COMMAND}"


def test_every_public_name_is_there_and_says_something(maker: ModuleType):
    page = maker.PAGE.read_text()
    for name in stemma._NAMES:
        section = re.search(rf"^### {name}\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
        assert section, f"stemma.{name} is not in the API reference"
        said = re.sub(r"```.*?```", "", section[1], flags=re.DOTALL).strip()
        assert said, f"stemma.{name} has no docstring"


def test_signatures_are_told_as_they_are_written(maker: ModuleType):
    page = maker.PAGE.read_text()
    assert "select(\n    name: str | None = None,\n    choices: Sequence[str] | None = None,\n" in page
    assert "with ProgramState.copy() -> Iterator[ProgramState]" in page
    assert "await Program.arun(*args: Any, **kwargs: Any) -> ProgramState" in page
    assert "class TruncatedError(ProgramError)\nTruncatedError(\n    message: str,\n    *,\n" in page
    assert "AsyncProgramState.text_iter(" in page and "ProgramStateGroup += other" in page
