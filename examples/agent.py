"""An agent: the model calls a calculator or looks something up, reads the result, and goes on until it answers.

python examples/agent.py

Every call is well-formed and its arguments fit the hints, whatever the model. Whether it is the right call is up to the
model, and the bundled one is far too small for that: give `run` a backend of your own.
"""

from __future__ import annotations

from typing import Annotated, Literal

import stemma
from stemma import Regex, assistant, describe_tools, gen, system, tool_result, user

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
Number = Annotated[str, Regex("[0-9]{1,4}")]


def calculate(left: Number, sign: Literal["+", "-", "*"], right: Number) -> int:
    """Compute with two whole numbers."""
    a, b = int(left), int(right)
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def capital(country: Literal["France", "Italy", "Spain"]) -> str:
    """Look up the capital of a country."""
    return CAPITALS[country]


TOOLS = [calculate, capital]


@stemma.function
def agent(s: stemma.ProgramState, question: str, steps: int = 3) -> str:
    s += system(describe_tools(TOOLS)) + user(question)
    for step in range(steps):
        # a call at first, then calls or an answer as the model likes
        s += assistant(gen("turn", 64, tools=TOOLS, tool_choice="auto" if step else "required"))
        turn = s["turn"]
        if isinstance(turn, str):
            return turn
        turn.run(on_error="return")
        s += tool_result(turn, role="user")
    s += assistant(gen("answer", 32))
    return s["answer"]


if __name__ == "__main__":
    for question in ("What is the capital of Italy?", "What is 20 - 5?"):
        state = agent.run(question, temperature=0, stream=True)
        print(question)
        for event in state.events():
            if isinstance(event, stemma.ToolFinished):
                print(f"  {event.tool}({event.arguments}) -> {event.result}")
        print(f"  {state.ret_value}")
