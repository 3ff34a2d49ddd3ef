"""Many runs of one program."""

import asyncio
import subprocess
import sys
import threading
import time
from typing import Literal

import pytest

from stemma import BatchRecord, ProgramState, ScriptedEndpoint, function, gen
from stemma.interpreter.endpoints.base import Endpoint
from stemma.lang.errors import ProgramError, RequestError


@function
def ask(s: ProgramState, q: str, mark: str = "?"):
    s += q + mark + gen("a")
    if q == "bad":
        raise LookupError("mine")


def echo(prompt, node):
    return f"<{prompt}>"


def texts(states):
    return [state.text() for state in states]


def test_results_come_in_the_order_of_the_items_whether_dicts_or_tuples():
    states = ask.run_batch([{"q": "a"}, ("b",), ("c", "!"), {"q": "d", "mark": ""}], backend=ScriptedEndpoint(echo))
    assert texts(states) == ["a?<a?>", "b?<b?>", "c!<c!>", "d<d>"]


def test_arguments_and_sampling_defaults_may_be_shared_by_all_items():
    endpoint = ScriptedEndpoint(echo)
    states = ask.bind(mark=";").run_batch([{"q": "a"}, ("b", ".")], backend=endpoint, temperature=0)
    assert texts(states) == ["a;<a;>", "b.<b.>"]
    assert all(d["branches"][0]["nodes"][1]["params"] == {"temperature": 0.0} for d in endpoint.deltas)


def test_an_empty_batch_is_an_empty_list_or_iterator():
    assert ask.run_batch([], backend=ScriptedEndpoint()) == []
    assert list(ask.run_batch([], backend=ScriptedEndpoint(), generator_style=True)) == []


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([("a",), {"x": 1}], "item 1 of the batch: ask.*missing a required argument"),
        ([("a", "b", "c")], "item 0 of the batch: ask.*too many positional"),
        ([("a",), "b"], "item 1 of the batch must be a dict or a tuple of arguments, got 'b'"),
    ],
)
def test_a_wrong_item_is_an_error_before_anything_runs(batch, message):
    endpoint = ScriptedEndpoint()
    with pytest.raises(TypeError, match=message):
        ask.run_batch(batch, backend=endpoint)
    assert endpoint.deltas == []


@pytest.mark.parametrize("options", [{"num_threads": 0}, {"num_threads": "many"}, {"on_error": "skip"}])
def test_wrong_options_are_errors(options):
    with pytest.raises(RequestError, match=f"{next(iter(options))} must be"):
        ask.run_batch([("a",)], backend=ScriptedEndpoint(), **options)


def test_streaming_a_batch_is_refused_and_a_bound_backend_is_used():
    with pytest.raises(RequestError, match="run_batch does not stream"):
        ask.run_batch([("a",)], backend=ScriptedEndpoint(), stream=True)
    assert texts(ask.bind(backend=ScriptedEndpoint(echo)).run_batch([("a",)])) == ["a?<a?>"]


def test_all_items_run_and_then_the_first_error_is_raised_with_its_place():
    endpoint = ScriptedEndpoint(echo)
    with pytest.raises(ProgramError, match=r"item 1 of 4 \(and 1 more failed\): LookupError: mine") as caught:
        ask.run_batch([("a",), ("bad",), ("bad",), ("d",)], backend=endpoint, num_threads=1)
    assert isinstance(caught.value.__cause__, LookupError)
    assert len([d for d in endpoint.deltas if d["branches"]]) == 2
    assert endpoint.open_branches == set()


def test_errors_may_stand_in_the_list_instead():
    first, second = ask.run_batch([("bad",), ("b",)], backend=ScriptedEndpoint(echo), on_error="return")
    assert isinstance(first, LookupError) and second["a"] == "<b?>"


def test_no_more_items_run_at_once_than_threads():
    running, most, lock = 0, 0, threading.Lock()

    @function
    def program(s: ProgramState, i: int):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        s += gen("x")
        s.sync()
        with lock:
            running -= 1

    program.run_batch([(i,) for i in range(20)], num_threads=3, backend=ScriptedEndpoint())
    assert most <= 3


def test_items_of_a_batch_run_side_by_side():
    meet = threading.Barrier(4, timeout=5)

    @function
    def program(s: ProgramState, i: int):
        meet.wait()

    assert len(list(program.run_batch([(i,) for i in range(4)], backend=ScriptedEndpoint()))) == 4


