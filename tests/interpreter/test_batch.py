"""Many runs of one program."""

import threading

import pytest

from stemma import ProgramState, ScriptedEndpoint, function, gen
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
