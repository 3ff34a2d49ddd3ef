"""RuntimeEndpoint on a server that knows only /generate: how it is found out, and the exact requests."""

import importlib.util
import json
import threading
from typing import Any, Literal

import pytest

import stemma
from stemma import ProgramState, RuntimeEndpoint, assistant, function, gen, select, user
from stemma.lang.errors import EndpointError, ProgramError, RequestError
from tests.interpreter import services
from tests.interpreter.services import hang_up, status

assert importlib.util.find_spec("requests")


@pytest.fixture
def service(start):
    return start(services.sglang)


@pytest.fixture
def connect(service):
    made: list[RuntimeEndpoint] = []

    def to(**options: Any) -> RuntimeEndpoint:
        made.append(RuntimeEndpoint(service.url, **options))
        return made[-1]

    yield to
    for endpoint in made:
        endpoint.close()


def asked(service) -> list[Any]:
    return [body for path, body in service.requests if path == "/generate"]


@function
def program(s: ProgramState):
    s += "Q: hi\nA:" + gen("a", 2, temperature=0.5, top_k=3, stop="\n", seed=9)
    s += " So" + gen("b", regex="[a-z ]+")


def test_the_server_is_found_to_know_no_graphs_once(service, connect):
    endpoint = connect()
    for _ in range(2):
        assert program.run(backend=endpoint).text() == "Q: hi\nA:one two Soone two three"
    paths = [path for path, _ in service.requests]
    assert paths == ["/v1/graph", "/get_model_info", *["/generate"] * 4]
    body = asked(service)[0]
    assert body.pop("rid").startswith("stemma-")
    assert body == {
        "text": "Q: hi\nA:",
        "sampling_params": {"max_new_tokens": 2, "temperature": 0.5, "top_k": 3, "stop": ["\n"], "sampling_seed": 9},
    }
    assert asked(service)[1]["text"] == "Q: hi\nA:one two So"
    assert asked(service)[1]["sampling_params"] == {"max_new_tokens": 128, "regex": "[a-z ]+"}


def test_a_server_that_knows_neither_keeps_its_404(start):
    endpoint = RuntimeEndpoint(start(services.openai).url)
    with pytest.raises(ProgramError, match="/v1/graph answered 404"):
        program.run(backend=endpoint)["a"]
    endpoint.close()


def test_protocol_generate_asks_for_no_graph_and_graph_falls_back_to_nothing(service, connect):
    program.run(backend=connect(protocol="generate")).sync()
    assert {path for path, _ in service.requests} == {"/generate"}
    with pytest.raises(ProgramError, match="/v1/graph answered 404"):
        program.run(backend=connect(protocol="graph"))["a"]
    with pytest.raises(RequestError, match="protocol must be"):
        connect(protocol="smoke signals")


def test_all_that_was_said_before_the_answer_arrives_in_order(service, connect):
    """Deltas that were on their way when the server turned out to know no graphs."""

    @function
    def many(s: ProgramState):
        for i in range(6):
            s += f"{i}" + gen(f"x{i}")
            s._run.flush()
        return s["x5"]

    service.reply = lambda body: "."
    assert many.run(backend=connect()).text() == "0.1.2.3.4.5."


