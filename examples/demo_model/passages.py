"""Longer documents (several notes or a passage) followed by questions about single parts."""

from __future__ import annotations

from random import Random

from examples.demo_model import labels as lab
from examples.demo_model import smalltalk as st
from examples.demo_model.noise import ask_around, insert, noisy_template
from examples.demo_model.records import (
    KINDS,
    Kind,
    Record,
    as_json,
    as_lines,
    describe,
    join_words,
    made_up,
    make_record,
)

Seg = tuple[str, str]
Exchange = tuple[str, list[Seg]]
Note = tuple[Kind, Record, str, list[str]]

TITLES = [
    "Notes",
    "My notes",
    "Notes of the week",
    "Report",
    "Document",
    "Text",
    "Information",
    "Records",
    "Here are my notes",
    "Handbook",
    "Daily log",
]
LEADS = [
    "Read the notes and answer the question.",
    "Answer questions about the text below.",
    "Use the following text.",
    "Here is a text.",
    "Context:",
    "Read this document.",
    "",
    "",
    "Answer from the notes.",
]
LEADS_HELD = ["Study the following notes carefully.", "You will get some notes and then a question about them."]
ASKS = ["Question: {q}", "{q}", "{q}", "Now answer: {q}", "Q: {q}", "Based on the text: {q}", "{q}\nAnswer:"]
ASKS_HELD = ["My question is this: {q}", "With the notes in mind, {q}"]


def gen(text: str) -> list[Seg]:
    """A reply part that the model writes."""
    return [(text, "gen")]


def filler(rng: Random) -> str:
    """A harmless sentence without record fields."""
    roll = rng.random()
    if roll < 0.3:
        return lab.topic(rng)[0]
    if roll < 0.55:
        return lab.sentiment(rng)[0]
    if roll < 0.75:
        return rng.choice(list(st.ABOUT.values())).split(". ")[0].rstrip(".") + "."
    return rng.choice(
        [
            "The weather was fine.",
            "Nobody was surprised.",
            "More news will follow soon.",
            "This part is not important.",
            "The rest stays as it was.",
            "Please keep this page.",
            "All went well.",
            "There is nothing else to say here.",
            "We will check this again.",
        ]
    )


def make_notes(rng: Random, count: int, held: bool = False, only: str | None = None) -> list[Note]:
    """Several records with distinct keys and their texts."""
    kinds = list(KINDS)
    pool = [only] if only else rng.sample(kinds, rng.choice([1, 2, 3, len(kinds)]))
    notes: list[Note] = []
    seen: set[str] = set()
    tries = 0
    while len(notes) < count and tries < 20 * count:
        tries += 1
        kind = KINDS[rng.choice(pool)]
        rec = make_record(rng, kind.name, held)
        key = rec[kind.fields[0]]
        words = {part.casefold() for part in key.split()} - {"the", "a", "of", "cafe"}
        if words & seen:
            continue
        seen |= words
        text, fields = describe(rng, kind, rec, held)
        if kind.fields[0] not in fields or len(fields) < 2:
            continue
        notes.append((kind, rec, text, fields))
    return notes


def layout(rng: Random, notes: list[Note], fill: float) -> str:
    """Join the notes into one document."""
    parts = []
    for *_, text, _ in notes:
        if rng.random() < fill:
            text = f"{text} {filler(rng)}" if rng.random() < 0.5 else f"{filler(rng)} {text}"
        parts.append(text)
    style = rng.random()
    if style < 0.3:
        body = "\n".join(f"{i}. {p}" for i, p in enumerate(parts, 1))
    elif style < 0.5:
        body = "\n".join(f"- {p}" for p in parts)
    elif style < 0.7:
        body = "\n\n".join(parts)
    elif style < 0.8:
        body = "\n".join(f"Note {i}: {p}" for i, p in enumerate(parts, 1))
    else:
        body = " ".join(parts)
    return (rng.choice(TITLES) + ":\n" if rng.random() < 0.6 else "") + body


