"""Single exchanges: facts, sums, labels, choices, lists, tips and small talk."""

from __future__ import annotations

import re
from random import Random

from examples.demo_model import labels as lab
from examples.demo_model import passages
from examples.demo_model import prompts as pr
from examples.demo_model import smalltalk as st
from examples.demo_model import tips as tp
from examples.demo_model.facts import FACTS
from examples.demo_model.noise import RELATIVES, ask_around, insert, swap
from examples.demo_model.passages import Exchange, Seg, gen
from examples.demo_model.records import made_up
from examples.demo_model.words import CATEGORIES, CITIES, FIRST, ITEMS


def held_pair(a: int, b: int) -> bool:
    """True for the sums that training never shows, in either order (about one in ten)."""
    return (min(a, b) * 131 + max(a, b) * 17) % 10 == 3 and min(a, b) >= 10


def held_difference(a: int, b: int) -> bool:
    """True for the differences a - b that training never shows."""
    return (a - b) % 10 == 5 and (a // 5 + b) % 3 == 0 and b >= 10


# ------------------------------------------------------------------ single exchanges
_KEY = re.compile(
    r"capital|continent|langu|speak|spoke|symbol|chemi|oppos|contrary|leg|bab|young|call|sound|noise|hear|colo|paint|kind|group|class|after|tomorrow|next|before|yesterday|"
    r"month|wrote|author|writ|plural|past|currenc|money|pay|[A-Z0-9]|.{5,}"
)


def noisy_question(rng: Random, q: str, keep: str = "") -> str:
    """A question with harmless words added, dropped or replaced; words of ``keep`` and key words stay."""
    roll = rng.random()
    if roll < 0.35 and keep:
        q = swap(rng, q, re.compile("|".join([_KEY.pattern, *map(re.escape, keep.split())])))
        return q[:1].upper() + q[1:]
    if roll < 0.7:
        return ask_around(rng, q)
    return insert(rng, q) if not keep or roll > 0.85 else ask_around(rng, insert(rng, q))


def fact(rng: Random) -> list[Exchange]:
    """A fact, in a sentence, in one word, or continuing a literal."""
    f = rng.choice(FACTS)
    q = rng.choice(f.train)
    roll = rng.random()
    if roll < 0.12:
        return [(q + rng.choice(pr.SHORT), gen(f.answer))]
    if rng.random() < 0.35:
        q = noisy_question(rng, q, f.subject)
    if rng.random() < 0.2:
        q = rng.choice(pr.BEFORE) + q
    if rng.random() < 0.1:
        q += rng.choice(pr.AFTER)
    if rng.random() < 0.06:
        q = q.rstrip("?.")
    if rng.random() < 0.05:
        q = q[0].lower() + q[1:]
    if roll < 0.27:
        lead = rng.choice(
            ["The answer is", "Answer:", "The answer is:", f.stem or "Answer:", f.stem or "It is", "I think it is"]
        )
        if rng.random() < 0.5:
            return [(q, [(lead + " ", "lit"), *gen(f.answer + ".")])]
        return [(q, [(lead, "lit"), *gen(" " + f.answer + ".")])]
    return [(q, gen(f.reply))]


def unknown(rng: Random) -> list[Exchange]:
    """A question without a known answer."""
    q = rng.choice(st.UNKNOWN_TRAIN).format(p=made_up(rng), n=made_up(rng) + " " + made_up(rng))
    if rng.random() < 0.35:
        q = noisy_question(rng, q)
    return [(rng.choice(pr.BEFORE) + q if rng.random() < 0.2 else q, gen(st.UNKNOWN))]


def arithmetic(rng: Random) -> list[Exchange]:
    """Addition mostly, some subtraction and small products."""
    roll, name = rng.random(), rng.choice(FIRST) if rng.random() < 0.5 else made_up(rng)
    things, kin = rng.choice(ITEMS) if rng.random() < 0.6 else made_up(rng, True) + "s", rng.choice(RELATIVES)
    if roll < 0.68:
        while True:
            low = 10 if rng.random() < 0.8 else 0
            a, b = rng.randint(low, 99), rng.randint(low, 99)
            if not held_pair(a, b):
                break
        q, result = rng.choice(pr.ADD_ASK).format(a=a, b=b, n=name, i=things, r=kin), str(a + b)
    elif roll < 0.9:
        while True:
            a = rng.randint(1, 99)
            b = rng.randint(0, a)
            if rng.random() < 0.3:
                b -= (b - a + 5) % 10  # many differences that end in 5
            if b >= 0 and not held_difference(a, b):
                break
        q, result = rng.choice(pr.SUB_ASK).format(a=a, b=b, n=name, i=things, r=kin), str(a - b)
    else:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        q, result = rng.choice(pr.MUL_ASK).format(a=a, b=b), str(a * b)
    if rng.random() < 0.15:
        q = ask_around(rng, q) if rng.random() < 0.5 else insert(rng, q)
    if rng.random() < 0.15:
        lead = rng.choice(["The answer is", "Answer:", "The result is", "The sum is" if roll < 0.68 else "It is"])
        return [(q, [(lead, "lit"), *gen(f" {result}")] if rng.random() < 0.5 else [(lead + " ", "lit"), *gen(result)])]
    return [(q, gen(result))]


def compare(rng: Random) -> list[Exchange]:
    """Which of two numbers is larger or smaller; even or odd."""
    a, b = rng.sample(range(100), 2)
    roll = rng.random()
    if roll < 0.4:
        return [
            (
                rng.choice(
                    [
                        "Which is larger, {a} or {b}?",
                        "Which number is bigger: {a} or {b}?",
                        "What is the larger number, {a} or {b}?",
                    ]
                ).format(a=a, b=b),
                gen(str(max(a, b))),
            )
        ]
    if roll < 0.7:
        return [
            (
                rng.choice(["Which is smaller, {a} or {b}?", "What is the smaller number, {a} or {b}?"]).format(
                    a=a, b=b
                ),
                gen(str(min(a, b))),
            )
        ]
    return [(rng.choice(["Is {a} even or odd?", "Even or odd: {a}"]).format(a=a), gen("even" if a % 2 == 0 else "odd"))]


def classify(rng: Random) -> list[Exchange]:
    """Choose a label for a sentence."""
    task = rng.choices(list(lab.TASKS), [5, 5, 2, 1])[0]
    make, options, asks, _, head = lab.TASKS[task]
    text, label = make(rng)
    opts = options[:]
    if task == "topic":
        others = [o for o in opts if o != label]
        opts = [label, *rng.sample(others, rng.choice([1, 2, 2, 3, 3, 4, 5, len(others)]))]
        rng.shuffle(opts)
    elif rng.random() < 0.4:
        rng.shuffle(opts)
    ask = rng.choice(asks).replace(
        "{o}", rng.choice([", ".join(opts), ", ".join(opts[:-1]) + " or " + opts[-1], " / ".join(opts)])
    )
    if rng.random() < 0.12 and "{o}" not in ask:
        ask += rng.choice(["\nAnswer with one of: ", "\nOptions: ", " Choose from "]) + ", ".join(opts)
    if rng.random() < 0.12:
        ask = rng.choice(pr.BEFORE) + ask if rng.random() < 0.5 else ask_around(rng, "{x}").replace("{x}", ask)
    user = ask.replace("{x}", text)
    if rng.random() < 0.15:
        lead = rng.choice([f"{head}:", f"The {head.lower()} is", "Answer:", "Label:"])
        return [
            (user, [(lead, "lit"), *gen(" " + label)] if rng.random() < 0.5 else [(lead + " ", "lit"), *gen(label)])
        ]
    return [(user, gen(label))]


def pick_item(rng: Random, asks: list[str]) -> tuple[str, str, list[str]]:
    """A pick-one prompt: (prompt, answer, options)."""
    cat = rng.choice(list(CATEGORIES))
    answer = rng.choice(CATEGORIES[cat])
    options = [answer]
    while len(options) < rng.choice([2, 3, 3, 4, 5]):
        other = rng.choice(list(CATEGORIES))
        word = rng.choice(CATEGORIES[other])
        clash = {cat, other} == {"bird", "animal"}
        if word not in CATEGORIES[cat] and word not in options and not clash:
            options.append(word)
    rng.shuffle(options)
    return rng.choice(asks).format(c=cat, o=", ".join(options)), answer, options


def pick(rng: Random) -> list[Exchange]:
    """Pick one of the listed words."""
    q, answer, _ = pick_item(rng, pr.PICK_ASK)
    if rng.random() < 0.2:
        q = ask_around(rng, q)
    return [(q, gen(answer))]


def yes_no_item(rng: Random, asks: list[str]) -> tuple[str, str]:
    """A yes/no prompt and its answer, without the closing instruction."""
    good = rng.random() < 0.5
    if rng.random() < 0.35:
        cat, other = rng.sample(list(CATEGORIES), 2)
        while {cat, other} == {"bird", "animal"}:
            cat, other = rng.sample(list(CATEGORIES), 2)
        word = rng.choice(CATEGORIES[cat] if good else [x for x in CATEGORIES[other] if x not in CATEGORIES[cat]])
        statement = f"{word} is a {cat}"
    else:
        f = rng.choice([f for f in FACTS if f.relation not in {"misc", "sound", "month number"}])
        statement = f.reply.rstrip(".")
        if not good:
            wrong = rng.choice([g.answer for g in FACTS if g.relation == f.relation and g.answer != f.answer])
            right = [g.answer for g in FACTS if g.relation == f.relation and g.subject == f.subject]
            good = wrong in right
            head, _, tail = (
                statement.rpartition(f.answer)
                if not statement.startswith(f.answer)
                else ("", "", statement[len(f.answer) :])
            )
            statement = head + wrong + tail
    lower = statement[0].lower() + statement[1:] if statement.split()[0] in {"The", "A", "An", "People"} else statement
    q = rng.choice(asks).replace("{s}", lower).replace("{S}", statement[0].upper() + statement[1:])
    return q, "yes" if good else "no"


def yes_no(rng: Random) -> list[Exchange]:
    """A statement to confirm or deny."""
    q, answer = yes_no_item(rng, pr.YES_NO_ASK)
    if rng.random() < 0.25:
        q = ask_around(rng, q)
    if rng.random() < 0.65:
        return [(q + rng.choice([" Answer yes or no.", " yes or no?", "\nAnswer with yes or no."]), gen(answer))]
    return [(q, gen(answer.capitalize() + "."))]


def plural_of(cat: str) -> str:
    """Plural of a category name, as used in list prompts."""
    irregular = {
        "country": "countries",
        "piece of furniture": "pieces of furniture",
        "piece of clothing": "pieces of clothing",
    }
    return irregular.get(cat, cat + "s")


def lists(rng: Random) -> list[Exchange]:
    """Short lists: category members, or counting."""
    n = rng.choice([2, 3, 3, 4, 5])
    word = ["two", "three", "four", "five"][n - 2]
    if rng.random() < 0.12:
        a = rng.randint(1, 20)
        return [(f"Count from {a} to {a + n}.", gen(", ".join(str(i) for i in range(a, a + n + 1))))]
    cat = rng.choice(list(CATEGORIES))
    items = CATEGORIES[cat][:n]
    q = rng.choice(pr.LIST_ASK).format(n=word if rng.random() < 0.7 else n, c=plural_of(cat))
    if rng.random() < 0.25:
        return [
            (
                q + rng.choice([" Use a numbered list.", " One per line.", " Number them."]),
                gen("\n".join(f"{i}. {x}" for i, x in enumerate(items, 1))),
            )
        ]
    return [(q, gen(", ".join(items)))]


def smalltalk(rng: Random) -> list[Exchange]:
    """Greetings and questions about the model."""
    asks, _, reply = rng.choice(st.SMALLTALK)
    return [(rng.choice(asks), gen(reply))]


def about(rng: Random) -> list[Exchange]:
    """Two plain sentences about a subject."""
    x = rng.choice(list(st.ABOUT))
    q = rng.choice(st.ABOUT_TRAIN).format(x=x)
    return [(noisy_question(rng, q, x) if rng.random() < 0.3 else q, gen(st.ABOUT[x]))]


def tips(rng: Random) -> list[Exchange]:
    """Tips for a topic, and paragraphs that expand them."""
    topic = rng.choice(list(tp.TIPS))
    entries = tp.TIPS[topic]
    roll = rng.random()
    if roll < 0.12:
        return [(rng.choice(tp.ONE_TRAIN).format(topic=topic), gen(entries[0][0]))]
    if roll < 0.5:
        i = rng.randrange(3)
        tip = entries[i][0]
        shown = rng.choice([tip, tip, tip, tip.rstrip("."), f"{i + 1}. {tip}", f'"{tip}"'])
        return [(rng.choice(tp.EXPAND_TRAIN).format(tip=shown, topic=topic), gen(entries[i][1]))]
    n = rng.choice([2, 2, 3])
    ask = rng.choice(tp.ASK_TRAIN).format(n=tp.NUMBER_WORDS[n - 1] if rng.random() < 0.8 else n, topic=topic)
    ask = ask[0].upper() + ask[1:]
    body = "\n".join(f"{i}. {tip}" for i, (tip, _) in enumerate(entries[:n], 1))
    reply: list[Seg] = gen(body)
    if rng.random() < 0.3:  # a program writes the numbers, the model writes the tips
        reply = []
        if rng.random() < 0.4:
            reply.append(
                (
                    rng.choice(["Here are {} tips for {}.\n", "{} tips for {}:\n"]).format(
                        tp.NUMBER_WORDS[n - 1], topic
                    ),
                    "lit",
                )
            )
        for i, (tip, _) in enumerate(entries[:n], 1):
            reply += [(f"{i}." if rng.random() < 0.5 else f"{i}. ", "lit")]
            reply += gen(tip if reply[-1][0].endswith(" ") else " " + tip)
            if i < n:
                reply.append(("\n", "lit"))
    out: list[Exchange] = [(ask, reply)]
    more = rng.sample(range(n), rng.choice([0, 1, 1, 2]))
    return out + [(rng.choice(tp.FOLLOW_TRAIN).format(i=i + 1), gen(entries[i][1])) for i in more]


def repeat(rng: Random) -> list[Exchange]:
    """Copy a text: trains exact copying of unseen words."""
    text = " ".join(
        rng.choice([made_up(rng), made_up(rng, True), rng.choice(CITIES), rng.choice(ITEMS), str(rng.randint(0, 9999))])
        for _ in range(rng.randint(1, 8))
    )
    if rng.random() < 0.3:
        text = passages.filler(rng)
    return [
        (
            rng.choice(
                [
                    "Repeat this: {x}",
                    "Say: {x}",
                    "Repeat after me: {x}",
                    "Write this again: {x}",
                    "Copy this text: {x}",
                    'Repeat: "{x}"',
                ]
            ).format(x=text),
            gen(text),
        )
    ]
