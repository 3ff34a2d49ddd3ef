"""LLM judge: every text is judged along several lines at once, with a probability for each verdict.

The text is computed once and the lines are forks of it. `select` scores every choice, so a judge can say how sure it
is; what falls under the bar goes to a person.

Run it with `stemma run examples/judge.py`.
"""

from __future__ import annotations

import stemma
from stemma import ProgramState, assistant, select, user_begin, user_end

REVIEWS = [
    "I loved the album. The singer was brilliant.",
    "The coach was rude and the stadium was dirty.",
    "The recipe is good but the cake was bad.",
    "The match starts at 7:30.",
    "The bread was okay, neither good nor bad.",
]
LINES = {
    "sentiment": ("What is the sentiment?", ["positive", "negative", "neutral"]),
    "topic": ("What is the topic?", ["sports", "cooking", "music", "weather", "travel", "money"]),
}
BAR = 0.9


@stemma.function
def judge(s: ProgramState, review: str) -> dict[str, tuple[str, float]]:
    """(verdict, probability) for each line."""
    s += user_begin()
    s += review + "\n\n"
    forks = s.fork(len(LINES))
    for fork, (question, choices) in zip(forks, LINES.values(), strict=True):
        fork += question + user_end()
        fork += assistant(select("verdict", choices=choices))
    return {
        line: (fork["verdict"], max(fork.get_meta_info("verdict")["probabilities"]))
        for line, fork in zip(LINES, forks, strict=True)
    }


if __name__ == "__main__":
    for review, state in zip(REVIEWS, judge.run_batch([(review,) for review in REVIEWS]), strict=True):
        print(review)
        for line, (verdict, probability) in state.ret_value.items():
            print(f"  {line:<10} {verdict:<10} {probability:6.1%}{'' if probability >= BAR else '   ask a person'}")
        print()
