"""Recorded runs, and an endpoint that answers from them: offline, byte for byte, up to the first divergence.

A record holds the program graphs of one or more runs. `ReplayEndpoint` takes a program's deltas, holds every node
against the node at the same place (branch and index, so the order in which forks are sent does not matter), and gives
the recorded answer. The first node that differs fails with a `ReplayError` that shows both sides. Times, source lines
and how the text was streamed may differ; literal text, roles, what a gen asks for, and forks may not.
"""

from __future__ import annotations

import difflib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.interpreter.endpoints.base import Delta, Endpoint, OnEvent
from stemma.interpreter.graph import FILLED, ROLES, GraphNode, ProgramGraph
from stemma.interpreter.rewrite import Passing
from stemma.interpreter.wire import error_to_wire
from stemma.lang.errors import CancelledError, ReplayError, RequestError

if TYPE_CHECKING:
    from stemma.interpreter.state import ProgramState

FORMAT = "stemma record"
VERSION = 1
SHOWN = 160  # characters of a text in a diff


@dataclass(frozen=True, slots=True)
class Record:
    """Runs as JSON: `runs` are program graphs (`ProgramGraph.to_dict`), in the order of the batch; the model's name."""

    runs: list[dict[str, Any]]
    model: str | None = None

    @classmethod
    def of(cls, states: Iterable[ProgramState]) -> Record:
        """The record of a batch, in its order. Waits for what is running."""
        states = list(states)
        runs = [run for state in states for run in state._recorded(None)]
        return cls(runs, states[0].record().model if states else None)

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read what `save` wrote. Raises `RequestError` for a file that is no record, or of another version."""
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise RequestError(f"{path} is no record: {error}") from error
        found = given.get("format") if isinstance(given, dict) else None
        if found != FORMAT or given.get("version") != VERSION:
            version = given.get("version") if isinstance(given, dict) else None
            raise RequestError(f"{path} is no record of version {VERSION}: format {found!r}, version {version!r}")
        return cls(given["runs"], given.get("model"))

    def save(self, path: str | Path) -> Path:
        """Write it to a JSON file. Returns the path."""
        text = json.dumps(
            {"format": FORMAT, "version": VERSION, "model": self.model, "runs": self.runs}
        )  # in ASCII, which loses nothing
        Path(path).write_text(text, encoding="utf-8")
        return Path(path)

    def graphs(self) -> list[ProgramGraph]:
        """The program graphs, to `explain()` or to look at with `Trace.of`."""
        return [ProgramGraph.from_dict(run) for run in self.runs]


@dataclass(slots=True)
class _Playing:
    """One recorded run and the program that replays it."""

    graph: ProgramGraph
    taken: bool = False
    heard: dict[str, int] = field(default_factory=dict)  # branch -> nodes that came
    failed: dict[str, tuple[int, Exception]] = field(default_factory=dict)  # branch -> (from node, why)
    cancelled: set[str] = field(default_factory=set)
    ended: bool = False


class ReplayEndpoint(Endpoint):
    """Answers a program's gens and selects from a record of it.

    Item `i` of a batch replays run `i`. Otherwise a program replays the first run not taken yet that agrees with what
    it says first, or, when none does, the one that agrees longest, and fails where that differs. A node that failed in
    the record fails with the recorded error. `check()` raises what diverged, and whatever was recorded and not asked
    for.
    """

    capabilities = frozenset({"names", "replay"})
    quiet_seconds = None

    def __init__(self, record: Record | Sequence[ProgramGraph]) -> None:
        graphs = record.graphs() if isinstance(record, Record) else list(record)
        self._model = record.model if isinstance(record, Record) else None
        self._runs = [_Playing(graph) for graph in graphs]
        self._programs: dict[str, _Playing | ReplayError] = {}
        self._lock = threading.Lock()
        self.divergence: ReplayError | None = None

    @classmethod
    def load(cls, path: str | Path) -> ReplayEndpoint:
        """For the record in a file. Raises `RequestError` if there is none in it."""
        return cls(Record.load(path))

    def for_item(self, index: int) -> Endpoint:
        return _Item(self, index)

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        self.replay(delta, on_event, None)

    def replay(self, delta: Delta, on_event: OnEvent, index: int | None) -> None:
        """Answer a delta; `index` is the run to replay if the program is an item of a batch."""
        with self._lock:
            playing = self._programs.get(delta["program"])
            if playing is None:
                playing = self._programs[delta["program"]] = self._choose(delta, index)
            events = list(self._events(playing, delta))
        for event in events:
            on_event(event)

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        with self._lock:
            playing = self._programs.get(program)
            if isinstance(playing, _Playing):
                playing.cancelled |= set(playing.graph.branches if branches is None else branches)

    def info(self) -> dict[str, Any]:
        return {"endpoint": "ReplayEndpoint", "model": self._model or "recorded", "runs": len(self._runs)}

    def check(self) -> None:
        """Raise `ReplayError` if anything diverged, or if the record holds more than was replayed."""
        if self.divergence is not None:
            raise self.divergence
        for i, run in enumerate(self._runs):
            if not run.taken:
                raise ReplayError(f"run {i} of {len(self._runs)} in the record was not replayed")
            for branch in run.graph.branches.values():
                for node in branch.nodes[run.heard.get(branch.id, 0) :]:
                    if node.kind in FILLED and not node.dropped:
                        raise ReplayError(f"run {i}: the record goes on where the program stopped: {node.describe()}")

    # --- which run

    def _choose(self, delta: Delta, index: int | None) -> _Playing | ReplayError:
        if index is not None:
            if index >= len(self._runs):
                return ReplayError(f"item {index} has no run in the record, which holds {len(self._runs)}")
            chosen = self._runs[index]
            if chosen.taken:
                return ReplayError(f"run {index} of the record was replayed already")
        else:
            free = [run for run in self._runs if not run.taken]
            if not free:
                return ReplayError(f"all {len(self._runs)} runs of the record were replayed already")
            chosen = max(free, key=lambda run: _agreement(run.graph, delta))  # the first of the best
        chosen.taken = True
        return chosen

    # --- what is answered

    def _events(self, playing: _Playing | ReplayError, delta: Delta) -> Iterator[dict[str, Any]]:
        for entry in delta["branches"]:
            for k, node in enumerate(entry["nodes"], entry["first"]):
                place = {"branch": entry["id"], "node": k}
                problem = playing if isinstance(playing, ReplayError) else self._problem(playing, entry, k, node)
                if problem is not None:
                    if isinstance(problem, ReplayError):
                        self.divergence = self.divergence or problem
                    yield {"event": "error", **place, "error": error_to_wire(problem)}
                    continue
                assert isinstance(playing, _Playing)
                recorded = playing.graph.branches[entry["id"]].nodes[k]
                yield from _answer(recorded, place, bool(node.get("stream")))
                if recorded.kind in FILLED and recorded.text is None:
                    playing.failed.setdefault(entry["id"], (k, _cause(recorded)))

    def _problem(self, playing: _Playing, entry: dict[str, Any], k: int, node: dict[str, Any]) -> Exception | None:
        """Why this node gets no recorded answer: what came before it failed, or it differs from the record."""
        graph, id = playing.graph, entry["id"]
        playing.heard[id] = k + 1
        if id in playing.cancelled:
            return CancelledError(f"branch {id} was cancelled")
        if id in playing.failed and playing.failed[id][0] < k:
            return playing.failed[id][1]
        problem: Exception | None = None
        branch = graph.branches.get(id)
        if branch is None:
            problem = ReplayError(
                f"the program diverges from its record: it forked a branch {id} that the record does not have\n"
                f"  now:      {_shown(node)}"
            )
        elif entry.get("parent") is not None:
            above = entry["parent"]
            if above in playing.failed and playing.failed[above][0] < entry["at"]:
                problem = playing.failed[above][1]
            elif branch.parent is None or (branch.parent.id, branch.at) != (above, entry["at"]):
                was = f"{branch.parent.id} after {branch.at} nodes" if branch.parent else "nowhere"
                problem = ReplayError(
                    f"the program diverges from its record: {branch.label or id} was forked from {was}, "
                    f"now from {above} after {entry['at']} nodes"
                )
        if problem is None and branch is not None:
            recorded = branch.nodes[k] if k < len(branch.nodes) else None
            problem = _difference(recorded, node)
        if problem is not None:
            playing.failed[id] = (k, problem)
        return problem


class _Item(Passing):
    """One item's view of the record."""

    def __init__(self, inner: ReplayEndpoint, index: int) -> None:
        super().__init__(inner, inner.quiet_seconds)
        self._record, self._index = inner, index

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        self._record.replay(delta, on_event, self._index)


