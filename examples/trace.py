"""Look at a program: a small tree of thought on the bundled model, as a page, a text tree and a plan.

Run it with `python examples/trace.py [run.html]` and open the page in a browser.
"""

from __future__ import annotations

import sys

import stemma
from stemma import assistant, gen, select, user

NOTE = (
    "The bakery Luna is on Mill Lane. It was founded in 1987 and is owned by Clara Berg. Luna opens at 7 am and closes "
    "at 6 pm. It is known for its lemon cake. The cafe Sol is on Harbour Street. It opens at 9 am and closes at 8 pm."
)
QUESTIONS = ["When does Luna open?", "Who owns Luna?", "What is Luna known for?"]
PLAN = r'\{"place": "(Luna|Sol)", "hour": (7|8|9|1[0-9]), "reason": "[A-Z][a-z ]{8,32}"\}'


@stemma.function
def plan_a_morning(s: stemma.ProgramState, wish: str) -> None:
    """Three thoughts about one note, two plans from each thought, one choice, one last word."""
    s += user(NOTE + " " + wish)
    thoughts = s.fork(len(QUESTIONS))
    for thought, question in zip(thoughts, QUESTIONS, strict=True):
        thought += user(question) + assistant(gen("thought", max_tokens=16))
        plans = thought.fork(2)
        plans += user("Make a plan as JSON.")
        plans += assistant(gen("plan", max_tokens=48, regex=PLAN))
        plans.join()
    thoughts.join()
    s += assistant("I would go to " + select("place", choices=["Luna", "Sol"]) + ".")
    s += user("Why?") + assistant(gen("why", max_tokens=16, return_logprob=True, top_logprobs_num=3))


def main(path: str = "run.html") -> None:
    state = plan_a_morning.run("Where shall we have breakfast?", temperature=0.8, seed=11)
    trace = state.trace()
    print(trace)
    print(f"\n{state.explain()}\n")
    print(f"wrote {trace.save(path)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
