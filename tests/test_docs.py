"""The documentation's programs run, on the bundled model, and print what the pages say; links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from stemma.backend.engine import Engine

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
# a program, and what it prints if that stands right under it
PROGRAM = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)


def programs() -> list[tuple[str, str, str | None]]:
    return [
        (f"{page.stem}-{i}", found[1], found[2])
        for page in PAGES
        for i, found in enumerate(PROGRAM.finditer(page.read_text()))
    ]


@pytest.mark.parametrize(("source", "prints"), [p[1:] for p in programs()], ids=[p[0] for p in programs()])
def test_a_program_of_the_documentation_runs(
    demo: Engine,
    source: str,
    prints: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    module = types.ModuleType("docs")
    monkeypatch.setitem(sys.modules, "docs", module)  # dataclasses look their module up
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "docs", "exec", dont_inherit=True), module.__dict__)
    if prints is not None:
        assert capsys.readouterr().out == prints


def markdown() -> list[Path]:
    """Every page of the repository."""
    known = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    return [ROOT / name for name in known] or PAGES


def anchors(page: Path) -> set[str]:
    """What a page's headings can be linked by, as GitHub makes it."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).strip().replace(" ", "-")
        again = sum(1 for a in found if re.fullmatch(rf"{re.escape(plain)}(-\d+)?", a))
        found.add(f"{plain}-{again}" if again else plain)
    return found


@pytest.mark.parametrize("page", markdown(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}; the headings: {sorted(anchors(there))}"
