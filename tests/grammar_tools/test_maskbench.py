"""The checker: which schemas pass, and what the figures count."""

from __future__ import annotations

import json
import time

import pytest

from stemma.backend.grammar.adapters.process import Lost, Worker
from stemma.backend.grammar.command import check
from stemma.backend.grammar.maskbench import (
    Case,
    Outcome,
    figures,
    forced_tokens,
    parse_cases,
    percentiles,
    rejected_at,
    run_case,
    spelled,
)
from stemma.lang.errors import ConstraintError, RequestError
from tests.grammar_tools.fakes import (
    FixedMatcher,
    FixedTexts,
    byte_vocabulary,
    counting,
    failing_setup,
    scripted,
    scripted_handler,
)

VOCAB = byte_vocabulary("true", '"a')


def case(tests: list[tuple[object, bool]], name: str = "case", **schema: object) -> Case:
    return Case(name, json.dumps(schema), tuple(tests))


def outcome_of(given: Case) -> Outcome:
    return list(run_case(given, scripted, VOCAB))[-1]


def test_a_schema_passes_when_valid_instances_are_accepted_and_invalid_ones_are_not():
    outcome = outcome_of(case([(True, True), ("a", True), ("b", False), ("", False)], texts=["true", '"a"']))
    assert outcome.passed and outcome.why == ""
    assert len(outcome.mask_us) == (1 + 1) + (2 + 1) + 2 + 2


def test_a_valid_instance_that_is_stopped_is_a_false_reject_and_says_where():
    outcome = outcome_of(case([([1, 2], True), ([1], True)], texts=["[1]", "[1, 3]"]))
    assert (outcome.false_rejects, outcome.false_accepts, outcome.passed) == (1, 0, False)
    assert outcome.why == "tests[0] is valid and rejected at token 4, '2', after '[1, '"


def test_a_valid_instance_whose_end_does_not_allow_eos_is_a_false_reject():
    outcome = outcome_of(case([(12, True)], texts=["123"]))
    assert outcome.why == "tests[0] is valid and EOS is illegal at its end, after '12'"


def test_an_invalid_instance_counts_as_rejected_when_only_its_end_is_illegal():
    assert outcome_of(case([(12, False)], texts=["123"])).passed


def test_an_invalid_instance_that_gets_through_is_a_false_accept():
    outcome = outcome_of(case([(i, False) for i in range(6)], texts=[str(i) for i in range(5)]))
    assert outcome.false_accepts == 5
    assert outcome.why == "; ".join(f"tests[{i}] is invalid and accepted" for i in range(3)) + "; and 2 more"


def test_a_refusal_carries_the_words_of_the_engine():
    outcome = outcome_of(case([(1, True)], refuse="no 'not' here"))
    assert not outcome.passed and outcome.compile_ms is None
    assert outcome.why == "refused: no 'not' here"


def test_a_schema_without_instances_passes_when_it_compiles():
    assert outcome_of(case([], texts=["1"])).passed


def test_the_first_answer_comes_before_the_instances_run():
    first, last = run_case(case([(1, True)], texts=["1"]), scripted, VOCAB)
    assert first.compile_ms == last.compile_ms and first.tokens == 0 and last.tokens == 1


def test_accept_must_not_contradict_the_mask():
    class Liar(FixedMatcher):
        def accept(self, token_id: int) -> bool:
            return False

    with pytest.raises(RuntimeError, match="disagree about token 49 at position 0"):
        rejected_at(Liar(FixedTexts(VOCAB, ["1"])), VOCAB.encode("1"), VOCAB, [])


def test_forced_tokens_count_only_spans_that_the_text_follows():
    text = '{"a":1}'
    tokens = VOCAB.encode(text)
    spans = {"": tokens[:2], '{"a': VOCAB.encode('":2'), '{"a":1': VOCAB.encode("}")}
    assert forced_tokens(FixedTexts(VOCAB, [text], spans).matcher(), tokens) == (2 + 2 + 1, len(tokens))
    assert forced_tokens(FixedTexts(VOCAB, ["[]"], spans).matcher(), tokens) == (0, 0)


def test_instances_are_spelled_with_spaces_and_without_escapes():
    assert spelled({"ä": [1, "東"]}) == '{"ä": [1, "東"]}'
    assert spelled({"ä": [1, 2]}, compact=True) == '{"ä":[1,2]}'
    assert spelled("\ud800") == '"\\ud800"'