def note_question(rng: Random, note: Note, held: bool = False) -> tuple[str, str]:
    """A question about one note, naming its key, and the short answer."""
    kind, rec, _, fields = note
    key = kind.fields[0]
    field = rng.choice([f for f in fields if f != key])
    name = rec[key]
    if not held and kind.name in {"person", "contact", "meeting"} and " " in name and rng.random() < 0.2:
        name = name.split()[0]
    if not held and rng.random() < 0.12:
        return rng.choice(
            ["What is the {f} of {k}?", "{k}: what is the {f}?", "Give the {f} of {k}.", "Tell me the {f} of {k}."]
        ).format(f=field, k=name), rec[field]
    template = rng.choice(kind.ask[field][int(held)])
    if not held and rng.random() < 0.2:
        template = noisy_template(rng, template) if rng.random() < 0.5 else ask_around(rng, template)
    return template.replace("{k}", name), rec[field]


def _reverse(rng: Random, notes: list[Note]) -> tuple[str, str] | None:
    """Ask for the key by a value that only one note has."""
    kind, rec, _, fields = rng.choice(notes)
    options = {
        "city": "Who lives in {v}?",
        "job": "Who is the {v}?",
        "email": "Who has the email {v}?",
        "phone": "Whose phone number is {v}?",
        "age": "Who is {v} years old?",
        "author": "Which book is by {v}?",
        "place": "Whom do we meet in {v}?",
    }
    field = rng.choice(fields)
    if field not in options or sum(rec[field] in n[1].values() for n in notes) != 1:
        return None
    return options[field].format(v=rec[field]), rec[kind.fields[0]]


def passage_chat(rng: Random, small: bool = False) -> tuple[list[Exchange], str | None]:
    """A chat about a document; the document stands in the first message or in the system message."""
    size = (
        rng.randint(1, 5)
        if small
        else rng.choices(
            [rng.randint(1, 3), rng.randint(3, 8), rng.randint(8, 16), rng.randint(16, 40)], [3, 5, 2, 0.5]
        )[0]
    )
    single = rng.random() < 0.2
    notes = make_notes(rng, 1 if single else size, only="shop" if single and rng.random() < 0.7 else None)
    while single and len(notes[0][3]) < 3 and rng.random() < 0.9:
        notes = make_notes(rng, 1, only="shop")
    doc = layout(rng, notes, rng.choice([0.0, 0.2, 0.5, 0.9]))
    turns: list[tuple[str, list[Seg]]] = []
    for _ in range(rng.choice([1, 1, 2, 3, 4, 6])):
        note = rng.choice(notes)
        roll = rng.random()
        kind, rec, _, fields = note
        if roll < 0.1:
            some = [f for f in fields if rng.random() < 0.8] or fields
            head = f"Extract {join_words(rng, some)} of {rec[kind.fields[0]]}"
            turns.append(
                (head + " as JSON.", gen(as_json(kind, rec, some)))
                if rng.random() < 0.6
                else (head + ", one per line.", gen(as_lines(rec, some)))
            )
            continue
        if roll < 0.17:
            found = _reverse(rng, notes)
            if found:
                turns.append((found[0], gen(found[1])))
                continue
        if roll < 0.176:
            q = rng.choice(kind.ask[rng.choice(kind.fields[1:])][0]).replace("{k}", made_up(rng))
            turns.append((q, gen("The text does not say.")))
            continue
        q, answer = note_question(rng, note)
        if rng.random() < 0.1:
            q += rng.choice([" Answer briefly.", " Give only the value.", " Answer with the value only."])
        if rng.random() < 0.12:
            turns.append((q, [(rng.choice(["The answer is ", "Answer: "]), "lit"), *gen(answer)]))
        else:
            turns.append((q, gen(answer)))
    if rng.random() < 0.15:
        return turns, rng.choice(["", "Answer from these notes.\n\n", "You know the following.\n\n"]) + doc
    lead = rng.choice(LEADS)
    if lead and rng.random() < 0.25:
        lead = insert(rng, lead)
    first = (f"{lead}\n\n" if lead else "") + doc
    if rng.random() < 0.12:  # the document alone, then the questions
        return [(first, gen("I have read the text. What would you like to know?")), *turns], None
    ask = rng.choice(ASKS).replace("{q}", turns[0][0])
    user = (
        f"{ask}\n\n{doc}" if rng.random() < 0.08 else f"{first}\n\n{ask}" if rng.random() < 0.85 else f"{first}\n{ask}"
    )
    return [(user, turns[0][1]), *turns[1:]], None


def train_templates() -> set[str]:
    """Training templates of this module."""
    return set(LEADS) | set(ASKS)


def held_templates() -> set[str]:
    """Held-out templates of this module."""
    return set(LEADS_HELD) | set(ASKS_HELD)
