"""Advice the demo model can give: topics, three short tips each, and a short paragraph per tip.

A text file in spirit; it is a module so that it needs no loader.
"""
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

_TEXT = """
staying healthy
Eat fresh food every day. :: Fresh fruit and vegetables give your body what it needs. Try to have some with every meal and keep sweets for special days.
Move for thirty minutes a day. :: A walk, a swim or a bike ride keeps your heart strong. Thirty minutes a day is enough, and it can be fun with a friend.
Sleep eight hours a night. :: Sleep lets the body rest and repair itself. Go to bed at the same time each night and keep the room dark and quiet.
sleeping better
Go to bed at the same time. :: A fixed bedtime trains your body to feel tired at the right hour. Keep it even on weekends.
Keep your room dark and cool. :: Light and heat keep the body awake. Close the curtains and open a window before you go to bed.
Put your phone away early. :: Bright screens tell the brain that it is day. Read a book in the last hour before bed instead.
learning a language
Practice a little every day. :: Ten minutes each day are better than two hours once a week. Small steps add up quickly.
Speak with other people. :: Talking makes new words stick. Find a partner and do not worry about mistakes.
Read simple stories. :: Simple stories show you how the words are used. Choose books for children first and look up only a few words.
saving money
Write down what you spend. :: A list of your costs shows where the money goes. Look at it each week and choose one thing to cut.
Cook at home. :: Food from a restaurant costs much more than a meal at home. Cook a large pot and keep some for the next day.
Save first each month. :: Put some money aside on the day you are paid. What is out of sight is not spent so easily.
studying for a test
Start early. :: When you start early you can learn in small parts. Make a plan with one topic for each day.
Test yourself with questions. :: Questions show you what you do not know yet. Close the book and try to answer from memory.
Take short breaks. :: The mind gets tired after an hour. Stand up, drink some water and come back fresh.
writing a good letter
Say the main point first. :: A busy reader wants to know why you write. Put the main point in the first sentence.
Use short sentences. :: Short sentences are easy to follow. If a sentence has more than twenty words, cut it in two.
Read it aloud before sending. :: Your ear finds mistakes that your eye misses. Read the letter aloud and fix what sounds wrong.
cooking a good meal
Use fresh ingredients. :: Fresh ingredients give the best taste. Buy what is in season and use it soon.
Taste while you cook. :: Tasting tells you what the food still needs. Add salt a little at a time.
Do not rush. :: Many dishes need time to become tender. Use low heat and enjoy the smell.
growing plants
Water them in the morning. :: In the morning the water can sink in before the sun is hot. Give less water more often to young plants.
Give them enough light. :: Most plants need bright light to grow. Put them near a window and turn the pot now and then.
Use good soil. :: Good soil feeds the roots and holds water. Mix in some compost every spring.
keeping a dog happy
Walk it every day. :: A dog needs to run and smell new things. Two walks a day keep it calm and fit.
Play with it often. :: Play keeps the mind of a dog busy. A ball or an old rope is all you need.
Train it with treats. :: Dogs learn fast when they get a reward. Give a small treat right after the dog does well.
traveling cheaply
Book early. :: Early tickets are often half the price. Look for dates in the middle of the week.
Pack light. :: A small bag costs nothing extra and is easy to carry. Take clothes that you can wear in layers.
Eat where local people eat. :: Local places are cheap and the food is good. Walk a few streets away from the main square.
making friends
Smile and say hello. :: A smile shows people that you are friendly. A simple hello is a good start.
Ask questions and listen. :: People like to talk about what they love. Ask a question and listen to the whole answer.
Join a club. :: In a club you meet people who share your interests. You see them each week, so friendship can grow.
staying calm
Breathe slowly. :: Slow breaths tell the body that it is safe. Breathe in for four seconds and out for six.
Take a short walk. :: A walk moves your body and clears your mind. Ten minutes outside are often enough.
Talk to a friend. :: A problem feels smaller when you share it. Call someone you trust and tell them how you feel.
saving water
Take short showers. :: A short shower uses much less water than a bath. Five minutes is a good goal.
Fix dripping taps. :: A dripping tap can waste a bucket a day. A new ring is cheap and easy to put in.
Collect rain for the garden. :: Rain is free and plants like it. Put a barrel under the roof and use it in summer.
saving energy
Turn off the lights. :: A light in an empty room helps nobody. Turn it off each time you leave.
Wash clothes in cold water. :: Heating the water takes most of the energy. Cold water cleans most clothes just as well.
Use less heating. :: One degree less makes a real difference. Wear a sweater and close the doors.
public speaking
Practice aloud. :: Saying the words aloud shows you where you get stuck. Practice three times before the day.
Speak slowly. :: When we are nervous we speak too fast. Pause after each point so that people can follow.
Look at the audience. :: Eye contact keeps people with you. Choose a few friendly faces and look at them in turn.
a job interview
Learn about the company. :: Good answers show that you know the company. Read its website and note two questions.
Arrive early. :: Arriving early gives you time to relax. Plan to be there ten minutes before the talk.
Give clear examples. :: Examples make your skills easy to believe. Tell what you did and what came of it.
writing clean code
Use clear names. :: Clear names explain the code without comments. Choose a name that says what the thing does.
Keep functions short. :: A short function is easy to read and test. If it does two things, make two functions.
Write tests. :: Tests tell you when a change breaks something. Write one for each bug that you fix.
using the internet safely
Use strong passwords. :: A strong password is long and different for each site. A password manager can remember them for you.
Do not open strange links. :: Strange links can lead to false pages. If you are not sure, ask the sender first.
Keep your software up to date. :: Updates close holes that thieves use. Let your computer install them by itself.
riding a bike safely
Wear a helmet. :: A helmet protects your head in a fall. It should sit flat and fit well.
Use lights at night. :: Lights help drivers see you in time. Use a white one in front and a red one behind.
Check your brakes. :: Good brakes can save your life. Test them before each ride.
cleaning the house
Do a little each day. :: Ten minutes a day keep the big mess away. Start with the kitchen.
Start at the top. :: Dust falls down, so start with the shelves. Clean the floor last.
Throw away what you do not need. :: Fewer things mean less to clean. Give away what you have not used for a year.
running faster
Run with short sprints. :: Short sprints make your legs strong and quick. Run fast for one minute and then slowly for two.
Rest between runs. :: Muscles grow while you rest. Take one day off after each hard run.
Wear good shoes. :: Good shoes protect your knees. Change them when the soles are worn.
taking better photos
Use soft light. :: Soft light makes colors warm and faces kind. Early morning and evening are the best times.
Move closer. :: A close photo shows more and feels alive. Take two steps forward before you press the button.
Keep the picture simple. :: A simple picture has one clear subject. Leave out what does not help it.
raising children
Listen to them. :: Children open up when they feel heard. Sit down and give them your full attention.
Read to them each night. :: Stories build words and closeness. Ten minutes before bed is a good habit.
Set clear rules. :: Clear rules make children feel safe. Keep them few and explain why they matter.
working from home
Keep fixed hours. :: Fixed hours keep work from filling the whole day. Start and stop at the same time.
Make a quiet desk. :: A quiet desk helps you focus. Keep only what you need on it.
Go outside at noon. :: Fresh air wakes you up for the afternoon. A short walk after lunch is enough.
winning at chess
Control the center. :: Pieces in the center can reach more squares. Move your middle pawns first.
Protect your king. :: A safe king lets you attack without fear. Castle early in the game.
Think before each move. :: Every move gives the other side a chance. Ask what your opponent wants to do.
painting a wall
Clean the wall first. :: Paint does not hold on dust or grease. Wash the wall and let it dry.
Use tape on the edges. :: Tape gives you straight lines. Pull it off before the paint is hard.
Paint two thin coats. :: Two thin coats look better than one thick coat. Wait until the first is dry.
hiking
Bring enough water. :: You lose water when you walk. Take at least one liter for half a day.
Check the weather. :: Weather in the hills can change fast. Look at the forecast and take a rain jacket.
Tell someone your route. :: If something happens, others know where to look. Tell them when you will be back.
baking bread
Use warm water. :: Warm water wakes up the yeast. It should feel like a warm bath.
Let the dough rest. :: Resting makes the bread light. Wait until the dough is twice as big.
Use a hot oven. :: A hot oven gives a crisp crust. Heat it for half an hour before you start.
playing the guitar
Practice slowly. :: Slow practice trains the fingers well. Speed comes by itself later.
Learn simple songs. :: Simple songs keep you happy while you learn. Three chords are enough for many of them.
Tune it each time. :: A guitar that is in tune sounds good. Check each string before you play.
caring for a cat
Give it a quiet place. :: Cats sleep a lot and like to be alone at times. A box with a blanket is perfect.
Keep the water fresh. :: Cats drink more when the water is clean. Change it every morning.
Play in the evening. :: Cats like to hunt when it gets dark. Ten minutes with a string makes them calm.
planning a party
Invite people early. :: People need time to plan. Send your invitations two weeks before the day.
Make a simple menu. :: Simple food leaves you time for your guests. Choose things that people can eat by hand.
Choose good music. :: Music sets the mood of the night. Start softly and make it louder later.
managing time
Make a short list. :: A short list shows what matters today. Write three things and do them first.
Do hard things first. :: The mind is fresh in the morning. Do the hard task before you open your mail.
Say no sometimes. :: Every yes takes time from something else. A kind no protects your plans.
reading more books
Carry a book with you. :: A book in your bag turns waiting into reading. Ten pages here and there add up.
Read before bed. :: Reading helps you relax at night. Leave the phone in another room.
Choose books you like. :: You read faster when you enjoy the story. Put a dull book away without shame.
drinking more water
Keep a bottle near you. :: You drink what you can see. Put a bottle on your desk and fill it twice a day.
Drink a glass with each meal. :: Meals are easy to remember. One glass each time gives you three a day.
Add some lemon. :: A slice of lemon makes water taste fresh. Mint works well too.
eating less sugar
Drink water and not soda. :: Soda has a lot of sugar in it. Water is better for your teeth and costs less.
Read the labels. :: Many foods hide sugar. Compare two products and take the one with less.
Eat fruit for dessert. :: Fruit is sweet and good for you. Keep a bowl of it on the table.
driving in winter
Slow down. :: Snow and ice make the road slippery. Drive slowly and leave more space.
Use winter tires. :: Winter tires hold the road better. Put them on before the first snow.
Clear all windows. :: You must see in every direction. Remove snow and ice before you start.
being happy
Be thankful. :: Being thankful turns the mind to good things. Write down three of them each night.
Help others. :: Helping someone makes two people happy. Even a small favor counts.
Spend time outside. :: Sun and fresh air lift the mood. Go out for a while every day.
learning to swim
Start in shallow water. :: In shallow water you can stand up at any time. That makes it easy to relax.
Learn to float. :: Floating shows you that water carries you. Lie on your back and breathe calmly.
Take lessons. :: A teacher sees what you do wrong. A few lessons save you months.
giving a gift
Think about the person. :: A good gift fits the person who gets it. Think about what makes them smile.
Wrap it nicely. :: Nice paper makes a small gift special. Add a card with a few kind words.
Keep it simple. :: A gift does not have to cost a lot. Time and care matter more.
starting a garden
Start small. :: A small garden is easy to keep. Begin with one bed and add more next year.
Choose easy plants. :: Easy plants forgive mistakes. Try beans, herbs or sunflowers.
Pull weeds early. :: Small weeds come out easily. Check your beds once a week.
focusing at work
Turn off alerts. :: Alerts break your focus many times an hour. Check your messages at fixed times.
Do one thing at a time. :: The mind is slow at switching tasks. Finish one thing and then start the next.
Take real breaks. :: A break away from the screen rests your eyes. Stand up every hour.
"""


