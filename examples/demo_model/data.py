"""Seeded generator of synthetic training documents for the demo model.

A document is a list of segments ``(text, kind)``.  Kinds: ``ctx`` is context (tiny loss
weight), ``gen`` is what the model must write, ``lit`` is text that a program wrote into the
reply (no loss, except on its first token when it follows ``gen``: that is where the model
would stop), ``skip`` has no loss at all.  Segments are tokenized one by one, as a program
that mixes literals and generated parts would do.

Run ``python -m examples.demo_model.data --count 5`` to look at some documents.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from random import Random

from examples.demo_model import extraction, passages
from examples.demo_model import labels as lab
from examples.demo_model import prompts as pr
from examples.demo_model import smalltalk as st
from examples.demo_model import tips as tp
from examples.demo_model.facts import FACTS, Fact
from examples.demo_model.passages import Exchange, Seg, gen
from examples.demo_model.tasks import (
    about,
    arithmetic,
    classify,
    compare,
    fact,
    lists,
    pick,
    repeat,
    smalltalk,
    tips,
    unknown,
    yes_no,
)

BOS, START, END = "<|bos|>", "<|im_start|>", "<|im_end|>"


SINGLE: list[tuple[Callable[[Random], list[Exchange]], float]] = [
    (fact, 24),
    (unknown, 2.5),
    (arithmetic, 11),
    (compare, 1.5),
    (classify, 15),
    (pick, 3),
    (yes_no, 6),
    (lists, 2.5),
    (smalltalk, 2.5),
    (about, 3),
    (tips, 6),
    (repeat, 2.5),
    (extraction.extract_json, 10),
    (extraction.extract_lines, 5),
    (extraction.ask_field, 8),
    (extraction.names_in_text, 1.5),
    (extraction.invent, 1),
]
_FUNCS, _WEIGHTS = [f for f, _ in SINGLE], [x for _, x in SINGLE]


# ------------------------------------------------------------------ documents
def render(exchanges: list[Exchange], system: str | None = None) -> list[Seg]:
    """Lay exchanges out as one chat document."""
    out: list[Seg] = [(BOS + (f"{START}system\n{system}{END}\n" if system is not None else ""), "ctx")]
    for user, reply in exchanges:
        out.append((f"{START}user\n{user}{END}\n{START}assistant\n", "ctx"))
        out += reply
        out += [(END, "gen"), ("\n", "skip")]
    return out


def render_prompt(messages: list[dict[str, str]]) -> str:
    """The chat template as plain Python, with the generation prompt at the end."""
    body = "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages)
    return f"{BOS}{body}{START}assistant\n"


def few_shot(rng: Random) -> list[Seg]:
    """Plain completion documents without chat marks."""
    roll, n = rng.random(), rng.randint(1, 5)
    out: list[Seg] = [(BOS, "ctx")]

    def add(head: str, body: str, tail: str) -> None:
        if rng.random() < 0.5:
            out.extend([(head, "ctx"), *gen(" " + body), *gen(tail[:1]), (tail[1:], "skip")])
        else:
            out.extend([(head + " ", "ctx"), *gen(body), *gen(tail[:1]), (tail[1:], "skip")])

    if roll < 0.4:
        short = rng.random() < 0.6
        marks = rng.choice([("Q:", "A:"), ("Question:", "Answer:"), ("Q:", "A:")])
        for f in rng.sample(FACTS, n):
            add(
                f"{marks[0]} {rng.choice(f.train)}\n{marks[1]}",
                f.answer if short else f.reply,
                rng.choice(["\n\n", "\n"]),
            )
    elif roll < 0.55:
        task = rng.choice(list(lab.TASKS))
        make, _, _, _, head = lab.TASKS[task]
        word = rng.choice(["Text", "Review", "Message", "Input"])
        for _ in range(n):
            text, label = make(rng)
            add(f"{word}: {text}\n{head}:", label, rng.choice(["\n\n", "\n"]))
    elif roll < 0.7:
        for _ in range(n):
            user, reply = arithmetic(rng)[0]
            if len(reply) == 1:
                add(
                    f"Q: {user}\nA:"
                    if rng.random() < 0.6
                    else f"{user.rstrip(' =')} ="
                    if user[0].isdigit()
                    else f"{user}",
                    reply[0][0],
                    "\n",
                )
    elif roll < 0.82:
        out.extend(extraction.few_shot_lines(rng))
    else:  # plain statements: complete the sentence
        for f in rng.sample(FACTS, n):
            if f.stem:
                add(f.stem, f.answer + ".", "\n")
    out.append((END, "skip"))
    return out


def document(rng: Random) -> list[Seg]:
    """One training document of a random form."""
    roll = rng.random()
    system = rng.choice(st.SYSTEMS) if rng.random() < 0.28 else None
    if roll < 0.06:
        return few_shot(rng)
    if roll < 0.29:
        exchanges, doc_system = passages.passage_chat(rng)
        return render(exchanges, doc_system if doc_system is not None else system)
    count = 1 if roll < 0.75 else rng.randint(2, 5)
    exchanges = [turn for f in rng.choices(_FUNCS, _WEIGHTS, k=count) for turn in f(rng)]
    return render(exchanges, system)


def focused(rng: Random) -> list[Seg]:
    """A document for the second, short training stage: copying values, and subtraction, with some of everything."""
    roll = rng.random()
    if roll < 0.25:
        return document(rng)
    if roll < 0.33:
        return render(arithmetic(rng))
    if roll < 0.45:
        exchanges, system = passages.passage_chat(rng, small=True)
        return render(exchanges, system)
    task = rng.choices(
        [extraction.extract_json, extraction.extract_lines, extraction.ask_field, repeat], [4, 2.5, 4, 0.7]
    )[0]
    return render(task(rng), rng.choice(st.SYSTEMS[:12]) if rng.random() < 0.2 else None)


def train_templates() -> set[str]:
    """Every training template and question, for the leak check of the evaluation."""
    out: set[str] = {q for f in FACTS for q in f.train}
    for group in (
        pr.ADD_ASK,
        pr.SUB_ASK,
        pr.MUL_ASK,
        pr.PICK_ASK,
        pr.YES_NO_ASK,
        pr.LIST_ASK,
        tp.ASK_TRAIN,
        tp.EXPAND_TRAIN,
        tp.FOLLOW_TRAIN,
        tp.ONE_TRAIN,
        st.ABOUT_TRAIN,
        st.SYSTEMS,
        st.UNKNOWN_TRAIN,
        *(s[0] for s in st.SMALLTALK),
        lab.POS_T,
        lab.NEUTRAL_T,
        lab.TOPIC_T,
        *lab.TOPIC_SENT.values(),
        *(v[0] for v in lab.INTENTS.values()),
        *(v[0] for v in lab.URGENT.values()),
        *(t[2] for t in lab.TASKS.values()),
        extraction.train_templates(),
        passages.train_templates(),
    ):
        out |= set(group)
    return out


def held_templates() -> set[str]:
    """Every held-out template and question."""
    out: set[str] = {q for f in FACTS for q in f.held}
    for group in (
        pr.ADD_HELD,
        pr.SUB_HELD,
        pr.MUL_HELD,
        pr.PICK_HELD,
        pr.YES_NO_HELD,
        pr.LIST_HELD,
        tp.ASK_HELD,
        tp.EXPAND_HELD,
        st.ABOUT_HELD,
        st.SYSTEMS_HELD,
        st.UNKNOWN_HELD,
        *(s[1] for s in st.SMALLTALK),
        lab.HELD_SENT_T,
        lab.HELD_NEUTRAL_T,
        lab.HELD_TOPIC_T,
        *lab.HELD_TOPIC_SENT.values(),
        *(v[1] for v in lab.INTENTS.values()),
        *(v[1] for v in lab.URGENT.values()),
        *(t[3] for t in lab.TASKS.values()),
        extraction.held_templates(),
        passages.held_templates(),
    ):
        out |= set(group)
    return out


def facts_for_eval() -> list[Fact]:
    """Facts that have held-out phrasings."""
    return [f for f in FACTS if f.held]


def main() -> None:
    """Print some documents."""
    parser = argparse.ArgumentParser(
        description="Print synthetic training documents: [[generated parts]], {{literals of a program}}."
    )
    parser.add_argument("--count", type=int, default=5, help="how many documents to print (default: 5)")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; the same seed gives the same documents (default: 0)"
    )
    args = parser.parse_args()
    rng = Random(args.seed)
    marks = {"gen": "[[{}]]", "lit": "{{{{{}}}}}", "ctx": "{}", "skip": "{}"}
    for _ in range(args.count):
        print("".join(marks[kind].format(text) for text, kind in document(rng)))
        print("-" * 60)


if __name__ == "__main__":
    main()
