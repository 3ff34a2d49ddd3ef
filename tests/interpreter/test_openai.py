"""OpenAI chat and completions, asked by the real client: the exact requests, answers, refusals and faults."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any, Literal

import pytest

import stemma
from stemma import Gemini, OpenAI, ProgramState, VertexAI, assistant, function, gen, select, system, user
from stemma.lang.errors import ConstraintError, EndpointError, ProgramError, RequestError
from tests.interpreter import services
from tests.interpreter.characters import characters

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


# --- chat


def test_a_chat_request_carries_the_messages_and_the_parameters(service, connect):
    @function
    def program(s: ProgramState):
        s += system("Be brief.") + user("hi") + assistant(gen("a", max_tokens=9))
        s += user("more") + assistant(
            gen("b", 5, stop=["x", "y"], temperature=0.5, top_p=0.9, frequency_penalty=1, presence_penalty=-1, seed=7)
        )

    service.reply = lambda body: "fine"
    state = program.run(backend=connect())
    state.sync()
    assert service.requests[0] == (
        "/v1/chat/completions",
        {
            "model": "m",
            "max_tokens": 9,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        },
    )
    assert service.bodies[1] == {
        "model": "m",
        "max_tokens": 5,
        "stop": ["x", "y"],
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 1.0,
        "presence_penalty": -1.0,
        "seed": 7,
        "messages": [
            *service.bodies[0]["messages"],
            {"role": "assistant", "content": "fine"},
            {"role": "user", "content": "more"},
        ],
    }
    assert state.messages()[-1] == {"role": "assistant", "content": "fine"}


def test_usage_and_the_finish_reason_reach_meta(service, connect):
    service.reply = lambda body: "one two"
    endpoint = connect()
    state = ask.run(backend=endpoint, max_new_tokens=1)
    meta = state.get_meta_info("a")
    assert meta["finish_reason"] == {"type": "length", "length": 1}
    assert (meta["completion_tokens"], meta["cached_tokens"], meta["retries"]) == (1, 1, 0)
    assert meta["computed_tokens"] == meta["prompt_tokens"] and meta["id"] == "chat-1" and meta["e2e_latency"] > 0
    assert endpoint.token_usage.completion_tokens == 1
    endpoint.token_usage.reset()
    assert endpoint.token_usage.prompt_tokens == 0


def test_a_stream_comes_in_pieces_with_usage_at_its_end(service, connect):
    state = ask.run(backend=connect(), stream=True)
    assert list(state.text_iter("a")) == ["one", " two", " three"]
    assert state.get_meta_info("a")["completion_tokens"] == 3 and state.get_meta_info("a")["ttft"] > 0
    assert service.bodies[0]["stream"] is True and service.bodies[0]["stream_options"] == {"include_usage": True}


def test_a_program_without_roles_is_one_message_of_the_user(service, connect):
    state = function(lambda s: s.append("2+2=" + gen("x") + ". So" + gen("y"))).run(backend=connect())
    state.sync()
    assert [b["messages"] for b in service.bodies] == [
        [{"role": "user", "content": "2+2="}],
        [{"role": "user", "content": "2+2=one two three. So"}],
    ]


def test_a_seed_of_the_run_differs_between_forks(service, connect):
    @function
    def program(s: ProgramState):
        s += user("q")
        forks = s.fork(2)
        forks += assistant(gen("x"))
        forks.join()

    program.run(backend=connect(), seed=1).sync()
    assert len({body["seed"] for body in service.bodies}) == 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda: user("q") + assistant("A: " + gen("x")), "must be the first thing in assistant"),
        (lambda: user("q") + assistant(gen("x") + gen("y")), "must be the first thing in assistant"),
        (lambda: user("q" + gen("x")), r"this gen is in user\("),
        (lambda: user("q") + gen("x"), r"must stand in assistant\("),
        (lambda: "text" + user("q") + assistant(gen("x")), "text outside of system"),
        (lambda: user("q") + assistant(gen("x", regex="[ab]+")), "cannot enforce this regex constraint"),
        (lambda: user("q") + assistant(gen("x", ebnf='root ::= "a"')), "cannot enforce a ebnf constraint"),
        (lambda: user("q") + assistant(gen("x", top_k=5)), "does not take top_k=5"),
        (lambda: user("q") + assistant(gen("x", min_tokens=5)), "does not take min_new_tokens=5"),
        (lambda: user("q") + assistant(gen("x", return_logprob=True, logprob_start_len=0)), "of the prompt"),
        (lambda: gen("x"), "prompt is empty"),
    ],
)
def test_what_a_chat_model_cannot_do_is_an_error_before_any_request(service, connect, said, message):
    with pytest.raises(ProgramError, match=rf"gen '[xy]' at .*test_openai.py:\d+.*{message}") as caught:
        function(lambda s: s.append(said())).run(backend=connect()).sync()
    assert isinstance(caught.value.__cause__, RequestError)
    assert not [body for body in service.bodies if len(body["messages"]) != 1]


def test_white_space_outside_of_roles_is_left_out(service, connect):
    function(lambda s: s.append(["\n", user("q"), "\n", assistant(gen("x"))])).run(backend=connect()).sync()
    assert service.bodies[0]["messages"] == [{"role": "user", "content": "q"}]


def test_prefill_sends_the_beginning_of_the_answer(service, connect):
    endpoint = connect(prefill=True, extra_body={"continue_final_message": True})
    state = function(lambda s: s.append(user("q") + assistant("A: " + gen("x")))).run(backend=endpoint)
    assert state.messages()[1]["content"] == "A: one two three"
    assert service.bodies[0]["messages"][-1] == {"role": "assistant", "content": "A: "}
    assert service.bodies[0]["continue_final_message"] is True


def test_extra_params_go_into_the_body_for_servers_that_take_them(service, connect):
    endpoint = connect(extra_params=["regex", "top_k", "min_tokens"])
    node = gen("x", regex="[ab]+", top_k=5, min_tokens=2)
    function(lambda s: s.append(user("q") + assistant(node))).run(backend=endpoint).sync()
    assert {k: service.bodies[0][k] for k in ("regex", "top_k", "min_tokens")} == {
        "regex": "[ab]+",
        "top_k": 5,
        "min_tokens": 2,
    }


def test_logprobs_are_asked_for_and_brought_back(service, connect):
    node = gen("x", 2, return_logprob=True, top_logprobs_num=3)
    state = function(lambda s: s.append(user("q") + assistant(node))).run(backend=connect())
    meta = state.get_meta_info("x")
    assert (service.bodies[0]["logprobs"], service.bodies[0]["top_logprobs"]) == (True, 3)
    assert meta["output_token_logprobs"] == [[-0.5, None, "one"], [-0.5, None, " two"]]
    assert meta["output_top_logprobs"][0] == [[-2.0, None, "x"]] * 3


def test_max_tokens_is_left_out_when_there_is_no_limit(service, connect):
    ask.run(backend=connect(), max_new_tokens=None).sync()
    assert "max_tokens" not in service.bodies[0]
    ask.run(backend=connect(max_tokens_field="max_completion_tokens")).sync()
    assert service.bodies[1]["max_completion_tokens"] == 128


def test_zero_tokens_need_no_request(service, connect):
    state = ask.run(backend=connect(), max_new_tokens=0)
    assert state["a"] == "" and not service.requests


# --- JSON schemas and types


def test_a_json_schema_is_sent_closed_and_strict(service, connect):
    tag = {"type": "object", "properties": {"t": {"type": "integer"}}}
    fields = {"name": {"type": "string"}, "tags": {"type": "array", "items": tag}}
    schema = {"type": "object", "properties": fields, "required": ["name"]}
    service.reply = lambda body: '{"name":"Ada","tags":[]}'
    node = gen("x", json_schema=schema)
    state = function(lambda s: s.append(user("q") + assistant(node))).run(backend=connect())
    assert json.loads(state["x"]) == {"name": "Ada", "tags": []}
    sent = service.bodies[0]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["strict"] is True
    top = sent["json_schema"]["schema"]
    assert top["required"] == ["name", "tags"] and top["additionalProperties"] is False
    assert top["properties"]["tags"]["items"]["additionalProperties"] is False


def test_a_schema_goes_as_it_is_without_strict(service, connect):
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    service.reply = lambda body: "{}"
    node = gen("x", json_schema=schema)
    function(lambda s: s.append(user("q") + assistant(node))).run(backend=connect(strict=False)).sync()
    assert service.bodies[0]["response_format"]["json_schema"] == {"name": "answer", "schema": schema, "strict": False}


@pytest.mark.parametrize(
    ("type", "answer", "value", "schema"),
    [
        (int, 42, 42, {"type": "integer"}),
        (float, 2.5, 2.5, {"type": "number"}),
        (bool, True, True, {"type": "boolean"}),
        (str, 'a "b"', 'a "b"', {"type": "string"}),
        (Literal["yes", "no"], "no", "no", {"type": "string", "enum": ["yes", "no"]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_plain_types_travel_in_a_field_of_an_object(service, connect, type, answer, value, schema, stream):
    service.reply = lambda body: json.dumps({"value": answer}, separators=(",", ":"))
    state = function(lambda s: s.append(user("q") + assistant(gen("x", type=type)))).run(
        backend=connect(), stream=stream
    )
    assert state["x"] == value
    assert "".join(state.text_iter("x")) == state.raw("x")
    assert service.bodies[0]["response_format"]["json_schema"]["schema"]["properties"] == {"value": schema}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"value":', "not the JSON that was asked for"),
        ('{"other":1}', "not the JSON"),
        ('{"value":1.5}', "not of the"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_an_error(service, connect, text, message):
    service.reply = lambda body: text
    with pytest.raises(ProgramError, match=message):
        function(lambda s: s.append(user("q") + assistant(gen("x", type=int)))).run(backend=connect())["x"]


def test_a_refusal_is_an_error(service, connect):
    def refuse(handler):
        message = {"role": "assistant", "content": None, "refusal": "I will not"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        handler.answer(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})

    service.faults.append(refuse)
    with pytest.raises(ProgramError, match="the model refused: I will not"):
        ask.run(backend=connect())["a"]


# --- completions


def test_a_completion_carries_the_text_so_far(service, connect):
    @function
    def program(s: ProgramState):
        s += "Q: hi\nA:" + gen("a", 4, stop="\n")
        s += "\nQ: more\nA:" + gen("b", 4)

    service.reply = lambda body: " fine\nQ: x"
    program.run(backend=connect("gpt-3.5-turbo-instruct")).sync()
    assert service.requests[0] == (
        "/v1/completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": "Q: hi\nA:", "max_tokens": 4, "stop": ["\n"]},
    )
    assert service.bodies[1]["prompt"] == "Q: hi\nA: fine\nQ: more\nA:"


def test_a_completion_streams_and_has_logprobs(service, connect):
    node = gen("x", return_logprob=True, top_logprobs_num=1)
    state = function(lambda s: s.append("q" + node)).run(backend=connect("m", False), stream=True)
    assert list(state.text_iter("x")) == ["one", " two", " three"]
    assert service.bodies[0]["logprobs"] == 1
    assert state.get_meta_info("x")["output_top_logprobs"][0] == [[-2.0, None, "x"]]


def test_roles_on_a_completion_model_need_markers(service, connect):
    with pytest.raises(ProgramError, match="its chat template is not known: give chat_template="):
        ask.run(backend=connect("m", False)).sync()
    assert not service.requests
    ask.run(backend=connect("m", False, {"system": ("<s>", "</s>"), "user": ("<u>", "</u>"), "assistant": ("<a>", "")}))
    service.wait_for(1)
    assert service.bodies[0]["prompt"] == "<s>Be brief.</s><u>hi</u><a>"
    state = ask.run(backend=connect("m", False, "chatml"))
    assert state.text().startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi")
    with pytest.raises(RequestError, match="chat_template must be one of plain, chatml"):
        connect("m", False, "nonsense")


def test_a_completion_needs_a_limit_on_openai_itself():
    endpoint = OpenAI("gpt-3.5-turbo-instruct", api_key="k")
    with pytest.raises(ProgramError, match="needs a number for max_tokens"):
        function(lambda s: s.append("q" + gen("x"))).run(backend=endpoint, max_new_tokens=None)["x"]
    assert endpoint.base_url == "https://api.openai.com/v1"
    endpoint.close()


# --- select


def test_select_by_logit_bias_walks_the_tokens(service, connect):
    endpoint = connect("m", False, encoding=characters())
    service.likes = ["b", "z"]
    state = function(lambda s: s.append("q:" + select("x", ["axe", "bay", "baz"]))).run(backend=endpoint)
    assert state["x"] == "baz" and state.get_meta_info("x")["scores"] == [0, 2, 3]
    assert [b["logit_bias"] for b in service.bodies] == [{"97": 100, "98": 100}, {"121": 100, "122": 100}]
    assert [b["prompt"] for b in service.bodies] == [[113, 58], [113, 58, 98, 97]]
    assert all(b["max_tokens"] == 1 and b["temperature"] == 0 for b in service.bodies)
    assert state.get_meta_info("x")["completion_tokens"] == 2 and state.text() == "q:baz"


def test_select_by_echo_scores_every_choice_in_one_request(service, connect):
    service.likes = ["yes", "indeed"]
    program = function(lambda s: s.append("So:" + select("x", [" no", " yes", " yes indeed"])))
    state = program.run(backend=connect("m", False))
    assert state["x"] == " yes" and state.get_meta_info("x")["scores"] == pytest.approx([-3.0, -0.1, -0.1])
    (body,) = service.bodies
    assert body["prompt"] == ["So: no", "So: yes", "So: yes indeed"] and body["echo"] and body["max_tokens"] == 0
    method = stemma.unconditional_likelihood_normalized
    free = function(lambda s: s.append("So:" + select("x", [" no", " yes"], choices_method=method)))
    free.run(backend=connect("m", False)).sync()
    assert service.bodies[2]["prompt"] == [" no", " yes"]


def test_select_on_a_chat_model_decides_by_the_first_token(service, connect):
    service.likes = ["n"]
    endpoint = connect(encoding=characters())
    program = function(lambda s: s.append(user("q") + assistant(select("x", ["yes", "no"]))))
    assert program.run(backend=endpoint)["x"] == "no"
    assert service.bodies[0]["logit_bias"] == {"110": 100, "121": 100}
    assert service.bodies[0]["messages"] == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("chat", "options", "choices", "message"),
    [
        (True, {"encoding": "characters"}, ["no", "never"], "begin with the same token"),
        (False, {"encoding": "characters"}, ["no", "north"], "begins with the other"),
        (True, {}, ["yes", "no"], "needs the model's tokens: give encoding="),
        (False, {"encoding": "no-such-encoding"}, ["yes", "no"], "needs the model's tokens"),
    ],
)
def test_choices_that_cannot_be_told_apart_are_refused_before_any_request(
    service, connect, chat, options, choices, message
):
    given = {"encoding": characters()} if options.get("encoding") == "characters" else options
    said = (lambda: user("q") + assistant(select("x", choices))) if chat else (lambda: "q" + select("x", choices))
    with pytest.raises(ProgramError, match=rf"select 'x' at .*{message}"):
        function(lambda s: s.append(said())).run(backend=connect("m", chat, **given))["x"]
    assert not service.requests


def test_loading_the_encoding_holds_nobody_up_and_keeps_the_order(service, connect, monkeypatch):
    release = threading.Event()
    endpoint = connect("m", False, encoding="slow")
    monkeypatch.setattr(
        endpoint, "_load_encoding", lambda: release.wait(5) and setattr(endpoint, "_encoding", characters())
    )
    service.likes = ["b"]

    @function
    def program(s: ProgramState):
        s += "q:" + select("x", ["a", "b"])
        s._run.flush()
        s += " so" + gen("y")
        s._run.flush()

    started = time.monotonic()
    kept, cancelled = program.run(backend=endpoint), program.run(backend=endpoint)
    cancelled.cancel()
    assert time.monotonic() - started < 4 and not service.requests
    release.set()
    assert kept.text() == "q:b soone two three" and len(service.requests) == 2


def test_a_token_that_was_not_offered_is_an_error(service, connect):
    service.likes = []
    service.faults.append(
        lambda h: h.answer(200, {"id": "1", "object": "text_completion", "created": 1, "model": "m",
                                 "choices": [{"index": 0, "text": "q", "finish_reason": "length"}]})
    )  # fmt: skip
    endpoint = connect("m", False, encoding=characters())
    with pytest.raises(ProgramError, match="none of the tokens it was limited to"):
        function(lambda s: s.append("q:" + select("x", ["a", "b"]))).run(backend=endpoint)["x"]


# --- options, keys, imports


def test_a_missing_key_is_an_error_that_says_so(monkeypatch):
    for name in ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "GCP_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        OpenAI("gpt-4o")
    with pytest.raises(EndpointError, match="GEMINI_API_KEY"):
        Gemini("gemini-2.0-flash")
    with pytest.raises(EndpointError, match="GCP_PROJECT_ID"):
        VertexAI("gemini-2.0-flash", api_key="t")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_params": ["topk"]}, "extra_params"),
        ({"select_by": "luck"}, "select_by"),
        ({"max_retries": -1}, "retries"),
    ],
)
def test_options_are_checked(connect, options, message):
    with pytest.raises(RequestError, match=message):
        connect(**options)


def test_gemini_and_vertex_ai_speak_the_same_api(service):
    gemini = Gemini("gemini-x", api_key="g", base_url=f"{service.url}/v1")
    vertex = VertexAI("gemini-x", api_key="v", project="p", base_url=f"{service.url}/v1")
    for endpoint in (gemini, vertex):
        ask.run(backend=endpoint).sync()
        endpoint.close()
    assert [b["model"] for b in service.bodies] == ["gemini-x", "google/gemini-x"]
    assert [h["authorization"] for h in service.headers] == ["Bearer g", "Bearer v"]
    url = VertexAI("a/b", api_key="v", project="p", location="europe-west1").base_url
    assert url == (
        "https://europe-west1-aiplatform.googleapis.com/v1/projects/p/locations/europe-west1/endpoints/openapi"
    )
    with pytest.raises(RequestError, match="safety_settings"):
        VertexAI("x", [1], api_key="v", project="p")


def test_azure_is_asked_by_deployment(service):
    service.routes["/openai/deployments/m/chat/completions?api-version=v1"] = service.routes["/v1/chat/completions"]
    endpoint = OpenAI("m", is_azure=True, api_key="k", base_url=service.url, api_version="v1")
    assert ask.run(backend=endpoint)["a"] == "one two three"
    assert service.headers[0]["api-key"] == "k" and service.bodies[0]["max_completion_tokens"] == 128
    endpoint.close()


def test_info_asks_nothing(service, connect):
    info = connect().info()
    assert info["model"] == "m" and info["chat"] and "json_schema" in info["constraints"] and not service.requests


def test_a_forked_process_asks_on_connections_of_its_own(service, connect):
    code = f"""
