"""The spine: random programs on a tiny fp32 model, every optimisation toggled, equal tokens required, no slot lost.

`python -m tests.differential` plays as many cases as one likes.
"""

from __future__ import annotations

import pytest

from tests.differential.world import World, differences

CASES = 520


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("block", range(0, CASES, 20))
def test_no_option_changes_any_token(world: World, block: int):
    for seed in range(block, block + 20):
        found = differences(world, seed)
        assert not found, "\n".join(found)
