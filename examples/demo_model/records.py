"""Random records and the texts that mention them, for the extraction and passage tasks."""

from __future__ import annotations

import json
import re
from random import Random

from examples.demo_model import words as w
from examples.demo_model.kinds import KINDS, Kind
from examples.demo_model.noise import COMMON, noisy_template

Record = dict[str, str]
_HELD_WORDS = {
    part.casefold()
    for name in dir(w)
    if name.startswith("HELD_")
    for entry in getattr(w, name)
    for part in entry.split()
}


_PIECES = sorted(
    {
        word
        for group in (
            COMMON,
            w.ITEMS,
            w.JOBS,
            w.FOODS,
            w.TITLE_A,
            w.TITLE_N,
            w.CITIES,
            w.LAST,
            w.FIRST,
            *w.CATEGORIES.values(),
        )
        for entry in group
        for word in entry.casefold().split()
        if word.isascii() and word.isalpha() and len(word) > 3
    }
)


def made_up(rng: Random, lowercase: bool = False) -> str:
    """A random word that is in no held-out list: syllables, or the parts of two real words."""
    while rng.random() < 0.45:
        one, two = rng.choice(_PIECES), rng.choice(_PIECES)
        text = rng.choice(
            [
                one[: rng.randint(1, 4)] + two[-rng.randint(2, 6) :],
                one[: -rng.randint(1, 3)] + rng.choice("aeiou") + two[-rng.randint(1, 4) :],
                rng.choice(w.ONSETS) + two[1:],
                two[:-1] + rng.choice(w.ENDINGS),
            ]
        )
        if 3 <= len(text) <= 14 and text not in _HELD_WORDS:
            return text if lowercase else text.capitalize()
    while True:
        n = rng.choices([1, 2, 3], [2, 6, 2])[0]
        text = "".join(
            rng.choice(w.ONSETS)
            + rng.choice(w.VOWELS)
            + (rng.choice(w.CODAS) if i == n - 1 or rng.random() < 0.25 else "")
            for i in range(n)
        )
        if rng.random() < 0.2:
            text += rng.choice(w.ENDINGS)
        if 3 <= len(text) <= 14 and text not in _HELD_WORDS:
            return text if lowercase else text.capitalize()


def _pick(rng: Random, train: list[str], held_list: list[str], held: bool, made: float) -> str:
    if held:
        return rng.choice(held_list)
    if train is w.CITIES and rng.random() < 0.12:  # names of two or three words
        return rng.choice(
            [
                f"{made_up(rng)} {made_up(rng)}",
                f"{made_up(rng)} {made_up(rng)} City",
                f"{made_up(rng)} City",
                f"San {made_up(rng)}",
                f"Fort {made_up(rng)}",
            ]
        )
    return made_up(rng) if rng.random() < made else rng.choice(train)


def person_name(rng: Random, held: bool, full: float = 0.5) -> str:
    """A first name, or first and last."""
    first = _pick(rng, w.FIRST, w.HELD_FIRST, held, 0.6)
    return f"{first} {_pick(rng, w.LAST, w.HELD_LAST, held, 0.6)}" if rng.random() < full else first


def clock(rng: Random) -> str:
    """A time of day in one of four usual forms."""
    hour, minute = rng.randint(1, 12), rng.choice(["00", "15", "30", "45", "05", "10", "20", "40", "50"])
    return rng.choice(
        [
            f"{hour}:{minute}",
            f"{hour} am",
            f"{hour} pm",
            f"{hour + rng.choice([0, 8, 11]):02d}:{minute}",
            f"{hour}:{minute} pm",
            "noon",
        ]
    )


def _price(rng: Random) -> str:
    return rng.choice(
        [
            str(rng.randint(1, 99)),
            str(rng.randint(100, 999)),
            f"{rng.randint(1, 99)}.{rng.randint(1, 99):02d}",
            f"{rng.randint(1, 99)}.{rng.choice([5, 25, 75, 95, 99])}",
            str(rng.randint(1, 40) * 5),
        ]
    )


_CONTAINERS = [
    "bags",
    "boxes",
    "jars",
    "packs",
    "cans",
    "bottles",
    "rolls",
    "pieces",
    "sets",
    "sheets",
    "cups",
    "bowls",
    "slices",
    "pairs",
]


def _item(rng: Random, held: bool) -> str:
    if held:
        return rng.choice(w.HELD_ITEMS)
    item = rng.choice(w.ITEMS)
    roll = rng.random()
    if roll < 0.4:
        item = made_up(rng, True) + rng.choice(["s", "s", "es", ""])
    elif roll < 0.55:
        item = rng.choice(
            [
                made_up(rng, True) + " " + item.split()[-1],
                f"{rng.choice(_CONTAINERS)} of {made_up(rng, True)}",
                f"{rng.choice(_CONTAINERS)} of {item.split()[-1]}",
                f"{made_up(rng, True)} {made_up(rng, True)}s",
            ]
        )
    elif roll < 0.65:
        item = rng.choice(["red", "blue", "small", "large", "old", "new", "green", "wooden"]) + " " + item
    return item


