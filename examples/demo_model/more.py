"""More training phrasings, kept apart from the tables they extend.  None of them is used by the evaluation."""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

# relation name -> extra question templates
FACT_ASK: dict[str, list[str]] = {
    "capital": ["In which city does the government of {x} sit?", "{x} capital", "I would like to visit the capital of {x}. What is it called?", "What do you call the capital of {x}?",
                "Say the capital of {x}.", "Which city do we know as the capital of {x}?", "When people speak of the capital of {x}, which city do they mean?",
                "Our quiz asks for the capital city of {x}.", "Remind me: what is the capital of {x}?"],
    "continent": ["To which continent does {x} belong?", "Where in the world is {x}? Name the continent.", "{x} continent", "Is {x} in Europe, Asia, Africa or America?",
                  "On the map, which continent has {x}?", "Going to {x} brings you to what continent?", "The country {x} can be found on what continent?"],
    "language": ["Which language will I hear in {x}?", "What is spoken in {x}?", "What language should a tourist in {x} know?", "The people of {x} speak which language?",
                 "I go to {x} next week. What do they speak there?", "{x} language", "Which tongue do the people of {x} use?"],
    "symbol": ["How is {x} written in chemistry?", "{x} symbol", "The element {x} has which symbol?", "In the table of elements, what stands for {x}?", "Which letters mean {x} in a formula?",
               "What short form do scientists use for {x}?", "Write {x} as a chemical symbol."],
    "opposite": ["{x} is the opposite of what?", "What is not {x}, but the other way round?", "Say the opposite: {x}", "I need a word for the opposite of {x}.", "{x} opposite",
                 "Turn {x} into its opposite.", "What is the contrary of {x}?", "The opposite of {x} would be what?", "When we mean the opposite of {x}, what do we say?"],
    "legs": ["How many legs can you count on a {x}?", "A {x} moves on how many legs?", "{x} legs", "Do you know how many legs a {x} has got?", "With how many legs is a {x} born?",
             "We looked at a {x}. How many legs did it have?"],
    "baby": ["How do we call the baby of a {x}?", "What is the child of a {x} called?", "{x} baby name", "The little one of a {x} is called what?", "A {x} has young. What are they called?",
             "Which name has a baby {x}?"],
    "sound": ["What does a {x} do when it makes noise?", "When a {x} makes a sound, what do we hear?", "{x} sound", "How does the voice of a {x} sound?", "What can you hear when a {x} is near?"],
    "color": ["How is {x} colored?", "{x} color", "Of which color is {x}?", "In a picture, what color should {x} be?", "I draw {x}. Which color do I take?", "When we look at {x}, what color is it?"],
    "class": ["Into which group of animals do we put a {x}?", "{x} animal group", "Scientists say a {x} is what kind of animal?", "A {x} belongs to which class of animals?",
              "To biologists, what is a {x}?", "Which animal family name fits a {x}: mammal, bird, fish, reptile, amphibian or insect?"],
    "day after": ["After {x} comes which day?", "When {x} is over, what day is it?", "{x} is today, so what is tomorrow?", "One day after {x} is what?"],
    "day before": ["Before {x} comes which day?", "{x} is today, so what was yesterday?", "One day before {x} is what?", "Which day ends when {x} starts?"],
    "month after": ["After {x} comes which month?", "When {x} is over, what month is it?", "One month after {x} is what?", "Now it is {x}. Which month is coming?"],
    "month number": ["Counting the months, where does {x} stand?", "Is {x} the first, second, third or which month?", "Where does {x} come in the year?"],
    "author": ["{x} is a book by whom?", "Whose work is {x}?", "I like {x}. Who wrote it?", "Which writer gave us {x}?", "{x} author", "Who is the man or woman behind the book {x}?",
               "My sister has the book {x}. Who wrote it?", "We are reading {x} at school. Who is the author?"],
    "plural": ["One {x}, two what?", "{x} plural", "When there is more than one {x}, what do we say?", "Write the plural: {x}", "What do you call many of them: {x}?"],
    "past tense": ["Today I {x}. Yesterday I did what? Give the verb.", "{x} past tense", "Write the past tense: {x}", "The verb {x}: what is its past form?", "Which form of {x} do we use for yesterday?"],
    "currency": ["Which money should I take to {x}?", "{x} currency", "How do people pay in {x}?", "When I shop in {x}, what money do I need?", "The people of {x} pay with what?"],
}

