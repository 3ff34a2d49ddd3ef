"""Plans, usage and placeholders."""

import json
import re
from typing import Any, Literal

import pytest

import stemma
from stemma import ProgramGraph, ProgramState, RequestError, ScriptedEndpoint, assistant, function, gen, select, user
from stemma.backend.engine import Engine
from stemma.interpreter.explain import Prompt, common_prefix, distinct_units, prompt_ids
from stemma.interpreter.placeholders import placeholder, shortest_match, smallest_instance

LONG = "The capital of France is Paris. Name: Ada Lovelace, age: 36, city: London. "


@function
def judged(s: ProgramState, text: str):
    s += user(text)
    forks = s.fork(3)
    forks += assistant(gen("view", max_tokens=4))
    for i, fork in enumerate(forks):
        fork += user(f"And number {i}?") + assistant(gen("more", max_tokens=3))
    forks.join()
    s += assistant(select("best", choices=["red", "green"]))


# --- the bound


def brute_force(sequences: list[Prompt]) -> int:
    """Every prefix once; a generated unit was computed when it was generated; one more where nothing is left."""
    seen: set[tuple[int, ...]] = set()
    total = 0
    for s in sorted(sequences, key=lambda s: s.units):
        new = 0
        for n in range(1, len(s.units) + 1):
            prefix = tuple(s.units[:n])
            made = any(b <= n - 1 < e for b, e in s.made)
            new += prefix not in seen and not made
            seen.add(prefix)
        total += max(new, 1)
    return total


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_counts_the_nodes_of_the_trie(seed: int):
    import random

    rng = random.Random(seed)
    sequences = []
    for _ in range(rng.randint(1, 12)):
        units = [rng.randint(0, 1) for _ in range(rng.randint(1, 8))]
        sequences.append(Prompt(units, ()))
    assert distinct_units(sequences) == brute_force(sequences)


def test_what_the_program_generated_is_not_counted_again():
    first, second = Prompt([1, 2], ()), Prompt([1, 2, 7, 7, 3], ((2, 4),))
    assert distinct_units([first, second]) == 2 + 1
    assert distinct_units([first, first]) == 2 + 1  # the second runs its last token again


def test_common_prefixes_of_any_length():
    for a, b, n in (
        ("", "x", 0),
        ("ab", "ab", 2),
        ("abc", "abd", 2),
        ("ab", "abc", 2),
        ("x" * 999 + "a", "x" * 999, 999),
    ):
        assert common_prefix(a, b) == n == common_prefix(list(a), list(b))


def test_prompts_are_put_together_as_the_engine_had_them(engine: Engine):
    state = judged.run(LONG, backend=engine, temperature=0)
    state.sync()
    graph = state.graph()
    prompts = prompt_ids(graph)
    assert len(prompts) == 7
    for branch in graph.branches.values():
        for node in branch.nodes:
            if node.address in prompts:
                assert len(prompts[node.address].units) == node.meta["prompt_tokens"], node.describe()
    before = prompts["r.1:1"].units + (graph.branches["r.1"].nodes[1].ids or [])
    assert prompts["r.1:7"].units[: len(before)] == before or prompts["r.1:7"].units[: len(before) - 1] == before[:-1]
    text = engine.tokenizer.decode(prompts["r.2:1"].units, skip_special=False)
    assert LONG in text and text.endswith("<|im_start|>assistant\n")


def test_a_cold_run_computes_little_more_than_the_distinct_prefixes(engine: Engine):
    assert engine.flush_cache()
    plan = judged.run(LONG * 3, backend=engine, temperature=0).explain()
    assert plan.exact and plan.ran
    assert plan.distinct_tokens <= plan.computed_prompt <= 1.02 * plan.distinct_tokens
    assert plan.prompt_tokens == plan.cached_tokens + plan.computed_prompt
    assert 0.7 < plan.actual_saving <= plan.predicted_saving
    estimate = judged.run(LONG * 3, backend=engine, temperature=0, trace=False).explain()
    assert not estimate.exact and abs(estimate.distinct_tokens - plan.distinct_tokens) < 0.3 * plan.distinct_tokens


def test_three_stages_of_forks_compute_each_prefix_once(engine: Engine):
    """What a tree of prompts computes, cold, within 5 % of the bound counted from its graph."""

    @function
    def stages(s):
        s += user(LONG)
        branches = [s]
        for stage in range(3):
            grown = []
            for branch in branches:
                forks = branch.fork(2)
                for i, fork in enumerate(forks):
                    fork += assistant(gen("x", max_tokens=5)) + user(f"stage {stage}, branch {i}: go on")
                grown += list(forks)
            branches = grown
        for branch in branches:
            branch += assistant(gen("end", max_tokens=3))

    assert engine.flush_cache()
    plan = stages.run(backend=engine, temperature=1.0, seed=5).explain()
    assert plan.exact and plan.nodes == 2 + 4 + 8 + 8
    assert plan.distinct_tokens <= plan.computed_prompt <= 1.05 * plan.distinct_tokens
    assert plan.predicted_saving > 0.7


