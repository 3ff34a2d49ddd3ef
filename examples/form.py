"""Typed form filling: sentences in, objects out. One request fills a whole form, and its parts arrive as typed values.

python examples/form.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import stemma
from stemma import Regex, assistant, capture, gen, optional, regex, repeat, user

SENTENCES = [
    "Tomas Brandvik, who is 52, moved to Lindhaven last spring.",
    "Clara Berg is 34 years old and lives in Oakford.",
]
Name = Annotated[str, Regex(r"[A-Z][a-z]{1,15} [A-Z][a-z]{1,15}")]


@dataclass
class Person:
    name: Name
    age: int
    city: Annotated[str, Regex(r"[A-Z][a-z]{1,15}")]


FORM = (
    "Name: "
    + capture("name", Name)
    + "\nAge: "
    + capture("age", int)
    + optional("\nCity: " + capture("city", regex(r"[A-Z][a-z]{1,15}")))
    + "\nTags: "
    + repeat(capture("tags", Literal["moved", "works", "lives", "other"]), 1, 2, separator=", ")
    + "\n"
)


@stemma.function
def extract(s: stemma.ProgramState, sentence: str) -> None:
    s += user(f"Extract name, age and city as JSON. {sentence}")
    s += assistant(gen("person", type=Person, max_tokens=64))


@stemma.function
def fill(s: stemma.ProgramState, sentence: str) -> None:
    s += user(f"Read this and fill in the form. {sentence}")
    s += assistant(gen("form", constraint=FORM, max_tokens=96))


if __name__ == "__main__":
    for sentence in SENTENCES:
        person = extract.run(sentence, temperature=0)["person"]
        print(f"{sentence}\n  {person!r}")
        form = fill.run(sentence, temperature=0)
        meta = form.get_meta_info("form")
        print(f"  name={form['name']!r} age={form['age']!r} city={form['city']!r} tags={form['tags']!r}")
        print(f"  {meta['forced_tokens']} of {meta['completion_tokens']} tokens were forced, not sampled\n")
