"""The test phrasings: written after the training data was fixed, and used by the evaluation only.

An earlier set of held-out phrasings guided the work on the training data, so it was dropped.
"""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

FACT_ASK: dict[str, list[str]] = {
    "capital": ["Please state the capital city of {x}.", "My daughter must learn the capital of {x}; which one is it?", "Among its cities, which one is the capital of {x}?"],
    "continent": ["In which continent can one find {x}?", "I wonder on what continent {x} lies.", "Please name the continent that {x} belongs to."],
    "language": ["Which language do most people in {x} use?", "If I meet someone from {x}, what language do they speak?"],
    "symbol": ["Please give me the symbol for {x} in chemistry.", "Which symbol does {x} have?"],
    "opposite": ["Please name a word that is the opposite of {x}.", "The reverse of {x} is what? Give the opposite.", "Could you give me the opposite of {x}?"],
    "legs": ["Please tell me the number of legs a {x} has.", "My son asks how many legs there are on a {x}."],
    "baby": ["By what name do we know a baby {x}?", "Could you tell me what a baby {x} is called?"],
    "sound": ["Please name the sound that a {x} makes.", "Can you tell me which noise a {x} makes?"],
    "color": ["Could you tell me the color of {x}?", "Which color would you give to {x}?"],
    "class": ["Please name the kind of animal that a {x} is.", "Could you say which group of animals a {x} is in?"],
    "day after": ["Please name the day that follows {x}.", "Tell me which day comes after {x}."],
    "day before": ["Please name the day that comes before {x}.", "Tell me which day is right before {x}."],
    "month after": ["Please name the month that follows {x}.", "Tell me which month comes after {x}."],
    "month number": ["Tell me which number {x} has among the months of the year.", "Please name the position of the month {x} in the year."],
    "author": ["Could you tell me who wrote {x}?", "By whom was the book {x} written?", "Please name the person who wrote {x}."],
    "plural": ["Please tell me the plural of {x}.", "What would be the plural of the word {x}?"],
    "past tense": ["Please tell me the past tense of {x}.", "Which word is the past tense of {x}?"],
    "currency": ["Please tell me which currency people have in {x}.", "Could you name the currency that {x} uses?"],
}
# (words of the reply, question): the facts without a table
MISC_ASK: dict[str, str] = {
    "Mercury is the planet": "Tell me which planet is nearest to our sun.", "Jupiter is the largest": "Could you name the planet that is the largest?", "Mars is called": "Tell me which planet people call the red planet.",
    "Saturn is the planet": "Could you name the planet with the rings?", "There are eight planets": "Tell me how many planets the solar system has.", "We need oxygen": "Tell me which gas people breathe to stay alive.",
    "Plants take in carbon": "Tell me which gas plants take from the air.", "Water is made of": "Of which elements is water made?", "Water boils at": "Tell me the temperature at which water boils.",
    "Water freezes at": "Tell me the temperature at which water freezes.", "Frozen water is": "How do we call water that is frozen?", "The sun is the nearest": "Tell me which star is nearest to the earth.",
    "The moon goes around": "Tell me what moves around the earth.", "Diamond is the hardest": "Could you name the natural material that is the hardest?", "The force of gravity": "Tell me which force pulls an apple down.",
    "The heart pumps": "Tell me which organ pumps our blood.", "We think with": "Tell me with which organ we think.", "We see with": "Tell me what part of the body lets us see.", "We hear with": "Tell me what part of the body lets us hear.",
    "Bees make honey": "Tell me what bees make.", "Cows give us": "Tell me which drink cows give us.", "A caterpillar becomes": "Into what does the caterpillar turn?", "Pandas eat": "Tell me what food pandas eat.",
    "The blue whale": "Could you name the largest animal of the world?", "The giraffe is": "Could you name the tallest animal of the world?", "The cheetah is": "Could you name the fastest animal on land?",
    "The lion is called": "Which animal do people call the king of the jungle?", "Fish live": "Tell me in what fish live.", "Many penguins": "Tell me on which continent penguins live.", "A week has": "Tell me how many days there are in one week.",
    "A year has twelve": "Tell me how many months there are in one year.", "A day has 24": "Tell me how many hours there are in one day.", "An hour has 60": "Tell me how many minutes there are in one hour.",
    "A minute has 60": "Tell me how many seconds there are in one minute.", "A year has 365": "Tell me how many days there are in one year.", "There are four seasons": "Tell me how many seasons we have in a year.",
    "The English alphabet has": "Tell me how many letters there are in the alphabet.", "A triangle has": "Tell me how many sides there are in a triangle.", "A square has": "Tell me how many sides there are in a square.",
    "A hexagon has": "Tell me how many sides there are in a hexagon.", "A bicycle has": "Tell me how many wheels there are on a bicycle.", "A car has": "Tell me how many wheels there are on a car.",
    "A dozen is": "Tell me how many things make a dozen.", "There are seven continents": "Tell me how many continents we have on earth.", "An octopus has": "Tell me how many arms there are on an octopus.",
    "A rainbow has": "Tell me how many colors we see in a rainbow.", "A dollar has": "Tell me how many cents there are in one dollar.", "A kilometer has": "Tell me how many meters there are in one kilometer.",
    "A century has": "Tell me how many years there are in a century.", "The Nile is": "Could you name the longest African river?", "Mount Everest": "Could you name the highest mountain of the world?",
    "The Pacific is": "Could you name the largest ocean of the world?", "Russia is the largest": "Could you name the largest country of the world?", "Asia is the largest": "Could you name the largest continent of the world?",
    "Australia is the smallest": "Could you name the smallest continent of the world?", "The Seine": "Tell me which river one can see in Paris.", "The Thames": "Tell me which river one can see in London.",
    "The Eiffel Tower is": "Tell me the city where the Eiffel Tower is.", "The Colosseum is": "Tell me the city where the Colosseum is.", "The great pyramids are": "Tell me the country where the great pyramids are.",
    "The Great Wall is": "Tell me the country where the Great Wall is.", "Leonardo da Vinci": "Could you name the artist who painted the Mona Lisa?", "Vincent van Gogh": "Could you name the artist who painted The Starry Night?",
    "Albert Einstein": "Could you name the man behind relativity?", "Alexander Graham Bell": "Could you name the man who invented the telephone?", "Charles Darwin": "Could you name the man who described evolution?",
    "Neil Armstrong": "Could you name the first man on the moon?", "George Washington": "Could you name the man who was the first president of the United States?", "Marie Curie": "Could you name the woman who discovered radium?",
    "Alexander Fleming": "Could you name the man who discovered penicillin?", "Beethoven composed": "Could you name the man who composed the Moonlight Sonata?", "Blue and yellow": "Tell me which color blue and yellow give.",
    "Red and yellow": "Tell me which color red and yellow give.", "Red and blue": "Tell me which color red and blue give.", "The season after winter": "Tell me which season comes when winter ends.",
    "The season after summer": "Tell me which season comes when summer ends.", "Winter is the coldest": "Could you name the season that is the coldest?", "The sun rises": "Tell me where the sun rises in the morning.",
    "The sun sets": "Tell me where the sun sets in the evening.", "A pilot flies": "Could you name the person who flies a plane?", "A firefighter puts": "Could you name the person who puts out a fire?",
    "We use scissors": "Tell me which tool is used to cut paper.", "A clock tells": "Tell me what shows us the time.", "Bread is made": "Tell me what bread is made of.", "Cheese is made": "Tell me what cheese is made of.",
    "Wine is made": "Tell me which fruit wine is made of.", "Paper is made": "Tell me what paper is made of.", "Hello in French": "Tell me how people say hello in French.", "Hello in Spanish": "Tell me how people say hello in Spanish.",
    "Thank you in French": "Tell me how people say thank you in French.", "Thank you in German": "Tell me how people say thank you in German.",
}
PREDS: dict[str, dict[str, list[str]]] = {
    "person": {"age": ["has just become {age} years old", "says the age is {age}"], "city": ["has moved to {city} for good", "likes to live in {city}"], "job": ["is now working as a {job}", "wants to stay a {job}"]},
    "pet": {"kind": ["is a very friendly {kind}", "is my favorite {kind}"], "age": ["is nearly {age} years old", "has been with us for {age} years"]},
    "order": {"quantity": ["includes a total of {quantity} pieces", "is about {quantity} units"], "price": ["will cost {price} dollars", "sells for {price} dollars"]},
    "meeting": {"day": ["will happen on {day}", "was set for {day}"], "time": ["will begin at {time}", "is planned to start at {time}"], "place": ["is held in {place}", "takes us to {place}"]},
    "book": {"author": ["has been written by {author}", "is one of the books by {author}"], "year": ["was brought out in {year}", "was first printed in {year}"]},
    "contact": {"email": ["has an email address, {email}", "gets letters at {email}"], "phone": ["can be phoned at {phone}", "has a telephone with the number {phone}"]},
    "shop": {"kind": ["is known as a good {kind}"], "street": ["has its home on {street}"], "owner": ["has been owned by {owner}"], "year": ["was first opened in {year}"], "opens": ["will open at {opens}"],
             "closes": ["will close at {closes}"], "special": ["is popular for its {special}"]},
}
WHOLE: dict[str, list[str]] = {
    "person": ["{name} works in {city} as a {job} and is {age} years old.", "Our guest is {name}, {age}, who lives in {city} and works as a {job}.", "I have a friend in {city}, {name}, who is {age}.",
               "The new {job} is {name}. {name} is {age} and comes from {city}.", "At {age}, {name} is the youngest {job} in {city}."],
    "pet": ["I own a {kind}. It is called {name} and is {age} years old.", "Her {kind}, {name}, is now {age} years old.", "This is {name}, a {kind} that is {age} years old.", "{name}, my {kind}, turned {age} today."],
    "order": ["I want to order {quantity} {item}. They cost {price} dollars.", "My mother bought {quantity} {item} and paid {price} dollars.", "You owe us {price} dollars for {quantity} {item}.",
              "A customer ordered {quantity} {item} at a price of ${price}.", "We sold {quantity} {item} last week, for {price} dollars."],
    "meeting": ["I will meet {who} at {time} on {day} in {place}.", "The next meeting is with {who}, on {day} at {time}, in {place}.", "{day} at {time} is good for {who}; we meet in {place}.", "{who} is waiting for you in {place} on {day} at {time}."],
    "book": ["I am reading {title}, a book that {author} wrote in {year}.", "{author} is the author of {title}, which came out in {year}.", "Published in {year}, {title} is the best book by {author}.", "We bought {title} by {author}; it is from {year}."],
    "contact": ["You can write an email to {name} at {email} or phone {phone}.", "{name} is our contact. Her email is {email} and her number is {phone}.", "The phone number of {name} is {phone}, and the email is {email}."],
    "shop": ["Since {year} there is a {kind} called {name} on {street}, owned by {owner}."],
}
ASK: dict[str, dict[str, list[str]]] = {
    "person": {"name": ["What name does the person have?"], "age": ["Can you tell me how old {k} is?"], "city": ["Tell me in which city {k} lives."], "job": ["Tell me what job {k} has."]},
    "pet": {"name": ["What name does the pet have?"], "kind": ["Tell me what kind of animal {k} is."], "age": ["Can you tell me how old {k} is?"]},
    "order": {"item": ["Tell me which item was ordered."], "quantity": ["Tell me how many {k} were ordered."], "price": ["Tell me how much the {k} cost."]},
    "meeting": {"who": ["Tell me who we meet."], "day": ["Tell me on which day we meet {k}."], "time": ["Tell me at what time we meet {k}."], "place": ["Tell me where we meet {k}."]},
    "book": {"title": ["Could you say how the book is called?"], "author": ["Tell me who wrote {k}."], "year": ["Tell me in which year {k} came out."]},
    "contact": {"name": ["Could you say who the contact is?"], "email": ["Tell me the email address of {k}."], "phone": ["Tell me the phone number of {k}."]},
    "shop": {"name": ["Could you say how the place is called?"], "kind": ["Tell me what kind of place {k} is."], "street": ["Tell me on which street {k} is."], "owner": ["Tell me who owns {k}."],
             "year": ["Tell me in which year {k} was founded."], "opens": ["Tell me at what time {k} opens."], "closes": ["Tell me at what time {k} closes."], "special": ["Tell me what {k} is known for."]},
}
SENTIMENT = ["I was told the {t} was good, but for me it was {a}.".replace("good, but", "special, and"), "Our visit was {a}, and the {t} was {b}.", "A very {s} {t} for such a small town.", "Two words: {s} {t}.",
             "When the {t} came, I {v}.", "Every part of this {t} is {a}.", "People told me about the {t}; I {v}."]
NEUTRAL = ["The {t} leaves the house on {d}.", "Please put the {t} beside the {u}.", "They bought the {t} and the {u} in {y}.", "The {t} will be here until {h}.", "There are {n} pages about the {t}.", "A man in the hall has the {t}."]
TOPIC = ["I heard on the radio about the {a} and the {b}.", "Please write a text about the {a}.", "We could see the {a} from here, and later the {b}.", "His first words were about the {a}, his last about the {b}.",
         "All the time she thinks of the {a}.", "Have you heard of the {a} and the {c}?"]
INTENT: dict[str, list[str]] = {
    "billing": ["The price on the invoice is not right.", "I want a refund for the second payment.", "Why is there a charge on my credit card?"],
    "shipping": ["I still have no package.", "Which day will the delivery come?", "The parcel arrived with a broken box."],
    "technical": ["The software shows an error message again.", "The app is slow and then crashes.", "My screen freezes when I start the program."],
    "account": ["I cannot remember my password.", "Please help me to log in to my account.", "I would like to change the email address of my profile."],
}
URGENT: dict[str, list[str]] = {"high": ["Please hurry, this is an emergency!", "We need this fixed right now!"], "low": ["Take your time with this, it is not important.", "This is a small thing and it can wait."]}
