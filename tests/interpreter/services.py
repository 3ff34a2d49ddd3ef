"""Stand-ins for hosted services: the HTTP side of the OpenAI, Anthropic and SGLang APIs on a free port of 127.0.0.1.

Each answers with what its `reply` says, cut at stop strings and at max_tokens words, and keeps every request.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler"], None]
Reply = Callable[[Any], str]


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class Service:
    """One service. `faults` are used up, one per request, before anything is answered."""

    def __init__(self, routes: dict[str, Callable[[Handler], None]], reply: Reply | None = None) -> None:
        self.routes = routes
        self.reply: Reply = reply or (lambda body: "one two three")
        self.likes: list[str] = []  # what it picks when logit_bias leaves a choice, best first
        self.faults: deque[Fault] = deque()
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.most_running = 0
        self.changed = threading.Condition()
        self._http = _Http(("127.0.0.1", 0), Handler)
        self._http.service = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def bodies(self) -> list[Any]:
        return [body for _, body in self.requests]

    def asked(self) -> int:
        """How many requests for an answer have come."""
        return sum(path != "/abort_request" for path, _ in self.requests)

    def wait_for(self, count: int) -> None:
        """Until so many requests have come."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, 5), self.requests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return None

    @property
    def service(self) -> Service:
        return self.server.service  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._take(None)

    def do_POST(self) -> None:
        self._take(json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null"))

    def _take(self, body: Any) -> None:
        service, self.body = self.service, body
        with service.changed:
            service.requests.append((self.path, body))
            service.headers.append({name.lower(): value for name, value in self.headers.items()})
            service.running += 1
            service.most_running = max(service.most_running, service.running)
            service.changed.notify_all()
            spared = self.path == "/abort_request"  # it may come at any time, after a cancel
            fault = service.faults.popleft() if service.faults and not spared else None
        try:
            if fault is not None:
                fault(self)
            elif self.path in service.routes:
                service.routes[self.path](self)
            else:
                self.answer(404, {"detail": "Not Found"})
        finally:
            with service.changed:
                service.running -= 1

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    @contextmanager
    def stream(self) -> Iterator[Callable[..., None]]:
        """Server-sent events: `send(object)`, `send(object, "event name")` or `send(b"raw data")`."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def send(item: Any, name: str = "") -> None:
            data = item if isinstance(item, bytes) else json.dumps(item).encode()
            data = (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        yield send
        self.wfile.write(b"0\r\n\r\n")


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """A fault: this status, with these headers (underscores become dashes)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, {"error": {"message": message, "type": "stub"}}, named)


def hang_up(handler: Handler) -> None:
    """A fault: the connection ends without an answer, as when a server is killed."""
    handler.close_connection = True


def words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def finish(text: str, stops: Any, most: int | None) -> tuple[str, str, str | None]:
    """The text cut at a stop string and at `most` words: what is left, why it ended, and the stop string."""
    found = [(text.find(stop), stop) for stop in ([stops] if isinstance(stops, str) else stops or ()) if stop in text]
    if found:
        at, stop = min(found)
        text, matched = text[:at], stop
    else:
        matched = None
    if most is not None and len(words(text)) > most:
        return "".join(words(text)[:most]), "length", None
    return text, "stop", matched


# --- OpenAI


def openai(reply: Reply | None = None) -> Service:
    return Service({"/v1/chat/completions": _chat, "/v1/completions": _completions}, reply)


def _usage(body: Any, text: str) -> dict[str, Any]:
    prompt = len(words(json.dumps(body.get("messages") or body.get("prompt"))))
    made = len(words(text))
    details = {"cached_tokens": 1}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": details,
    }


def _biased(handler: Handler) -> str:
    """The liked one among the tokens that logit_bias raises."""
    tokens = [chr(int(token)) for token in handler.body["logit_bias"]]
    return next((liked for liked in handler.service.likes if liked in tokens), tokens[0])


