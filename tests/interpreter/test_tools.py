"""Gens that call tools: run, recorded, told to the model; in threads, coroutines and replays."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

import stemma
from stemma import (
    AsyncProgramState,
    ProgramError,
    ProgramState,
    RequestError,
    ScriptedEndpoint,
    TruncatedError,
    assistant,
    function,
    gen,
    tool_result,
    user,
)
from stemma.interpreter.endpoints.base import Endpoint
from stemma.interpreter.endpoints.local import LocalEndpoint
from stemma.interpreter.graph import ProgramGraph


def add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


def divide(a: float, b: float) -> float:
    return a / b


async def slow(text: str) -> str:
    await asyncio.sleep(0)
    return text.upper()


TOOLS = [add, divide, slow]


def call(tool: str, **arguments: Any) -> str:
    return json.dumps({"name": tool, "arguments": arguments})


@function
def ask(s: ProgramState, **options: Any):
    s += user("Compute.") + assistant(gen("call", tools=TOOLS, **options))
    return s["call"]


def scripted(*replies: str) -> ScriptedEndpoint:
    return ScriptedEndpoint({"call": list(replies), "answer": "done"})


def test_a_call_has_checked_arguments_and_runs():
    state = ask.run(backend=scripted(call("add", a=1, b=2)))
    made = state["call"]
    assert (made.name, made.arguments, made.done) == ("add", {"a": 1, "b": 2}, False)
    assert repr(made) == "ToolCall(add(a=1, b=2))"
    assert made.run() == 3 and made.result == 3 and made.done and made.text() == "3"
    assert state["call"] is made and state.raw("call") == call("add", a=1, b=2)


def test_the_result_is_in_the_graph_the_meta_and_the_json():
    state = ask.run(backend=scripted(call("add", a=1)))
    state["call"].run()
    (entry,) = state.get_meta_info("call")["tool_calls"]
    assert {**entry, "seconds": 0, "where": ""} == {
        "name": "add", "arguments": {"a": 1}, "result": "1", "value": 1, "seconds": 0, "where": "",
    }  # fmt: skip
    assert "test_tools.py" in entry["where"] and entry["seconds"] >= 0
    again = ProgramGraph.from_dict(json.loads(json.dumps(state.graph().to_dict())))
    assert again.root.nodes[4].meta["tool_calls"] == [entry]
    state["call"].run()
    assert len(state.get_meta_info("call")["tool_calls"]) == 2  # it ran twice


def test_a_conversation_goes_on_with_the_result():
    @function
    def talk(s: ProgramState, role: str | None):
        s += user("Compute.") + assistant(gen("call", tools=TOOLS))
        made = s["call"]
        made.run()
        s += tool_result(made, role) if role else user(tool_result(made, None))
        s += assistant(gen("answer"))

    state = talk.run("tool", backend=scripted(call("add", a=2, b=2)))
    assert state.messages()[2:] == [{"role": "tool", "content": "4"}, {"role": "assistant", "content": "done"}]
    for role in ("user", None):
        state = talk.run(role, backend=scripted(call("add", a=2, b=2)))
        assert state.messages()[2] == {"role": "user", "content": "Result of add: 4"}


def test_what_a_tool_raises_goes_through_and_is_recorded():
    made = ask.run(backend=scripted(call("divide", a=1, b=0)))["call"]
    with pytest.raises(ZeroDivisionError) as caught:
        made.run()
    assert "raised by the tool 'divide', called by gen 'call' at" in caught.value.__notes__[0]
    assert isinstance(made.error, ZeroDivisionError) and made.done

    state = ask.run(backend=scripted(call("divide", a=1, b=0)))
    made = state["call"]
    assert made.run(on_error="return") is None
    assert made.text().startswith("Error: ZeroDivisionError: ")
    assert state.get_meta_info("call")["tool_calls"][0]["error"].startswith("ZeroDivisionError: ")
    with pytest.raises(RequestError, match="on_error must be raise or return, got 'skip'"):
        made.run(on_error="skip")


def test_an_error_of_a_tool_inside_the_program_is_the_programs():
    @function
    def fails(s: ProgramState):
        s += gen("call", tools=TOOLS)
        s["call"].run()

    with pytest.raises(ZeroDivisionError):
        fails.run(backend=scripted(call("divide", a=1, b=0)))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (call("sub", a=1), "there is no tool 'sub'"),
        (call("add", a="1"), "arguments.a must be an integer"),
        ("add(1)", "it is not JSON"),
    ],
)
def test_an_endpoint_that_keeps_to_no_constraint_is_an_error_at_the_gen(reply: str, reason: str):
    with pytest.raises(ProgramError, match=r"gen 'call' at .*test_tools.py") as caught:
        ask.run(backend=scripted(reply))
    assert reason in str(caught.value)


def test_auto_gives_a_call_or_text():
    assert ask.run(tool_choice="auto", backend=scripted("Just words.")).ret_value == "Just words."
    assert ask.run(tool_choice="auto", backend=scripted(call("add", a=1))).ret_value.name == "add"


def test_parallel_calls_run_one_by_one_and_are_told_together():
    @function
    def talk(s: ProgramState):
        s += user("Compute.") + assistant(gen("calls", tools=TOOLS, parallel_tool_calls=True))
        calls = s["calls"]
        results = [one.run() for one in calls]
        s += tool_result(calls)
        return results

    state = talk.run(backend=ScriptedEndpoint([f"[{call('add', a=1)}, {call('slow', text='x')}]"]))
    assert state.ret_value == [1, "X"]
    assert [m["content"] for m in state.messages() if m["role"] == "tool"] == ["1", "X"]
    assert [e["name"] for e in state.get_meta_info("calls")["tool_calls"]] == ["add", "slow"]


def test_tool_result_wants_calls_that_were_run():
    made = ask.run(backend=scripted(call("add", a=1)))["call"]
    with pytest.raises(RequestError, match=r"ToolCall\(add\(a=1\)\) was not run"):
        tool_result(made)
    with pytest.raises(RequestError, match=r"tool_result takes calls .* got 3"):
        tool_result(3)


def test_async_tools_in_async_programs():
    @function
    async def talk(s: AsyncProgramState):
        s += gen("call", tools=TOOLS)
        made = await s["call"]
        result = await made.arun()
        s += tool_result(made)
        return result, await s["call"] is made

    async def main():
        state = await talk.arun(backend=scripted(call("slow", text="a")))
        other = await talk.arun(backend=scripted(call("add", a=5)))  # one that is not async, in a thread
        return state.ret_value, other.ret_value

    assert asyncio.run(main()) == (("A", True), (5, True))


def test_an_async_tool_runs_in_a_sync_program_and_never_blocks_its_own_loop():
    assert ask.run(backend=scripted(call("slow", text="b")))["call"].run() == "B"

    @function
    async def wrong(s: AsyncProgramState):
        s += gen("call", tools=TOOLS)
        (await s["call"]).run()

    with pytest.raises(RequestError, match=r"tool 'slow' is async.*await call.arun\(\)"):
        wrong.run(backend=scripted(call("slow", text="b")))


def test_a_cancelled_tool_is_recorded():
    started = asyncio.Event()

    async def forever(text: str) -> str:
        started.set()
        await asyncio.sleep(60)
        return text

    async def main() -> Any:
        @function
        def plain(s: ProgramState):
            s += gen("call", tools=[forever])

        state = await plain.arun(backend=scripted(call("forever", text="b")))
        task = asyncio.create_task(state["call"].arun())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return state.get_meta_info("call")["tool_calls"]

    (entry,) = asyncio.run(main())
    assert entry["error"].startswith("CancelledError")


def test_forks_call_and_joins_gather_calls():
    @function
    def both(s: ProgramState):
        forks = s.fork(2)
        forks += gen("call", tools=TOOLS)
        for fork in forks:
            fork["call"].run()
        forks.join()
        return [made.result for made in s["call"]]

    assert both.run(backend=scripted(call("add", a=1), call("add", a=2))).ret_value == [1, 2]


class Replaying(Endpoint):
    """Answers as recorded, metas included."""

    capabilities = frozenset({"replay"})
    quiet_seconds = None

    def __init__(self, graph: ProgramGraph) -> None:
        self.nodes = graph.root.nodes

    def submit(self, delta: Any, on_event: Any) -> None:
        for entry in delta["branches"]:
            for i, node in enumerate(entry["nodes"], entry["first"]):
                if node["kind"] != "text":
                    kept = self.nodes[i]
                    kind = "done" if node["kind"] == "gen" else "text"
                    event = {"event": kind, "branch": "r", "node": i, "text": kept.text, "meta": dict(kept.meta)}
                    on_event(event)

    def cancel(self, program: str, branches: Any = None) -> None: ...


def test_a_replay_takes_results_from_the_record_where_json_holds_them():
    ran: list[str] = []

    def plain(word: str) -> dict[str, Any]:
        ran.append(word)
        return {"times": len(ran)}

    def odd(word: str) -> tuple[int, ...]:
        ran.append(word)
        return (len(ran),)

    @function
    def talk(s: ProgramState):
        results = []
        for tool in (plain, odd):
            s += user("Go.") + assistant(gen("call", tools=[tool]))
            made = s["call"]
            results.append(made.run())
            s += tool_result(made)
        return results

    first = talk.run(backend=ScriptedEndpoint([call("plain", word="a"), call("odd", word="b")]))
    assert first.ret_value == [{"times": 1}, (2,)] and ran == ["a", "b"]
    record = ProgramGraph.from_dict(json.loads(json.dumps(first.graph().to_dict())))
    ran.clear()
    again = talk.run(backend=Replaying(record), stream=True)
    assert again.ret_value == [{"times": 1}, (1,)] and ran == ["b"]  # a tuple is no JSON: it ran again
    metas = [node.meta["tool_calls"] for node in again.graph().root.nodes if node.kind == "gen"]
    assert [len(entries) for entries in metas] == [1, 1]
    ends = [event for event in again.events() if isinstance(event, stemma.ToolFinished)]
    assert [(e.tool, e.result) for e in ends] == [("plain", '{"times": 1}'), ("odd", "[1]")]


def test_calls_may_run_in_several_threads():
    state = ask.run(backend=scripted(call("add", a=1)))
    made = state["call"]
    threads = [threading.Thread(target=made.run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(state.get_meta_info("call")["tool_calls"]) == 8


def test_the_engine_keeps_to_the_tools(engine: Any):
    @function
    def talk(s: ProgramState, choice: str, parallel: bool = False):
        s += user("What is 3 + 4?")
        s += assistant(gen("call", 96, tools=[add, divide], tool_choice=choice, parallel_tool_calls=parallel))

    for seed in range(4):
        made = talk.run("required", backend=engine, temperature=1.0, seed=seed)["call"]
        assert made.name in ("add", "divide") and all(type(v) in (int, float) for v in made.arguments.values())
    assert talk.run("divide", backend=engine, temperature=0)["call"].name == "divide"
    either = talk.run("auto", backend=engine, temperature=0)["call"]
    assert isinstance(either, (str, stemma.ToolCall)) and not (isinstance(either, str) and either.startswith("{"))


def test_the_engine_behind_http_keeps_to_them_too(engine: Any, serve: Any):
    endpoint = stemma.RuntimeEndpoint(serve(LocalEndpoint(engine)).url)
    state = ask.run(backend=endpoint, temperature=0, max_new_tokens=96)
    state.sync(20)
    assert isinstance(state["call"], stemma.ToolCall) and state["call"].name in ("add", "divide", "slow")
    endpoint.close()


def test_arguments_may_be_models_and_local_classes(engine: Any):
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel):
        size: Literal["S", "M"]
        count: int = pydantic.Field(ge=1, le=9)

    @dataclass
    class Person:
        name: Annotated[str, stemma.Regex("[A-Z][a-z]{1,8}")]

    def sell(order: Order, to: Person, note: str | None = None) -> str:
        return f"{order.count} {order.size} to {to.name}"

    @function
    def talk(s: ProgramState):
        s += user("Sell.") + gen("call", 96, tools=[sell], tool_choice=sell)

    made = talk.run(backend=engine, temperature=1.0, seed=3)["call"]
    assert isinstance(made.arguments["order"], Order) and isinstance(made.arguments["to"], Person)
    assert (
        made.run() == f"{made.arguments['order'].count} {made.arguments['order'].size} to {made.arguments['to'].name}"
    )


def test_the_engine_makes_lists_of_calls_and_says_when_they_are_cut_off(engine: Any):
    @function
    def talk(s: ProgramState, tokens: int):
        s += user("What is 3 + 4?") + assistant(gen("calls", tokens, tools=[nothing], parallel_tool_calls=True))

    def nothing() -> None: ...

    calls = [talk.run(200, backend=engine, temperature=0, seed=i) for i in range(1)]
    for state in calls:
        try:
            made = state["calls"]
            assert made and all(one.name == "nothing" and one.run() is None for one in made)
        except TruncatedError as error:
            assert error.limit == 200  # the little model may go on for ever
    with pytest.raises(TruncatedError):
        talk.run(3, backend=engine, temperature=0)["calls"]


@pytest.fixture(scope="module")
def engine():
    with stemma.Engine(num_threads=1) as made:
        yield made
        made.check()
