"""Labelled sentences for the choice tasks: sentiment, topic, support category, urgency.

Training sentences are composed from lexicons and templates.  The held-out sentences at
the bottom of each section use templates that training never sees, some of them with held-out nouns.
"""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from random import Random

from examples.demo_model import fresh, more
from examples.demo_model.noise import insert
from examples.demo_model.words import _w

# ------------------------------------------------------------------ sentiment
THINGS = _w("""
movie, book, hotel, meal, service, phone, game, song, concert, restaurant, soup, pizza, laptop, film, show, trip, room,
staff, waiter, play, course, teacher, app, website, camera, jacket, coffee, cake, flight, tour, story, ending, music, bed,
food, dinner, lunch, breakfast, view, beach, museum, train ride, delivery, chair, printer, class, lesson, album, party,
weather, pasta, bread, driver, seat, keyboard, screen, battery, picture, sound, plot, acting, price, product, shop
""")
HELD_THINGS = _w("speaker, lamp, novel, buffet, burger, tablet, opera, cruise, headset, blanket, guide, mattress")
POS = _w("""
great, good, wonderful, excellent, amazing, fantastic, lovely, perfect, beautiful, brilliant, delightful, superb, nice,
awesome, terrific, charming, delicious, friendly, helpful, impressive, outstanding, enjoyable, pleasant, fun, fresh,
tasty, comfortable, clean, fast, reliable, funny, exciting, magnificent, remarkable, splendid, warm, kind, smart, cozy,
worth every penny, better than I hoped, a real joy, a pleasure, first class
""")
NEG = _w("""
bad, terrible, awful, horrible, poor, disappointing, boring, dreadful, ugly, nasty, rude, dirty, slow, broken, useless,
annoying, weak, cold and tasteless, unfriendly, noisy, painful, sad, stupid, disgusting, bland, cheap and ugly, faulty,
unpleasant, frustrating, lazy, late and cold, confusing, unreliable, a waste of money, a waste of time, a big mistake,
worse than I feared, far too expensive, dull, mediocre, gross, unacceptable, a mess, a disaster
""")
POS_VP = _w("""
loved it, enjoyed every minute, was very happy with it, would buy it again, will come back, smiled the whole time,
recommend it to everyone, had a great time, could not be happier, laughed a lot, felt at home, am very pleased,
was delighted, am so glad I chose it, really like it, adore it
""")
NEG_VP = _w("""
hated it, want my money back, was very unhappy with it, would never buy it again, will not come back, fell asleep,
warn everyone about it, had an awful time, could not be more upset, regret it, felt cheated, am very angry,
was disappointed, am sorry I chose it, really dislike it, left early
""")
POS_T = [
    "The {t} was {a}.", "This {t} is {a}!", "What a {s} {t}!", "I {v}. The {t} was {a}.", "The {t} was {a} and the {u} was {b}.",
    "I think the {t} is {a}.", "We found the {t} {a}.", "Such a {s} {t}, I {v}.", "Really {a}. I {v}.", "I {v}!",
    "My {t} is {a}, and I {v}.", "The {t} we had was {a}.", "Everything was {a}, above all the {t}.", "Simply {a}!",
    "A {s} {t}. I {v}.", "Very {s} {t}.", "My family and I {v}; the {u} was {a}.", "It was a {s} {t}.",
    "I must say that the {t} was {a}.", "The {u} was {a} too. I {v}.", "To be honest, the {t} was {a}.",
    "I bought this {t} last week and it is {a}.", "The {t} looked {a} and I {v}.",
]
HELD_SENT_T = [
    "Our {t} turned out {a}.", "Honestly, I {v} after seeing the {t}.", "For me this {t} was {a} from start to end.",
    "You should know: the {t} is {a}.", "Last night we tried the {t}; it was {a}, and so was the {u}.",
    "I cannot believe how {s} this {t} is.",
]
NEUTRAL_T = [
    "The {t} arrived on {d}.", "The {t} is in the box.", "I bought the {t} on {d}.", "The {t} starts at {h}.", "We saw the {t} on {d}.",
    "The {t} has a blue cover.", "The {t} costs {n} dollars.", "There is a {t} on the table.", "The {t} is next to the {u}.",
    "The {t} comes with a {u}.", "This {t} was made in {y}.", "The {t} lasts {n} minutes.", "We will pick up the {t} at {h}.",
    "It is a {t} for two people.", "The {t} weighs {n} kilos.", "My brother has the same {t}.", "The {t} is on the second floor.",
    "They moved the {t} to {d}.", "The {t} was paid by card.", "She asked about the {t} and the {u}.", "I have one {t} and one {u}.",
    "The {t} opens on {d} at {h}.", "The order includes a {t}.", "He told me that the {t} is from {y}.", "The {t} is of average size.",
    "The {t} was okay, neither good nor bad.", "The {t} is a {t}, nothing more.", "It was an average {t}.",
]
HELD_NEUTRAL_T = ["On {d} they delivered the {t}.", "The {t} stands beside the {u} in the hall.", "You can get the {t} after {h}.",
                  "They sold the {t} in {y}.", "Our {t} is the one near the {u}.", "The {t} has {n} parts."]


