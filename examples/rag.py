"""Answers from documents, with citations: retrieve, read each document on its own, answer with its id.

Each branch sees one document and says what it says about the question, or that it says nothing. So a citation cannot
be made up: it is the id of the document whose branch answered. The most certain answer wins.

Run it with `stemma run examples/rag.py ["Your question?"]`.
"""

from __future__ import annotations

import re
import sys

import stemma
from stemma import ProgramState, assistant, gen, user

DOCUMENTS = {
    "luna-menu": "The bakery Luna is on Mill Lane. It opens at 7 am. It is known for its lemon cake.",
    "luna-past": "The bakery Luna was founded in 1987. It is owned by Clara Berg.",
    "sol": "The cafe Sol is on Harbour Street. It is owned by Tomas Reed. It is famous for its onion soup.",
    "library": "The meeting with Nora Feld is on Friday. It starts at 10:30 in the library.",
    "novel": "The Long River was written by Eva Stone. It came out in 1998.",
}
QUESTIONS = ["Who owns Luna?", "What is Sol known for?", "When was Luna founded?", "When was Sol founded?"]
COMMON = {"the", "a", "is", "was", "it", "of", "on", "in", "at", "who", "what", "when", "where", "by", "for", "its"}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower())) - COMMON


def retrieve(question: str, count: int = 3) -> list[str]:
    """The ids of the documents that share most words with the question. Put your own search here."""
    shared = {id: len(words(text) & words(question)) for id, text in DOCUMENTS.items()}
    return sorted((id for id in shared if shared[id]), key=lambda id: -shared[id])[:count]


@stemma.function
def answer(s: ProgramState, question: str) -> tuple[str, list[str]]:
    ids = retrieve(question)
    forks = s.fork(len(ids))
    forks += lambda i: user(f"{DOCUMENTS[ids[i]]}\n{question}")
    forks += assistant(gen("said", max_tokens=24, return_logprob=True))
    said: dict[str, float] = {}
    for fork in forks:
        if fork["said"] != "The text does not say.":
            logprobs = [entry[0] for entry in fork.get_meta_info("said")["output_token_logprobs"]]
            said[fork["said"]] = max(said.get(fork["said"], -9.0), sum(logprobs) / len(logprobs))
    if not said:
        return "The documents do not say.", []
    best = max(said, key=lambda text: said[text])
    return best, [id for id, fork in zip(ids, forks, strict=True) if fork["said"] == best]


if __name__ == "__main__":
    for question in sys.argv[1:] or QUESTIONS:
        text, sources = answer.run(question, temperature=0).ret_value
        print(f"{question}\n  {text} {' '.join(f'[{id}]' for id in sources)}")
