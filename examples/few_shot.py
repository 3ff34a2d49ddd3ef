"""Few-shot prompts: the examples are the same for every question, so they are computed once.

Run it with `stemma run examples/few_shot.py`.
"""

from __future__ import annotations

import stemma
from stemma import ProgramState, gen

SHOTS = [
    ("What is the capital of France?", "Paris"),
    ("What is the opposite of hot?", "cold"),
    ("What is 12 + 30?", "42"),
    ("Who wrote Hamlet?", "William Shakespeare"),
    ("What is the capital of Egypt?", "Cairo"),
]
QUESTIONS = [
    "What is the capital of Italy?",
    "What is the opposite of old?",
    "What is 25 + 17?",
    "What is the capital of Japan?",
    "What is the plural of mouse?",
]


@stemma.function
def few_shot(s: ProgramState, question: str) -> None:
    for asked, told in SHOTS:
        s += f"Q: {asked}\nA: {told}\n\n"
    s += f"Q: {question}\nA:" + gen("answer", max_tokens=12, stop="\n")


if __name__ == "__main__":
    print(f"{'question':<32} {'answer':<8} prompt cached")
    for question in QUESTIONS:
        state = few_shot.run(question, temperature=0)
        meta = state.get_meta_info("answer")
        print(f"{question:<32} {state['answer'].strip():<8} {meta['prompt_tokens']:>6} {meta['cached_tokens']:>6}")
