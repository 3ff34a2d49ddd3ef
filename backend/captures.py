"""The captures of composed gens, found when a gen has ended: on a thread of their own, as the engine must not wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stemma.backend.grammar.compiler import find_captures
from stemma.backend.messages import GenNode, GraphDelta
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

Event = dict[str, Any]
Sink = Callable[[Event], None]


class Captures:
    """Adds `captures` to the `meta` of `done` events of composed gens: for each name its places in the text.

    A text that is no whole match (it was cut off) gets none; where they cannot be found, `captures_error` says why.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def watch(self, delta: GraphDelta, sink: Sink) -> Sink:
        """The sink that adds them; the given one if nothing of the delta has captures."""
        nodes = {
            (branch.id, branch.first + i): node.constraint
            for branch in delta.branches
            for i, node in enumerate(branch.nodes)
            if isinstance(node, GenNode) and node.constraint is not None and _may_capture(node.constraint)
        }
        if not nodes:
            return sink

        def add(event: Event) -> None:
            constraint = nodes.get((event["branch"], event["node"])) if event["event"] == "done" else None
            if constraint is None:
                sink(event)
            else:
                try:
                    self._executor().submit(_report, event, constraint, sink)
                except RuntimeError:  # closed
                    sink(event)

        return add

    def close(self) -> None:
        """Wait for those that are being found; none is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:  # only the engine's thread comes here
            self._pool = ThreadPoolExecutor(1, "stemma-captures")
        return self._pool


def _may_capture(constraint: Mapping[str, Any]) -> bool:
    return constraint.get("kind") == "composed" and '"capture"' in str(constraint.get("value"))


def _report(event: Event, constraint: Mapping[str, Any], sink: Sink) -> None:
    meta = dict(event["meta"])
    try:
        found = find_captures(Constraint.from_dict(constraint), event["text"])
        if found is not None:
            meta["captures"] = found
    except ConstraintError as error:
        meta["captures_error"] = str(error)
    except Exception as error:  # a fault of ours must not leave a reader waiting
        meta["captures_error"] = f"internal error: {type(error).__name__}: {error}"
    sink({**event, "meta": meta})