def test_figures_add_up():
    outcomes = [
        Outcome("good", compile_ms=1.0, mask_us=[1.0, 2.0], tokens=10, forced=4),
        Outcome("refused", refusal="no"),
        Outcome("wrong", compile_ms=3.0, false_accepts=2, false_rejects=1, wrong=["w"], mask_us=[9.0]),
        Outcome("slow", unfinished="took longer than 20 s"),
        Outcome("slow later", compile_ms=2.0, unfinished="took longer than 20 s", tokens=10),
    ]
    assert figures(outcomes) == {
        "schemas": 5,
        "compiled": 3,
        "refused": 1,
        "unfinished": 2,
        "passed": 1,
        "false_accepts": 2,
        "false_rejects": 1,
        "compile_ms": {"p50": 2.0, "p90": 3.0, "max": 3.0},
        "mask_us": {"p50": 2.0, "p99": 9.0, "max": 9.0},
        "forced_share": 0.2,
        "failures": [
            {"name": "refused", "why": "refused: no"},
            {"name": "wrong", "why": "w"},
            {"name": "slow", "why": "unfinished: took longer than 20 s"},
            {"name": "slow later", "why": "unfinished: took longer than 20 s"},
        ],
    }


def test_figures_of_nothing_are_null():
    found = figures([])
    assert found["compile_ms"] == {"p50": None, "p90": None, "max": None} and found["forced_share"] is None


def test_percentiles_are_of_nearest_rank():
    assert percentiles(list(range(1, 101)), (50, 99)) == {"p50": 50, "p99": 99, "max": 100}
    assert percentiles([7.0], (50,)) == {"p50": 7.0, "max": 7.0}


def test_cases_keep_the_order_of_properties_and_skip_empty_lines():
    line = '{"name": "n", "schema": {"b": 1, "a": "é"}, "tests": [{"instance": null, "valid": false}], "more": 1}'
    assert list(parse_cases(["", line, "\n"])) == [Case("n", '{"b": 1, "a": "é"}', ((None, False),))]
    assert [c.name for c in parse_cases(['{"schema": true}'])] == ["line 1"]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"schema": {}, "tests": [1]}', '{"schema": {}, "tests": [{"instance": 1, "valid": "yes"}]}'],
)
def test_a_line_that_is_no_case_is_named(line: str):
    with pytest.raises(RequestError, match="line 2 is no case"):
        list(parse_cases(["", line]))


def test_a_schema_that_hangs_or_crashes_is_unfinished_and_the_next_one_runs():
    cases = [
        case([(1, True)], "fine", texts=["1"]),
        case([], "hangs", hang=1),
        case([], "crashes", crash=1),
        case([], "breaks", bug=1),
        case([(1, True)], "fine again", texts=["1"]),
    ]
    begin = time.monotonic()
    with Worker(scripted_handler, limit=0.5) as worker:
        outcomes = list(check(cases, worker))
    assert time.monotonic() - begin < 40
    assert [o.passed for o in outcomes] == [True, False, False, False, True]
    assert [o.unfinished for o in outcomes[1:4]] == [
        "took longer than 0.5 s",
        "its process died (exit status 7)",
        "ZeroDivisionError: a bug of the engine",
    ]


def test_what_setup_raises_is_raised_here():
    with Worker(failing_setup) as worker, pytest.raises(ConstraintError, match="no such engine") as caught:
        list(check([case([], texts=[])], worker))
    assert caught.value.param == "grammar_backend"


def test_a_worker_runs_jobs_one_after_the_other_and_can_be_stopped():
    with Worker(counting) as worker:
        assert [list(worker.run(n)) for n in (2, 0, 3)] == [[0, 1], [], [0, 1, 2]]
        worker.stop()
        assert list(worker.run(1)) == [0]
        with pytest.raises(RuntimeError, match="TypeError"):
            list(worker.run("x"))
        assert list(worker.run(1)) == [0]
        abandoned = worker.run(5)
        assert next(iter(abandoned)) == 0
        del abandoned
        assert list(worker.run(1)) == [0]


def test_lost_is_not_an_error_of_a_request():
    assert not issubclass(Lost, (RequestError, RuntimeError))
