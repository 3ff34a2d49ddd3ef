"""What the front process and the engine process say to each other: length-prefixed msgpack over a socketpair.

Front to engine: Start (once, first), Submit, Cancel, Control. Engine to front: Ready or Fatal, Answer (one for each
Submit and Control), Events (many in one frame), Heartbeat.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec

from stemma.backend.messages import GraphDelta

HEADER = 4  # bytes, little-endian length of the payload
MAX_FRAME = 1 << 30
HEARTBEAT_SECONDS = 2.0


class Start(msgspec.Struct, tag=True):
    config: dict[str, Any]  # fields of EngineConfig
    factory: str | None = None  # "module:callable" instead of the real engine; for tests


class Submit(msgspec.Struct, tag=True):
    id: int
    delta: GraphDelta


class Cancel(msgspec.Struct, tag=True):
    program: str
    branches: list[str] | None = None


class Control(msgspec.Struct, tag=True):
    id: int
    action: str  # flush, info, state, shutdown


class Ready(msgspec.Struct, tag=True):
    info: dict[str, Any]


class Fatal(msgspec.Struct, tag=True):
    message: str


class Answer(msgspec.Struct, tag=True):
    id: int
    error: dict[str, Any] | None = None
    value: Any = None


class Events(msgspec.Struct, tag=True):
    events: list[tuple[int, dict[str, Any]]]  # (id of the Submit, event)


class Heartbeat(msgspec.Struct, tag=True):
    pass


ToEngine = Start | Submit | Cancel | Control
ToFront = Ready | Fatal | Answer | Events | Heartbeat


def _plain(value: Any) -> Any:
    """numpy scalars and arrays that found their way into an event."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot send {type(value).__name__} between processes")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_ENGINE_SIDE = msgspec.msgpack.Decoder(ToEngine)
_FRONT_SIDE = msgspec.msgpack.Decoder(ToFront)


def frame(message: ToEngine | ToFront) -> bytes:
    """The bytes of one message, with its length."""
    payload = _ENCODER.encode(message)
    return len(payload).to_bytes(HEADER, "little") + payload


def read_to_engine(sock: socket.socket) -> ToEngine:
    """Blocking read of one message. EOFError when the other side is gone."""
    header = _exactly(sock, HEADER)
    return _ENGINE_SIDE.decode(_exactly(sock, _length(header)))


async def read_to_front(reader: asyncio.StreamReader) -> ToFront:
    """One message. EOFError when the other side is gone."""
    header = await reader.readexactly(HEADER)  # IncompleteReadError is an EOFError
    return _FRONT_SIDE.decode(await reader.readexactly(_length(header)))


def _length(header: bytes) -> int:
    size = int.from_bytes(header, "little")
    if size > MAX_FRAME:
        raise EOFError(f"a frame of {size} bytes: the stream is out of step")
    return size


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise EOFError("the other process is gone")
        view = view[got:]
    return bytes(data)