def test_the_generator_gives_items_in_order_and_starts_them_as_it_goes():
    endpoint = ScriptedEndpoint(echo)
    states = ask.run_batch([(str(i),) for i in range(50)], num_threads=2, generator_style=True, backend=endpoint)
    assert endpoint.deltas == []
    assert next(iter(states)).text() == "0?<0?>"
    assert len(endpoint.deltas) <= 4
    assert [state["a"] for state in states] == [f"<{i}?>" for i in range(1, 50)]


def test_the_generator_raises_at_the_failed_item():
    states = iter(
        ask.run_batch([("a",), ("bad",), ("c",)], num_threads=1, generator_style=True, backend=ScriptedEndpoint(echo))
    )
    assert next(states)["a"] == "<a?>"
    with pytest.raises(ProgramError, match="item 1 of 3: LookupError: mine"):
        next(states)
    mixed = ask.run_batch([("bad",), ("b",)], generator_style=True, on_error="return", backend=ScriptedEndpoint(echo))
    assert [type(result) for result in mixed] == [LookupError, ProgramState]


class Stuck(Endpoint):
    """Answers the first program and no other."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.cancelled: set[str] = set()

    def submit(self, delta, on_event):
        self.first = self.first or delta["program"]
        for branch in delta["branches"]:
            if delta["program"] == self.first and branch["nodes"]:
                done = {"event": "done", "branch": "r", "node": len(branch["nodes"]) - 1, "text": "ok", "meta": {}}
                on_event(done)

    def cancel(self, program, branches=None):
        self.cancelled.add(program)


def test_closing_the_generator_early_cancels_what_is_outstanding():
    @function
    def program(s: ProgramState, read: bool):
        s += gen("a")
        return s["a"] if read else None

    endpoint = Stuck()
    ran = program.run_batch([(True,)] + [(False,), (True,)] * 5, num_threads=1, generator_style=True, backend=endpoint)
    states = iter(ran)
    assert next(states)["a"] == "ok"
    states.close()  # type: ignore[attr-defined]
    assert len(endpoint.cancelled) <= 1 and endpoint.first not in endpoint.cancelled


def test_progress_is_one_line_and_only_when_asked_for(capsys):
    ask.run_batch([("a",), ("b",)], backend=ScriptedEndpoint(echo))
    ask.run_batch([("a",), ("b",)], backend=ScriptedEndpoint(echo), progress_bar=None)
    assert capsys.readouterr().err == ""
    ask.run_batch([("a",), ("b",)], backend=ScriptedEndpoint(echo), progress_bar=True)
    shown = capsys.readouterr().err
    assert "\r2/2 programs, " in shown and " tokens/s, 0 s left" in shown and shown.count("\n") == 1


# --- completion order, checkpoints, async


def slow_first(prompt, node):
    return 0.2 if prompt.startswith("a") else 0.01


def test_results_may_come_as_they_complete_with_the_items_they_belong_to():
    endpoint = ScriptedEndpoint(echo, latency=slow_first)
    items = [("a",), ("b",), ("c",)]
    pairs = ask.run_batch(items, backend=endpoint, order="completed", num_threads=3)
    assert [i for i, _ in pairs][-1] == 0 and dict(pairs)[1]["a"] == "<b?>"
    lazily = ask.run_batch(items, backend=endpoint, order="completed", num_threads=3, generator_style=True)
    assert next(lazily)[0] in (1, 2)
    lazily.close()


def test_an_async_batch_is_awaited_or_iterated():
    endpoint = ScriptedEndpoint(echo, latency=slow_first)
    items = [(letter,) for letter in "abc"]

    async def main():
        assert texts(await ask.abatch(items, backend=endpoint)) == ["a?<a?>", "b?<b?>", "c?<c?>"]
        assert [s["a"] async for s in ask.abatch(items, backend=endpoint)] == ["<a?>", "<b?>", "<c?>"]
        done = [i async for i, _ in ask.abatch(items, backend=endpoint, order="completed")]
        assert done[-1] == 0
        errors = await ask.abatch([("bad",), ("b",)], backend=endpoint, on_error="return")
        assert isinstance(errors[0], LookupError)
        with pytest.raises(ProgramError, match="item 0 of 1: LookupError: mine"):
            await ask.abatch([("bad",)], backend=endpoint)

    asyncio.run(main())


def test_leaving_an_async_batch_early_cancels_what_is_outstanding():
    endpoint = ScriptedEndpoint(echo, latency=lambda prompt, node: 0.0 if prompt.startswith("0") else 30.0)

    async def main():
        batch = ask.abatch([(str(i),) for i in range(20)], backend=endpoint, concurrency=4)
        async for state in batch:
            assert state["a"] == "<0?>"
            break
        await batch.aclose()

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < 10 and endpoint.open_branches == set()


def test_async_programs_run_in_batches_without_threads_of_their_own():
    @function
    async def program(s, i: int):
        s += f"{i} " + gen("x")
        return await s["x"]

    endpoint = ScriptedEndpoint(lambda prompt, node: prompt.strip(), latency=0.1)
    before = threading.active_count()
    states = program.run_batch([(i,) for i in range(300)], backend=endpoint)
    assert [s.ret_value for s in states] == [str(i) for i in range(300)]
    assert threading.active_count() <= before + 20


def test_a_checkpoint_goes_on_where_an_earlier_run_stopped(tmp_path):
    path = tmp_path / "run.jsonl"
    asked: list[str] = []

    @function
    def program(s, q: str):
        asked.append(q)
        s += q + gen("n", type=int)
        if q == "boom" and len(asked) < 4:
            raise LookupError("later")
        return {"n": s["n"]}

    items = [("a",), ("boom",), ("c",)]
    endpoint = ScriptedEndpoint(lambda prompt, node: str(len(prompt)))
    first = program.run_batch(items, backend=endpoint, checkpoint=path, num_threads=1, on_error="return")
    assert isinstance(first[1], LookupError)
    with path.open("a") as file:
        file.write('{"item": 1, "half')  # as a killed run leaves it
    again = program.run_batch(items, backend=endpoint, checkpoint=path, num_threads=1)
    assert asked == ["a", "boom", "c", "boom"]
    for got, length in zip(again, (1, 4, 1), strict=True):
        assert got["n"] == length and got.raw("n") == str(length) and got.ret_value == {"n": length}
        assert got.usage()["completion_tokens"] == 1 and got.error() is None
    assert isinstance(again[0], BatchRecord) and isinstance(again[1], ProgramState)
    assert again[0].text() == "a1" and "n" in again[0]
    with pytest.raises(KeyError, match="record of item 0 has no value named 'x'; names: 'n'"):
        again[0]["x"]
    assert len(path.read_text().splitlines()) == 4
    program.run_batch(items, backend=endpoint, checkpoint=path)
    assert len(asked) == 4


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    ask.run_batch([("a",), ("b",)], backend=ScriptedEndpoint(), checkpoint=path)
    with pytest.raises(RequestError, match="is of another batch: item 1: its arguments are others now"):
        ask.run_batch([("a",), ("c",)], backend=ScriptedEndpoint(), checkpoint=path)
    with pytest.raises(RequestError, match="item 1: there is no such item"):
        ask.run_batch([("a",)], backend=ScriptedEndpoint(), checkpoint=path)
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(RequestError, match=r"line 1: not a checkpoint of ask, got b'hello"):
        ask.run_batch([("a",)], backend=ScriptedEndpoint(), checkpoint=tmp_path / "other")
    with pytest.raises(RequestError, match="arguments that look the same in every run"):
        ask.run_batch([(object(),)], backend=ScriptedEndpoint(), checkpoint=tmp_path / "new")


def test_a_checkpoint_says_what_it_could_not_keep(tmp_path):
    @function
    def program(s):
        s += gen("c", type=Literal["x"])
        s.set_var("set", {1, 2})
        return (1, 2)

    first, kept = (
        program.run_batch([()], backend=ScriptedEndpoint({"c": "x"}), checkpoint=tmp_path / "run")[0] for _ in range(2)
    )
    assert first["set"] == {1, 2} and first.ret_value == (1, 2)
    assert kept["c"] == "x"
    with pytest.raises(ProgramError, match=r"'set' is not: read .raw\('set'\)"):
        kept["set"]
    assert kept.raw("set") == "{1, 2}"
    with pytest.raises(ProgramError, match="what the program returned is not"):
        _ = kept.ret_value


def test_an_order_must_be_known():
    with pytest.raises(RequestError, match="order must be input or completed, got 'any'"):
        ask.run_batch([("a",)], backend=ScriptedEndpoint(), order="any")  # pyright: ignore[reportArgumentType] - wrong on purpose


def test_a_sync_batch_inside_an_async_program_is_refused():
    @function
    async def outer(s):
        ask.run_batch([("a",)])

    with pytest.raises(RequestError, match="await abatch"):
        outer.run(backend=ScriptedEndpoint())


def test_ctrl_c_stops_the_batch_and_cleans_up(tmp_path):
    code = """
import os, signal, threading
from stemma import ScriptedEndpoint, function, gen
@function
def ask(s, q):
    s += q + gen("a")
endpoint = ScriptedEndpoint(latency=60.0)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    ask.run_batch([(str(i),) for i in range(10)], backend=endpoint)
except KeyboardInterrupt:
    print("interrupted", len(endpoint.cancels), endpoint.open_branches)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "interrupted 10 set()\n", done
