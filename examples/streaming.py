"""Several answers at once, each streaming into its own line of the terminal.

Run it with `stemma run examples/streaming.py [TOPIC …]`.
"""

from __future__ import annotations

import asyncio
import shutil
import sys

import stemma
from stemma import AsyncProgramState, assistant, gen, user

TOPICS = ["the moon", "whales", "bread", "chess"]


class Lines:
    """Lines that grow in place on a terminal, and are printed once at the end anywhere else."""

    def __init__(self, titles: list[str]) -> None:
        self.titles, self.texts, self.live = titles, [""] * len(titles), sys.stdout.isatty()
        self.width = shutil.get_terminal_size().columns - 1
        if self.live:
            print("\n" * len(titles), end="")

    def show(self) -> None:
        if self.live:
            rows = [f"\x1b[2K{t:<10} {x}"[: self.width + 4] for t, x in zip(self.titles, self.texts, strict=True)]
            print(f"\x1b[{len(rows)}A" + "\n".join(rows), flush=True)

    def end(self) -> None:
        if not self.live:
            print("\n".join(f"{t:<10} {x}" for t, x in zip(self.titles, self.texts, strict=True)))


@stemma.function
async def tell(s: AsyncProgramState, topics: list[str], lines: Lines) -> None:
    forks = s.fork(len(topics))
    forks += lambda i: user(f"Tell me about {topics[i]}.") + assistant(gen("text", max_tokens=48))

    async def follow(i: int) -> None:
        async for piece in forks[i].text_iter("text"):
            lines.texts[i] += piece.replace("\n", " ")
            lines.show()

    await asyncio.gather(*(follow(i) for i in range(len(topics))))


if __name__ == "__main__":
    topics = sys.argv[1:] or TOPICS
    lines = Lines(topics)
    tell.run(topics, lines, temperature=0, stream=True).sync()
    lines.end()
