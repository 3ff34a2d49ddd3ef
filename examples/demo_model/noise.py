"""Word noise: teaches the model to look at the words that matter and to ignore the rest.

A model of this size, trained from nothing, has never met most English words.  Putting
ordinary words where they carry no meaning makes it robust against them.
"""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import re
from random import Random

from examples.demo_model.words import _w

COMMON = _w("""
about, above, across, actually, afternoon, again, age, ago, ahead, alone, along, already, although, among, amount, another, any, anyone, anything, anyway, apart,
area, around, ask, asked, aunt, available, back, based, basic, basically, because, become, before, behind, believe, below, beside, besides, between, beyond, bit,
board, body, both, bottom, box, break, bring, brother, brought, build, building, business, but, call, came, can, cannot, card, care, careful, carry, case, catch, cause,
center, certain, chance, change, charge, check, child, choice, choose, circle, class, clear, clearly, close, collect, colleague, college, come, common, complete,
consider, contain, corner, correct, could, count, country, couple, course, cover, create, curious, current, customer, daily, data, daughter, deal, decide, deep,
describe, desk, detail, develop, did, difference, different, discover, discuss, distance, does, done, door, double, down, draw, drop, during, each, earlier, early,
edge, either, else, end, enough, entire, especially, even, evening, event, ever, every, everybody, exactly, example, expect, explain, extra, fact, fall, family, far,
father, feel, few, fill, final, finally, find, finish, floor, follow, following, form, former, forward, found, from, front, full, further, future, gave, general, get,
girl, give, given, glass, goes, gone, got, grade, grandmother, ground, group, grow, guess, had, half, hall, hand, happen, hardly, has, have, head, hear, heard, help,
here, hold, home, hour, however, human, hundred, husband, idea, imagine, important, include, indeed, inside, instead, interested, into, issue, item, itself, join, just, keep,
kept, key, kind, knew, know, known, lady, land, later, lead, learn, least, leave, led, left, less, lesson, let, letter, level, lie, life, like, line, list, listen,
little, local, long, look, lot, made, main, make, many, mark, matter, may, maybe, mean, means, meet, member, memory, mention, middle, might, mind, minute, moment,
month, more, morning, most, mother, move, much, must, myself, name, namely, natural, near, nearly, need, never, next, night, nobody, none, normal, normally, note,
nothing, notice, now, number, object, obvious, of course, off, offer, office, often, old, once, only, open, order, other, otherwise, our, out, outside, over, own,
page, pair, paper, parents, part, particular, pass, past, people, per, perhaps, period, person, phrase, picture, piece, place, plan, point, position, possible, practice,
prepare, present, probably, process, project, public, pupil, put, question, quickly, quiet, quiz, rather, reach, read, reading, ready, real, reason, recall, recently,
record, refer, regular, related, remember, remind, report, represent, rest, result, return, right, room, round, row, rule, said, same, saw, say, school, second, section,
see, seem, seems, seen, send, sense, sentence, separate, series, set, several, shall, share, sheet, short, should, show, shown, side, sign, similar, simple, simply, since,
single, sister, sit, size, small, some, somebody, someone, something, sometimes, somewhere, son, soon, sort, source, space, speak, special, spend, stand, start, state, stay,
step, still, stop, stopped, story, strange, street, student, study, subject, such, suddenly, suppose, sure, surely, system, table, take, taken, talk, task, tell, term, test,
than, that, their, them, then, there, therefore, these, they, thing, think, third, this, those, though, thought, through, time, today, together, told, tomorrow, tonight,
too, took, top, total, toward, town, trip, try, turn, turned, type, uncle, under, understand, unit, until, upon, use, used, using, usual, usually, various, very, view, visit,
voice, wait, walk, want, wanted, watch, way, week, weekend, well, went, were, what, whatever, when, where, whether, which, while, whole, why, wife, will, window, wish, with,
within, without, woman, wonder, wondering, word, work, world, would, write, written, year, yes, yesterday, yet, young
""")
PHRASES = _w("""
in this case, as far as I know, by the way, at least, for example, in general, of course, in the end, as you know, to be sure, after all, at the moment, in my opinion,
if I remember well, as we all know, at school, at work, in class, in a quiz, for homework, for my son, for my daughter, in a book, on the page, at first, this time, once again,
in other words, so far, all in all, from time to time, on the other hand, by now, in fact, as usual, without doubt, some people say, you might say, let us see, just now
""")
LEADS = [
    "My {r} asked me this: {x}", "In {n} class we had this question. {x}", "Here is something for you: {x}", "I was wondering, {x}", "A {r} of mine wants to know: {x}",
    "For a quiz: {x}", "Do you remember? {x}", "{x} I need it for {n}.", "{x} My {r} says you know it.", "Let me ask you. {x}", "This is about {n}. {x}", "{x} Think before you answer.",
    "Sorry to ask, but {x}", "I am looking for an answer. {x}", "{x} It is for my {r}.", "Next: {x}", "We talked about {n} at home. {x}", "Be so kind and answer: {x}",
]
RELATIVES = _w("brother, sister, mother, father, aunt, uncle, teacher, friend, neighbor, boss, son, daughter, cousin, grandmother, colleague, wife, husband, student")
SUBJECTS = _w("school, history, biology, physics, chemistry, geography, reading, English, homework, work, a game, an exam, a talk, science, a trip, a lesson, a story, art, language, a project")
_SLOT = re.compile(r"\S*{\w+}\S*|\S+")


