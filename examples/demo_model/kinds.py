"""Record kinds for the extraction tasks: fields, sentence parts and question phrasings.

``preds`` are predicates that follow the subject of a sentence, ``whole`` are complete
sentences.  Each comes as a (training, held-out) pair of lists; the held-out ones appear in
the evaluation only.  Value generators live in ``records.py``.
"""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

from dataclasses import dataclass

from examples.demo_model import fresh, more


@dataclass(frozen=True)
class Kind:
    """One record kind; ``fields[0]`` is the key, mentioned first."""

    name: str
    fields: list[str]
    numbers: set[str]
    intro: list[str]
    again: list[str]
    preds: dict[str, tuple[list[str], list[str]]]
    whole: tuple[list[str], list[str]]
    ask: dict[str, tuple[list[str], list[str]]]


KINDS: dict[str, Kind] = {
    "person": Kind(
        "person", ["name", "age", "city", "job"], {"age"},
        ["{name}", "{name}", "My friend {name}", "Our neighbor {name}", "A woman named {name}", "A man called {name}", "My cousin {name}"],
        ["She", "He", "This person"],
        {
            "age": (["is {age} years old", "is {age}", "turned {age} last week", "just turned {age}", "is now {age} years of age",
                     "will stay {age} until May", "has reached the age of {age}", "is aged {age}"],
                    ["celebrated birthday number {age}", "is already {age} years old"]),
            "city": (["lives in {city}", "is from {city}", "moved to {city}", "comes from {city}", "has a flat in {city}", "stays in {city}",
                      "is based in {city}", "has a house in {city}"], ["calls {city} home", "has lived in {city} since 2010"]),
            "job": (["works as a {job}", "is a {job}", "has a job as a {job}", "earns money as a {job}", "became a {job}", "is working as a {job}",
                     "is employed as a {job}"], ["found work as a {job}", "makes a living as a {job}"]),
        },
        (["{name} is {age} years old and lives in {city}.", "{name}, {age}, is a {job} from {city}.", "{name} ({age}) lives in {city}.",
          "In {city} there is a {job} named {name}, who is {age}.", "Meet {name}, a {age}-year-old {job} from {city}.",
          "The {job} {name} is {age} and comes from {city}.", "{name}, a {job} in {city}, is {age} years old.",
          "At the age of {age}, {name} works as a {job} in {city}.", "{city} is the home of {name}, who is {age}.",
          "I am {name}, I am {age} and I live in {city}.", "My name is {name}. I am a {job} in {city} and I am {age}.",
          "{name} | {age} | {city} | {job}", "name: {name}, age: {age}, city: {city}", "Hi, I'm {name} from {city}, {age} years old."],
         ["This is {name} from {city}, aged {age}, a {job}.", "We hired {name}, {age}, from {city} as a {job}.",
          "Say hello to {name}, who is {age} years old and lives in {city}.", "Last year {name} moved to {city} to work as a {job} at age {age}.",
          "My teacher is {name}. {name} is {age} years old, from {city}."]),
        {
            "name": (["What is the name of the person?", "Who is the text about?", "What is the person called?"], ["Which person is it about?"]),
            "age": (["How old is {k}?", "What is the age of {k}?", "What is {k}'s age?", "Tell me the age of {k}."], ["Which age does {k} have?"]),
            "city": (["Where does {k} live?", "Which city is {k} in?", "What is the city of {k}?", "In which city does {k} live?"],
                     ["What city does {k} live in?"]),
            "job": (["What is the job of {k}?", "What does {k} do for a living?", "What is {k}'s job?", "Which job does {k} have?"],
                    ["What work does {k} do?"]),
        }),
    "pet": Kind(
        "pet", ["name", "kind", "age"], {"age"},
        ["{name}", "Our pet {name}", "My pet {name}", "Little {name}"], ["It", "This pet", "She", "He"],
        {
            "kind": (["is a {kind}", "is our {kind}", "is a lovely {kind}", "is a brown {kind}", "happens to be a {kind}"],
                     ["is the cutest {kind} in town", "is a tiny {kind}"]),
            "age": (["is {age} years old", "is {age}", "turned {age} this month", "has lived for {age} years", "is about {age} years old"],
                    ["will be {age} years old today", "is only {age} years old"]),
        },
        (["My {kind} {name} is {age} years old.", "We have a {kind} called {name}, who is {age}.", "{name} is a {age}-year-old {kind}.",
          "{name} the {kind} is {age} years old.", "I have a {kind}. Its name is {name} and it is {age}.",
          "Our {age}-year-old {kind} is named {name}.", "A {kind} named {name}, {age}, lives with us.", "{name}, {kind}, age {age}"],
         ["The {kind} of my aunt is called {name} and is {age} years old.", "At home a {kind} waits for me: {name}, {age} years old.",
          "They adopted {name}, a {kind} of {age} years.", "Have you met our {kind} {name}? It is {age} years old."]),
        {
            "name": (["What is the name of the pet?", "What is the pet called?"], ["Which name does the pet have?"]),
            "kind": (["What kind of pet is {k}?", "What kind of animal is {k}?", "What is the kind of {k}?"], ["Which kind of pet is {k}?"]),
            "age": (["How old is {k}?", "What is the age of {k}?", "What is {k}'s age?"], ["Which age does {k} have?"]),
        }),
    "order": Kind(
        "order", ["item", "quantity", "price"], {"quantity", "price"},
        ["The order for {item}", "The box with {item}", "The delivery of {item}", "My order of {item}"], ["It", "The order", "This order"],
        {
            "quantity": (["has {quantity} pieces", "contains {quantity} units", "is for {quantity} pieces", "has a quantity of {quantity}",
                          "comes with {quantity} of them", "includes {quantity} pieces"], ["holds {quantity} units", "adds up to {quantity} pieces"]),
            "price": (["costs {price} dollars", "costs ${price}", "has a price of {price}", "was sold for {price} dollars", "is priced at ${price}",
                       "cost us {price} euros"], ["goes for {price} dollars", "was paid with {price} dollars"]),
        },
        (["I ordered {quantity} {item} for {price} dollars.", "Please send {quantity} {item} at ${price}.", "{quantity} {item} cost {price} dollars.",
          "We bought {quantity} {item} for ${price}.", "She paid {price} dollars for {quantity} {item}.", "Order: {quantity} x {item}, {price} each.",
          "He wants {quantity} {item}. The price is {price} dollars.", "{item}: {quantity} pieces, {price} dollars",
          "The shop sold {quantity} {item} for a price of {price} euros.", "I would like to buy {quantity} {item}; I can pay {price} dollars.",
          "The {item} cost ${price} and we need {quantity}.", "For {price} dollars you get {quantity} {item}."],
         ["Could you ship {quantity} {item} for {price} dollars?", "Our school needs {quantity} {item}, at a price of {price} dollars.",
          "Mia got {quantity} {item} and paid {price} dollars.", "The invoice lists {quantity} {item} for ${price}.",
          "They charged {price} dollars for {quantity} {item}."]),
        {
            "item": (["What was ordered?", "What is the item?", "Which item is it?"], ["Which item is in the order?"]),
            "quantity": (["How many {k} are there?", "What is the quantity of {k}?", "How many {k} were ordered?"], ["How many {k} are in the order?"]),
            "price": (["What is the price of the {k}?", "How much do the {k} cost?", "What do the {k} cost?"], ["How much money are the {k}?"]),
        }),
    "meeting": Kind(
        "meeting", ["who", "day", "time", "place"], set(),
        ["The meeting with {who}", "My appointment with {who}", "The call with {who}", "The talk with {who}", "Lunch with {who}"],
        ["It", "The meeting", "This meeting"],
        {
            "day": (["is on {day}", "takes place on {day}", "will be on {day}", "was moved to {day}", "is set for {day}"],
                    ["falls on {day}", "is planned for {day}"]),
            "time": (["starts at {time}", "begins at {time}", "is at {time}", "will start at {time}", "is due at {time}"],
                     ["kicks off at {time}", "gets going at {time}"]),
            "place": (["is in {place}", "will be held in {place}", "happens at {place}", "takes place in {place}", "is going to be at {place}"],
                      ["was moved to {place}", "can be found at {place}"]),
        },
        (["Meet {who} on {day} at {time} in {place}.", "{who} will meet us on {day} at {time} at {place}.", "On {day} at {time} I see {who} in {place}.",
          "We meet {who} at {place} on {day}, {time}.", "Please come to {place} at {time} on {day} to meet {who}.",
          "{day}, {time}: meeting with {who} at {place}.", "{who} has time on {day} at {time}. The place is {place}.",
          "Let us talk with {who} in {place} at {time} on {day}.", "There is a meeting with {who} at {time} on {day} in {place}.",
          "{who} invited me to {place} on {day} at {time}."],
         ["Do not forget to see {who} on {day} at {time} in {place}.", "{who} asked for a meeting on {day}, {time}, at {place}.",
          "I wrote down: {who}, {day} at {time}, {place}.", "You will find {who} in {place} this {day} at {time}."]),
        {
            "who": (["Who is the meeting with?", "Whom do we meet?"], ["With whom is the meeting?"]),
            "day": (["On which day is the meeting with {k}?", "What day is the meeting with {k}?", "When do we meet {k}? Give the day."],
                    ["Which day is the meeting with {k}?"]),
            "time": (["At what time is the meeting with {k}?", "What time does the meeting with {k} start?", "What is the time of the meeting with {k}?"],
                     ["At which time do we meet {k}?"]),
            "place": (["Where is the meeting with {k}?", "What is the place of the meeting with {k}?", "Where do we meet {k}?"],
                      ["At which place is the meeting with {k}?"]),
        }),
    "book": Kind(
        "book", ["title", "author", "year"], {"year"},
        ["{title}", "The book {title}", "The novel {title}", 'The story "{title}"', "My favorite book {title}"], ["It", "The book", "This book"],
        {
            "author": (["was written by {author}", "is by {author}", "is a book by {author}", "is the work of {author}", "comes from {author}"],
                       ["is a novel of the writer {author}", "was created by {author}"]),
            "year": (["came out in {year}", "was published in {year}", "is from {year}", "was printed in {year}", "appeared in {year}"],
                     ["reached the shops in {year}", "was first read in {year}"]),
        },
        (["{author} wrote {title} in {year}.", "{title} by {author} came out in {year}.", 'In {year}, {author} published "{title}".',
          "{title} ({year}) is a book by {author}.", "I read {title}, written by {author} in {year}.", "{title}, {author}, {year}",
          "The author {author} finished {title} in {year}.", "Have you read {title}? {author} wrote it in {year}.",
          "{author} is known for {title}, a novel from {year}.", "The library has {title} by {author} from {year}."],
         ["Since {year} people have loved {title} by {author}.", "My mother gave me {title}, which {author} published in {year}.",
          "{author} became famous in {year} with the book {title}.", "The best book of {year} was {title} by {author}."]),
        {
            "title": (["What is the title of the book?", "Which book is it?"], ["What title does the book have?"]),
            "author": (["Who wrote {k}?", "Who is the author of {k}?", "What is the name of the author of {k}?"], ["By whom is {k}?"]),
            "year": (["When did {k} come out?", "In which year was {k} published?", "What is the year of {k}?"], ["From which year is {k}?"]),
        }),
    "contact": Kind(
        "contact", ["name", "email", "phone"], set(),
        ["{name}", "{name}", "Our contact {name}", "The manager {name}"], ["She", "He", "This person"],
        {
            "email": (["can be reached at {email}", "has the email {email}", "uses the address {email}", "answers mail at {email}", "writes from {email}"],
                      ["reads messages sent to {email}", "has the mail address {email}"]),
            "phone": (["has the phone number {phone}", "can be called at {phone}", "has the number {phone}", "answers the phone at {phone}",
                       "uses the number {phone}"], ["picks up at {phone}", "gave us the phone number {phone}"]),
        },
        (["{name}: {email}, {phone}", "Write to {name} at {email} or call {phone}.", "Contact {name} by email at {email} or by phone at {phone}.",
          "You can reach {name} at {email} or {phone}.", "{name} ({email}) has the number {phone}.", "For questions ask {name}, {email}, phone {phone}.",
          "Call {name} at {phone}. The email is {email}.", "Email of {name}: {email}. Phone: {phone}.", "My name is {name}, my email is {email} and my phone is {phone}."],
         ["Please send the file to {name} ({email}) and ring {phone}.", "If you need help, {name} is at {phone}, or write to {email}.",
          "Best wishes, {name}. Mail: {email}. Tel: {phone}."]),
        {
            "name": (["What is the name of the contact?", "Who is the contact?"], ["Which name does the contact have?"]),
            "email": (["What is the email of {k}?", "What is {k}'s email address?", "How can I write to {k}?"], ["Which email does {k} have?"]),
            "phone": (["What is the phone number of {k}?", "What is {k}'s phone number?", "Which number do I call for {k}?"],
                      ["Which phone number does {k} have?"]),
        }),
    "shop": Kind(
        "shop", ["name", "kind", "street", "owner", "year", "opens", "closes", "special"], {"year"},
        ["{name}", "The {kind} {name}", "A {kind} called {name}"], ["It", "The place", "This place"],
        {
            "kind": (["is a {kind}", "is a small {kind}", "is a popular {kind}"], ["is the oldest {kind} of the town"]),
            "street": (["stands on {street}", "is on {street}", "lies on {street}", "can be found on {street}"], ["sits at the end of {street}"]),
            "owner": (["belongs to {owner}", "is owned by {owner}", "is run by {owner}", "has an owner called {owner}"], ["is in the hands of the owner {owner}"]),
            "year": (["opened its doors in {year}", "was founded in {year}", "has been there since {year}", "was built in {year}"], ["dates from {year}"]),
            "opens": (["opens at {opens}", "opens every day at {opens}", "unlocks its doors at {opens}"], ["is open from {opens}"]),
            "closes": (["closes at {closes}", "shuts at {closes}", "stays open until {closes}"], ["closes its doors at {closes}"]),
            "special": (["is known for its {special}", "is famous for its {special}", "serves {special}", "is loved for its {special}"],
                        ["offers {special} to its guests"]),
        },
        (["{name} is a {kind} on {street}. The owner is {owner}.", "Since {year}, {owner} has run the {kind} {name} on {street}.",
          "{owner} opened {name}, a {kind}, in {year}."], ["In {year}, {owner} started the {kind} {name} on {street}."]),
        {
            "name": (["What is the name of the place?", "What is the place called?"], ["Which place is it about?"]),
            "kind": (["What kind of place is {k}?", "What is {k}?"], ["Which kind of place is {k}?"]),
            "street": (["On which street is {k}?", "What is the street of {k}?", "Where is {k}?"], ["Which street is {k} on?"]),
            "owner": (["Who owns {k}?", "Who is the owner of {k}?", "What is the name of the owner of {k}?"], ["To whom does {k} belong?"]),
            "year": (["When was {k} founded?", "In which year did {k} open?", "What year is {k} from?"], ["From which year is {k}?"]),
            "opens": (["When does {k} open?", "At what time does {k} open?", "What time does {k} open?"], ["From what time is {k} open?"]),
            "closes": (["When does {k} close?", "At what time does {k} close?", "What time does {k} close?"], ["Until what time is {k} open?"]),
            "special": (["What is {k} known for?", "What is the special of {k}?", "What does {k} serve?"], ["What is {k} famous for?"]),
        }),
}

