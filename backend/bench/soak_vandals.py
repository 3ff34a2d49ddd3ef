"""What the other clients of `stemma bench soak` do: leave, dawdle, send nonsense, ask for too much.

These jobs only have to end in time, in one of the ways that they may. They raise what went wrong.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

from stemma.backend.bench.soak_jobs import Client, Refused, Wrong, graph, long_gen, status_of


def http_bytes(path: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def abort(client: Client, rng: random.Random) -> None:
    """Aborted by its rid from elsewhere."""
    rid = uuid.uuid4().hex
    params = {"max_new_tokens": 300, "temperature": 0, "ignore_eos": True}
    body = {"text": "abort me", "sampling_params": params, "rid": rid, "stream": True}
    with client.post("/generate", body, stream=True) as response:
        stop = rng.randint(0, 4)
        last = None
        for count, raw in enumerate(filter(None, response.iter_lines())):
            if count == stop:
                client.post("/abort_request", {"rid": rid})
            if raw != b"data: [DONE]":
                last = json.loads(raw.removeprefix(b"data: "))
    if last is None or not (last.get("error") or last["meta_info"]["finish_reason"]):
        raise Wrong(f"an aborted stream ended with {last}")
    if last.get("error"):
        raise Refused(status_of(last["error"]), last["error"]["message"])


def leave(client: Client, rng: random.Random) -> None:
    """Gone after some bytes of the answer, or before the first."""
    params = {"max_new_tokens": 300, "temperature": 0, "ignore_eos": True}
    if rng.random() < 0.3:
        params["regex"] = f"[a-z ]{{200,{300 + rng.randint(0, 50)}}}"  # gone while it compiles
    body = {"text": "I am leaving " * rng.randint(1, 30), "sampling_params": params, "stream": rng.random() < 0.7}
    path = "/generate"
    if rng.random() < 0.4:
        path = "/v1/graph"
        body = graph([{"id": "r", "nodes": [{"kind": "text", "text": "gone"}, long_gen(300)]}], end=rng.random() < 0.5)
        client.vanished.append(body["program"])
    with client.socket() as sock:
        sock.sendall(http_bytes(path, json.dumps(body).encode()))
        wanted = rng.choice([0, 0, 10, 2000])
        while wanted > 0 and (piece := sock.recv(wanted)):
            wanted -= len(piece)


def leave_uploading(client: Client, rng: random.Random) -> None:
    """Gone in the middle of the body, or of the head."""
    raw = http_bytes("/generate", b'{"text": "' + b"x" * rng.randint(0, 50_000), length=100_000)
    with client.socket() as sock:
        sock.sendall(raw[: rng.choice([20, 300, len(raw)])])
        time.sleep(rng.random() * 0.1)


def slow_reader(client: Client, rng: random.Random) -> None:
    """Reads too little of an answer of megabytes. The server must end it; until then nobody else may wait."""
    params = {"max_new_tokens": 300, "temperature": 0, "ignore_eos": True}
    body = {"text": "a flood", "sampling_params": params, "stream": True, "return_logprob": True}
    with client.socket(receive_buffer=4096) as sock:
        sock.sendall(http_bytes("/generate", json.dumps({**body, "top_logprobs_num": 20}).encode()))
        until = time.monotonic() + rng.choice([0.5, 3.0, 6.0])
        try:
            while time.monotonic() < until and sock.recv(200):
                time.sleep(0.05)
        except ConnectionError:
            return  # it gave us up: as it should


def vanish(client: Client, rng: random.Random) -> None:
    """A program that is never ended: its lease and its memory must come back by themselves."""
    short = {"kind": "gen", "params": {"max_new_tokens": 4, "temperature": 0}}
    delta = graph([{"id": "r", "nodes": [{"kind": "text", "text": "x" * rng.randint(1, 500)}, short]}], end=False)
    client.lines("/v1/graph", delta)
    client.vanished.append(delta["program"])


def deadline(client: Client, rng: random.Random) -> None:
    """Too little time, for one that runs or waits."""
    params = {"max_new_tokens": 400, "temperature": 0, "ignore_eos": True}
    body = {"text": "late", "sampling_params": params, "timeout": rng.choice([0.001, 0.02, 0.1])}
    try:
        client.post("/generate", body)
    except Refused as refused:
        if refused.status != 408:
            raise
    if rng.random() < 0.5:
        return
    gone = graph([{"id": "r", "nodes": [{"kind": "text", "text": "late"}, {**long_gen(400), "timeout": 0.02}]}])
    try:
        client.lines("/v1/graph", gone)
    except Refused as refused:
        if refused.status != 408:
            raise


def continue_unknown(client: Client, rng: random.Random) -> None:
    """A delta for a program that is not there must be told so."""
    delta = {"program": f"never-{rng.random()}", "branches": [{"id": "r", "first": 3, "nodes": [long_gen(1)]}]}
    _refused(client, "/v1/graph", delta, {410, 500})


HOSTILE: list[tuple[str, Any]] = [
    ("/generate", b'{"text": '),
    ("/generate", b"\xff\xfe\x00"),
    ("/generate", b"[" * 100_000),
    ("/generate", {"text": 5}),
    ("/generate", {"text": "x", "sampling_params": {"temperature": "hot"}}),
    ("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 10**9}}),
    ("/generate", {"text": "x", "sampling_params": {"n": 10**6}}),
    ("/generate", {"text": "word " * 400_000}),
    ("/generate", {"input_ids": [2**31 - 1]}),
    ("/generate", {"text": "x", "timeout": -1}),
    ("/generate", {"text": "x", "sampling_params": {"regex": "(a+)+(b|c" * 20}}),
    ("/generate", {"text": "x", "sampling_params": {"regex": "((a{1,999}){1,999}){1,999}"}}),
    ("/generate", {"text": "x", "sampling_params": {"ebnf": 'root ::= root "a"'}}),
    ("/generate", {"text": "x", "sampling_params": {"json_schema": "{"}}),
    ("/generate", {"text": "x", "sampling_params": {"json_schema": '{"$ref": "#/nowhere"}'}}),
    ("/v1/graph", b'{"program": 1}'),
    ("/v1/graph", {"program": "p" * 10_000, "branches": []}),
    ("/v1/graph", {"program": "q", "branches": [{"id": "r", "nodes": [{"kind": "nonsense"}]}]}),
    ("/v1/chat/completions", {"model": "m", "messages": "hello"}),
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [{}]}),
    ("/v1/completions", {"model": "m", "prompt": [], "max_tokens": 1}),
    ("/abort_request", {"rid": ""}),
]


def hostile(client: Client, rng: random.Random) -> None:
    path, body = rng.choice(HOSTILE)
    _refused(client, path, body, set(range(400, 500)))


def bomb(client: Client, rng: random.Random) -> None:
    """A constraint that takes its compiler long, or memory; different each time, so that no cache knows it."""
    letters = [chr(97 + rng.randrange(26)) for _ in range(8)]
    n = rng.randint(1000, 9999)
    made: list[dict[str, Any]] = [
        {"json_schema": json.dumps({"allOf": [{"pattern": f"^(.*{c}.*){{3}}$"} for c in letters]})},
        {"json_schema": json.dumps({"enum": [f"{n} {i}" for i in range(20_000)]})},
        {"json_schema": json.dumps({"minProperties": 99, "properties": {f"p{n}{i}": {} for i in range(200)}})},
        {"regex": f"(a|b)*a(a|b){{{12 + n % 9}}}{n}"},
        {"regex": f"(([a-z]{{0,{20 + n % 20}}} ?){{0,40}}x){{3}}{n}"},
        {"ebnf": f'root ::= "(" root* ")" | "{n}"'},
    ]  # fmt: skip
    params = {"max_new_tokens": 4, "temperature": 0, **rng.choice(made)}
    try:
        client.post("/generate", {"text": "x", "sampling_params": params})
    except Refused as refused:
        if refused.status != 400:
            raise


def burst(client: Client, rng: random.Random) -> None:
    """More at once than there is memory for, or more than may wait."""
    prompts = rng.choice([2, 2, 16])
    params = {"max_new_tokens": 90, "temperature": 0, "n": 8 if prompts == 2 else 64, "ignore_eos": True}
    try:
        client.post("/generate", {"text": [f"{i}" for i in range(prompts)], "sampling_params": params})
    except Refused as refused:
        if refused.status not in (400, 429):
            raise


def _refused(client: Client, path: str, body: Any, statuses: set[int]) -> None:
    try:
        client.post(path, body).close()
    except Refused as refused:
        if refused.status in statuses:
            return
        raise
    raise Wrong(f"{path} accepted {str(body)[:120]}")


UNANSWERED: dict[str, Callable[[Client, random.Random], None]] = {
    "abort": abort,
    "leave": leave,
    "leave while uploading": leave_uploading,
    "slow reader": slow_reader,
    "vanish": vanish,
    "deadline": deadline,
    "continue what is unknown": continue_unknown,
    "hostile": hostile,
    "bomb": bomb,
    "burst": burst,
}
