"""The spine: random programs on a tiny fp32 model, every optimisation toggled, equal tokens required, no slot lost.

`python -m tests.differential` plays as many cases as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.differential.cases import mix, result_of
from tests.differential.world import World, differences

CASES = 520


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("tiny") / "model")
    yield made
    made.runner.close()


@pytest.mark.parametrize("block", range(0, CASES, 20))
def test_no_option_changes_any_token(world: World, block: int):
    for seed in range(block, block + 20):
        found = differences(world, seed)
        assert not found, "\n".join(found)


@pytest.mark.parametrize("seed", [19, 261, 310])
def test_a_crowd_in_a_small_pool_with_a_host_tier(world: World, seed: int):
    """Loading back may not take the slots that decoding rows of the same step were promised."""
    parts = [(k, delta) for k in range(4) for delta in mix(10 * seed + k)]
    deltas = [{**delta, "program": f"{k}-{delta['program']}"} for k, delta in parts]
    plain: dict[str, Any] = {"chunk": 512, "jump_forward": True, "mask_overlap": False, "draft": "off"}
    crowded = {"slots": 260 + seed % 50, "host": 3000, "conservativeness": 0.0, "overlap": True, "policy": "program"}
    truth = world.play(deltas, together=False, radix=False, **plain)
    played = world.play(deltas, **plain, **crowded)
    assert {key: result_of(event) for key, event in played.items()} == {k: result_of(e) for k, e in truth.items()}
