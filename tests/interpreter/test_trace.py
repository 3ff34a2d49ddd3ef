"""Traces: what they hold, and that no text can get out of its place in the page."""

import hashlib
import html
import json
import re
import shutil
import subprocess
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stemma import (
    ProgramState,
    RequestError,
    RuntimeEndpoint,
    ScriptedEndpoint,
    Trace,
    assistant,
    function,
    gen,
    select,
    user,
)
from stemma.backend.engine import Engine
from stemma.interpreter import trace as trace_module
from stemma.interpreter.trace import cut_at

FIXED = r'\{"name": "[A-Z][a-z]{1,8}"\}'
NASTY = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)> ]]> \u2028 \" ' & é 你 \ud800"


@function
def program(s: ProgramState):
    s += user("Hello there friend.")
    forks = s.fork(2)
    for i, fork in enumerate(forks):
        fork += assistant(gen("record", max_tokens=40, regex=FIXED))
        fork += user(f"number {i}") + assistant(gen("more", max_tokens=3, return_logprob=True, top_logprobs_num=2))
    forks.join()
    s += assistant("It is " + select("best", choices=["red", "green", "blue"]))
    s += user("Why?") + assistant(gen("why", max_tokens=4))


@pytest.fixture(scope="module")
def traced(engine: Engine) -> tuple[ProgramState, Trace]:
    engine.flush_cache()
    state = program.run(backend=engine, temperature=0)
    return state, state.trace()


def nodes(trace: Trace, name: str) -> list[dict[str, Any]]:
    return [n for n in trace.data["nodes"] if n.get("name") == name]


def test_outputs_are_cut_into_tokens_that_spell_the_text(traced: tuple[ProgramState, Trace]):
    for node in traced[1].data["nodes"]:
        if node["kind"] == "gen":
            kept = "".join(text for text, kind, _, _ in node["tokens"] if kind != "end")
            assert kept == node["text"]


def test_forced_tokens_are_those_that_the_engine_counted(traced: tuple[ProgramState, Trace]):
    for node in nodes(traced[1], "record"):
        kinds = [kind for _, kind, _, _ in node["tokens"]]
        assert kinds.count("forced") == node["usage"]["forced_tokens"] > 0
        forced = "".join(text for text, kind, _, _ in node["tokens"] if kind == "forced")
        assert "name" in forced


def test_log_probabilities_and_alternatives_come_with_the_tokens(traced: tuple[ProgramState, Trace]):
    state, trace = traced
    (first, _), meta = nodes(trace, "more"), state._run.filled([state.graph().branches["r.0"]])[1].meta
    said = [round(triple[0], 4) for triple in meta["output_token_logprobs"]]
    assert [logprob for _, _, logprob, _ in first["tokens"]] == said
    assert all(len(top) == 2 for _, _, _, top in first["tokens"])


def test_literal_text_is_coloured_by_the_first_that_computed_it(traced: tuple[ProgramState, Trace]):
    trace = traced[1]
    literals = [n for n in trace.data["nodes"] if n["kind"] == "text"]
    assert all("".join(text for text, _ in n["parts"]) == n["text"] for n in literals)
    hello = next(n for n in literals if n["text"].startswith("Hello"))
    assert [kind for _, kind in hello["parts"]] == ["computed"] and hello["reused"] == 2
    total = trace.data["plan"]
    assert total["computed_prompt"] <= 1.02 * total["distinct_tokens"]


def test_prompts_can_be_put_together_from_what_came_before(traced: tuple[ProgramState, Trace]):
    by_id = {n["id"]: n for n in traced[1].data["nodes"]}

    def pieces(node: dict[str, Any]) -> list[str]:
        before = by_id[node["prompt"]["after"]] if node["prompt"]["after"] else None
        said: list[str] = []
        if before is not None:
            said = pieces(before) + (before["prompt"].get("output") or [t[0] for t in before["tokens"]])
        return said[: node["prompt"]["start"]] + node["prompt"]["pieces"]

    for node in by_id.values():
        if node["kind"] in ("gen", "select"):
            assert len(pieces(node)) == node["usage"]["prompt_tokens"]
    assert "".join(pieces(nodes(traced[1], "why")[0])).count("Hello there friend.") == 1


