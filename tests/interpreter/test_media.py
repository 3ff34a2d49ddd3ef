"""Images as nodes: what `image` takes, who takes images, and what messages look like."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from stemma import (
    AsyncProgramState,
    ProgramState,
    RequestError,
    RuntimeEndpoint,
    ScriptedEndpoint,
    assistant,
    function,
    gen,
    image,
    user,
    video,
)
from stemma.interpreter.endpoints.local import LocalEndpoint
from stemma.interpreter.graph import ProgramGraph
from stemma.lang.media import image_mime

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
JPEG = b"\xff\xd8\xff\xe0" + b"pixels"
GIF = b"GIF89a" + b"pixels"
WEBP = b"RIFF\x10\x00\x00\x00WEBPVP8 "


def url(mime: str, data: bytes) -> dict[str, Any]:
    shown = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": shown}}


@pytest.mark.parametrize(
    ("data", "mime"),
    [(PNG, "image/png"), (JPEG, "image/jpeg"), (GIF, "image/gif"), (GIF.replace(b"9", b"7"), "image/gif"),
     (WEBP, "image/webp")],
)  # fmt: skip
def test_the_type_is_that_of_the_bytes_whatever_the_name(data: bytes, mime: str, tmp_path: Path):
    (tmp_path / "a.jpeg").write_bytes(data)
    for source in (tmp_path / "a.jpeg", str(tmp_path / "a.jpeg"), data, bytearray(data), memoryview(data)):
        node = image(source)
        assert (node.mime, base64.b64decode(node.data)) == (mime, data)
    assert "test_media.py" in node.where


def test_urls_are_kept_and_data_urls_read():
    assert image("https://example.org/a.png").url == "https://example.org/a.png"
    node = image("data:image/jpeg;base64," + base64.b64encode(PNG).decode())
    assert (node.mime, node.url) == ("image/png", "")


def test_what_saves_itself_as_png_is_an_image():
    class Picture:
        def save(self, file: io.BytesIO, format: str) -> None:
            assert format == "PNG"
            file.write(PNG)

    assert image(Picture()).mime == "image/png"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"%PDF-1.7 and more", r"no PNG, JPEG, GIF or WebP: it begins with b'%PDF-1.7 and'"),
        (b"", "it is empty"),
        ("missing.png", "the image 'missing.png' cannot be read"),
        ("data:image/png,abc", "a data URL in base64"),
        ("data:image/png;base64,a?", "holds no base64"),
        (3, r"image takes a path, bytes, a URL or a PIL image, got 3 \(int\)"),
    ],
)
def test_what_is_no_image_is_refused_where_it_is_written(source: Any, message: str):
    with pytest.raises(RequestError, match=message):
        image(source)
    assert image_mime(b"RIFF....WAVE") is None


def test_video_says_what_to_do_instead():
    with pytest.raises(RequestError, match=r"video\('a.mp4', num_frames=8\) is not built: take frames.*image"):
        video("a.mp4", 8)


@function
def compare(s: ProgramState):
    s += user(["Which is older, ", image(PNG), " or ", image(JPEG), image("https://example.org/c.gif"), "?"])
    s += assistant(gen("answer"))
    s += user("And this? " + image(GIF)) + assistant(gen("next"))


def test_any_number_of_images_keep_their_places():
    endpoint = ScriptedEndpoint({"answer": "The first.", "next": "No."})
    state = compare.run(backend=endpoint)
    assert state.messages() == [
        {"role": "user", "content": [
            {"type": "text", "text": "Which is older, "}, url("image/png", PNG), {"type": "text", "text": " or "},
            url("image/jpeg", JPEG), {"type": "image_url", "image_url": {"url": "https://example.org/c.gif"}},
            {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "The first."},
        {"role": "user", "content": [{"type": "text", "text": "And this? "}, url("image/gif", GIF)]},
        {"role": "assistant", "content": "No."},
    ]  # fmt: skip
    assert [i.get("mime") or i["url"] for i in endpoint.images["next"]] == [
        "image/png", "image/jpeg", "https://example.org/c.gif", "image/gif",
    ]  # fmt: skip
    assert len(endpoint.images["answer"]) == 3
    assert state.text().startswith("user: Which is older,  or ?\nassistant: The first.")


def test_images_are_nodes_of_the_wire_and_of_the_record():
    endpoint = ScriptedEndpoint()
    state = compare.run(backend=endpoint)
    state.sync()
    sent = [node for delta in endpoint.deltas for branch in delta["branches"] for node in branch["nodes"]]
    images = [node for node in sent if node["kind"] == "image"]
    assert {k: images[0][k] for k in ("data", "mime")} == {"data": base64.b64encode(PNG).decode(), "mime": "image/png"}
    assert images[2]["url"].endswith("c.gif") and "data" not in images[2]
    again = ProgramGraph.from_dict(json.loads(json.dumps(state.graph().to_dict())))
    assert again.statistics() == state.graph().statistics() and again.statistics()["image"] == 4


def test_forks_inherit_images_and_a_joined_text_brings_its_own():
    @function
    def look(s: ProgramState):
        s += user("Look: " + image(PNG))
        forks = s.fork(2)
        forks += [user(image(JPEG)) + gen("x0"), gen("x1")]
        forks.join("concate_and_append")
        s += gen("end")

    endpoint = ScriptedEndpoint()
    look.run(backend=endpoint).sync()
    mimes = {name: [i["mime"] for i in found] for name, found in endpoint.images.items()}
    assert mimes["x0"] == mimes["end"] == ["image/png", "image/jpeg"] and mimes["x1"] == ["image/png"]


def test_an_image_outside_the_roles_is_no_message():
    state = function(lambda s: s.append(image(PNG) + gen("a"))).run(backend=ScriptedEndpoint())
    with pytest.raises(RequestError, match=r"image at .*test_media.py.* is outside of every role"):
        state.messages()


class Text(ScriptedEndpoint):
    capabilities = frozenset({"names"})


class Data(ScriptedEndpoint):
    capabilities = frozenset({"names", "images"})


class Spy:
    def __init__(self) -> None:
        self.deltas: list[Any] = []

    def submit(self, delta: Any, on_event: Any) -> None:
        self.deltas.append(delta)

    def cancel(self, program: str, branches: Any = None) -> None: ...


def test_endpoints_without_images_refuse_them_before_anything_is_sent(tmp_path: Path):
    text, spy = Text(), Spy()
    for endpoint in (text, LocalEndpoint(spy), RuntimeEndpoint("http://127.0.0.1:9")):
        name = type(endpoint).__name__
        with pytest.raises(RequestError, match=f"image image/png at .*test_media.py:[0-9]+: {name} does not take it"):
            compare.run(backend=endpoint)
    assert text.deltas == [] and spy.deltas == []
    with pytest.raises(RequestError, match=r"image https://example.org/c.gif at .*Data does not take it; give image"):
        compare.run(backend=Data())


def test_async_programs_are_refused_at_the_line_too():
    @function
    async def look(s: AsyncProgramState):
        s += user(image(PNG))

    with pytest.raises(RequestError, match="Text does not take it"):
        asyncio.run(look.arun(backend=Text()))
