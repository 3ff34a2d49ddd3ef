"""The contract between constrained decoding and the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """What the grammar engine knows of a tokenizer.

    token_bytes[i] is the exact byte string that token i stands for inside a text, or None for special tokens (they are
    never matched by text). `size` is the width of the logits (may exceed len(token_bytes); the rest is never allowed).
    `encode` is the tokenizer's canonical encoding of plain text, without BOS; used to make forced text canonical.
    """

    token_bytes: Sequence[bytes | None]
    size: int
    eos_ids: frozenset[int]
    encode: Callable[[str], list[int]]


class Matcher(Protocol):
    """The position of one generation in its grammar. Cheap to clone; owned by one branch."""

    def mask(self) -> NDArray[np.int32]:
        """Bitmask row, int32[ceil(size / 32)], bit set = token allowed next. Shared and read-only: do not write.

        EOS bits are set exactly when `is_complete()`. When the text from here is forced, the row holds exactly one bit,
        the first token of `forced()`, so that plain masked decoding and jump-forward give the same ids.
        """
        ...

    def accept(self, token_id: int) -> bool:
        """Advance by one token. False (and no change) if the mask does not allow it. EOS ids finish the matcher."""
        ...

    def forced(self) -> list[int]:
        """Token ids that plain masked decoding would emit next without any choice; [] when there is a choice."""
        ...

    def draft(self) -> list[int]:
        """How the text that must follow here is likely spelled, where `forced` is not certain of it: a guess, to be
        verified. [] when no text is forced, or the engine does not say. Each token is allowed after those before it."""
        ...

    def shortest_completion(self) -> list[int]:
        """Token ids, EOS aside, that lead from here to a whole match: of the fewest bytes that any match still needs,
        in few tokens. `accept` takes them one after the other. An upper bound, then, on the tokens needed; [] when the
        text is complete. ConstraintError when the engine cannot tell."""
        ...

    def can_finish(self, tokens: int) -> bool:
        """`shortest_completion` has at most that many tokens; often known without spelling it."""
        ...

    def is_complete(self) -> bool:
        """The text so far is a whole match: stopping here is legal."""
        ...

    def is_finished(self) -> bool:
        """Nothing but EOS is legal (or EOS was accepted): stop without another step."""
        ...

    def rollback(self, n: int) -> None:
        """Take back the last n accepted tokens. ValueError if fewer were accepted."""
        ...

    def clone(self) -> Matcher: ...


class Grammar(Protocol):
    """A compiled constraint. Immutable from outside, shared by requests and threads."""

    def matcher(self) -> Matcher: ...
