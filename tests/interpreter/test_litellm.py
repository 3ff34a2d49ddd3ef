"""LiteLLM, by its real package, over a stand-in that speaks the OpenAI API. Skipped where it is not installed."""

import importlib.util
import json
import socket
import threading
from typing import Any

import pytest

from stemma import LiteLLM, ProgramState, assistant, function, gen, select, system, user
from stemma.lang.errors import EndpointError, ProgramError, RequestError
from tests.interpreter import services
from tests.interpreter.services import hang_up, status

if importlib.util.find_spec("litellm") is None:
    pytest.skip("litellm is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # its own objects raise warnings of pydantic


@pytest.fixture
def service(start):
    return start(services.openai)


@pytest.fixture
def connect(service):
    made: list[LiteLLM] = []

    def to(**options: Any) -> LiteLLM:
        url = options.pop("base_url", f"{service.url}/v1")
        made.append(LiteLLM("openai/m", api_key="k", base_url=url, **options))
        return made[-1]

    yield to
    for endpoint in made:
        endpoint.close()


@function
def ask(s: ProgramState):
    s += system("Be brief.") + user("hi") + assistant(gen("a"))


def test_the_request_carries_messages_and_parameters(service, connect):
    node = gen("b", 5, stop=["x"], temperature=0.5, top_p=0.9, seed=7)
    function(lambda s: s.append(user("q") + assistant(node))).run(
        backend=connect(default_headers={"X-Team": "blue"})
    ).sync()
    assert service.bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "q"}],
        "max_tokens": 5,
        "stop": ["x"],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
    }
    assert service.headers[0]["authorization"] == "Bearer k" and service.headers[0]["x-team"] == "blue"


@pytest.mark.parametrize("stream", [False, True])
def test_answers_have_usage(connect, stream):
    state = ask.run(backend=connect(), stream=stream)
    assert "".join(state.text_iter("a")) == "one two three"
    meta = state.get_meta_info("a")
    assert (meta["completion_tokens"], meta["cached_tokens"], meta["finish_reason"]["type"]) == (3, 1, "stop")


def test_types_travel_as_a_json_schema(service, connect):
    service.reply = lambda body: json.dumps({"value": 7}, separators=(",", ":"))
    state = function(lambda s: s.append(user("q") + assistant(gen("x", type=int)))).run(backend=connect())
    assert state["x"] == 7
    assert service.bodies[0]["response_format"]["json_schema"]["schema"]["properties"] == {"value": {"type": "integer"}}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda: user("q") + assistant(select("x", ["a", "b"])), "cannot select"),
        (lambda: user("q") + assistant(gen("x", regex="a+")), "cannot enforce this regex"),
        (lambda: user("q") + assistant("A" + gen("x")), "must be the first thing"),
        (lambda: user("q") + assistant(gen("x", top_k=3)), "does not take top_k=3"),
    ],
)
def test_what_it_cannot_do_is_an_error_before_any_request(service, connect, said, message):
    with pytest.raises(ProgramError, match=message):
        function(lambda s: s.append(said())).run(backend=connect()).sync()
    assert not service.requests


def test_a_busy_service_is_asked_again_and_counted_once(service, connect):
    service.faults.extend([status(429, retry_after="0"), status(503, retry_after="0")])
    assert ask.run(backend=connect()).get_meta_info("a")["retries"] == 2
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("fault", "cause"), [(status(400), RequestError), (status(401), EndpointError), (hang_up, EndpointError)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_other_failures_are_errors_at_the_reader_and_not_tried_again(service, connect, fault, cause, stream):
    service.faults.append(fault)
    with pytest.raises(ProgramError, match=r"gen 'a' at .*test_litellm.py:\d+") as caught:
        ask.run(backend=connect(), stream=stream)["a"]
    assert type(caught.value.__cause__) is cause and len(service.requests) == 1


def test_a_server_that_says_nothing_is_given_up(service, connect):
    release = threading.Event()
    service.faults.append(lambda handler: release.wait(5) and None)
    with pytest.raises(ProgramError, match=r"[Tt]imed? ?out"):
        ask.run(backend=connect(timeout=0.1))["a"]
    release.set()
    assert len(service.requests) == 1


def test_no_server_is_tried_again(connect, monkeypatch):
    from stemma.interpreter.endpoints import retry

    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    endpoint = connect(base_url=url, max_retries=1)
    tried = []
    failed = endpoint.failed
    monkeypatch.setattr(endpoint, "failed", lambda error: tried.append(failed(error)) or tried[-1])
    with pytest.raises(ProgramError, match="gen 'a' at"):
        ask.run(backend=endpoint)["a"]
    assert [each.again for each in tried] == [True, True]


def test_a_chat_template_would_change_nothing_and_is_refused():
    with pytest.raises(RequestError, match="chat_template"):
        LiteLLM("openai/m", chat_template="chatml")  # type: ignore[arg-type]