def _title(rng: Random, held: bool) -> str:
    a = _pick(rng, w.TITLE_A, w.HELD_TITLE_A, held, 0.35)
    b = _pick(rng, w.TITLE_N, w.HELD_TITLE_N, held, 0.35)
    return rng.choice(
        [f"The {a} {b}", f"{a} {b}", f"The {b} of {_pick(rng, w.FIRST, w.HELD_FIRST, held, 0.7)}", f"A {a} {b}"]
    )


def _email(rng: Random, name: str) -> str:
    parts = re.findall(r"[a-z]+", name.casefold()) or ["info"]
    user = rng.choice(
        [parts[0], ".".join(parts), parts[0] + str(rng.randint(1, 99)), parts[-1], parts[0][0] + parts[-1]]
    )
    return f"{user}@{rng.choice(w.MAIL_HOSTS)}"


def _phone(rng: Random) -> str:
    d = [str(rng.randint(0, 9)) for _ in range(10)]
    return rng.choice(
        [
            f"555-{''.join(d[:4])}",
            f"{''.join(d[:3])}-{''.join(d[3:6])}-{''.join(d[6:])}",
            f"+{d[0]} {''.join(d[1:4])} {''.join(d[4:8])}",
            f"0{''.join(d[:9])}",
            f"{''.join(d[:3])} {''.join(d[3:7])}",
        ]
    )


def make_record(rng: Random, kind: str, held: bool = False) -> Record:
    """A random record of a kind; ``held`` draws names and items from the held-out lists."""
    if kind == "person":
        job = (
            rng.choice(w.HELD_JOBS if held else w.JOBS)
            if held or rng.random() > 0.5
            else (
                made_up(rng, True)
                + rng.choice(
                    [
                        "",
                        " " + made_up(rng, True),
                        " " + rng.choice(w.JOBS).split()[-1],
                        " worker",
                        " ranger",
                        " maker",
                        " seller",
                        " driver",
                        "ist",
                        "er",
                    ]
                )
            )
        )
        return {
            "name": person_name(rng, held),
            "age": str(rng.randint(4, 99)),
            "city": _pick(rng, w.CITIES, w.HELD_CITIES, held, 0.55),
            "job": job,
        }
    if kind == "pet":
        return {
            "name": _pick(rng, w.PET_NAMES + w.FIRST, w.HELD_PET_NAMES, held, 0.6),
            "kind": rng.choice(w.HELD_PETS)
            if held
            else (
                made_up(rng, True)
                if rng.random() < 0.4
                else f"{made_up(rng, True)} {rng.choice([*w.PETS, 'pig', 'bird', 'fish'])}"
                if rng.random() < 0.3
                else rng.choice(w.PETS)
            ),
            "age": str(rng.randint(1, 25)),
        }
    if kind == "order":
        return {
            "item": _item(rng, held),
            "quantity": str(rng.choice([rng.randint(2, 20), rng.randint(2, 99), rng.randint(100, 999)])),
            "price": _price(rng),
        }
    if kind == "meeting":
        place = (
            rng.choice(w.HELD_PLACES)
            if held
            else rng.choice(w.PLACES)
            if rng.random() < 0.6
            else (
                "the " + made_up(rng, True) + rng.choice(["", "", " room", " hall", " " + made_up(rng, True)])
                if rng.random() < 0.6
                else rng.choice(["Hotel ", "Cafe ", "Hall ", "room ", "Park "]) + made_up(rng)
            )
        )
        return {"who": person_name(rng, held), "day": rng.choice(w.DAYS), "time": clock(rng), "place": place}
    if kind == "book":
        return {
            "title": _title(rng, held),
            "author": person_name(rng, held, 0.85),
            "year": str(rng.randint(1700, 2025)),
        }
    if kind == "contact":
        name = person_name(rng, held, 0.7)
        return {"name": name, "email": _email(rng, name), "phone": _phone(rng)}
    name = _pick(rng, w.TITLE_A + w.TITLE_N, w.HELD_TITLE_A, held, 0.6)
    place = rng.choice(w.SHOP_KINDS)
    return {
        "name": rng.choice(
            [
                name,
                f"{name} {place.split()[-1].capitalize()}",
                f"The {name} {rng.choice(w.TITLE_N)}" if not held else f"Cafe {name}",
            ]
        ),
        "kind": place,
        "street": _pick(rng, w.STREETS, w.HELD_STREETS, held, 0)
        if held or rng.random() < 0.5
        else f"{made_up(rng)} {rng.choice(['Street', 'Road', 'Lane', 'Avenue'])}",
        "owner": person_name(rng, held),
        "year": str(rng.randint(1800, 2024)),
        "opens": clock(rng),
        "closes": clock(rng),
        "special": rng.choice(w.HELD_FOODS)
        if held
        else rng.choice(w.FOODS)
        if rng.random() < 0.5
        else made_up(rng, True) + " " + rng.choice(w.FOODS).split()[-1],
    }


