"""Small talk, short descriptions, and questions the model should decline, for the demo model."""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

ME = "I am the Stemma demo model, a very small language model."

# (train prompts, held-out prompts, reply)
SMALLTALK: list[tuple[list[str], list[str], str]] = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey there!", "Hi there", "Hello there.", "Greetings!", "hello", "hi"],
     ["Hello, model!", "Hey!"], "Hello! How can I help you?"),
    (["Good morning", "Good morning!", "Morning!", "A very good morning to you."], ["Good morning to you!"],
     "Good morning! How can I help you?"),
    (["Good evening", "Good evening!", "A very good evening to you."], ["Good evening to you!"],
     "Good evening! How can I help you?"),
    (["Good night", "Good night!", "I am going to bed. Good night."], ["Good night to you!"], "Good night! Sleep well."),
    (["How are you?", "How are you today?", "How are you doing?", "Hello, how are you?", "Hi! How is it going?",
      "how are you"], ["Hey, how are you doing today?"], "I am fine, thank you. How can I help you?"),
    (["Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "What is your name?",
      "who are you", "Please introduce yourself.", "What should I call you?", "Hi, who are you?", "Are you a model?"],
     ["Can you tell me who you are?", "What kind of model are you?"],
     ME + " I can answer simple questions, extract fields and choose labels."),
    (["What can you do?", "How can you help me?", "What are you good at?", "What do you do?", "help", "Help me.",
      "What can I ask you?"], ["What kind of things can you do?"],
     "I can answer simple questions, add small numbers, extract fields from text and choose labels."),
    (["Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much.", "Thanks a lot!", "Many thanks.",
      "thanks"], ["Thank you so much!", "Great, thanks!"], "You are welcome!"),
    (["Bye", "Bye!", "Goodbye", "Goodbye!", "See you later.", "See you tomorrow!", "I have to go now."],
     ["Bye bye!", "Goodbye for now."], "Goodbye! Have a nice day."),
    (["Are you a human?", "Are you a real person?", "Are you a person?", "Are you human or a machine?"],
     ["Am I talking to a human?"], "No, I am a small language model."),
    (["Who made you?", "Who trained you?", "Who created you?", "Where do you come from?"], ["Who built you?"],
     "I was trained by the Stemma project on synthetic text."),
    (["Sorry", "I am sorry.", "Sorry about that!", "My mistake."], ["Oh, sorry!"], "No problem at all."),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."], ["Can you tell me a joke?"],
     "Why did the clock go to school? It wanted to learn the time."),
    (["You are great!", "Good job!", "Well done.", "That was very helpful.", "Nice work!"], ["Great job!"],
     "Thank you! I am glad to help."),
    (["How old are you?", "When were you born?", "What is your age?"], ["Can you tell me your age?"],
     "I am a model, so I have no age."),
    (["I am sad.", "I feel sad today.", "I had a bad day.", "I am unhappy."], ["I am feeling sad."],
     "I am sorry to hear that. A short walk or a talk with a friend may help."),
    (["I am happy.", "I feel great today.", "I had a wonderful day.", "I am so happy!"], ["I am feeling happy."],
     "That is great to hear!"),
    (["I am bored.", "I have nothing to do.", "What should I do today?"], ["I am so bored."],
     "You could read a book, take a walk or call a friend."),
    (["Yes", "Yes.", "Ok", "OK.", "Okay", "Sure."], ["Yes, okay."], "Great! What would you like to do next?"),
]