def _single(words: list[str]) -> list[str]:
    return [w for w in words if " " not in w]


def sentiment(rng: Random, held: bool = False) -> tuple[str, str]:
    """Return one (sentence, label); held-out templates and partly held-out nouns when ``held``."""
    label = rng.choice(["positive", "negative", "neutral"])
    things = HELD_THINGS + THINGS[:12] if held else THINGS
    t, u = rng.sample(things, 2)
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    if label == "neutral":
        tpl = rng.choice(HELD_NEUTRAL_T if held else NEUTRAL_T)
        text = tpl.format(t=t, u=u, d=rng.choice(days), h=f"{rng.randint(1, 12)}:{rng.choice(['00', '15', '30', '45'])}",
                          n=rng.randint(2, 99), y=rng.randint(1960, 2024))
    else:
        adj, vps, other = (POS, POS_VP, NEG) if label == "positive" else (NEG, NEG_VP, POS)
        tpl = rng.choice(HELD_SENT_T if held else POS_T)
        a, b = rng.sample(adj, 2)
        if not held and rng.random() < 0.12:  # negation flips single adjectives
            a = "not " + rng.choice(["", "very ", "at all "]) + rng.choice(_single(other))
        elif rng.random() < 0.3:
            a = rng.choice(["very", "really", "so", "quite", "truly"]) + " " + rng.choice(_single(adj))
        text = tpl.format(t=t, u=u, a=a, b=b, s=rng.choice(_single(adj)), v=rng.choice(vps))
    if not held and rng.random() < 0.35:
        text = insert(rng, text)
    if not held and rng.random() < 0.15:
        text = rng.choice([f"{t.capitalize()}: ", "My review: ", "Hi, ", "Well, ", "Update: "]) + text
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text[0].upper() + text[1:], label


