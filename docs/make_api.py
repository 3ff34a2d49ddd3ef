"""Writes docs/api.md from the signatures and docstrings of stemma's public names: python docs/make_api.py

It reads the source and imports nothing but the list of names, so the page is the same wherever it is made.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
COMMAND = "python docs/make_api.py"
WIDTH = 100

# group -> (what it is, which modules' names belong to it); the first that fits has the name
GROUPS = {
    "Programs": ("Functions that run.", r"interpreter\.(program|default_endpoint)"),
    "Words": ("What a program appends to its state. Nothing runs here.", r"lang\.(api|nodes)"),
    "Constraints and types": ("Parts of [forms](language.md#forms) and of types.", r"lang\.(compose|bounds|reasoning)"),
    "Selects": ("How a [select](language.md#words) decides.", r"lang\.choices"),
    "Sampling": ("What the words check their arguments with.", r"lang\.params"),
    "States": ("What a program appends to, and what its results are read from.", r"interpreter\.\w*(state|group)"),
    "Batches and budgets": ("Many runs, and bounds on them.", r"interpreter\.(batch|checkpoint|budget)"),
    "Endpoints": ("What programs run on; see [endpoints.md](endpoints.md).", r"interpreter\.endpoints\..*"),
    "Tools, images, events": (
        "Functions that models call, and what happens as it happens; see [tools.md](tools.md).",
        r"(lang|interpreter)\.(tools|media|events)",
    ),
    "Looking at runs": (
        "Plans, accounts, traces and replays; see [observability.md](observability.md).",
        r"interpreter\..*",
    ),
    "Engine": ("The engine in this process.", r"backend\..*"),
    "Errors": ("What can be raised; [reading](language.md#reading) says when.", r"lang\.errors"),
    "More words": ("", r"lang\..*"),
}
# of the methods with underscores: how each is written
SPECIALS = {"__call__": "{0}({1})", "__iadd__": "{0} += {1}", "__getitem__": "{0}[{1}]", "__contains__": "{1} in {0}"}
# classes whose instances users get, and do not make
NOT_MADE_BY_USERS = {
    "AsyncProgramState", "AsyncProgramStateGroup", "Batch", "BatchRecord", "Plan", "Program", "ProgramGraph",
    "ProgramState", "ProgramStateGroup", "Trace",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A definition: its node, and the module that it stands in."""

    node: ast.stmt
    module: str


@cache
def source(module: str) -> tuple[str, ast.Module]:
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    return text, ast.parse(text)


def find(name: str, module: str) -> Found | None:
    """The definition of a name, through imports. The last one holds: overloads come before it."""
    for node in reversed(source(module)[1].body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
            return Found(node, module)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return Found(node, module)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stemma."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(alias.name, (node.module or "").removeprefix("stemma."))
    return None


def text_of(node: ast.AST, module: str) -> str:
    """The source of an expression, on one line."""
    return " ".join((ast.get_source_segment(source(module)[0], node) or "").split())


def parameters(args: ast.arguments, module: str, method: bool) -> list[str]:
    shown: list[str] = []

    def show(arg: ast.arg, default: ast.expr | None, stars: str = "") -> None:
        kind = f": {text_of(arg.annotation, module)}" if arg.annotation else ""
        value = "" if default is None else f"{' = ' if kind else '='}{text_of(default, module)}"
        shown.append(f"{stars}{arg.arg}{kind}{value}")

    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    for i, (arg, default) in enumerate(zip(plain, defaults, strict=True)):
        if not (method and i == 0):
            show(arg, default)
        if args.posonlyargs and i == len(args.posonlyargs) - 1 and shown:
            shown.append("/")
    if args.vararg:
        show(args.vararg, None, "*")
    elif args.kwonlyargs:
        shown.append("*")
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        show(arg, default)
    if args.kwarg:
        show(args.kwarg, None, "**")
    return shown


def signature(head: str, shown: list[str], result: str) -> str:
    """On one line if it fits, else a parameter a line."""
    line = f"{head}({', '.join(shown)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{head}(\n" + "".join(f"    {parameter},\n" for parameter in shown) + f"){result}"


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, module: str) -> list[str]:
    return [text_of(d, module) for d in node.decorator_list]


def of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, module: str, owner: str = "") -> str:
    marks = decorators(node, module)
    name = f"{owner}.{node.name}" if owner else node.name
    result = f" -> {text_of(node.returns, module)}" if node.returns else ""
    if "property" in marks:
        return f"{name}{result.replace(' -> ', ': ', 1)}"
    shown = parameters(node.args, module, bool(owner) and "staticmethod" not in marks)
    if owner and node.name in SPECIALS and node.name != "__call__":
        return SPECIALS[node.name].format(owner, shown[0].partition(":")[0])
    generates = any(isinstance(inside, ast.Yield) for inside in ast.walk(node))
    head = "await " if isinstance(node, ast.AsyncFunctionDef) and not generates else ""
    head += "with " if "contextmanager" in marks else ""
    return signature(head + (owner if node.name == "__call__" else name), shown, result)


def fields(node: ast.ClassDef, module: str) -> list[str]:
    """The constructor's parameters of a dataclass."""
    shown = []
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id[0] != "_":
            value = f" = {text_of(line.value, module)}" if line.value else ""
            shown.append(f"{line.target.id}: {text_of(line.annotation, module)}{value}")
    return ["*", *shown] if any("kw_only=True" in d for d in decorators(node, module)) else shown


