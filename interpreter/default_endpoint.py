"""What programs run on when they are not told: the endpoint of the program they are called in, or the default one."""

from __future__ import annotations

import atexit
import contextvars
import threading
from typing import Any

from stemma.interpreter.endpoints.base import Endpoint
from stemma.lang.errors import EndpointError, RequestError

_default: Endpoint | None = None
_default_lock = threading.Lock()
current_endpoint: contextvars.ContextVar[Endpoint | None] = contextvars.ContextVar("stemma_endpoint", default=None)


def set_default_backend(backend: Any) -> None:
    """What programs run on when no `backend` is given: an endpoint or an `Engine`; None for the bundled engine.

    Raises `RequestError` for something that a program cannot run on.
    """
    global _default
    with _default_lock:
        _default = None if backend is None else as_endpoint(backend)


def get_default_backend() -> Endpoint:
    """The default endpoint; the bundled engine is started on the first use if none was set.

    Raises `EndpointError` with a hint when the engine is not installed.
    """
    global _default
    with _default_lock:
        if _default is None:
            _default = _bundled_engine()
        return _default


def flush_cache(backend: Any = None) -> bool:
    """Empty the prefix cache of an endpoint, or of the default one. Raises `EndpointError` when it could not."""
    resolve_endpoint(backend).flush_cache()
    return True


def get_server_info(backend: Any = None) -> dict[str, Any]:
    """What an endpoint, or the default one, says about itself. Raises `EndpointError`."""
    return resolve_endpoint(backend).info()


def as_endpoint(backend: Any) -> Endpoint:
    """The endpoint itself, an engine wrapped as one, or a `Runtime`'s. Raises `RequestError` for anything else."""
    if isinstance(backend, Endpoint):
        return backend
    if isinstance(inner := getattr(backend, "endpoint", None), Endpoint):
        return inner
    if callable(getattr(backend, "submit", None)) and callable(getattr(backend, "cancel", None)):
        from stemma.interpreter.endpoints.local import LocalEndpoint  # only programs on an engine need it

        return LocalEndpoint(backend)
    raise RequestError(f"backend must be an Engine or an endpoint such as RuntimeEndpoint(url), got {backend!r}")


def resolve_endpoint(backend: Any) -> Endpoint:
    """The one that was given, else that of the program we are called in, else the default."""
    if backend is not None:
        return as_endpoint(backend)
    return current_endpoint.get() or get_default_backend()


def _bundled_engine() -> Endpoint:
    from stemma.interpreter.endpoints.local import LocalEndpoint  # starts the engine, which loads torch

    try:
        endpoint = LocalEndpoint()
    except ImportError as error:
        raise EndpointError(
            f"no backend is set, and the bundled engine cannot be loaded: {error}. "
            "Set one, for example set_default_backend(RuntimeEndpoint('http://localhost:30000'))"
        ) from error
    atexit.register(endpoint.close)
    return endpoint