# ------------------------------------------------------------------ topic
TOPICS: dict[str, list[str]] = {
    "sports": _w("""match, team, goal, coach, player, stadium, tennis, football, race, championship, ball, score, referee,
        tournament, runner, medal, league, swimmer, basketball, training, striker, marathon, final, hockey, title"""),
    "cooking": _w("""recipe, oven, soup, flour, butter, onion, garlic, pan, sauce, salt, dough, dish, pepper, chef, kitchen, cake,
        stew, spice, pasta, cheese, eggs, salad, roast, pot, cream"""),
    "music": _w("""song, guitar, concert, band, piano, melody, singer, album, violin, drums, orchestra, choir, rhythm, tune, chord,
        composer, lyrics, symphony, trumpet, notes, jazz, stage, chorus, opera, flute"""),
    "weather": _w("""rain, snow, storm, wind, cloud, sunshine, temperature, forecast, fog, thunder, lightning, frost, hail, heat wave,
        degrees, shower, drizzle, hurricane, ice, sky, humidity, blizzard, breeze, flood, cold front"""),
    "travel": _w("""flight, hotel, airport, passport, suitcase, tour, train, beach, ticket, journey, luggage, map, tourist, cruise,
        border, visa, vacation, island, museum, guide, hostel, boarding pass, souvenir, road trip, harbor"""),
    "science": _w("""experiment, atom, cell, laboratory, telescope, theory, physics, planet, molecule, gene, researcher, microscope,
        chemistry, energy, galaxy, electron, fossil, biology, gravity, particle, protein, hypothesis, comet, bacteria, magnet"""),
    "health": _w("""doctor, hospital, medicine, fever, patient, nurse, vaccine, headache, surgery, clinic, disease, pill, blood pressure,
        diet, exercise, cough, heart, sleep, pain, therapy, infection, vitamin, allergy, symptom, flu"""),
    "money": _w("""bank, loan, price, tax, salary, budget, market, stock, interest, savings, debt, investor, credit card, profit, cost,
        insurance, mortgage, currency, account, dividend, invoice, shares, inflation, fund, payment"""),
    "technology": _w("""computer, software, phone, app, internet, robot, chip, laptop, website, program, server, battery, network, code,
        screen, update, password, data, camera, keyboard, cloud service, browser, sensor, processor, gadget"""),
    "animals": _w("""dog, cat, horse, lion, zoo, puppy, bird, elephant, fish, cow, kitten, rabbit, farm, paw, tail, nest, owl, wolf,
        bear, sheep, tiger, parrot, feathers, monkey, whale"""),
    "movies": _w("""film, actor, director, scene, cinema, script, trailer, hero, plot, actress, sequel, comedy, popcorn, studio, drama,
        audience, thriller, screenplay, premiere, villain, cartoon, cast, stunt, film festival"""),
    "politics": _w("""election, president, vote, minister, parliament, law, party leader, senator, campaign, government, mayor, debate,
        treaty, reform, congress, candidate, poll, policy, embassy, council, citizen, ballot, constitution, prime minister, protest"""),
}
TOPIC_T = [
    "We talked about the {a} and the {b}.", "The {a} was next to the {b}.", "She wrote about the {a} all day.",
    "Everyone was waiting for the {a}.", "The {a} changed the {b} completely.", "He knows a lot about the {a} and the {b}.",
    "There was a problem with the {a}.", "The {a} surprised us, and so did the {b}.", "My sister likes the {a}.",
    "The news is about the {a}.", "I read that the {a} and the {b} belong together.", "Did you see the {a}?",
    "Yesterday the {a} came before the {b}.", "A new {a} was shown today.", "After the {a}, we looked at the {b}.",
    "Without the {a}, there is no {b}.", "They showed us the {a}, the {b} and the {c}.", "It is all about {a}, {b} and {c}.",
    "The {a} is better this year.", "People say the {b} needs a good {a}.", "The {a}: what you need to know.",
    "Please check the {a} before the {b}.", "The first {a} of the week is here.", "What do you think of the {a}?",
]
HELD_TOPIC_T = [
    "Nobody expected the {a} to be linked with the {b}.", "This article explains the {a}, then turns to the {b}.",
    "Our main story today: a {a} and a {b}.", "For years he dreamed of the {a} and the {c}.",
    "The report has two parts, the {a} and the {b}.", "Half of the page deals with the {a}.",
]
TOPIC_SENT: dict[str, list[str]] = {
    "sports": ["The team won the match in the last minute.", "The runner broke the record and won a medal.", "The coach was proud of her players.",
               "He scored two goals in the final."],
    "cooking": ["Chop the onion and fry it in butter.", "Bake the cake for forty minutes.", "Add salt and pepper to the soup.",
                "Mix the flour with two eggs."],
    "music": ["The band played three new songs.", "She practices the piano every day.", "The choir sang in the old church.", "The guitar is out of tune."],
    "weather": ["It will rain tomorrow with strong wind.", "Heavy snow fell during the night.", "The temperature drops below zero.",
                "The sky is clear and sunny."],
    "travel": ["Our flight to the island leaves at noon.", "We booked a hotel near the beach.", "Do not forget your passport.",
               "They took the train along the coast."],
    "science": ["The researcher looked at the cell under a microscope.", "A new planet was found with the telescope.",
                "The experiment proved the theory.", "Atoms form molecules."],
    "health": ["The doctor gave the patient some medicine.", "Drink tea and rest if you have a fever.", "The nurse checked my blood pressure.",
               "A cough can be a symptom of flu."],
    "money": ["The bank raised the interest on loans.", "I paid the tax from my savings.", "The stock market fell today.", "Her salary covers the rent."],
    "technology": ["The new phone has a better battery.", "Please update the software on your computer.", "The website was down for an hour.",
                   "He writes code for a robot."],
    "animals": ["The dog chased the cat around the garden.", "Owls hunt at night.", "The lion slept in the shade.", "The horse ate some grass."],
    "movies": ["The actor played the hero in the film.", "The director cut the last scene.", "We ate popcorn at the cinema.", "The sequel has a weak plot."],
    "politics": ["The president signed the new law.", "Voters go to the polls on Sunday.", "The minister lost the election.", "The mayor spoke to the council."],
}
HELD_TOPIC_SENT: dict[str, list[str]] = {
    "sports": ["Two players were hurt before the final match.", "The stadium was full when the striker scored."],
    "cooking": ["Stir the sauce in a hot pan with some garlic.", "Leave the dough to rest, then heat the oven."],
    "music": ["The orchestra opened the concert with a slow melody.", "His album has a singer, drums and a flute."],
    "weather": ["The forecast says fog in the morning and a storm at night.", "Hail and thunder came with the cold front."],
    "travel": ["At the airport our luggage was lost.", "The tourist bought a ticket and a map."],
    "science": ["In the laboratory they measured the energy of an electron.", "The fossil tells us how the gene changed."],
    "health": ["After the surgery he stayed in the hospital for a week.", "The clinic offers a vaccine against the infection."],
    "money": ["The investor moved all shares into a fund.", "With this budget we can pay the debt and the mortgage."],
    "technology": ["The server needs a faster processor and more data.", "My laptop forgot the password of the network."],
    "animals": ["A parrot and a monkey live at the zoo.", "The wolf followed the sheep to the farm."],
    "movies": ["The actress smiled at the premiere of the thriller.", "A villain without a good script makes a dull comedy."],
    "politics": ["The candidate promised a reform in the debate.", "The parliament voted on the treaty with a narrow result."],
}


