"""The process that compiles constraints: `python -m stemma.backend.grammar.worker FD BYTES`, started by `workers`.

It does what a hostile constraint can make slow or large: reading, the algebra of schemas, the nondeterministic
automaton, and a look at the automaton's first states. The answer is arrays (`flat`), a refusal, or a failure. A process
without a task waits; it ends when the other end of the socket closes, and a task that outlives the engine is ended by
an alarm.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import socket
import struct
import sys
import time

import msgspec

from stemma.backend.grammar.automaton import Dfa
from stemma.backend.grammar.compiler import lower, naming, refuse_nothing
from stemma.backend.grammar.flat import Flat, dump
from stemma.backend.grammar.limits import MAX_CLASS_EDGES, MAX_FLAT, SMALLER, Deadline
from stemma.backend.grammar.longest import longest_text
from stemma.backend.grammar.nfa import Nfa
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint, ConstraintKind

LENGTH = struct.Struct("<Q")  # of the message that follows
OUT_OF_MEMORY = 86  # exit status
ALARM_SECONDS = 10  # beyond its limit: the engine that should have ended a task is gone


class Ready(msgspec.Struct, tag=True):
    """The process can take tasks."""


class Task(msgspec.Struct, tag=True):
    """A constraint to compile within `seconds` of processor time, for the bytes of `alphabet`.

    `value` is UTF-8 in which lone surrogates are let through, as the constraint's text need not be Unicode."""

    kind: ConstraintKind
    value: bytes | list[bytes]
    alphabet: bytes
    seconds: float
    lenient: bool = False
    whitespace: bytes | None = None
    after: bytes | None = None


class Compiled(msgspec.Struct, tag=True):
    """`last`: the process has grown and ends now. `longest`: see `longest_text`."""

    nfa: Flat
    warnings: tuple[str, ...]
    last: bool
    longest: int | None = None


class Refused(msgspec.Struct, tag=True):
    """A ConstraintError. `slow`: for the time that it took."""

    message: str
    param: str | None
    slow: bool
    last: bool


class Failed(msgspec.Struct, tag=True):
    """Any other exception: a fault of the compiler."""

    message: str
    last: bool


Answer = Ready | Compiled | Refused | Failed


def task_of(constraint: Constraint, alphabet: frozenset[int], seconds: float, lenient: bool) -> Task:
    value = constraint.value
    coded = _coded(value) if isinstance(value, str) else [_coded(text) for text in value]
    whitespace, after = (None if text is None else _coded(text) for text in (constraint.whitespace, constraint.after))
    lenient = lenient or constraint.lenient
    return Task(constraint.kind, coded, bytes(sorted(alphabet)), seconds, lenient, whitespace, after)


def _coded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def receive(sock: socket.socket) -> bytearray:
    """One message. EOFError when the other end is closed."""
    head = _exactly(sock, LENGTH.size)
    return _exactly(sock, LENGTH.unpack(head)[0])


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return data


def send(sock: socket.socket, message: msgspec.Struct) -> None:
    data = msgspec.msgpack.encode(message)
    sock.sendall(LENGTH.pack(len(data)))
    sock.sendall(data)


def answer(task: Task, memory: int) -> Answer:
    """Compile, whatever comes of it, in a process that may hold `memory` bytes."""
    deadline = Deadline(task.seconds, task.kind, clock=time.process_time)
    try:
        value = tuple(map(_decoded, task.value)) if isinstance(task.value, list) else _decoded(task.value)
        whitespace, after = (None if text is None else _decoded(text) for text in (task.whitespace, task.after))
        constraint = Constraint(task.kind, value, whitespace=whitespace, after=after)
        lowered = lower(constraint, deadline, lenient=task.lenient)
        nfa = Nfa(lowered.node, deadline, frozenset(task.alphabet), lowered.rules, trim=lowered.trim)
        with naming(task.kind):
            refuse_nothing(Dfa(nfa, deadline), constraint)
        flat = dump(nfa)
        if flat.nbytes > MAX_FLAT:
            raise ConstraintError(
                f"the {task.kind}'s automaton takes {flat.nbytes >> 10} KiB, the limit is {MAX_FLAT >> 10}; {SMALLER}",
                param=task.kind,
            )
        if len(flat.tree_low) > MAX_CLASS_EDGES:
            raise ConstraintError(
                f"the {task.kind}'s character classes take {len(flat.tree_low)} edges, the limit is {MAX_CLASS_EDGES}; "
                "use fewer different ones",
                param=task.kind,
            )
        return Compiled(flat, lowered.warnings, _large(memory), longest_text(lowered.node, lowered.rules))
    except ConstraintError as error:
        return Refused(str(error), error.param, deadline.over, _large(memory))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # there may not be enough to say it in words
    except RecursionError:
        return Refused(f"{task.kind} is nested too deeply to compile; {SMALLER}", task.kind, False, _large(memory))
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}", _large(memory))


def _large(memory: int) -> bool:
    """The process holds so much memory that the next constraint deserves a fresh one."""
    try:
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes, where there is no /proc
    return held > memory // 2


def _limit_memory(memory: int) -> None:
    """Linux counts all private memory as data; other systems may count nothing."""
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    with contextlib.suppress(ValueError, OSError):  # a lower limit stands already
        resource.setrlimit(kind, (memory, resource.getrlimit(kind)[1]))


def main(fd: int, memory: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine decides
    _limit_memory(memory)
    answer(Task("regex", rb"\w\s(?i:\w)", bytes(range(256)), 60.0), memory)  # reads the Unicode tables
    gc.freeze()
    tasks = msgspec.msgpack.Decoder(Task)
    with socket.socket(fileno=fd) as sock:
        try:
            send(sock, Ready())
            while True:
                task = tasks.decode(receive(sock))
                signal.alarm(int(task.seconds) + ALARM_SECONDS)  # its default action needs no interpreter
                found = answer(task, memory)
                del task
                send(sock, found)
                signal.alarm(0)
                if found.last:  # type: ignore[union-attr]
                    return 0
        except (EOFError, OSError):
            return 0
        except MemoryError:
            os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
