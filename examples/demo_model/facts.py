"""The facts the demo model learns: tables, training phrasings and held-out phrasings.

A relation is a table of (subject, answer) pairs plus question templates for training.  The held-out phrasings are in
``fresh.py`` and only ever appear in the evaluation.  ``reply`` is the sentence the model answers with.  Odd single
facts live in ``facts_misc.py`` in the same shape.  The file is long because it is mostly tables.
"""
# ruff: noqa: E501

from __future__ import annotations

import re
from dataclasses import dataclass

from examples.demo_model import fresh
from examples.demo_model.facts_misc import MISC
from examples.demo_model.more import FACT_ASK, MISC_ASK
from examples.demo_model.words import DAYS, MONTHS


@dataclass(frozen=True)
class Fact:
    """One fact with all of its phrasings."""

    relation: str
    subject: str
    answer: str
    reply: str
    train: tuple[str, ...]
    held: tuple[str, ...]
    stem: str  # the reply up to the answer: a natural prefix to continue


@dataclass(frozen=True)
class Relation:
    """A table of pairs sharing templates; ``{x}`` is the subject and ``{y}`` the answer."""

    name: str
    pairs: list[tuple[str, str]]
    reply: str
    train: list[str]


def _pairs(text: str) -> list[tuple[str, str]]:
    """Parse ``a=b, c=d`` blocks."""
    out = []
    for part in text.replace("\n", " ").split(","):
        if part.strip():
            left, right = part.split("=")
            out.append((left.strip(), right.strip()))
    return out


