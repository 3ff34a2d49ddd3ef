"""Other constraint engines behind our contract: llguidance and xgrammar, optional extras.

They serve as a fallback for what the native compiler refuses, where the user allows it, as oracles in tests, and as the
other side in benchmarks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stemma.backend.grammar.adapters.peer import installed, missing
from stemma.backend.grammar.base import Grammar, Matcher, Vocabulary
from stemma.lang.errors import RequestError
from stemma.lang.params import Constraint

BackendName = Literal["native", "llguidance", "xgrammar"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

_MODULES: dict[BackendName, str] = {
    "native": "stemma.backend.grammar.compiler",
    "llguidance": "stemma.backend.grammar.adapters.llguidance",
    "xgrammar": "stemma.backend.grammar.adapters.xgrammar",
}


class Backend(NamedTuple):
    """One engine. `compile` raises ConstraintError for what it refuses.

    `fill` writes the masks of many matchers into int32[len(matchers), words], in the engine's own fastest way.
    """

    name: BackendName
    compile: Callable[[Constraint, Vocabulary], Grammar]
    fill: Callable[[Sequence[Matcher], NDArray[np.int32]], None]


def backend_named(name: str, *, narrow: bool = True) -> Backend:
    """The engine of that name. RequestError for an unknown one, ConstraintError naming the extra for a missing one.

    `narrow=False` leaves a peer's masks as its own users get them, for benchmarks: where the text is forced they may
    hold several tokens. The native engine always narrows.
    """
    if name not in BACKENDS:
        raise RequestError(
            f"grammar_backend must be one of {', '.join(BACKENDS)}, got {name!r}", param="grammar_backend"
        )
    if name == "native":
        return Backend(name, importlib.import_module(_MODULES[name]).compile_constraint, fill_one_by_one)
    if not installed(name):
        raise missing(name)
    module = importlib.import_module(_MODULES[name])
    return Backend(name, partial(module.compile_constraint, narrow=narrow), module.fill)


def available() -> list[BackendName]:
    """The engines whose packages are installed; native first."""
    return [name for name in BACKENDS if name == "native" or installed(name)]


def fill_one_by_one(matchers: Sequence[Matcher], rows: NDArray[np.int32]) -> None:
    """Each matcher's mask into its row."""
    for row, matcher in zip(rows, matchers, strict=True):
        row[:] = matcher.mask()
