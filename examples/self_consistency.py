"""Self-consistency: sample one answer many times, take the most frequent, and read its share as confidence.

Run it with `stemma run examples/self_consistency.py`.
"""

from __future__ import annotations

from collections import Counter

import stemma
from stemma import ProgramState, assistant, gen, user

QUESTIONS = [
    "Ann has 47 coins and finds 38 more. How many coins does Ann have now?",
    "Tom had 92 books and sold 57. How many books are left?",
    "A farmer had 63 sheep. 18 ran away. How many sheep does the farmer have?",
]
SAMPLES = 16


@stemma.function
def consistent(s: ProgramState, question: str) -> Counter[int]:
    """The samples are forks: the question is computed once, whatever their number."""
    s += user(question)
    forks = s.fork(SAMPLES)
    forks += assistant(gen("answer", type=int))
    forks.join()
    return Counter(s["answer"])


if __name__ == "__main__":
    states = consistent.run_batch([(question,) for question in QUESTIONS], temperature=1.2, seed=3)
    for question, state in zip(QUESTIONS, states, strict=True):
        votes = state.ret_value.most_common()
        print(f"{question}\n  answer {votes[0][0]}, agreed on by {votes[0][1] / SAMPLES:.0%}")
        for value, count in votes:
            print(f"  {value:>6} {'#' * count}")
        print()
