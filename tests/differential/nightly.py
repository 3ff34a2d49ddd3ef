"""Many cases of the differential harness: `python -m tests.differential --cases 5000 --jobs 2`.

Each case is a random mix of programs, played twice on a tiny fp32 model: with every optimisation off, and with a random
setting of all of them. Tokens, errors and log-probabilities must be equal, and every KV slot accounted for. Says which
cases differ and ends with status 1 if one does.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

BLOCK = 20


def _play(first: int, last: int) -> list[str]:
    from tests.differential.world import World, differences

    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "model")
        for seed in range(first, last):
            try:
                found += differences(world, seed)
            except Exception as error:  # an invariant that does not hold, a case that never ends
                found.append(f"case {seed}: {type(error).__name__}: {error}")
        world.runner.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=5000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first case's number; cases are the same every time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    end = args.first + args.cases
    blocks = [(at, min(at + BLOCK, end)) for at in range(args.first, end, BLOCK)]
    began, done, bad = time.monotonic(), 0, 0
    context = multiprocessing.get_context("spawn")
    with contextlib.suppress(KeyboardInterrupt), context.Pool(args.jobs, maxtasksperchild=25) as pool:
        for at, found in zip(blocks, pool.imap(_star, blocks), strict=True):
            done += at[1] - at[0]
            bad += len({what.split(",")[0].split(":")[0] for what in found})
            for what in found:
                print(what, flush=True)
            print(
                f"\r{done} of {args.cases} cases, {bad} differ, {time.monotonic() - began:.0f} s",
                end="",
                file=sys.stderr,
            )
    print(file=sys.stderr)
    print(f"{done} cases in {time.monotonic() - began:.0f} s: {done - bad} equal, {bad} differ")
    return 0 if done == args.cases and not bad else 1


def _star(block: tuple[int, int]) -> list[str]:
    return _play(*block)
