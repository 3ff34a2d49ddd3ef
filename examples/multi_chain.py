"""Multi-chain vote: several ways to work out one answer run side by side, and the majority wins.

Each chain is a fork that takes its own two steps. The second step quotes the answer of the first, so no chain waits for
another and the program waits for none. Unlike self-consistency, the chains differ in how they go about it.

Run it with `stemma run examples/multi_chain.py`.
"""

from __future__ import annotations

from collections import Counter

import stemma
from stemma import ProgramState, assistant, gen, system, user

# what a stall had in the morning, what was delivered at noon, what was sold
DAYS = [(38, 27, 9), (64, 29, 13), (17, 45, 16)]


@stemma.function
def left_over(s: ProgramState, had: int, delivered: int, sold: int) -> Counter[int]:
    """How much is left: had + delivered - sold, in four orders."""
    ways = [
        (had, f"+ {delivered}", f"- {sold}"),
        (delivered, f"+ {had}", f"- {sold}"),
        (had, f"- {sold}", f"+ {delivered}"),
        (delivered, f"- {sold}", f"+ {had}"),
    ]
    s += system("You are a careful assistant.")
    chains = s.fork(len(ways))
    for chain, (start, first, second) in zip(chains, ways, strict=True):
        chain += user(f"What is {start} {first}?") + assistant(gen("half", type=int))
        chain += user("What is " + chain.ref("half") + f" {second}?") + assistant(gen("total", type=int))
    chains.join()
    return Counter(s["total"])


if __name__ == "__main__":
    for day, state in zip(DAYS, left_over.run_batch(DAYS, temperature=2.2, seed=5), strict=True):
        votes = state.ret_value
        winner, count = votes.most_common(1)[0]
        had, delivered, sold = day
        print(f"{had} + {delivered} - {sold} = {winner}   {count} of 4 chains")
        for half, total in zip(state["half"], state["total"], strict=True):
            print(f"    {half:>4} -> {total}{'' if total == winner else '   outvoted'}")
