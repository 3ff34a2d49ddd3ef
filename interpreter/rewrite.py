"""Between a program and its endpoint: what a run asks to have done with its deltas before they are sent.

`Merging` runs nodes that must give the same text only once. Where a second branch comes to such a node, it is told to
the endpoint as a fork of the first one behind that node, so its later nodes go on from the very same ids; what the
endpoint says of the node is told to both. It works on deltas and events alone, so every endpoint profits.

Two nodes are the same when everything before them is (roles, generated text by the nodes that made it, literal text
however it was split) and they ask for the same, and the answer is determined: greedy decoding, or the same seed; a
select at temperature 0. Their names do not matter, except to an endpoint that goes by names.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.interpreter.endpoints.base import Delta, Endpoint, Event, OnEvent
from stemma.interpreter.graph import FILLED
from stemma.interpreter.wire import RunOptions
from stemma.lang.params import GREEDY_TEMPERATURE

Place = tuple[str, int]  # (branch, node), as the endpoint knows them
Prefix = tuple[int, str]  # (what was said up to the last role or generation, the literal text since)


def rewriting(endpoint: Endpoint, options: RunOptions) -> Endpoint:
    """The endpoint as a run with these options talks to it. A record is replayed as it was said, never rewritten."""
    if options.drop_unread:
        endpoint = Passing(endpoint, quiet_seconds=None)
    if options.merge_identical and "replay" not in endpoint.capabilities:
        endpoint = Merging(endpoint)
    return endpoint


def plain(endpoint: Endpoint) -> Endpoint:
    """The endpoint itself, without what a run put around it."""
    while isinstance(endpoint, Passing):
        endpoint = endpoint.inner
    return endpoint


def wants_tokens(endpoint: Endpoint, options: RunOptions) -> bool:
    """Whether a run asks for the ids of its prompts: as it says, else where they need not cross a network."""
    can = "tokens" in endpoint.capabilities
    return can and (options.trace if options.trace is not None else "remote" not in endpoint.capabilities)


class Passing(Endpoint):
    """Another endpoint, with its own idea of how long to wait before sending unasked."""

    def __init__(self, inner: Endpoint, quiet_seconds: float | None) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities
        self.quiet_seconds = quiet_seconds

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        self.inner.submit(delta, on_event)

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        self.inner.cancel(program, branches)

    def info(self) -> dict[str, Any]:
        return self.inner.info()

    def token_bytes(self, ids: Iterable[int]) -> dict[int, bytes]:
        return self.inner.token_bytes(ids)

    def resolves_refs(self) -> bool:
        return self.inner.resolves_refs()

    def flush_cache(self) -> None:
        self.inner.flush_cache()

    def close(self) -> None:
        self.inner.close()


@dataclass(slots=True)
class _Segment:
    """A stretch of a branch that stands on one branch of the endpoint, `wire`, which begins at `parent`."""

    wire: str
    start: int  # the place in the program's branch of its first node
    parent: Place | None
    said: int = 0  # nodes of it that the endpoint was told
    known: bool = False


@dataclass(slots=True)
class _Branch:
    """A branch of the program. Its literals between two repeated nodes stand nowhere until something needs them."""

    id: str
    origin: Place | None  # where it begins at the endpoint
    prefixes: list[Prefix]  # [k]: what was said before its node k
    nodes: list[dict[str, Any]] = field(default_factory=list)
    segments: list[_Segment] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False


@dataclass(slots=True)
class _Told:
    """A node at the endpoint: which nodes of the program it answers, and what was said of it so far."""

    listeners: list[tuple[Place, OnEvent]]
    pieces: list[Event] = field(default_factory=list)
    last: Event | None = None


class Merging(Passing):
    """An endpoint that is told only once what one program repeats. Made for one run."""

    def __init__(self, inner: Endpoint) -> None:
        super().__init__(inner, inner.quiet_seconds)
        self._branches: dict[str, _Branch] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._first: dict[int, Place] = {}  # what was said -> the node that others may follow
        self._stood: dict[int, Place] = {}  # the same, failed ones included
        self._told: dict[Place, _Told] = {}
        self._parents: dict[str, Place | None] = {}  # of the endpoint's branches
        self._lock = threading.RLock()
        self._on_event_of_run: OnEvent | None = None

    def resolves_refs(self) -> bool:
        """No: what a reference means may stand elsewhere at the endpoint, or nowhere."""
        return False

    # --- out

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        """Rewrite and pass on. What follows a node that has its answer gets it at once."""
        entries: list[dict[str, Any]] = []
        fresh: list[int] = []
        with self._lock:
            self._on_event_of_run = on_event
            for entry in delta["branches"]:
                self._take(entry, on_event, entries, fresh)
        if not entries and not delta["end"]:
            return
        try:
            self.inner.submit({**delta, "branches": entries}, self._on_event)
        except Exception:
            with self._lock:
                for key in fresh:
                    self._first.pop(key, None)
            raise

    def _take(self, entry: dict[str, Any], on_event: OnEvent, entries: list[dict[str, Any]], fresh: list[int]) -> None:
        branch = self._branches.get(entry["id"]) or self._open(entry, entries)
        first = len(branch.nodes)
        for node in entry["nodes"]:
            place = (branch.id, len(branch.nodes))
            branch.prefixes.append(self._after(branch.prefixes[-1], node, place))
            branch.nodes.append(node)
        branch.ended = branch.ended or entry["end"]
        last = self._last_repeated(branch, first)
        for k in range(first, last + 1):
            if branch.nodes[k]["kind"] != "text":
                self._follow((branch.id, k), self._first[branch.prefixes[k + 1][0]], on_event)
        if last >= first:
            self._cut(branch, last + 1, entries)
        segment = branch.segments[-1]
        if len(branch.nodes) > segment.start + segment.said or (segment.known and branch.ended):
            self._say(branch, segment, on_event, entries, fresh)

    def _open(self, entry: dict[str, Any], entries: list[dict[str, Any]]) -> _Branch:
        id, parent = entry["id"], entry.get("parent")
        if parent is None:
            branch = _Branch(id, None, [(0, "")])
        else:
            above = self._branches[parent]
            branch = _Branch(id, self._place(above, entry["at"], entries), [above.prefixes[entry["at"]]])
        branch.segments.append(_Segment(id, 0, branch.origin))
        self._branches[id] = branch
        return branch

    def _after(self, before: Prefix, node: dict[str, Any], place: Place) -> Prefix:
        """What was said up to and with this node."""
        said, text = before
        kind = node["kind"]
        if kind == "text":
            return said, text + node["text"]
        asked = self._determined(node)
        key = (said, text, asked) if asked is not None else (said, text, *place)
        return self._numbers.setdefault(key, len(self._numbers) + 1), ""

    def _determined(self, node: dict[str, Any]) -> str | None:
        """What the node asks for, if that determines its answer; None if two such nodes may differ."""
        asked = {name: value for name, value in node.items() if name != "where"}
        if node["kind"] == "gen":
            params = dict(node["params"])
            greedy = params.get("temperature", 1.0) < GREEDY_TEMPERATURE or params.get("top_k") == 1
            if not greedy and params.get("seed") is None:
                return None
            if greedy:
                params.pop("seed", None)
            asked["params"] = params
        elif node["kind"] == "select":
            if node["temperature"] > 0:
                return None
            asked.pop("seed", None)
        return json.dumps(asked, sort_keys=True, default=str)

    def _last_repeated(self, branch: _Branch, first: int) -> int:
        """The last new gen or select that was asked for before, as was all in front of it; first - 1 if none was."""
        last = first - 1
        for k in range(first, len(branch.nodes)):
            kind = branch.nodes[k]["kind"]
            if kind != "text" and branch.prefixes[k + 1][0] not in self._first:
                break
            if kind in FILLED:
                last = k
        return last

    def _follow(self, mine: Place, theirs: Place, on_event: OnEvent) -> None:
        told = self._told[theirs]
        stands_in = told.listeners[0][0]
        told.listeners.append((mine, on_event))
        for event in (*told.pieces, *([told.last] if told.last is not None else [])):
            on_event(_copied(event, mine, stands_in))

    def _cut(self, branch: _Branch, start: int, entries: list[dict[str, Any]]) -> None:
        """From its node `start` on, the branch goes on behind the node that stood in for the one before."""
        old = branch.segments[-1]
        if old.known:
            said = next((entry for entry in entries if entry["id"] == old.wire), None)
            if said is None:
                said = {"id": old.wire, "first": old.said, "nodes": []}
                entries.append(said)
            said["end"] = True
        wire, index = self._first[branch.prefixes[start][0]]
        branch.segments.append(_Segment(self._new_wire(branch), start, (wire, index + 1)))

    def _say(
        self,
        branch: _Branch,
        segment: _Segment,
        on_event: OnEvent,
        entries: list[dict[str, Any]],
        fresh: list[int],
    ) -> None:
        """Tell the endpoint what is new of the branch's last segment."""
        entry = self._entry(segment)
        entry["nodes"], entry["end"] = branch.nodes[segment.start + segment.said :], branch.ended
        entries.append(entry)
        for k, node in enumerate(entry["nodes"], segment.said):
            place = (segment.wire, k)
            self._told[place] = _Told([((branch.id, segment.start + k), on_event)])
            key = branch.prefixes[segment.start + k + 1][0]
            if node["kind"] != "text" and key not in self._first and self._determined(node) is not None:
                self._first[key] = place
                fresh.append(key)
            if node["kind"] != "text":
                self._stood[key] = self._first.get(key, place)
        segment.said += len(entry["nodes"])

    def _entry(self, segment: _Segment) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": segment.wire}
        if not segment.known:
            entry["parent"], entry["at"] = segment.parent if segment.parent is not None else (None, 0)
            self._parents[segment.wire] = segment.parent
            segment.known = True
        entry["first"] = segment.said
        return entry

    def _new_wire(self, branch: _Branch) -> str:
        return f"{branch.id}~{len(branch.segments)}"

    def _place(self, branch: _Branch, at: int, entries: list[dict[str, Any]]) -> Place:
        """Where the branch's first `at` nodes end at the endpoint. Literals that are not there yet are said now."""
        for segment in branch.segments:
            if segment.known and segment.start <= at <= segment.start + segment.said:
                return segment.wire, at - segment.start
            if at == segment.start and segment.parent is not None:
                return segment.parent
        begin = at
        while begin and branch.nodes[begin - 1]["kind"] not in FILLED:
            begin -= 1
        parent = branch.origin
        if begin:
            wire, index = self._stood[branch.prefixes[begin][0]]
            parent = (wire, index + 1)
        segment = _Segment(self._new_wire(branch), begin, parent)
        branch.segments.insert(-1, segment)  # the last one is where the branch goes on
        entry = self._entry(segment)
        entry["nodes"], entry["end"] = branch.nodes[begin:at], False
        entries.append(entry)
        segment.said = at - begin
        self._told.update({(segment.wire, k): _Told([]) for k in range(segment.said)})
        return segment.wire, segment.said

    # --- in

    def _on_event(self, event: Event) -> None:
        with self._lock:
            place = (event.get("branch", ""), event.get("node", -1))
            told = self._told.get(place)
            if told is None:
                if "branch" not in event and self._on_event_of_run is not None:
                    self._on_event_of_run(event)  # about the program as a whole
                return
            if event["event"] == "delta":
                told.pieces.append(event)
            else:
                told.last = event
            if event["event"] == "error":
                self._first = {key: at for key, at in self._first.items() if at != place}
            for i, (mine, on_event) in enumerate(list(told.listeners)):
                if i:
                    on_event(_copied(event, mine, told.listeners[0][0]))
                else:
                    on_event({**event, "branch": mine[0], "node": mine[1]})

    # --- cancelling

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        """Cancel at the endpoint what no branch that goes on listens to or stands on."""
        if branches is None:
            self.inner.cancel(program, None)
            return
        with self._lock:
            for id in branches:
                if id in self._branches:
                    self._branches[id].cancelled = True
            needed = self._needed()
            mine = [b for b in self._branches.values() if b.cancelled]
            gone = [s.wire for b in mine for s in b.segments if s.known and s.wire not in needed]
            unsaid = {place for place, told in self._told.items() if place[0] in gone and told.last is None}
            self._first = {key: place for key, place in self._first.items() if place not in unsaid}
        if gone:
            self.inner.cancel(program, gone)

    def _needed(self) -> set[str]:
        living = [b for b in self._branches.values() if not b.cancelled]
        found = {s.wire for b in living for s in b.segments if s.known}
        found |= {s.parent[0] for b in living for s in b.segments if s.parent is not None}
        for (wire, _), told in self._told.items():
            if told.last is None and any(not self._branches[mine[0]].cancelled for mine, _ in told.listeners):
                found.add(wire)
        for wire in list(found):
            parent = self._parents.get(wire)
            while parent is not None and parent[0] not in found:
                found.add(parent[0])
                parent = self._parents.get(parent[0])
        return found


def _copied(event: Event, mine: Place, stands_in: Place) -> Event:
    """What was said of one node, as said of another that it stood in for."""
    copy = {**event, "branch": mine[0], "node": mine[1]}
    if event["event"] == "done":
        meta = event["meta"]
        copy["meta"] = {
            **meta,
            "cached_tokens": meta.get("prompt_tokens", 0),
            "computed_tokens": 0,
            "merged_with": f"{stands_in[0]}:{stands_in[1]}",
        }
    return copy