def test_the_text_tree_shows_branches_and_figures(traced: tuple[ProgramState, Trace]):
    shown = str(traced[1])
    assert shown.startswith("program  6 gens and selects in 3 branches; ")
    assert shown.count("├─ fork") == 2 and "select best = " in shown and "forced)" in shown
    assert re.search(r"gen why = .*\n .* prompt \(\d+ cached\), \d+ generated.* ms  .*test_trace.py:\d+", shown)


def test_chromes_format_has_a_lane_for_each_branch_and_time_goes_forward(traced: tuple[ProgramState, Trace]):
    told = json.loads(json.dumps(traced[1].chrome()))
    events = [e for e in told["traceEvents"] if e["ph"] == "X"]
    assert {e["tid"] for e in events} == {0, 1, 2}
    whole = [e for e in events if e["cat"] != "phase"]
    assert len(whole) == 6 and all(e["ts"] >= 0 and e["dur"] >= 0 for e in events)
    ends = {(w["tid"], w["ts"]): w["ts"] + w["dur"] for w in whole}
    for phase in (e for e in events if e["cat"] == "phase"):
        begun = max(ts for tid, ts in ends if tid == phase["tid"] and ts <= phase["ts"] + 1)
        assert phase["ts"] + phase["dur"] <= ends[phase["tid"], begun] + 1


def test_files_of_every_format(traced: tuple[ProgramState, Trace], tmp_path: Path):
    trace = traced[1]
    assert trace.save(tmp_path / "run.html").read_text().startswith("<!doctype html>")
    assert json.loads(trace.save(tmp_path / "run.json").read_text())["title"] == "program"
    assert "traceEvents" in json.loads(trace.save(tmp_path / "c.json", format="chrome").read_text())
    assert trace.save(str(tmp_path / "run.txt")).read_text() == f"{trace}\n"
    with pytest.raises(RequestError, match=r"the ending of 'run.xyz' tells no format; one of html, chrome"):
        trace.save(tmp_path / "run.xyz")
    with pytest.raises(RequestError, match="format 'pdf'"):
        trace.save(tmp_path / "run.html", format="pdf")  # type: ignore[arg-type]