def test_the_plan_as_text_and_as_data(engine: Engine):
    state = judged.run(LONG, backend=engine, temperature=0)
    plan = state.explain()
    shown = str(plan)
    assert shown.startswith("plan of judged: 7 gens and selects") and shown.count("┬ fork") == 3
    assert "gen 'view'" in shown and "test_explain.py:" in shown and "distinct prefixes" in shown
    told = json.loads(json.dumps(plan.to_dict()))
    assert told["nodes"] == 7 and told["tree"][0]["kind"] == "text" and len(told["tree"]) > 10


def test_forks_at_the_very_beginning_and_within_forks_are_shown_once():
    @function
    def deep(s):
        a = s.fork(2)
        s += "x" + gen("x")
        for fork in a:
            b = fork.fork(1)
            b += "y" + gen("y")
        s.fork(1)

    assert str(deep.trace().explain()).count("┬ fork") == 2 + 2 + 1


# --- tracing


def test_tracing_runs_the_program_with_placeholders_that_fit():
    @function
    def typed(s, n):
        s += "Count " + gen("n", type=int) + gen("w", regex="[a-c]{2}(x|yy)") + gen("l", type=Literal["p", "q"])
        s += select("c", choices=["one", "two"]) + gen("free")
        forks = s.fork(s["n"] + n)
        forks += gen("j", json_schema={"type": "object", "properties": {"k": {"type": "array"}}, "required": ["k"]})
        forks.join()
        assert [json.loads(j) for j in s["j"]] == [{"k": []}] * 2
        assert (s["l"], s["c"], s["w"]) == ("p", "one", "aax") and s["free"] == "<free>"

    graph = typed.trace(2)
    assert isinstance(graph, ProgramGraph) and graph.name.endswith("typed")
    assert graph.statistics()["gen"] == 6 and len(graph.branches) == 3
    plan = graph.explain()
    assert not plan.ran and not plan.exact and plan.computed_prompt == 0 and plan.nodes == 7


def test_tracing_needs_the_arguments_and_takes_answers():
    ask = function(lambda s, q: s.append(q + gen("x")))
    with pytest.raises(TypeError, match="missing a required argument: 'q'"):
        ask.trace()
    assert ask.trace("a", backend=ScriptedEndpoint({"x": "b"})).root.nodes[1].text == "b"


@pytest.mark.parametrize(
    "pattern",
    [r"-?\d+", r"[^\"\\]{3}x?", r"(yes|no)!+", r"\w\s\S\D",
     "[^a-zA-Z0-9 ]", r"(?:a|bc)*d", r"x{2,5}?", ".", "", r"\{\"a\": [0-9]\}"],
)  # fmt: skip
def test_the_shortest_match_matches(pattern: str):
    assert re.fullmatch(pattern, shortest_match(pattern)) is not None


def test_a_regex_without_a_known_match_is_an_error_that_names_it():
    with pytest.raises(RequestError, match=r"no placeholder is known for the regex '\(\?<=a\)b'"):
        shortest_match("(?<=a)b")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3},
        {"type": "integer", "maximum": -2},
        {"type": "number", "exclusiveMinimum": 2, "multipleOf": 4},
        {"type": ["string", "null"], "minLength": 4},
        {"anyOf": [{"type": "object", "required": ["a"]}, {"type": "null"}]},
        {"allOf": [{"type": "object", "properties": {"a": {"const": 5}}}, {"required": ["a"]}]},
        {"enum": ["x", 2]},
        {
            "type": "array",
            "prefixItems": [{"type": "boolean"}],
            "items": {"$ref": "#/$defs/n"},
            "minItems": 3,
            "$defs": {"n": {"properties": {"s": {"type": "string", "pattern": "^[A-Z]{2}$"}}, "required": ["s"]}},
        },
    ],
)
def test_the_smallest_instance_is_one(schema: dict[str, Any]):
    import jsonschema

    jsonschema.validate(smallest_instance(schema), schema)


def test_a_schema_without_end_is_an_error():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    with pytest.raises(RequestError, match="refers to itself without end"):
        placeholder({"kind": "gen", "name": "x", "constraint": {"kind": "json_schema", "value": schema}})


# --- usage


PRICES = {"scripted": {"input": 2.0, "output": 10.0, "cached": 0.5}}


class Counting(ScriptedEndpoint):
    """Tells round numbers."""

    def submit(self, delta, on_event):
        def told(event):
            if event["event"] == "done":
                counts = {"prompt_tokens": 1000, "cached_tokens": 600, "completion_tokens": 100, "retries": 2}
                event["meta"].update(counts, ttft=0.25, e2e_latency=0.5)
            on_event(event)

        super().submit(delta, told)


