"""The copies that a fork made, as one thing: indexed, appended to together, joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stemma.interpreter.graph import GraphNode
from stemma.interpreter.state import ProgramState
from stemma.interpreter.values import Gathered, Value
from stemma.lang.errors import RequestError
from stemma.lang.nodes import RoleBegin, RoleEnd, Text, caller


class ProgramStateGroup:
    """The children of one `fork`, in order."""

    def __init__(self, states: list[ProgramState], parent: ProgramState) -> None:
        self._states = states
        self._parent = parent

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: int) -> ProgramState:
        return self._states[index]

    def __setitem__(self, index: int, state: ProgramState) -> None:
        """Makes `forks[i] += …` work; a child cannot be exchanged for another state."""
        if state is not self._states[index]:
            raise RequestError(f"fork {index} cannot be replaced by another state", param="index")

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self._states)

    def __iadd__(self, other: Any) -> ProgramStateGroup:
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

    def __enter__(self) -> ProgramStateGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.join()

    def cancel(self) -> None:
        """Stop all children."""
        for state in self._states:
            state.cancel()

    def join(self, mode: str = "gather_variable") -> None:
        """End the children and bring what they have to the parent.

        `gather_variable`: each name that a child bound becomes, in the parent, the list of the children's values, with
        None where a child did not bind it. Waits for nothing; reading the list does. Joining again replaces the lists
        of an earlier join, but a name that the parent bound itself is a `RequestError`.
        `concate_and_append`: the text of every child since the fork is appended to the parent. Waits for that text.

        Raises `ProgramError` when a child is already known to have failed, `RequestError` for another mode.
        """
        if mode not in ("gather_variable", "concate_and_append"):
            raise RequestError(f"mode must be gather_variable or concate_and_append, got {mode!r}", param="mode")
        run, parent = self._parent._run, self._parent
        run.check_open(parent._branch)
        for state in self._states:
            if state._branch.failure is not None:
                raise state._branch.failure.error()
        if mode == "gather_variable":
            for name, value in self._gathered().items():
                parent._bind(name, value)
        else:
            self._append_text()
        run.end_branches(state._branch for state in self._states)

    def _gathered(self) -> dict[str, Value]:
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
        return {name: Gathered(tuple(values.get(name) for values in new)) for name in names}

    def _append_text(self) -> None:
        """The children's nodes once more, in the parent: generated text as literal text, roles as roles."""
        run = self._parent._run
        nodes = run.nodes_of(state._branch for state in self._states)
        run.wait(nodes)
        for node in nodes:
            self._parent.append(_literal(node))


def _literal(node: GraphNode) -> Text | RoleBegin | RoleEnd:
    if node.kind == "role_begin":
        return RoleBegin(node.wire["role"], node.where)
    if node.kind == "role_end":
        return RoleEnd(node.wire["role"], node.where)
    return Text(node.text or "", caller())
