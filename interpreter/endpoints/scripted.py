"""A fake that answers from a script, so that a program can be tested without a model.

endpoint = ScriptedEndpoint({"answer": "Paris"})
state = ask.run("Capital of France?", backend=endpoint)
assert state["answer"] == "Paris"
assert endpoint.prompts["answer"].endswith("France?")
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stemma.interpreter.chat import plain_marker
from stemma.interpreter.endpoints.base import Delta, Endpoint, Event, OnEvent
from stemma.interpreter.endpoints.composed import scripted_captures
from stemma.interpreter.graph import FILLED, ROLES
from stemma.interpreter.timers import call_later
from stemma.interpreter.wire import error_to_wire
from stemma.lang.errors import CancelledError, RequestError

Reply = str | BaseException
Replies = Mapping[str, Any] | Sequence[Reply] | Callable[[str, dict[str, Any]], Reply]

THREADS = 16  # for replies that are functions, which may take their time
_BRANCH_FIELDS = {"id", "parent", "at", "first", "nodes", "end"}
_ANSWERED = (*FILLED, *ROLES)


@dataclass(slots=True)
class _Branch:
    """A branch as the fake knows it: the text after each of its nodes (from the beginning of the program)."""

    id: str
    parent: _Branch | None
    at: int
    start: str | None
    texts: list[str] = field(default_factory=list)
    todo: deque[tuple[int, dict[str, Any], OnEvent]] = field(default_factory=deque)
    known: int = 0
    error: Exception | None = None
    failed_at: int = 0
    ended: bool = False
    waiting: bool = False  # for a reply that takes its time
    children: list[_Branch] = field(default_factory=list)
    images: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # its image nodes and their places

    def text(self, count: int) -> str:
        assert self.start is not None
        return self.texts[count - 1] if count else self.start

    def images_before(self, count: int) -> list[dict[str, Any]]:
        """The images of its prompt, in order, up to this node."""
        inherited = self.parent.images_before(self.at) if self.parent is not None else []
        return inherited + [image for index, image in self.images if index < count]


@dataclass(slots=True)
class _Program:
    branches: dict[str, _Branch] = field(default_factory=dict)
    queue: deque[Callable[[], None]] = field(default_factory=deque)
    working: bool = False
    cancelled: bool = False
    ended: bool = False


class ScriptedEndpoint(Endpoint):
    """Answers gens and selects from `replies`.

    A mapping goes by the gen's name; its values are a text, a list of texts used up in turn, an exception to fail
    with, or a function. A list is used up in turn by whatever comes; a function is called with the prompt's text and
    the node, and returns a text or an exception. Without replies each gen answers its own name. A select takes its
    reply if that is one of the choices, and the first choice if it has none. Gens stop at their stop strings, and a
    reply that does not match the gen's regex, choices or composed constraint is an error.

    `latency` is how many seconds each reply takes, or a function of the prompt's text and the node; meanwhile other
    branches go on, as they would on an engine. `deltas` are all deltas that came, in order; `prompts` the last prompt
    of each name, `images` the image nodes in it. Each program's replies are made in order, on one of a few threads that
    all scripted endpoints share. It sends nothing before a value is demanded, so that tests are deterministic.
    """

    capabilities = frozenset({"names", "images", "image_urls"})
    quiet_seconds = None

    def __init__(self, replies: Replies | None = None, *, latency: float | Callable[..., float] = 0.0) -> None:
        self._latency = latency
        self.deltas: list[Delta] = []
        self.cancels: list[tuple[str, list[str] | None]] = []
        self.prompts: dict[str | None, str] = {}
        self.images: dict[str | None, list[dict[str, Any]]] = {}
        self._replies = replies
        self._used: dict[str | None, int] = {}
        self._programs: dict[str, _Program] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def open_branches(self) -> set[tuple[str, str]]:
        """The (program, branch) pairs that still hold a lease."""
        with self._lock:
            return {
                (name, id)
                for name, program in self._programs.items()
                for id, branch in program.branches.items()
                if not (branch.ended or program.ended or program.cancelled)
            }

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        with self._lock:
            self.deltas.append(delta)
            program = self._programs.setdefault(delta["program"], _Program())
            if not delta["branches"]:
                program.ended = program.ended or delta["end"]
                return
        self._enqueue(program, lambda: self._take(program, delta, on_event))

    def _enqueue(self, program: _Program, act: Callable[[], None]) -> None:
        """Do it for this program, after what came before; one thread at a time works for a program."""
        with self._lock:
            program.queue.append(act)
            if program.working:
                return
            program.working = True
        _threads().submit(self._work, program)

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        with self._lock:
            self.cancels.append((program, None if branches is None else list(branches)))
            found = self._programs.get(program)
            if found is None:
                return
            if branches is None:
                found.cancelled = True
            for id in branches or ():
                if id in found.branches:
                    branch = found.branches[id]
                    branch.error, branch.ended = branch.error or CancelledError(f"branch {id} was cancelled"), True

    def info(self) -> dict[str, Any]:
        return {"endpoint": "ScriptedEndpoint", "model": "scripted", "deltas": len(self.deltas)}

    def close(self) -> None:
        self._closed = True

    # --- the work, one thread per program at a time

    def _work(self, program: _Program) -> None:
        while True:
            with self._lock:
                if not program.queue:
                    program.working = False
                    return
                act = program.queue.popleft()
            act()

    def _take(self, program: _Program, delta: Delta, on_event: OnEvent) -> None:
        try:
            self._check(program, delta)
        except RequestError as error:  # the delta is malformed
            for branch in delta.get("branches", ()):
                for i, node in enumerate(branch.get("nodes", ())):
                    if node.get("kind") in _ANSWERED:
                        self._fail(on_event, branch.get("id"), branch.get("first", 0) + i, error)
            return
        for entry in delta["branches"]:
            branch = program.branches.get(entry["id"]) or self._open(program, entry)
            branch.todo.extend((branch.known + i, node, on_event) for i, node in enumerate(entry["nodes"]))
            branch.known += len(entry["nodes"])
            branch.ended = branch.ended or entry["end"]
            self._advance(program, branch)
        program.ended = program.ended or delta["end"]

    def _advance(self, program: _Program, branch: _Branch) -> None:
        """Run the branch's nodes up to one whose reply takes its time, then the children that it was holding up."""
        if branch.start is None and branch.parent is not None and len(branch.parent.texts) >= branch.at:
            branch.start = branch.parent.text(branch.at)
            if branch.parent.error is not None and branch.parent.failed_at < branch.at:
                branch.error, branch.failed_at = branch.error or branch.parent.error, -1
        while branch.start is not None and branch.todo and not branch.waiting:
            index, node, on_event = branch.todo.popleft()
            self._node(program, branch, index, node, on_event)
        for child in branch.children:
            if child.start is None and len(branch.texts) >= child.at:
                self._advance(program, child)

    def _check(self, program: _Program, delta: Delta) -> None:
        """Hold the delta to the contract, so that tests see when it is broken."""
        if set(delta) - {"program", "branches", "end", "hints"}:
            raise RequestError(f"unknown fields in delta: {sorted(delta)}")
        coming: set[str] = set()
        for entry in delta["branches"]:
            if set(entry) - _BRANCH_FIELDS:
                raise RequestError(f"unknown fields in branch: {sorted(entry)}")
            known = program.branches.get(entry["id"])
            if entry["first"] != (known.known if known else 0):
                raise RequestError(f"branch {entry['id']}: first is {entry['first']}, not what was sent before")
            parent = entry.get("parent")
            if parent is not None and parent not in program.branches and parent not in coming:
                raise RequestError(f"branch {entry['id']}: unknown parent {parent!r}")
            coming.add(entry["id"])

    def _open(self, program: _Program, entry: dict[str, Any]) -> _Branch:
        parent = program.branches[entry["parent"]] if entry.get("parent") is not None else None
        branch = _Branch(entry["id"], parent, entry.get("at") or 0, "" if parent is None else None)
        if parent is not None:
            parent.children.append(branch)
        program.branches[entry["id"]] = branch
        return branch

    def _node(self, program: _Program, branch: _Branch, index: int, node: dict[str, Any], on_event: OnEvent) -> None:
        prompt, text = branch.text(index), ""
        kind = node["kind"]
        stopped = self._stopped(program, branch)
        if kind in _ANSWERED and stopped is not None:
            self._fail(on_event, branch.id, index, stopped)
        elif kind in FILLED:
            self._answer(program, branch, index, node, prompt, on_event)
            return
        elif kind == "text":
            text = node["text"]
        elif kind == "image":
            branch.images.append((index, {k: v for k, v in node.items() if k in ("data", "mime", "url")}))
        elif kind in ROLES:
            text = plain_marker(kind, node["role"])
            on_event({"event": "text", "branch": branch.id, "node": index, "text": text})
        branch.texts.append(prompt + text)

    def _stopped(self, program: _Program, branch: _Branch) -> Exception | None:
        stopped = CancelledError("the program was cancelled") if program.cancelled else branch.error
        return RequestError("the endpoint is closed") if self._closed else stopped

    def _answer(
        self, program: _Program, branch: _Branch, index: int, node: dict[str, Any], prompt: str, on_event: OnEvent
    ) -> None:
        """Make the reply now, and deliver it now or later."""
        self.prompts[node.get("name")] = prompt
        self.images[node.get("name")] = branch.images_before(index)
        reply: tuple[str, dict[str, Any]] | Exception
        try:
            said = self._reply(prompt, node)
            reply = _selected(node, said) if node["kind"] == "select" else _generated(node, said)
            seconds = self._latency(prompt, node) if callable(self._latency) else self._latency
        except Exception as error:  # an exception in the script is the node's error, whatever it is
            reply, seconds = error, 0.0

        def deliver() -> None:
            branch.waiting = False
            branch.texts.append(prompt + self._deliver(program, branch, index, node, prompt, reply, on_event))

        if seconds <= 0:
            deliver()
            return
        branch.waiting = True

        def later() -> None:
            deliver()
            self._advance(program, branch)

        call_later(seconds, lambda: self._enqueue(program, later))

    def _deliver(
        self,
        program: _Program,
        branch: _Branch,
        index: int,
        node: dict[str, Any],
        prompt: str,
        reply: tuple[str, dict[str, Any]] | Exception,
        on_event: OnEvent,
    ) -> str:
        if (stopped := self._stopped(program, branch)) is not None:
            self._fail(on_event, branch.id, index, stopped)
            return ""
        if isinstance(reply, Exception):
            branch.error, branch.failed_at = reply, index
            self._fail(on_event, branch.id, index, reply)
            return ""
        text, meta = reply
        if node.get("stream"):
            for piece in _pieces(text):
                on_event({"event": "delta", "branch": branch.id, "node": index, "text": piece, "ids": []})
        counts = {"prompt_tokens": len(_pieces(prompt)), "completion_tokens": len(_pieces(text)), "cached_tokens": 0}
        meta = {**counts, "computed_tokens": len(_pieces(prompt + text)), "forced_tokens": 0, **meta}
        on_event({"event": "done", "branch": branch.id, "node": index, "text": text, "ids": [], "meta": meta})
        return text

    def _fail(self, on_event: OnEvent, branch: Any, index: int, error: Exception) -> None:
        event: Event = {"event": "error", "branch": branch, "node": index, "error": error_to_wire(error)}
        on_event(event)

    def _reply(self, prompt: str, node: dict[str, Any]) -> str | None:
        """What the script says; None where it says nothing and the node may choose itself."""
        name: Any = node.get("name")
        script: Any = self._replies
        if isinstance(script, Mapping):
            if name not in script:
                if node["kind"] == "select":
                    return None
                raise RequestError(f"no scripted reply for {node['kind']} {name!r}; replies: {list(script)}")
            script = script[name]
        elif script is None:
            return None
        elif not isinstance(script, str) and isinstance(script, Sequence):
            name = None  # one list for all
        if isinstance(script, Sequence) and not isinstance(script, str):
            script = self._next(script, name, node)
        if callable(script) and not isinstance(script, BaseException):
            script = script(prompt, node)
        if isinstance(script, BaseException):
            raise script
        if script is not None and not isinstance(script, str):
            raise RequestError(f"a scripted reply must be a string or an exception, got {script!r}")
        return script

    def _next(self, script: Sequence[Any], name: str | None, node: dict[str, Any]) -> Any:
        with self._lock:
            used = self._used.get(name, 0)
            left = used < len(script)
            if node["kind"] == "select" and (not left or script[used] not in node["choices"]):
                return None
            if not left:
                raise RequestError(f"the scripted replies are used up: {len(script)} for {name or 'all nodes'}")
            self._used[name] = used + 1
            return script[used]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "stemma-scripted")