# reply sentence -> extra questions
MISC_ASK: dict[str, list[str]] = {
    "Diamond is the hardest natural material.": ["What in nature is hardest?", "Nothing in nature is harder than what?", "Hardest natural material?"],
    "The heart pumps blood through the body.": ["Blood is pumped by which organ?", "Which part of us pumps the blood?", "What keeps the blood moving?"],
    "We think with the brain.": ["What organ is used for thinking?", "Thinking happens in which organ?", "Thoughts come from which organ?"],
    "The blue whale is the largest animal.": ["What animal has the largest size?", "No animal is bigger than which one?", "Biggest animal?"],
    "The giraffe is the tallest animal.": ["What animal is the highest of all?", "No animal is taller than which one?", "Tallest animal?"],
    "The cheetah is the fastest land animal.": ["What animal can run the fastest?", "No animal on land is faster than which one?", "Fastest runner among the animals?"],
    "Fish live in water.": ["Where is the home of fish?", "A fish has its home where?", "Fish swim and live in what?"],
    "The Pacific is the largest ocean.": ["No ocean is larger than which one?", "Largest ocean?", "What ocean has the most water?"],
    "Russia is the largest country.": ["No country is larger than which one?", "Largest country?", "What country has the biggest area of land?"],
    "Asia is the largest continent.": ["No continent is larger than which one?", "Largest continent?", "What continent has the biggest area?"],
    "Australia is the smallest continent.": ["No continent is smaller than which one?", "Smallest continent?", "What continent has the least area?"],
    "The Sahara is the largest hot desert.": ["No hot desert is larger than which one?", "Largest hot desert?", "What hot desert is so large?"],
    "The Eiffel Tower is in Paris.": ["What city do I go to for the Eiffel Tower?", "The Eiffel Tower stands in which city?", "I want to visit the Eiffel Tower. Where is it?"],
    "The Colosseum is in Rome.": ["What city do I go to for the Colosseum?", "The Colosseum stands in which city?", "I want to visit the Colosseum. Where is it?"],
    "The great pyramids are in Egypt.": ["What country do I go to for the great pyramids?", "The great pyramids stand in which country?", "I want to visit the great pyramids. Where are they?"],
    "The Great Wall is in China.": ["What country do I go to for the Great Wall?", "The Great Wall stands in which country?", "I want to visit the Great Wall. Where is it?"],
    "Albert Einstein developed the theory of relativity.": ["Relativity was whose idea?", "Which scientist is known for relativity?", "The theory of relativity was made by whom?"],
    "Charles Darwin described evolution.": ["Evolution was whose idea?", "Which scientist is known for evolution?", "The theory of evolution was made by whom?"],
    "Isaac Newton described gravity.": ["The law of gravity was whose idea?", "Which scientist is known for gravity?", "Gravity was described by whom?"],
    "Neil Armstrong was the first person on the moon.": ["The moon was first reached by whom?", "Which man made the first steps on the moon?", "Who took the first step on the moon?"],
    "George Washington was the first president of the United States.": ["The first American president was which man?", "First president of the USA?", "Who led the United States first?"],
    "Marie Curie discovered radium.": ["Radium was found by whom?", "The discovery of radium was made by which woman?", "Radium was the discovery of whom?"],
    "Alexander Fleming discovered penicillin.": ["Penicillin was found by whom?", "The discovery of penicillin was made by which man?", "Penicillin was the discovery of whom?"],
    "Alexander Graham Bell invented the telephone.": ["The telephone was invented by whom?", "Who made the first telephone?", "The inventor of the telephone was who?"],
    "Beethoven composed the Moonlight Sonata.": ["The Moonlight Sonata was composed by whom?", "Whose work is the Moonlight Sonata?", "Which composer made the piece Moonlight Sonata?"],
    "Leonardo da Vinci painted the Mona Lisa.": ["The Mona Lisa was painted by whom?", "Whose work is the Mona Lisa?", "The painter of the Mona Lisa was who?"],
    "Vincent van Gogh painted The Starry Night.": ["The Starry Night was painted by whom?", "Whose work is The Starry Night?", "The painter of The Starry Night was who?"],
    "A pilot flies a plane.": ["Planes are flown by which person?", "Who sits in front and flies the plane?", "Flying planes is the job of whom?"],
    "A teacher teaches children.": ["Children learn at school from whom?", "Teaching children is the job of whom?", "Who is taught by whom at school? Name the teacher's job."],
    "A firefighter puts out fires.": ["When there is a fire, who puts it out?", "Putting out fires is the job of whom?", "By whom is a fire put out?"],
    "Bread is made from flour.": ["What goes into bread?", "Which thing do we need to make bread?", "Bread has what in it?", "The main ingredient of bread?"],
    "Cheese is made from milk.": ["What goes into cheese?", "Which thing do we need to make cheese?", "The main ingredient of cheese?"],
    "Wine is made from grapes.": ["What goes into wine?", "Which fruit do we need to make wine?", "The main ingredient of wine?"],
    "Paper is made from wood.": ["What goes into paper?", "Which thing do we need to make paper?", "The main material of paper?"],
    "The first letter of the alphabet is A.": ["The alphabet starts with what?", "What letter begins the alphabet?", "First letter of the alphabet?"],
    "The last letter of the alphabet is Z.": ["The alphabet stops with what?", "What letter closes the alphabet?", "Last letter of the alphabet?"],
    "Plants need water, light and air to grow.": ["What things are needed by plants?", "A plant grows when it has what?", "What helps a plant to grow?"],
}

