"""Extraction exchanges: records from sentences as JSON, as lines, or one field at a time."""

from __future__ import annotations

from random import Random

from examples.demo_model import kinds as kd
from examples.demo_model.noise import RELATIVES, SUBJECTS, ask_around, noise_words, noisy_template
from examples.demo_model.passages import Exchange, Seg, filler, gen
from examples.demo_model.records import (
    KINDS,
    Kind,
    Record,
    as_json,
    as_lines,
    describe,
    join_words,
    json_value,
    make_record,
    person_name,
    shape,
)

NOT_SAID = "The text does not say."
_KIND_WEIGHTS = {"person": 6, "order": 4, "meeting": 4, "pet": 3, "book": 3, "contact": 3, "shop": 2}


def sample(rng: Random, held: bool = False) -> tuple[Kind, Record, str, list[str]]:
    """A kind, a record, its text and the fields that the text mentions."""
    name = rng.choices(list(_KIND_WEIGHTS), list(_KIND_WEIGHTS.values()))[0]
    kind = KINDS[name]
    rec = make_record(rng, name, held)
    text, fields = describe(rng, kind, rec, held)
    if not held and rng.random() < 0.2:
        text = f"{text} {filler(rng)}" if rng.random() < 0.5 else f"{filler(rng)} {text}"
    return kind, rec, text, fields


def choose(rng: Random, fields: list[str], least: int = 1) -> list[str]:
    """A random subset of fields, mostly in their usual order."""
    some = [f for f in fields if rng.random() < 0.85] if rng.random() < 0.5 else fields[:]
    if len(some) < least:
        some = fields[: max(least, 1)]
    if rng.random() < 0.2:
        rng.shuffle(some)
    return some


def prompt(rng: Random, template: str, kind: Kind, fields: list[str], text: str, noise: float = 0.0) -> str:
    """Fill an extraction prompt; ``noise`` is the rate of random lead-ins, for training."""
    if rng.random() < noise:
        lead = rng.choice(["I need this for {n}. ", "My {r} asked for this. ", "{w}: ", "{w}, ", "This is for {n}. "])
        template = (
            lead.replace("{n}", rng.choice(SUBJECTS))
            .replace("{r}", rng.choice(RELATIVES))
            .replace("{w}", noise_words(rng).capitalize())
            + template
        )
    form = "\n".join(f"{f.capitalize()}:" for f in fields)
    for mark, value in (
        ("{f}", join_words(rng, fields)),
        ("{q}", join_words(rng, fields, quoted=True)),
        ("{s}", shape(rng, kind, fields)),
        ("{l}", form),
        ("{k}", kind.name),
        ("{x}", text),
    ):
        template = template.replace(mark, value)
    return template


def json_pieces(rng: Random, kind: Kind, rec: Record, fields: list[str]) -> list[Seg]:
    """The JSON reply as a program writes it: literal keys, generated values."""
    out: list[Seg] = []
    head = "{"
    for f in fields:
        if f in kind.numbers:
            out += [(f'{head}"{f}": ' if rng.random() < 0.7 else f'{head}"{f}":', "lit")]
            out += gen(rec[f] if out[-1][0].endswith(" ") else " " + rec[f])
            head = ", "
        else:
            out += [(f'{head}"{f}": "', "lit"), *gen(json_value(kind, f, rec[f])[1:-1])]
            head = '", '
    out.append(("}" if head == ", " else '"}', "lit"))
    return out


def line_pieces(rng: Random, rec: Record, fields: list[str]) -> list[Seg]:
    """The line reply as a program writes it."""
    out: list[Seg] = []
    tight = rng.random() < 0.35
    for i, f in enumerate(fields):
        out.append((("\n" if i else "") + f"{f.capitalize()}:" + ("" if tight else " "), "lit"))
        out += gen((" " if tight else "") + rec[f])
    return out


def extract_json(rng: Random) -> list[Exchange]:
    """A record as JSON."""
    kind, rec, text, fields = sample(rng)
    some = choose(rng, fields)
    roll = rng.random()
    if roll < 0.25:
        bare = rng.random() < 0.5
        user = prompt(rng, rng.choice(kd.JSON_ASK_BARE if bare else kd.JSON_ASK), kind, some, text)
        return [(user, json_pieces(rng, kind, rec, some))]
    if roll < 0.3:
        return [(prompt(rng, rng.choice(kd.JSON_ASK_BARE[:1]), kind, fields, text), gen(as_json(kind, rec, fields)))]
    return [(prompt(rng, rng.choice(kd.JSON_ASK), kind, some, text, 0.2), gen(as_json(kind, rec, some)))]


def extract_lines(rng: Random) -> list[Exchange]:
    """A record as lines."""
    kind, rec, text, fields = sample(rng)
    some = choose(rng, fields)
    if rng.random() < 0.45:
        template = rng.choice(kd.JSON_ASK_BARE[1:3] + kd.JSON_ASK_BARE[4:] if rng.random() < 0.5 else kd.LINE_ASK)
        return [(prompt(rng, template, kind, some, text), line_pieces(rng, rec, some))]
    return [(prompt(rng, rng.choice(kd.LINE_ASK), kind, some, text, 0.2), gen(as_lines(rec, some)))]


def question(rng: Random, kind: Kind, rec: Record, field: str, held: bool = False, named: bool = False) -> str:
    """A question about one field; ``named`` forces one that names the record's key."""
    if not named and rng.random() < 0.4:
        template = rng.choice(kd.GENERIC_Q_HELD if held else kd.GENERIC_Q)
        q = template.replace("{f}", field).replace("{k}", kind.name)
        return q[0].upper() + q[1:]
    template = rng.choice(kind.ask[field][int(held)])
    if not held and rng.random() < 0.2:
        template = noisy_template(rng, template) if rng.random() < 0.5 else ask_around(rng, template)
    return template.replace("{k}", rec[kind.fields[0]])


