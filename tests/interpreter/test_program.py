"""The decorator and the ways to run a program."""

import subprocess
import sys
import threading
from typing import Any

import pytest

import stemma
from stemma import ProgramState, ScriptedEndpoint, function, gen
from stemma.interpreter import default_endpoint
from stemma.interpreter.default_endpoint import get_default_backend
from stemma.interpreter.program import Program
from stemma.lang.errors import ProgramError, RequestError


@pytest.fixture(autouse=True)
def no_default_backend():
    yield
    stemma.set_default_backend(None)


@function
def ask(s: ProgramState, question: str, suffix: str = "?"):
    """Ask it."""
    s += question + suffix
    s += gen("answer")
    return len(question)


def params(endpoint: ScriptedEndpoint) -> dict[str, Any]:
    (node,) = [n for d in endpoint.deltas for b in d["branches"] for n in b["nodes"] if n["kind"] == "gen"]
    return node["params"]


def test_run_returns_a_state_with_text_values_and_the_result():
    state = ask.run("Why", backend=ScriptedEndpoint({"answer": "Because"}))
    assert (state.text(), state["answer"], state.ret_value) == ("Why?Because", "Because", 3)


def test_the_decorator_keeps_name_and_doc_and_works_with_brackets():
    assert (ask.__name__, ask.__doc__) == ("ask", "Ask it.")
    assert isinstance(function()(lambda s: None), Program)


def test_the_first_parameter_may_have_any_name():
    @function
    def program(anything: ProgramState, s: int):
        anything += f"{s}"

    assert program.run(s=4, backend=ScriptedEndpoint()).text() == "4"


def _generator(s):
    yield s


@pytest.mark.parametrize(
    ("func", "message"),
    [
        (_generator, "yields"),
        (lambda: None, "needs a first parameter"),
    ],
)
def test_what_cannot_be_a_program_is_an_error_at_decoration(func, message):
    with pytest.raises(RequestError, match=message):
        function(func)


def test_sampling_defaults_reach_every_gen_and_a_gen_overrides_them():
    @function
    def program(s: ProgramState):
        s += gen("x", temperature=0.5, stop="b")

    endpoint = ScriptedEndpoint()
    program.run(backend=endpoint, max_new_tokens=9, temperature=0.1, top_p=0.9, stop=["a"]).sync()
    assert params(endpoint) == {"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": ["b"]}


def test_gens_without_options_send_no_parameters():
    endpoint = ScriptedEndpoint()
    ask.run("Why", backend=endpoint).sync()
    assert params(endpoint) == {}


def test_a_program_parameter_wins_over_a_sampling_default_of_that_name():
    @function
    def program(s: ProgramState, temperature: str, stream: int):
        s += f"It is {temperature} {stream}."
        s += gen("x")

    endpoint = ScriptedEndpoint()
    state = program.run(temperature="warm", stream=3, seed=None, backend=endpoint)
    assert state.text() == "It is warm 3.x"
    assert params(endpoint) == {}


def test_a_run_seed_gives_every_place_its_own_seed_and_the_same_one_again():
    @function
    def program(s: ProgramState):
        for fork in s.fork(2):
            fork += gen("x")
        s += gen("y") + gen("z", seed=5)

    def seeds():
        endpoint = ScriptedEndpoint()
        program.run(seed=1, backend=endpoint).sync()
        return [n["params"]["seed"] for d in endpoint.deltas for b in d["branches"] for n in b["nodes"]]

    assert len(set(seeds())) == 4 and seeds() == seeds() and 5 in seeds()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperatur": 1}, TypeError, "unexpected keyword argument 'temperatur'"),
        ({"temperature": -1}, RequestError, "temperature must be in"),
        ({"n": 0}, RequestError, "n must be an integer >= 1, got 0"),
        ({"return_logprob": "yes"}, RequestError, "return_logprob"),
        ({"backend": 7}, RequestError, "backend must be an Engine or an endpoint .* got 7"),
    ],
)
def test_wrong_run_arguments_are_errors_before_anything_runs(options, error, message):
    with pytest.raises(error, match=message):
        ask.run("Why", **{"backend": ScriptedEndpoint(), **options})


def test_missing_arguments_are_type_errors_naming_the_program():
    with pytest.raises(TypeError, match=r"ask\(.*missing a required argument: 'question'"):
        ask.run(backend=ScriptedEndpoint())


def test_run_level_logprobs_reach_the_gen():
    endpoint = ScriptedEndpoint()
    ask.run("Why", backend=endpoint, return_logprob=True, top_logprobs_num=2).sync()
    assert endpoint.deltas[0]["branches"][0]["nodes"][-1]["logprobs"] == {"start": -1, "top": 2, "ids": None}


def test_asking_for_top_logprobs_without_logprobs_is_an_error_at_the_line():
    @function
    def program(s: ProgramState):
        s += gen("x", top_logprobs_num=2)

    with pytest.raises(RequestError, match="gen 'x' asks about log-probabilities; set return_logprob=True"):
        program.run(backend=ScriptedEndpoint())


