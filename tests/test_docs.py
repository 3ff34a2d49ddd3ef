"""The documentation's programs run, on the bundled model."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from stemma.backend.engine import Engine

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


def programs() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        found += [(f"{page.stem}-{i}", block) for i, block in enumerate(blocks)]
    return found


@pytest.mark.parametrize("source", [p for _, p in programs()], ids=[n for n, _ in programs()])
def test_a_program_of_the_documentation_runs(
    demo: Engine, source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    module = types.ModuleType("docs")
    monkeypatch.setitem(sys.modules, "docs", module)  # dataclasses look their module up
    exec(compile(source, "docs", "exec", dont_inherit=True), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
