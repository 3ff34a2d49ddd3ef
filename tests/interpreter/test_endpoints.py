"""What every endpoint must do. One suite, run over all of them: add a factory to `ENDPOINTS`.

Hosted services are stand-ins on 127.0.0.1, asked by their real client packages. What an endpoint cannot do is listed in
`CANNOT`, and must be an error before any request.
"""

import importlib.util
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stemma import (
    Anthropic,
    LiteLLM,
    OpenAI,
    ProgramState,
    RuntimeEndpoint,
    ScriptedEndpoint,
    assistant,
    function,
    gen,
    select,
    user,
)
from stemma.interpreter.endpoints.base import Endpoint
from stemma.interpreter.endpoints.local import LocalEndpoint
from stemma.lang.errors import ProgramError
from tests.interpreter import services
from tests.interpreter.characters import characters

# name -> the fixture that it needs, and how to make one from that
ENDPOINTS: dict[str, tuple[str, Callable[[Any], Endpoint]]] = {
    "scripted": ("tmp_path_factory", lambda _: ScriptedEndpoint()),
    "http": ("shared_server", lambda scripted: RuntimeEndpoint(scripted.url)),  # a scripted graph server
    "local": ("engine", LocalEndpoint),
    "server": ("server", RuntimeEndpoint),  # the real one
    "server by /generate": (
        "server",
        lambda url: RuntimeEndpoint(url, chat_template_name="plain", protocol="generate"),
    ),
    "server by OpenAI chat": ("server", lambda url: OpenAI("m", base_url=f"{url}/v1", extra_params=["regex"])),
    "server by OpenAI completions": (
        "server",
        lambda url: OpenAI("m", False, "chatml", base_url=f"{url}/v1", extra_params=["regex"]),
    ),
    "sglang": ("sglang", lambda service: RuntimeEndpoint(service.url, chat_template_name="chatml")),
    "openai chat": ("openai", lambda s: OpenAI("m", base_url=f"{s.url}/v1", encoding=characters())),
    "openai completions": (
        "openai",
        lambda s: OpenAI("m", False, "chatml", base_url=f"{s.url}/v1", encoding=characters()),
    ),
    "openai by echo": ("openai", lambda s: OpenAI("m", False, "plain", base_url=f"{s.url}/v1", select_by="echo")),
    "anthropic": ("anthropic", lambda s: Anthropic("m", api_key="k", base_url=s.url)),
    "litellm": ("openai", lambda s: LiteLLM("openai/m", api_key="k", base_url=f"{s.url}/v1")),
}
CHATS = ("server by OpenAI chat", "openai chat", "anthropic", "litellm")
CANNOT = {
    "select": ("server by OpenAI chat", "server by OpenAI completions", "anthropic", "litellm"),
    "gen outside of assistant": CHATS,
}
NEEDS = {"openai": "openai", "anthropic": "anthropic", "litellm": "litellm", "OpenAI": "openai"}
SECONDS = 60.0

GEN = {"kind": "gen", "params": {"max_new_tokens": 2}, "constraint": None, "logprobs": None, "stream": False}
SELECT = {
    "kind": "select",
    "choices": ["yes", "no"],
    "method": "token_length_normalized",
    "temperature": 0.0,
    "seed": None,
}
TEXT = {"kind": "text", "text": "Once upon a time"}


# LiteLLM's own objects raise warnings of pydantic, which the suite would take as errors
LENIENT = {"litellm": pytest.mark.filterwarnings("ignore")}


@pytest.fixture(scope="module", params=[pytest.param(n, marks=LENIENT.get(n, ())) for n in ENDPOINTS])
def name(request) -> str:
    for word, package in NEEDS.items():
        if word in request.param.split() and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return request.param


@pytest.fixture(scope="module")
def endpoint(request, name) -> Iterator[Endpoint]:
    fixture, make = ENDPOINTS[name]
    made = make(request.getfixturevalue(fixture))
    yield made
    made.close()


@pytest.fixture(scope="module")
def openai() -> Iterator[services.Service]:
    service = services.openai()
    yield service
    service.close()


@pytest.fixture(scope="module")
def anthropic() -> Iterator[services.Service]:
    service = services.anthropic()
    yield service
    service.close()


