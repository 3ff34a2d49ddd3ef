"""Skeleton of thought: write the outline first, then all of its points at the same time.

Run it with `stemma run examples/skeleton.py [TOPIC]`.
"""

from __future__ import annotations

import sys

import stemma
from stemma import ProgramState, assistant, gen, user

POINTS = 3


@stemma.function
def write(s: ProgramState, topic: str) -> None:
    s += user(f"Give three tips for {topic}.")
    with s.assistant():
        for i in range(POINTS):
            s += f"{i + 1}. " + gen(f"point_{i}", max_tokens=24, stop="\n") + "\n" * (i < POINTS - 1)
    forks = s.fork(POINTS)  # each fork shares the outline
    forks += lambda i: user(f"Expand tip {i + 1}.") + assistant(gen("text", max_tokens=64))
    forks.join()


if __name__ == "__main__":
    topic = " ".join(sys.argv[1:]) or "baking bread"
    state = write.run(topic, temperature=0)
    print(f"Tips for {topic}\n")
    for i, text in enumerate(state["text"]):
        print(f"{i + 1}. {state[f'point_{i}']}\n   {text}\n")
    usage = state.usage()
    print(f"{usage['prompt_tokens']} prompt tokens, {usage['cached_tokens']} of them cached")
