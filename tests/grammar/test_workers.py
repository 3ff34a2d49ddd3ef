"""Compiling processes: the same grammars, limits that hold, and an end without orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stemma.backend.grammar import workers as workers_module
from stemma.backend.grammar.compiler import GrammarCache, compile_constraint
from stemma.backend.grammar.limits import SMALLER
from stemma.backend.grammar.service import GrammarService
from stemma.backend.grammar.workers import Workers
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint
from tests.grammar.hostile import regexes, schemas

ROOT = Path(__file__).parents[2]
SLOW = Constraint("regex", "".join(f"[^{chr(0x4E00 + i)}-{chr(0x4E40 + 2 * i)}]" for i in range(6000)))


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(1)
    made.start()
    yield made
    made.close()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(pid)


def pid_of(workers: Workers) -> int:
    pid = workers.processes[0].pid
    assert pid is not None
    return pid


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", r"\w+ [0-9]{1,3}"),
        Constraint("choices", ("yes", "no")),
        Constraint("json_schema", '{"properties": {"a": {"type": "string", "maxLength": 9}}}'),
        Constraint("ebnf", 'root ::= "a" root "b" | "c"'),
    ],
    ids=lambda c: c.kind,
)
def test_grammars_are_those_of_the_thread(world, workers: Workers, constraint: Constraint) -> None:
    there, here = workers.compile(constraint, world.bpe), compile_constraint(constraint, world.bpe)
    a, b = there.matcher(), here.matcher()
    for _ in range(20):
        assert np.array_equal(a.mask(), b.mask())
        token = min(world.mask_ids(a.mask()), default=-1)
        if token < 0 or a.is_finished():
            break
        assert a.accept(token) and b.accept(token)


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", "(a"),
        Constraint("regex", "x\ud800"),
        Constraint("choices", ("a", "\udc00")),
        Constraint("json_schema", '{"$recursiveRef": "#"}'),
        Constraint("ebnf", "root ::= other"),
        Constraint("structural_tag", "{}"),
    ],
    ids=lambda c: ascii(c.value),
)
def test_refusals_are_those_of_the_thread(world, workers: Workers, constraint: Constraint) -> None:
    found = []
    for compile in (workers.compile, compile_constraint):
        with pytest.raises(ConstraintError) as caught:
            compile(constraint, world.bpe)
        found.append((str(caught.value), caught.value.param))
    assert found[0] == found[1]


def test_warnings_of_a_lenient_schema_come_along(world, workers: Workers) -> None:
    constraint = Constraint("json_schema", '{"type": "string", "pattern": "(.)\\\\1"}')
    with pytest.raises(ConstraintError):
        workers.compile(constraint, world.bpe)
    assert any("pattern" in warning for warning in workers.compile(constraint, world.bpe, lenient=True).warnings)


def test_the_options_of_a_constraint_come_along(world, workers: Workers) -> None:
    wide = Constraint("json_schema", '{"type": "array", "items": {"type": "null"}, "minItems": 2}', whitespace="any")
    late = Constraint("regex", "[0-9]", after="END")
    for constraint, text in ((wide, "[ null ,\n null]"), (late, "abc END7".replace(" ", ""))):
        matcher = workers.compile(constraint, world.bpe).matcher()
        assert all(matcher.accept(token) for token in world.bpe.encode(text)) and matcher.is_complete(), text
    dropped = Constraint("json_schema", '{"type": "string", "pattern": "(.)\\\\1"}', lenient=True)
    assert workers.compile(dropped, world.bpe).warnings


def test_what_the_vocabulary_cannot_spell_is_refused(world, workers: Workers) -> None:
    with pytest.raises(ConstraintError, match="cannot spell any match"):
        workers.compile(Constraint("regex", "[x-z]"), world.make_vocab([b"a", b"b"]))


def test_time_is_limited(world) -> None:
    workers = Workers(1, time_limit=0.1, first_limit=0.05)
    try:
        begin = time.monotonic()
        with pytest.raises(ConstraintError) as caught:
            workers.compile(SLOW, world.bpe)
        assert str(caught.value) == f"regex took longer than 0.1 s to compile; {SMALLER}"
        assert caught.value.param == "regex"
        assert time.monotonic() - begin < 10
        assert workers.compile(Constraint("regex", "a+"), world.bpe)
    finally:
        workers.close()


def test_a_process_that_does_not_look_at_the_clock_is_killed(world, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(1)
    try:
        workers.compile(Constraint("regex", "a+"), world.bpe)
        stopped = pid_of(workers)
        os.kill(stopped, signal.SIGSTOP)
        assert workers.compile(Constraint("regex", "b+"), world.bpe)  # at its second try, by another process
        assert pid_of(workers) != stopped and gone(stopped)
        monkeypatch.setattr(workers_module, "GRACE", -10.0)
        with pytest.raises(ConstraintError, match=r"regex took longer than 2 s to compile; make it smaller"):
            workers.compile(SLOW, world.bpe)
        monkeypatch.undo()
        assert workers.compile(Constraint("regex", "c+"), world.bpe)
    finally:
        workers.close()


def test_a_process_that_dies_is_replaced(world, workers: Workers) -> None:
    workers.compile(Constraint("regex", "a+"), world.bpe)
    killed = pid_of(workers)
    os.kill(killed, signal.SIGKILL)
    assert workers.compile(Constraint("regex", "b+"), world.bpe)
    assert pid_of(workers) != killed


def test_a_constraint_that_kills_its_process_is_refused(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_MODULE", "tests.grammar.dying_worker")
    workers = Workers(1)
    try:
        with pytest.raises(ConstraintError, match=r"ends the process that tries \(signal SIGSEGV\); make it smaller"):
            workers.compile(Constraint("regex", "a+"), world.bpe)
    finally:
        workers.close()


def test_a_process_that_cannot_start_is_named_and_not_remembered(world, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(1)
    cache = GrammarCache(world.bpe, compile=workers.compile)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/no/such/python")
            with pytest.raises(RuntimeError, match=r"cannot be started.*grammar_workers=0"):
                cache.get(Constraint("regex", "a+"))
        assert cache.get(Constraint("regex", "a+"))
    finally:
        workers.close()


def test_memory_is_limited(world) -> None:
    workers = Workers(1, memory_limit=128 << 20)
    try:
        values = Constraint("json_schema", schemas()["400,000 values"])
        with pytest.raises(ConstraintError) as caught:
            workers.compile(values, world.bpe)
        assert str(caught.value) == f"json_schema needs more than 128 MiB to compile; {SMALLER}"
        assert workers.compile(Constraint("regex", "a+"), world.bpe)
    finally:
        workers.close()


def test_a_process_that_has_grown_makes_room(world) -> None:
    workers = Workers(1, memory_limit=160 << 20)
    try:
        workers.compile(Constraint("regex", "a+"), world.bpe)
        first = pid_of(workers)
        workers.compile(Constraint("regex", regexes()["a repeat of 100,000"]), world.bpe)
        assert workers.compile(Constraint("regex", "b+"), world.bpe)
        assert pid_of(workers) != first and gone(first)
    finally:
        workers.close()


def test_a_quick_constraint_overtakes_slow_ones(world) -> None:
    workers = Workers(1, time_limit=0.2, first_limit=0.02)
    ends: dict[str, float] = {}

    def compile(name: str, constraint: Constraint) -> None:
        try:
            workers.compile(constraint, world.bpe)
        except ConstraintError:
            pass
        finally:
            ends[name] = time.monotonic()

    try:
        workers.compile(Constraint("regex", "a+"), world.bpe)
        slow = [Constraint("regex", f"{SLOW.value}{i}") for i in range(3)]
        jobs = [*((f"slow {i}", c) for i, c in enumerate(slow)), ("quick", Constraint("regex", "b+"))]
        threads = [threading.Thread(target=compile, args=job) for job in jobs]
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        assert sum(ends["quick"] < ends[f"slow {i}"] for i in range(3)) >= 2
    finally:
        workers.close()


def test_a_constraint_beyond_all_measure_is_not_even_sent(world) -> None:
    workers = Workers(1)
    try:
        with pytest.raises(ConstraintError, match=r"json_schema holds 17000000 characters, the limit is 16777216"):
            workers.compile(Constraint("json_schema", " " * 17_000_000), world.bpe)
        assert workers.processes[0].pid is None
    finally:
        workers.close()


def test_closing_ends_process_and_waiting_callers(world) -> None:
    workers = Workers(1)
    workers.compile(Constraint("regex", "a+"), world.bpe)
    pid, errors = pid_of(workers), []

    def compile() -> None:
        try:
            workers.compile(SLOW, world.bpe)
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=compile) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    workers.close()
    for thread in threads:
        thread.join(10)
    assert errors == ["the engine was shut down"] * 3
    assert gone(pid)
    with pytest.raises(RuntimeError, match="shut down"):
        workers.compile(Constraint("regex", "b+"), world.bpe)


def test_the_service_answers_in_another_thread_and_from_the_cache(world) -> None:
    service = GrammarService(world.bpe, "native", 1)
    done = threading.Semaphore(0)
    found: list[object] = []

    def take(made: object) -> None:
        found.append(made)
        done.release()

    try:
        constraints = [Constraint("regex", f"a{{{i}}}") for i in range(1, 21)]
        for constraint in constraints:
            service.submit(constraint, take)
        for _ in constraints:
            assert done.acquire(timeout=30)
        assert all(service.peek(constraint) in found for constraint in constraints)
        (pid,) = service.pids
    finally:
        service.close()
    service.close()
    assert gone(pid) and service.pids == []


SCRIPT = """
import sys, time
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.workers import Workers
from stemma.lang.params import Constraint
vocab = Vocabulary([bytes([i]) for i in range(256)], 257, frozenset([256]), lambda text: list(text.encode()))
workers = Workers(1)
workers.compile(Constraint("regex", "a+"), vocab)  # at the top of a script, without a __main__ guard
print(workers.processes[0].pid, flush=True)
if sys.argv[1] == "busy":
    workers.compile(Constraint("regex", sys.stdin.readline()), vocab)
elif sys.argv[1] == "idle":
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("state", "number"),
    [
        ("idle", signal.SIGKILL),
        ("busy", signal.SIGKILL),
        ("idle", signal.SIGTERM),
        ("idle", signal.SIGINT),
        ("end", None),
    ],
)
def test_no_process_outlives_its_parent(tmp_path: Path, state: str, number: signal.Signals | None) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        [sys.executable, str(script), state],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        pid = int(process.stdout.readline())
        if state == "busy":
            process.stdin.write(str(SLOW.value) + "\n")
            process.stdin.flush()
            time.sleep(0.3)
        if number is not None:
            process.send_signal(number)
    assert gone(pid)


def test_schemas_that_were_changed_at_random_raise_nothing_strange(world, workers: Workers) -> None:
    from tests.grammar.hostile import mutations

    begin, refused = time.monotonic(), 0
    for schema in mutations(seed=3, count=300):
        try:
            workers.compile(Constraint("json_schema", json.dumps(schema)), world.bpe)
        except ConstraintError as error:
            refused += 1
            assert "json_schema" in str(error)
    assert 0 < refused < 300
    assert time.monotonic() - begin < 60