def _both(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return pairs + [(b, a) for a, b in pairs if b not in {x for x, _ in pairs}]


def _next(items: list[str], step: int) -> list[tuple[str, str]]:
    return [(item, items[(i + step) % len(items)]) for i, item in enumerate(items)]


RELATIONS = [
    Relation(
        "capital",
        _pairs("""
        France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, England=London, Ireland=Dublin,
        Scotland=Edinburgh, Norway=Oslo, Sweden=Stockholm, Denmark=Copenhagen, Finland=Helsinki, Iceland=Reykjavik,
        Poland=Warsaw, Austria=Vienna, Hungary=Budapest, Greece=Athens, Turkey=Ankara, Russia=Moscow, Ukraine=Kyiv,
        Romania=Bucharest, Bulgaria=Sofia, Serbia=Belgrade, Croatia=Zagreb, Belgium=Brussels, Switzerland=Bern,
        the Netherlands=Amsterdam, Japan=Tokyo, China=Beijing, South Korea=Seoul, India=New Delhi, Pakistan=Islamabad,
        Nepal=Kathmandu, Thailand=Bangkok, Vietnam=Hanoi, Indonesia=Jakarta, Iran=Tehran, Iraq=Baghdad, Egypt=Cairo,
        Kenya=Nairobi, Nigeria=Abuja, Ghana=Accra, Ethiopia=Addis Ababa, Morocco=Rabat, Algeria=Algiers, Tunisia=Tunis,
        Canada=Ottawa, Mexico=Mexico City, Cuba=Havana, Brazil=Brasilia, Argentina=Buenos Aires, Chile=Santiago,
        Peru=Lima, Colombia=Bogota, Venezuela=Caracas, Australia=Canberra, the United States=Washington
        """),
        "The capital of {x} is {y}.",
        [
            "What is the capital of {x}?",
            "Name the capital of {x}.",
            "Which city is the capital of {x}?",
            "Tell me the capital city of {x}.",
            "capital of {x}?",
            "Do you know the capital of {x}?",
            "What city is the capital of {x}?",
            "What's the capital of {x}",
            "{x}: what is its capital?",
            "I need the capital of {x}.",
            "The capital of {x} is which city?",
            "What is the name of the capital city of {x}?",
            "My teacher asked for the capital of {x}. What is it?",
            "Give me the capital of {x}, please.",
        ],
    ),
    Relation(
        "continent",
        _pairs("""
        France=Europe, Germany=Europe, Italy=Europe, Norway=Europe, Poland=Europe, Greece=Europe, Japan=Asia, China=Asia,
        India=Asia, Thailand=Asia, Vietnam=Asia, Nepal=Asia, Egypt=Africa, Kenya=Africa, Nigeria=Africa, Ghana=Africa,
        Morocco=Africa, Canada=North America, Mexico=North America, Cuba=North America, Brazil=South America,
        Argentina=South America, Chile=South America, Peru=South America, Colombia=South America
        """),
        "{x} is in {y}.",
        [
            "Which continent is {x} in?",
            "What continent is {x} in?",
            "On which continent is {x}?",
            "Name the continent of {x}.",
            "{x} is on what continent?",
            "What continent does {x} belong to?",
            "Tell me the continent where {x} is.",
            "Which continent does {x} lie on?",
            "continent of {x}?",
        ],
    ),
    Relation(
        "language",
        _pairs("""
        France=French, Germany=German, Italy=Italian, Spain=Spanish, Portugal=Portuguese, England=English,
        Japan=Japanese, China=Chinese, Russia=Russian, Greece=Greek, Turkey=Turkish, Poland=Polish, Sweden=Swedish,
        Norway=Norwegian, Brazil=Portuguese, Mexico=Spanish, Egypt=Arabic, Hungary=Hungarian, Thailand=Thai,
        Vietnam=Vietnamese, Finland=Finnish, Denmark=Danish
        """),
        "People in {x} speak {y}.",
        [
            "What language do people speak in {x}?",
            "Which language is spoken in {x}?",
            "What is the main language of {x}?",
            "Name the language of {x}.",
            "Which language do they speak in {x}?",
            "What language is used in {x}?",
            "language of {x}?",
            "Tell me the main language in {x}.",
        ],
    ),
    Relation(
        "symbol",
        _pairs("""
        hydrogen=H, helium=He, carbon=C, nitrogen=N, oxygen=O, sodium=Na, magnesium=Mg, aluminum=Al, silicon=Si,
        sulfur=S, chlorine=Cl, potassium=K, calcium=Ca, iron=Fe, copper=Cu, zinc=Zn, silver=Ag, tin=Sn, iodine=I,
        gold=Au, mercury=Hg, lead=Pb, neon=Ne, lithium=Li, nickel=Ni, uranium=U
        """),
        "The chemical symbol for {x} is {y}.",
        [
            "What is the chemical symbol for {x}?",
            "What is the symbol of {x}?",
            "Which chemical symbol stands for {x}?",
            "Give the chemical symbol of {x}.",
            "What is {x}'s chemical symbol?",
            "chemical symbol for {x}?",
            "What letters stand for {x} in chemistry?",
            "Tell me the symbol for the element {x}.",
            "Name the chemical symbol of {x}.",
        ],
    ),
    Relation(
        "opposite",
        _both(
            _pairs("""
        hot=cold, big=small, tall=short, fast=slow, up=down, left=right, day=night, black=white, open=closed,
        happy=sad, hard=soft, light=dark, old=new, rich=poor, strong=weak, wet=dry, loud=quiet, full=empty,
        early=late, high=low, near=far, thick=thin, heavy=light, clean=dirty, good=bad, easy=difficult,
        true=false, deep=shallow, wide=narrow, first=last, inside=outside, push=pull, win=lose, love=hate,
        always=never, buy=sell, begin=end, sweet=sour
        """)
        ),
        "The opposite of {x} is {y}.",
        [
            "What is the opposite of {x}?",
            "Give the opposite of {x}.",
            "Which word is the opposite of {x}?",
            "Name the opposite of {x}.",
            "opposite of {x}?",
            "What is the opposite of the word '{x}'?",
            'What is the opposite of "{x}"?',
            "Tell me the opposite of {x}.",
            "What word means the opposite of {x}?",
            "Find the opposite: {x}",
        ],
    ),
    Relation(
        "legs",
        _pairs("""
        spider=eight, ant=six, bee=six, dog=four, cat=four, horse=four, cow=four, bird=two, chicken=two, human=two,
        snake=no, fish=no, crab=ten, beetle=six
        """),
        "A {x} has {y} legs.",
        [
            "How many legs does a {x} have?",
            "How many legs has a {x}?",
            "What is the number of legs of a {x}?",
            "A {x} has how many legs?",
            "Number of legs of a {x}?",
            "Tell me how many legs a {x} has.",
            "Count the legs of a {x}.",
        ],
    ),
    Relation(
        "baby",
        _pairs("""
        dog=puppy, cat=kitten, cow=calf, horse=foal, sheep=lamb, goat=kid, pig=piglet, duck=duckling, hen=chick,
        lion=cub, bear=cub, kangaroo=joey, frog=tadpole, deer=fawn, swan=cygnet, goose=gosling
        """),
        "A baby {x} is called a {y}.",
        [
            "What is a baby {x} called?",
            "What do you call a baby {x}?",
            "What is the name for a baby {x}?",
            "A baby {x} is called what?",
            "What is a young {x} called?",
            "Name the young of a {x}.",
            "Tell me the word for a baby {x}.",
        ],
    ),
    Relation(
        "sound",
        _pairs("""
        dog=barks, cat=meows, cow=moos, sheep=bleats, duck=quacks, lion=roars, horse=neighs, snake=hisses,
        bee=buzzes, owl=hoots, wolf=howls, pig=oinks
        """),
        "A {x} {y}.",
        [
            "What sound does a {x} make?",
            "Which sound does a {x} make?",
            "What noise does a {x} make?",
            "How does a {x} sound?",
            "Tell me the sound of a {x}.",
            "A {x} makes what sound?",
        ],
    ),
    Relation(
        "color",
        _pairs("""
        banana=yellow, grass=green, sky=blue, snow=white, coal=black, blood=red, tomato=red, lemon=yellow, carrot=orange,
        sun=yellow, milk=white, chocolate=brown, cucumber=green, strawberry=red, sea=blue, pumpkin=orange, leaf=green,
        flamingo=pink, crow=black, elephant=gray
        """),
        "The color of {x} is {y}.",
        [
            "What color is {x}?",
            "What is the color of {x}?",
            "Which color is {x}?",
            "What colour is {x}?",
            "Name the color of {x}.",
            "Tell me the color of {x}.",
            "What color does {x} have?",
            "The usual color of {x} is what?",
            "color of {x}?",
        ],
    ),
    Relation(
        "class",
        _pairs("""
        dog=mammal, whale=mammal, bat=mammal, dolphin=mammal, cow=mammal, eagle=bird, penguin=bird, sparrow=bird,
        owl=bird, shark=fish, salmon=fish, tuna=fish, snake=reptile, lizard=reptile, turtle=reptile, crocodile=reptile,
        frog=amphibian, toad=amphibian, butterfly=insect, mosquito=insect, beetle=insect, moth=insect
        """),
        "A {x} is a kind of {y}.",
        [
            "What kind of animal is a {x}?",
            "What type of animal is a {x}?",
            "Which group of animals does a {x} belong to?",
            "A {x} is what kind of animal?",
            "Is a {x} a mammal, a bird, a fish, a reptile, an amphibian or an insect?",
            "Name the animal group of a {x}.",
            "What class of animal is a {x}?",
        ],
    ),
    Relation(
        "day after",
        _next(DAYS, 1),
        "The day after {x} is {y}.",
        [
            "What day comes after {x}?",
            "Which day follows {x}?",
            "What is the day after {x}?",
            "Name the day after {x}.",
            "What day is after {x}?",
            "Today is {x}. What day is tomorrow?",
            "If today is {x}, what is tomorrow?",
        ],
    ),
    Relation(
        "day before",
        _next(DAYS, -1),
        "The day before {x} is {y}.",
        [
            "What day comes before {x}?",
            "What is the day before {x}?",
            "Name the day before {x}.",
            "Which day is before {x}?",
            "Today is {x}. What day was yesterday?",
            "If today is {x}, what was yesterday?",
        ],
    ),
    Relation(
        "month after",
        _next(MONTHS, 1),
        "The month after {x} is {y}.",
        [
            "What month comes after {x}?",
            "Which month follows {x}?",
            "What is the month after {x}?",
            "Name the month after {x}.",
            "What is the next month after {x}?",
            "It is {x}. What is the next month?",
        ],
    ),
    Relation(
        "month number",
        list(
            zip(
                MONTHS,
                [
                    "first",
                    "second",
                    "third",
                    "fourth",
                    "fifth",
                    "sixth",
                    "seventh",
                    "eighth",
                    "ninth",
                    "tenth",
                    "eleventh",
                    "twelfth",
                ],
                strict=True,
            )
        ),
        "{x} is the {y} month of the year.",
        [
            "Which month of the year is {x}?",
            "What number month is {x}?",
            "{x} is which month of the year?",
            "What place does {x} have among the months?",
            "Tell me the position of {x} in the year.",
        ],
    ),
    Relation(
        "author",
        [
            (p.split("=")[0], p.split("=")[1])
            for p in (  # titles may hold commas, so one pair per string
                "Hamlet=William Shakespeare",
                "Romeo and Juliet=William Shakespeare",
                "Macbeth=William Shakespeare",
                "Don Quixote=Miguel de Cervantes",
                "War and Peace=Leo Tolstoy",
                "Anna Karenina=Leo Tolstoy",
                "Crime and Punishment=Fyodor Dostoevsky",
                "Pride and Prejudice=Jane Austen",
                "Emma=Jane Austen",
                "Oliver Twist=Charles Dickens",
                "A Christmas Carol=Charles Dickens",
                "Moby Dick=Herman Melville",
                "Frankenstein=Mary Shelley",
                "Dracula=Bram Stoker",
                "The Odyssey=Homer",
                "The Iliad=Homer",
                "Animal Farm=George Orwell",
                "Jane Eyre=Charlotte Bronte",
                "Wuthering Heights=Emily Bronte",
                "Faust=Goethe",
                "Treasure Island=Robert Louis Stevenson",
                "The Hobbit=J. R. R. Tolkien",
                "Robinson Crusoe=Daniel Defoe",
                "Les Miserables=Victor Hugo",
                "The Time Machine=H. G. Wells",
                "The Jungle Book=Rudyard Kipling",
                "The Little Prince=Antoine de Saint-Exupery",
                "Alice in Wonderland=Lewis Carroll",
                "The Divine Comedy=Dante",
                "Tom Sawyer=Mark Twain",
            )
        ],
        "{y} wrote {x}.",
        [
            "Who wrote {x}?",
            "Who is the author of {x}?",
            "Name the author of {x}.",
            'Who wrote "{x}"?',
            "Who was the writer of {x}?",
            "The book {x} was written by whom?",
            "Which author wrote {x}?",
            "Tell me who wrote {x}.",
            "author of {x}?",
        ],
    ),
    Relation(
        "plural",
        _pairs("""
        mouse=mice, child=children, man=men, woman=women, foot=feet, tooth=teeth, goose=geese, leaf=leaves, knife=knives,
        wolf=wolves, city=cities, baby=babies, box=boxes, sheep=sheep, person=people, ox=oxen
        """),
        "The plural of {x} is {y}.",
        [
            "What is the plural of {x}?",
            "Give the plural of {x}.",
            "What is the plural form of {x}?",
            "Name the plural of {x}.",
            "plural of {x}?",
            "What is the plural of the word '{x}'?",
        ],
    ),
    Relation(
        "past tense",
        _pairs("""
        go=went, eat=ate, see=saw, run=ran, take=took, give=gave, come=came, write=wrote, buy=bought, think=thought,
        sing=sang, swim=swam, drink=drank, speak=spoke, fly=flew, begin=began, know=knew, make=made, find=found, break=broke
        """),
        "The past tense of {x} is {y}.",
        [
            "What is the past tense of {x}?",
            "Give the past tense of {x}.",
            "What is the past form of {x}?",
            "past tense of {x}?",
            "Tell me the past tense of the verb {x}.",
            "What is the past tense of the word '{x}'?",
        ],
    ),
    Relation(
        "currency",
        _pairs("""
        Japan=yen, England=pound, France=euro, Germany=euro, Italy=euro, Spain=euro, the United States=dollar, Canada=dollar,
        India=rupee, China=yuan, Russia=ruble, Mexico=peso, Switzerland=franc, Poland=zloty, Sweden=krona, Turkey=lira,
        Thailand=baht, South Korea=won
        """),
        "The currency of {x} is the {y}.",
        [
            "What is the currency of {x}?",
            "Which currency does {x} use?",
            "What money do people use in {x}?",
            "Name the currency of {x}.",
            "currency of {x}?",
            "What currency is used in {x}?",
            "Tell me the currency of {x}.",
        ],
    ),
]


def _article(relation: str, subject: str) -> str:
    """How the subject reads inside a sentence of this relation."""
    if relation == "color":
        return (
            subject
            if subject in {"grass", "snow", "coal", "blood", "milk", "chocolate"}
            else ("the " + subject if subject in {"sun", "sky", "sea"} else _an(subject))
        )
    return subject


def _an(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _fill(template: str, x: str, y: str = "") -> str:
    text = template.replace("{x}", x).replace("{y}", y)
    for vowel in ("ant", "owl", "eagle", "elephant", "amphibian", "insect"):
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text[0].upper() + text[1:] if not template.endswith("?") or template[0].isupper() else text


def _echo(reply: str, answer: str) -> tuple[str, ...]:
    """Questions made from the reply: the answer becomes a gap or a question word."""
    gap = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.I)
    body = reply.rstrip(".")
    what = gap.sub("what", body, count=1)
    return (
        f"Fill the gap: {gap.sub('___', reply, count=1)}",
        f"{what[0].upper()}{what[1:]}?",
        f"Complete the sentence: {gap.sub('...', body, count=1)}",
    )


def _build() -> list[Fact]:
    facts = []
    for rel in RELATIONS:
        for subject, answer in rel.pairs:
            x = _article(rel.name, subject)
            reply = _fill(rel.reply, x, answer)
            at = reply.find(answer, 0 if rel.reply.startswith("{y}") else len(rel.reply.split("{x}")[0]) + len(x))
            facts.append(
                Fact(
                    rel.name,
                    subject,
                    answer,
                    reply,
                    tuple(_fill(t, x) for t in rel.train + FACT_ASK[rel.name]),
                    tuple(_fill(t, x) for t in fresh.FACT_ASK[rel.name]),
                    reply[:at].rstrip() if at > 0 else "",
                )
            )
    for line in MISC:
        questions, reply, answer = line
        held = tuple(q for start, q in fresh.MISC_ASK.items() if reply.startswith(start))
        questions += tuple(MISC_ASK.get(reply, [])) + _echo(reply, answer)
        at = reply.lower().find(answer.lower())
        facts.append(Fact("misc", "", answer, reply, questions, held, reply[:at].rstrip() if at > 0 else ""))
    return facts


FACTS: list[Fact] = _build()