def bases(found: Found, public: set[str]) -> tuple[list[Found], list[str]]:
    """The classes whose members are shown with this one's, and the public classes that it refers to instead."""
    inlined, named = [], []
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base
        if not isinstance(plain, ast.Name):
            continue
        if plain.id in public:
            named.append(plain.id)
        elif (parent := find(plain.id, found.module)) and isinstance(parent.node, ast.ClassDef):
            more, names = bases(parent, public)
            inlined += [parent, *more]
            named += names
        elif plain.id in ("ValueError", "Exception", "TypedDict"):
            named.append(plain.id)
    return inlined, named


def of_class(found: Found, public: set[str]) -> tuple[str, list[str]]:
    """The constructor's signature, and the entries of its public methods and properties."""
    node, module = found.node, found.module
    assert isinstance(node, ast.ClassDef)
    inlined, named = bases(found, public)
    members: dict[str, tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]] = {}
    for level in (found, *inlined):
        assert isinstance(level.node, ast.ClassDef)
        for line in level.node.body:
            if isinstance(line, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                "overload" not in decorators(line, level.module)
            ):
                members.setdefault(line.name, (line, level.module))
    shown = fields(node, module) if any("dataclass" in d for d in decorators(node, module)) else []
    if "__init__" in members:
        init, where = members["__init__"]
        shown = parameters(init.args, where, method=True)
    entries = []
    for name, (line, where) in members.items():
        text = ast.get_docstring(line)
        if text and (name in SPECIALS or not name.startswith("_")):
            title = f"{node.name}.{name}" if name not in SPECIALS else SPECIALS[name].format(node.name, "…")
            entries.append(f"#### {title}\n\n{entry(of_function(line, where, owner=node.name), text)}")
    head = f"class {node.name}({', '.join(named)})" if named else f"class {node.name}"
    made_by_users = node.name not in NOT_MADE_BY_USERS and ("__init__" in members or shown)
    return f"{head}\n{signature(node.name, shown, '')}" if made_by_users else head, entries


def entry(code: str, docstring: str | None) -> str:
    return f"```py\n{code}\n```\n\n{prose(docstring)}" if docstring else f"```py\n{code}\n```"


def prose(docstring: str | None) -> str:
    """A docstring as Markdown; a line of code or a drawing stays as it is."""
    parts = []
    for part in inspect.cleandoc(docstring or "").split("\n\n"):
        as_it_is = any(mark in part for mark in ("├", "└")) or all(
            re.match(r"(\s{2,}|>>>|\w+ = |assert |with )", line) for line in part.splitlines()
        )
        parts.append(f"```text\n{part}\n```" if as_it_is else re.sub(r"<(?=[^`]*(`[^`]*`[^`]*)*$)", "&lt;", part))
    return "\n\n".join(parts)


def of_name(name: str, module: str, public: set[str]) -> str:
    found = find(name, module)
    assert found is not None, f"stemma.{name} is not defined in {module}"
    node = found.node
    lines = [f"### {name}", ""]
    if isinstance(node, ast.ClassDef):
        code, methods = of_class(found, public)
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        texts = [ast.get_docstring(node), ast.get_docstring(init) if init else None]
        lines += [entry(code, "\n\n".join(t for t in texts if t)), *(f"\n{m}" for m in methods)]
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines.append(entry(of_function(node, found.module), ast.get_docstring(node)))
    else:
        lines.append(entry(text_of(node, found.module), following(node, found.module)))
    return "\n".join(lines)


def following(node: ast.stmt, module: str) -> str | None:
    """The text that stands right after an assignment, if one does."""
    body = source(module)[1].body
    at = body.index(node) + 1
    line = body[at] if at < len(body) else None
    value = line.value if isinstance(line, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def page() -> str:
    sys.path.insert(0, str(ROOT))
    import stemma

    names: dict[str, str] = stemma._NAMES
    groups: dict[str, list[str]] = {title: [] for title in GROUPS}
    for name, module in names.items():
        groups[next(t for t, (_, modules) in GROUPS.items() if re.fullmatch(modules, module))].append(name)
    groups = {title: found for title, found in groups.items() if found}
    lines = [
        "# API reference",
        "",
        f"<!-- made by `{COMMAND}` from the docstrings; do not edit -->",
        "",
        "Every public name of `stemma`, with its signature and what it says about itself. To learn the language, read",
        "the [tutorial](tutorial.md) and [the language](language.md).",
        "",
    ]
    anchors: dict[str, str] = {}
    for name in (name for found in groups.values() for name in found):
        again = sum(a.partition("-")[0] == name.lower() for a in anchors.values())
        anchors[name] = name.lower() + (f"-{again}" if again else "")
    for title, found in groups.items():
        linked = " · ".join(f"[`{name}`](#{anchors[name]})" for name in found)
        lines.append(f"- **[{title}](#{title.lower().replace(',', '').replace(' ', '-')})**: {linked}")
    for title, found in groups.items():
        lines += ["", f"## {title}", "", GROUPS[title][0]]
        for name in found:
            lines += ["", of_name(name, names[name], set(names))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