def test_roles_need_markers(service, connect):
    chat = function(lambda s: s.append(user("hi") + assistant(gen("a"))))
    with pytest.raises(ProgramError, match=r"role_begin at .*its chat template is not known"):
        chat.run(backend=connect()).text()
    assert not asked(service)
    chat.run(backend=connect(chat_template_name="llama-3-instruct")).sync()
    assert asked(service)[0]["text"] == (
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    with pytest.raises(RequestError, match="chat_template must be one of"):
        connect(chat_template_name="unheard-of")


def test_a_stream_passes_on_what_is_new(service, connect):
    state = function(lambda s: s.append("q" + gen("a"))).run(backend=connect(), stream=True)
    assert list(state.text_iter("a")) == ["one", " two", " three"]
    assert asked(service)[0]["stream"] is True


def test_constraints_and_logprobs_have_sglangs_names(service, connect):
    @function
    def typed(s: ProgramState):
        s += "q" + gen("j", json_schema={"type": "integer"}) + gen("c", type=Literal["a.b", "c"])
        s += gen("l", 2, return_logprob=True, logprob_start_len=0, top_logprobs_num=2, token_ids_logprob=[5])

    service.reply = lambda body: "c"
    state = typed.run(backend=connect(), ignore_eos=True)
    state.sync()
    first, second, third = asked(service)
    assert json.loads(first["sampling_params"]["json_schema"]) == {"type": "integer"}
    assert second["sampling_params"]["regex"] == r"(a\.b|c)" and first["sampling_params"]["ignore_eos"] is True
    assert (third["return_logprob"], third["logprob_start_len"], third["top_logprobs_num"]) == (True, 0, 2)
    assert third["token_ids_logprob"] == [5]
    assert state.get_meta_info("l")["output_token_logprobs"] == [[-0.5, services._id("c"), None]]


def test_select_scores_all_choices_in_one_batch(service, connect):
    service.likes = [" yes", " indeed"]
    state = function(lambda s: s.append("a b c d e:" + select("x", [" no", " yes", " yes indeed"]))).run(
        backend=connect()
    )
    meta = state.get_meta_info("x")
    primed, batch = asked(service)
    assert primed["text"] == "a b c d e:" and primed["sampling_params"]["max_new_tokens"] == 0
    assert batch["text"] == ["a b c d e:", "a b c d e: no", "a b c d e: yes", "a b c d e: yes indeed"]
    assert batch["return_logprob"] is True and batch["logprob_start_len"] == 1
    assert len(batch["rid"]) == 4
    assert state["x"] == " yes" and meta["scores"] == pytest.approx([-3.0, -0.1, -0.1])
    assert [len(row) for row in meta["input_token_logprobs"]] == [1, 1, 2]
    assert sum(meta["probabilities"]) == pytest.approx(1.0)


def test_a_select_with_a_temperature_draws(service, connect):
    service.likes = [" yes"]
    draw = function(lambda s, seed: s.append("Is it:" + select("x", [" no", " yes"], temperature=2.0, seed=seed))).run
    drawn = [draw(seed, backend=connect())["x"] for seed in range(16)]
    assert set(drawn) == {" no", " yes"} and drawn.count(" yes") > 8
    assert draw(3, backend=connect())["x"] == drawn[3]


def test_select_heals_the_border_and_weighs_against_no_context(service, connect):
    service.likes = [" e:yes"]  # the choice melts into the last word before it
    method = stemma.unconditional_likelihood_normalized
    state = function(lambda s: s.append("a e:" + select("x", ["no", "yes"], choices_method=method))).run(
        backend=connect()
    )
    assert state["x"] == "yes"
    ids = asked(service)[2]["input_ids"]
    assert ids == [[services._id(" e:no")], [services._id(" e:yes")]]


def test_usage_counts_what_the_server_told(connect):
    state = function(lambda s: s.append("a b" + gen("x", 2))).run(backend=connect())
    meta = state.get_meta_info("x")
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (2, 2)
    assert meta["finish_reason"] == {"type": "length", "length": 2} and meta["retries"] == 0


def test_cancelling_aborts_the_request_on_the_server(service, connect):
    release = threading.Event()
    endpoint = connect(protocol="generate")
    service.faults.append(lambda handler: release.wait(5) and handler.answer(200, {"text": "", "meta_info": {}}))
    state = function(lambda s: s.append("q" + gen("a"))).run(backend=endpoint)
    service.wait_for(1)
    state.cancel()
    with pytest.raises(ProgramError, match="cancelled"):
        state["a"]
    service.wait_for(2)
    assert service.requests[1] == ("/abort_request", {"rid": service.bodies[0]["rid"]})
    release.set()


@pytest.mark.parametrize("fault", [status(429, retry_after="0"), status(503, retry_after="0")])
@pytest.mark.parametrize("protocol", ["generate", "graph"])
def test_a_busy_server_is_asked_again(service, connect, fault, protocol, serve):
    service.faults.append(fault)
    if protocol == "generate":
        state = function(lambda s: s.append("q" + gen("a"))).run(backend=connect(protocol=protocol))
        assert state.get_meta_info("a")["retries"] == 1
        return
    answered = []

    def busy(handler):
        if handler.path != "/v1/graph" or answered:
            return False
        answered.append(True)
        handler.send_response(429)
        handler.send_header("Retry-After", "0")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    endpoint = RuntimeEndpoint(serve(handle=busy).url)
    state = function(lambda s: s.append("q" + gen("a"))).run(backend=endpoint)
    assert state["a"] == "text" and state.get_meta_info("a")["retries"] == 1
    endpoint.close()


def test_closing_ends_the_wait_for_a_busy_server(serve):
    def busy(handler):
        handler.send_response(503)
        handler.send_header("Retry-After", "30")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    server = serve(handle=busy)
    endpoint = RuntimeEndpoint(server.url)
    state = function(lambda s: s.append("q" + gen("a"))).run(backend=endpoint)
    server.wait_for("/v1/graph")
    endpoint.close()
    with pytest.raises(ProgramError, match="gen 'a' at"):
        state.get_var("a", timeout=5)
    assert len(server.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "cause", "message"),
    [
        (status(400, "regex is odd"), RequestError, "answered 400: regex is odd"),
        (status(401, "no key"), EndpointError, "answered 401: no key"),
        (hang_up, EndpointError, "Connection aborted"),
        (lambda h: h.answer(200, {"text": "", "meta_info": {"finish_reason": {"type": "abort", "message": "full"}}}),
         EndpointError, "aborted: full|ended the stream|JSON"),
    ],
)  # fmt: skip
def test_other_failures_are_errors_at_the_reader(service, connect, fault, cause, message, stream):
    service.faults.append(fault)
    endpoint = connect(protocol="generate")
    with pytest.raises(ProgramError, match=rf"gen 'a' at .*test_generate_endpoint.py:\d+.*(?:{message})") as caught:
        function(lambda s: s.append("q" + gen("a"))).run(backend=endpoint, stream=stream)["a"]
    assert type(caught.value.__cause__) is cause and len(service.requests) == 1


def test_many_programs_use_few_threads(service, connect):
    endpoint = connect(protocol="generate", max_in_flight=4)
    before = threading.active_count()
    states = function(lambda s, i: s.append("q" * i + gen("a"))).run_batch(
        [(i + 1,) for i in range(40)], backend=endpoint, num_threads=2
    )
    assert len(list(states)) == 40 and service.most_running <= 4
    assert threading.active_count() <= before + 20  # the stand-in's own included


def test_the_scores_of_a_real_server_are_those_of_its_graph_route(server):
    choices = ["yes", "no", "maybe so", "maybe"]
    scored = function(lambda s: s.append("Is it so? Answer:" + select("x", choices))).run
    graph, plain = RuntimeEndpoint(server), RuntimeEndpoint(server, protocol="generate")
    by_graph, by_generate = scored(backend=graph), scored(backend=plain)
    assert by_graph["x"] == by_generate["x"]
    a, b = by_graph.get_meta_info("x")["scores"], by_generate.get_meta_info("x")["scores"]
    assert a == pytest.approx(b, abs=1e-4)
    graph.close()
    plain.close()
