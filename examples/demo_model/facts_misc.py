"""Single facts that fit no table: science, geography, counting, people and shapes.

Each entry is (training questions, reply sentence, short answer).
"""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

_TEXT = """
Which planet is closest to the sun? / What is the planet nearest to the sun? / Name the planet closest to the sun. | Mercury is the planet closest to the sun. | Mercury
Which planet is the largest? / What is the biggest planet? / Name the largest planet. / What is the largest planet in our solar system? | Jupiter is the largest planet. | Jupiter
Which planet is called the red planet? / What planet is known as the red planet? / Name the red planet. | Mars is called the red planet. | Mars
Which planet has big rings? / What planet is famous for its rings? / Name the planet with the large rings. | Saturn is the planet with the big rings. | Saturn
How many planets are there? / How many planets are in the solar system? / What is the number of planets in our solar system? | There are eight planets in the solar system. | eight
What do plants need to grow? / What do plants need in order to live? / Name what plants need to grow. | Plants need water, light and air to grow. | water
What gas do we breathe in to live? / Which gas do people need to breathe? / What gas do humans need? | We need oxygen to live. | oxygen
What gas do plants take in? / Which gas do plants take from the air? / What gas do plants use? | Plants take in carbon dioxide. | carbon dioxide
What is water made of? / Which elements make up water? / What are the elements in water? | Water is made of hydrogen and oxygen. | hydrogen and oxygen
At what temperature does water boil? / When does water boil? / What is the boiling point of water? | Water boils at 100 degrees Celsius. | 100
At what temperature does water freeze? / When does water freeze? / What is the freezing point of water? | Water freezes at 0 degrees Celsius. | 0
What is frozen water called? / What do we call frozen water? / What is water called when it freezes? | Frozen water is called ice. | ice
What is the nearest star to the earth? / Which star is closest to the earth? / Name the star nearest to us. | The sun is the nearest star to the earth. | sun
What goes around the earth? / What is the natural satellite of the earth? / What circles the earth? | The moon goes around the earth. | moon
What is the hardest natural material? / Which natural material is the hardest? / Name the hardest natural material. | Diamond is the hardest natural material. | diamond
What force pulls things down? / What makes things fall to the ground? / Which force makes objects fall? | The force of gravity pulls things down. | gravity
Which organ pumps blood? / What pumps blood through the body? / Name the organ that pumps blood. | The heart pumps blood through the body. | heart
Which organ do we think with? / What organ do we use to think? / Name the organ for thinking. | We think with the brain. | brain
What do we use to see? / Which body part do we see with? / What part of the body is for seeing? | We see with our eyes. | eyes
What do we use to hear? / Which body part do we hear with? / What part of the body is for hearing? | We hear with our ears. | ears
What do bees make? / What food do bees make? / What sweet food comes from bees? | Bees make honey. | honey
What do cows give us to drink? / What drink do we get from cows? / What do we drink that comes from cows? | Cows give us milk. | milk
What do caterpillars become? / What does a caterpillar turn into? / A caterpillar turns into what? | A caterpillar becomes a butterfly. | butterfly
What do pandas eat? / What is the main food of pandas? / Name the food of pandas. | Pandas eat bamboo. | bamboo
Which is the largest animal? / What is the biggest animal in the world? / Name the largest animal on earth. | The blue whale is the largest animal. | blue whale
Which is the tallest animal? / What is the tallest animal in the world? / Name the tallest animal. | The giraffe is the tallest animal. | giraffe
Which is the fastest land animal? / What land animal is the fastest? / Name the fastest animal on land. | The cheetah is the fastest land animal. | cheetah
Which animal is called the king of the jungle? / What animal is the king of the jungle? / Who is the king of the jungle? | The lion is called the king of the jungle. | lion
Where do fish live? / Where does a fish live? / In what do fish live? | Fish live in water. | water
Where do penguins live? / On which continent do most penguins live? / Name the icy place where penguins live. | Many penguins live in Antarctica. | Antarctica
How many days are in a week? / How many days does a week have? / What is the number of days in a week? | A week has seven days. | seven
How many months are in a year? / How many months does a year have? / What is the number of months in a year? | A year has twelve months. | twelve
How many hours are in a day? / How many hours does a day have? / What is the number of hours in a day? | A day has 24 hours. | 24
How many minutes are in an hour? / How many minutes does an hour have? / What is the number of minutes in an hour? | An hour has 60 minutes. | 60
How many seconds are in a minute? / How many seconds does a minute have? / What is the number of seconds in a minute? | A minute has 60 seconds. | 60
How many days are in a year? / How many days does a year have? / What is the number of days in a year? | A year has 365 days. | 365
How many seasons are there? / How many seasons does a year have? / What is the number of seasons? | There are four seasons. | four
How many letters are in the English alphabet? / How many letters does the alphabet have? / What is the number of letters in the alphabet? | The English alphabet has 26 letters. | 26
How many sides does a triangle have? / How many sides are in a triangle? / What is the number of sides of a triangle? | A triangle has three sides. | three
How many sides does a square have? / How many sides are in a square? / What is the number of sides of a square? | A square has four sides. | four
How many sides does a hexagon have? / How many sides are in a hexagon? / What is the number of sides of a hexagon? | A hexagon has six sides. | six
How many sides does a pentagon have? / How many sides are in a pentagon? / What is the number of sides of a pentagon? | A pentagon has five sides. | five
How many wheels does a bicycle have? / How many wheels are on a bicycle? / What is the number of wheels of a bicycle? | A bicycle has two wheels. | two
How many wheels does a car have? / How many wheels are on a car? / What is the number of wheels of a car? | A car has four wheels. | four
How many fingers are on one hand? / How many fingers does a hand have? / What is the number of fingers on a hand? | A hand has five fingers. | five
How many things are in a dozen? / How many is a dozen? / What number is a dozen? | A dozen is twelve. | twelve
How many continents are there? / What is the number of continents? / How many continents does the earth have? | There are seven continents. | seven
How many arms does an octopus have? / What is the number of arms of an octopus? / An octopus has how many arms? | An octopus has eight arms. | eight
How many colors are in a rainbow? / What is the number of colors in a rainbow? / How many colors does a rainbow have? | A rainbow has seven colors. | seven
How many cents are in a dollar? / What is the number of cents in a dollar? / How many cents does a dollar have? | A dollar has 100 cents. | 100
How many meters are in a kilometer? / What is the number of meters in a kilometer? / How many meters make a kilometer? | A kilometer has 1000 meters. | 1000
How many years are in a century? / How many years make a century? / How long is a century? | A century has 100 years. | 100
What is the longest river in Africa? / Which river is the longest in Africa? / Name the longest river of Africa. | The Nile is the longest river in Africa. | Nile
What is the highest mountain? / Which mountain is the highest in the world? / Name the highest mountain on earth. / What is the tallest mountain? | Mount Everest is the highest mountain. | Mount Everest
What is the largest ocean? / Which ocean is the biggest? / Name the largest ocean. | The Pacific is the largest ocean. | Pacific
What is the largest country? / Which country is the biggest in the world? / Name the largest country by area. | Russia is the largest country. | Russia
What is the largest continent? / Which continent is the biggest? / Name the largest continent. | Asia is the largest continent. | Asia
What is the smallest continent? / Which continent is the smallest? / Name the smallest continent. | Australia is the smallest continent. | Australia
What is the largest hot desert? / Which hot desert is the biggest? / Name the largest hot desert. | The Sahara is the largest hot desert. | Sahara
Which river flows through Paris? / What river is in Paris? / Name the river in Paris. | The Seine flows through Paris. | Seine
Which river flows through London? / What river is in London? / Name the river in London. | The Thames flows through London. | Thames
Where is the Eiffel Tower? / In which city is the Eiffel Tower? / Which city has the Eiffel Tower? | The Eiffel Tower is in Paris. | Paris
Where is the Colosseum? / In which city is the Colosseum? / Which city has the Colosseum? | The Colosseum is in Rome. | Rome
Where are the famous pyramids? / In which country are the great pyramids? / Which country has the great pyramids? | The great pyramids are in Egypt. | Egypt
Where is the Great Wall? / In which country is the Great Wall? / Which country has the Great Wall? | The Great Wall is in China. | China
Which ocean is between Europe and America? / What ocean lies between Europe and America? / Name the ocean between Europe and America. | The Atlantic lies between Europe and America. | Atlantic
Who painted the Mona Lisa? / Which artist painted the Mona Lisa? / Name the painter of the Mona Lisa. | Leonardo da Vinci painted the Mona Lisa. | Leonardo da Vinci
Who painted The Starry Night? / Which artist painted The Starry Night? / Name the painter of The Starry Night. | Vincent van Gogh painted The Starry Night. | Vincent van Gogh
Who discovered gravity? / Which scientist described gravity? / Who explained gravity first? | Isaac Newton described gravity. | Isaac Newton
Who developed the theory of relativity? / Which scientist made the theory of relativity? / Whose theory is relativity? | Albert Einstein developed the theory of relativity. | Albert Einstein
Who invented the telephone? / Which person invented the telephone? / Name the inventor of the telephone. | Alexander Graham Bell invented the telephone. | Alexander Graham Bell
Who developed the theory of evolution? / Which scientist described evolution? / Whose theory is evolution? | Charles Darwin described evolution. | Charles Darwin
Who was the first person on the moon? / Which person walked on the moon first? / Who first walked on the moon? | Neil Armstrong was the first person on the moon. | Neil Armstrong
Who was the first president of the United States? / Which man was the first president of the United States? / Name the first American president. | George Washington was the first president of the United States. | George Washington
Who discovered radium? / Which scientist discovered radium? / Name the scientist who found radium. | Marie Curie discovered radium. | Marie Curie
Who discovered penicillin? / Which scientist discovered penicillin? / Name the scientist who found penicillin. | Alexander Fleming discovered penicillin. | Alexander Fleming
Who composed the Moonlight Sonata? / Which composer wrote the Moonlight Sonata? / Name the composer of the Moonlight Sonata. | Beethoven composed the Moonlight Sonata. | Beethoven
What color do you get from blue and yellow? / What do blue and yellow make? / Mix blue and yellow: which color is it? | Blue and yellow make green. | green
What color do you get from red and yellow? / What do red and yellow make? / Mix red and yellow: which color is it? | Red and yellow make orange. | orange
What color do you get from red and blue? / What do red and blue make? / Mix red and blue: which color is it? | Red and blue make purple. | purple
What color do you get from black and white? / What do black and white make? / Mix black and white: which color is it? | Black and white make gray. | gray
Which season comes after winter? / What season follows winter? / Name the season after winter. | The season after winter is spring. | spring
Which season comes after spring? / What season follows spring? / Name the season after spring. | The season after spring is summer. | summer
Which season comes after summer? / What season follows summer? / Name the season after summer. | The season after summer is autumn. | autumn
Which season comes after autumn? / What season follows autumn? / Name the season after autumn. | The season after autumn is winter. | winter
Which is the coldest season? / What season is the coldest? / Name the coldest season. | Winter is the coldest season. | winter
In which direction does the sun rise? / Where does the sun rise? / On which side does the sun come up? | The sun rises in the east. | east
In which direction does the sun set? / Where does the sun set? / On which side does the sun go down? | The sun sets in the west. | west
What do we call a person who flies a plane? / Who flies a plane? / What is the job of a person who flies planes? | A pilot flies a plane. | pilot
Who works in a school and teaches children? / Who teaches children? / What is the job of a person who teaches? | A teacher teaches children. | teacher
Who puts out fires? / What is the job of a person who puts out fires? / Who fights fires? | A firefighter puts out fires. | firefighter
What do we use to cut paper? / Which tool cuts paper? / Name a tool to cut paper. | We use scissors to cut paper. | scissors
What tells the time? / What do we use to tell the time? / Which thing shows the time? | A clock tells the time. | clock
What is bread made from? / What do bakers make bread from? / What is the main part of bread? | Bread is made from flour. | flour
What is cheese made from? / What do we make cheese from? / From what is cheese made? | Cheese is made from milk. | milk
What is wine made from? / What fruit is wine made from? / From what is wine made? | Wine is made from grapes. | grapes
What is paper made from? / What do we make paper from? / From what is paper made? | Paper is made from wood. | wood
What is the first letter of the alphabet? / Which letter is first in the alphabet? / Name the first letter of the alphabet. | The first letter of the alphabet is A. | A
What is the last letter of the alphabet? / Which letter is last in the alphabet? / Name the last letter of the alphabet. | The last letter of the alphabet is Z. | Z
How do you say hello in French? / What is the French word for hello? / Translate hello to French. | Hello in French is bonjour. | bonjour
How do you say hello in Spanish? / What is the Spanish word for hello? / Translate hello to Spanish. | Hello in Spanish is hola. | hola
How do you say thank you in French? / What is the French word for thank you? / Translate thank you to French. | Thank you in French is merci. | merci
How do you say thank you in Spanish? / What is the Spanish word for thank you? / Translate thank you to Spanish. | Thank you in Spanish is gracias. | gracias
How do you say thank you in German? / What is the German word for thank you? / Translate thank you to German. | Thank you in German is danke. | danke
"""


def _parse() -> list[tuple[tuple[str, ...], str, str]]:
    out = []
    for line in _TEXT.strip().splitlines():
        train, reply, answer = (part.strip() for part in line.split(" | "))
        out.append((tuple(q.strip() for q in train.split(" / ")), reply, answer))
    return out


MISC = _parse()
