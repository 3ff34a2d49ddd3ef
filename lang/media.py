"""Images in programs: what `image(…)` is given becomes a node with its data and its MIME type."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from stemma.lang.errors import RequestError
from stemma.lang.nodes import Image, caller

_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,")


def image(source: Any) -> Image:
    """An image to append: any number of them, in any place of a message.

    `source` is a path, the file's bytes, an `http(s)` or `data:` URL, or an object with PIL's `save(file, format)`. The
    MIME type is that of the bytes, whatever the file is called: PNG, JPEG, GIF or WebP. An `http(s)` URL is passed on
    as it is. Raises `RequestError` for anything else, and for a file that cannot be read.
    """
    where = caller()
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return Image(url=source, where=where)
    data = _bytes_of(source)
    mime = image_mime(data)
    if mime is None:
        shown = f"{os.fspath(source)!r:.120} " if isinstance(source, (str, os.PathLike)) else ""
        begin = f"it begins with {data[:12]!r}" if data else "it is empty"
        _refuse(f"the image {shown}is no PNG, JPEG, GIF or WebP: {begin}")
    return Image(base64.b64encode(data).decode("ascii"), mime, where=where)


def video(path: Any, num_frames: int | None = None) -> NoReturn:
    """Not built: raises `RequestError` that says what to do instead."""
    raise RequestError(
        f"video({path!r}, num_frames={num_frames!r}) is not built: take frames out of it and append each with image(…)",
        param="video",
    )


def image_mime(data: bytes) -> str | None:
    """The MIME type by the first bytes; None for what is not known."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def _bytes_of(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and source.startswith("data:"):
        head = _DATA_URL.match(source)
        try:
            return base64.b64decode(source[head.end() :], validate=True) if head else _refuse_url(source)
        except binascii.Error as error:
            _refuse(f"the data URL {source[:60]!r}… holds no base64: {error}")
    if isinstance(source, (str, os.PathLike)):
        try:
            return Path(source).read_bytes()
        except (OSError, ValueError) as error:
            _refuse(f"the image {os.fspath(source)!r:.200} cannot be read: {error}")
    if callable(save := getattr(source, "save", None)):
        file = io.BytesIO()
        save(file, format="PNG")
        return file.getvalue()
    _refuse(f"image takes a path, bytes, a URL or a PIL image, got {source!r:.80} ({type(source).__name__})")


def _refuse_url(source: str) -> NoReturn:
    _refuse(f"image takes a data URL in base64, got {source[:60]!r}")


def _refuse(problem: str) -> NoReturn:
    raise RequestError(problem, param="image")