# kind -> field -> extra predicates
PREDS: dict[str, dict[str, list[str]]] = {
    "person": {
        "age": ["had a birthday and is {age} now", "is {age} this year", "feels young at {age}", "reached {age} in spring", "counts {age} years", "is still {age}", "will soon be over {age}",
                "told us the age: {age}", "was {age} on the last birthday"],
        "city": ["has been living in {city} for years", "found a home in {city}", "spends the year in {city}", "rents a room in {city}", "settled in {city}", "resides in {city}", "went to live in {city}",
                 "loves the city of {city}", "can be found in {city}"],
        "job": ["got a post as a {job}", "trained to be a {job}", "is known as a good {job}", "is paid as a {job}", "started as a {job}", "has been a {job} for years", "chose to be a {job}",
                "spends the day as a {job}"]},
    "pet": {
        "kind": ["is the name of our {kind}", "is a young {kind}", "is a funny little {kind}", "is the best {kind} of all", "was sold to us as a {kind}", "is what we call the {kind}"],
        "age": ["has its birthday and is {age} years old", "was born {age} years ago", "is now {age} years of age", "is an animal of {age} years", "reached {age} years", "is more than {age} years old"]},
    "order": {
        "quantity": ["is made of {quantity} pieces", "has {quantity} of them", "counts {quantity} pieces", "brings {quantity} units", "should have {quantity} pieces", "needs {quantity} units"],
        "price": ["comes at {price} dollars", "is worth {price} dollars", "has been paid: {price} dollars", "is on sale for ${price}", "amounts to {price} dollars", "takes {price} dollars"]},
    "meeting": {
        "day": ["was put on {day}", "comes on {day}", "is fixed for {day}", "has been arranged for {day}", "happens this {day}", "should be on {day}"],
        "time": ["opens at {time}", "was put at {time}", "is fixed for {time}", "runs from {time}", "should begin at {time}", "goes from {time} on"],
        "place": ["is to be held at {place}", "brings us to {place}", "is down in {place}", "was put in {place}", "needs us to be in {place}", "waits for us at {place}"]},
    "book": {
        "author": ["was made by {author}", "is the first book of {author}", "has the author {author}", "was thought up by {author}", "is told by {author}", "is a story of {author}", "was the idea of {author}"],
        "year": ["was sold first in {year}", "was finished in {year}", "goes back to {year}", "was new in {year}", "was born in {year}", "could be bought from {year} on"]},
    "contact": {
        "email": ["gets mail at {email}", "takes mail under {email}", "gave the address {email}", "has a mailbox: {email}", "is found under {email}", "likes mail to {email}"],
        "phone": ["can be rung at {phone}", "gave the number {phone}", "speaks to you at {phone}", "is on the phone under {phone}", "waits for calls at {phone}", "has a phone: {phone}"]},
    "shop": {
        "kind": ["calls itself a {kind}", "is a nice {kind}", "is the best {kind} in the area", "has been a {kind} from the first day"],
        "street": ["can be seen on {street}", "has its door on {street}", "has its address on {street}", "waits for you on {street}", "is near the corner of {street}", "is at the start of {street}"],
        "owner": ["is led by {owner}", "has been bought by {owner}", "is the shop of {owner}", "was taken over by {owner}", "is kept by the owner {owner}", "has {owner} as its owner"],
        "year": ["exists since {year}", "goes back to {year}", "was started in {year}", "is from {year}", "began in {year}"],
        "opens": ["lets people in from {opens}", "starts the day at {opens}", "can be visited from {opens}", "is ready from {opens} on", "opens up at {opens}"],
        "closes": ["sends people home at {closes}", "ends the day at {closes}", "can be visited until {closes}", "locks up at {closes}", "closes down at {closes}"],
        "special": ["sells {special}", "makes the best {special}", "brings {special} to the table", "has good {special}", "cooks {special} for its guests", "is the place for {special}"]},
}
WHOLE: dict[str, list[str]] = {
    "person": ["Last month {name} ({age}) went to {city} as a {job}.", "Have you seen {name}, the {job} from {city}? {name} is {age}.", "They hired {name}, {age}, a {job}.", "We saw {name} from {city}, aged {age}.",
               "Next week {name}, {age}, will start as a {job} in {city}.", "Two years ago {name} left for {city} at age {age} to be a {job}.", "You asked about {name}: {age} years, {city}, {job}.", "Here comes {name}, {age} years old, a {job} from {city}.", "Please welcome {name} from {city}, {age}, our new {job}.", "They met {name}, a {job} of {age} years, in {city}.",
               "Our new colleague is {name}, aged {age}. {name} lives in {city}.", "You may know {name}: {age}, from {city}, a {job}.", "Since last year {name} has worked in {city} as a {job}.",
               "I spoke with {name} ({job}, {age}, {city}).", "Do you know {name}? {name} is {age} years old, works as a {job} and lives in {city}.",
               "The winner is {name}, {age}, of {city}.", "Let me introduce {name}, a {job} from {city} who is {age}.", "We gave the job to {name}, {age}, who comes from {city}.",
               "My boss is {name}. {name} is {age} and was born in {city}.", "Yesterday {name} left {city} at the age of {age}."],
    "pet": ["Have you seen {name}, our {kind}? It is {age} years old.", "Did you see the {kind} {name}? It is {age}.", "The {kind} of my brother is named {name} and is {age} years old.",
            "They found {name}, a {kind} of {age} years.", "In the yard sits {name}, the {kind} of my uncle, {age} years old.", "Our neighbors own a {kind} with the name {name}; it is {age} years old.", "Look at {name}, the {kind}! It is {age} years old.", "At the farm lives {name}, a {kind} of {age} years.",
            "She bought a {kind}, {age} years old, and named it {name}.", "The name of my {kind} is {name}, and its age is {age}.", "{name} is the {kind} of my sister and is {age} years old.",
            "You can see our {kind} {name} in the garden; it is {age}.", "He found a {kind} of {age} years and calls it {name}."],
    "order": ["Would you send {quantity} {item} for {price} dollars?", "Our club wants {quantity} {item}, for {price} dollars.", "They took {price} dollars for {quantity} {item}.", "Mona bought {quantity} {item} and gave {price} dollars.", "Can you bring {quantity} {item}? I pay {price} dollars.", "The bill says {quantity} {item} for {price} dollars.", "My brother took {quantity} {item} and gave {price} dollars.",
              "We still need {quantity} {item}, the price is ${price}.", "The office wants {quantity} {item} at {price} dollars.", "The list shows {quantity} {item}, ${price}.",
              "The company paid ${price} for {quantity} {item}.", "They asked {price} dollars for {quantity} {item}.", "Get me {quantity} {item} for {price} euros, please.",
              "A box of {quantity} {item} was sold at ${price}.", "In total {quantity} {item} were bought for {price} dollars.", "Would you sell us {quantity} {item} for ${price}?"],
    "meeting": ["You can see {who} in {place} this {day} at {time}.", "Never forget {who}: {day}, {time}, {place}.", "We find {who} at {place} on {day}, {time}.", "Remember: {who}, {day} at {time}, {place}.", "You can meet {who} in {place} on {day} at {time}.", "{who} wants to talk on {day}, {time}, in {place}.", "I noted a talk with {who}, {day} at {time}, {place}.",
                "This {day} at {time} you will see {who} at {place}.", "Can you come to {place} on {day}? {who} arrives at {time}.", "Please do not be late: {who} is at {place} on {day} at {time}.",
                "My diary says: {day}, {time}, {who}, {place}.", "We have to see {who} at {place}, {day} at {time}.", "{who} called and asked to meet on {day} at {time} in {place}.",
                "Ask {who} to be in {place} at {time} on {day}."],
    "book": ["My aunt sent me {title}, which {author} wrote in {year}.", "{author} got famous in {year} for {title}.", "The first book of {year} was {title} by {author}.", "For years, since {year}, we have read {title} by {author}.", "From {year} comes {title}, a story by {author}.", "My father likes {title}, which {author} wrote in {year}.", "People read {title} by {author} since {year}.", "The writer {author} made {title} in {year}.",
             "I got {title} for my birthday; {author} published it in {year}.", "{author} sold the book {title} in {year}.", "The famous book {title} was new in {year}. {author} wrote it.",
             "In the year {year} a book named {title} by {author} came out.", "Our teacher read {title} of {author}, printed in {year}.", "{year} was the year of {title} by {author}."],
    "contact": ["Best regards, {name}. Mail {email}. Phone {phone}.", "Many thanks, {name}. Call: {phone}. Mail: {email}.", "When you need us, {name} is at {phone} or {email}.", "With love, {name}, {phone}, {email}", "Please ask {name} ({email}, {phone}).", "Ring {name} on {phone} or send mail to {email}.", "If you have a question, {name} helps: {phone}, {email}.", "Kind regards, {name}, {email}, {phone}",
                "Send the letter to {name}, {email}; the phone is {phone}.", "Yours, {name}. Phone: {phone}. Email: {email}.", "The number of {name} is {phone} and the mail goes to {email}.",
                "{name} answers at {email} and {phone}.", "See you soon, {name}. My mail is {email}, my number is {phone}."],
    "shop": ["On {street} stands the {kind} {name}; {owner} has run it since {year}.", "{owner} is the owner of {name}, a {kind} from {year}.", "You find the {kind} {name} on {street}. It is open from {opens} to {closes}.",
             "The {kind} {name} is open from {opens} to {closes} and sells {special}.", "In {year} the {kind} {name} was opened by {owner} on {street}."],
}
# kind -> field -> extra questions
ASK: dict[str, dict[str, list[str]]] = {
    "person": {"age": ["How many years old is {k}?", "{k} has what age?"], "city": ["What is the home city of {k}?", "{k} lives in which city?", "From which city is {k}?"],
               "job": ["As what does {k} work?", "What is {k} by profession?", "How does {k} earn money?"], "name": ["Who is it about?", "Whose text is this? Give the name."]},
    "pet": {"age": ["How many years old is {k}?", "{k} has what age?"], "kind": ["What animal is {k}?", "{k} is what kind of animal?"], "name": ["How is the pet called?"]},
    "order": {"quantity": ["What number of {k} was ordered?", "{k}: how many?", "How many {k} do they want?"], "price": ["For how much are the {k} sold?", "How many dollars are the {k}?", "What must be paid for the {k}?"],
              "item": ["What did they order?", "What is in the box?", "Which things were bought?"]},
    "meeting": {"day": ["On what day do we see {k}?", "{k} is met on which day?"], "time": ["When do we see {k}? Give the time.", "From what time is the meeting with {k}?", "At what hour do we meet {k}?"],
                "place": ["To which place do we go to meet {k}?", "In which place is {k} met?", "Which place was chosen for {k}?"], "who": ["Which person do we meet?", "Who will be met?"]},
    "book": {"author": ["From whom is the book {k}?", "{k} is a book by whom?", "Which person wrote {k}?"], "year": ["What year is {k} from?", "How old is {k}? Give the year.", "{k} was written in which year?"],
             "title": ["What is the book called?", "How is the book named?"]},
    "contact": {"email": ["To which address do I write for {k}?", "Where do I send mail for {k}?", "{k} has which mail address?"], "phone": ["How do I call {k}?", "At which number is {k}?", "{k} has which number?"],
                "name": ["Whom can I contact?", "Who is named here?"]},
    "shop": {"kind": ["What sort of place is {k}?", "{k} is what kind of shop?"], "street": ["In which street can I find {k}?", "What is the address of {k}?", "{k} is in which street?"],
             "owner": ["Who runs {k}?", "Whose shop is {k}?", "{k} is owned by whom?", "Which person has {k}?"], "year": ["Since which year does {k} exist?", "How old is {k}? Give the year.", "What year did {k} start?"],
             "opens": ["From when can I visit {k}?", "At which hour does {k} open?", "When does the day start at {k}?"], "closes": ["Until when can I stay at {k}?", "At which hour does {k} close?", "When does the day end at {k}?"],
             "special": ["What is special at {k}?", "For what do people go to {k}?", "What can I get at {k}?", "Why is {k} loved?"], "name": ["How is the place named?"]},
}
SENTIMENT = [
    "The {t} came out {a}.", "If you ask me, the {t} is {a}.", "From the first day the {t} was {a}.", "How {s} this {t} is!", "Never before was a {t} so {s}.", "We went there for the {t}, and it was {a}.",
    "Nobody told me that the {t} would be {a}.", "After a week I can say: {a}.", "I cannot say it in another way: the {t} is {a}.", "It is hard to believe, but the {t} was {a}.", "My friends say the {t} is {a}, and so do I.",
    "In short, {a}.", "Both the {t} and the {u} were {a}.", "You will see that the {t} is {a}.", "Yesterday we had a {s} {t}, and I {v}.", "As always, the {t} was {a}.", "All of it was {a}: the {t}, the {u}.",
    "Because of the {t} I {v}.", "At the end of the day I {v}.", "I told my wife that the {t} is {a}.", "The {t} seemed {a} to me.", "It was {a}, I {v}.", "Frankly, I {v}.", "Thanks to the {s} {t} I {v}.", "{a}, that is all I can say about the {t}.",
]
NEUTRAL = [
    "By {h} the {t} was there.", "They brought the {t} on {d}.", "Behind the {u} you see the {t}.", "The {t} can be seen from the {u}.", "One can find the {t} in the hall.", "We got the {t} in {y}.", "Each {t} has {n} pages.",
    "From {d} on, the {t} is at the office.", "I was told that the {t} starts at {h}.", "Our {t} and the {u} are in the same room.", "You need a ticket for the {t}.", "It takes {n} minutes to the {t}.", "Some people have a {t} and others a {u}.",
    "He put the {t} near the door.", "My mother wants to know where the {t} is.", "A {t} was sold to a man from the city.", "The {t} has a number: {n}.", "Until {d} the {t} stays here.", "I cannot come on {d}, so take the {t} at {h}.",
]
TOPIC = [
    "Nobody told us about the {a}.", "In this story, the {a} meets the {b}.", "The text explains how the {a} works.", "First comes the {a}, then the {b}.", "He has dreamed about the {a} since he was young.", "Today we look at a {a}.", "One page is about the {a}.",
    "The {a} and the {b} are in the news today.", "Many people care about the {a} and the {c}.", "This is a report on the {a}.", "A {a} can be linked to a {b}.", "I did not expect the {a}.", "There are two things here: the {a} and the {b}.",
    "You can read more about the {a} on page two.", "Half of us forgot the {a}.", "My brother always speaks about the {a}.", "Our question is about the {a} and the {b}.",
]
INTENT: dict[str, list[str]] = {
    "billing": ["The amount on my invoice is too high.", "My bill is wrong.", "I see two charges on my card.", "When do I get my refund?", "I am waiting for the refund.", "You took the payment twice.", "The bill shows an amount I do not know.",
                "Please send the invoice again.", "How can I pay my bill?", "There is a wrong payment on my card.", "The refund is still not here."],
    "shipping": ["My parcel is late.", "The order did not arrive.", "How many days does delivery take?", "My package is lost.", "The parcel went to my neighbor.", "Tell me when the package will arrive.", "The delivery came to the wrong house.",
                 "The order is still on its way.", "Has my parcel been sent?", "The driver left my package in the rain.", "I wait for my order since last week."],
    "technical": ["The program stops with an error.", "My app does not open.", "The phone does not start after the update.", "I only see a black screen.", "The program does not open on my computer.", "An error comes up when I click the button.",
                  "The site is down.", "The app shows nothing.", "The video does not play.", "The page shows an error.", "My screen is black since the update."],
    "account": ["My password does not work.", "The login does not work.", "I want to delete my profile.", "How can I close my account?", "I lost the password of my account.", "The login says my account is locked.", "I need a new password.",
                "How do I change the name of my profile?", "Please unlock my account.", "I cannot get into my account.", "The new password is not accepted at login."],
}
SENTIMENT_ASK = ["A customer wrote: {x}\nIs it positive, negative or neutral?", "{x}\nIs that positive, negative or neutral?", "Give the sentiment of this review: {x}", "Please tell me which sentiment this has: {x}",
                 "The review says: {x} What sentiment is it?", "Say if this is positive, negative or neutral: {x}", "Here you see a sentence: {x} Give its sentiment.", "Find the sentiment. {x}", "Which sentiment does this show?\n\n{x}"]
TOPIC_ASK = ["Find the topic: {x}", "Give the topic of the sentence: {x}", "From the list {o}, which topic has this text?\n\n{x}", "The text says: {x} What topic is it?", "Say what this is about ({o}): {x}", "Put this sentence under a topic: {x}",
             "Here you see a text. {x} Give its topic.", "Which of {o} is the best topic?\n{x}", "Please tell me which topic this has: {x}"]
