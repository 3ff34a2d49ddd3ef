"""Which nodes an endpoint can take: checked when a node is appended, before anything of it is sent."""

from __future__ import annotations

from stemma.interpreter.endpoints.base import Endpoint
from stemma.lang.errors import RequestError
from stemma.lang.nodes import Image, Node


def check_node(endpoint: Endpoint, node: Node) -> None:
    """Raise `RequestError`, naming the user's line, for a node that needs what the endpoint does not have."""
    for capability, hint in _needs(node):
        if capability not in endpoint.capabilities:
            name = type(endpoint).__name__
            raise RequestError(f"{node} at {node.where}: {name} does not take it; {hint}", param=capability)


def check_priority(endpoint: Endpoint, priority: int | None) -> None:
    """Raise `RequestError` for a run with a priority on an endpoint that has no queue of ours."""
    if priority is not None and "priority" not in endpoint.capabilities:
        raise RequestError(
            f"priority={priority}: {type(endpoint).__name__} does not decide which request goes first; leave it out, "
            "or run on an engine of this library",
            param="priority",
        )


def _needs(node: Node) -> tuple[tuple[str, str], ...]:
    """The capabilities that a node needs, and what to do without each."""
    if isinstance(node, Image) and node.url:
        return (("image_urls", "give image(…) the file or its bytes, if the endpoint takes images at all"),)
    if isinstance(node, Image):
        return (("images", "its models read text; use an endpoint with the capability 'images'"),)
    return ()