def _chat(handler: Handler) -> None:
    body = handler.body
    most = body.get("max_tokens", body.get("max_completion_tokens"))
    text = _biased(handler) if body.get("logit_bias") and most == 1 else handler.service.reply(body)
    text, why, _ = finish(text, body.get("stop"), most)
    logprobs = None
    if body.get("logprobs"):
        top = [{"token": "x", "logprob": -2.0, "bytes": None}] * (body.get("top_logprobs") or 0)
        content = [{"token": w, "logprob": -0.5, "bytes": None, "top_logprobs": top} for w in words(text)]
        logprobs = {"content": content, "refusal": None}
    base = {"id": "chat-1", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": why, "logprobs": logprobs}
        answer = {**base, "object": "chat.completion", "choices": [choice], "usage": _usage(body, text)}
        handler.answer(200, answer)
        return
    base["object"] = "chat.completion.chunk"
    with handler.stream() as send:
        send({**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for word in words(text):
            send({**base, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
        send({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": why, "logprobs": logprobs}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            send({**base, "choices": [], "usage": _usage(body, text)})
        send(b"[DONE]")


def _completions(handler: Handler) -> None:
    body = handler.body
    base = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
    if body.get("echo"):
        choices = [{"index": i, "text": p, "finish_reason": "length", "logprobs": _echo(handler, p)}
                   for i, p in enumerate(body["prompt"])]  # fmt: skip
        handler.answer(200, {**base, "choices": choices, "usage": _usage(body, "")})
        return
    text = _biased(handler) if body.get("logit_bias") and body["max_tokens"] == 1 else handler.service.reply(body)
    text, why, _ = finish(text, body.get("stop"), body.get("max_tokens"))
    logprobs = None
    if body.get("logprobs") is not None:
        tops = [{"x": -2.0} for _ in words(text)] if body["logprobs"] else None
        logprobs = {"tokens": words(text), "token_logprobs": [-0.5] * len(words(text)), "top_logprobs": tops}
    if not body.get("stream"):
        choice = {"index": 0, "text": text, "finish_reason": why, "logprobs": logprobs}
        handler.answer(200, {**base, "choices": [choice], "usage": _usage(body, text)})
        return
    with handler.stream() as send:
        for word in words(text):
            send({**base, "choices": [{"index": 0, "text": word, "finish_reason": None, "logprobs": None}]})
        send({**base, "choices": [{"index": 0, "text": "", "finish_reason": why, "logprobs": logprobs}]})
        send({**base, "choices": [], "usage": _usage(body, text)})
        send(b"[DONE]")


def _echo(handler: Handler, prompt: str) -> dict[str, Any]:
    tokens = words(prompt)
    logprobs = [-0.1 if word.strip() in handler.service.likes else -3.0 for word in tokens]
    return {"tokens": tokens, "token_logprobs": [None, *logprobs[1:]], "text_offset": [-1] * len(tokens)}


# --- Anthropic


def anthropic(reply: Reply | None = None) -> Service:
    return Service({"/v1/messages": _messages}, reply)


def _messages(handler: Handler) -> None:
    body = handler.body
    text, why, matched = finish(handler.service.reply(body), body.get("stop_sequences"), body["max_tokens"])
    reason = "max_tokens" if why == "length" else "stop_sequence" if matched else "end_turn"
    usage = {
        "input_tokens": len(words(json.dumps(body["messages"]))),
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 0,
    }
    message = {"id": "msg-1", "type": "message", "role": "assistant", "model": body["model"]}
    ends = {"stop_reason": reason, "stop_sequence": matched}
    made = {"output_tokens": len(words(text))}
    if not body.get("stream"):
        content = [{"type": "text", "text": text}]
        handler.answer(200, {**message, **ends, "content": content, "usage": {**usage, **made}})
        return
    nothing = {"stop_reason": None, "stop_sequence": None, "content": [], "usage": {**usage, "output_tokens": 0}}
    with handler.stream() as send:
        send({"type": "message_start", "message": {**message, **nothing}}, "message_start")
        block = {"type": "text", "text": ""}
        send({"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start")
        for word in words(text):
            delta = {"type": "text_delta", "text": word}
            send({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")
        send({"type": "content_block_stop", "index": 0}, "content_block_stop")
        send({"type": "message_delta", "delta": ends, "usage": made}, "message_delta")
        send({"type": "message_stop"}, "message_stop")


# --- SGLang: /generate and no graphs. Its tokens are words; a word's id is its hash.


def sglang(reply: Reply | None = None) -> Service:
    routes = {
        "/generate": _generate,
        "/get_model_info": lambda handler: handler.answer(200, {"model_path": "stub/words", "is_generation": True}),
        "/abort_request": lambda handler: handler.answer(200, {}),
        "/flush_cache": lambda handler: handler.answer(200, "flushed"),
    }
    return Service(routes, reply)


def _id(word: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(word)) % 30_000


def _generate(handler: Handler) -> None:
    body = handler.body
    pattern = body["sampling_params"].get("regex")
    if pattern is not None:
        try:
            re.compile(pattern)
        except re.error as error:
            handler.answer(400, {"error": {"message": f"regex does not compile: {error}"}})
            return
    given = body["input_ids"] if "input_ids" in body else body["text"]
    if isinstance(given, list):
        handler.answer(200, [_item(handler, prompt) for prompt in given])
        return
    item = _item(handler, given)
    if not body.get("stream"):
        handler.answer(200, item)
        return
    pieces = words(item["text"])
    with handler.stream() as send:
        for i in range(1, len(pieces)):
            send({"text": "".join(pieces[:i]), "meta_info": {**item["meta_info"], "finish_reason": None}})
        send(item)
        send(b"[DONE]")


def _item(handler: Handler, prompt: Any) -> dict[str, Any]:
    body, params = handler.body, handler.body["sampling_params"]
    tokens = words(prompt) if isinstance(prompt, str) else prompt
    text, why, matched = "", "length", None
    if params.get("max_new_tokens") != 0:
        text, why, matched = finish(handler.service.reply(body), params.get("stop"), params.get("max_new_tokens"))
    reason = {"type": "stop", "matched": matched} if why == "stop" else {"type": "length", "length": len(words(text))}
    meta: dict[str, Any] = {"id": "g-1", "prompt_tokens": len(tokens), "completion_tokens": len(words(text))}
    meta |= {"cached_tokens": 0, "finish_reason": reason}
    if body.get("return_logprob"):
        start = max(body.get("logprob_start_len", -1), 0)
        rows = []
        for word in tokens[start:]:
            liked = word in handler.service.likes if isinstance(word, str) else False
            rows.append([-0.1 if liked else -3.0, _id(word) if isinstance(word, str) else word, None])
        if rows:
            rows[0][0] = None
        meta["input_token_logprobs"] = rows
        meta["output_token_logprobs"] = [[-0.5, _id(word), None] for word in words(text)]
    return {"text": text, "meta_info": meta}
