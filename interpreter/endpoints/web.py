"""HTTP with `requests`: a session, streamed lines that another thread may stop, errors of responses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from stemma.interpreter.endpoints.retry import Failed, of_status, retry_after
from stemma.interpreter.wire import error_from_wire
from stemma.lang.errors import EndpointError, RequestError, StemmaError

if TYPE_CHECKING:
    import requests


class Reader:
    """The lines of one streamed response; may be closed from another thread."""

    def __init__(self, response: requests.Response) -> None:
        self._response = response
        self._closed = threading.Event()

    def __enter__(self) -> Reader:
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
        shutdown(self._response)


def shutdown(response: requests.Response) -> None:
    """Wake a thread that is blocked in reading the response."""
    stop: Callable[[], None] | None = getattr(response.raw, "shutdown", None)
    if stop is None:
        return
    try:
        stop()
    except (OSError, ValueError, RuntimeError):  # it ended by itself in the meantime
        return


def new_session(headers: dict[str, str], pool: int, verify: bool | str | None) -> requests.Session:
    import requests  # late: programs on other endpoints need no HTTP
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    adapter = HTTPAdapter(pool_maxsize=pool, max_retries=0)  # whoever sends decides about retries
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers.update(headers)
    if verify is not None:
        session.verify = verify
    session.auth = lambda request: request  # keeps requests from putting ~/.netrc in place of our header
    return session


def http_error(response: requests.Response, what: str) -> StemmaError:
    """The server's own error if the body holds one, else the status and the beginning of the body."""
    try:
        body = response.json()
    except ValueError:
        body = None
    found = body.get("error", body) if isinstance(body, dict) else None
    message = found.get("message") if isinstance(found, dict) else found if isinstance(found, str) else None
    if isinstance(found, dict) and found.get("type") in ("EngineDeadError", "DeadlineError") and message:
        return error_from_wire({**found, "message": f"{what}: {message}"})
    text = f"{what} answered {response.status_code}: {message or response.text[:200] or response.reason}"
    if isinstance(found, dict) and message and response.status_code in (400, 422):
        return RequestError(text, param=found.get("param"), status=response.status_code)
    return EndpointError(text, status=response.status_code)


_NEVER_CONNECTED = ("NewConnectionError", "ConnectTimeoutError", "ConnectTimeout", "NameResolutionError")


def failed_request(error: Exception, where: str) -> Failed:
    """What an exception of `requests` means: it may be sent again if it never reached a server."""
    again, cause = False, error
    seen: set[int] = set()
    while isinstance(cause, BaseException) and id(cause) not in seen:
        seen.add(id(cause))
        again = again or type(cause).__name__ in _NEVER_CONNECTED
        inner = cause.args[0] if cause.args and isinstance(cause.args[0], BaseException) else None
        cause = getattr(cause, "reason", None) or inner or cause.__cause__ or cause.__context__
    return Failed(EndpointError(f"{where}: {type(error).__name__}: {error}"), again)


def failed_response(response: requests.Response, what: str) -> Failed:
    """What an HTTP error means, its own message first."""
    found = of_status(response.status_code, "", response.headers)
    return Failed(http_error(response, what), found.again, retry_after(response.headers))