def topic(rng: Random, held: bool = False) -> tuple[str, str]:
    """Return one (sentence, topic label)."""
    label = rng.choice(list(TOPICS))
    if rng.random() < (0.4 if held else 0.15):
        return rng.choice((HELD_TOPIC_SENT if held else TOPIC_SENT)[label]), label
    a, b, c = rng.sample(TOPICS[label], 3)
    text = rng.choice(HELD_TOPIC_T if held else TOPIC_T).format(a=a, b=b, c=c)
    if not held and rng.random() < 0.3:
        text += " " + rng.choice(TOPIC_T).format(**dict(zip("abc", rng.sample(TOPICS[label], 3), strict=True)))
    if not held and rng.random() < 0.25:
        text = insert(rng, text)
    return text, label


# ------------------------------------------------------------------ support category and urgency
INTENTS: dict[str, tuple[list[str], list[str]]] = {
    "billing": ([
        "I was charged twice for my order.", "My invoice has the wrong amount.", "Please refund my payment.", "Why did the price on my bill change?",
        "My credit card was charged by mistake.", "I want my money back for this month.", "The invoice is missing.",
        "I paid but the payment is not shown.", "How much do I owe?", "You charged the wrong card.", "I need a receipt for my payment."],
        ["There are two payments on my credit card.", "The amount on the bill is wrong.", "I still wait for my refund."]),
    "shipping": ([
        "My package has not arrived.", "Where is my order?", "The delivery is late.", "The parcel was sent to the wrong address.",
        "When will my package be delivered?", "The box was damaged during delivery.", "Can I track my parcel?", "Please ship it faster.",
        "The courier left the package outside.", "My order was shipped to another city.", "I want to change the delivery address."],
        ["The parcel is three days late.", "My package was delivered to a neighbour.", "Can you tell me when the order arrives?"]),
    "technical": ([
        "The app crashes when I open it.", "The screen stays black.", "I get an error message.", "The website does not load.",
        "The software is very slow.", "The update failed.", "My device does not turn on.", "The button does not work.",
        "There is a bug in the program.", "The sound is broken in the app.", "It freezes after the update."],
        ["The program shows an error and stops.", "After the update the screen is black.", "Your app does not open on my phone."]),
    "account": ([
        "I forgot my password.", "I cannot log in.", "How do I change my email address?", "Please delete my account.",
        "My account is locked.", "I want to change my user name.", "The login page says my password is wrong.", "How do I create an account?",
        "Somebody else used my account.", "I need to reset my password.", "Please close my profile."],
        ["My login does not work with the new password.", "How can I delete my profile?", "The account is locked and I cannot log in."]),
}
URGENT: dict[str, tuple[list[str], list[str]]] = {
    "high": (["Please call me right now!", "The server is down and we are losing money!", "There is smoke in the building!", "We need help immediately.",
              "This must be fixed today.", "It is an emergency.", "Nothing works, please hurry!", "Answer at once, the water is rising.",
              "All customers are blocked, act now!", "I need this as soon as possible."],
             ["Help immediately, nothing works!", "This is an emergency, please hurry."]),
    "low": (["There is no hurry.", "Just a small idea for next year.", "When you have time, look at the color of the logo.", "Take your time.",
             "It can wait until next month.", "A minor typo is on the last page.", "I was only wondering about the name.",
             "Whenever it suits you, send the photo.", "This is not important.", "You can answer next week."],
            ["It is not important and can wait.", "Look at this small typo when you have time."]),
}
_GREET = ["", "", "", "Hello, ", "Hi. ", "Dear team, ", "Good morning. "]


