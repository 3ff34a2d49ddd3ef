"""Async programs: what is read is awaited; many run on one loop; cancelling a task cancels the program."""

import asyncio
import threading
import time
from typing import Any, cast

import pytest

import stemma
from stemma import AsyncProgramState, Engine, ProgramState, ScriptedEndpoint, function, gen, user
from stemma.lang.errors import CancelledError, ProgramError, RequestError


@function
async def ask(s: AsyncProgramState, question: str):
    s += f"Q: {question}\nA:" + gen("answer", stop="\n")
    return len(await s["answer"])


def test_arun_gives_a_state_that_reads_without_waiting():
    async def main() -> None:
        state = await ask.arun("why", backend=ScriptedEndpoint({"answer": " because"}, latency=0.01))
        assert state["answer"] == " because" and state.ret_value == 8
        assert state.text() == "Q: why\nA: because"

    asyncio.run(main())


def test_run_drives_an_async_program_even_inside_a_running_loop():
    assert ask.run("why", backend=ScriptedEndpoint({"answer": "x"})).ret_value == 1

    async def notebook_cell() -> str:
        return ask.run("why", backend=ScriptedEndpoint({"answer": "y"}))["answer"]

    assert asyncio.run(notebook_cell()) == "y"


def test_arun_runs_a_sync_body_in_a_thread():
    @function
    def program(s: ProgramState):
        s += gen("a")
        return s["a"], threading.current_thread().name

    state = asyncio.run(program.arun(backend=ScriptedEndpoint({"a": "1"})))
    assert state.ret_value[0] == "1" and state.ret_value[1].startswith("stemma-body")


def test_every_reader_can_be_awaited():
    @function
    async def program(s: AsyncProgramState):
        s += user("hi " + gen("x", type=int))
        assert await s["x"] == 7 and await s.get_var("x", timeout=5) == 7 and await s.raw("x") == "7"
        assert (await s.get_meta_info("x"))["finish_reason"]["type"] == "stop"
        assert "hi 7" in await s.text() and (await s.messages())[0]["content"] == "hi 7"
        await s.sync()
        assert await s.error() is None
        assert (await s.usage())["completion_tokens"] == 1
        with s.var_scope("scope"):
            s += user(gen("y"))
        assert "z" in await s["scope"]
        return [piece async for piece in s.text_iter("y")]

    endpoint = ScriptedEndpoint({"x": "7", "y": "z"})
    assert program.run(backend=endpoint).ret_value == ["z"]


def test_a_value_that_was_not_awaited_says_so():
    @function
    async def program(s: AsyncProgramState):
        s += gen("x")
        s += f"I said {s['x']}"

    with pytest.raises(
        ProgramError, match=r"'x' is read at .*test_async.py:\d+ but not awaited: write `await s\['x'\]`"
    ):
        program.run(backend=ScriptedEndpoint())

    @function
    async def compares(s: AsyncProgramState):
        s += gen("x")
        return "yes" if s["x"] == "yes" else "no"

    with pytest.raises(ProgramError, match="not awaited"):
        compares.run(backend=ScriptedEndpoint())


def test_a_pending_value_can_be_quoted_in_another_branch_without_waiting():
    @function
    async def program(s: AsyncProgramState):
        forks = s.fork(2)
        forks += gen("tip")
        s += "Tips: " + forks[0]["tip"] + ", " + forks[1]["tip"] + gen("best")
        return await s["best"]

    endpoint = ScriptedEndpoint(lambda prompt, node: "eat" if node["name"] == "tip" else prompt.upper(), latency=0.01)
    assert program.run(backend=endpoint).ret_value == "TIPS: EAT, EAT"


def test_an_error_in_an_async_body_reaches_every_way_of_running_it():
    @function
    async def program(s: AsyncProgramState):
        s += gen("a")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        program.run(backend=ScriptedEndpoint())
    with pytest.raises(LookupError, match="mine"):
        asyncio.run(program.arun(backend=ScriptedEndpoint()))
    state = program.run(backend=ScriptedEndpoint(), stream=True)
    with pytest.raises(ProgramError, match="LookupError: mine"):
        list(state.text_iter())

    async def streams() -> None:
        state = await program.arun(backend=ScriptedEndpoint(), stream=True)
        with pytest.raises(ProgramError, match="LookupError: mine"):
            async for _ in state.text_async_iter():
                pass

    asyncio.run(streams())


def test_streaming_goes_on_while_the_body_runs():
    @function
    async def program(s: AsyncProgramState):
        s += "one " + gen("a")
        await asyncio.sleep(0.02)
        s += " end"

    async def main() -> tuple[list[str], list[Any]]:
        endpoint = ScriptedEndpoint({"a": "two three"})
        state = await program.arun(backend=endpoint, stream=True)
        pieces = [piece async for piece in state.text_async_iter()]
        state = await program.arun(backend=endpoint, stream=True)
        return pieces, [pair async for pair in state.text_async_iter("a", return_meta_data=True)]

    pieces, pairs = asyncio.run(main())
    assert pieces == ["one ", "two", " three", " end"]
    assert "".join(text for text, _ in pairs) == "two three" and pairs[-1][1]["completion_tokens"] == 2


def test_meta_data_without_a_name_is_refused():
    async def main() -> None:
        state = await ask.arun("x", backend=ScriptedEndpoint())
        with pytest.raises(RequestError, match="return_meta_data=True needs the name"):
            async for _ in state.text_async_iter(return_meta_data=True):
                pass

    asyncio.run(main())


