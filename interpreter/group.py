"""The copies that a fork made, as one thing: indexed, appended to together, joined, raced."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, Self, TypeVar

from stemma.interpreter.branch_state import BranchState
from stemma.interpreter.graph import GraphNode
from stemma.interpreter.state import ProgramState
from stemma.interpreter.values import Gathered, Made, Value, Whole
from stemma.lang.errors import ProgramError, RequestError
from stemma.lang.nodes import Image, Ref, RoleBegin, RoleEnd, Text, caller

_log = logging.getLogger("stemma")
S = TypeVar("S", bound=BranchState)
OnError = Literal["raise", "collect", "skip"]


class StateGroup(Generic[S]):
    """The children of one `fork`, in order."""

    def __init__(self, states: list[S], parent: S) -> None:
        self._states = states
        self._parent = parent

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: int) -> S:
        return self._states[index]

    def __setitem__(self, index: int, state: S) -> None:
        """Makes `forks[i] += …` work; a child cannot be exchanged for another state."""
        if state is not self._states[index]:
            raise RequestError(f"fork {index} cannot be replaced by another state", param="index")

    def __iter__(self) -> Iterator[S]:
        return iter(self._states)

    def __iadd__(self, other: Any) -> Self:
        """Append to every child: the same text or node to all, a list with one for each, or a function of the index.

        Raises `RequestError` when a list has another length than the group.
        """
        for state, what in zip(self._states, self._shares(other), strict=True):
            state.append(what)
        return self

    def _shares(self, other: Any) -> list[Any]:
        if isinstance(other, (list, tuple)):
            if len(other) != len(self._states):
                raise RequestError(f"a list for {len(self._states)} forks must have as many items, got {len(other)}")
            return list(other)
        if isinstance(other, Callable):
            return [other(i) for i in range(len(self._states))]
        return [other] * len(self._states)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.join()

    def cancel(self) -> None:
        """Stop all children."""
        for state in self._states:
            state.cancel()

    def join(self, mode: str = "gather_variable", on_error: OnError = "raise") -> None:
        """End the children and bring what they have to the parent. Waits for nothing.

        `gather_variable`: each name that a child bound becomes, in the parent, the list of the children's values, with
        None where a child did not bind it; reading the list waits. Joining again replaces the lists of an earlier
        join, but a name that the parent bound itself is a `RequestError`.
        `concate_and_append`: the text of every child since the fork is appended to the parent, as it comes.

        `on_error` says what a failed child means for a gathered list: `raise` the reader gets its error, `collect` the
        `ProgramError` stands in the child's place, `skip` leaves it out. With `raise`, a child that is already known
        to have failed raises its `ProgramError` here. Raises `RequestError` for other words.
        """
        if mode not in ("gather_variable", "concate_and_append"):
            raise RequestError(f"mode must be gather_variable or concate_and_append, got {mode!r}", param="mode")
        if on_error not in ("raise", "collect", "skip"):
            raise RequestError(f"on_error must be raise, collect or skip, got {on_error!r}", param="on_error")
        if on_error != "raise" and mode != "gather_variable":
            raise RequestError(f"on_error={on_error!r} needs the mode gather_variable, got {mode!r}", param="on_error")
        run, parent = self._parent._run, self._parent
        run.check_open(parent._branch)
        for state in self._states:
            if on_error == "raise" and state._branch.failure is not None:
                raise state._branch.failure.error()
        if mode == "gather_variable":
            for name, value in self._gathered(on_error).items():
                parent._bind(name, value)
        else:
            for state in self._states:
                parent.append(Ref("a fork", Whole(tuple(state._branch.nodes)), caller()))  # its failure is the parent's
                for node in run.nodes_of([state._branch]):
                    parent.append(_quoted(node))
        run.end_branches(state._branch for state in self._states)

    def _gathered(self, on_error: OnError) -> dict[str, Value]:
        new = [
            {name: v for name, v in state._values.items() if state._inherited.get(name) is not v}
            for state in self._states
        ]
        names = list(dict.fromkeys(name for values in new for name in values))
        for name in names:
            taken = self._parent._values.get(name)
            if taken is not None and not isinstance(taken, Gathered):
                raise RequestError(
                    f"join would overwrite {name!r}, which the parent has bound itself; use another name in the forks",
                    param=name,
                )
        return {name: Gathered(tuple(values.get(name) for values in new), on_error) for name in names}

    # --- the first to arrive

    def _arrived(self, known: Sequence[S]) -> list[S]:
        """Children beyond the known ones that have run all they were told, or failed. Called with `changed` held."""
        return [
            state
            for state in self._states
            if not any(state is k for k in known)
            and all(node.settled for branch in state._branch.subtree() for node in branch.nodes)
        ]

    def _check_count(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(self._states):
            raise RequestError(f"first takes a number from 1 to {len(self._states)} (the forks), got {k!r}", param="k")

    def _cancel_but(self, winners: list[S]) -> None:
        for state in self._states:
            if not any(state is winner for winner in winners):
                try:
                    state.cancel()
                except Exception:  # the losers are cancelled here in any case, and there are winners to give back
                    _log.exception("the endpoint could not be told to cancel %s", state._branch.label)

    def _too_few(self, winners: list[S], k: int) -> ProgramError:
        """Every child has arrived, and not enough of them are right."""
        failed = [state._branch.failure for state in self._states if state._branch.failure is not None]
        where = caller()
        message = f"only {len(winners)} of {len(self._states)} forks arrived as asked for at {where}, {k} were wanted"
        error = ProgramError(f"{message}; {failed[0]}" if failed else message, where=where)
        if failed:
            error.__cause__ = failed[0].error()
        return error


class ProgramStateGroup(StateGroup[ProgramState]):
    """The children of one `fork`, read by threads that wait."""

    def race(self, timeout: float | None = None) -> ProgramState:
        """The first child that has run all it was told; the others are cancelled, at the endpoint too.

        A child that fails does not win. Raises `ProgramError` when all failed, `TimeoutError` in time.
        """
        return self.first(1, timeout=timeout)[0]

    def first(
        self, k: int = 1, when: Callable[[ProgramState], bool] | None = None, timeout: float | None = None
    ) -> list[ProgramState]:
        """The first `k` children, as they arrive, that `when` says yes to; the others are cancelled.

        A child arrives when it has run all it was told. Raises `ProgramError` when fewer than `k` do, what `when`
        raises, and `TimeoutError` in time (nothing is cancelled then).
        """
        self._check_count(k)
        run = self._parent._run
        until = None if timeout is None else time.monotonic() + timeout
        arrived: list[ProgramState] = []
        winners: list[ProgramState] = []
        run.flush()
        while len(winners) < k and len(arrived) < len(self._states):
            run.wait_for(lambda known=tuple(arrived): bool(self._arrived(known)), until, "the next fork")
            with run.changed:
                new = self._arrived(arrived)
            arrived += new
            winners += [s for s in new if s._branch.failure is None and (when is None or when(s))]
        if len(winners) < k:
            raise self._too_few(winners, k)
        self._cancel_but(winners[:k])
        return winners[:k]


def _quoted(node: GraphNode) -> Text | Image | RoleBegin | RoleEnd | Ref:
    """A child's node once more, in the parent: literal text as it is, generated text as a quote of it."""
    if node.kind == "role_begin":
        return RoleBegin(node.wire["role"], node.where)
    if node.kind == "role_end":
        return RoleEnd(node.wire["role"], node.where)
    if node.kind == "image":
        wire = node.wire
        return Image(wire.get("data", ""), wire.get("mime", ""), wire.get("url", ""), node.where)
    if node.awaited and not node.settled:
        return Ref(node.name or node.kind, Made(node), caller())
    return Text(node.text or "", caller())