def ask_field(rng: Random) -> list[Exchange]:
    """One or more questions about a short text."""
    kind, rec, text, fields = sample(rng)
    field = rng.choice(fields)
    if rng.random() < 0.012:
        missing = [f for f in kind.fields if f not in fields]
        if missing:
            q = question(rng, kind, rec, rng.choice(missing))
            return [(rng.choice(kd.FIELD_ASK).replace("{x}", text).replace("{q}", q), gen(NOT_SAID))]
    q = question(rng, kind, rec, field)
    if rng.random() < 0.12:
        q += rng.choice([" Answer with the value only.", " Give only the value.", " Answer briefly."])
    user = rng.choice(kd.FIELD_ASK).replace("{x}", text).replace("{q}", q)
    if rng.random() < 0.2:
        lead = rng.choice(["The answer is", "Answer:", f"The {field} is", f"{field.capitalize()}:"])
        reply = (
            [(lead, "lit"), *gen(" " + rec[field])] if rng.random() < 0.5 else [(lead + " ", "lit"), *gen(rec[field])]
        )
    else:
        reply = gen(rec[field])
    out: list[Exchange] = [(user, reply)]
    while rng.random() < 0.3 and len(out) < 3:
        again = rng.choice(fields)
        out.append((question(rng, kind, rec, again), gen(rec[again])))
    if rng.random() < 0.06:
        some = choose(rng, fields)
        out.append((f"Now give {join_words(rng, some)} as JSON.", gen(as_json(kind, rec, some))))
    return out


NAMES_ASK = [
    "List the names in this text: {x}",
    "Which people are named here? {x}",
    "{x}\n\nList all names.",
    "Who is in this text?\n{x}",
    "Find all names: {x}",
]


def names_in_text(rng: Random) -> list[Exchange]:
    """All person names in a sentence, comma-separated."""
    names = list(dict.fromkeys(person_name(rng, False, 0.3) for _ in range(rng.randint(1, 4))))
    joined = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    text = rng.choice(
        [
            "{n} went to the market.",
            "Yesterday I met {n} in the park.",
            "{n} came to dinner.",
            "We invited {n} to the party.",
            "The prize went to {n}.",
            "I saw {n} at the station.",
            "The team is made of {n}.",
        ]
    ).format(n=joined)
    return [(rng.choice(NAMES_ASK).format(x=text), gen(", ".join(names)))]


def invent(rng: Random) -> list[Exchange]:
    """Make up a record of a kind."""
    name = rng.choice(list(KINDS))
    kind, rec = KINDS[name], make_record(rng, name)
    fields = choose(rng, kind.fields, 2)
    if rng.random() < 0.6:
        user = prompt(
            rng,
            rng.choice(
                [
                    "Invent a {k}. Answer in JSON with {f}.",
                    "Make up a {k} as JSON: {s}",
                    "Write a JSON object for a {k} with the keys {q}.",
                    "Create a {k} in JSON like {s}.",
                ]
            ),
            kind,
            fields,
            "",
        )
        return [(user, json_pieces(rng, kind, rec, fields) if rng.random() < 0.4 else gen(as_json(kind, rec, fields)))]
    user = prompt(rng, rng.choice(["Invent a {k} with {f}, one per line.", "Make up a {k}:\n{l}"]), kind, fields, "")
    return [(user, line_pieces(rng, rec, fields) if rng.random() < 0.4 else gen(as_lines(rec, fields)))]


def few_shot_lines(rng: Random) -> list[Seg]:
    """Plain-text extraction blocks: a text, then the same form each time."""
    name = rng.choice(list(_KIND_WEIGHTS)[:6])
    kind = KINDS[name]
    out: list[Seg] = []
    fields = [kind.fields[0], *choose(rng, kind.fields[1:])]
    as_j = rng.random() < 0.4
    for _ in range(rng.randint(1, 4)):
        rec = make_record(rng, name)
        text, _ = describe(rng, kind, rec, want=[f for f in fields if f != kind.fields[0]])
        out.append((f"Text: {text}\n" + ("JSON: " if as_j else ""), "ctx"))
        pieces = json_pieces(rng, kind, rec, fields) if as_j else line_pieces(rng, rec, fields)
        out += gen(as_json(kind, rec, fields)) if as_j and rng.random() < 0.5 else pieces
        out += [("\n", "gen"), ("\n", "skip")]
    return out


def train_templates() -> set[str]:
    """Training templates of the extraction tasks."""
    out = set(kd.JSON_ASK) | set(kd.LINE_ASK) | set(kd.FIELD_ASK) | set(kd.GENERIC_Q) | set(kd.JSON_ASK_BARE)
    for kind in KINDS.values():
        out |= (
            set(kind.whole[0])
            | {t for pair in kind.preds.values() for t in pair[0]}
            | {t for pair in kind.ask.values() for t in pair[0]}
        )
    return out


def held_templates() -> set[str]:
    """Held-out templates of the extraction tasks."""
    out = set(kd.JSON_ASK_HELD) | set(kd.LINE_ASK_HELD) | set(kd.FIELD_ASK_HELD) | set(kd.GENERIC_Q_HELD)
    for kind in KINDS.values():
        out |= (
            set(kind.whole[1])
            | {t for pair in kind.preds.values() for t in pair[1]}
            | {t for pair in kind.ask.values() for t in pair[1]}
        )
    return out
