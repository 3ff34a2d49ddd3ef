"""What docs/coming-from.md lists as not built is an error that names it, and never ignored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stemma as sgl
from stemma.lang.errors import RequestError

PAGE = (Path(__file__).parent.parent.parent / "docs" / "coming-from.md").read_text()


def run(body: Callable[[Any], Any], **options: Any) -> sgl.ProgramState:
    return sgl.function(body).run(backend=sgl.ScriptedEndpoint({"x": "1"}), **options)


def say(s: sgl.ProgramState) -> None:
    s += sgl.gen("x")


CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "stop_regex": (lambda: sgl.gen("x", stop_regex="a"), RequestError, "stop_regex='a'"),
    "run stop_regex": (lambda: run(say, stop_regex="a"), RequestError, "stop_regex='a'"),
    "position_ids_offset": (
        lambda: run(lambda s: s.fork(2, position_ids_offset=[0, 1])),
        RequestError,
        r"position_ids_offset=\[0, 1\]",
    ),
    "compile": (lambda: sgl.compile, AttributeError, "nothing has to be compiled"),
    "Crusoe": (lambda: sgl.Crusoe, AttributeError, "base_url"),
    "global_config": (lambda: sgl.global_config, AttributeError, "give the options to run"),
    "ServerArgs": (lambda: sgl.ServerArgs, AttributeError, "take the options as keywords"),
    "register_chat_template": (lambda: sgl.register_chat_template, AttributeError, "own template"),
    "get_chat_template": (lambda: sgl.get_chat_template, AttributeError, "own template"),
    "f-string of a gen": (
        lambda: f"Say {sgl.gen('x')}",
        RequestError,
        r"gen 'x' stands in an f-string at .*test_not_built\.py:\d+",
    ),
    "f-string of a message": (lambda: f"Say {sgl.user('x')}", RequestError, "stands in an f-string"),
    "f-string of a form": (lambda: f"{sgl.regex('a')}", RequestError, "stands in an f-string"),
    "f-string of a quote": (
        lambda: run(lambda s: [s.append(sgl.gen("x")), s.append(f"{s.ref('x')}")]),
        RequestError,
        "ref 'x' stands in an f-string",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_built_says_so(case: str):
    act, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        act()


def test_values_that_were_read_may_stand_in_f_strings():
    def program(s: sgl.ProgramState) -> None:
        s += sgl.gen("x")
        s += f"It was {s['x']}."

    assert run(program).text() == "1It was 1."


def test_the_page_names_what_the_module_does_not_have():
    for name in sgl._ELSEWHERE:
        assert name not in sgl._NAMES and re.search(rf"`{name}`", PAGE), name


def test_what_the_page_calls_the_same_is_there():
    table = PAGE.split("## SGLang")[1].split("**New habits")[0]
    words = {"function", "system", "user", "assistant", "gen", "gen_int", "gen_string", "select", "Runtime", "Engine"}
    words |= {"RuntimeEndpoint", "separate_reasoning", "set_default_backend", "flush_cache", "get_server_info"}
    for name in words:
        assert f"`{name}" in table and hasattr(sgl, name), name
