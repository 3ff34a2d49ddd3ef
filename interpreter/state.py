"""What a program calls `s`: it is appended to, forked and read.

Appending (`s += …`) and forking only record. Reading (`s["x"]`, `text()`, `messages()`, …) waits for what it needs,
and is where errors arrive: a `ProgramError` naming the user's line, chained to its cause.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from stemma.interpreter.branch_state import BranchState
from stemma.interpreter.chat import to_messages
from stemma.interpreter.events import Event, read_events, read_events_async
from stemma.interpreter.graph import GraphBranch, GraphNode
from stemma.interpreter.observed import Observed
from stemma.lang.errors import ProgramError, RequestError

if TYPE_CHECKING:
    from stemma.interpreter.group import ProgramStateGroup


class ProgramState(BranchState, Observed):
    """One branch of a running program, read by threads that wait.

    Every reading method raises `ProgramError` when something it needs failed or was cancelled, and `TimeoutError`
    when `timeout` seconds pass first.
    """

    _outside = False  # read by others than the program while its body may still be running

    def _from_outside(self) -> ProgramState:
        """The same state for readers outside a running body: they wait for what the body has not said yet."""
        twin = ProgramState(self._run, self._branch, None, self._options)
        twin._values, twin._outside = self._values, True
        return twin

    def fork(self, size: int = 1, position_ids_offset: None = None) -> ProgramStateGroup:
        """`size` copies that go on from here, side by side. Waits for nothing; the parent may go on as well."""
        from stemma.interpreter.group import ProgramStateGroup  # the group is made of states

        return ProgramStateGroup(self._fork(size, position_ids_offset), self)

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """`with s.copy() as c:` a copy to try something in; what it bound is in `s` afterwards, as lists of one."""
        group = self.fork(1)
        yield group[0]
        group.join()

    # --- reading

    def get_var(self, name: str, timeout: float | None = None) -> Any:
        """The value of a name, of the type that its gen asked for. Raises `KeyError` for a name never bound."""
        self._await_name(name, timeout)
        return self._value(name).read(self._run, timeout)

    def __getitem__(self, name: str) -> Any:
        return self.get_var(name)

    def raw(self, name: str, timeout: float | None = None) -> Any:
        """The text behind a name, before any type was applied."""
        self._await_name(name, timeout)
        return self._value(name).raw(self._run, timeout)

    def get_meta_info(self, name: str, timeout: float | None = None) -> dict[str, Any]:
        """The endpoint's account of a gen or select: token counts, finish reason, log-probabilities, times.

        Raises `KeyError` for a name that no gen or select made.
        """
        self._await_name(name, timeout)
        meta = self._value(name).meta(self._run, timeout)
        if meta is None:
            raise KeyError(f"{name!r} was not made by a gen or select, so it has no meta info")
        return meta

    def text(self, timeout: float | None = None) -> str:
        """All text of this branch from the program's beginning, role markers included."""
        self._await_body(timeout)
        nodes = self._lineage()
        self._run.wait(nodes, timeout)
        self._raise_failure()
        return "".join(node.text or "" for node in nodes)

    def messages(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """The chat messages of this branch; raises `RequestError` when there is text outside the roles.

        The content of a message with images is a list of parts, as the OpenAI API has them.
        """
        self._await_body(timeout)
        nodes = self._lineage()
        self._run.wait([node for node in nodes if node.awaited], timeout)
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
            failed = (node for branch in branches for node in branch.nodes if node.failure is unseen)
            raise unseen.error(next(failed, None))

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

    @property
    def ret_value(self) -> Any:
        """What the program returned. Waits for a program run with `stream=True`, and raises if it raised."""
        self._await_body(None)
        if self._run.failure is not None:
            raise self._run.failure.error()
        return self._run.result

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
            failed = (node for node in self._lineage() if node.failure is failure)
            raise failure.error(next(failed, None))

    # --- streaming

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """What happens in the whole program, from its beginning to its end, as it happens: see `events.py`.

        For readers outside of the body; several may read at once, and a late one misses nothing. Failures are events
        and raise nothing here. `timeout` bounds the wait for each event. Raises `RequestError` inside the body.
        """
        self._refuse_inside()
        return read_events(self._run, timeout)

    def events_async(self, timeout: float | None = None) -> AsyncIterator[Event]:
        """`events` for coroutines."""
        self._refuse_inside()
        return read_events_async(self._run, timeout)

    def _refuse_inside(self) -> None:
        if not self._outside and not self._run.finished:
            raise RequestError(
                "events() ends with the program, so its body cannot wait for it: read them from outside, "
                "of `prog.run(stream=True)`"
            )

    def text_iter(self, name: str | None = None, timeout: float | None = None) -> Iterator[str]:
        """Text as it comes: of the whole branch, or of one name. Run with `stream=True` for pieces within a gen.

        Outside a streaming program it goes on until the program ends; inside a program, up to what was said so far.
        `timeout` bounds the wait for each piece.
        """
        for item in self._pieces(name):
            if isinstance(item, _Wait):
                until = None if timeout is None else time.monotonic() + timeout
                self._run.wait_for(item.ready, until, item.what)
            else:
                yield item

    async def text_async_iter(
        self, name: str | None = None, return_meta_data: bool = False, timeout: float | None = None
    ) -> AsyncIterator[Any]:
        """`text_iter` for coroutines. With `return_meta_data`, which needs a name, pairs of text and meta info so far.

        Raises `RequestError` for `return_meta_data` without a name.
        """
        if return_meta_data and name is None:
            raise RequestError("return_meta_data=True needs the name of a gen, got None", param="return_meta_data")
        for item in self._pieces(name):
            if isinstance(item, _Wait):
                await self._run.ready_async(item.ready, timeout, item.what)
            elif return_meta_data and name is not None:
                node = self._value(name).node()
                yield item, dict(node.meta) if node is not None else {}
            else:
                yield item

    def _pieces(self, name: str | None) -> Iterator[str | _Wait]:
        """The text in pieces; between them, what must be waited for before going on."""
        if name is not None:
            yield from self._name_pieces(name)
            return
        done = 0
        while True:
            nodes = self._lineage()[done:]
            if not nodes and self._outside and not self._over():
                yield _Wait(lambda done=done: len(self._lineage()) > done or self._over(), "the next node")
                nodes = self._lineage()[done:]
            if not nodes:
                break
            for node in nodes:
                yield from self._node_pieces(node)
            done += len(nodes)
        self._raise_failure()

    def _over(self) -> bool:
        return self._run.finished or self._branch.ended or self._branch.failure is not None

    def _await_name(self, name: str, timeout: float | None) -> None:
        """From outside: wait until the name is bound, or never will be."""
        if self._outside and name not in self._values:
            until = None if timeout is None else time.monotonic() + timeout
            self._run.wait_for(lambda: name in self._values or self._over(), until, f"a value named {name!r}")

    def _name_pieces(self, name: str) -> Iterator[str | _Wait]:
        if self._outside and name not in self._values:
            yield _Wait(lambda: name in self._values or self._over(), f"a value named {name!r}")
        value = self._value(name)
        node = value.node()
        if node is not None:
            yield from self._node_pieces(node)
            return
        nodes = value.nodes()
        if any(not n.settled for n in nodes):
            self._run.flush()
            yield _Wait(lambda: all(n.settled for n in nodes), f"a value named {name!r}")
        yield value.quote(self._run)

    def _node_pieces(self, node: GraphNode) -> Iterator[str | _Wait]:
        shown = 0
        length = 0
        while not node.settled or shown < len(node.pieces):
            if shown == len(node.pieces):
                if not self._outside or self._run.endpoint.quiet_seconds is None:
                    self._run.flush()  # else the quiet timer will soon, in larger pieces
                yield _Wait(lambda seen=shown: node.settled or len(node.pieces) > seen, node.describe())
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


class _Wait(NamedTuple):
    """Something that must become true before there is more to read, and how an error names it."""

    ready: Callable[[], bool]
    what: str
