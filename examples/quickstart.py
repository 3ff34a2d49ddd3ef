"""A first look at Stemma: chat, select, fork and extraction on the bundled model, on your CPU.

Run it with `make demo`, or `stemma run examples/quickstart.py` (`--url http://…` to use a server instead).
"""

from __future__ import annotations

import json
import time

import stemma
from stemma import assistant, gen, select, user, user_begin, user_end

RECORD = r'\{"name": "[A-Z][A-Za-z \-]{1,40}", "age": [0-9]{1,3}, "city": "[A-Z][A-Za-z \-]{1,40}"\}'


@stemma.function
def ask(s: stemma.ProgramState, question: str) -> None:
    s += user(question)
    s += assistant(gen("answer", max_tokens=48))


@stemma.function
def judge(s: stemma.ProgramState, review: str) -> None:
    s += user(f"Is this review positive or negative? {review}")
    s += assistant(select("verdict", choices=["positive", "negative"]))


@stemma.function
def read(s: stemma.ProgramState, passage: str, questions: list[str]) -> None:
    """Three branches read one passage; its tokens are computed once."""
    s += user_begin()
    s += passage
    forks = s.fork(len(questions))
    for branch, question in zip(forks, questions, strict=True):
        branch += "\n" + question + user_end()
        branch += assistant(gen("answer", max_tokens=24))
    forks.join()


@stemma.function
def extract(s: stemma.ProgramState, sentence: str) -> None:
    s += user(f"Extract name, age and city as JSON. {sentence}")
    s += assistant(gen("record", max_tokens=64, regex=RECORD))


def main() -> None:
    begin = time.perf_counter()
    states = []

    question = "What is the capital of France?"
    states.append(ask.run(question, temperature=0))
    print(f"chat     {question}\n         {states[-1]['answer']}\n")

    review = "The soup was cold and the waiter was rude."
    states.append(judge.run(review, temperature=0))
    print(f"select   {review}\n         {states[-1]['verdict']}\n")

    passage = (
        "The bakery Luna is on Mill Lane. It was founded in 1987 and is owned by Clara Berg. "
        "Luna opens at 7 am and closes at 6 pm. It is known for its lemon cake."
    )
    questions = ["Who owns Luna?", "When does Luna open?", "What is Luna known for?"]
    states.append(read.run(passage, questions, temperature=0))
    print(f"fork     {passage}")
    for question, answer in zip(questions, states[-1]["answer"], strict=True):
        print(f"         {question}  ->  {answer}")
    print()

    sentence = "Tomas Brandvik, who is 52, moved to Lindhaven last spring."
    states.append(extract.run(sentence, temperature=0))
    print(f"extract  {sentence}\n         {json.loads(states[-1]['record'])}\n")

    total = {key: sum(s.usage()[key] for s in states) for key in ("computed_tokens", "cached_tokens", "forced_tokens")}
    seconds = time.perf_counter() - begin
    print(
        f"{total['computed_tokens']:.0f} tokens computed, {total['cached_tokens']:.0f} cached, "
        f"{total['forced_tokens']:.0f} forced, {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
