"""Background work takes a small share of the interpreter, and the collector's long looks come when nobody waits."""

from __future__ import annotations

import gc
import sys
import time

import pytest

from stemma.backend.grammar import give_way
from stemma.backend.grammar.give_way import giving_way


def _calls(seconds: float) -> float:
    """Work for so much of the thread's time, in many calls; the time it took."""
    begin, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < seconds:
        pass
    return time.perf_counter() - begin


def _ring() -> list[object]:
    ring: list[object] = []
    ring.append(ring)
    return ring


def test_work_rests_while_another_thread_is_busy() -> None:
    with giving_way(lambda: True):
        took = _calls(0.02)
    assert took > 0.02 * (give_way.SLICE + give_way.REST) / give_way.SLICE * 0.6
    assert sys.getprofile() is None


def test_work_does_not_rest_when_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(give_way.time, "sleep", rests.append)
    with giving_way(lambda: False):
        _calls(0.01)
    assert rests == []
    with giving_way(lambda: True):
        _calls(0.01)
    assert len(rests) > 5


def test_an_error_restores_everything() -> None:
    interval, enabled = sys.getswitchinterval(), gc.isenabled()
    with pytest.raises(KeyError), giving_way(lambda: True):
        raise KeyError
    assert (sys.getprofile(), sys.getswitchinterval(), gc.isenabled()) == (None, interval, enabled)


def test_a_profiler_is_left_alone() -> None:
    seen: list[str] = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        with giving_way(lambda: True):
            before = sys.getprofile()
            _calls(0.001)
    finally:
        sys.setprofile(None)
    assert before is not None and seen


def test_what_was_set_aside_is_collected_later(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    monkeypatch.setattr(give_way, "_ours", True)
    with giving_way(lambda: True):
        rings = [_ring() for _ in range(5000)]
    assert gc.get_freeze_count() > frozen + 5000
    del rings
    give_way.collect_all()
    assert gc.get_freeze_count() <= frozen + 5000 or frozen == 0
    gc.unfreeze()


def test_a_program_that_freezes_objects_itself_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(give_way, "_ours", False)
    monkeypatch.setattr(give_way, "_mixed", False)
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        give_way.set_aside()
        give_way.collect_all()
        assert gc.get_freeze_count() <= count
        assert gc.get_freeze_count() > count // 2
    finally:
        gc.unfreeze()
