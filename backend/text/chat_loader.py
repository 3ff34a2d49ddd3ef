"""Finding a model's chat template and compiling it in a sandbox, with the helpers that templates expect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stemma.backend.text.tokenizer import read_json, token_text
from stemma.lang.errors import RequestError


class TemplateRefused(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; when serving, its body is the output."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> Sequence[nodes.Node]:  # type: ignore[override]
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox in which templates run: they are data that came with a model, not our code."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env


def _raise_exception(message: str) -> None:
    raise TemplateRefused(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON: the built-in filter escapes for HTML, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def find_templates(model_dir: Path) -> dict[str, str]:
    """Name → source. A template file beside the weights wins over tokenizer_config.json."""
    path = model_dir / "chat_template.jinja"
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8")}
    for name in ("chat_template.jinja.json", "chat_template.json", "tokenizer_config.json"):
        if (model_dir / name).is_file():
            found = _templates_of(read_json(model_dir / name).get("chat_template"), model_dir / name)
            if found:
                return found
    return {}


def _templates_of(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(v, dict) and {"name", "template"} <= set(v) for v in value):
        return {str(v["name"]): str(v["template"]) for v in value}
    raise RequestError(f"chat_template in {path} must be a string or a list of named templates", param="model_path")


def special_tokens(model_dir: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, as templates may use them."""
    path = model_dir / "tokenizer_config.json"
    given = read_json(path) if path.is_file() else {}
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
    return {name: text for name in names if (text := token_text(given.get(name))) is not None}
