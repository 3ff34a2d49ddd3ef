"""What an `async def` program calls `s`: appending is as in `state.py`, and what is read is awaited."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stemma.interpreter.branch_state import BranchState
from stemma.interpreter.group import StateGroup
from stemma.interpreter.state import ProgramState
from stemma.lang.errors import ProgramError
from stemma.lang.nodes import Ref, caller

if TYPE_CHECKING:
    from stemma.interpreter.explain import Plan
    from stemma.interpreter.replay import Record
    from stemma.interpreter.trace import Trace
    from stemma.interpreter.usage import NodeUsage, Prices


class Pending(Ref):
    """`s["x"]` in an async program: `await` it for the value, or append it, which quotes it without waiting."""

    state: AsyncProgramState

    def __await__(self) -> Generator[Any, None, Any]:
        return self.state.get_var(self.name).__await__()

    def _no_value(self, *_: Any) -> Any:
        raise ProgramError(f"{self.name!r} is read at {self.where} but not awaited: write `await s[{self.name!r}]`")

    __str__ = __format__ = __bool__ = __iter__ = __len__ = __int__ = __float__ = __getitem__ = _no_value
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _no_value
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


class AsyncProgramState(BranchState):
    """One branch of a running program, read by coroutines.

    Every reading method raises what `ProgramState`'s does. A task that is cancelled while it waits only stops
    waiting; the program is cancelled when its body is.
    """

    @property
    def _here(self) -> ProgramState:
        """The same branch for reading what is there."""
        twin = ProgramState(self._run, self._branch, None, self._options)
        twin._values = self._values
        return twin

    def fork(self, size: int = 1, position_ids_offset: None = None) -> AsyncProgramStateGroup:
        """`size` copies that go on from here, side by side. Waits for nothing; the parent may go on as well."""
        return AsyncProgramStateGroup(self._fork(size, position_ids_offset), self)

    @contextmanager
    def copy(self) -> Iterator[AsyncProgramState]:
        """`with s.copy() as c:` a copy to try something in; what it bound is in `s` afterwards, as lists of one."""
        group = self.fork(1)
        yield group[0]
        group.join()

    def __getitem__(self, name: str) -> Pending:
        value = self._value(name)
        pending = Pending(name, value, caller())
        object.__setattr__(pending, "state", self)
        return pending

    async def get_var(self, name: str, timeout: float | None = None) -> Any:
        """The value of a name, of the type that its gen asked for. Raises `KeyError` for a name never bound."""
        value = self._value(name)
        await self._run.settle_async(value.nodes(), timeout)
        return value.read(self._run)

    async def raw(self, name: str, timeout: float | None = None) -> Any:
        """The text behind a name, before any type was applied."""
        value = self._value(name)
        await self._run.settle_async(value.nodes(), timeout)
        return value.raw(self._run)

    async def get_meta_info(self, name: str, timeout: float | None = None) -> dict[str, Any]:
        """The endpoint's account of a gen or select. Raises `KeyError` for a name that no gen or select made."""
        await self._run.settle_async(self._value(name).nodes(), timeout)
        return self._here.get_meta_info(name)

    async def text(self, timeout: float | None = None) -> str:
        """All text of this branch from the program's beginning, role markers included."""
        await self._run.settle_async(self._here._lineage(), timeout)
        return self._here.text()

    async def messages(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """The chat messages of this branch; raises `RequestError` when there is text outside the roles."""
        await self._run.settle_async([n for n in self._here._lineage() if n.awaited], timeout)
        return self._here.messages()

    async def sync(self, timeout: float | None = None) -> None:
        """Wait until everything said so far has run, in the forks as well; raises as `ProgramState.sync` does."""
        await self._settle_all(timeout)
        self._here.sync()

    async def error(self, timeout: float | None = None) -> ProgramError | None:
        """Wait as `sync` does, and return what it would raise, or None."""
        await self._settle_all(timeout)
        return self._here.error()

    async def usage(self, timeout: float | None = None, prices: Prices | None = None) -> dict[str, float]:
        """Totals over the whole program, with `prices` also its cost. Waits for what is running."""
        await self._settle_program(timeout)
        return self._here.usage(prices=prices)

    async def usage_by_node(self, timeout: float | None = None, prices: Prices | None = None) -> list[NodeUsage]:
        """The same for each gen and select. Waits for all."""
        await self._settle_program(timeout)
        return self._here.usage_by_node(prices=prices)

    async def explain(self, timeout: float | None = None) -> Plan:
        """What the program asked for, what its branches share, and the tokens that this saved. Waits for all."""
        await self._settle_program(timeout)
        return self._here.explain()

    async def trace(self, timeout: float | None = None, prices: Prices | None = None) -> Trace:
        """Everything that happened, to look at. Waits for what is running."""
        await self._settle_program(timeout)
        return self._here.trace(prices=prices)

    async def record(self, timeout: float | None = None) -> Record:
        """The run as a record that `ReplayEndpoint` answers from. Waits for what is running."""
        await self._settle_program(timeout)
        return self._here.record()

    async def _settle_program(self, timeout: float | None) -> None:
        run = self._run
        await run.settle_async(run.filled(list(run.graph.branches.values())), timeout)

    async def _settle_all(self, timeout: float | None) -> None:
        run = self._run
        await run.settle_async([*self._here._lineage(), *run.filled(self._branch.subtree())], timeout)

    async def text_iter(self, name: str | None = None, timeout: float | None = None) -> AsyncIterator[str]:
        """Text as it comes, of the branch as said so far or of one name; in pieces when run with `stream=True`."""
        async for piece in self._here.text_async_iter(name, timeout=timeout):
            yield piece

    text_async_iter = text_iter


class AsyncProgramStateGroup(StateGroup[AsyncProgramState]):
    """The children of one `fork`, read by coroutines."""

    async def race(self, timeout: float | None = None) -> AsyncProgramState:
        """The first child that has run all it was told; the others are cancelled. See `ProgramStateGroup.race`."""
        return (await self.first(1, timeout=timeout))[0]

    async def first(
        self, k: int = 1, when: Callable[[AsyncProgramState], Any] | None = None, timeout: float | None = None
    ) -> list[AsyncProgramState]:
        """The first `k` children, as they arrive, that `when` says yes to; the others are cancelled.

        `when` may be a coroutine function. See `ProgramStateGroup.first`.
        """
        self._check_count(k)
        run = self._parent._run
        arrived: list[AsyncProgramState] = []
        winners: list[AsyncProgramState] = []
        run.flush()
        async with asyncio.timeout(timeout):
            while len(winners) < k and len(arrived) < len(self._states):
                await run.ready_async(lambda known=tuple(arrived): bool(self._arrived(known)), None, "a fork")
                with run.changed:
                    new = self._arrived(arrived)
                arrived += new
                right = [s for s in new if s._branch.failure is None and (when is None or await _answer(when(s)))]
                winners += right
        if len(winners) < k:
            raise self._too_few(winners, k)
        self._cancel_but(winners[:k])
        return winners[:k]


async def _answer(given: Any) -> bool:
    return bool(await given if inspect.isawaitable(given) else given)
