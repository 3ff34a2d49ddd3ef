"""Programs on a server, over HTTP: deltas go out as JSON, events come back as lines of JSON.

A server that knows no graphs but answers `/generate`, as SGLang's does, gets requests instead: see generate.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stemma.interpreter.endpoints.base import Delta, Endpoint, OnEvent
from stemma.interpreter.endpoints.deltas import ANSWERED
from stemma.interpreter.endpoints.generate import GenerateEndpoint
from stemma.interpreter.endpoints.prompt import Markers
from stemma.interpreter.endpoints.retry import (
    CONNECT_SECONDS,
    Failed,
    check_retries,
    check_timeout,
    pause_before,
)
from stemma.interpreter.endpoints.web import Reader, failed_request, failed_response, http_error, new_session
from stemma.interpreter.graph import ROLES
from stemma.interpreter.wire import error_from_wire, error_to_wire
from stemma.lang.errors import CancelledError, EndpointError, RequestError

if TYPE_CHECKING:
    import requests

# 500 is the engine's own answer, and the delta may have been taken; the others come before anything ran
TRY_AGAIN = (429, 502, 503, 504)

REFS_SECONDS = (
    5.0  # how long a server may take to say whether it resolves refs; else it is asked again, but not at once
)

Address = tuple[str, int]


class _Job:
    """A delta on its way, and the nodes of it that have not been heard of yet."""

    def __init__(self, delta: Delta, on_event: OnEvent) -> None:
        self.delta = delta
        self._on_event = on_event
        self._lock = threading.Lock()
        self.retries = 0
        self._waiting: set[Address] = {
            (branch["id"], i)
            for branch in delta["branches"]
            for i, node in enumerate(branch["nodes"], branch["first"])
            if node["kind"] in ANSWERED
        }

    def take(self, event: dict[str, Any]) -> None:
        """Pass an event on, unless its node has been settled already."""
        if "branch" not in event:
            self.fail(error_from_wire(event["error"]))  # the delta as a whole was refused
            return
        if event["event"] != "delta" and not self._settle((event["branch"], event["node"])):
            return
        if event["event"] == "done" and isinstance(event.get("meta"), dict):
            event["meta"].setdefault("retries", self.retries)
        self._on_event(event)

    def _settle(self, address: Address) -> bool:
        with self._lock:
            known = address in self._waiting
            self._waiting.discard(address)
            return known

    def finish(self, error: Exception) -> None:
        """The answer has ended. What should have been done and is not gets the error; a role node that no event spoke
        of is said to have no known text, which matters only to those who read that text."""
        kinds = {(b["id"], i): n["kind"] for b in self.delta["branches"] for i, n in enumerate(b["nodes"], b["first"])}
        with self._lock:
            roles = sorted(address for address in self._waiting if kinds[address] in ROLES)
        for branch, node in roles:
            self.take({"event": "text", "branch": branch, "node": node, "text": None})
        self.fail(error)

    def fail(self, error: Exception, branches: Sequence[str] | None = None) -> None:
        """An error for every node not heard of; with `branches`, only for theirs."""
        wire = error_to_wire(error)
        with self._lock:
            waiting = sorted(self._waiting)
        for branch, node in waiting:
            if branches is None or branch in branches:
                self.take({"event": "error", "branch": branch, "node": node, "error": wire})


@dataclass(slots=True)
class _Outbox:
    """What one program still has to send, in order. `sending`: a request is out and not yet accepted."""

    jobs: deque[_Job] = field(default_factory=deque)
    cancels: list[Sequence[str] | None] = field(default_factory=list)
    sending: bool = False


class RuntimeEndpoint(Endpoint):
    """A server at `base_url`. Opens no connection before it is used.

    Each delta is one request whose response streams its events. At most `max_in_flight` streams are read at a time, by
    as many threads; further deltas wait for one to end. A program's next delta is sent when the server has accepted
    the one before. Failing to connect, 429, 502, 503 and 504 are tried again up to `max_retries` times with growing
    pauses (`Retry-After` is honoured); nothing else is, since it might run twice. `timeout` bounds the seconds without
    a byte from the server; None waits for ever. `api_key` is sent as a bearer token. `verify`: as in `requests`,
    whether the server's certificate is checked, or the path of a CA bundle.

    `protocol`: "graph", "generate" (each gen is a request to `/generate`), or None: graphs, unless the server turns out
    not to know them. `/generate` knows no chat templates: for programs with roles, `chat_template_name` gives the
    markers, a name such as "chatml" or a dict of role: (text before, text after).
    """

    capabilities = frozenset({"remote", "tokens", "priority"})

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: bool | str | None = None,
        chat_template_name: str | Markers | None = None,
        *,
        timeout: float | None = 600.0,
        max_retries: int = 2,
        max_in_flight: int = 64,
        protocol: Literal["graph", "generate"] | None = None,
    ) -> None:
        if not isinstance(base_url, str) or not base_url.startswith(("http://", "https://")):
            raise RequestError(f"base_url must begin with http:// or https://, got {base_url!r}", param="base_url")
        if protocol not in (None, "graph", "generate"):
            raise RequestError(f"protocol must be 'graph', 'generate' or None, got {protocol!r}", param="protocol")
        self.base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._verify = verify
        self._timeout = (CONNECT_SECONDS, check_timeout(timeout))
        self._max_retries = check_retries(max_retries)
        self._protocol = protocol
        if protocol == "generate":
            self.capabilities = frozenset({"remote", "tokens"})
        self._requests = GenerateEndpoint(
            self.base_url,
            self._headers,
            verify=verify,
            chat_template=chat_template_name,
            timeout=timeout,
            max_retries=max_retries,
            max_in_flight=max_in_flight,
        )
        self._streams = self._requests.max_in_flight
        self._outboxes: dict[str, _Outbox] = {}
        self._ready: deque[str] = deque()  # programs with something to send, and none on its way
        self._reading: set[Reader] = set()
        self._idle = 0
        self._threads = 0
        self._work = threading.Condition()
        self._closed = False
        self._closing = threading.Event()
        self._pool: requests.Session | None = None
        self._refs: bool | None = None  # whether the server takes ref nodes, if it has said so
        self._ask_refs_at = 0.0  # monotonic
        self._asking = threading.Lock()

    def __repr__(self) -> str:
        return f"RuntimeEndpoint({self.base_url!r})"

    # --- the contract

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        job = _Job(delta, on_event)
        with self._work:
            if self._protocol == "generate" and delta["program"] not in self._outboxes and not self._closed:
                self._requests.submit(delta, on_event)
                return
            if not self._closed:
                outbox = self._outboxes.setdefault(delta["program"], _Outbox())
                outbox.jobs.append(job)
                if not outbox.sending and len(outbox.jobs) == 1:
                    self._ready.append(delta["program"])
                    self._wake()
                return
        job.fail(EndpointError(f"{self!r} is closed"))

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        dropped: list[_Job] = []
        with self._work:
            outbox = self._outboxes.get(program)
            later = outbox is not None and (outbox.sending or (branches is not None and bool(outbox.jobs)))
            if outbox is not None:
                dropped = list(outbox.jobs)
                if branches is None:
                    outbox.jobs.clear()
                if later:
                    outbox.cancels.append(branches)  # behind the request on its way, which would start it all again
        for job in dropped:
            job.fail(CancelledError("cancelled before it was sent"), branches)
        if self._protocol == "generate":
            self._requests.cancel(program, branches)
        elif not later and not self._closed:
            threading.Thread(target=self._cancel, args=(program, branches), name="stemma-cancel", daemon=True).start()

    def info(self) -> dict[str, Any]:
        """The server's `/get_model_info`. Raises `EndpointError`."""
        return self._call("GET", "/get_model_info")

    def resolves_refs(self) -> bool:
        """Whether the server says so in its information. Inside an event loop nobody waits for it: no, until it has."""
        if self._protocol == "generate" or self._refs is not None:
            return bool(self._refs) and self._protocol != "generate"
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._ask_refs()
        threading.Thread(target=self._ask_refs, name="stemma-info", daemon=True).start()
        return False

    def _ask_refs(self) -> bool:
        with self._asking:
            if self._refs is None and time.monotonic() >= self._ask_refs_at and not self._closed:
                try:
                    info = self._call("GET", "/get_model_info", seconds=REFS_SECONDS)
                    self._refs = info.get("graph_refs") is True
                except EndpointError as error:
                    if error.status is not None and error.status < 500:
                        self._refs = False
                    self._ask_refs_at = time.monotonic() + REFS_SECONDS
            return bool(self._refs)

    def token_bytes(self, ids: Iterable[int]) -> dict[int, bytes]:
        if self._protocol == "generate":  # such a server does not tell
            return {}
        answer = self._call("POST", "/v1/graph/tokens", {"ids": sorted(set(ids))})
        return {int(i): base64.b64decode(text) for i, text in answer["bytes"].items()}

    def flush_cache(self) -> None:
        self._call("POST", "/flush_cache")

    def close(self) -> None:
        with self._work:
            self._closed = True
            self._closing.set()
            jobs = [job for outbox in self._outboxes.values() for job in outbox.jobs]
            unsaid = [program for program, outbox in self._outboxes.items() if outbox.jobs]  # their ends, perhaps
            self._outboxes.clear()
            self._ready.clear()
            readers = list(self._reading)
            self._work.notify_all()
        for job in jobs:
            job.fail(EndpointError(f"{self!r} was closed"))
        for reader in readers:
            reader.close()
        if self._protocol != "generate" and self._pool is not None:
            with contextlib.suppress(EndpointError):  # the server would wait for their leases to run out
                for program in unsaid:
                    self._call("POST", "/v1/graph/cancel", {"program": program})
        self._requests.close()
        if self._pool is not None:
            self._pool.close()

    # --- threads: each sends one delta, then reads its events to the end

    def _wake(self) -> None:
        """With `_work` held: see to it that some thread takes what is ready."""
        if self._idle >= len(self._ready) or self._threads == self._streams:
            self._work.notify()
            return
        self._threads += 1
        threading.Thread(target=self._serve, name=f"stemma-http-{self._threads}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._work:
                self._idle += 1
                self._work.wait_for(lambda: self._ready or self._closed)
                self._idle -= 1
                if self._closed:
                    self._threads -= 1
                    return
                program = self._ready.popleft()
                outbox = self._outboxes.get(program)
                if outbox is None or outbox.sending or not outbox.jobs:
                    self._forget(program)
                    continue
                job = outbox.jobs.popleft()
                outbox.sending = True
            self._exchange(program, outbox, job)

    def _exchange(self, program: str, outbox: _Outbox, job: _Job) -> None:
        try:
            try:
                response = self._post(job)
            finally:
                self._accepted(program, outbox)
            if response is None:
                return
            with Reader(response) as reader:
                self._read(reader, job)
            job.finish(EndpointError(f"{self!r} ended the answer before all nodes were done"))
        except Exception as error:
            reason = error if isinstance(error, (EndpointError, RequestError)) else self._transport_error(error)
            job.fail(reason)

    def _read(self, reader: Reader, job: _Job) -> None:
        with self._work:
            self._reading.add(reader)
            if self._closed:
                reader.close()
        try:
            for line in reader.lines():
                job.take(json.loads(line))
        finally:
            with self._work:
                self._reading.discard(reader)

    def _accepted(self, program: str, outbox: _Outbox) -> None:
        """The request is answered: the program's next delta may go, and so may a cancel that had to wait."""
        with self._work:
            outbox.sending = False
            cancels, outbox.cancels = outbox.cancels, []
            if outbox.jobs:
                self._ready.append(program)
                self._wake()
            else:
                self._forget(program)
        for branches in cancels:
            self._cancel(program, branches)

    def _forget(self, program: str) -> None:
        outbox = self._outboxes.get(program)
        if outbox is not None and not outbox.jobs and not outbox.sending:
            del self._outboxes[program]

    def _cancel(self, program: str, branches: Sequence[str] | None) -> None:
        if self._protocol == "generate":
            self._requests.cancel(program, branches)
            return
        body = {"program": program, **({} if branches is None else {"branches": list(branches)})}
        with contextlib.suppress(EndpointError):  # readers have their CancelledError; the lease runs out by itself
            self._call("POST", "/v1/graph/cancel", body)

    # --- HTTP

    def _session(self) -> requests.Session:
        with self._work:
            if self._pool is None:
                self._pool = new_session(self._headers, self._streams, self._verify)
            return self._pool

    def _post(self, job: _Job) -> requests.Response | None:
        """The response that streams the job's events; None if the job went to `/generate` instead."""
        url = f"{self.base_url}/v1/graph"
        while self._protocol != "generate":
            failed = Failed(EndpointError(f"{self!r} was closed"))
            try:
                response = self._session().post(url, json=job.delta, stream=True, timeout=self._timeout)
            except Exception as error:
                failed = failed_request(error, self.base_url)
            else:
                if response.status_code < 400:
                    return response
                with response:
                    if response.status_code == 404 and self._protocol is None and self._knows_generate():
                        self._protocol = "generate"
                        break
                    failed = failed_response(response, f"POST {url}")
                    if response.status_code not in TRY_AGAIN:
                        raise failed.error
            pause = pause_before(job.retries, failed, self._max_retries)
            if pause is None or self._closing.wait(pause):
                raise failed.error
            job.retries += 1
        self._requests.submit(job.delta, job.take)
        return None

    def _knows_generate(self) -> bool:
        """Whether this is a server without graphs but with `/generate`, such as SGLang's."""
        try:
            return "model_path" in self._call("GET", "/get_model_info")
        except EndpointError:
            return False

    def _call(self, method: str, path: str, body: Any = None, seconds: float = 60.0) -> dict[str, Any]:
        url = self.base_url + path
        try:
            response = self._session().request(method, url, json=body, timeout=(min(CONNECT_SECONDS, seconds), seconds))
        except Exception as error:
            raise self._transport_error(error) from error
        if response.status_code >= 400:
            error = http_error(response, f"{method} {url}")
            raise EndpointError(str(error), status=response.status_code)
        try:
            found = response.json()
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {"value": found}

    def _transport_error(self, error: Exception) -> EndpointError:
        return EndpointError(f"{self.base_url}: {type(error).__name__}: {error}")
