"""Programs on services that know no graphs: each gen becomes a request once everything before it is known.

This is the one place where a program graph is lowered to requests. A subclass of `LoweredEndpoint` says what its
service can do (`check`) and how to ask it (`generate`, `choose`); everything else is here: text and messages of each
branch, forks, requests side by side up to `max_in_flight`, retries, cancelling, errors at the node and all that
depends on it.

All state belongs to the loop of `loop.py`; other threads only post to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.interpreter.chat import plain_marker
from stemma.interpreter.endpoints.asking import Answer, Asked, Call, TokenUsage
from stemma.interpreter.endpoints.base import Delta, Endpoint, OnEvent
from stemma.interpreter.endpoints.deltas import ANSWERED, NODE_FIELDS, check_delta, refuse
from stemma.interpreter.endpoints.loop import background_loop
from stemma.interpreter.endpoints.prompt import Prompt, Shape
from stemma.interpreter.endpoints.retry import Failed, check_retries, check_timeout
from stemma.interpreter.endpoints.speculation import Ahead, ahead_params, follows
from stemma.interpreter.graph import FILLED
from stemma.interpreter.wire import error_to_wire
from stemma.lang.errors import CancelledError, EndpointError, RequestError, StemmaError
from stemma.lang.params import SamplingParams

TURN_TRIES = 3  # answers asked for until one reads like the speculated message


@dataclass(slots=True, eq=False)
class _Branch:
    """A branch: its nodes, their shape, and the prompt after each node that has run.

    `failed_at` is the first node that can have no value, with `error` as the reason.
    """

    id: str
    program: _Program = field(repr=False)
    parent: _Branch | None = None
    at: int = 0
    nodes: list[dict[str, Any]] = field(default_factory=list)
    sinks: list[OnEvent] = field(default_factory=list)
    asked: dict[int, Asked] = field(default_factory=dict)
    children: list[_Branch] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)  # empty until the parent is there
    task: asyncio.Task[Any] | None = None
    ahead: Ahead | None = None
    failed_at: int | None = None
    error: StemmaError | None = None
    ended: bool = False

    @property
    def cursor(self) -> int:
        """How many nodes have run."""
        return max(len(self.prompts) - 1, 0)

    @property
    def limit(self) -> int:
        return len(self.nodes) if self.failed_at is None else self.failed_at

    def emit(self, kind: str, node: int, **more: Any) -> None:
        self.sinks[node]({"event": kind, "branch": self.id, "node": node, **more})


@dataclass(slots=True, eq=False)
class _Program:
    id: str
    branches: dict[str, _Branch] = field(default_factory=dict)
    speculate: int | None = None
    ended: bool = False
    busy: int = 0


class LoweredEndpoint(Endpoint):
    """Runs programs by requests to a service. Subclasses give the service.

    At most `max_in_flight` requests are out at a time; the others wait in order. A request that finds no connection,
    or is answered 429 or 5xx, is sent again up to `max_retries` times with growing pauses (`Retry-After` is honoured),
    but never after a piece of the answer was passed on. `timeout` bounds the seconds without a byte from the service.
    """

    capabilities = frozenset({"remote", "speculation"})
    chat = False  # wants messages, not text
    continues = True  # can go on from the beginning of an answer

    def __init__(self, *, max_in_flight: int = 64, max_retries: int = 2, timeout: float | None = 600.0) -> None:
        if isinstance(max_in_flight, bool) or not isinstance(max_in_flight, int) or max_in_flight < 1:
            raise RequestError(f"max_in_flight must be an integer >= 1, got {max_in_flight!r}", param="max_in_flight")
        self.max_in_flight = max_in_flight
        self.max_retries = check_retries(max_retries)
        self.timeout = check_timeout(timeout)
        self.token_usage = TokenUsage()
        self._closed = self._used = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._programs: dict[str, _Program] = {}
        self._slots: asyncio.Semaphore | None = None
        self._lock = threading.Lock()
        self._ready: deque[_Branch] = deque()
        self._draining = False

    # --- what a service is

    @abstractmethod
    def check(self, node: dict[str, Any], asked: Asked | None, shape: Shape, speculative: bool) -> None:
        """Raise `RequestError` for a node that the service cannot do here; with a gen, `asked` is given.

        Called for every node but text when its delta arrives, before anything of the delta runs.
        """

    @abstractmethod
    async def generate(self, prompt: Prompt, asked: Asked, call: Call) -> Answer:
        """Ask for a generation, through `call.send`. Raises `StemmaError`."""

    async def choose(self, prompt: Prompt, node: dict[str, Any], call: Call) -> Answer:
        """Ask for a choice; `more` holds `choice` and `scores`. Only called where `check` allowed a select."""
        raise RequestError(f"{self!r} cannot select", param="choices")

    @abstractmethod
    def failed(self, error: Exception) -> Failed:
        """What an exception of the service's client means."""

    def marker(self, kind: str, role: str) -> str:
        """The text of a role node, as readers of the program's text see it."""
        return plain_marker(kind, role)

    def cut(self, text: str, tokens: int) -> str | None:
        """The first `tokens` tokens of a text; None where the service's tokens are not known."""
        return None

    async def disconnect(self) -> None:
        """Close the client. The endpoint is closed, or its process was forked."""

    # --- the contract, on any thread

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        with self._lock:
            if self._pid != os.getpid():
                self._begin()  # forked: programs and connections stayed with the parent
        self._used = True
        background_loop().call_soon_threadsafe(self._take, delta, on_event)

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        background_loop().call_soon_threadsafe(self._cancel, program, None if branches is None else set(branches))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._used:
            return
        asyncio.run_coroutine_threadsafe(self._close(), background_loop()).result(10.0)

    def info(self) -> dict[str, Any]:
        """What is known without asking the service."""
        return {"endpoint": type(self).__name__}

    @property
    def open_branches(self) -> set[tuple[str, str]]:
        """The (program, branch) pairs that more may be said to."""
        programs = list(self._programs.values())
        return {(p.id, b.id) for p in programs for b in list(p.branches.values()) if not (b.ended or p.ended)}

    # --- deltas, on the loop

    def _take(self, delta: Delta, on_event: OnEvent) -> None:
        try:
            if self._closed:
                raise EndpointError(f"{self!r} is closed")
            program = self._programs.get(delta["program"])
            nodes = {b.id: len(b.nodes) for b in program.branches.values()} if program is not None else {}
            check_delta(delta, nodes, program is not None and program.ended)
        except Exception as error:
            wrong = error if isinstance(error, StemmaError) else RequestError(f"malformed delta: {error!r}")
            refuse(delta, on_event, wrong)
            return
        hints = delta.get("hints") or {}
        if hints.get("priority") is not None:
            refuse(delta, on_event, RequestError(f"{self!r} takes no priority", param="priority"))
            return
        if program is None:
            program = self._programs[delta["program"]] = _Program(delta["program"])
        program.speculate = hints.get("num_api_spec_tokens", program.speculate)
        program.ended = program.ended or delta.get("end", False)
        try:
            self._advance(*[self._append(program, entry, on_event) for entry in delta["branches"]])
        except Exception as error:
            self._stop(program, None, EndpointError(f"internal error: {error!r}"))
            raise
        self._forget_if_over(program)

    def _append(self, program: _Program, entry: dict[str, Any], on_event: OnEvent) -> _Branch:
        branch = program.branches.get(entry["id"])
        if branch is None:
            parent = program.branches[entry["parent"]] if entry.get("parent") is not None else None
            branch = program.branches[entry["id"]] = _Branch(entry["id"], program, parent, entry.get("at", 0))
            if parent is None:
                branch.shapes.append(Shape())
                branch.prompts.append(Prompt())
            else:
                parent.children.append(branch)
                branch.shapes.append(parent.shapes[branch.at])
                if branch.at < len(parent.prompts):
                    branch.prompts.append(parent.prompts[branch.at])
                if parent.failed_at is not None and parent.failed_at < branch.at:
                    branch.failed_at, branch.error = 0, parent.error
        first = len(branch.nodes)
        for node in entry["nodes"]:
            branch.nodes.append(node)
            branch.sinks.append(on_event)
            branch.shapes.append(branch.shapes[-1].after(node) if branch.failed_at is None else branch.shapes[-1])
        branch.ended = branch.ended or entry.get("end", False)
        self._check_nodes(branch, first)
        return branch

    def _check_nodes(self, branch: _Branch, first: int) -> None:
        """Fail what cannot be done, before any of it costs a request."""
        if branch.failed_at is not None:
            assert branch.error is not None
            self._report(branch, range(first, len(branch.nodes)), branch.error)
            return
        for i in range(first, len(branch.nodes)):
            try:
                self._check_node(branch, i)
            except Exception as error:
                wrong = error if isinstance(error, StemmaError) else RequestError(f"malformed node: {error!r}")
                self._fail(branch, i, wrong)
                return

    def _check_node(self, branch: _Branch, index: int) -> None:
        node = branch.nodes[index]
        kind = node["kind"]
        if kind == "text":
            return
        if kind not in (*ANSWERED, "image"):
            raise RequestError(f"{self!r} cannot run a {kind!r} node", param="kind")
        unknown = sorted(name for name in set(node) - NODE_FIELDS.get(kind, set(node)) if node[name] is not None)
        if unknown:
            raise RequestError(f"{self!r} cannot run a {kind} with {', '.join(unknown)}", param=unknown[0])
        asked = Asked.of(node) if kind == "gen" else None
        if asked is not None:
            branch.asked[index] = asked
        self.check(node, asked, branch.shapes[index], branch.program.speculate is not None)

    # --- running, on the loop

    def _advance(self, *branches: _Branch) -> None:
        self._ready.extend(branches)
        if self._draining:
            return
        self._draining = True
        try:
            while self._ready:
                branch = self._ready.popleft()
                if branch.prompts and branch.task is None:
                    self._run(branch)
        finally:
            self._draining = False

    def _run(self, branch: _Branch) -> None:
        """Literals up to the next request, and start that. Children that wait for a place in between start too."""
        self._start_children(branch)
        while branch.cursor < branch.limit:
            index = branch.cursor
            node, prompt = branch.nodes[index], branch.prompts[-1]
            kind = node["kind"]
            if kind in FILLED:
                branch.program.busy += 1
                branch.task = asyncio.get_running_loop().create_task(self._fill(branch, index))
                branch.task.add_done_callback(functools.partial(self._filled, branch, index))
                return
            if kind == "text":
                if branch.ahead is not None and not branch.ahead.skip(node["text"]):
                    branch.ahead = None
                prompt = prompt.text(node["text"])
            elif kind == "image":
                branch.ahead = None
                prompt = prompt.image(node["data"], node["mime"])
            else:
                branch.ahead = None
                branch.emit("text", index, text=self.marker(kind, node["role"]))
                prompt = prompt.begin(node["role"]) if kind == "role_begin" else prompt.end(node["role"])
            self._mark(branch, prompt)

    def _mark(self, branch: _Branch, prompt: Prompt) -> None:
        branch.prompts.append(prompt)
        self._start_children(branch)

    def _start_children(self, branch: _Branch) -> None:
        for child in branch.children:
            if not child.prompts and child.at < len(branch.prompts):
                child.prompts.append(branch.prompts[child.at])
                self._ready.append(child)

    async def _fill(self, branch: _Branch, index: int) -> tuple[str, dict[str, Any]]:
        """The text and meta of a gen or select."""
        node = branch.nodes[index]
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.max_in_flight)
        queued = time.perf_counter()
        streams = node["kind"] == "gen" and branch.asked[index].stream
        on_text = (lambda piece: branch.emit("delta", index, text=piece, ids=[])) if streams else None
        async with self._slots:
            call = Call(self.failed, self.max_retries, on_text)
            answer = await self._answer(branch, index, call)
        self.token_usage.prompt_tokens += answer.prompt_tokens or 0
        self.token_usage.completion_tokens += answer.completion_tokens or 0
        meta = answer.meta()
        meta |= {"queue_time": call.began - queued, "e2e_latency": time.perf_counter() - call.began}
        meta |= {"ttft": call.first_text - call.began} if call.first_text is not None else {}
        return answer.text, {**meta, "retries": call.retries}

    def _filled(self, branch: _Branch, index: int, task: asyncio.Task[tuple[str, dict[str, Any]]]) -> None:
        """The task is over, come what may: the node is settled, and the branch goes on."""
        branch.task = None
        branch.program.busy -= 1
        error = CancelledError("cancelled") if task.cancelled() else task.exception()
        try:
            if error is not None:
                self._fail(branch, index, self._named(error))
            elif branch.failed_at is None or branch.failed_at > index:
                text, meta = task.result()
                branch.emit("done", index, text=text, ids=[], meta=meta)
                self._mark(branch, branch.prompts[-1].text(text))
            self._advance(branch)
        except Exception as wrong:
            self._stop(branch.program, None, EndpointError(f"internal error: {wrong!r}"))
            raise
        self._forget_if_over(branch.program)

    def _named(self, error: BaseException) -> StemmaError:
        return error if isinstance(error, StemmaError) else EndpointError(f"{self!r}: {type(error).__name__}: {error}")

    async def _answer(self, branch: _Branch, index: int, call: Call) -> Answer:
        node, prompt = branch.nodes[index], branch.prompts[-1]
        if node["kind"] == "select":
            branch.ahead = None
            return await self.choose(prompt, node, call)
        asked = branch.asked[index]
        if asked.params.max_new_tokens == 0:
            return Answer("", {"type": "length", "length": 0}, None, 0, 0)
        tokens = branch.program.speculate
        if tokens is None or asked.constraint is not None or asked.logprobs is not None:
            branch.ahead = None
            return await self.generate(prompt, asked, call)
        answer = await (self._from_turn if self._turns(prompt) else self._from_ahead)(branch, index, tokens, call)
        call.text(answer.text)
        return answer

    # --- speculation: see speculation.py

    def _turns(self, prompt: Prompt) -> bool:
        return self.chat and not self.continues and prompt.role is not None

    async def _from_ahead(self, branch: _Branch, index: int, tokens: int, call: Call) -> Answer:
        """A gen of a text: from what was written ahead, else from a long answer, else from one of its own."""
        prompt, asked = branch.prompts[-1], branch.asked[index]
        ready = branch.ahead.take(asked.params, self.cut) if branch.ahead is not None else None
        if ready is not None:
            return Answer(ready[0], ready[1], 0, 0, 0, {"speculated": True})
        silent = call.apart()
        longer = ahead_params(asked.params, tokens)
        long = await self.generate(prompt, Asked(longer), silent)
        call.retries += silent.retries
        ended = (long.finish_reason or {}).get("type") == "stop"
        branch.ahead = Ahead(long.text, asked.params, ended)
        exact = longer.max_new_tokens == asked.params.max_new_tokens
        ready = branch.ahead.take(asked.params, self.cut, rest=exact)
        if ready is not None or not long.text:
            long.text, long.finish_reason = ready or ("", long.finish_reason)
            return long
        branch.ahead = None
        short = await self.generate(prompt, Asked(asked.params), silent)
        call.retries += silent.retries
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            setattr(short, name, (getattr(short, name) or 0) + (getattr(long, name) or 0))
        return short

    async def _from_turn(self, branch: _Branch, index: int, tokens: int, call: Call) -> Answer:
        """A gen of a chat message: the message is asked for as a whole, and must read as the program says."""
        prompt, asked = branch.prompts[-1], branch.asked[index]
        first = not any(node["kind"] in FILLED for node in _since_role(branch.nodes[:index]))
        if not first:
            ready = branch.ahead.take(asked.params, self.cut, rest=True) if branch.ahead is not None else None
            if ready is None:
                raise EndpointError("the speculated message does not go on as the program does")
            return Answer(ready[0], ready[1], 0, 0, 0, {"speculated": True})
        turn: list[str | SamplingParams] = []
        for i in range(index, branch.limit):
            node = branch.nodes[i]
            if node["kind"] not in ("text", "gen"):
                break
            turn.append(branch.asked[i].params if node["kind"] == "gen" else node["text"])
        lead, silent = prompt.open_text(), call.apart()
        longest = max((p.max_new_tokens or 0 for p in turn if isinstance(p, SamplingParams)), default=0)
        request = Asked(ahead_params(asked.params, max(tokens, longest)))
        used = Answer("", None, 0, 0, 0)
        why: str | None = None
        for _ in range(TURN_TRIES):
            answer = await self.generate(prompt.opening(), request, silent)
            call.retries = silent.retries
            for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
                setattr(used, name, (getattr(used, name) or 0) + (getattr(answer, name) or 0))
            ended = (answer.finish_reason or {}).get("type") == "stop"
            ahead = Ahead(answer.text, asked.params, ended)
            why = follows(ahead, lead, turn, self.cut)
            if why is None:
                ahead.skip(lead)
                ready = ahead.take(asked.params, self.cut, rest=True)
                branch.ahead = ahead
                used.text, used.finish_reason = ready or ("", answer.finish_reason)
                return used
        raise EndpointError(f"{TURN_TRIES} answers did not read like the speculated message; the last: {why}")

    # --- ends, on the loop

    def _fail(self, branch: _Branch, index: int, error: StemmaError) -> None:
        """The node has no value, nor has what comes after it or was forked after it."""
        reached = [(branch, index)]
        for each, first in reached:
            stop = each.limit
            if first >= stop and each.failed_at is not None:
                continue
            blamed = each is branch and first < stop and each.nodes[first]["kind"] not in ANSWERED
            each.failed_at, each.error = first, error
            if blamed:
                each.emit("error", first, error=error_to_wire(error))
            self._report(each, range(first, stop), error)
            reached += [(child, 0) for child in each.children if child.at > first]

    def _report(self, branch: _Branch, nodes: range, error: StemmaError) -> None:
        wire = error_to_wire(error)
        for i in nodes:
            if branch.nodes[i]["kind"] in ANSWERED:
                branch.emit("error", i, error=wire)

    def _cancel(self, program_id: str, ids: set[str] | None) -> None:
        program = self._programs.get(program_id)
        if program is None:
            return
        program.ended = program.ended or ids is None
        self._stop(program, ids, CancelledError("cancelled"))
        self._forget_if_over(program)

    def _stop(self, program: _Program, ids: set[str] | None, error: StemmaError) -> None:
        chosen: set[_Branch] = set()
        for branch in program.branches.values():  # parents come before children
            if ids is None or branch.id in ids or branch.parent in chosen:
                chosen.add(branch)
                branch.ended = True
                if branch.failed_at is None or branch.failed_at > branch.cursor:
                    self._fail(branch, branch.cursor, error)
                if branch.task is not None:
                    branch.task.cancel()

    def _forget_if_over(self, program: _Program) -> None:
        if program.ended and not program.busy and self._programs.get(program.id) is program:
            del self._programs[program.id]

    async def _close(self) -> None:
        for program in list(self._programs.values()):
            self._stop(program, None, EndpointError(f"{self!r} was closed"))
        self._programs.clear()
        with contextlib.suppress(Exception):  # a client that cannot even close has nothing left to lose
            await self.disconnect()


def _since_role(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes of the message that is open at the end."""
    begins = [i for i, node in enumerate(nodes) if node["kind"] == "role_begin"]
    return nodes[begins[-1] + 1 :] if begins else nodes