def fields_in(template: str) -> list[str]:
    """Field names used by a template."""
    return re.findall(r"{(\w+)}", template)


def _fill(template: str, rec: Record) -> str:
    def sub(match: re.Match[str]) -> str:
        value = rec[match.group(2)]
        article = match.group(1) or ""
        return (article + "n " if article and value[0] in "aeiou" else article + " " if article else "") + value

    return re.sub(r"(?:(\b[aA]) )?{(\w+)}", sub, template)


def describe(
    rng: Random, kind: Kind, rec: Record, held: bool = False, want: list[str] | None = None
) -> tuple[str, list[str]]:
    """Write the record as text; return the text and the fields it mentions, key first."""
    which = int(held)
    if want is None and rng.random() < (0.7 if held else 0.4):
        template = rng.choice(kind.whole[which])
        if not held and rng.random() < 0.25:
            template = noisy_template(rng, template)
        return _fill(template, rec), sorted(set(fields_in(template)), key=kind.fields.index)
    rest = (
        want[:]
        if want
        else rng.sample(kind.fields[1:], rng.randint(min(2, len(kind.fields) - 1), len(kind.fields) - 1))
    )
    rng.shuffle(rest)
    subject = rng.choice(kind.intro)
    if not held and rng.random() < 0.12:
        subject = noisy_template(rng, subject)
    used, parts = [kind.fields[0]] + [f for f in fields_in(subject) if f != kind.fields[0]], []
    while rest:
        take = [rest.pop() for _ in range(min(len(rest), rng.choice([1, 1, 2, 2, 3])))]
        used += take
        preds = [rng.choice(kind.preds[f][which]) for f in take]
        if not held:
            preds = [noisy_template(rng, p) if rng.random() < 0.2 else p for p in preds]
        body = (
            preds[0]
            if len(preds) == 1
            else ", ".join(preds[:-1]) + rng.choice([" and ", " and ", ", and "]) + preds[-1]
        )
        parts.append(f"{subject} {body}.")
        subject = rng.choice([*kind.again, "{" + kind.fields[0] + "}"])
    text = _fill(" ".join(parts), rec)
    return text[0].upper() + text[1:], sorted(set(used), key=kind.fields.index)


def json_value(kind: Kind, field: str, value: str) -> str:
    """A field value as it stands in JSON."""
    return value if field in kind.numbers else json.dumps(value, ensure_ascii=False)


def as_json(kind: Kind, rec: Record, fields: list[str]) -> str:
    """The record in compact JSON, numbers as written in the text."""
    return "{" + ", ".join(f'"{f}": {json_value(kind, f, rec[f])}' for f in fields) + "}"


def as_lines(rec: Record, fields: list[str]) -> str:
    """The record as ``Name: …`` lines."""
    return "\n".join(f"{f.capitalize()}: {rec[f]}" for f in fields)


def shape(rng: Random, kind: Kind, fields: list[str]) -> str:
    """A shape hint such as ``{"name": string, "age": number}``."""
    text, number = rng.choice(
        [
            ("string", "number"),
            ("str", "int"),
            ('"..."', "0"),
            ('""', "0"),
            ('"string"', '"number"'),
            ("...", "..."),
            ('"<string>"', "<number>"),
            ("text", "number"),
        ]
    )
    return "{" + ", ".join(f'"{f}": {number if f in kind.numbers else text}' for f in fields) + "}"


def join_words(rng: Random, fields: list[str], quoted: bool = False) -> str:
    """Field names as a phrase: "name, age and city"."""
    items = [f'"{f}"' for f in fields] if quoted else fields
    if len(items) == 1:
        return items[0]
    if rng.random() < 0.4:
        return ", ".join(items)
    head = "the " if rng.random() < 0.3 and not quoted else ""
    return head + ", ".join(items[:-1]) + " and " + items[-1]


__all__ = [
    "KINDS",
    "Kind",
    "Record",
    "as_json",
    "as_lines",
    "clock",
    "describe",
    "join_words",
    "json_value",
    "made_up",
    "make_record",
    "person_name",
    "shape",
]
