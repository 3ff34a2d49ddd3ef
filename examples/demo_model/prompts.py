"""Prompt templates for sums, choices and lists, and small openers and closers of questions.

``_ASK`` lists are for training, ``_HELD`` lists for the evaluation.
"""

from __future__ import annotations

BEFORE = [
    "Please tell me: ",
    "Quick question: ",
    "Hi! ",
    "I have a question. ",
    "Hello, ",
    "Question: ",
    "Can you help me? ",
    "One more question: ",
    "Please answer this. ",
    "Ok. ",
]
AFTER = [" Thanks!", " Please answer.", " I want to know.", " Please help me.", " Thank you."]
SHORT = [
    " Answer with one word.",
    " Answer briefly.",
    " Give only the answer.",
    " Only the answer, please.",
    " One word only.",
    " Just the answer.",
]
ADD_ASK = [
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a} + {b} =",
    "Add {a} and {b}.",
    "What is {a} plus {b}?",
    "Calculate {a} + {b}.",
    "How much is {a} + {b}?",
    "What is the sum of {a} and {b}?",
    "{a} plus {b} is what?",
    "Compute {a}+{b}.",
    "What do you get if you add {a} and {b}?",
    "I have {a} apples and get {b} more. How many do I have?",
    "There are {a} cats and {b} dogs. How many animals are there?",
    "{n} has {a} coins and finds {b} more. How many coins does {n} have now?",
    "Please add {a} to {b}.",
    "{n} buys {a} {i} and then {b} {i}. How many {i} are that?",
    "We have {a} {i}. My {r} brings {b} more. How many {i} do we have?",
    "A box has {a} {i}. I put {b} more in. How many {i} are in it?",
    "{n} owns {a} {i} and gets {b} more. How many {i} does {n} have?",
    "First {a} {i} came, then {b} more. How many {i} came in all?",
    "What do {a} and {b} make together?",
    "Give me {a} plus {b}.",
    "{a} and {b}: what is the total?",
    "Sum of {a} and {b}?",
    "I want the result of {a} + {b}.",
]
ADD_HELD = [
    "Tell me the result of {a} + {b}.",
    "Can you add {a} and {b} for me?",
    "If I put {a} and {b} together, what is the sum?",
    "Hana has {a} stamps and buys {b} more. How many stamps does Hana have now?",
]
SUB_ASK = [
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a} - {b} =",
    "Subtract {b} from {a}.",
    "What is {a} minus {b}?",
    "Calculate {a} - {b}.",
    "How much is {a} - {b}?",
    "{n} has {a} coins and loses {b}. How many coins are left?",
    "Take {b} away from {a}.",
    "Compute {a}-{b}.",
    "{n} had {a} {i} and sold {b}. How many {i} are left?",
    "From {a} {i} my {r} takes {b}. How many {i} stay?",
    "There were {a} {i}, and {b} were lost. How many {i} remain?",
    "Give me {a} minus {b}.",
    "What remains when I take {b} from {a}?",
    "{n} has {a} {i} and gives {b} to a friend. How many {i} does {n} keep?",
    "I want the result of {a} - {b}.",
    "Difference of {a} and {b}?",
]
SUB_HELD = ["Tell me the result of {a} - {b}.", "Hana has {a} stamps and gives away {b}. How many stamps are left?"]
MUL_ASK = [
    "What is {a} * {b}?",
    "{a} * {b}",
    "{a} x {b} =",
    "Multiply {a} by {b}.",
    "What is {a} times {b}?",
    "Calculate {a} times {b}.",
    "How much is {a} times {b}?",
    "What is the product of {a} and {b}?",
    "Compute {a} * {b}.",
]
MUL_HELD = ["Tell me the result of {a} times {b}.", "Can you multiply {a} by {b} for me?"]
PICK_ASK = [
    "Which of these is a {c}: {o}?",
    "Pick the {c}: {o}",
    "Choose the {c} from this list: {o}.",
    "Which one is a {c}? {o}",
    "Find the {c}: {o}",
    "{o}\nWhich of these is a {c}?",
    "Options: {o}\nWhich is a {c}?",
]
PICK_HELD = ["From these words, choose the one that is a {c}: {o}", "Only one of these is a {c}: {o}. Which one?"]
YES_NO_ASK = [
    "Is it true that {s}?",
    "Is this true? {S}.",
    "Is the following correct: {S}.",
    "{S}. Is that right?",
    "True? {S}.",
    "Is this correct? {S}.",
    "I heard that {s}. Is it true?",
    "My friend says that {s}. Is he right?",
    "Check this: {S}.",
    "Would you say that {s}?",
    "Is the sentence right? {S}.",
]
YES_NO_HELD = ["Someone told me that {s}. Is that correct?", "Is this statement right? {S}."]
LIST_ASK = [
    "Name {n} {c}.",
    "List {n} {c}.",
    "Give me {n} {c}.",
    "Give {n} examples of {c}.",
    "What are {n} {c}?",
    "Tell me {n} {c}.",
]
LIST_HELD = ["Can you name {n} {c}?", "Write down {n} {c}."]
