"""`stemma bench grammar`: its cases are right, and its tables say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stemma.backend.bench import grammar as bench
from stemma.backend.bench.grammar import Batch, BatchOutcome, RegexOutcome, batch_of, ratio, run_batch, run_pattern
from stemma.backend.bench.grammar_cases import HOSTILE, REGEXES, WIDE, Pattern, built_in_cases
from stemma.backend.grammar.adapters import Backend, backend_named
from stemma.backend.grammar.adapters.peer import installed
from stemma.backend.grammar.adapters.process import Lost
from stemma.backend.grammar.maskbench import Case, Outcome, run_case
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.params import Constraint
from tests.grammar_tools.fakes import FixedMatcher, byte_vocabulary, scripted

VOCAB = byte_vocabulary("true", "null")
FAKE = Backend("native", scripted, backend_named("native").fill)


def test_every_regex_matches_its_samples():
    assert len(REGEXES) == 10 and len({p.name for p in REGEXES}) == 10
    for pattern in REGEXES:
        outcome = list(run_pattern(pattern, backend_named("native"), VOCAB))[-1]
        assert outcome.accepted == len(pattern.samples), pattern.name
        assert len(outcome.mask_us) == len(outcome.again_us) and outcome.tokens and not outcome.note


def test_every_wide_state_is_reached_by_its_samples():
    assert HOSTILE in WIDE and len({p.name for p in WIDE}) == len(WIDE)
    for pattern in WIDE:
        outcome = list(run_pattern(pattern, backend_named("native"), VOCAB))[-1]
        assert outcome.accepted == len(pattern.samples), pattern.name


def test_the_wide_states_are_summed_up(capsys: pytest.CaptureFixture[str]):
    ours = [RegexOutcome(1.0, [10.0, 30.0 + i]) for i in range(len(WIDE))]
    peer = [RegexOutcome(1.0, [90.0, 400.0]) for _ in WIDE]
    hostile = WIDE.index(HOSTILE)
    ours[hostile] = RegexOutcome(1.0, [5.0, 200.0])
    peer[hostile] = RegexOutcome(note="refused: too wide")
    bench.print_wide({"native": ours, "peer": peer})
    lines = capsys.readouterr().out.splitlines()
    widest = max(30 + i for i in range(len(WIDE)) if i != hostile)
    assert any(
        line.split() == ["cold", "wide", "states,", "max", str(widest), "400", f"{400 / widest:.2f}", "x"]
        for line in lines
    )
    assert any(line.split() == ["hostile", "regex,", "max", "200", "-"] for line in lines)
    assert any("refused: too wide" in line for line in lines)


def test_the_built_in_schemas_are_decided_as_they_say():
    cases = list(built_in_cases())
    assert len(cases) == 20
    assert all({valid for _, valid in case.tests} == {True, False} for case in cases)
    if not installed("llguidance"):
        pytest.skip("needs llguidance as a judge")
    judge = backend_named("llguidance", narrow=False)
    for case in cases:
        outcome = list(run_case(case, judge.compile, VOCAB))[-1]
        assert outcome.passed, f"{case.name}: {outcome.why}"


def test_a_refused_regex_keeps_the_words():
    def refuses(constraint, vocab):
        raise ConstraintError("not this one")

    job = Pattern("p", Constraint("regex", "a"), ("a",))
    assert list(run_pattern(job, Backend("native", refuses, FAKE.fill), VOCAB)) == [
        RegexOutcome(note="refused: not this one")
    ]


def test_a_walk_that_takes_too_long_is_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "WALK_LIMIT", 0.0)
    outcome = list(run_pattern(REGEXES[0], backend_named("native"), VOCAB))[-1]
    assert outcome.note == "stopped after 0 s" and len(outcome.mask_us) == 1 and not outcome.accepted


def case(name: str, **schema: object) -> Case:
    return Case(name, json.dumps(schema), ((True, True), (False, False)))


def test_the_batch_feeds_instances_over_and_over():
    cases = [case("a", texts=["true"]), Case("b", json.dumps({"texts": ["12", "[]"]}), ((12, True), ([], True)))]
    *_, outcome = run_batch(Batch(cases, 20), FAKE, VOCAB)
    assert len(outcome.step_us) == 20 and not outcome.note


def test_an_engine_that_stops_accepting_in_the_batch_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FixedMatcher, "accept", lambda self, token: False)
    with pytest.raises(RuntimeError, match="a stopped accepting"):
        list(run_batch(Batch([case("a", texts=["true"])], 3), FAKE, VOCAB))


def test_the_batch_is_of_schemas_that_all_engines_pass_quickly():
    cases = [case(name, texts=[name]) for name in ("good", "slow", "refused by one")]
    fine = Outcome("", compile_ms=1.0)
    outcomes = {
        "native": [fine, fine, fine],
        "llguidance": [fine, Outcome("", compile_ms=5000.0), Outcome("", refusal="no")],
        "xgrammar": [Outcome("", refusal="no")] * 3,  # passes none: it does not take part
    }
    found = batch_of(outcomes, cases, 3)
    assert [c.name for c in found] == ["good", "good as part_0", "good as part_1"]
    assert found[1].tests == (({"part_0": True}, True), ({"part_0": False}, False))
    assert json.loads(found[1].schema)["properties"] == {"part_0": {"texts": ["good"]}}
    assert batch_of({"native": [Outcome("", refusal="no")] * 3}, cases, 3) == []


def test_ratios_are_of_the_best_peer_over_ours():
    names = ["native", "llguidance", "xgrammar"]
    assert ratio([2.0, 8.0, 5.0], names) == "2.50 x"
    assert ratio([2.0, None, 5.0], names) == "2.50 x"
    assert ratio([None, 8.0, 5.0], names) == "" == ratio([1.0], ["native"])


def test_items_alternate_between_engines():
    order = []

    def items(worker):
        for i in range(2):
            order.append((worker, i))
            yield i

    assert bench.one_by_one({"a": "A", "b": "B"}, items) == {"a": [0, 1], "b": [0, 1]}  # type: ignore[arg-type]
    assert order == [("A", 0), ("B", 0), ("A", 1), ("B", 1)]


def test_what_goes_wrong_is_noted():
    class Worker:
        def start(self) -> None: ...

        def run(self, job):
            yield BatchOutcome([1.0])
            raise Lost("took longer than 1 s")

    assert bench.last_answer(Worker(), None, BatchOutcome()) == BatchOutcome([1.0], "took longer than 1 s")  # type: ignore[arg-type]


def test_the_command_prints_tables(tiny_model: Path, capsys):
    assert bench.main(["--tokenizer", str(tiny_model), "--backends", "native", "--limit", "1", "--steps", "4"]) == 0
    out = capsys.readouterr().out
    for part in ("1 JSON schemas", "native", "compile, ms p50", "ten regexes", "json string of 200", "2/2"):
        assert part in out


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RequestError, match="no such file"):
        bench.main(["--schemas", str(tmp_path / "x")])


def test_hostile_prints_delays_alone_and_under_fire(capsys: pytest.CaptureFixture[str]):
    from stemma.backend.bench import hostile

    options = ["--runners", "sleep", "--workers", "1", "--schemas", "2", "--rows", "2", "--settle", "0.3"]
    assert hostile.main(options) == 0
    out = capsys.readouterr().out
    assert "runner sleep, grammar_workers 1: 2 schemas in" in out
    assert out.count("between steps, under fire") == out.count("a step, alone") == 2
