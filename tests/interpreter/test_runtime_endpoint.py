"""Programs over HTTP: order, failures, cancelling. The server is a few lines on 127.0.0.1."""

import json
import socket
import threading
from typing import Any

import pytest

from stemma import ProgramState, RuntimeEndpoint, ScriptedEndpoint, function, gen, user
from stemma.lang.errors import CancelledError, EndpointError, ProgramError, RequestError


@function
def ask(s: ProgramState):
    s += user("hi") + gen("a")
    if s["a"]:
        s += gen("b")
    return s["b"]


@pytest.fixture
def connect():
    made: list[RuntimeEndpoint] = []

    def to(url: str, **options: Any) -> RuntimeEndpoint:
        made.append(RuntimeEndpoint(url, **options))
        return made[-1]

    yield to
    for endpoint in made:
        endpoint.close()


def echo(prompt, node):
    return f"<{len(prompt)}>"


def test_a_program_runs_over_http_and_streams(serve, connect):
    server = serve(ScriptedEndpoint(lambda prompt, node: "one two"))
    endpoint = connect(server.url + "/", api_key="secret")
    state = ask.run(backend=endpoint, stream=True)
    assert "".join(state.text_iter()) == "user: hi\none twoone two"
    assert state.ret_value == "one two"
    assert all(headers["Authorization"] == "Bearer secret" for *_, headers in server.requests)
    assert {path for _, path, *_ in server.requests} == {"/v1/graph"}


def test_deltas_of_a_program_arrive_in_order_and_names_stay_here(serve, connect):
    server = serve(ScriptedEndpoint(echo))

    @function
    def program(s: ProgramState):
        for i in range(10):
            s += f"{i}" + gen(f"x{i}")
            s._run.flush()
        return s["x9"]

    program.run(backend=connect(server.url)).sync(5)
    bodies = [body for _, _, body, _ in server.requests]
    assert [b["first"] for body in bodies for b in body["branches"]] == list(range(0, 20, 2))
    assert all("name" not in node for body in bodies for b in body["branches"] for node in b["nodes"])


def test_a_batch_of_more_programs_than_threads_completes(serve, connect):
    server = serve(ScriptedEndpoint(echo))
    states = function(lambda s, i: s.append("x" * i + gen("a"))).run_batch(
        [(i,) for i in range(80)], backend=connect(server.url)
    )
    assert [state["a"] for state in states] == [f"<{i}>" for i in range(80)]


def test_the_next_delta_goes_out_while_an_earlier_one_still_streams(serve, connect):
    second = threading.Event()

    def hold(handler):
        if handler.path != "/v1/graph":
            return False
        (branch,) = handler.body["branches"]
        if branch["first"] == 0:
            handler.begin_stream()
            assert second.wait(5)
        else:
            second.set()
            handler.begin_stream()
        at = {"branch": "r", "node": branch["first"]}
        handler.chunk(json.dumps({"event": "done", **at, "text": "t", "ids": [], "meta": {}}).encode())
        handler.chunk(b"")
        return True

    @function
    def program(s: ProgramState):
        s += gen("a")
        s._run.flush()
        s += gen("b")

    assert program.run(backend=connect(serve(handle=hold).url)).text(5) == "tt"


def test_no_server_is_an_error_at_the_reader(connect):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    endpoint = connect(url)
    with pytest.raises(ProgramError, match=r"127.0.0.1.*refused") as caught:
        ask.run(backend=endpoint)
    assert isinstance(caught.value.__cause__, EndpointError)
    with pytest.raises(EndpointError, match=r"127.0.0.1"):
        endpoint.info()


