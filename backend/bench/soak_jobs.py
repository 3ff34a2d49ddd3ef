"""What the good clients of `stemma bench soak` do: programs and requests that have an answer.

A job returns it as JSON-ready data that must equal what the same job returned on a quiet server.
"""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

import stemma
from stemma.lang.errors import EndpointError, EngineDeadError, StemmaError

VARIANTS = 5  # of each job that has an answer
ENGINE_GONE = (500, 503)


class Refused(Exception):
    """The server said no: status and message. 429 is an answer too, if it says when to come again."""

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(f"{status}: {message[:300]}")
        self.status, self.retry_after = status, retry_after


class Wrong(Exception):
    """The server did something that it must not do."""


@dataclass
class Client:
    """One client: a connection pool, an endpoint for programs, and how long anything may take."""

    url: str
    bound: float  # seconds
    model: str
    vanished: list[str] = field(default_factory=list)  # programs that were left without an end
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.endpoint = stemma.RuntimeEndpoint(self.url, timeout=self.bound, max_retries=0)
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        self.address = (host.strip("[]"), int(port))

    def close(self) -> None:
        self.endpoint.close()
        self.session.close()

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        """An answer of status 200. Raises Refused."""
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        response = self.session.post(self.url + path, timeout=self.bound, **given, **options)
        if response.status_code != 200:
            with response:
                raise Refused(response.status_code, response.text, response.headers.get("retry-after"))
        return response

    def lines(self, path: str, body: Any) -> list[Any]:
        """The events of a stream. Raises Refused for an error among them, Wrong for one without an end."""
        with self.post(path, body, stream=True) as response:
            sse = response.headers["content-type"].startswith("text/event-stream")
            found: list[Any] = []
            done = not sse
            for raw in response.iter_lines():
                if not raw:
                    continue
                text = raw.decode().removeprefix("data: ")
                if text == "[DONE]":
                    done = True
                    continue
                event = json.loads(text)
                found.append(event)
                error = event.get("error") if isinstance(event, dict) else None
                if error:
                    raise Refused(error.get("status") or error.get("code") or status_of(error), error["message"])
        if not done:
            raise Wrong(f"a stream from {path} ended without [DONE]")
        return found

    def socket(self, receive_buffer: int | None = None) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET)
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(self.bound)
        made.connect(self.address)
        return made


def status_of(error: dict[str, Any]) -> int:
    """The status of an error object that has none."""
    return {"EngineDeadError": 500, "DeadlineError": 408, "CancelledError": 499}.get(error.get("type", ""), 400)


# Programs through the Python client


@stemma.function
def forks(s: Any, topic: str) -> None:
    s += f"Question: what is {topic}?\nAnswer: " + stemma.gen("first", max_tokens=12, temperature=0)
    branches = s.fork(3)
    for i, branch in enumerate(branches):
        branch += f"\nReason {i + 1}: " + stemma.gen("reason", max_tokens=8, temperature=0)
    s += "\nIn short:" + "".join(branch["reason"] for branch in branches) + "\n"
    s += "Is it so? " + stemma.select("verdict", ["yes", "no", "maybe"])
    s += " since " + stemma.gen("since", max_tokens=6, stop="\n", temperature=0)


@stemma.function
def form(s: Any, topic: str) -> None:
    s += f"Data about {topic}: name " + stemma.gen("name", regex="[A-Z][a-z]{2,8}", max_tokens=12, temperature=0)
    s += ", age " + stemma.gen("age", dtype=int, max_tokens=6, temperature=0)
    schema = '{"type":"object","properties":{"ok":{"type":"boolean"},"n":{"type":"integer","maximum":99}},'
    s += "\nJSON: " + stemma.gen("json", json_schema=schema + '"required":["ok","n"]}', max_tokens=40, temperature=0)


@stemma.function
def talk(s: Any, topic: str) -> None:
    with s.user():
        s += f"What is {topic}?"
    with s.assistant():
        s += stemma.gen("one", max_tokens=16, temperature=0)
    with s.user():
        s += "And then?"
    with s.assistant():
        s += stemma.gen("two", max_tokens=16, temperature=0.8, seed=11)