def _answer(recorded: GraphNode, place: dict[str, Any], stream: bool) -> Iterator[dict[str, Any]]:
    if recorded.kind in ROLES:
        yield {"event": "text", **place, "text": recorded.text}
    elif recorded.kind in FILLED:
        if recorded.text is None:
            wire = error_to_wire(_cause(recorded)) if recorded.failure is None else recorded.failure.wire
            yield {"event": "error", **place, "error": wire}
            return
        if stream:
            for piece in recorded.pieces or [recorded.text]:
                yield {"event": "delta", **place, "text": piece, "ids": []}
        yield {"event": "done", **place, "text": recorded.text, "ids": recorded.ids or [], "meta": dict(recorded.meta)}


def _cause(recorded: GraphNode) -> Exception:
    if recorded.failure is None:
        return ReplayError(
            f"the record has no answer for {recorded.describe()}: it was still running when it was saved"
        )
    return ReplayError(f"as recorded: {recorded.failure}")


def _agreement(graph: ProgramGraph, delta: Delta) -> tuple[bool, int]:
    """Whether a run agrees with all of a first delta, and with how many nodes of it before the first that differs."""
    count = 0
    for entry in delta["branches"]:
        branch = graph.branches.get(entry["id"])
        for k, node in enumerate(entry["nodes"], entry["first"]):
            recorded = branch.nodes[k] if branch is not None and k < len(branch.nodes) else None
            if recorded is None or _asked(recorded.wire) != _asked(node):
                return False, count
            count += 1
    return True, count