@pytest.mark.parametrize(
    ("status", "body", "cause", "message"),
    [
        (400, {"error": {"message": "top_p is odd", "type": "RequestError", "param": "top_p"}}, RequestError, "top_p"),
        (500, {"error": {"message": "engine died"}}, EndpointError, "answered 500: engine died"),
        (503, b"<html>busy</html>", EndpointError, "answered 503: <html>busy"),
        (404, {"detail": "Not Found"}, EndpointError, "answered 404"),
        (401, {"error": "no key"}, EndpointError, "answered 401: no key"),
    ],
)
def test_an_http_error_is_an_error_at_the_reader(serve, connect, status, body, cause, message):
    server = serve(handle=lambda handler: handler.answer(status, body) or True)
    with pytest.raises(ProgramError, match=message) as caught:
        ask.run(backend=connect(server.url))
    assert type(caught.value.__cause__) is cause


def stream_of(*chunks: bytes, end: bool = True):
    def handle(handler):
        handler.begin_stream()
        for chunk in chunks:
            handler.chunk(chunk)
        if end:
            handler.chunk(b"")
        handler.close_connection = True
        return True

    return handle


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (stream_of(), "ended the answer before all nodes were done"),
        (stream_of(end=False), "127.0.0.1.*Error"),
        (stream_of(b"not json\n"), "JSONDecodeError"),
        (stream_of(b'{"event":"error","error":{"type":"EngineDeadError","message":"gone"}}\n'), "gone"),
    ],
)
def test_a_broken_answer_is_an_error_at_the_reader(serve, connect, handle, message):
    with pytest.raises(ProgramError, match=message):
        ask.run(backend=connect(serve(handle=handle).url))


def test_a_role_marker_that_is_never_told_fails_only_those_who_read_the_text(serve, connect):
    done = {"event": "done", "branch": "r", "node": 1, "text": "hi", "ids": [], "meta": {}}
    server = serve(handle=stream_of(json.dumps(done).encode()))
    state = function(lambda s: s.append(user(gen("a")))).run(backend=connect(server.url))
    assert state["a"] == "hi" and state.messages() == [{"role": "user", "content": "hi"}]
    assert state.error() is None
    with pytest.raises(ProgramError, match=r"role_begin at .*: the endpoint did not tell the text"):
        state.text()


def test_a_server_that_says_nothing_is_given_up(serve, connect):
    release = threading.Event()
    server = serve(handle=lambda handler: release.wait(5))
    with pytest.raises(ProgramError, match=r"timed out|Timeout"):
        ask.run(backend=connect(server.url, timeout=0.05))
    release.set()


def test_cancelling_tells_the_server_and_wakes_the_readers(serve, connect):
    release = threading.Event()

    def hold(handler):
        if handler.path != "/v1/graph":
            return False
        handler.begin_stream()
        release.wait(5)
        handler.chunk(b"")
        return True

    server = serve(handle=hold)
    state = function(lambda s: s.append(gen("a"))).run(backend=connect(server.url))
    delta = server.wait_for("/v1/graph")
    state.cancel()
    with pytest.raises(ProgramError, match="cancelled") as caught:
        state["a"]
    assert isinstance(caught.value.__cause__, CancelledError)
    assert server.wait_for("/v1/graph/cancel") == {"program": delta["program"]}
    release.set()


def test_closing_the_endpoint_fails_what_is_unfinished(serve, connect):
    release = threading.Event()
    server = serve(handle=lambda handler: handler.begin_stream() or release.wait(5))
    endpoint = connect(server.url)
    state = function(lambda s: s.append(gen("a"))).run(backend=endpoint)
    server.wait_for("/v1/graph")
    endpoint.close()
    endpoint.close()
    release.set()
    with pytest.raises(ProgramError, match="a' at"):
        state.get_var("a", timeout=5)
    with pytest.raises(ProgramError, match="is closed"):
        ask.run(backend=endpoint)


def test_info_and_flush_cache_ask_the_server(serve, connect):
    server = serve()
    endpoint = connect(server.url)
    assert endpoint.info()["model"] == "scripted"
    endpoint.flush_cache()
    assert [(method, path) for method, path, *_ in server.requests] == [
        ("GET", "/get_model_info"),
        ("POST", "/flush_cache"),
    ]


def test_a_url_without_a_scheme_is_an_error():
    with pytest.raises(RequestError, match="base_url must begin with http"):
        RuntimeEndpoint("localhost:30000")