@stemma.function
def nested(s: Any, topic: str) -> None:
    s += f"Tree of {topic}."
    for i, child in enumerate(s.fork(2)):
        child += f" Branch {i}: " + stemma.gen("step", max_tokens=6, temperature=0.7, seed=i)
        for j, leaf in enumerate(child.fork(2)):
            leaf += f" Leaf {j}: " + stemma.gen("leaf", max_tokens=6, temperature=0)
            s[f"leaf_{i}_{j}"] = leaf["leaf"]


TOPICS = ("the sea", "a number", "rain", "Rome", "a dog", "iron", "music")


def _program(function: Any, names: tuple[str, ...]) -> Callable[[Client, int], Any]:
    def run(client: Client, variant: int) -> Any:
        state = function.run(TOPICS[variant % len(TOPICS)], backend=client.endpoint, timeout=client.bound)
        error = state.error()
        if error is not None:
            raise error
        return {"text": state.text(), **{name: state[name] for name in names}}

    return run


def streamed_program(client: Client, variant: int) -> Any:
    state = talk.run(TOPICS[variant], backend=client.endpoint, stream=True, timeout=client.bound)
    pieces = "".join(state.text_iter("one"))
    if pieces != state["one"]:
        raise Wrong(f"streamed {pieces!r}, but the value is {state['one']!r}")
    return {"one": pieces, "two": state["two"]}


# Requests


def _prompt(variant: int) -> str:
    return f"{TOPICS[variant % len(TOPICS)].capitalize()} is known to be a thing that " * (1 + variant % 3)


def _outcome(item: dict[str, Any]) -> Any:
    return {"text": item["text"], "ids": item["output_ids"], "finish": item["meta_info"]["finish_reason"]}


def plain(client: Client, variant: int) -> Any:
    params = {"max_new_tokens": 16 + 8 * variant, "temperature": 0, "ignore_eos": variant % 2 == 0}
    return _outcome(client.post("/generate", {"text": _prompt(variant), "sampling_params": params}).json())


def batch(client: Client, variant: int) -> Any:
    params = {"max_new_tokens": 10, "temperature": 0.9, "seed": 7, "top_p": 0.9}
    body = {"text": [_prompt(variant), _prompt(variant + 1), "Once"], "sampling_params": params}
    return [_outcome(item) for item in client.post("/generate", body).json()]


def samples(client: Client, variant: int) -> Any:
    params = {"max_new_tokens": 12, "temperature": 1.0, "seed": variant, "n": 3}
    body = {"text": _prompt(variant), "sampling_params": params}
    return [_outcome(item) for item in client.post("/generate", body).json()]


def stream(client: Client, variant: int) -> Any:
    params = {"max_new_tokens": 24, "temperature": 0, "ignore_eos": True, "stop": ["zq"]}
    events = client.lines("/generate", {"text": _prompt(variant), "sampling_params": params, "stream": True})
    return _outcome(events[-1])


def constrained(client: Client, variant: int) -> Any:
    schema = json.dumps({"type": "array", "items": {"enum": ["red", "green", variant]}, "maxItems": 3})
    given = {"json_schema": schema} if variant % 2 else {"regex": f"(yes|no|maybe) [0-9]{{1,{variant + 1}}}"}
    params = {"max_new_tokens": 32, "temperature": 0, **given}
    return _outcome(client.post("/generate", {"text": _prompt(variant), "sampling_params": params}).json())


def logprobs(client: Client, variant: int) -> Any:
    params = {"max_new_tokens": 8, "temperature": 0}
    body = {"text": _prompt(variant), "sampling_params": params, "return_logprob": True, "top_logprobs_num": 2}
    item = client.post("/generate", body).json()
    tokens = [entry[1] for entry in item["meta_info"]["output_token_logprobs"]]
    return {**_outcome(item), "tokens": tokens}


def chat(client: Client, variant: int) -> Any:
    messages = [{"role": "user", "content": f"Tell me of {TOPICS[variant]}."}]
    body = {"model": client.model, "messages": messages, "max_tokens": 20, "temperature": 0, "stream": variant % 2 == 0}
    if not body["stream"]:
        return client.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    pieces = [event["choices"][0]["delta"].get("content") or "" for event in client.lines("/v1/chat/completions", body)]
    return "".join(pieces)


