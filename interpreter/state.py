"""What a program calls `s`: it is appended to, forked and read.

Appending (`s += …`) and forking only record. Reading (`s["x"]`, `text()`, `messages()`, …) waits for what it needs,
and is where errors arrive: a `ProgramError` naming the user's line, chained to its cause.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stemma.interpreter.chat import to_messages
from stemma.interpreter.graph import FILLED, GraphBranch, GraphNode, ProgramGraph
from stemma.interpreter.runtime import Run
from stemma.interpreter.values import Captured, Extracted, Given, Made, Value
from stemma.interpreter.wire import RunOptions
from stemma.lang.errors import ProgramError, RequestError
from stemma.lang.nodes import Gen, RoleBegin, RoleEnd, Select, as_nodes, caller

if TYPE_CHECKING:
    from stemma.interpreter.group import ProgramStateGroup


class ProgramState:
    """One branch of a running program, and the names bound on it.

    Appending raises `ProgramError` at once when the branch failed or ended, and `RequestError` for what cannot be
    appended. Every reading method raises `ProgramError` when something it needs failed or was cancelled, and
    `TimeoutError` when `timeout` seconds pass first.
    """

    def __init__(
        self, run: Run, branch: GraphBranch, values: dict[str, Value] | None = None, options: RunOptions | None = None
    ) -> None:
        self._run = run
        self._branch = branch
        self._values: dict[str, Value] = dict(values or {})
        self._inherited = dict(self._values)
        self._options = options or run.options
        self._outside = False  # read by others than the program while its body may still be running

    def _from_outside(self) -> ProgramState:
        """The same state for readers outside a streaming program: they wait for what the body has not said yet."""
        twin = ProgramState(self._run, self._branch, None, self._options)
        twin._values, twin._outside = self._values, True
        return twin

    def __repr__(self) -> str:
        names = ", ".join(self._values)
        return f"<ProgramState {self._branch.label or 'root'}: {len(self._branch.nodes)} nodes, names: {names or '-'}>"

    # --- saying

    def __iadd__(self, other: Any) -> ProgramState:
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
            added = self._run.append(self._branch, node, self._options)
            if isinstance(node, (Gen, Select)) and node.name is not None:
                self._bind(node.name, Made(added, node.type if isinstance(node, Gen) else None))
            for capture in node.captures if isinstance(node, Gen) else ():
                self._bind(capture.name, Extracted(added, capture))

    def _bind(self, name: str, value: Value) -> None:
        with self._run.changed:
            self._values[name] = value
            self._run.changed.notify_all()

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

    def fork(self, size: int = 1) -> ProgramStateGroup:
        """`size` copies that go on from here, side by side. Waits for nothing; the parent may go on as well."""
        from stemma.interpreter.group import ProgramStateGroup  # the group is made of states

        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise RequestError(f"fork takes a number of copies >= 0, got {size!r}", param="size")
        branches = self._run.fork(self._branch, size)
        return ProgramStateGroup([ProgramState(self._run, b, self._values, self._options) for b in branches], self)

    def cancel(self) -> None:
        """Stop this branch and its forks; on the program's first state: everything. What ran stays readable."""
        self._run.cancel(self._branch)

    # --- reading

    def _value(self, name: str) -> Value:
        value = self._values.get(name)
        if value is not None:
            return value
        failure = self._branch.failure or self._run.failure
        if failure is not None:
            raise failure.error()
        known = ", ".join(repr(n) for n in self._values) or "none yet"
        raise KeyError(f"this program has no value named {name!r}; names: {known}")

    def get_var(self, name: str, timeout: float | None = None) -> Any:
        """The value of a name, of the type that its gen asked for. Raises `KeyError` for a name never bound."""
        self._await_name(name, timeout)
        return self._value(name).read(self._run, timeout)

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def __contains__(self, name: object) -> bool:
        """Whether the name is bound; its value may not be there yet."""
        return name in self._values

    def raw(self, name: str, timeout: float | None = None) -> Any:
        """The text behind a name, before any type was applied."""
        self._await_name(name, timeout)
        return self._value(name).raw(self._run, timeout)

    def get_meta_info(self, name: str, timeout: float | None = None) -> dict[str, Any]:
        """The endpoint's account of a gen or select: token counts, finish reason, log-probabilities, times.

        Raises `KeyError` for a name that no gen or select made.
        """
        self._await_name(name, timeout)
        node = self._value(name).node()
        if node is None:
            raise KeyError(f"{name!r} was not made by a gen or select, so it has no meta info")
        self._run.wait([node], timeout)
        return dict(node.meta)

    def text(self, timeout: float | None = None) -> str:
        """All text of this branch from the program's beginning, role markers included."""
        self._await_body(timeout)
        nodes = self._lineage()
        self._run.wait(nodes, timeout)
        self._raise_failure()
        return "".join(node.text or "" for node in nodes)

    def messages(self, timeout: float | None = None) -> list[dict[str, str]]:
        """The chat messages of this branch; raises `RequestError` when there is text outside the roles."""
        self._await_body(timeout)
        nodes = self._lineage()
        self._run.wait([node for node in nodes if node.kind in FILLED], timeout)
        self._raise_failure()
        return to_messages(nodes)

    def sync(self, timeout: float | None = None) -> None:
        """Wait until everything said so far has run, in the forks as well.

        Raises the first failure of this branch, then the first in a fork that the program has not read itself.
        """
        branches = self._settle_all(timeout)
        self._raise_failure()
        self._raise_unseen(branches)

    def _settle_all(self, timeout: float | None) -> list[GraphBranch]:
        self._await_body(timeout)
        branches = self._branch.subtree()
        for _ in self._run.settle([*self._lineage(), *self._run.filled(branches)], timeout):
            pass
        return branches

    def _raise_unseen(self, branches: list[GraphBranch]) -> None:
        unseen = self._run.unseen_failure(branches)
        if unseen is not None:
            raise unseen.error()

    def _sync_unseen(self) -> None:
        """As `sync`, but a failure that the program itself has read, and so dealt with, does not count."""
        self._raise_unseen(self._settle_all(None))

    def error(self, timeout: float | None = None) -> ProgramError | None:
        """Wait as `sync` does, and return what it would raise, or None."""
        try:
            self.sync(timeout)
        except ProgramError as error:
            return error
        return None

    def usage(self, timeout: float | None = None) -> dict[str, float]:
        """Totals over the whole program: token counts, and `wall_seconds`. Waits for what is running, failed or not."""
        for _ in self._run.settle(self._run.filled(self._run.graph.branches.values()), timeout):
            pass
        return self._run.usage()

    @property
    def ret_value(self) -> Any:
        """What the program returned. Waits for a program run with `stream=True`, and raises if it raised."""
        self._await_body(None)
        if self._run.failure is not None:
            raise self._run.failure.error()
        return self._run.result

    @property
    def graph(self) -> ProgramGraph:
        """The recorded program graph."""
        return self._run.graph

    def _await_body(self, timeout: float | None) -> None:
        if self._outside:
            until = None if timeout is None else time.monotonic() + timeout
            self._run.wait_for(lambda: self._run.finished, until, "the program")

    def _lineage(self) -> list[GraphNode]:
        with self._run.changed:
            return self._branch.lineage()

    def _raise_failure(self) -> None:
        failure = self._branch.failure or self._run.failure
        if failure is not None:
            raise failure.error()

    # --- streaming

    def text_iter(self, name: str | None = None, timeout: float | None = None) -> Iterator[str]:
        """Text as it comes: of the whole branch, or of one name. Run with `stream=True` for pieces within a gen.

        Outside a streaming program it goes on until the program ends; inside a program, up to what was said so far.
        `timeout` bounds the wait for each piece.
        """
        if name is not None:
            yield from self._iter_name(name, timeout)
            return
        done = 0
        while nodes := self._more(done, timeout):
            for node in nodes:
                yield from self._iter_node(node, timeout)
            done += len(nodes)
        self._raise_failure()

    def _more(self, done: int, timeout: float | None) -> list[GraphNode]:
        """The nodes after the first `done`; from outside, waits until there are some or never will be."""
        nodes = self._lineage()
        if self._outside and len(nodes) == done:
            until = None if timeout is None else time.monotonic() + timeout
            self._run.wait_for(lambda: len(self._lineage()) > done or self._over(), until, "the next node")
            nodes = self._lineage()
        return nodes[done:]

    def _over(self) -> bool:
        return self._run.finished or self._branch.ended or self._branch.failure is not None

    def _await_name(self, name: str, timeout: float | None) -> None:
        """From outside: wait until the name is bound, or never will be."""
        if self._outside and name not in self._values:
            until = None if timeout is None else time.monotonic() + timeout
            self._run.wait_for(lambda: name in self._values or self._over(), until, f"a value named {name!r}")

    def _iter_name(self, name: str, timeout: float | None) -> Iterator[str]:
        self._await_name(name, timeout)
        value = self._value(name)
        node = value.node()
        if node is None:
            yield str(value.raw(self._run, timeout))
        else:
            yield from self._iter_node(node, timeout)

    def _iter_node(self, node: GraphNode, timeout: float | None) -> Iterator[str]:
        shown = 0
        length = 0
        while not node.settled or shown < len(node.pieces):
            if shown == len(node.pieces):
                if not self._outside or self._run.endpoint.quiet_seconds is None:
                    self._run.flush()  # else the quiet timer will soon, in larger pieces
                until = None if timeout is None else time.monotonic() + timeout
                seen = shown
                self._run.wait_for(lambda seen=seen: node.settled or len(node.pieces) > seen, until, node.describe())
                continue
            piece = node.pieces[shown]
            shown += 1
            length += len(piece)
            if piece:
                yield piece
        if node.failure is not None:
            raise node.failure.error(node)
        rest = (node.text or "")[length:]
        if rest:
            yield rest


class _Role:
    """A chat message opened by `with`, and closed whatever happens inside."""

    def __init__(self, state: ProgramState, role: str) -> None:
        self._state = state
        self._role = role

    def __enter__(self) -> ProgramState:
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

    def __init__(self, state: ProgramState, name: str) -> None:
        self._state = state
        self._value = Captured(name, state._branch, len(state._branch.nodes))

    def __enter__(self) -> ProgramState:
        self._value.start = len(self._value.branch.nodes)
        self._state._bind(self._value.name, self._value)
        return self._state

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._value.end = len(self._value.branch.nodes)
