"""The page that shows a trace: one HTML file that loads nothing and sends nothing.

The data travels as JSON in a block that no browser runs, with every `<` escaped; the script builds the page with text
nodes only, never with markup made of data; and the page's own policy allows this one script and this one style sheet,
by their hashes, and nothing else. So a model's output cannot become code, whatever it says.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FRAME_HEIGHT = 640  # pixels, in notebooks

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="app"></main>
<noscript><pre>{text}</pre></noscript>
<script type="application/json" id="trace">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(data: Mapping[str, Any]) -> str:
    """The whole page for a trace's data."""
    from stemma.interpreter.trace_forms import text_tree  # what those see who run no scripts

    style, script = _asset("trace.css"), _asset("trace.js")
    made = _PAGE.format(
        title=html.escape(f"{data['title']}: trace"),
        style=style,
        script=script,
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}",
        text=html.escape("\n".join(text_tree(data))),
        data=_inert(data),
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", made)  # half a character, which no file can hold


def frame(data: Mapping[str, Any]) -> str:
    """The page inside an `iframe` that may run its script and nothing else."""
    title, inside = html.escape(f"{data['title']}: trace"), html.escape(page(data))
    style = f"width: 100%; height: {FRAME_HEIGHT}px; border: 0"
    return f'<iframe sandbox="allow-scripts" title="{title}" srcdoc="{inside}" style="{style}"></iframe>'


def _inert(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element, open a comment, or break a line of JavaScript."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=str)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@cache
def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