def completion(client: Client, variant: int) -> Any:
    body = {"model": client.model, "prompt": _prompt(variant), "max_tokens": 14, "temperature": 0, "n": 2}
    return [choice["text"] for choice in client.post("/v1/completions", body).json()["choices"]]


def graph(branches: list[dict[str, Any]], end: bool = True, **more: Any) -> dict[str, Any]:
    return {"program": f"soak-{uuid.uuid4().hex}", "branches": branches, "end": end, **more}


def long_gen(tokens: int = 200) -> dict[str, Any]:
    return {"kind": "gen", "params": {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}}


def cancelled_subtree(client: Client, variant: int) -> Any:
    """Of two siblings one is cancelled while both run; the other must not notice."""
    short = {"kind": "gen", "params": {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True}}
    branches = [
        {"id": "r", "nodes": [{"kind": "text", "text": _prompt(variant)}]},
        {"id": "a", "parent": "r", "at": 1, "nodes": [{"kind": "text", "text": " first"}, long_gen()]},
        {"id": "a.0", "parent": "a", "at": 1, "nodes": [long_gen()]},
        {"id": "b", "parent": "r", "at": 1, "nodes": [{"kind": "text", "text": " second"}, short]},
    ]
    delta = graph(branches)
    kept: Any = None
    with client.post("/v1/graph", delta, stream=True) as response:
        client.post("/v1/graph/cancel", {"program": delta["program"], "branches": ["a"]})
        settled: dict[str, str] = {}
        for raw in response.iter_lines():
            event = json.loads(raw)
            if event["event"] in ("done", "error"):
                settled[event["branch"]] = event["event"]
                if event["branch"] == "b":
                    if event["event"] == "error":
                        raise Refused(event["error"]["status"], event["error"]["message"])
                    kept = {"text": event["text"], "ids": event["ids"]}
                elif event["event"] == "error" and event["error"]["type"] == "EngineDeadError":
                    raise Refused(500, event["error"]["message"])
    if set(settled) != {"a", "a.0", "b"}:
        raise Wrong(f"nodes of {sorted({'a', 'a.0', 'b'} - set(settled))} were never answered")
    return kept


def two_deltas(client: Client, variant: int) -> Any:
    """A program that goes on in a second request."""
    short = {"kind": "gen", "params": {"max_new_tokens": 6, "temperature": 0}}
    delta = graph([{"id": "r", "nodes": [{"kind": "text", "text": _prompt(variant)}, short]}], end=False)
    client.vanished.append(delta["program"])  # until the second request has ended it
    first = client.lines("/v1/graph", delta)[-1]
    time.sleep(0.02 * variant)
    more = {"id": "r", "first": 2, "nodes": [{"kind": "text", "text": " So"}, short]}
    last = client.lines("/v1/graph", {"program": delta["program"], "branches": [more], "end": True})[-1]
    client.vanished.remove(delta["program"])
    return [first["text"], last["text"]]


ANSWERED: dict[str, Callable[[Client, int], Any]] = {
    "program: forks": _program(forks, ("first", "verdict", "since")),
    "program: form": _program(form, ("name", "age", "json")),
    "program: nested": _program(nested, ("leaf_0_0", "leaf_1_1")),
    "program: chat, streamed": streamed_program,
    "generate": plain,
    "generate: batch": batch,
    "generate: n=3": samples,
    "generate: stream": stream,
    "generate: constraint": constrained,
    "generate: logprobs": logprobs,
    "chat": chat,
    "completion": completion,
    "graph: cancel a subtree": cancelled_subtree,
    "graph: two deltas": two_deltas,
}


def engine_gone(error: BaseException) -> bool:
    """Whether a job failed because there was no engine, and was told so."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, EngineDeadError) or (isinstance(cause, EndpointError) and cause.status in ENGINE_GONE):
            return True
        if isinstance(cause, Refused) and cause.status in ENGINE_GONE and "engine" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def refused_for_now(error: BaseException) -> bool:
    """Whether a job was told to come again later, and when."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Refused) and cause.status == 429:
            return cause.retry_after is not None
        if isinstance(cause, StemmaError) and getattr(cause, "status", None) == 429:
            return True
        cause = cause.__cause__
    return False
