"""The options of the prefix cache: checked at birth, rounded to pages, equal answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stemma.backend.config import EngineConfig
from stemma.backend.engine import Engine
from stemma.lang.errors import RequestError


@pytest.mark.parametrize(
    "options, message",
    [
        ({"page_size": 24}, r"page_size must be a power of two in \[1, 256\], got 24"),
        ({"page_size": 0}, "page_size"),
        ({"page_size": True}, "page_size"),
        ({"page_size": 512}, "page_size"),
        ({"page_size": 16, "max_total_tokens": 15}, "at least one page of 16 tokens"),
        ({"radix_eviction_policy": "mru"}, "must be one of lru, lfu, slru"),
        ({"radix_eviction_policy": "lfu", "disable_radix_cache": True}, "needs the radix cache"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(RequestError, match=message):
        EngineConfig(**options)


def test_an_engine_with_pages_answers_as_one_without(tiny_model: Path):
    prompt, params = (
        "once upon a time there was a prompt long enough",
        {"max_new_tokens": 12, "temperature": 0},
    )
    answers = []
    for page in (1, 16):
        with Engine(
            tiny_model, load_format="dummy", max_total_tokens=1001, num_threads=1, page_size=page,
            radix_eviction_policy="slru",
        ) as engine:  # fmt: skip
            answers.append([engine.generate(prompt, params)["text"] for _ in range(2)])
            info = engine.info()
            assert info["total_slots"] == info["max_total_num_tokens"] == 1001 // page * page
            assert info["num_slots"] == info["total_slots"] + page
            assert info["cache_hit_tokens"] > 0
            engine.check()
    assert answers[0] == answers[1]