for _name, _kind in KINDS.items():
    for _field, _extra in more.PREDS[_name].items():
        _kind.preds[_field][0].extend(_extra)
    for _field, _extra in more.ASK[_name].items():
        _kind.ask[_field][0].extend(_extra)
    _kind.whole[0].extend(more.WHOLE[_name])
    _kind.whole[1][:] = fresh.WHOLE[_name]
    for _field, (_, _held) in _kind.preds.items():
        _held[:] = fresh.PREDS[_name][_field]
    for _field, (_, _held) in _kind.ask.items():
        _held[:] = fresh.ASK[_name][_field]

# Prompts: {x} the text, {f} the fields in words, {q} quoted keys, {s} a shape, {k} the kind.
JSON_ASK = [
    "Extract {f} from the text as JSON.\n\n{x}", "{x}\n\nReturn a JSON object with the keys {q}.",
    "Read the sentence and fill in this JSON: {s}\nSentence: {x}", "Turn this into JSON with {f}: {x}",
    "Text: {x}\nJSON with {q}:", "Extract the {k} as JSON like {s}.\n{x}", "Extract the {k} as JSON: {s}\n\n{x}",
    "Give {f} as JSON. Text: {x}", "{x}\n\nExtract the {k} in this shape: {s}", "Convert to JSON {s}:\n{x}",
    "Make a JSON object ({f}) for this {k}.\n{x}", "Fill the fields {q} from this text. Answer in JSON.\n\n{x}",
    "What are {f}? Answer in JSON.\n{x}", "Extract JSON {s} from: {x}", "{x}\n{s}",
]
JSON_ASK_HELD = ["Here is a sentence: {x}\nWrite {q} as a JSON object.", "Please read this and give me JSON shaped like {s}: {x}",
                 "Pull {f} out of the following text, in JSON.\n\n{x}"]
