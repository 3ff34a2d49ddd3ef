"""The house: which room may import which, enforced by reading every import statement."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("lang", "interpreter", "backend", "kernels")
TORCH_MAY_BEGIN = (
    "backend/executor",
    "backend/models",
    "backend/layers",
    "backend/cache/kv_pool.py",
    "kernels",
    "backend/bench",
)

# room -> what it may import from the others, longest prefix first
MAY = {
    "lang": ("lang",),
    "interpreter/endpoints/local.py": ("lang", "interpreter", "backend.engine"),
    "interpreter": ("lang", "interpreter"),
    "kernels": ("kernels",),
    "backend/core.py": (),
    "backend/config.py": ("lang.errors",),
    "backend/messages.py": ("lang.errors", "lang.params"),
    "backend/observe": ("backend.observe",),
    "backend/requests.py": ("lang.errors", "lang.params", "backend.messages"),
    "backend/captures.py": ("lang.errors", "lang.params", "backend.messages", "backend.grammar"),
    "backend/cache": ("backend.core", "backend.cache"),
    "backend/text": ("lang.errors", "lang.params", "backend.grammar.base", "backend.text"),
    "backend/grammar": ("lang.errors", "lang.params", "lang.spans", "backend.grammar"),
    "backend/grammar/command.py": ("lang.errors", "lang.params", "backend.grammar", "backend.text"),
    "backend/scheduler": (
        "lang.errors", "lang.params", "lang.choices", "backend.core", "backend.messages", "backend.cache",
        "backend.grammar.base", "backend.scheduler",
    ),
    "backend/layers": ("lang.errors", "backend.core", "backend.layers", "kernels"),
    "backend/models": ("lang.errors", "backend.core", "backend.layers", "backend.models", "kernels"),
    "backend/executor": (
        "lang.errors", "backend.core", "backend.cache", "backend.layers", "backend.models", "backend.executor",
        "kernels",
    ),
    "backend/server": (
        "lang.errors", "lang.params", "backend.config", "backend.messages", "backend.observe", "backend.requests",
        "backend.text", "backend.server",
    ),
    "backend/distributed": ("backend.core", "backend.distributed"),
    "backend/simulate": (
        "lang.errors", "lang.params", "backend.core", "backend.messages", "backend.scheduler", "backend.distributed",
        "backend.simulate",
    ),
    "backend/engine.py": ("lang.errors", "lang.params", "backend"),
    "backend/bench": ("lang.errors", "lang.params", "backend"),
    "backend/bench/programs.py": ("lang", "interpreter", "backend"),  # a client of a server, as its users are
    "backend/bench/program_cases.py": ("lang", "interpreter", "backend"),
}  # fmt: skip


def files() -> list[Path]:
    return [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> list[tuple[str, int]]:
    """Every imported module with its line: `from a import b` counts as a and as a.b."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = ("stemma", *package)[: len(package) + 2 - node.level]
                base = ".".join([*up, base] if base else up)
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return found


def room_of(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return max((m for m in MAY if name == m or name.startswith(m + "/")), key=len, default="")


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_imports_upward(path: Path):
    name = path.relative_to(ROOT).as_posix()
    room = room_of(path)
    if name in ("backend/__init__.py",):
        return
    assert room, f"{name} is in no room: add it to MAY, or move it"
    for module, line in imports(path):
        if not module.startswith("stemma."):
            assert module.split(".")[0] not in ROOMS, f"{name}:{line} imports {module} without the name 'stemma'"
            continue
        inner = module.removeprefix("stemma.")
        if inner == "__version__":
            continue
        allowed = any(inner == m or inner.startswith(m + ".") for m in MAY[room])
        assert allowed, f"{name}:{line} imports {inner}; the room {room} may import {', '.join(MAY[room])}"


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_torch_begins_only_where_it_may(path: Path):
    name = path.relative_to(ROOT).as_posix()
    if any(name.startswith(room) for room in TORCH_MAY_BEGIN):
        return
    for module, line in imports(path):
        assert module.split(".")[0] != "torch", f"{name}:{line} imports torch"


@pytest.mark.parametrize("path", [p for p in files() if p.relative_to(ROOT).parts[0] == "lang"], ids=lambda p: p.name)
def test_the_words_need_only_the_standard_library(path: Path):
    for module, line in imports(path):
        top = module.split(".")[0]
        assert top in sys.stdlib_module_names or top == "stemma", f"{path.name}:{line} imports {module}"


def test_long_files_say_why():
    for path in [*files(), *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]:
        lines = path.read_text().splitlines()
        if len(lines) > 500:
            assert any("long because" in line for line in lines[:12]), f"{path}: {len(lines)} lines and no reason given"


def test_the_light_client_imports_nothing_heavy():
    code = (
        "import sys, stemma; stemma.function, stemma.gen, stemma.RuntimeEndpoint; "
        "heavy = {'torch', 'numpy', 'transformers', 'msgspec', 'requests'} & set(sys.modules); assert not heavy, heavy"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert out.returncode == 0, out.stderr


def test_the_import_name_is_links_to_the_rooms():
    for room in ROOMS:
        link = ROOT / "stemma" / room
        assert link.is_symlink() and link.resolve() == (ROOT / room).resolve()
