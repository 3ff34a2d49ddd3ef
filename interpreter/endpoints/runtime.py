"""Programs on a Stemma server, over HTTP: deltas go out as JSON, events come back as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stemma.interpreter.endpoints.base import Delta, Endpoint, OnEvent
from stemma.interpreter.graph import FILLED, ROLES
from stemma.interpreter.wire import error_from_wire, error_to_wire
from stemma.lang.errors import CancelledError, EndpointError, RequestError

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS = 10.0
STREAMS = 64

ANSWERED = (*FILLED, *ROLES)  # nodes that an event must speak of

Address = tuple[str, int]


class _Job:
    """A delta on its way, and the nodes of it that have not been heard of yet."""

    def __init__(self, delta: Delta, on_event: OnEvent) -> None:
        self.delta = delta
        self._on_event = on_event
        self._lock = threading.Lock()
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
    """A Stemma server at `base_url`. Opens no connection before it is used.

    Each delta is one request whose response streams its events. At most 64 streams are read at a time; further deltas
    wait for one to end. A program's next delta is sent when the server has accepted the one before. Failing to connect
    is retried twice; nothing else is, since it might run twice. `timeout` bounds the seconds without a byte from the
    server; None waits for ever. `api_key` is sent as a bearer token.
    """

    capabilities = frozenset({"remote"})

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float | None = 600.0) -> None:
        if not isinstance(base_url, str) or not base_url.startswith(("http://", "https://")):
            raise RequestError(f"base_url must begin with http:// or https://, got {base_url!r}", param="base_url")
        self.base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = (CONNECT_SECONDS, timeout)
        self._outboxes: dict[str, _Outbox] = {}
        self._ready: deque[str] = deque()  # programs with something to send, and none on its way
        self._reading: set[_Reader] = set()
        self._idle = 0
        self._threads = 0
        self._work = threading.Condition()
        self._closed = False
        self._pool: requests.Session | None = None

    def __repr__(self) -> str:
        return f"RuntimeEndpoint({self.base_url!r})"

    # --- the contract

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        job = _Job(delta, on_event)
        with self._work:
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
        if not later and not self._closed:
            threading.Thread(target=self._cancel, args=(program, branches), name="stemma-cancel", daemon=True).start()

    def info(self) -> dict[str, Any]:
        """The server's `/get_model_info`. Raises `EndpointError`."""
        return self._call("GET", "/get_model_info")

    def flush_cache(self) -> None:
        self._call("POST", "/flush_cache")

    def close(self) -> None:
        with self._work:
            self._closed = True
            jobs = [job for outbox in self._outboxes.values() for job in outbox.jobs]
            self._outboxes.clear()
            self._ready.clear()
            readers = list(self._reading)
            self._work.notify_all()
        for job in jobs:
            job.fail(EndpointError(f"{self!r} was closed"))
        for reader in readers:
            reader.close()
        if self._pool is not None:
            self._pool.close()

    # --- threads: each sends one delta, then reads its events to the end

    def _wake(self) -> None:
        """With `_work` held: see to it that some thread takes what is ready."""
        if self._idle >= len(self._ready) or self._threads == STREAMS:
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
                response = self._post(job.delta)
            finally:
                self._accepted(program, outbox)
            with _Reader(response) as reader:
                self._read(reader, job)
            job.finish(EndpointError(f"{self!r} ended the answer before all nodes were done"))
        except Exception as error:
            reason = error if isinstance(error, (EndpointError, RequestError)) else self._transport_error(error)
            job.fail(reason)

    def _read(self, reader: _Reader, job: _Job) -> None:
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
        body = {"program": program, **({} if branches is None else {"branches": list(branches)})}
        with contextlib.suppress(EndpointError):  # readers have their CancelledError; the lease runs out by itself
            self._call("POST", "/v1/graph/cancel", body)

    # --- HTTP

    def _session(self) -> requests.Session:
        with self._work:
            if self._pool is None:
                self._pool = _new_session(self._headers)
            return self._pool

    def _post(self, delta: Delta) -> requests.Response:
        url = f"{self.base_url}/v1/graph"
        response = self._session().post(url, json=delta, stream=True, timeout=self._timeout)
        if response.status_code >= 400:
            with response:
                raise _http_error(response, f"POST {url}")
        return response

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        url = self.base_url + path
        try:
            response = self._session().request(method, url, json=body, timeout=(CONNECT_SECONDS, 60.0))
        except Exception as error:
            raise self._transport_error(error) from error
        if response.status_code >= 400:
            error = _http_error(response, f"{method} {url}")
            raise EndpointError(str(error), status=response.status_code)
        try:
            found = response.json()
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {"value": found}

    def _transport_error(self, error: Exception) -> EndpointError:
        return EndpointError(f"{self.base_url}: {type(error).__name__}: {error}")


class _Reader:
    """The lines of one streamed response; may be closed from another thread."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._closed = threading.Event()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._response.close()

    def lines(self) -> Iterator[bytes]:
        """Each line as soon as its bytes are here."""
        rest = b""
        for chunk in self._response.iter_content(chunk_size=None):
            if self._closed.is_set():
                raise EndpointError("the endpoint was closed")
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line for line in lines if line.strip())
        if rest.strip():
            yield rest

    def close(self) -> None:
        self._closed.set()
        _shutdown(self._response)


def _shutdown(response: requests.Response) -> None:
    """Wake a thread that is blocked in reading the response."""
    stop: Callable[[], None] | None = getattr(response.raw, "shutdown", None)
    if stop is None:
        return
    try:
        stop()
    except (OSError, ValueError, RuntimeError):  # it ended by itself in the meantime
        return


def _new_session(headers: dict[str, str]) -> requests.Session:
    import requests  # late: programs on other endpoints need no HTTP
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    session = requests.Session()
    connecting_only = Retry(total=2, connect=2, read=0, redirect=0, status=0, other=0, backoff_factor=0.1)
    adapter = HTTPAdapter(pool_maxsize=STREAMS, max_retries=connecting_only)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers.update(headers)
    session.auth = lambda request: request  # keeps requests from putting ~/.netrc in place of our header
    return session


def _http_error(response: requests.Response, what: str) -> Exception:
    """The server's own error if the body holds one, else the status and the beginning of the body."""
    try:
        body = response.json()
    except ValueError:
        body = None
    found = body.get("error", body) if isinstance(body, dict) else None
    message = found.get("message") if isinstance(found, dict) else found if isinstance(found, str) else None
    text = f"{what} answered {response.status_code}: {message or response.text[:200] or response.reason}"
    if isinstance(found, dict) and message and response.status_code in (400, 422):
        return RequestError(text, param=found.get("param"), status=response.status_code)
    return EndpointError(text, status=response.status_code)
