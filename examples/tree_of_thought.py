"""Tree of thought: reach a number by steps, keep the best branches, expand them again.

Every thought is a fork of the thought before it, so the whole conversation up to it is computed once for all its
children. The model does the sums; the program scores what came out and prunes.

Run it with `stemma run examples/tree_of_thought.py [TARGET]`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import stemma
from stemma import ProgramState, assistant, gen, system, user

MOVES = ["+ 25", "+ 17", "- 8"]
DEPTH, KEEP = 3, 2


@dataclass
class Thought:
    state: ProgramState
    value: int
    path: str


@stemma.function
def reach(s: ProgramState, start: int, target: int) -> Thought:
    """Beam search: at each depth every kept thought tries every move."""
    s += system("You are a careful assistant.")
    beam = [Thought(s, start, str(start))]
    best = beam[0]
    for depth in range(1, DEPTH + 1):
        forked = [(parent, parent.state.fork(len(MOVES))) for parent in beam]
        for parent, forks in forked:  # a whole level is written before any of it is read: it runs at once
            forks += lambda i, v=parent.value: user(f"What is {v} {MOVES[i]}?") + assistant(gen("value", type=int))
        thoughts = [
            Thought(child, child["value"], f"{parent.path} {move} = {child['value']}")
            for parent, forks in forked
            for move, child in zip(MOVES, forks, strict=True)
        ]
        thoughts.sort(key=lambda t: abs(target - t.value))
        for rank, thought in enumerate(thoughts):
            print(f"  {'keep' if rank < KEEP else '    '}  {'   ' * (depth - 1)}{thought.path}")
        beam = thoughts[:KEEP]
        best = min(best, beam[0], key=lambda t: abs(target - t.value))
    return best


if __name__ == "__main__":
    target = int(sys.argv[1]) if len(sys.argv) > 1 else 74
    state = reach.run(15, target, temperature=0)
    best = state.ret_value
    print(f"closest to {target}: {best.path}")
    usage = state.usage()
    print(f"{usage['prompt_tokens']} prompt tokens, of which {usage['cached_tokens']} came from the cache")