def intent(rng: Random, held: bool = False) -> tuple[str, str]:
    """Return one (message, support category)."""
    label = rng.choice(list(INTENTS))
    text = rng.choice(INTENTS[label][int(held)])
    if not held and rng.random() < 0.4:
        text = insert(rng, text)
    return rng.choice(_GREET) + text, label


def urgency(rng: Random, held: bool = False) -> tuple[str, str]:
    """Return one (message, urgency)."""
    label = rng.choice(list(URGENT))
    text = rng.choice(URGENT[label][int(held)])
    if not held and rng.random() < 0.3:
        text = insert(rng, text)
    return rng.choice(_GREET) + text, label


SENTIMENT_ASK = [
    "What is the sentiment of this text: positive, negative or neutral?\n\n{x}", "Classify the sentiment: {x}",
    "Is this review positive, negative or neutral?\n{x}", "Sentiment of this sentence: {x}", "{x}\n\nWhat is the sentiment?",
    "Review: {x}\nSentiment (positive, negative, neutral):", "Text: {x}\nSentiment:", "Label the sentiment of the review.\n\nReview: {x}",
    "Decide if the following review is positive, negative or neutral.\n\n{x}", "Sentiment? {x}", "How does the writer feel? {x}",
    'What is the sentiment of "{x}"?', "Choose one of positive, negative, neutral for this text.\n{x}",
    "Read the review and give its sentiment.\n{x}", "Classify this review as positive, negative or neutral: {x}",
]
SENTIMENT_ASK_HELD = ["Tell me the sentiment of the following customer review.\n\n{x}", "Here is a review. {x} Which sentiment does it have?",
                      "Is the next sentence positive, negative or neutral? {x}"]
TOPIC_ASK = [
    "What is the topic of this text?\n\n{x}", "Classify the topic: {x}", "Topic of this sentence: {x}", "{x}\n\nWhat is the topic?",
    "What is this text about: {o}?\n{x}", "Choose the topic from: {o}.\n\nText: {x}", "Text: {x}\nTopic:", "Topic? {x}",
    "Which topic fits best ({o})?\n{x}", "Options: {o}\nText: {x}\nTopic:", "Classify the text into one of these topics: {o}.\n\n{x}",
    "Read the sentence and choose a topic.\n{x}", 'What is "{x}" about? Options: {o}', "Label this headline with a topic: {x}",
]
TOPIC_ASK_HELD = ["Pick the best topic for the following text from this list: {o}.\n\n{x}", "Here is a sentence. {x} Which topic does it have?",
                  "Sort this sentence under one topic ({o}): {x}"]
INTENT_ASK = ["Which category fits this message: {o}?\n{x}", "Classify the support message ({o}): {x}", "Category ({o})? {x}",
              "Message: {x}\nCategory:", "A customer writes: {x}\nChoose a category: {o}.", "Route this ticket to one of {o}.\n\n{x}",
              "Ticket: {x}\nDepartment ({o}):"]
INTENT_ASK_HELD = ["Decide which department should read this message ({o}): {x}", "Sort this ticket into {o}.\n{x}"]
URGENCY_ASK = ["How urgent is this message: high or low?\n{x}", "Urgency ({o})? {x}", "Message: {x}\nUrgency:",
               "Rate the urgency of this message as high or low.\n{x}", "Is the urgency high or low? {x}"]
URGENCY_ASK_HELD = ["Give the urgency of this message, high or low: {x}"]
POS_T += more.SENTIMENT
NEUTRAL_T += more.NEUTRAL
TOPIC_T += more.TOPIC
SENTIMENT_ASK += more.SENTIMENT_ASK
TOPIC_ASK += more.TOPIC_ASK
for _label, _extra in more.INTENT.items():
    INTENTS[_label][0].extend(_extra)
HELD_SENT_T, HELD_NEUTRAL_T, HELD_TOPIC_T = fresh.SENTIMENT, fresh.NEUTRAL, fresh.TOPIC
for _label, _held in fresh.INTENT.items():
    INTENTS[_label][1][:] = _held
for _label, _held in fresh.URGENT.items():
    URGENT[_label][1][:] = _held
TASKS = {
    "sentiment": (sentiment, ["positive", "negative", "neutral"], SENTIMENT_ASK, SENTIMENT_ASK_HELD, "Sentiment"),
    "topic": (topic, list(TOPICS), TOPIC_ASK, TOPIC_ASK_HELD, "Topic"),
    "category": (intent, list(INTENTS), INTENT_ASK, INTENT_ASK_HELD, "Category"),
    "urgency": (urgency, list(URGENT), URGENCY_ASK, URGENCY_ASK_HELD, "Urgency"),
}
