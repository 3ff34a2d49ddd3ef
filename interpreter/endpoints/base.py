"""What a program runs on: the contract that every endpoint keeps, and that the conformance suite holds it to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Delta = dict[str, Any]
Event = dict[str, Any]
OnEvent = Callable[[Event], None]


class Endpoint(ABC):
    """Runs program graphs. Deltas and events have the form of docs/graph.md.

    `capabilities` says what the endpoint wants or can do beyond that form:
      names    every node in a delta also carries the user's `name` and `where`
      remote   deltas leave the process
      speculation   a delta may carry `hints`: {"num_api_spec_tokens": n}
      priority   a delta may carry `hints`: {"priority": n}
      tokens   takes `tokens` in a delta, and `token_bytes` tells what ids stand for
      replay   answers from a record, and so wants the deltas of the program as it is
      images   takes image nodes that hold data
      image_urls   takes image nodes that hold an address
    `quiet_seconds`: how long a program must be silent before what it said so far is sent unasked; None: only when a
    value is demanded or the program ends.
    """

    capabilities: frozenset[str] = frozenset()
    quiet_seconds: float | None = 0.001

    @abstractmethod
    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        """Take a delta and return at once. Thread-safe; deltas of one program come in order.

        Every gen and select of the delta gets exactly one `done` or `error` through `on_event`, from any thread, and
        every role node one `text` (None if the marker's text cannot be known) or `error`. A failure of the endpoint
        itself is such an `error` too: never an exception out of a thread, never silence. Only what is wrong with the
        delta may be raised here and now. `on_event` is cheap and does not raise.
        """

    @abstractmethod
    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        """Drop these branches, or the whole program: leases are released, unfinished nodes get an `error`.

        Returns at once. Naming a program that the endpoint does not know, or no longer knows, is not an error.
        """

    def info(self) -> dict[str, Any]:
        """What the endpoint says about itself: the model, limits, versions. Raises `EndpointError`."""
        return {"endpoint": type(self).__name__}

    def token_bytes(self, ids: Iterable[int]) -> dict[int, bytes]:
        """What each of these ids stands for in text; empty where the endpoint cannot tell. Raises `EndpointError`."""
        return {}

    def for_item(self, index: int) -> Endpoint:
        """The endpoint for item `index` of a batch; itself, unless it tells the items apart."""
        return self

    def flush_cache(self) -> None:
        """Empty the prefix cache, where there is one. Raises `EndpointError` when it could not."""
        return None

    def close(self) -> None:
        """Release what the endpoint holds; unfinished nodes get an `error`. Closing twice is fine."""
        return None