def test_costs_follow_the_price_table():
    chat = function(lambda s: s.append(gen("a") + gen("b")))
    state = chat.run(backend=Counting())
    each = (400 * 2.0 + 600 * 0.5 + 100 * 10.0) / 1e6
    used = state.usage(prices=PRICES)
    assert used["cost"] == pytest.approx(2 * each) and used["retries"] == 4
    assert "cost" not in state.usage()
    first, _ = state.usage_by_node(prices=PRICES)
    assert (first.cost, first.retries, first.ttft, first.name) == (pytest.approx(each), 2, 0.25, "a")
    assert first.latency is not None and 0 < first.latency < 5 and first.status == "done"
    assert "test_explain.py" in first.where and json.dumps(first.to_dict())
    without_cached = state.usage(prices={"*": {"input": 2.0, "output": 10.0}})
    assert without_cached["cost"] == pytest.approx(2 * (1000 * 2.0 + 100 * 10.0) / 1e6)


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ({"other": {"input": 1, "output": 1}}, "no entry for model 'scripted'"),
        ({"*": {"input": 1}}, r"prices\['\*'\] must be"),
        ({"*": {"input": 1, "output": -1}}, "must be"),
        ({"*": {"input": 1, "output": 1, "speed": 2}}, "must be"),
        ({"*": 3}, "must be"),
    ],
)
def test_a_wrong_price_table_is_an_error_that_says_how(prices: Any, message: str):
    state = function(lambda s: s.append(gen("a"))).run(backend=Counting())
    with pytest.raises(RequestError, match=message):
        state.usage(prices=prices)


def test_totals_of_a_batch():
    chat = function(lambda s, q: s.append(q + gen("x")))
    endpoint = Counting({"x": lambda prompt, node: ValueError("no") if prompt == "bad" else "y"})
    states = chat.run_batch([{"q": "a"}, {"q": "bad"}, {"q": "b"}], backend=endpoint, on_error="return")
    used = stemma.total_usage(states, prices=PRICES)
    assert (used["programs"], used["failed_programs"], used["nodes"], used["prompt_tokens"]) == (3, 1, 2, 2000)
    assert used["cost"] > 0 and used["wall_seconds"] > 0
    assert stemma.total_usage([])["programs"] == 0


def test_a_failed_node_counts_as_failed():
    state = function(lambda s: s.append(gen("x"))).run(backend=ScriptedEndpoint({"x": ValueError("no")}))
    used = state.usage(prices={"*": {"input": 1.0, "output": 1.0}})
    assert used["failed"] == 1 and used["cost"] == 0


def test_times_of_a_node_are_recorded(engine: Engine):
    state = judged.run("hello", backend=engine, temperature=0)
    state.sync()
    for node in state._run.filled(state.graph().branches.values()):
        assert state.graph().started <= node.t_sent <= node.t_done
    streamed = function(lambda s: s.append("a" + gen("x", max_tokens=3))).run(backend=engine, stream=True)
    streamed.sync()
    node = streamed.graph().root.nodes[1]
    assert node.t_sent <= node.t_first <= node.t_done


# --- the graph's JSON


def test_the_graph_goes_through_json_text(engine: Engine):
    graph = judged.run("hello", backend=engine, temperature=0, return_logprob=True)
    graph.sync()
    text = graph.graph().to_json()
    again = ProgramGraph.from_json(text)
    assert again.to_json() == text and again.explain().to_dict() == graph.explain().to_dict()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1}', "x"])
def test_other_text_is_no_graph(text: str):
    with pytest.raises(RequestError, match="no program graph"):
        ProgramGraph.from_json(text)


def test_an_async_program_awaits_the_same_accounts(tmp_path):
    @function
    async def asking(s):
        s += "a" + gen("x")
        forks = s.fork(2)
        forks += "b" + gen("y")
        used, plan, trace = await s.usage(prices=PRICES), await s.explain(), await s.trace()
        return used["cost"], plan.nodes, str(trace), [u.name for u in await s.usage_by_node()], await s.record()

    cost, count, shown, names, record = asking.run(backend=Counting()).ret_value
    assert cost > 0 and count == 3 and shown.count("gen y") == 2 and names == ["x", "y", "y"]
    again = asking.run(backend=stemma.ReplayEndpoint(record))
    assert again["x"] == "x" and again.graph().name.endswith("asking")


def test_a_merged_node_is_not_charged_to_a_budget():
    @function
    def twice(s):
        forks = s.fork(3)
        forks += "a" + gen("x")
        forks.join()

    budget = stemma.Budget(10_000)
    twice.run(backend=Counting(), temperature=0, merge_identical=True, budget=budget).sync()
    assert budget.spent["tokens"] == 1100
    with pytest.raises(RequestError, match="merge_identical=True is of a whole run"):
        function(lambda s: twice(s, merge_identical=True)).run(backend=Counting())


def test_a_batch_with_a_checkpoint_adds_up(tmp_path):
    chat = function(lambda s, q: s.append(q + gen("x")))
    path = tmp_path / "batch.jsonl"
    chat.run_batch([{"q": "a"}, {"q": "b"}], backend=Counting(), checkpoint=path)
    states = chat.run_batch([{"q": "a"}, {"q": "b"}], backend=Counting(), checkpoint=path)
    used = stemma.total_usage(states, prices=PRICES)
    assert (used["programs"], used["prompt_tokens"]) == (2, 2000)