def test_bind_fills_in_and_a_call_overrides():
    bound = ask.bind(suffix="!", temperature=0)
    endpoint = ScriptedEndpoint()
    assert bound.run("Stop", backend=endpoint).text() == "Stop!answer"
    assert params(endpoint) == {"temperature": 0.0}
    assert bound.run("Stop", suffix=".", backend=ScriptedEndpoint()).text() == "Stop.answer"
    assert bound.run("Stop", "..", backend=ScriptedEndpoint()).text() == "Stop..answer"
    with pytest.raises(TypeError, match="no parameter 'sufix' to bind"):
        ask.bind(sufix="!")


def test_a_program_called_with_a_state_goes_on_inline():
    @function
    def outer(s: ProgramState):
        s += "I: "
        length = ask.bind(temperature=0.0)(s, "Who")
        s += gen("after")
        return length, s["answer"]

    endpoint = ScriptedEndpoint()
    state = outer.run(backend=endpoint)
    assert state.text() == "I: Who?answerafter"
    assert state.ret_value == (3, "answer")
    gens = [n for d in endpoint.deltas for b in d["branches"] for n in b["nodes"] if n["kind"] == "gen"]
    assert [g["params"] for g in gens] == [{"temperature": 0.0}, {}]


def test_a_program_called_without_a_state_runs_on_the_endpoint_of_its_caller():
    @function
    def outer(s: ProgramState):
        s += "Said: " + ask("Who").text()

    endpoint = ScriptedEndpoint()
    assert outer.run(backend=endpoint).text() == "Said: Who?answer"
    assert len({delta["program"] for delta in endpoint.deltas}) == 2


def test_the_default_backend_is_used_when_none_is_given():
    endpoint = ScriptedEndpoint()
    stemma.set_default_backend(endpoint)
    assert ask.run("Who").text() == "Who?answer"
    assert get_default_backend() is endpoint


class FakeEngine:
    """What an engine looks like from here: it echoes each gen on a thread of its own."""

    started = 0

    def __init__(self, model: str = "demo"):
        type(self).started += 1
        self.closed = False
        self._endpoint = ScriptedEndpoint(lambda prompt, node: "echo")

    def submit(self, delta, on_event):
        self._endpoint.submit(delta, on_event)

    def cancel(self, program, branches=None):
        self._endpoint.cancel(program, branches)

    def info(self):
        return {"model": "fake"}

    def flush_cache(self):
        return None

    def shutdown(self):
        self.closed = True


def test_an_engine_is_a_backend():
    assert ask.run("Who", backend=FakeEngine()).text() == "Who?echo"


def test_without_a_backend_the_bundled_engine_starts_once(monkeypatch):
    FakeEngine.started = 0
    monkeypatch.setitem(sys.modules, "stemma.backend.engine", type("M", (), {"Engine": FakeEngine}))
    assert ask.run("Who").text() == ask.run("Who").text() == "Who?echo"
    assert FakeEngine.started == 1
    endpoint = get_default_backend()
    assert endpoint.info() == {"model": "fake"}
    endpoint.close()
    assert endpoint.engine.closed  # type: ignore[attr-defined]


def test_without_an_engine_to_load_the_error_says_what_to_do(monkeypatch):
    def missing(*_: Any):
        raise ImportError("no torch here")

    monkeypatch.setattr("stemma.interpreter.endpoints.local.LocalEndpoint.__init__", missing)
    with pytest.raises(stemma.EndpointError, match=r"no backend is set.*no torch here.*set_default_backend"):
        ask.run("Who")
    assert default_endpoint._default is None


def test_an_error_in_the_body_reaches_the_caller_and_cancels_the_program():
    @function
    def program(s: ProgramState):
        s += gen("x")
        assert s["x"] == "x"
        raise LookupError("mine")

    endpoint = ScriptedEndpoint()
    with pytest.raises(LookupError, match="mine"):
        program.run(backend=endpoint)
    assert endpoint.cancels == [(endpoint.deltas[0]["program"], None)]
    assert endpoint.open_branches == set()


def test_a_cancel_that_fails_does_not_hide_the_bodys_error():
    class Broken(ScriptedEndpoint):
        def cancel(self, program, branches=None):
            raise OSError("no line")

    @function
    def program(s: ProgramState):
        s += gen("x")
        raise LookupError(s["x"])

    with pytest.raises(LookupError) as caught:
        program.run(backend=Broken())
    assert "no line" in caught.value.__notes__[0]


def test_streaming_runs_the_body_aside_and_its_error_reaches_the_readers():
    go = threading.Event()

    @function
    def program(s: ProgramState):
        assert go.wait(5)
        raise LookupError("mine")

    state = program.run(stream=True, backend=ScriptedEndpoint())
    go.set()
    for read in (lambda: state.ret_value, state.text, state.sync, lambda: list(state.text_iter())):
        with pytest.raises(ProgramError, match="the program raised: LookupError: mine") as caught:
            read()
        assert isinstance(caught.value.__cause__, LookupError)


def test_importing_the_language_is_light():
    code = (
        "import sys, time; t = time.process_time(); import stemma;"
        "stemma.function, stemma.gen, stemma.ScriptedEndpoint;"
        "s = time.process_time() - t; heavy = {'torch', 'numpy', 'requests', 'msgspec'} & set(sys.modules);"
        "assert not heavy, heavy; assert s < 0.3, s"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
