"""What a tree of thought costs: its prompts against their distinct prefixes, its steps against its longest path."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import stemma as sgl

TOKENS = 12
PROBLEM = "A farmer has hens and goats, 30 heads and 74 legs in all. How many of each? Think step by step, and check. "


@pytest.fixture(scope="module")
def engine():
    with sgl.Engine() as made:
        yield made


def say(s: Any, what: str, name: str) -> None:
    s += what + sgl.gen(name, TOKENS, temperature=0, ignore_eos=True)


@sgl.function
def tree(s):
    """Three plans, three steps for each, joined inside the loop, and a verdict on each plan."""
    s += PROBLEM
    plans = s.fork(3)
    for i, plan in enumerate(plans):
        say(plan, f"Plan {i}:", "plan")
        steps = plan.fork(3)
        for j, step in enumerate(steps):
            say(step, f" Step {j}:", "step")
        steps.join()
        say(plan, " Verdict:", "verdict")
    plans.join()


@sgl.function
def path(s):
    """The longest path of that tree, alone."""
    s += PROBLEM
    for what, name in (("Plan 0:", "plan"), (" Step 0:", "step")):
        say(s, what, name)


def test_a_tree_of_thought_computes_its_distinct_prefixes_once(engine):
    assert engine.flush_cache()
    plan = tree.run(backend=engine).explain()
    assert plan.exact and plan.nodes == 15
    assert plan.distinct_tokens <= plan.computed_prompt <= 1.05 * plan.distinct_tokens


def test_a_tree_joined_in_a_loop_takes_the_steps_of_its_longest_path(engine, monkeypatch):
    counted = [0]
    run = engine.runner.run

    def counting(*args: Any, **kwargs: Any) -> Any:
        counted[0] += 1
        return run(*args, **kwargs)

    monkeypatch.setattr(engine.runner, "run", counting)

    def steps(program: Any) -> int:
        engine.flush_cache()
        counted[0] = 0
        program.run(backend=engine, trace=False).sync()
        return counted[0]

    assert steps(path) >= 2 * TOKENS and steps(tree) <= 1.2 * steps(path)


def test_five_hundred_async_programs_need_no_more_threads_than_one():
    @sgl.function
    async def program(s, i):
        s += sgl.user(f"item {i}") + sgl.assistant(sgl.gen("x"))
        s += sgl.user("And then? " + await s["x"]) + sgl.assistant(sgl.gen("y"))
        return await s["y"]

    async def main() -> tuple[list[Any], int]:
        endpoint = sgl.ScriptedEndpoint({"x": "a", "y": "b"})
        await program.arun(0, backend=endpoint)
        before = threading.active_count()
        states = await asyncio.gather(*(program.arun(i, backend=endpoint) for i in range(500)))
        return [state.ret_value for state in states], threading.active_count() - before

    values, more = asyncio.run(main())
    assert values == ["b"] * 500 and more <= 16  # the scripted endpoint's own threads