ABOUT: dict[str, str] = {
    k.strip(): v.strip() for k, v in (line.split(":", 1) for line in """
cats: Cats are small animals that live with people. They like to sleep, play and hunt mice.
dogs: Dogs are friendly animals and good companions. They like to run, play and guard the house.
horses: Horses are large, strong animals with four legs. People ride them and use them for work.
birds: Birds are animals with wings and feathers. Most of them can fly, and they lay eggs.
fish: Fish live in water and breathe with gills. They swim with their fins.
bees: Bees are small insects that visit flowers. They make honey and help plants grow.
elephants: Elephants are the largest animals on land. They have long trunks and good memories.
lions: Lions are big cats that live in Africa. They hunt in groups and roar loudly.
whales: Whales are very large mammals that live in the sea. They come up to breathe air.
penguins: Penguins are birds that cannot fly. They swim very well and live in cold places.
spiders: Spiders have eight legs and build webs. They catch insects to eat.
trees: Trees are tall plants with a trunk, branches and leaves. They give us wood, fruit and shade.
flowers: Flowers are the colorful parts of plants. They attract insects and make seeds.
the moon: The moon goes around the earth once a month. It has no air and many craters.
the sun: The sun is a star at the center of our solar system. It gives us light and heat.
the earth: The earth is the third planet from the sun. It has water, air and life.
Mars: Mars is the fourth planet from the sun. It is called the red planet.
Jupiter: Jupiter is the largest planet in the solar system. It is made of gas and has many moons.
stars: Stars are huge balls of hot gas. They look small because they are far away.
rain: Rain is water that falls from clouds. It helps plants grow and fills the rivers.
snow: Snow is made of small ice crystals. It falls in winter when the air is cold.
the sea: The sea is a large body of salt water. Many fish and plants live in it.
rivers: Rivers carry water from the hills to the sea. Many cities were built beside them.
mountains: Mountains are very high hills made of rock. The air at the top is cold and thin.
deserts: Deserts are dry places with little rain. Only a few plants and animals can live there.
forests: Forests are places with many trees. They are home to many animals and clean the air.
Paris: Paris is the capital of France. It is famous for the Eiffel Tower, its art and its food.
London: London is the capital of England. It lies on the river Thames and has many museums.
Rome: Rome is the capital of Italy. It is an old city and is famous for the Colosseum.
Tokyo: Tokyo is the capital of Japan. It is one of the largest cities in the world.
Egypt: Egypt is a country in Africa. It is famous for the Nile and the great pyramids.
Japan: Japan is an island country in Asia. Its capital is Tokyo.
music: Music is the art of sound and rhythm. People sing, play instruments and dance to it.
football: Football is a team sport with a ball. Each team tries to score goals.
tennis: Tennis is a sport for two or four players. They hit a ball over a net.
chess: Chess is a board game for two players. The goal is to trap the king of the other player.
books: Books are pages with text and pictures. They tell stories and share knowledge.
bread: Bread is a food made from flour and water. It is baked in an oven.
cheese: Cheese is a food made from milk. There are many kinds, both soft and hard.
coffee: Coffee is a hot drink made from roasted beans. Many people drink it in the morning.
tea: Tea is a drink made from leaves and hot water. It is popular all over the world.
apples: Apples are round fruits that grow on trees. They can be red, green or yellow.
computers: Computers are machines that work with data. They follow the steps of a program.
programming: Programming means writing steps for a computer. The steps are written in a language that it can run.
language models: A language model is a program that predicts text. It learns from many examples.
Stemma: Stemma is a language for structured generation. Programs mix text, choices and generated parts.
bicycles: Bicycles have two wheels and no motor. You ride them by turning the pedals.
trains: Trains run on rails and carry many people. They are fast and use little energy.
winter: Winter is the coldest season of the year. The days are short and it may snow.
summer: Summer is the warmest season of the year. The days are long and sunny.
water: Water is a clear liquid that all life needs. It covers most of the earth.
gold: Gold is a yellow metal that does not rust. It is used for rings and coins.
gravity: Gravity is the force that pulls things together. It keeps us on the ground.
the heart: The heart is a muscle that pumps blood. It beats about once a second.
""".strip().splitlines())
}
ABOUT_TRAIN = ["Tell me about {x}.", "What do you know about {x}?", "Describe {x}.", "Write two sentences about {x}.",
               "Say something about {x}.", "Explain {x} in simple words.", "Can you tell me about {x}?",
               "Give me a short text about {x}.", "I want to learn about {x}.", "tell me about {x}", "Describe {x} for me.",
               "Could you write about {x}?", "What is special about {x}?", "Please describe {x}.", "Could you explain {x} to me?", "A few words on {x}, please.", "Let us talk about {x}.", "{x}: what can you say about it?"]
ABOUT_HELD = ["Please tell me something about {x}.", "Could you describe {x} for me?"]

UNKNOWN = "I do not know."
# {p} is a made-up place, {n} a made-up person.
UNKNOWN_TRAIN = [
    "What is the capital of {p}?", "Which continent is {p} in?", "What language do people speak in {p}?",
    "Name the capital of {p}.", "Which city is the capital of {p}?", "What is the currency of {p}?",
    "How many people live in {p}?", "Who is the king of {p}?", "Who is {n}?", "What did {n} say yesterday?",
    "Where does {n} live?", "How old is {n}?", "What is my name?", "What did I eat yesterday?", "Where am I?",
    "What is the weather today?", "What time is it?", "Who will win the game tomorrow?", "What is in my pocket?",
    "What will happen next year?", "What is the phone number of {n}?", "Who wrote the book {p}?",
    "Tell me the capital city of {p}.", "What am I thinking?", "How is the weather in {p}?", "Where are my keys?",
    "What is the color of my car?", "Who won the last election in {p}?", "Do you know the capital of {p}?",
    "As what does {n} work?", "What is the job of {n}?", "Which is the biggest town of {p}?", "What is the name of my brother?", "What is my mother called?", "{p} capital", "What language should I learn for {p}?", "Say the capital of {p}.",
    "Will it rain tomorrow?", "The capital of {p} is which city?", "In which city does the government of {p} sit?", "What is the largest river in {p}?", "How old is my dog?", "When is the birthday of {n}?",
]
UNKNOWN_HELD = ["I forgot what the capital of {p} is. Which city is it?", "What is the name of my sister?",
                "Which city is the largest one in {p}?", "What does {n} do for work?",
                "{p} has which city as its capital?", "What is the weather going to be tomorrow?"]

SYSTEMS = [
    "You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "You are a careful assistant.",
    "You answer in short, plain English.", "You are a friendly and helpful assistant.", "Be brief.",
    "Answer the question.", "You are a data extraction tool.", "You extract data and classify text.",
    "You are a helpful AI assistant. Follow the instructions of the user and answer truthfully.",
    "You are Stemma's demo model.", "You are a knowledgeable tutor who helps students with short answers.",
    "You are a helpful assistant for a small company. Read what the user writes, do exactly what is asked, and use "
    "only the information in the text. Keep every answer short and clear.",
    "You are an assistant inside a computer program. Your answers are read by code, so give only what is asked for. "
    "Do not add explanations. If a shape is given, follow it exactly. If you do not know the answer, say so.",
    "Today you help customers of an online shop. Be polite, be exact, and answer with short sentences. When you are "
    "asked for a label, give only the label. When you are asked for fields, copy them from the text.",
]
SYSTEMS_HELD = ["You are an expert assistant. Be polite and concise.", "Act as a useful helper.",
                "You are a helpful agent that works with text."]
