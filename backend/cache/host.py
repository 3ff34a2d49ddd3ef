"""What the host tier of the prefix cache asks of a runner, and when loading back is cheaper than computing."""

from __future__ import annotations

from typing import Protocol

from stemma.backend.core import Int32

LOAD_AT_LEAST = 32  # tokens: fewer are computed with the rest of the prompt
SETTLE = 0.1  # weight of a new observation


class HostCopies(Protocol):
    """Keys and values of slots, kept in host memory (or a file) under host slots. A runner implements it.

    Copies and steps happen in the order in which they were asked for: a copy sees all that steps launched before it
    have written, and is done before any step launched after it reads or writes. (On one thread, or one stream, that is
    so by itself; a runner whose steps run elsewhere queues copies behind them.) So slots may be given to somebody else
    as soon as `copy_out` has returned, although it may not have read them yet.
    """

    host_slots: int  # host slot 0 is never used, nor is the rest of its page

    def copy_out(self, slots: Int32, host: Int32) -> None:
        """Copy slots [n] to host slots [n]."""
        ...

    def copy_in(self, host: Int32, slots: Int32) -> None:
        """Copy host slots [n] back to slots [n], which may differ from those they came from."""
        ...

    def copy_seconds(self, tokens: int) -> float:
        """What bringing back so many tokens is expected to take, from measurement."""
        ...


class LoadRule:
    """Load back if that is expected to take less time than computing.

    Copying is priced by the runner (`HostCopies.copy_seconds`), computing by what steps have taken: seconds per token,
    averaged over the steps of at least `LOAD_AT_LEAST` tokens (small steps are dominated by what a step costs anyway).
    Until such a step was seen, loading is taken to be cheaper. at_least: with fewer tokens on the host, nothing is
    loaded. always: whatever it costs.
    """

    def __init__(self, at_least: int = LOAD_AT_LEAST, always: bool = False) -> None:
        if at_least < 1:
            raise ValueError(f"at_least must be at least 1, got {at_least}")
        self.at_least, self.always = at_least, always
        self.compute_seconds = 0.0  # per token

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if tokens >= LOAD_AT_LEAST:
            each = seconds / tokens
            self.compute_seconds += (each - self.compute_seconds) * (SETTLE if self.compute_seconds else 1.0)

    def worth(self, tokens: int, copies: HostCopies) -> bool:
        """Whether so many tokens should be brought back."""
        if tokens < self.at_least:
            return False
        if self.always or not self.compute_seconds:
            return True
        return copies.copy_seconds(tokens) < tokens * self.compute_seconds
