"""What a soak watches: memory over time, and what is left behind when everybody has gone."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

MIB = 1 << 20
IDLE = ("running", "waiting", "programs", "unsettled", "rows_used", "leases", "queued_acts")
COUNTED = ("retractions", "refused", "tokens_computed")
WARM_UP = 0.3  # share of a process's life that does not count
SHORTEST = 100.0  # seconds of a life after its warm-up; less says nothing of a slope
GRAMMAR_THREADS = 64  # the engine keeps up to so many idle ones


@dataclass
class Life:
    """One process: (seconds since the begin of the soak, resident bytes)."""

    name: str
    pid: int
    points: list[tuple[float, int]] = field(default_factory=list)

    def measured(self) -> list[tuple[float, int]]:
        begin, end = self.points[0][0], self.points[-1][0]
        return [p for p in self.points if p[0] >= begin + WARM_UP * (end - begin)]

    def slope(self) -> float | None:
        """Bytes per second by the median of the slopes between points (Theil 1950, Sen 1968); None: too short."""
        points = self.measured()
        if len(points) < 8 or points[-1][0] - points[0][0] < SHORTEST:
            return None
        thin = points[:: max(1, len(points) // 200)]
        return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(thin, 2))

    def line(self) -> str:
        points, slope = self.points, self.slope()
        text = (
            f"{self.name:<7} pid {self.pid:<7} {points[-1][0] - points[0][0]:6.0f} s  "
            f"{points[0][1] / MIB:7.1f} -> {points[-1][1] / MIB:7.1f} MiB, most {max(p[1] for p in points) / MIB:7.1f}"
        )
        return text if slope is None else text + f", slope {slope * 3600 / MIB:+8.1f} MiB/h"

    def growth(self) -> float:
        """Bytes by the slope over the measured time; 0 if that is too short."""
        slope, points = self.slope(), self.measured()
        return 0.0 if slope is None else slope * (points[-1][0] - points[0][0])


class Observer:
    """Asks the server for its state every so often, in a thread."""

    def __init__(self, url: str, every: float = 2.0) -> None:
        self.url = url
        self.lives: list[Life] = []
        self.broken: list[str] = []  # integrity errors, with their time
        self.engine_pid = 0
        self.most: dict[str, int] = {}
        self.counted = dict.fromkeys(COUNTED, 0)  # by all engines together
        self._counted = dict.fromkeys(COUNTED, 0)
        self._begin = time.monotonic()
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def look(self, note: bool = False) -> dict[str, Any] | None:
        """The state now; None while there is no engine. `note`: it counts as a point of the memory over time."""
        try:
            answer = requests.get(self.url + "/debug/state", timeout=60)
        except requests.RequestException:
            return None
        if answer.status_code != 200:
            return None
        state = answer.json()
        engine = state["engine"]
        if engine["pid"] != self.engine_pid:
            self._counted = dict.fromkeys(COUNTED, 0)
        for what in COUNTED:
            self.counted[what] += max(engine[what] - self._counted[what], 0)
            self._counted[what] = engine[what]
        now = time.monotonic() - self._begin
        for name in ("front", "engine") if note else ():
            self._note(name, state[name], now)
        self.engine_pid = state["engine"]["pid"]
        if state["engine"]["error"]:
            self.broken.append(f"at {now:.0f} s: {state['engine']['error']}")
        return state

    def _note(self, name: str, figures: dict[str, Any], now: float) -> None:
        pid = figures["pid"]
        life = next((one for one in self.lives if one.name == name and one.pid == pid), None)
        if life is None:
            life = Life(name, pid)
            self.lives.append(life)
        life.points.append((now, figures["rss_bytes"]))
        for what in ("threads", "fds", "children", "tasks"):
            if what in figures:
                key = f"{name} {what}"
                self.most[key] = max(self.most.get(key, 0), figures[what])

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.look(note=True)


def wait_idle(look: Callable[[], dict[str, Any] | None], seconds: float) -> tuple[dict[str, Any] | None, list[str]]:
    """The state once nothing runs, and what still did after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        state = look()
        left = ["there is no engine"] if state is None else _left(state)
        if not left or time.monotonic() > until:
            return state, left
        time.sleep(0.2)


def _left(state: dict[str, Any]) -> list[str]:
    engine, front = state["engine"], state["front"]
    left = [f"program {program}" for program in engine["oldest_programs"]]
    left += [f"engine {name}: {engine[name]}" for name in IDLE if engine[name]]
    left += [f"front {name}: {front[name]}" for name in ("inflight", "running", "graphs") if front[name]]
    if engine["evictable_slots"] != engine["cached_slots"]:
        left.append(f"pinned slots: {engine['cached_slots'] - engine['evictable_slots']}")
    return left


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What there is more of than before, both when idle and with an empty cache."""
    leaks: list[str] = []
    engine = after["engine"]
    if engine["free_slots"] != engine["total_slots"]:
        leaks.append(f"slots: {engine['free_slots']} of {engine['total_slots']} are free")
    allowed = {
        ("front", "fds"): 2,  # connections that are just being closed
        ("front", "threads"): 8,  # of asyncio's own pool
        ("front", "tasks"): 2,
        ("front", "children"): 0,
        ("engine", "fds"): 4,  # a compiling process that is being replaced
        ("engine", "threads"): GRAMMAR_THREADS,
        ("engine", "children"): 1,
    }
    for (side, what), more in allowed.items():
        was, now = before[side].get(what), after[side].get(what)
        if was is not None and now is not None and now > was + more:
            leaks.append(f"{side} {what}: {was} before, {now} after")
    return leaks
