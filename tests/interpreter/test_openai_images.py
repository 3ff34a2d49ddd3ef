"""Image nodes on OpenAI's routes."""

import importlib.util
from typing import Any

import pytest

from stemma import OpenAI
from tests.interpreter import services
from tests.interpreter.test_endpoints import GEN, TEXT, root, send

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


IMAGE = {"kind": "image", "data": "aGk=", "mime": "image/png"}


def test_an_image_is_a_part_of_its_message_in_order(service, connect):
    begin, end = {"kind": "role_begin", "role": "user"}, {"kind": "role_end", "role": "user"}
    answer = {"kind": "role_begin", "role": "assistant"}
    send(connect(), "p", root([begin, TEXT, IMAGE, IMAGE, TEXT, end, answer, GEN])).until(1)
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    words = {"type": "text", "text": "Once upon a time"}
    assert service.bodies[0]["messages"] == [{"role": "user", "content": [words, url, url, words]}]


def test_an_image_on_a_completion_model_is_an_error_before_any_request(service, connect):
    events = send(connect("m", False), "p", root([TEXT, IMAGE, GEN])).until(2)
    assert [(e["event"], e["node"]) for e in events] == [("error", 1), ("error", 2)]
    assert "takes no images" in events[0]["error"]["message"] and not service.requests
