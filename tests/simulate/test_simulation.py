"""The simulator against what must hold: conservation, determinism, coasting = stepping, formulas, bounds."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, replace

import numpy as np
import pytest

from stemma.backend.distributed.routing import RoutingRule
from stemma.backend.simulate.costs import PRESETS, CostModel
from stemma.backend.simulate.replica import ReplicaOptions
from stemma.backend.simulate.report import hit_rate, jain, summary, table
from stemma.backend.simulate.simulation import Result, Simulation
from stemma.backend.simulate.study import alone, capacity, with_slowdown
from stemma.backend.simulate.trace import Gen, Ids, Output, Select, Text, TraceBranch, TraceProgram, Wait, check
from stemma.backend.simulate.workloads import KINDS, MIXTURE, workload

OPTIONS = ReplicaOptions(cost=PRESETS["h200-8b"], slots=100_000, context=8192)
POLICIES = ("program", "lpm", "fcfs")


def run(programs, options: ReplicaOptions = OPTIONS, **rest) -> Result:
    simulation = Simulation(options, **rest)
    result = simulation.run(programs)
    simulation.check()
    return result


def one(nodes, name: str = "p", arrival: float = 0.0, **rest) -> TraceProgram:
    return check(TraceProgram(name, arrival, [TraceBranch("r", nodes)], **rest))


@pytest.mark.parametrize("kind", KINDS)
def test_every_program_of_every_kind_comes_to_its_end(kind: str):
    given = [check(p) for p in workload({kind: 1.0}, 12, 20.0, seed=3)]
    result = run(given)
    assert sorted(p.id for p in result.programs) == sorted(p.id for p in given)
    assert not any(p.error for p in result.programs)
    nodes = [n for p in given for b in p.branches for n in b.nodes]
    assert sum(p.generated for p in result.programs) == sum(n.n for n in nodes if isinstance(n, Gen))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_crowded_pool_loses_nothing(policy: str):
    """Few slots and rows: eviction, waiting and retraction, and still every output has its length."""
    options = replace(OPTIONS, slots=6_000, rows=24, policy=policy, options={"conservativeness": 0.0})
    given = list(workload({"plain": 3.0, "form": 1.0, "judge": 1.0}, 30, math.inf, seed=1))
    given += [one([Text(20), Gen(400 + k, 800)], f"long {k}", 0.1) for k in range(20)]
    result = run(given, options)
    expected = {p.id: sum(n.n for b in p.branches for n in b.nodes if isinstance(n, Gen)) for p in given}
    assert {p.id: p.generated for p in result.programs} == expected
    assert result.retractions > 0


def test_equal_arguments_give_equal_results():
    a, b = (run(workload(MIXTURE, 40, 15.0, seed=5), replicas=2) for _ in range(2))
    assert [asdict(p) for p in a.programs] == [asdict(p) for p in b.programs]
    c = run(workload(MIXTURE, 40, 15.0, seed=6), replicas=2)
    assert [p.latency for p in a.programs] != [p.latency for p in c.programs]


@pytest.mark.parametrize(
    ("policy", "slots", "rows"),
    [("program", 100_000, 256), ("lpm", 30_000, 20), ("fcfs", 14_000, 64), ("program", 14_000, 64)],
)
def test_coasting_is_stepping(policy: str, slots: int, rows: int):
    """To the last bit: which steps, when, who is evicted and retracted."""
    options = replace(OPTIONS, slots=slots, rows=rows, policy=policy, options={"conservativeness": 0.1})
    runs = []
    for coast in (True, False):
        simulation = Simulation(replace(options, coast=coast), replicas=2, network=0.002)
        result = simulation.run(workload(MIXTURE, 30, 25.0, seed=8, burst=2.0))
        simulation.check()
        tables = [
            (r.scheduler.slots.free_slots().tolist(), sorted(r.scheduler.cache.all_slots().tolist()), r.runner.last)
            for r in simulation.replicas
        ]
        runs.append(([asdict(p) for p in result.programs], result.steps, result.retractions, tables, result))
    coasted, stepped = runs
    assert coasted[:4] == stepped[:4]
    assert coasted[4].coasted > 0 and stepped[4].coasted == 0
    for name in ("busy", "rows", "slots", "waiting"):
        assert getattr(coasted[4], name) == pytest.approx(getattr(stepped[4], name), rel=1e-9)


def test_the_time_of_one_request_is_what_the_cost_model_says():
    cost = CostModel("c", ((1.0, 0.01), (100.0, 0.1)), per_context=1e-5, per_row=1e-3)
    result = run([one([Text(50), Gen(4)])], replace(OPTIONS, cost=cost))
    table_50 = 0.01 + 0.09 * 49 / 99
    prefill = table_50 + 50e-5 + 1e-3
    decodes = sum(0.01 + (50 + k) * 1e-5 + 1e-3 for k in (1, 2, 3))
    assert result.programs[0].ttft == pytest.approx(prefill)
    assert result.programs[0].latency == pytest.approx(prefill + decodes)
    assert result.busy == pytest.approx(1.0) and result.steps == 4


def test_one_row_and_constant_times_are_the_queue_of_the_formula():
    """One row, one token a request: an M/D/1 queue, whose mean wait is rho / (2 (1 - rho)) services."""
    service, rho = 0.01, 0.5
    cost = CostModel("c", ((1.0, service),))
    rng, at, given = random.Random(0), 0.0, []
    for k in range(2500):
        at += rng.expovariate(rho / service)
        given.append(one([Text(2), Gen(1)], f"p{k}", at))
    result = run(given, replace(OPTIONS, cost=cost, rows=1, slots=1000, policy="fcfs"))
    waits = {p.id: p.latency - service for p in result.programs}
    free = 0.0  # Lindley: the server is free when the one before is done
    for program in given:
        assert waits[program.id] == pytest.approx(max(free - program.arrival, 0.0), abs=1e-9)
        free = max(free, program.arrival) + service
    assert np.mean(list(waits.values())) / service == pytest.approx(rho / (2 * (1 - rho)), rel=0.1)
    assert result.busy == pytest.approx(rho, rel=0.05)


def test_a_join_waits_for_its_branches_and_holds_their_tokens():
    children = [TraceBranch(f"c{k}", [Text(3), Gen(5 + k)], "r", 1) for k in range(3)]
    joined = [node for k in range(3) for node in (Text(2), Output(f"c{k}", 1))]
    program = check(TraceProgram("p", 0.0, [TraceBranch("r", [Text(40), *joined, Gen(2)]), *children]))
    result = run([program], network=0.25)
    found = result.programs[0]
    assert found.prompt == 3 * 43 + 40 + 3 * 2 + (5 + 6 + 7)
    assert found.latency > 4 * 0.25  # two round trips
    assert found.cached == 2 * 40 + 40  # two siblings and the join


def test_an_output_that_ends_early_is_joined_without_its_end_token():
    child = TraceBranch("c", [Text(3), Gen(5, 50)], "r", 1)
    program = check(TraceProgram("p", 0.0, [TraceBranch("r", [Text(40), Output("c", 1), Gen(2)]), child]))
    assert run([program]).programs[0].prompt == 43 + 40 + 4


def test_thinking_is_no_latency():
    turns = [Text(20), Gen(3), Wait(100.0), Text(4), Gen(3)]
    found = run([one(turns)]).programs[0]
    assert found.elapsed > 100 and found.latency < 1
    assert found.prompt == 20 + (23 + 4) and found.cached >= 22


def test_a_repeated_output_is_a_cached_prefix():
    first = one([Text(30, "s"), Gen(10, key="said")], "a")
    again = one([Text(30, "s"), Text(10, "said"), Text(5), Gen(1)], "b", 5.0)
    found = {p.id: p for p in run([first, again]).programs}
    assert found["b"].cached == 39  # the last token of an output is never run through the model


def test_recorded_ids_are_generated_and_repeated():
    first = one([Ids([5, 6, 7]), Gen(4, ids=[9, 8, 7, 6])], "a")
    again = one([Ids([5, 6, 7, 9, 8, 7, 6, 1]), Gen(1)], "b", 5.0)
    assert {p.id: p.cached for p in run([first, again]).programs}["b"] == 6


def test_choices_are_scored():
    found = run([one([Text(20), Gen(2), Select([[1, 2], [1, 3, 4]]), Gen(2)])]).programs[0]
    assert not found.error and found.generated in (6, 7)  # the chosen tokens count


def test_a_program_too_long_for_the_context_fails_alone():
    result = run([one([Text(900), Gen(200)], "long"), one([Text(9), Gen(2)], "short")], replace(OPTIONS, context=1000))
    assert {p.id: bool(p.error) for p in result.programs} == {"long": True, "short": False}
    said = summary(result)
    assert said["failed"] == 1 and "context length" in said["errors"][0]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_cache_hits_more_than_one_without_bounds(policy: str):
    for slots in (12_000, 40_000):
        options = replace(OPTIONS, slots=slots, rows=48, policy=policy)
        result = run(workload(MIXTURE, 60, 30.0, seed=2, apps=6), options, oracle=True)
        assert result.oracle is not None
        assert 0 < hit_rate(result.programs) <= result.oracle


def test_a_pool_of_twice_the_working_set_hits_as_much_as_one_without_bounds():
    mixture = {"judge": 1.0, "form": 1.0, "tree_of_thought": 1.0}
    free = Simulation(OPTIONS)
    free.run(workload(mixture, 60, math.inf, seed=4, apps=4))
    used = free.replicas[0].scheduler.cache.size
    for policy in POLICIES:
        options = replace(OPTIONS, slots=2 * used, policy=policy)
        result = run(workload(mixture, 60, 10.0, seed=4, apps=4), options, oracle=True)
        assert result.oracle is not None and hit_rate(result.programs) >= 0.98 * result.oracle


def test_replicas_share_the_load_and_keep_their_programs():
    given = list(workload({"judge": 1.0}, 60, 60.0, seed=1, apps=8))
    results = {r: run(given, replicas=4, routing=RoutingRule(r)) for r in ("round_robin", "least_loaded", "prefix")}
    for result in results.values():
        counts = np.bincount([p.replica for p in result.programs], minlength=4)
        assert counts.min() > 0
    hits = {r: hit_rate(result.programs) for r, result in results.items()}
    assert hits["prefix"] > hits["round_robin"] + 0.01
    even = np.bincount([p.replica for p in results["round_robin"].programs])
    assert even.max() - even.min() <= 1


def test_capacity_is_the_load_at_which_queues_begin_to_grow():
    options = replace(OPTIONS, rows=16, policy="fcfs")
    mixture = {"plain": 1.0}
    rate = capacity(workload(mixture, 300, math.inf, seed=1), options)
    waiting = [run(workload(mixture, 300, rate * load, seed=1), options).waiting for load in (0.6, 1.5)]
    assert waiting[0] < 3 < 20 < waiting[1]


def test_alone_a_program_is_not_slowed_down():
    given = list(workload(MIXTURE, 10, 0.01, seed=9))
    latencies = alone(given, OPTIONS)
    result = with_slowdown(run(given), latencies)
    assert all(0 < p.slowdown <= 1.0 + 1e-9 for p in result.programs)  # below 1: somebody else's prefix was there
    crowd = with_slowdown(run(list(workload(MIXTURE, 10, math.inf, seed=9)), replace(OPTIONS, rows=4)), latencies)
    assert np.mean([p.slowdown for p in crowd.programs]) > 1.2


def test_figures_can_be_shown():
    result = run(workload(MIXTURE, 20, 10.0), oracle=True)
    said = summary(result)
    assert said["programs"] == 20 and 0 < said["utilisation"]["busy"] <= 1
    assert said["tokens"]["cached"] / said["tokens"]["prompt"] == said["hit_rate"]
    assert "program" in table([("0.5", "program", "-", said)])
    assert jain([1, 1, 1]) == 1 and jain([1, 0, 0, 0]) == pytest.approx(0.25)