def _parse() -> dict[str, list[tuple[str, str]]]:
    topics: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for line in _TEXT.strip().splitlines():
        if " :: " in line:
            tip, paragraph = line.split(" :: ")
            topics[current].append((tip, paragraph))
        else:
            current = line.strip()
            topics[current] = []
    return topics


TIPS = _parse()
NUMBER_WORDS = ["one", "two", "three"]

ASK_TRAIN = [
    "Give {n} tips for {topic}.",
    "Give me {n} tips for {topic}.",
    "What are {n} tips for {topic}?",
    "List {n} tips for {topic}.",
    "I need {n} tips on {topic}.",
    "Write {n} short tips about {topic}.",
    "Please share {n} tips for {topic}.",
    "{n} tips for {topic}",
    "How do I get better at {topic}? Give {n} tips.",
    "Name {n} tips for {topic}, please.",
]
ASK_HELD = ["Can you suggest {n} tips about {topic}?", "Tell me {n} good tips for {topic}."]
ONE_TRAIN = ["Give one tip for {topic}.", "Give me a tip for {topic}.", "What is a good tip for {topic}?",
             "Do you have any advice on {topic}?", "One tip for {topic}, please."]
EXPAND_TRAIN = [
    "Expand this tip: {tip}",
    "Expand this tip into a paragraph: {tip}",
    "Please expand the tip: {tip}",
    "Explain this tip: {tip}",
    "Write a short paragraph about this tip: {tip}",
    "Tell me more about this tip: {tip}",
    "Expand the following tip on {topic}: {tip}",
    "Expand the following tip into a detailed paragraph:\n{tip}",
]
EXPAND_HELD = ["Could you expand on this tip? {tip}", "Turn this tip into a short paragraph: {tip}"]
FOLLOW_TRAIN = ["Expand tip {i}.", "Expand tip {i} into a paragraph.", "Tell me more about tip {i}.", "Explain tip {i}.",
                "Please expand tip {i}.", "Now expand tip {i} into a detailed paragraph."]
