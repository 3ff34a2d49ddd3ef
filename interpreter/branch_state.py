"""What sync and async programs share of `s`: it is appended to and forked, and names are bound on it.

Nothing here waits. Reading is in `state.py` (threads) and `async_state.py` (coroutines).
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from stemma.interpreter.graph import GraphBranch, GraphNode, ProgramGraph
from stemma.interpreter.runtime import Run
from stemma.interpreter.tools import Called
from stemma.interpreter.values import Captured, Decided, Extracted, Gathered, Given, Made, Samples, Thought, Value
from stemma.interpreter.wire import RunOptions
from stemma.lang.choices import (
    ChoicesMethod,
    ChoicesSamplingMethod,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from stemma.lang.errors import ProgramError, RequestError
from stemma.lang.nodes import Gen, Ref, RoleBegin, RoleEnd, Select, as_nodes, caller
from stemma.lang.tools import ToolSpec


class BranchState:
    """One branch of a running program, and the names bound on it.

    Appending raises `ProgramError` at once when the branch failed or ended, and `RequestError` for what cannot be
    appended.
    """

    def __init__(
        self, run: Run, branch: GraphBranch, values: dict[str, Value] | None = None, options: RunOptions | None = None
    ) -> None:
        self._run = run
        self._branch = branch
        self._values: dict[str, Value] = dict(values or {})
        self._inherited = dict(self._values)
        self._options = options or run.options

    def __repr__(self) -> str:
        names = ", ".join(self._values)
        where, count = self._branch.label or "root", len(self._branch.nodes)
        return f"<{type(self).__name__} {where}: {count} nodes, names: {names or '-'}>"

    # --- saying

    def __iadd__(self, other: Any) -> Self:
        self.append(other)
        return self

    def append(self, other: Any) -> None:
        """What `s += other` does: text, a node, or a list of these. Waits for nothing."""
        nodes = as_nodes(other)
        if not nodes:
            self._run.check_open(self._branch)
        for node in nodes:
            if isinstance(node, (RoleBegin, RoleEnd)):
                self._run.check_role(self._branch, node)
            if isinstance(node, Select) and not isinstance(node.method, ChoicesMethod):
                self._select_by(node, node.method)
                continue
            if isinstance(node, Gen) and (node.samples or self._options.n) > 1:
                self._sample(node, node.samples or self._options.n)
                continue
            added = self._run.append(self._branch, node, self._options)
            if isinstance(node, Select) and node.name is not None:
                self._bind(node.name, Made(added))
            elif isinstance(node, Gen):
                for name, value in self._values_of(node, added).items():
                    self._bind(name, value)

    def _values_of(self, node: Gen, added: GraphNode) -> dict[str, Value]:
        """What a gen binds."""
        values: dict[str, Value] = {}
        if node.name is not None:
            value = Made(added, node.type)
            if node.reasoning is not None:
                value = Thought(added, node.reasoning, node.type)
                values[f"{node.name}_reasoning_content"] = Thought(added, node.reasoning, answer=False)
            values[node.name] = Called(value, added) if isinstance(node.type, ToolSpec) else value
        return {**values, **{capture.name: Extracted(added, capture) for capture in node.captures}}

    def _sample(self, node: Gen, count: int) -> None:
        """Several texts from here: the first goes on in this branch, each of the others has a branch beside it."""
        named = node.name is not None or node.captures  # else nobody could read the others
        others = self._run.fork(self._branch, count - 1) if named else []
        made = [self._run.append(self._branch, node, self._options)]
        seed = dict(node.overrides).get("seed")
        for i, branch in enumerate(others, 1):
            drawn = node if seed is None else replace(node, overrides=(*node.overrides, ("seed", seed + i)))
            made.append(self._run.append(branch, drawn, self._options))
        self._run.end_branches(others)
        bound = [self._values_of(node, each) for each in made]
        for name in bound[0]:
            self._bind(name, Samples(tuple(values[name] for values in bound)))

    def _select_by(self, node: Select, method: ChoicesSamplingMethod) -> None:
        """The engine scores the choices in a branch beside this one; the method decides; its choice is quoted here."""
        wants = method.requires_unconditional_logprobs
        scores = unconditional_likelihood_normalized if wants else token_length_normalized
        (beside,) = self._run.fork(self._branch, 1)
        added = self._run.append(beside, replace(node, method=scores), self._options)
        self._run.end_branches([beside])
        value = Decided(added, method, node.choices)
        self._run.append(self._branch, Ref(node.name or "a choice", value, node.where), self._options)
        if node.name is not None:
            self._bind(node.name, value)

    def _bind(self, name: str, value: Value) -> None:
        with self._run.changed:
            self._values[name] = value
            self._run.wake()

    def set_var(self, name: str, value: Any) -> None:
        """Bind a name to a value of one's own, from here on."""
        self._bind(name, Given(value))

    __setitem__ = set_var

    def system(self) -> _Role:
        """`with s.system():` what is appended inside is a system message."""
        return _Role(self, "system")

    def user(self) -> _Role:
        """`with s.user():` what is appended inside is a user message."""
        return _Role(self, "user")

    def assistant(self) -> _Role:
        """`with s.assistant():` what is appended inside is an assistant message."""
        return _Role(self, "assistant")

    def var_scope(self, name: str) -> _Scope:
        """`with s.var_scope("x"):` the text appended inside becomes `s["x"]`."""
        return _Scope(self, name)

    def _fork(self, size: int, position_ids_offset: Any) -> list[Self]:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise RequestError(f"fork takes a number of copies >= 0, got {size!r}", param="size")
        if position_ids_offset is not None:
            raise RequestError(
                f"position_ids_offset={position_ids_offset!r} is not built: positions follow the text", param="fork"
            )
        branches = self._run.fork(self._branch, size)
        return [type(self)(self._run, b, self._values, self._options) for b in branches]

    def cancel(self) -> None:
        """Stop this branch and its forks; on the program's first state: everything. What ran stays readable."""
        self._run.cancel(self._branch)

    def _value(self, name: str) -> Value:
        value = self._values.get(name)
        if value is not None:
            return value
        failure = self._branch.failure or self._run.failure
        if failure is not None:
            raise failure.error()
        known = ", ".join(repr(n) for n in self._values) or "none yet"
        raise KeyError(f"this program has no value named {name!r}; names: {known}")

    def __contains__(self, name: object) -> bool:
        """Whether the name is bound; its value may not be there yet."""
        return name in self._values

    def ref(self, name: str, index: int | None = None) -> Ref:
        """The text behind a name, to be appended to any branch of the program before it is there: waits for nothing.

        `s += "Best of: " + forks[0].ref("tip")`. With `index`, one item of a list that a join has gathered. If the
        value fails, so does the branch that quotes it. Raises `KeyError` for a name never bound, `RequestError` for
        a list without index or an index outside the list.
        """
        value = self._value(name)
        if isinstance(value, Captured) and value.end is None:
            raise ProgramError(f"{name!r} is quoted while its var_scope is still open")
        if isinstance(value, Gathered):
            count = len(value.values)
            if index is None or not -count <= index < count:
                raise RequestError(
                    f"{name!r} is a list of {count}; ref needs an index in it, got {index!r}", param="index"
                )
            item = value.values[index]
            if item is None:
                raise RequestError(f"fork {index} has not bound {name!r}", param="index")
            value = item
        elif index is not None:
            raise RequestError(f"{name!r} is no list, so it has no item {index!r}", param="index")
        return Ref(name, value, caller())

    def graph(self) -> ProgramGraph:
        """The program graph as recorded so far: branches, nodes, the user's lines, and what became of each."""
        return self._run.graph


class _Role:
    """A chat message opened by `with`, and closed whatever happens inside."""

    def __init__(self, state: BranchState, role: str) -> None:
        self._state = state
        self._role = role

    def __enter__(self) -> BranchState:
        self._state.append(RoleBegin(self._role, caller()))
        return self._state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._state.append(RoleEnd(self._role, caller()))
        except (ProgramError, RequestError):
            if error is None:  # else the block's own error matters more than a branch that cannot go on
                raise


class _Scope:
    """A capture opened by `with`, and closed whatever happens inside."""

    def __init__(self, state: BranchState, name: str) -> None:
        self._state = state
        self._value = Captured(name, state._branch, len(state._branch.nodes))

    def __enter__(self) -> BranchState:
        self._value.start = len(self._value.branch.nodes)
        self._state._bind(self._value.name, self._value)
        return self._state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._value.end = len(self._value.branch.nodes)
