"""Anthropic's messages API, asked by the real client."""

import importlib.util
import json
from typing import Any, Literal

import pytest

from stemma import Anthropic, ProgramState, assistant, function, gen, select, system, user
from stemma.lang.errors import EndpointError, ProgramError, RequestError
from tests.interpreter import services
from tests.interpreter.services import hang_up, status
from tests.interpreter.test_endpoints import GEN, TEXT, root, send

if importlib.util.find_spec("anthropic") is None:
    pytest.skip("anthropic is not installed", allow_module_level=True)


@pytest.fixture
def service(start):
    return start(services.anthropic)


@pytest.fixture
def connect(service):
    made: list[Anthropic] = []

    def to(**options: Any) -> Anthropic:
        made.append(Anthropic("claude", api_key="k", base_url=service.url, **options))
        return made[-1]

    yield to
    for endpoint in made:
        endpoint.close()


@function
def ask(s: ProgramState, question="hi"):
    s += system("Be brief.") + user(question) + assistant(gen("a"))


def test_the_system_prompt_travels_apart_every_time(service, connect):
    @function
    def program(s: ProgramState):
        s += system("Be brief.") + system("Be kind.") + user("hi") + assistant(gen("a", 9, stop=["x"]))
        s += user("more") + assistant(gen("b", temperature=0.5, top_p=0.9, top_k=5))

    program.run(backend=connect()).sync()
    assert service.requests[0] == (
        "/v1/messages",
        {
            "model": "claude",
            "system": "Be brief.\n\nBe kind.",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 9,
            "stop_sequences": ["x"],
        },
    )
    second = service.bodies[1]
    assert second["system"] == "Be brief.\n\nBe kind." and len(second["messages"]) == 3
    assert (second["temperature"], second["top_p"], second["top_k"], second["max_tokens"]) == (0.5, 0.9, 5, 128)


def test_usage_and_the_finish_reason_reach_meta(service, connect):
    service.reply = lambda body: "one two x three"
    state = function(lambda s: s.append(user("q") + assistant(gen("a", stop=["x"])))).run(backend=connect())
    meta = state.get_meta_info("a")
    assert state["a"] == "one two " and meta["finish_reason"] == {"type": "stop", "matched": "x"}
    assert meta["cached_tokens"] == 2 and meta["prompt_tokens"] > 2 and meta["retries"] == 0
    assert ask.run(backend=connect(), max_new_tokens=1).get_meta_info("a")["finish_reason"]["type"] == "length"


def test_no_stop_trim_puts_the_stop_sequence_back(service, connect):
    service.reply = lambda body: "one. two"
    state = ask.run(backend=connect(), stop=".", no_stop_trim=True)
    assert state["a"] == "one."


@pytest.mark.parametrize("stream", [False, True])
def test_the_beginning_of_an_answer_is_gone_on_from(service, connect, stream):
    service.reply = lambda body: " 4 of course"  # the white space that could not be sent
    state = function(lambda s: s.append(user("2+2?") + assistant("It is " + gen("x") + "!" + gen("y")))).run(
        backend=connect(), stream=stream
    )
    assert state["x"] == "4 of course" and "".join(state.text_iter("x")) == "4 of course"
    assert state["y"] == " 4 of course"
    assert service.bodies[0]["messages"][-1] == {"role": "assistant", "content": "It is"}
    assert service.bodies[1]["messages"][-1] == {"role": "assistant", "content": "It is 4 of course!"}


def test_a_stream_comes_in_pieces(connect):
    state = ask.run(backend=connect(), stream=True)
    assert list(state.text_iter("a")) == ["one", " two", " three"]
    assert state.get_meta_info("a")["completion_tokens"] == 3


@pytest.mark.parametrize(("type", "answer"), [(int, 42), (Literal["yes", "no"], "no")])
def test_types_travel_as_a_json_schema(service, connect, type, answer):
    service.reply = lambda body: json.dumps({"value": answer}, separators=(",", ":"))
    state = function(lambda s: s.append(user("q") + assistant(gen("x", type=type)))).run(backend=connect())
    assert state["x"] == answer
    assert service.bodies[0]["output_config"]["format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda: user("q") + assistant(select("x", ["a", "b"])), "cannot select"),
        (lambda: user("q") + assistant(gen("x", regex="a+")), "cannot enforce this regex"),
        (lambda: user("q") + assistant("It is " + gen("x", type=int)), "cannot both go on"),
        (lambda: user("q") + assistant(gen("x", temperature=1.5)), r"temperature in \[0, 1\]"),
        (lambda: user("q") + assistant(gen("x", seed=1)), "does not take seed=1"),
        (lambda: user("q") + assistant(gen("x", frequency_penalty=1)), "does not take frequency_penalty"),
        (lambda: user("q") + assistant(gen("x", return_logprob=True)), "gives no log-prob"),
        (lambda: user("q") + system("late") + assistant(gen("x")), "system messages only before"),
    ],
)
def test_what_it_cannot_do_is_an_error_before_any_request(service, connect, said, message):
    with pytest.raises(ProgramError, match=rf"at .*test_anthropic.py:\d+.*{message}") as caught:
        function(lambda s: s.append(said())).run(backend=connect()).sync()
    assert isinstance(caught.value.__cause__, RequestError) and not service.requests


def test_a_limit_is_needed(service, connect):
    with pytest.raises(ProgramError, match="needs a number for max_tokens"):
        ask.run(backend=connect(), max_new_tokens=None)["a"]
    assert not service.requests


def test_an_image_is_a_block_of_its_message(service, connect):
    begin, end = {"kind": "role_begin", "role": "user"}, {"kind": "role_end", "role": "user"}
    image = {"kind": "image", "data": "aGk=", "mime": "image/png"}
    send(connect(), "p", root([begin, image, TEXT, end, {"kind": "role_begin", "role": "assistant"}, GEN])).until(1)
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    content = [block, {"type": "text", "text": "Once upon a time"}]
    assert service.bodies[0]["messages"] == [{"role": "user", "content": content}]


@pytest.mark.parametrize("fault", [status(429, retry_after="0"), status(529, retry_after="0")])
def test_a_busy_service_is_asked_again(service, connect, fault):
    service.faults.append(fault)
    assert ask.run(backend=connect()).get_meta_info("a")["retries"] == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "cause", "message"),
    [
        (status(400, "prefill is gone"), RequestError, "answered 400: prefill is gone"),
        (status(401, "who are you"), EndpointError, "answered 401"),
        (hang_up, EndpointError, "Connection error|disconnected"),
    ],
)
def test_failures_are_errors_at_the_reader(service, connect, fault, cause, message, stream):
    service.faults.append(fault)
    with pytest.raises(ProgramError, match=rf"gen 'a' at .*test_anthropic.py:\d+.*(?:{message})") as caught:
        ask.run(backend=connect(), stream=stream)["a"]
    assert type(caught.value.__cause__) is cause and len(service.requests) == 1
