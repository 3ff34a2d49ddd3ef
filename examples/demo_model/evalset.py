"""Held-out evaluation items for the demo model, and the checks that they are held out.

Prompts are built from templates, names, items and number pairs that the training generator
never uses.  ``assert_disjoint`` checks that: by lists, and against a sample of training text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from random import Random

from examples.demo_model import data as d
from examples.demo_model import extraction as ex
from examples.demo_model import kinds as kd
from examples.demo_model import labels as lab
from examples.demo_model import passages as ps
from examples.demo_model import prompts as pr
from examples.demo_model import smalltalk as st
from examples.demo_model import tasks as tk
from examples.demo_model import tips as tp
from examples.demo_model import words as w
from examples.demo_model.facts import FACTS
from examples.demo_model.records import KINDS, as_json, as_lines, describe, made_up, make_record

UNSEEN_ASK = ", unseen instruction too"
HELD_FACTS = d.facts_for_eval()


@dataclass
class Item:
    """One evaluation prompt; with ``choices`` it is scored, else generated."""

    section: str
    prompt: str
    expect: str
    check: str = "exact"  # exact, word, json, lines, line
    choices: list[str] = field(default_factory=list)
    budget: int = 48
    chat: bool = True

    def shape(self) -> str | None:
        """For extractions: a regular expression of the asked format, with room for any values."""
        if self.check == "lines":
            return r"\n".join(line.split(": ")[0] + r": [^\n]{1,60}" for line in self.expect.split("\n"))
        if self.check == "json":
            some = {str: r'"[^"\n]{1,60}"', int: r"-?[0-9]{1,9}", float: r"-?[0-9]{1,9}(\.[0-9]{1,4})?"}
            pairs = [f'"{key}": {some[type(value)]}' for key, value in json.loads(self.expect).items()]
            return r"\{" + ", ".join(pairs) + r"\}"
        return None


def _chat(rng: Random, user: str, history: list[tuple[str, str]] | None = None, prefix: str = "") -> str:
    messages = [{"role": "system", "content": rng.choice(st.SYSTEMS_HELD)}] if rng.random() < 0.3 else []
    for question, answer in history or []:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return d.render_prompt([*messages, {"role": "user", "content": user}]) + prefix


def _facts(rng: Random) -> list[Item]:
    return [Item("facts, unseen phrasing", _chat(rng, rng.choice(f.held)), f.answer, "word") for f in FACTS if f.held]


def _record(rng: Random) -> tuple[kd.Kind, dict[str, str], str, list[str]]:
    while True:
        kind, rec, text, fields = ex.sample(rng, held=True)
        if kind.name != "shop":
            return kind, rec, text, fields


def _extraction(rng: Random) -> list[Item]:
    items = []
    for _ in range(240):
        kind, rec, text, fields = _record(rng)
        some = ex.choose(rng, fields)
        held = rng.random() < 0.5
        user = ex.prompt(rng, rng.choice(kd.JSON_ASK_HELD if held else kd.JSON_ASK), kind, some, text)
        section = "extraction to JSON (fields)" + UNSEEN_ASK * held
        items.append(Item(section, _chat(rng, user), as_json(kind, rec, some), "json", budget=140))
    for _ in range(120):
        kind, rec, text, fields = _record(rng)
        some = ex.choose(rng, fields)
        held = rng.random() < 0.5
        user = ex.prompt(rng, rng.choice(kd.LINE_ASK_HELD if held else kd.LINE_ASK), kind, some, text)
        section = "extraction to lines (fields)" + UNSEEN_ASK * held
        items.append(Item(section, _chat(rng, user), as_lines(rec, some), "lines", budget=140))
    for _ in range(60):  # the program writes the names of the fields
        kind, rec, text, fields = _record(rng)
        user, before = ex.prompt(rng, rng.choice(kd.LINE_ASK), kind, fields, text), ""
        for f in fields:
            before += f"{f.capitalize()}: "
            items.append(
                Item("extraction, piecewise lines", _chat(rng, user, prefix=before), rec[f], "line", budget=40)
            )
            before += rec[f] + "\n"
    for _ in range(180):
        kind, rec, text, fields = _record(rng)
        f = rng.choice(fields)
        q = ex.question(rng, kind, rec, f, held=True)
        user = (
            rng.choice(kd.FIELD_ASK_HELD if rng.random() < 0.5 else kd.FIELD_ASK).replace("{x}", text).replace("{q}", q)
        )
        items.append(Item("one field of a sentence", _chat(rng, user), rec[f]))
    return items


def _passages(rng: Random) -> list[Item]:
    items = []
    for section, count, low, high in (
        ("passage of 3-10 notes, one question", 150, 3, 10),
        ("passage of 16-30 notes, one question", 40, 16, 30),
    ):
        for _ in range(count):
            notes = ps.make_notes(rng, rng.randint(low, high), held=True)
            q, answer = ps.note_question(rng, rng.choice(notes), held=True)
            ask = rng.choice([*ps.ASKS_HELD, "{q}"])
            user = f"{rng.choice(ps.LEADS_HELD)}\n\n{ps.layout(rng, notes, 0.3)}\n\n{ask.replace('{q}', q)}"
            items.append(Item(section, _chat(rng, user), answer))
    for _ in range(40):
        rec = make_record(rng, "shop", held=True)
        text, fields = describe(rng, KINDS["shop"], rec, held=True, want=KINDS["shop"].fields[1:])
        for f in rng.sample(fields[1:], 2):
            q = rng.choice(KINDS["shop"].ask[f][1]).replace("{k}", rec["name"])
            items.append(Item("passage about one place", _chat(rng, f"{text}\n\n{q}"), rec[f]))
    return items


def _numbers(rng: Random) -> list[Item]:
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if tk.held_pair(a, b)]
    less = [(a, b) for a in range(10, 100) for b in range(10, a + 1) if tk.held_difference(a, b)]
    items = [
        Item(
            "two-digit addition, unseen pairs",
            _chat(
                rng,
                rng.choice(pr.ADD_HELD if rng.random() < 0.5 else pr.ADD_ASK).format(
                    a=a, b=b, n="Hana", i="badges", r="cousin"
                ),
            ),
            str(a + b),
        )
        for a, b in rng.sample(pairs, 250)
    ]
    items += [
        Item(
            "subtraction, unseen pairs",
            _chat(
                rng,
                rng.choice(pr.SUB_HELD if rng.random() < 0.5 else pr.SUB_ASK).format(
                    a=a, b=b, n="Hana", i="badges", r="cousin"
                ),
            ),
            str(a - b),
        )
        for a, b in rng.sample(less, 100)
    ]
    items += [
        Item("one-digit products, unseen phrasing", _chat(rng, rng.choice(pr.MUL_HELD).format(a=a, b=b)), str(a * b))
        for a, b in [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(60)]
    ]
    return items


def _choices(rng: Random) -> list[Item]:
    items = []
    for task, count in (("sentiment", 180), ("topic", 180), ("category", 60), ("urgency", 30)):
        make, options, asks, held_asks, _ = lab.TASKS[task]
        for _ in range(count):
            text, label = make(rng, held=True)
            opts = options[:]
            if task == "topic":
                opts = [label, *rng.sample([o for o in opts if o != label], rng.choice([3, 5, 11]))]
            rng.shuffle(opts)
            ask = (
                rng.choice(held_asks if rng.random() < 0.5 else asks)
                .replace("{o}", ", ".join(opts))
                .replace("{x}", text)
            )
            items.append(Item(f"select: {task}", _chat(rng, ask), label, choices=opts))
    for _ in range(120):
        q, answer = tk.yes_no_item(rng, pr.YES_NO_HELD)
        items.append(Item("select: yes or no", _chat(rng, q + " Answer yes or no."), answer, choices=["yes", "no"]))
    for _ in range(100):
        q, answer, options = tk.pick_item(rng, pr.PICK_HELD)
        items.append(Item("select: one of the listed words", _chat(rng, q), answer, choices=options))
    return items


def _talk(rng: Random) -> list[Item]:
    items = [Item("small talk, unseen phrasing", _chat(rng, q), reply) for _, held, reply in st.SMALLTALK for q in held]
    items += [
        Item("tell me about X, unseen phrasing", _chat(rng, rng.choice(st.ABOUT_HELD).format(x=x)), reply, budget=80)
        for x, reply in st.ABOUT.items()
    ]
    for topic, entries in tp.TIPS.items():
        n = rng.choice([2, 3])
        body = "\n".join(f"{i}. {tip}" for i, (tip, _) in enumerate(entries[:n], 1))
        items.append(
            Item(
                "tips, unseen phrasing",
                _chat(rng, rng.choice(tp.ASK_HELD).format(n=tp.NUMBER_WORDS[n - 1], topic=topic)),
                body,
                budget=80,
            )
        )
        tip, more = rng.choice(entries)
        items.append(
            Item(
                "expand a tip, unseen phrasing", _chat(rng, rng.choice(tp.EXPAND_HELD).format(tip=tip)), more, budget=80
            )
        )
    for _ in range(50):
        q = rng.choice(st.UNKNOWN_HELD).format(
            p=made_up(rng), n=f"{rng.choice(w.HELD_FIRST)} {rng.choice(w.HELD_LAST)}"
        )
        items.append(Item("says that it does not know", _chat(rng, q), st.UNKNOWN))
    for _ in range(40):
        n, cat = rng.choice([2, 3, 4, 5]), rng.choice(list(w.CATEGORIES))
        q = rng.choice(pr.LIST_HELD).format(n=["two", "three", "four", "five"][n - 2], c=tk.plural_of(cat))
        items.append(Item("short lists, unseen phrasing", _chat(rng, q), ", ".join(w.CATEGORIES[cat][:n])))
    return items


def _mixed(rng: Random) -> list[Item]:
    items = []
    for _ in range(60):  # a chat: fact, extraction, then one of the tasks again
        f, g = rng.sample(HELD_FACTS, 2)
        kind, rec, text, fields = _record(rng)
        history = [
            (rng.choice(f.held), f.reply),
            (ex.prompt(rng, rng.choice(kd.JSON_ASK_HELD), kind, fields, text), as_json(kind, rec, fields)),
        ]
        if rng.random() < 0.5:
            items.append(Item("third turn of a mixed chat", _chat(rng, rng.choice(g.held), history), g.answer, "word"))
        else:
            kind, rec, text, fields = _record(rng)
            user = ex.prompt(rng, rng.choice(kd.JSON_ASK_HELD), kind, fields, text)
            items.append(
                Item("third turn of a mixed chat", _chat(rng, user, history), as_json(kind, rec, fields), budget=140)
            )
    for _ in range(80):
        shots = rng.sample(HELD_FACTS, 3)
        block = "".join(f"Q: {rng.choice(f.held)}\nA: {f.answer}\n\n" for f in shots[:-1])
        items.append(
            Item(
                "few-shot Q/A without chat marks",
                f"{d.BOS}{block}Q: {rng.choice(shots[-1].held)}\nA:",
                shots[-1].answer,
                "line",
                budget=24,
                chat=False,
            )
        )
    for f in rng.sample([f for f in HELD_FACTS if f.stem], 80):
        prompt = _chat(rng, rng.choice(f.held), prefix=f.stem + (" " if rng.random() < 0.5 else ""))
        items.append(Item("fact after a literal", prompt, f.answer, "word"))
    return items


def build(seed: int = 2024) -> list[Item]:
    """All evaluation items."""
    rng = Random(seed)
    return [item for make in (_facts, _extraction, _passages, _numbers, _choices, _talk, _mixed) for item in make(rng)]


def assert_disjoint(items: list[Item], documents: int = 20000) -> None:
    """Fail when held-out templates, words, pairs or whole prompts occur in training."""
    overlap = {t for t in d.train_templates() & d.held_templates() if t}
    assert not overlap, f"templates in both sets: {sorted(overlap)[:5]}"
    names = [
        *w.HELD_FIRST,
        *w.HELD_LAST,
        *w.HELD_CITIES,
        *w.HELD_JOBS,
        *w.HELD_ITEMS,
        *w.HELD_PETS,
        *w.HELD_PET_NAMES,
        *w.HELD_STREETS,
        *w.HELD_FOODS,
        *w.HELD_TITLE_A,
        *w.HELD_TITLE_N,
    ]
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")
    rng = Random("leak check")
    seen = {item.prompt.rpartition(d.START + "user\n")[2] for item in items if item.chat}
    held = d.held_templates()
    for _ in range(documents):
        text = "".join(part for part, _ in d.document(rng))
        found = pattern.search(text)
        assert not found, f"held-out word in training text: {found.group()!r}"
        for turn in text.split(d.START + "user\n")[1:]:
            question = turn.partition(d.END)[0]
            assert question not in held, f"held-out question in training text: {question!r}"
            assert f"{question}{d.END}\n{d.START}assistant\n" not in seen, (
                f"evaluation prompt in training text: {question!r}"
            )
        for a, b in re.findall(r"\b(\d\d) ?\+ ?(\d\d)\b", text):
            assert not tk.held_pair(int(a), int(b)), f"held-out sum in training text: {a} + {b}"


def _field_json(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def grade(item: Item, text: str) -> tuple[float, float]:
    """Points and possible points of a reply; extraction counts fields."""
    text = text.strip()
    if item.check == "json":
        want, got = _field_json(item.expect) or {}, _field_json(text)
        return sum(got is not None and got.get(k) == v for k, v in want.items()), len(want)
    if item.check == "lines":
        want_lines, got_lines = item.expect.split("\n"), text.split("\n")
        return sum(line in got_lines for line in want_lines), len(want_lines)
    if item.check == "line":
        return float(text.split("\n")[0].strip() == item.expect), 1
    if item.check == "word":
        return float(
            len(text) < 120 and re.search(rf"(?<!\w){re.escape(item.expect)}(?!\w)", text, re.I) is not None
        ), 1
    return float(text == item.expect), 1