import os, sys
from stemma import OpenAI, assistant, function, gen, user
endpoint = OpenAI("m", base_url="{service.url}/v1")
ask = function(lambda s: s.append(user("q") + assistant(gen("a"))))
assert ask.run(backend=endpoint)["a"] == "one two three"
child = os.fork()
if child == 0:
    os._exit(0 if ask.run(backend=endpoint).get_var("a", 10) == "one two three" else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60, check=False, cwd=os.getcwd())
    assert done.returncode == 0 and len(service.requests) == 2


def test_the_client_package_is_loaded_only_by_the_endpoint():
    code = "import sys, stemma; stemma.OpenAI, stemma.Anthropic, stemma.LiteLLM, stemma.Gemini; " + (
        "found = {'openai', 'anthropic', 'litellm', 'tiktoken', 'httpx', 'requests'} & set(sys.modules); "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd())


def test_a_missing_package_is_an_error_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EndpointError, match=r"pip install 'stemma-lang\[hosted\]'"):
        OpenAI("m")


def test_constraint_errors_keep_their_type(connect):
    with pytest.raises(ProgramError) as caught:
        function(lambda s: s.append(user("q") + assistant(gen("x", regex="a+")))).run(backend=connect())["x"]
    assert isinstance(caught.value.__cause__, ConstraintError)