os.register_at_fork(after_in_child=_threads.cache_clear)  # its threads are not in the child


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _selected(node: dict[str, Any], reply: str | None) -> tuple[str, dict[str, Any]]:
    choices = node["choices"]
    chosen = choices[0] if reply is None else reply
    if chosen not in choices:
        raise RequestError(f"the scripted reply {chosen!r} is none of the choices {choices!r}")
    scores = [0.0 if choice == chosen else -1.0 for choice in choices]
    return chosen, {"choice": choices.index(chosen), "scores": scores, "normalized_prompt_logprobs": scores}


def _generated(node: dict[str, Any], reply: str | None) -> tuple[str, dict[str, Any]]:
    text = reply if reply is not None else str(node.get("name") or "text")
    finish: dict[str, Any] = {"type": "stop", "matched": None}
    found = [(text.find(stop), stop) for stop in node.get("params", {}).get("stop", ()) if stop in text]
    if found:
        at, stop = min(found)
        text, finish = text[:at], {"type": "stop", "matched": stop}
    constraint = node.get("constraint") or {}
    meant = text
    if (marker := constraint.get("after")) is not None:
        _, there, meant = text.partition(marker)
        if not there:
            raise RequestError(f"the scripted reply {text!r} does not hold the marker {marker!r}")
    if constraint.get("kind") == "regex" and not re.fullmatch(constraint["value"], meant):
        raise RequestError(f"the scripted reply {text!r} does not match the regex {constraint['value']!r}")
    if constraint.get("kind") == "choices" and meant not in constraint["value"]:
        raise RequestError(f"the scripted reply {text!r} is none of the choices {constraint['value']!r}")
    if constraint.get("kind") == "composed":
        captures = scripted_captures(constraint["value"], text)
        if captures is None:
            raise RequestError(f"the scripted reply {text!r} does not match the constraint {constraint['value']}")
        return text, {"finish_reason": finish, "captures": captures}
    return text, {"finish_reason": finish}
