"""A tiktoken encoding whose tokens are single bytes, so that tests need no download."""

from __future__ import annotations

from typing import Any


def characters() -> Any:
    """The encoding; None where tiktoken is not installed."""
    try:
        import tiktoken
    except ModuleNotFoundError:
        return None
    return tiktoken.Encoding(
        "characters",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={},
    )
