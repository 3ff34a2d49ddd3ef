"""The exceptions that users meet.

StemmaError
├── RequestError (also ValueError)      a request or argument is wrong; HTTP 400; names the field and the value
│   └── ConstraintError                 a regex, schema or grammar cannot be compiled or is not supported
├── EndpointError                       the thing a program runs on failed: connection, HTTP status, engine death
│   └── EngineDeadError                 the engine process or thread stopped; carries the cause
├── ReplayError                         a replayed program said something else than its record
├── CancelledError                      a program, branch or request was cancelled
│   └── BudgetError                     a program used up its budget of tokens or money and was stopped
└── ProgramError                        what a reader of a program sees: the user's line, the node, the cause
    └── TruncatedError                  a typed text or a form ended at max_tokens, before it was whole
"""

from __future__ import annotations


class StemmaError(Exception):
    """Base of all errors raised by Stemma."""


class RequestError(StemmaError, ValueError):
    """A request is wrong: the message names the field, the value and what is legal.

    `status` is the HTTP status that the server answers with; `param` the field, when one is to blame.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


class ConstraintError(RequestError):
    """A constraint cannot be compiled, or uses something that is not supported. Never silently ignored."""


class EndpointError(StemmaError):
    """The endpoint failed: no connection, an HTTP error, or an engine that stopped."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class EngineDeadError(EndpointError):
    """The engine stopped. Every waiting caller receives this, with the cause in the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=500)


class ReplayError(StemmaError):
    """A replayed program diverges from its record. The message shows both sides and where they differ."""


class CancelledError(StemmaError):
    """The program, branch or request was cancelled before it finished."""


class BudgetError(CancelledError):
    """The program used up its budget. What had run by then stays readable."""


class ProgramError(StemmaError):
    """Raised where a program's value is read, when the node that makes it (or one before it) failed.

    `where` is the user's `file:line` of the failed node, `node` its description; the cause is chained.
    """

    def __init__(self, message: str, *, where: str | None = None, node: str | None = None) -> None:
        super().__init__(message)
        self.where = where
        self.node = node


class TruncatedError(ProgramError):
    """Raised where a typed value or a capture is read whose text was cut off by `max_tokens`.

    `tokens` is how many were generated, `limit` the `max_tokens` that held (None: up to the context's end), `text` what
    there is. Give the gen more tokens, or constrain the type further (bounds on lengths and numbers).
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        node: str | None = None,
        tokens: int | None = None,
        limit: int | None = None,
        text: str = "",
    ) -> None:
        super().__init__(message, where=where, node=node)
        self.tokens = tokens
        self.limit = limit
        self.text = text
