"""Word lists for the synthetic data.

Plain data, kept in one place on purpose: every list comes as a training part and,
where the evaluation needs words the model never saw, a ``HELD_`` part that the
generators must not use.  ``evaluate.py`` asserts that the two never meet.
"""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations


def _w(text: str) -> list[str]:
    """Split a comma-separated block into a list of stripped entries."""
    return [part.strip() for part in text.replace("\n", " ").split(",") if part.strip()]


FIRST = _w("""
Anna, Ben, Clara, David, Emma, Frank, Grace, Henry, Irene, Jack, Karen, Liam, Maria, Noah, Olivia, Peter,
Quinn, Rosa, Samuel, Tina, Umar, Vera, William, Xenia, Yusuf, Zoe, Alice, Bob, Carlos, Diana, Ethan, Fatima,
George, Hannah, Ivan, Julia, Kevin, Laura, Marco, Nina, Oscar, Paula, Robert, Sara, Thomas, Ursula, Victor,
Wendy, Yara, Zack, Ahmed, Bella, Chen, Dora, Elif, Felix, Gita, Hugo, Ines, Jonas, Kofi, Lena, Mina, Nils,
Omar, Petra, Raj, Sofia, Tom, Uma, Vikram, Wei, Yuki, Zara, Adam, Bruno, Cora, Daniel, Eva, Finn, Greta,
Hassan, Ida, James, Kate, Lucas, Mary, Nora, Otto, Pablo, Rita, Simon, Tara, Vincent, Willa, Zofia, Jane,
John, Susan, Mark, Lily, Max, Leo, Mia, Ella, Paul, Ruth, Sam, Joan, Carl, Dana, Erik, José, Zoë, André,
Chloé, Jürgen, Søren, Émile, Ana María, Mary Jane, Jean Luc
""")
HELD_FIRST = _w("""
Ada, Beatrice, Cedric, Dmitri, Edith, Farid, Gloria, Harold, Isabel, Jasper, Kira, Leonard, Miriam, Nadia,
Orlando, Priya, Ramona, Stefan, Theo, Valerie, Walter, Yolanda, Zeke, Akira, Bridget, Clement, Daphne, Elliot,
Fiona, Gareth, Helga, Ismael, Judith, Kenji, Lorna, Magnus, Naomi, Olaf, Penelope, Rupert, Selma, Tobias
""")
LAST = _w("""
Smith, Jones, Garcia, Miller, Davis, Lopez, Wilson, Anderson, Taylor, Moore, Martin, Lee, Thompson, White,
Harris, Clark, Lewis, Young, Walker, Hall, Allen, King, Wright, Scott, Green, Baker, Adams, Nelson, Hill,
Ramirez, Campbell, Mitchell, Roberts, Carter, Phillips, Evans, Turner, Torres, Parker, Collins, Edwards,
Stewart, Flores, Morris, Nguyen, Murphy, Rivera, Cook, Rogers, Morgan, Peterson, Cooper, Reed, Bailey, Bell,
Kelly, Howard, Ward, Cox, Diaz, Wood, Watson, Brooks, Bennett, Gray, Kim, Chen, Patel, Müller, Rossi, Silva,
Okoye, Haddad, Novak, Ivanov, Tanaka, Singh, Berg, Dubois, Costa, Meyer, Larsen, Kaya, Ali, O'Brien, de la Cruz
""")
HELD_LAST = _w("""
Lovelace, Fischer, Marlowe, Whitfield, Castellan, Duarte, Eklund, Farrow, Grimaldi, Hawthorne, Iverson,
Jankowski, Kowalczyk, Lindqvist, Mbeki, Nakamura, Orwin, Pettigrew, Quigley, Rasmussen, Sandoval, Thackeray,
Ulrich, Vasquez, Winslow, Yamamoto, Zimmerman, Abernathy, Blackwood, Crowley
""")
CITIES = _w("""
Boston, Chicago, Denver, Seattle, Houston, Dallas, Austin, Miami, Atlanta, Phoenix, Portland, Detroit,
Toronto, Vancouver, Montreal, Calgary, Manchester, Liverpool, Leeds, Bristol, Glasgow, Edinburgh, Cardiff,
Lyon, Marseille, Nice, Toulouse, Hamburg, Munich, Cologne, Frankfurt, Dresden, Milan, Naples, Turin, Venice,
Barcelona, Valencia, Seville, Porto, Antwerp, Rotterdam, Zurich, Geneva, Basel, Salzburg, Krakow, Istanbul,
Izmir, Mumbai, Chennai, Karachi, Lahore, Shanghai, Shenzhen, Osaka, Kyoto, Busan, Sydney, Melbourne, Perth,
Auckland, Lagos, Durban, Casablanca, Alexandria, Dubai, Bergen, Gothenburg, Aarhus, New York, Los Angeles,
San Francisco, San Diego, Cape Town, Hong Kong, Rio de Janeiro, St. Louis, Paris, London, Rome, Berlin,
Madrid, Tokyo, Vienna, Prague, Oslo, Dublin, Lisbon, Athens, Cairo, Nairobi, Lima, Delhi, São Paulo, Málaga
""")
HELD_CITIES = _w("""
Pittsburgh, Baltimore, Nashville, Tucson, Omaha, Winnipeg, Halifax, Plymouth, Norwich, Sheffield, Bordeaux,
Grenoble, Leipzig, Stuttgart, Bologna, Palermo, Bilbao, Granada, Utrecht, Ghent, Lausanne, Graz, Gdansk,
Odessa, Haifa, Jaipur, Kolkata, Nagoya, Sapporo, Adelaide, Brisbane, Dunedin, Mombasa, Kumasi, Tampere,
Malmo, Salt Lake City, Santa Cruz, Fort Worth, Palo Alto
""")
JOBS = _w("""
teacher, doctor, nurse, engineer, baker, farmer, pilot, lawyer, plumber, carpenter, chef, driver, painter,
writer, artist, musician, singer, actor, dentist, police officer, firefighter, librarian, scientist, cashier,
waiter, gardener, tailor, barber, butcher, mechanic, electrician, architect, accountant, journalist, editor,
photographer, programmer, designer, manager, secretary, translator, judge, soldier, sailor, fisherman, guide,
coach, student, software engineer, taxi driver, shop owner, bank clerk, data analyst, music teacher
""")
HELD_JOBS = _w("""
surgeon, blacksmith, florist, geologist, welder, jeweler, beekeeper, bus driver, sculptor, bookkeeper,
zookeeper, chemist, optician, bricklayer, park ranger, web developer, violin maker, tour operator
""")
ITEMS = _w("""
notebooks, pencils, desk lamps, chairs, tables, coffee mugs, plates, spoons, towels, pillows, blankets,
shirts, socks, shoes, hats, jackets, gloves, scarves, backpacks, umbrellas, water bottles, phone cases,
keyboards, mice, monitors, cables, batteries, light bulbs, candles, picture frames, clocks, mirrors, rugs,
curtains, flower pots, garden hoses, hammers, screwdrivers, paint brushes, markers, erasers, rulers, folders,
envelopes, stamps, postcards, puzzles, board games, soccer balls, tennis balls, bicycles, helmets, tents,
sleeping bags, apples, oranges, lemons, eggs, loaves of bread, bags of rice, jars of honey, boxes of tea,
red pens, blue chairs, small boxes, wooden spoons, green bags, paper cups, glass bowls, steel pots
""")
HELD_ITEMS = _w("""
staplers, binders, teapots, napkins, aprons, lanterns, thermos flasks, yoga mats, kettles, toasters, whistles,
ladders, wrenches, shovels, sketchbooks, crayons, calendars, headphones, speakers, chess sets, bags of flour,
bars of soap, bunches of grapes, tins of beans, copper pans, silk ties
""")
PETS = _w("dog, cat, rabbit, hamster, parrot, turtle, goldfish, pony, canary, lizard, puppy, kitten, mouse, duck, goat")
HELD_PETS = _w("ferret, gecko, guinea pig, tortoise, budgie, donkey")
PET_NAMES = _w("""
Rex, Bella, Max, Luna, Charlie, Coco, Rocky, Daisy, Buddy, Milo, Lucy, Molly, Toby, Ruby, Oreo, Ginger, Simba,
Nala, Pepper, Shadow, Snowy, Spot, Tiger, Smokey, Lola, Oscar, Felix, Kiki, Teddy, Penny
""")
HELD_PET_NAMES = _w("Biscuit, Pickles, Waffles, Ziggy, Noodle, Rascal, Clover, Bingo, Pippin, Domino, Fudge, Tofu")
PLACES = _w("""
the main office, room 4, room 12, the library, the park, the town hall, the cafe, the kitchen, the school,
the station, the garden, the lobby, the museum, the gym, the meeting room, the conference room, the lab,
the blue room, the hotel bar, the harbor, the market, the theater, the church hall, the old factory, room 27
""")
HELD_PLACES = _w("""
the rooftop, the bookshop, room 38, the canteen, the clinic, the boathouse, the green room, the workshop,
the chapel, the north gate, the studio, the pier
""")
DAYS = _w("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = _w("January, February, March, April, May, June, July, August, September, October, November, December")
TITLE_A = _w("""
Silent, Golden, Lost, Hidden, Broken, Red, Blue, Last, First, Dark, Bright, Empty, Secret, Frozen, Burning,
Wild, Gentle, Little, Great, Ancient, Distant, Quiet, Iron, Silver, Paper, Glass, Stone, Winter, Summer, Midnight
""")
TITLE_N = _w("""
River, Garden, House, Road, Mountain, Sea, Forest, Tower, Letter, City, Island, Bridge, Key, Door, Star, Moon,
Storm, Song, Shadow, Mirror, Clock, Train, Harbor, Field, Crown, Bird, Wolf, Flower, Castle, Fire
""")
HELD_TITLE_A = _w("Crimson, Wandering, Hollow, Velvet, Forgotten, Crooked, Amber, Restless, Sapphire, Twilight")
HELD_TITLE_N = _w("Lighthouse, Orchard, Compass, Gondola, Meadow, Labyrinth, Pavilion, Canyon, Lantern, Voyage")
STREETS = _w("""
Main Street, Oak Street, Park Road, High Street, Mill Lane, River Road, Church Street, Station Road, Hill Street,
Garden Lane, Lake Road, Market Square, Elm Street, Bridge Street, King Street, Queen Street, Maple Avenue
""")
HELD_STREETS = _w("Willow Lane, Harbour Row, Chestnut Avenue, Foundry Street, Abbey Road, Juniper Street, Quarry Lane")
SHOP_KINDS = _w("cafe, bakery, museum, bookshop, restaurant, hotel, library, flower shop, toy shop, bike shop, gallery, gym")
FOODS = _w("""
apple pie, tomato soup, fresh bread, fish stew, lemon cake, pancakes, noodle soup, cheese toast, green curry,
roast chicken, hot chocolate, mint tea, carrot cake, onion tart, rice pudding, grilled fish, bean salad
""")
HELD_FOODS = _w("pumpkin soup, plum cake, mushroom risotto, cinnamon rolls, lentil stew, potato salad")
MAIL_HOSTS = _w("mail.com, example.com, post.net, inbox.org, office.io, web.de, school.edu, home.net, example.org")
ONSETS = ["", "", *_w("""
b, br, c, ch, cl, d, dr, f, fl, g, gr, h, j, k, kr, l, m, n, p, pl, pr, qu, r, s, sh, sk, sl, st, t, th, tr, v, w,
y, z, bl, gl, fr, sn, sw
""")]
VOWELS = _w("a, e, i, o, u, a, e, i, o, ai, ea, ee, ia, io, oo, ou, ua, y, au, ei")
CODAS = _w("b, ck, d, l, ll, m, n, nd, ng, nt, p, r, rd, rk, rn, s, sk, ss, st, t, th, v, x, z, ld, lm, rt, ff") + 22 * [""]
ENDINGS = _w("son, ton, ville, burg, ford, berg, field, man, ski, ova, ez, ini, ley, wood, stad, land, port, dale")

# ---- category lists: "name three fruits", "which of these is a fruit?", "is a plum a fruit?"
CATEGORIES: dict[str, list[str]] = {
    "fruit": _w("apple, banana, orange, pear, plum, grape, peach, cherry, mango, lemon, melon, kiwi"),
    "vegetable": _w("carrot, potato, onion, cabbage, spinach, pea, cucumber, leek, radish, turnip, celery, beet"),
    "animal": _w("dog, cat, horse, cow, lion, tiger, elephant, rabbit, sheep, wolf, bear, monkey"),
    "bird": _w("eagle, sparrow, owl, robin, pigeon, swan, parrot, crow, duck, penguin, gull, hawk"),
    "color": _w("red, blue, green, yellow, purple, orange, pink, brown, black, white, gray, violet"),
    "tool": _w("hammer, saw, drill, wrench, screwdriver, axe, shovel, rake, chisel, pliers, file, clamp"),
    "piece of furniture": _w("chair, table, bed, sofa, desk, shelf, wardrobe, stool, bench, cupboard, armchair, dresser"),
    "vehicle": _w("car, bus, train, bicycle, truck, boat, plane, tram, van, scooter, ship, motorbike"),
    "musical instrument": _w("piano, guitar, violin, drum, flute, trumpet, cello, harp, clarinet, banjo, oboe, tuba"),
    "sport": _w("football, tennis, swimming, running, basketball, hockey, golf, rugby, cycling, boxing, rowing, skiing"),
    "drink": _w("water, tea, coffee, milk, juice, lemonade, cocoa, soda, cider, wine, beer, smoothie"),
    "piece of clothing": _w("shirt, coat, hat, sock, shoe, scarf, glove, dress, skirt, jacket, sweater, belt"),
    "metal": _w("iron, gold, silver, copper, tin, lead, zinc, nickel, steel, aluminum, bronze, brass"),
    "planet": _w("Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune"),
    "country": _w("France, Spain, Italy, Japan, Brazil, Canada, Egypt, India, Kenya, Norway, Peru, Greece"),
    "body part": _w("arm, leg, hand, foot, head, nose, ear, eye, knee, elbow, shoulder, finger"),
    "flower": _w("rose, tulip, daisy, lily, orchid, sunflower, daffodil, poppy, violet, iris, lavender, peony"),
}