def test_cancelling_the_task_cancels_the_program():
    endpoint = ScriptedEndpoint(latency=30.0)

    async def main() -> None:
        task = asyncio.create_task(ask.arun("why", backend=endpoint))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [branches for _, branches in endpoint.cancels] == [None]
    assert endpoint.open_branches == set()


def test_async_programs_call_each_other_inline():
    @function
    async def inner(s: AsyncProgramState, word: str):
        s += word + gen("x")
        return await s["x"]

    @function
    def plain(s: ProgramState):
        s += "Hello. "

    @function
    async def outer(s: AsyncProgramState):
        plain(s)
        first = await cast(Any, inner)(s, "one ", temperature=0.5)
        state = await inner.arun("alone ")
        return first, state["x"], await s.text()

    endpoint = ScriptedEndpoint(lambda prompt, node: prompt[-5:].strip())
    assert outer.run(backend=endpoint).ret_value == ("one", "lone", "Hello. one one")
    temperatures = [
        n["params"].get("temperature")
        for d in endpoint.deltas
        for b in d["branches"]
        for n in b["nodes"]
        if n["kind"] == "gen"
    ]
    assert temperatures == [0.5, None]

    @function
    def sync_outer(s: ProgramState):
        inner(s, "x")

    with pytest.raises(RequestError, match="is async: it can go on inline only in an async program"):
        sync_outer.run(backend=endpoint)

    @function
    async def blocks(s: AsyncProgramState):
        inner.run("x")

    with pytest.raises(RequestError, match=r"await arun\(\)"):
        blocks.run(backend=endpoint)

    @function
    async def hurried(s: AsyncProgramState):
        await cast(Any, inner)(s, "x", timeout=3)

    with pytest.raises(RequestError, match=r"timeout=3 is of a whole run"):
        hurried.run(backend=endpoint)


def test_a_thousand_programs_wait_on_one_loop_without_threads():
    endpoint = ScriptedEndpoint(latency=0.2)

    async def main() -> int:
        programs = asyncio.gather(*(ask.arun(str(i), backend=endpoint) for i in range(1000)))
        await asyncio.sleep(0.15)
        threads = threading.active_count()
        await programs
        return threads

    assert asyncio.run(main()) <= 64


def test_the_first_to_arrive_wins_and_the_others_are_cancelled():
    latency = {"slow": 30.0, "quick": 0.05, "bad": 0.01}

    def reply(prompt: str, node: dict[str, Any]) -> Any:
        return RuntimeError("no") if prompt == "bad" else prompt + "!"

    @function
    async def program(s: AsyncProgramState):
        forks = s.fork(3)
        forks += ["slow", "quick", "bad"]
        forks += gen("x")
        winner = await forks.race(timeout=5)
        assert await winner["x"] == "quick!"
        error = await forks[0].error(timeout=1)
        assert error is not None and isinstance(error.__cause__, CancelledError)
        return winner

    endpoint = ScriptedEndpoint(reply, latency=lambda prompt, node: latency[prompt])
    start = time.monotonic()
    program.run(backend=endpoint)
    assert time.monotonic() - start < 5
    assert [branches for _, branches in endpoint.cancels] == [["r.0"], ["r.2"]]


def test_first_takes_those_that_a_coroutine_says_yes_to():
    @function
    async def program(s: AsyncProgramState):
        forks = s.fork(4)
        forks += lambda i: str(i)
        forks += gen("x")

        async def even(fork: AsyncProgramState) -> bool:
            return int(await fork["x"]) % 2 == 0

        winners = await forks.first(2, when=even)
        return [await w["x"] for w in winners]

    endpoint = ScriptedEndpoint(lambda prompt, node: prompt, latency=lambda prompt, node: 0.03 * (1 + int(prompt)))
    assert program.run(backend=endpoint).ret_value == ["0", "2"]


def test_a_join_in_a_loop_costs_the_same_as_one_staged_by_hand():
    """Three times a fork of three, joined in the loop: no branch waits for another loop's."""
    seconds = 0.4

    @function
    def in_a_loop(s: ProgramState):
        for word in ("a", "b", "c"):
            forks = s.fork(3)
            for fork in forks:
                fork += word + gen(word)
                inner = fork.fork(3)
                inner += gen("deep")
                inner.join()
            forks.join()
        return [s["a"], s["b"], s["c"]]

    start = time.monotonic()
    in_a_loop.run(backend=ScriptedEndpoint(latency=seconds)).sync()
    spent = time.monotonic() - start
    assert spent < 2 * 2 * seconds, spent  # the critical path is two replies; one after the other it would be six


@pytest.fixture(scope="module")
def engine():
    with Engine() as engine:
        yield engine


def test_an_async_program_on_the_engine_says_what_the_sync_one_says(engine):
    @function
    def sync_twin(s: ProgramState, question: str):
        s += f"Q: {question}\nA:" + gen("answer", stop="\n")
        return len(s["answer"])

    def run_all(program: Any) -> list[Any]:
        states = program.run_batch([(q,) for q in ("2+2?", "Capital of France?")], backend=engine, temperature=0)
        return [(s["answer"], s.ret_value) for s in states]

    assert run_all(ask) == run_all(sync_twin)


def test_losers_of_a_race_leave_the_engine(engine):
    @function
    async def program(s: AsyncProgramState):
        forks = s.fork(6)
        forks += lambda i: gen("x", max_tokens=2 if i == 3 else 400, ignore_eos=True)
        winner = await forks.race()
        running = -1
        for _ in range(200):
            running = engine.load()["running"]
            if running == 0:
                break
            await asyncio.sleep(0.01)
        return forks[3] is winner, running

    assert program.run(backend=engine).ret_value == (True, 0)


def test_names_are_exported():
    assert stemma.AsyncProgramState is AsyncProgramState
