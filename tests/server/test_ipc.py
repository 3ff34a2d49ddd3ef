"""Frames between the processes."""

from __future__ import annotations

import asyncio
import socket
import threading

import numpy as np
import pytest

from stemma.backend.messages import parse_delta
from stemma.backend.server import ipc
from stemma.backend.server.engine_process import Writer

DELTA = parse_delta(
    {
        "program": "p",
        "branches": [
            {"id": "r", "nodes": [{"kind": "text", "text": "é"}, {"kind": "gen", "logprobs": {"top": 2}}], "end": True},
            {"id": "s", "parent": "r", "at": 1, "nodes": [{"kind": "select", "choices": ["a"]}]},
        ],
    }
)


@pytest.mark.parametrize(
    "message", [ipc.Start({"a": 1}, "m:f"), ipc.Submit(3, DELTA), ipc.Cancel("p", ["r"]), ipc.Control(4, "flush")]
)
def test_messages_to_the_engine(message):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(ipc.frame(message))
        assert ipc.read_to_engine(theirs) == message


def test_a_closed_socket_is_an_end_of_file_even_inside_a_frame():
    for part in (0, 2, 7):
        ours, theirs = socket.socketpair()
        with theirs:
            ours.sendall(ipc.frame(ipc.Cancel("program"))[:part])
            ours.close()
            with pytest.raises(EOFError):
                ipc.read_to_engine(theirs)


def test_a_stream_out_of_step_is_not_followed():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(EOFError, match="out of step"):
            ipc.read_to_engine(theirs)


def test_events_of_many_threads_arrive_complete_and_in_order():
    ours, theirs = socket.socketpair()
    writer = Writer(theirs)
    counts = {}

    def produce(id: int) -> None:
        for n in range(200):
            writer.event(id, {"n": n, "numpy": np.float32(1.0), "array": np.arange(2)})

    async def consume() -> int:
        reader, sink = await asyncio.open_unix_connection(sock=ours)
        frames = 0
        while sum(counts.values()) < 800:
            message = await ipc.read_to_front(reader)
            frames += 1
            if isinstance(message, ipc.Events):
                for id, event in message.events:
                    assert event == {"n": counts.get(id, 0), "numpy": 1.0, "array": [0, 1]}
                    counts[id] = counts.get(id, 0) + 1
        sink.close()
        await sink.wait_closed()
        return frames

    threads = [threading.Thread(target=produce, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    frames = asyncio.run(asyncio.wait_for(consume(), 10))
    writer.close()
    theirs.close()
    assert frames < 800
