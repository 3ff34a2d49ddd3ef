"""What OpenAI's routes do when the service fails: what is asked again, what is an error, and where."""

import importlib.util
import socket
import threading
from typing import Any

import pytest

from stemma import OpenAI, ProgramState, assistant, function, gen, system, user
from stemma.interpreter.endpoints import retry
from stemma.lang.errors import EndpointError, ProgramError, RequestError
from tests.interpreter import services
from tests.interpreter.services import hang_up, status

if importlib.util.find_spec("openai") is None:
    pytest.skip("openai is not installed", allow_module_level=True)


@pytest.fixture
def service(start):
    return start(services.openai)


@pytest.fixture
def connect(service):
    made: list[OpenAI] = []

    def to(model: str = "m", is_chat_model: bool | None = None, *args: Any, **options: Any) -> OpenAI:
        url = options.pop("base_url", f"{service.url}/v1")
        made.append(OpenAI(model, is_chat_model, *args, base_url=url, **options))
        return made[-1]

    yield to
    for endpoint in made:
        endpoint.close()


@function
def ask(s: ProgramState, question="hi"):
    s += system("Be brief.") + user(question) + assistant(gen("a"))


@pytest.mark.parametrize("fault", [status(429, retry_after="0"), status(503, retry_after="0"), status(500)])
def test_429_and_5xx_are_tried_again_and_counted(service, connect, fault):
    service.faults.extend([fault])
    state = ask.run(backend=connect())
    assert state["a"] == "one two three" and state.get_meta_info("a")["retries"] == 1
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    ("fault", "cause", "message"),
    [
        (status(400, "bad field"), RequestError, "answered 400: bad field"),
        (status(401, "who are you"), EndpointError, "answered 401: who are you"),
        (status(404, "no model"), EndpointError, "answered 404: no model"),
        (hang_up, EndpointError, "Connection error|disconnected"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_other_failures_are_errors_at_the_reader_and_not_tried_again(service, connect, fault, cause, message, stream):
    service.faults.append(fault)
    with pytest.raises(ProgramError, match=rf"gen 'a' at .*test_openai_faults.py:\d+.*(?:{message})") as caught:
        ask.run(backend=connect(), stream=stream)["a"]
    assert type(caught.value.__cause__) is cause and len(service.requests) == 1


def test_a_server_that_says_nothing_is_given_up(service, connect):
    release = threading.Event()
    service.faults.append(lambda handler: release.wait(5) and None)
    with pytest.raises(ProgramError, match="timed out"):
        ask.run(backend=connect(timeout=0.05))["a"]
    release.set()


def test_a_stream_that_breaks_gives_its_pieces_and_then_the_error(service, connect):
    def half(handler):
        with handler.stream() as send:
            send({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m",
                  "choices": [{"index": 0, "delta": {"content": "half"}}]})  # fmt: skip
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            raise BrokenPipeError

    def quiet(handler):
        try:
            half(handler)
        except OSError:
            return

    service.faults.append(quiet)
    state = ask.run(backend=connect(), stream=True)
    pieces = state.text_iter("a")
    assert next(pieces) == "half"
    with pytest.raises(ProgramError, match="gen 'a' at"):
        next(pieces)
    assert len(service.requests) == 1


def test_no_server_is_tried_again_and_is_then_an_error(connect, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ProgramError, match="Connect"):
        ask.run(backend=connect(base_url=url))["a"]


def test_requests_of_many_programs_share_the_limit(service, connect):
    endpoint = connect(max_in_flight=4)
    states = ask.run_batch([(f"q{i}",) for i in range(40)], backend=endpoint)
    assert len(list(states)) == 40 and service.most_running <= 4