def noise_words(rng: Random) -> str:
    """One to three ordinary words, or a set phrase."""
    if rng.random() < 0.35:
        return rng.choice(PHRASES)
    return " ".join(rng.choice(COMMON) for _ in range(rng.choice([1, 1, 2, 3])))


def insert(rng: Random, text: str) -> str:
    """Put a noise phrase at a word boundary, at the start or at the end."""
    words = text.split(" ")
    roll = rng.random()
    phrase = noise_words(rng)
    if roll < 0.3:
        return phrase[0].upper() + phrase[1:] + rng.choice([", ", " ", ": "]) + text
    if roll < 0.5:
        return text.rstrip(".?!") + rng.choice([", ", " "]) + phrase + (text[-1] if text[-1] in ".?!" else "")
    at = rng.randint(1, max(1, len(words) - 1))
    return " ".join([*words[:at], phrase, *words[at:]])


def swap(rng: Random, text: str, protect: re.Pattern[str]) -> str:
    """Replace one or two words that do not matter by ordinary words, or drop them."""
    words = text.split(" ")
    free = [i for i, word in enumerate(words) if not protect.search(word)]
    for i in rng.sample(free, min(len(free), rng.choice([1, 1, 2, 3]))):
        words[i] = "" if rng.random() < 0.35 else rng.choice(COMMON)
    return " ".join(word for word in words if word) or text


def ask_around(rng: Random, text: str) -> str:
    """Wrap a question in a lead-in."""
    lower = text[0].lower() + text[1:] if text.split()[0] in {"What", "Which", "Who", "How", "Where", "When"} else text
    lead = rng.choice(LEADS)
    x = lower if "but {x}" in lead or "wondering, {x}" in lead else text
    return lead.replace("{r}", rng.choice(RELATIVES)).replace("{n}", rng.choice(SUBJECTS)).replace("{x}", x)


def noisy_template(rng: Random, template: str) -> str:
    """Insert a noise phrase into a template, or replace a word, away from its slots."""
    parts = [*_SLOT.findall(template), ""]
    slot = ["{" in part for part in parts]
    places = [i for i in range(len(parts) - 1) if not slot[i] and (i == 0 or not slot[i - 1])]
    if not places:
        return template
    at = rng.choice(places)
    if rng.random() < 0.5 and not slot[at + 1] and parts[at][-1] not in ".,;:":
        parts[at] = rng.choice(COMMON)
    else:
        parts.insert(at, noise_words(rng))
    text = " ".join(parts).rstrip()
    if at == 0 and template[0] == template[0].upper():
        text = text[0].upper() + (text[1:] if "{" in template.split(" ")[0] else text[1:].replace(template.split(" ")[0], template.split(" ")[0].lower(), 1))
    return text