@pytest.fixture(scope="module")
def sglang() -> Iterator[services.Service]:
    service = services.sglang()
    yield service
    service.close()


def branch(id: str, nodes: list[Any], first: int = 0, end: bool = True, **more: Any) -> dict[str, Any]:
    return {"id": id, "first": first, "nodes": nodes, "end": end, **more}


def root(nodes: list[Any], end: bool = True) -> dict[str, Any]:
    return branch("r", nodes, end=end, parent=None, at=0)


class Events:
    """Collects events until a number of nodes are settled."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self.take = self._queue.put

    def until(self, settled: int) -> list[dict[str, Any]]:
        while sum(e["event"] in ("done", "error") for e in self.all) < settled:
            self.all.append(self._queue.get(timeout=SECONDS))
        return self.all


def send(endpoint: Endpoint, program: str, *branches: dict[str, Any], end: bool = True) -> Events:
    events = Events()
    endpoint.submit({"program": program, "branches": list(branches), "end": end}, events.take)
    return events


def test_every_gen_and_select_ends_with_one_done(name, endpoint):
    events = send(endpoint, "c1", root([TEXT, GEN, TEXT, SELECT])).until(2)
    if name in CANNOT["select"]:
        assert {(e["event"], e["node"]) for e in events} == {("error", 3), ("done", 1)}
        (error,) = [e["error"]["message"] for e in events if e["event"] == "error"]
        assert any(reason in error for reason in ("cannot select", "needs the model's tokens", "echo is not supported"))
        assert events[0]["event"] == "error" or "echo" in error  # the server itself refuses to echo
        return
    done = [e for e in events if e["event"] == "done"]
    assert [(e["branch"], e["node"]) for e in done] == [("r", 1), ("r", 3)]
    assert isinstance(done[0]["text"], str) and isinstance(done[0]["ids"], list)
    assert done[1]["text"] == ["yes", "no"][done[1]["meta"]["choice"]] and len(done[1]["meta"]["scores"]) == 2


def test_meta_counts_tokens_and_names_the_finish_reason(endpoint):
    (done,) = send(endpoint, "c2", root([TEXT, GEN])).until(1)
    for count in ("prompt_tokens", "completion_tokens", "cached_tokens", "computed_tokens", "forced_tokens"):
        assert done["meta"][count] >= 0
    assert done["meta"]["finish_reason"]["type"] in ("stop", "length")


def test_a_stream_adds_up_to_the_text(endpoint):
    events = send(endpoint, "c3", root([TEXT, {**GEN, "stream": True}])).until(1)
    assert events[-1]["event"] == "done", events
    assert "".join(e["text"] for e in events if e["event"] == "delta") == events[-1]["text"]


def test_role_nodes_are_lowered_to_text(endpoint):
    roles = [{"kind": "role_begin", "role": "user"}, TEXT, {"kind": "role_end", "role": "user"}]
    roles += [{"kind": "role_begin", "role": "assistant"}, GEN]
    events = send(endpoint, "c4", root(roles)).until(1)
    assert [e["node"] for e in events if e["event"] == "text"] == [0, 2, 3]
    assert events[-1]["event"] == "done"


def test_a_gen_between_messages_runs_or_is_refused_before_any_request(name, endpoint, request):
    roles = [{"kind": "role_begin", "role": "user"}, TEXT, {"kind": "role_end", "role": "user"}, GEN]
    service = request.getfixturevalue(ENDPOINTS[name][0])
    before = len(service.requests) if isinstance(service, services.Service) else 0
    events = send(endpoint, "c9", root(roles)).until(1)
    if name not in CANNOT["gen outside of assistant"]:
        assert [e["event"] for e in events] == ["text", "text", "done"]
        return
    (error,) = [e for e in events if e["event"] == "error"]
    assert error["node"] == 3 and "must stand in assistant" in error["error"]["message"]
    assert not isinstance(service, services.Service) or len(service.requests) == before


def test_later_deltas_go_on_where_the_first_ended(endpoint):
    send(endpoint, "c5", root([TEXT, GEN], end=False), end=False).until(1)
    (done,) = send(endpoint, "c5", branch("r", [TEXT, GEN], first=2)).until(1)
    assert (done["event"], done["node"]) == ("done", 3)


def test_forks_of_one_delta_all_run(endpoint):
    forks = [branch(f"r.{i}", [TEXT, GEN], parent="r", at=1) for i in range(4)]
    events = send(endpoint, "c6", root([TEXT, GEN]), *forks).until(5)
    assert {e["branch"] for e in events if e["event"] == "done"} == {"r", "r.0", "r.1", "r.2", "r.3"}


@pytest.mark.parametrize(
    "wrong",
    [
        branch("r", [GEN], first=3, parent=None, at=0),
        branch("r.0", [GEN], parent="nobody", at=0),
        {**branch("r", [GEN], parent=None, at=0), "surprise": 1},
    ],
)
def test_a_malformed_delta_is_an_error_and_never_silence(endpoint, wrong):
    events = Events()
    try:
        endpoint.submit({"program": "c7", "branches": [wrong], "end": True}, events.take)
    except ValueError:
        return
    assert events.until(1)[-1]["event"] == "error"


def test_a_failed_gen_fails_every_later_node_that_expects_an_answer(endpoint):
    bad = {**GEN, "constraint": {"kind": "regex", "value": "(unclosed"}}
    roles = [{"kind": "role_begin", "role": "user"}, {"kind": "role_end", "role": "user"}]
    fork = branch("r.0", [TEXT, GEN], parent="r", at=2)
    before = branch("r.1", [TEXT, GEN], parent="r", at=1)
    events = send(endpoint, "c8", root([TEXT, bad, *roles, GEN]), fork, before).until(6)
    assert {(e["branch"], e["node"]) for e in events if e["event"] == "error"} == {
        ("r", 1),
        ("r", 2),
        ("r", 3),
        ("r", 4),
        ("r.0", 1),
    }
    assert [(e["branch"], e["node"]) for e in events if e["event"] == "done"] == [("r.1", 1)]


def test_cancelling_an_unknown_program_is_no_error(endpoint):
    endpoint.cancel("nobody")
    endpoint.cancel("nobody", ["r"])


def test_info_is_a_dict(endpoint):
    assert isinstance(endpoint.info(), dict)


def test_cancelling_settles_every_node(endpoint):
    events = send(endpoint, "c10", root([TEXT, {**GEN, "params": {"max_new_tokens": 400}}, GEN]))
    endpoint.cancel("c10")
    settled = [e for e in events.until(2) if e["event"] in ("done", "error")]
    assert [e["node"] for e in settled] == [1, 2]


def test_a_chat_program_runs_with_forks_and_messages(endpoint):
    @function
    def program(s: ProgramState):
        s += user("A story, please.") + assistant(gen("start", max_tokens=3))
        forks = s.fork(2)
        forks += user("And then?") + assistant(gen("next", max_tokens=3))
        forks.join()

    state = program.run(backend=endpoint, temperature=0)
    assert state.messages()[0] == {"role": "user", "content": "A story, please."}
    assert state["start"] in state.text() and len(state["next"]) == 2


def test_a_program_runs_with_forks_joins_and_selects(name, endpoint):
    @function
    def program(s: ProgramState):
        s += "A story: " + gen("start", max_tokens=3)
        forks = s.fork(3)
        forks += " Then " + gen("next", max_tokens=3)
        forks.join()
        s += select("mood", choices=["glad", "sad"])
        return s["next"]

    state = program.run(backend=endpoint, temperature=0)
    if name in CANNOT["select"]:
        assert len(state.ret_value) == 3
        with pytest.raises(ProgramError, match=r"select 'mood' at .*test_endpoints.py"):
            state.text()
        return
    assert state.text() == f"A story: {state['start']}{state['mood']}"
    assert len(state.ret_value) == 3 and state.error() is None
    assert state.usage()["completion_tokens"] >= 4


def test_what_the_endpoint_refuses_is_an_error_at_the_reader(endpoint):
    @function
    def program(s: ProgramState):
        s += "x" + gen("y", regex="(unclosed")

    with pytest.raises(ProgramError, match=r"gen 'y' at .*test_endpoints.py"):
        program.run(backend=endpoint).get_var("y", timeout=SECONDS)
