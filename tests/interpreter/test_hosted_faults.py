"""The fault matrix on hosted services: how they fail × how a program is read. An error that names the user's line at
every cell, and never a hang."""

import importlib
import importlib.util
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stemma import Anthropic, LiteLLM, OpenAI, ProgramState, RuntimeEndpoint, assistant, function, gen, user
from stemma.interpreter.endpoints.base import Endpoint
from stemma.lang.errors import EndpointError, ProgramError
from tests.interpreter import services
from tests.interpreter.services import Fault, Handler, Service, hang_up, status
from tests.interpreter.test_faults import READERS

# name -> the package that it needs, its service, and how to make the endpoint
HOSTED: dict[str, tuple[str, Callable[[], Service], Callable[..., Endpoint]]] = {
    "openai chat": ("openai", services.openai, lambda url, **o: OpenAI("m", base_url=f"{url}/v1", **o)),
    "openai completions": (
        "openai",
        services.openai,
        lambda url, **o: OpenAI("m", False, "plain", base_url=f"{url}/v1", **o),
    ),
    "anthropic": ("anthropic", services.anthropic, lambda url, **o: Anthropic("m", api_key="k", base_url=url, **o)),
    "litellm": (
        "litellm",
        services.openai,
        lambda url, **o: LiteLLM("openai/m", api_key="k", base_url=f"{url}/v1", **o),
    ),
    "sglang": (
        "requests",
        services.sglang,
        lambda url, **o: RuntimeEndpoint(url, chat_template_name="plain", protocol="generate", **o),
    ),
}
LENIENT = {"litellm": pytest.mark.filterwarnings("ignore")}  # its own objects raise warnings of pydantic


def cut_off(handler: Handler) -> None:
    """The server dies in the middle of its answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Content-Length", "9999")
    handler.end_headers()
    handler.wfile.write(b"data: ")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def silent(handler: Handler) -> None:
    """The server says nothing for longer than the endpoint waits."""
    threading.Event().wait(0.5)
    handler.close_connection = True


FAULTS: dict[str, Fault] = {
    "killed": hang_up,
    "cut off": cut_off,
    "silent": silent,
    "429": status(429, retry_after="0"),
}


@pytest.fixture(scope="module", params=[pytest.param(n, marks=LENIENT.get(n, ())) for n in HOSTED])
def hosted(request) -> Iterator[tuple[Service, Callable[[str], Endpoint]]]:
    """The service, and its endpoint for a fault: one of little patience where the service is silent."""
    package, serve, make = HOSTED[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    importlib.import_module(package)  # takes seconds, which are no test's
    service = serve()
    patient, hasty = make(service.url, max_retries=1), make(service.url, max_retries=1, timeout=0.2)
    yield service, lambda fault: hasty if fault == "silent" else patient
    for endpoint in (patient, hasty):
        endpoint.close()
    service.close()


@function
def program(s: ProgramState):
    s += user("q") + assistant(gen("last"))


@pytest.mark.timeout(10, func_only=True)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_error_at_every_reader(hosted, fault, reader, stream):
    service, endpoint = hosted
    before = service.asked()
    service.faults.extend([FAULTS[fault]] * (2 if fault == "429" else 1))
    state = program.run(backend=endpoint(fault), stream=stream)
    with pytest.raises(ProgramError, match=r"gen 'last' at .*test_hosted_faults.py:\d+") as caught:
        READERS[reader](state)
    assert isinstance(caught.value.__cause__, EndpointError)
    assert service.asked() == before + (2 if fault == "429" else 1) and not service.faults


@pytest.mark.timeout(10, func_only=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_error_of_its_batch_item_and_of_the_join(hosted, fault):
    service, endpoint = hosted
    # a 429 must not be asked again here, or another item would use up its fault
    service.faults.append(status(400) if fault == "429" else FAULTS[fault])
    results: Any = program.run_batch([{}], backend=endpoint(fault), on_error="return")
    assert "gen 'last' at" in str(results[0])

    @function
    def forked(s: ProgramState):
        (fork,) = s.fork(1)
        fork += user("q") + assistant(gen("x"))
        group = s.fork(1)
        group += user("q") + assistant(gen("y"))
        group.join()
        return s["y"], fork["x"]

    service.faults.extend([status(400) if fault == "429" else FAULTS[fault]] * 2)
    with pytest.raises(ProgramError, match="fork 0/1"):
        forked.run(backend=endpoint(fault))
    service.faults.clear()


def test_a_service_that_recovers_is_used_again(hosted):
    service, endpoint = hosted
    service.faults.append(hang_up)
    with pytest.raises(ProgramError):
        program.run(backend=endpoint(""))["last"]
    assert program.run(backend=endpoint(""))["last"] == "one two three"