# --- differences


def _asked(node: Mapping[str, Any]) -> Any:
    """What a node says, as JSON leaves it; without what may differ in a replay."""
    return json.loads(json.dumps({k: v for k, v in node.items() if k not in ("name", "where", "stream")}))


def _difference(recorded: GraphNode | None, node: dict[str, Any]) -> ReplayError | None:
    if recorded is None:
        return ReplayError(
            f"the program diverges from its record: the record ends here, the program goes on\n"
            f"  now:      {_shown(node)}"
        )
    was, now = _asked(recorded.wire), _asked(node)
    if was == now:
        return None
    lines = [
        "the program diverges from its record here",
        f"  recorded: {_shown({**was, 'name': recorded.name, 'where': recorded.where})}",
        f"  now:      {_shown(node)}",
    ]
    if was["kind"] == now["kind"] == "text":
        lines += _text_difference(was["text"], now["text"])
    elif was["kind"] == now["kind"]:
        a, b = dict(_flat(was)), dict(_flat(now))
        lines += [
            f"  {key}: {a.get(key, 'not given')!r} -> {b.get(key, 'not given')!r}"
            for key in dict.fromkeys((*a, *b))
            if a.get(key, ...) != b.get(key, ...)
        ]
    return ReplayError("\n".join(lines))


def _shown(node: Mapping[str, Any]) -> str:
    name = f" {node['name']!r}" if node.get("name") else ""
    role = f" {node['role']}" if "role" in node else ""
    text = f" {_cut(node['text'])!r}" if "text" in node else ""
    return f"{node['kind']}{name}{role}{text} at {node.get('where') or 'an unknown line'}"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[-SHOWN // 2 :]}"


def _text_difference(was: str, now: str) -> list[str]:
    """Lines of a unified diff where there are several; else the texts around the first character that differs."""
    if was.count("\n") + now.count("\n") > 2:
        diff = difflib.unified_diff(was.splitlines(), now.splitlines(), "recorded", "now", lineterm="", n=1)
        return [f"  {line}" for line in list(diff)[:40]]
    at = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    begin = max(at - 20, 0)
    dots = "…" if begin else ""
    around = [f"{dots}{text[begin : at + 40]!r}" for text in (was, now)]
    return [f"  the texts differ from character {at} on:", f"  - {around[0]}", f"  + {around[1]}"]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
