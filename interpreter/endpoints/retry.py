"""When a failed request is sent again: no connection, 429 and 5xx, and only while nothing of an answer was seen."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from stemma.lang.errors import EndpointError, RequestError, StemmaError

FIRST_SECONDS = 0.25  # the first pause; each later one is twice as long, up to
LONGEST_SECONDS = 8.0
LONGEST_RETRY_AFTER = 60.0  # a server that asks for more is not waited for
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A request failed: the error to show, whether it may be sent again, and the pause that the server asked for."""

    error: StemmaError
    again: bool = False
    retry_after: float | None = None


def pause_before(attempt: int, failed: Failed, max_retries: int) -> float | None:
    """Seconds to wait before sending again after `attempt` earlier retries; None: give up.

    Exponential backoff with jitter (25 % either way), unless the server named a time itself.
    """
    if not failed.again or attempt >= max_retries:
        return None
    if failed.retry_after is not None:
        return failed.retry_after if failed.retry_after <= LONGEST_RETRY_AFTER else None
    return min(FIRST_SECONDS * 2**attempt, LONGEST_SECONDS) * random.uniform(0.75, 1.25)


def retry_after(headers: Mapping[str, str] | None) -> float | None:
    """The pause that a response asks for: `retry-after-ms`, `Retry-After` as seconds or as a date."""
    if headers is None:
        return None
    given = {str(name).lower(): value for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = given.get(name)
        if value is None:
            continue
        try:
            return max(float(value) * unit, 0.0)
        except ValueError:
            pass
        try:
            return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
        except ValueError:
            continue
    return None


def of_status(status: int, message: str, headers: Mapping[str, str] | None) -> Failed:
    """What an HTTP status means: 400 and 422 blame the request, 429 and 5xx may be tried again."""
    if status in (400, 422):
        return Failed(RequestError(message, status=status))
    return Failed(EndpointError(message, status=status), status == 429 or status >= 500, retry_after(headers))


def check_retries(max_retries: object) -> int:
    """The option as given, checked. Raises `RequestError`."""
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
        raise RequestError(f"max_retries must be an integer >= 0, got {max_retries!r}", param="max_retries")
    return max_retries


def check_timeout(timeout: object) -> float | None:
    """The option as given, checked. Raises `RequestError`."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise RequestError(f"timeout must be a number of seconds > 0, or None, got {timeout!r}", param="timeout")
    return float(timeout)