class Page(HTMLParser):
    """What a browser would see: scripts with their attributes and text, and every other element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.policy = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and self.scripts:
            about, text = self.scripts[-1]
            self.scripts[-1] = (about, text + data)


@function
def nasty(s: ProgramState, text: str):
    s += user(text)
    s += assistant(gen(text, max_tokens=5)) + select("pick", choices=[text, "b"])


def test_no_text_becomes_markup(tmp_path: Path):
    state = nasty.run(NASTY, backend=ScriptedEndpoint({NASTY: NASTY, "pick": NASTY}))
    trace = state.trace()
    trace.data["title"] = NASTY
    page = Page(trace.html())
    assert [about for about, _ in page.scripts] == [{"type": "application/json", "id": "trace"}, {}]
    assert "img" not in page.tags and not any(name.startswith("on") for name, _ in page.attributes)
    told = json.loads(page.scripts[0][1])
    assert NASTY.replace("\ud800", "\ufffd") in [n["text"] for n in told["nodes"] if n["kind"] == "gen"]
    trace.save(tmp_path / "nasty.html")
    trace.save(tmp_path / "nasty.txt")
    frame = state._repr_html_()
    inside = re.fullmatch(
        r'<iframe sandbox="allow-scripts" title="[^"<]*" srcdoc="([^"]*)" style="[^"]*"></iframe>', frame
    )
    assert inside is not None and html.unescape(inside.group(1)).startswith("<!doctype html>")


def test_the_page_loads_nothing_and_runs_only_its_own_script(traced: tuple[ProgramState, Trace]):
    page = Page(traced[1].html())
    script = page.scripts[1][1]
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'sha256-")
    assert not any(name in ("src", "href", "srcset") for name, _ in page.attributes)
    assert "innerHTML" not in script and "http" not in script


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_is_valid_javascript(tmp_path: Path):
    source = Path(trace_module.__file__).parent / "page" / "trace.js"
    done = subprocess.run(["node", "--check", str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_endpoint_that_knows_no_tokens_still_gives_a_trace():
    trace = program.run(backend=ScriptedEndpoint({"record": '{"name": "Ada"}', "more": "m", "why": "w"})).trace()
    assert any("not coloured" in note for note in trace.data["notes"])
    assert nodes(trace, "why")[0]["tokens"] == [["w", "sampled", None, None]]
    assert "└─" in str(trace) or "├─" in str(trace)


def test_failed_running_merged_and_dropped_nodes_are_shown_as_such():
    @function
    def mixed(s):
        a, b, c = s.fork(3)
        a += gen("x")
        b += gen("x")
        c += gen("bad")
        assert (a["x"], b["x"]) == ("x", "x")
        s += gen("unread")

    endpoint = ScriptedEndpoint({"x": "x", "bad": ValueError("broken <b>"), "unread": "u"})
    state = mixed.run(backend=endpoint, temperature=0, merge_identical=True, drop_unread=True)
    trace = state.trace()
    assert [n["status"] for n in trace.data["nodes"]] == ["dropped", "done", "merged", "failed"]
    shown = str(trace)
    assert "as r.0:0" in shown and "broken <b>" in shown and "dropped" in shown
    assert "broken <b>" not in trace.html()


def test_huge_runs_are_cut_with_a_note(monkeypatch: pytest.MonkeyPatch, engine: Engine):
    monkeypatch.setattr(trace_module, "MAX_NODES", 10)
    monkeypatch.setattr(trace_module, "MAX_CHARS", 30)
    monkeypatch.setattr(trace_module, "MAX_PIECES", 40)

    @function
    def wide(s):
        s += "one two three four five six seven eight nine ten. " * 3
        forks = s.fork(12)
        forks += "go" + gen("x", max_tokens=3)
        forks.join()

    trace = wide.run(backend=engine, temperature=0).trace()
    assert len(trace.data["nodes"]) == 10
    assert any("first 10 of 25 nodes" in note for note in trace.data["notes"])
    assert any("Tokens beyond the first 40" in note for note in trace.data["notes"])
    assert trace.data["nodes"][0]["text"].endswith("more characters)")
    assert sum(len(n.get("prompt", {}).get("pieces", ())) for n in trace.data["nodes"]) < 60
    assert len(trace.html()) < 200_000 and str(trace)


def test_a_recorded_run_can_be_looked_at_without_its_endpoint(traced: tuple[ProgramState, Trace]):
    (graph,) = traced[0].record().graphs()
    again = Trace.of(graph)
    assert [n["status"] for n in again.data["nodes"] if "status" in n] == ["done"] * 6
    assert nodes(again, "why")[0]["times"] == pytest.approx(nodes(traced[1], "why")[0]["times"], abs=1e-5)
    assert again.html()


def test_tokens_over_http(server: str):
    endpoint = RuntimeEndpoint(server)
    state = program.run(backend=endpoint, temperature=0, trace=True)
    trace = state.trace()
    assert state.explain().exact
    for node in nodes(trace, "record"):
        assert "".join(text for text, kind, _, _ in node["tokens"] if kind != "end") == node["text"]
        assert "forced" in [kind for _, kind, _, _ in node["tokens"]]
    plain = program.run(backend=endpoint, temperature=0)
    assert "prompt_ids" not in plain.get_meta_info("why") and not plain.explain().exact
    endpoint.close()


@pytest.mark.parametrize(
    ("tokens", "texts", "expected"),
    [
        (["ab", "cd"], ["a", "bcd"], [["a"], ["b", "cd"]]),
        (["<s>", "ab"], ["ab"], [["<s>", "ab"]]),
        (["ab", "c"], ["", "abc", ""], [[], ["ab", "c"], []]),
        (["ab"], ["xy"], [[]]),
        ([], ["", ""], [[], []]),
    ],
)
def test_tokens_are_cut_where_the_literals_part(tokens: list[str], texts: list[str], expected: list[list[str]]):
    parts = [[token, str(i)] for i, token in enumerate(tokens)]
    assert [[text for text, _ in share] for share in cut_at(parts, texts)] == expected


def test_what_a_stop_string_cut_off_is_not_shown_twice():
    assert cut_at([["rest", "a"], ["new", "b"]], ["new"], keep_lead=False) == [[["new", "b"]]]
