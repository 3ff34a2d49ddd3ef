"""Traces, tokens, cost models, routing, recording, the command."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from stemma.backend.bench.simulate import main
from stemma.backend.distributed.routing import BLOCK, PrefixSummary, ReplicaLoad, Router, RoutingRule, choose
from stemma.backend.simulate import trace as traces
from stemma.backend.simulate.costs import PRESETS, CostModel, Load, cost_model, fit
from stemma.backend.simulate.oracle import Trie
from stemma.backend.simulate.replica import ReplicaOptions
from stemma.backend.simulate.simulation import Simulation
from stemma.backend.simulate.tokens import Outputs, key_number, stream
from stemma.backend.simulate.trace import Gen, Ids, Output, Text, TraceBranch, TraceProgram, Wait
from stemma.backend.simulate.workloads import MIXTURE, arrivals, parse_mixture, workload
from stemma.lang.errors import RequestError


def program(*nodes, **rest) -> TraceProgram:
    return TraceProgram("p", 0.0, [TraceBranch("r", list(nodes))], **rest)


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_tokens_of_a_key_are_one_sequence():
    key = key_number("a")
    long = stream(key, np.arange(100), 50_000)
    assert (stream(key, np.arange(40), 50_000) == long[:40]).all()
    assert (stream(key_number("b"), np.arange(100), 50_000) != long).mean() > 0.9
    assert len(set(long.tolist())) > 90 and long.min() >= 0 and long.max() < 50_000


def test_a_seed_says_everything_about_an_output():
    outputs = Outputs(1000)
    seeds = np.array([outputs.seed(key_number("x"), 3, True), outputs.seed(0, 2, False, [7, 8]),
                      outputs.seed(0, 3, True, [5, 6])])  # fmt: skip
    assert Outputs.lengths(seeds).tolist() == [3, 2, 3]
    said = outputs.tokens(seeds[:, None], np.arange(3)[None])
    assert said[0].tolist() == [*stream(key_number("x"), np.arange(2), 1000), 1000]
    assert said[1, :2].tolist() == [7, 8] and said[2].tolist() == [5, 6, 1000]
    with pytest.raises(ValueError, match="got 0"):
        outputs.seed(0, 0, False)


# -- traces ------------------------------------------------------------------------------------------------------------


def test_a_trace_comes_back_as_it_was_written(tmp_path):
    given = list(workload(MIXTURE, 30, 5.0, seed=1))
    assert traces.save(tmp_path / "t.jsonl", given, source="test") == 30
    assert traces.read_header(tmp_path / "t.jsonl").source == "test"
    assert list(traces.read(tmp_path / "t.jsonl")) == given


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (program(Text(5)), "generates nothing"),
        (program(Gen(5, 3)), "n=5, max=3"),
        (program(Gen(3, 9, ids=[1, 2, 3])), "3 ids for an output of 3 tokens"),
        (program(Ids([-1]), Gen(1)), "token ids"),
        (program(Output("x", 0), Gen(1)), r"\('x', 0\) is no gen"),
        (program(Gen(1), Wait(-1.0)), "seconds"),
        (TraceProgram("p", 0.0, [TraceBranch("a", [Gen(1)], "b")]), "parent 'b'"),
        (TraceProgram("p", 0.0, [TraceBranch("a", [Gen(1)]), TraceBranch("c", [Gen(1)], "a", 2)]), "got 2"),
        (TraceProgram("p", -1.0, [TraceBranch("a", [Gen(1)])]), "arrival"),
    ],
)
def test_a_wrong_program_is_refused_where_it_is_wrong(bad: TraceProgram, says: str):
    with pytest.raises(RequestError, match=says):
        traces.check(bad)


def test_a_wrong_line_is_named(tmp_path):
    path = tmp_path / "t.jsonl"
    traces.save(path, [program(Gen(1))])
    path.write_text(path.read_text() + '{"id": "q", "arrival": 1, "branches": 7}\n')
    with pytest.raises(RequestError, match="line 3"):
        list(traces.read(path))
    path.write_text('{"stemma_trace": 99}\n')
    with pytest.raises(RequestError, match="version 99"):
        list(traces.read(path))


def test_workloads_differ_in_rate_only_by_their_arrivals():
    slow, fast = (list(workload(MIXTURE, 20, rate, seed=2)) for rate in (1.0, 10.0))
    assert [p.branches for p in slow] == [p.branches for p in fast]
    assert [p.arrival for p in slow] == pytest.approx([10 * p.arrival for p in fast])


@pytest.mark.parametrize("burst", [0.5, 1.0, 3.0])
def test_arrivals_have_their_rate_and_their_burst(burst: float):
    times = arrivals(random.Random(1), 4.0, burst)
    gaps = np.diff([next(times) for _ in range(20_000)])
    assert gaps.mean() == pytest.approx(0.25, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(burst, rel=0.1)


def test_a_mixture_is_parsed_or_refused():
    assert parse_mixture("judge=2,form") == {"judge": 2.0, "form": 1.0}
    with pytest.raises(RequestError, match="no workload 'jugde'"):
        parse_mixture("jugde")
    with pytest.raises(RequestError, match="'x'"):
        parse_mixture("judge=x")


# -- costs -------------------------------------------------------------------------------------------------------------


def test_a_fit_finds_the_model_that_made_the_times(tmp_path):
    truth = CostModel("t", ((1.0, 0.001), (8.0, 0.002), (64.0, 0.02), (512.0, 0.1)), 1e-7, 2e-8, 3e-5)
    rng = random.Random(0)
    loads = []
    for _ in range(400):
        rows = rng.randint(1, 64)
        tokens = rng.choice((rows, rows + rng.randint(0, 448)))
        context = rng.randint(tokens, 40_000)
        loads.append(Load(tokens, rows, context, 0, context * rng.randint(1, 4)))
    found = fit("f", loads, [truth.seconds(load) for load in loads], (8, 64))
    assert found.median_error < 0.01 and found.total_error < 0.01
    assert found.model.per_context == pytest.approx(1e-7, rel=0.2)
    found.model.save(tmp_path / "c.json")
    assert CostModel.load(tmp_path / "c.json") == found.model == cost_model(str(tmp_path / "c.json"))


def test_a_cost_model_must_cost_something():
    with pytest.raises(RequestError, match="cost time"):
        CostModel("c", ((1.0, 0.0),))
    with pytest.raises(RequestError, match="ascending"):
        CostModel("c", ((2.0, 1.0), (1.0, 1.0)))
    with pytest.raises(RequestError, match="no cost model 'h100'"):
        cost_model("h100")


def test_the_preset_says_what_was_measured():
    """Eight billion parameters on one H200: 4.9 ms for one token, 50,000 prompt tokens a second."""
    cost = PRESETS["h200-8b"]
    assert cost.seconds(Load(1, 1, 512, 0, 512)) == pytest.approx(0.0047, rel=0.05)
    assert 2048 / cost.seconds(Load(2048, 4, 2048, 0, 2048 * 256)) == pytest.approx(50_000, rel=0.05)
    flat = Load(256, 256, 256 * 2176, 240 * 2048, 256 * 2176)
    assert PRESETS["h200-8b-family"].seconds(flat) < 0.6 * cost.seconds(flat)


# -- routing -----------------------------------------------------------------------------------------------------------


def test_the_choice_is_a_function_of_what_it_is_given():
    loads = [ReplicaLoad(branches=b) for b in (5, 2, 9)]
    nothing = [0.0, 0.0, 0.0]
    assert [choose(RoutingRule("round_robin"), loads, nothing, t) for t in range(4)] == [0, 1, 2, 0]
    assert choose(RoutingRule("least_loaded"), loads, nothing, 0) == 1
    assert choose(RoutingRule("prefix"), loads, [0.0, 0.0, 0.9], 0) == 2
    assert choose(RoutingRule("prefix"), loads, [0.2, 0.0, 0.1], 0) == 1  # too little to matter
    loads[2].branches = 100
    assert choose(RoutingRule("prefix"), loads, [0.0, 0.0, 0.9], 0) == 1  # too unequal
    with pytest.raises(ValueError, match="'nearest'"):
        RoutingRule("nearest")


def test_ties_go_round():
    loads = [ReplicaLoad() for _ in range(4)]
    assert [choose(RoutingRule("least_loaded"), loads, [0.0] * 4, t) for t in range(5)] == [0, 1, 2, 3, 0]


def test_a_program_stays_where_it_began():
    router = Router(3, RoutingRule("least_loaded"))
    ids = np.arange(200, dtype=np.int32)
    first = router.route("a", ids)
    others = {router.route(f"p{k}", ids) for k in range(2)}
    assert others == {0, 1, 2} - {first} and router.route("a", ids) == first
    assert [load.programs for load in router.loads] == [1, 1, 1]
    assert [load.work for load in router.loads] == [1, 1, 1]
    router.report(first, 6, 1)
    assert router.loads[first].work == 6
    router.finished("a")
    assert router.loads[first].programs == 0 and "a" not in router.where


def test_the_summary_knows_prefixes_by_block_and_forgets_the_oldest():
    summary = PrefixSummary(2, size=8)
    ids = np.arange(4 * BLOCK, dtype=np.int32)
    summary.note(1, ids)
    assert summary.matched(ids) == [0.0, 1.0]
    other = ids.copy()
    other[2 * BLOCK] += 1
    assert summary.matched(other) == [0.0, 0.5]
    assert summary.matched(ids[: BLOCK - 1]) == [0.0, 0.0]
    for k in range(3):
        summary.note(0, ids + 1000 * (k + 1))
    assert summary.matched(ids) == [0.0, 0.0]
    summary.note(1, ids)
    summary.forget(1)
    assert summary.matched(ids) == [0.0, 0.0]


# -- oracle ------------------------------------------------------------------------------------------------------------


def test_the_trie_is_a_set_of_prefixes():
    rng = random.Random(3)
    trie, seen = Trie(), set()
    for _ in range(300):
        ids = [rng.randint(0, 2) for _ in range(rng.randint(0, 12))]
        prefixes = [tuple(ids[: k + 1]) for k in range(len(ids))]
        assert trie.add(np.array(ids, np.int32)) == sum(p in seen for p in prefixes)
        seen.update(prefixes)
        assert trie.size == len(seen)


# -- recording ---------------------------------------------------------------------------------------------------------


def test_a_run_of_the_engine_becomes_a_trace(tmp_path, demo_engine):
    """Programs run on the bundled model; the trace has their tokens, and simulates to the same prompts and outputs."""
    from stemma import function, gen, select
    from stemma.backend.simulate.record import Recorder

    @function
    def ways(s, q):
        s += f"Question: {q} Something that everybody shares, long enough to be worth it. "
        for k, branch in enumerate(forks := s.fork(2)):
            branch += f"Way {k}: "
            branch += gen("a", max_tokens=4 + k)
        s += "All: " + " ".join(branch["a"] for branch in forks)
        s += gen("b", max_tokens=5)
        s += " so " + select("c", choices=["yes", "no"])

    engine = demo_engine
    with Recorder(engine) as recorder:
        state = ways.run(q="why?", backend=engine)
        assert state["c"] in ("yes", "no")
        plain = engine.generate("Hello there", {"max_new_tokens": 4})
        engine.generate(input_ids=[3, 4, 5], sampling_params={"max_new_tokens": 2, "ignore_eos": True})
    engine.generate("not recorded", {"max_new_tokens": 2})
    found = recorder.programs()
    assert len(found) == 3
    traces.save(tmp_path / "t.jsonl", found, vocab=recorder.vocab)
    given = list(traces.read(tmp_path / "t.jsonl"))
    assert given == found
    forks, hello, raw = given
    assert [(b.parent, b.at) for b in forks.branches] == [(None, 0), ("r", 0), ("r", 0)]
    root = forks.branches[0].nodes
    assert isinstance(root[0], Wait) and sorted(root[0].after) == [("r.0", 1), ("r.1", 1)]
    assert [type(n).__name__ for n in root[1:]] == ["Ids", "Gen", "Ids", "Select"]
    assert raw.branches[0].nodes[0] == Ids([3, 4, 5])
    said = hello.branches[0].nodes[1]
    assert isinstance(said, Gen)
    assert said.ids == plain["output_ids"][: len(said.ids)]
    simulation = Simulation(
        ReplicaOptions(cost=PRESETS["cpu-demo"], slots=5000), vocab=traces.read_header(tmp_path / "t.jsonl").vocab
    )
    result = simulation.run(given)
    simulation.check()
    by_id = {p.id: p for p in result.programs}
    assert not any(p.error for p in result.programs)
    assert by_id[hello.id].prompt == plain["meta_info"]["prompt_tokens"]
    assert by_id[hello.id].generated == plain["meta_info"]["completion_tokens"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_compares_and_writes_what_it_found(tmp_path, capsys):
    given = (
        "--programs 30 --slots 40000 --rate 10 --replicas 2 --policy program fcfs --router prefix round_robin --alone 3"
    )
    argv = [*given.split(), "--json", str(tmp_path / "out.json")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("10/s") == 4 and "programs simulated" in out
    runs = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert [(r["policy"], r["router"]) for r in runs] == [
        ("program", "prefix"), ("fcfs", "prefix"), ("program", "round_robin"), ("fcfs", "round_robin"),
    ]  # fmt: skip
    assert all(r["programs"] == 30 and r["slowdown"]["sample"] >= 3 for r in runs)


def test_the_command_writes_a_trace_and_reads_it(tmp_path, capsys):
    path = str(tmp_path / "t.jsonl")
    main(["--programs", "15", "--rate", "5", "--write-trace", path])
    main(["--trace", path, "--slots", "40000", "--alone", "0", "--json", "-"])
    run = json.loads(capsys.readouterr().out.split("\n", 1)[1])["runs"][0]
    assert run["programs"] == 15 and run["load"] == "trace" and run["slowdown"] is None


def test_the_command_refuses_what_it_cannot_do():
    with pytest.raises(RequestError, match="got 0"):
        main(["--programs", "0"])
    with pytest.raises(RequestError, match="no cost model"):
        main(["--cost", "abacus"])