JSON_ASK_BARE = ["Extract the {k} as JSON.\n\n{x}", "{x}\n\nExtract the {k}.", "Extract the {k} from this text: {x}", "Text: {x}\nJSON:",
                 "Extract the information: {x}", "Extract the fields from the text.\n\n{x}", "{x}"]
LINE_ASK = [
    "Extract {f} from the text, one per line.\n{x}", "{x}\n\nList {f} as lines.", "Write {f} of the {k} on separate lines.\nText: {x}",
    "Text: {x}\nFill in:\n{l}", "Fill in this form:\n{l}\n\nText: {x}", "Give {f}, each on its own line: {x}",
    "Extract the {k} in this format:\n{l}\n\n{x}", "{x}\n\nFormat:\n{l}",
]
LINE_ASK_HELD = ["Read this and complete the form.\n{l}\n\n{x}", "From the text below, put {f} on one line each.\n{x}"]
FIELD_ASK = ["{x}\n\n{q}", "{x}\n{q}", "Text: {x}\nQuestion: {q}", "{q}\n\n{x}", "Read the text and answer.\n\n{x}\n\n{q}",
             "Passage: {x}\n\nQuestion: {q}\nAnswer:", "Here is a note: {x} {q}", 'In the text "{x}", {q}']
FIELD_ASK_HELD = ["Look at this text. {x}\nNow answer: {q}", "I have a question about this passage.\n\n{x}\n\n{q}"]
GENERIC_Q = ["What is the {f} of the {k}?", "What is the {f}?", "Give the {f} of the {k}.", "{f}?", "Tell me the {f} of the {k}.",
             "Extract the {f}.", "Which {f} is mentioned?", "Find the {f} of the {k}."]
GENERIC_Q_HELD = ["Can you tell me the {f} of the {k}?", "Which {f} does the {k} have?"]
