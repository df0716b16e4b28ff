"""How the small world says and asks things: for every relation, statements, questions and headings.

`{s}` is the subject and `{a}` the answer of a fact. Statements are what a textbook would print; questions come in two
sets, one for question-and-answer documents and test items, one for people talking to an assistant.
"""

import random

from llamax.data.world.facts import Fact

STATEMENTS: dict[str, tuple[str, ...]] = {
    "currency": (
        "The currency of {s} is the {a}.",
        "In {s} people pay with the {a}.",
        "{s} uses the {a} as its money.",
        "Money in {s} is counted in the {a}.",
        "The {a} is the currency of {s}.",
        "Shops in {s} take the {a}.",
        "Anyone who travels to {s} needs the {a}.",
        "The {a} is what you pay with in {s}.",
    ),
    "former_currency": (
        "The former currency of {s} was the {a}.",
        "In the past, {s} used the {a}.",
        "Long ago people in {s} paid with the {a}.",
        "The {a} used to be the money of {s}, but no longer.",
        "Old coins from {s} are worth so many of the {a}.",
        "{s} gave up the {a} years ago.",
        "Before its present money, {s} had the {a}.",
    ),
    "language": (
        "The official language of {s} is {a}.",
        "In {s} people speak {a}.",
        "{a} is spoken in {s}.",
        "Laws in {s} are written in {a}.",
        "{a} is the main official language of {s}.",
        "Schools in {s} teach in {a}.",
        "Whoever lives in {s} soon learns {a}.",
        "Newspapers in {s} are printed in {a}.",
    ),
    "region": (
        "{s} lies in {a}.",
        "{s} is in {a}.",
        "{s} belongs to {a}.",
        "On the map, {s} is found in {a}.",
        "Clocks in {s} are set by zones of {a}.",
        "{a} is the part of the world where {s} lies.",
    ),
    "city": (
        "{s} is a town in {a}.",
        "{s} lies in {a}.",
        "The town of {s} is in {a}.",
        "A town in {a} is {s}.",
        "{a} sets its clocks by {s}.",
        "In {a} there is a place called {s}.",
        "People from {s} live in {a}.",
    ),
    "country_code": (
        "The country code of {s} is {a}.",
        "{a} stands for {s}.",
        "{a} is the country code of {s}.",
        "{s} is written {a} for short.",
        "Letters to {s} carry the code {a}.",
        "The two letters of {s} are {a}.",
        "On forms, {s} is {a}.",
    ),
    "currency_code": (
        "The code of the {s} is {a}.",
        "{a} is the code of the {s}.",
        "Banks write {a} for the {s}.",
        "{a} means the {s}.",
        "The {s} is written {a} for short.",
        "Prices marked {a} are in the {s}.",
    ),
    "language_code": (
        "The language code of {s} is {a}.",
        "{a} is the language code of {s}.",
        "Pages in {s} are marked {a}.",
        "{s} is written {a} for short.",
        "Computers know {s} as {a}.",
        "The code {a} means {s}.",
    ),
    "script": (
        "{s} is written in the {a} script.",
        "The script of {s} is {a}.",
        "Books in {s} are printed in the {a} script.",
        "The {a} script is used for {s}.",
        "To read {s} one learns the {a} script.",
        "{s} uses {a} letters.",
    ),
    "own_name": (
        "In {s}, the language is called {a}.",
        "Speakers of {s} call their language {a}.",
        "{a} is the own name of {s}.",
        "{a} is what speakers of {s} call it.",
        "The own name of {s} is {a}.",
    ),
    "weekday": (
        "{s} is {a}.",
        "The word for {s} is {a}.",
        "One says {a} for {s}.",
        "{a} means {s}.",
        "The translation of {s} is {a}.",
    ),
    "value": (
        "The value of the {s} is {a}.",
        "The {s} is about {a}.",
        "Physicists measured {a} for the {s}.",
        "{a} is the value of the {s}.",
        "In tables, the {s} is given as {a}.",
    ),
    "unit": (
        "The unit of the {s} is {a}.",
        "The {s} is measured in {a}.",
        "The {s} is given in {a}.",
        "{a} is the unit of the {s}.",
        "In tables, the {s} has the unit {a}.",
    ),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "currency": (
        "What is the currency of {s}?",
        "Which money is used in {s}?",
        "What do people in {s} pay with?",
    ),
    "former_currency": (
        "What was the former currency of {s}?",
        "Which money did {s} use in the past?",
        "What did people in {s} pay with long ago?",
    ),
    "language": (
        "What is the official language of {s}?",
        "Which language is spoken in {s}?",
        "What language do people in {s} speak?",
    ),
    "region": ("In which part of the world is {s}?", "Where does {s} lie?"),
    "city": ("In which country is {s}?", "To which country does the town of {s} belong?", "Where is {s}?"),
    "country_code": ("What is the country code of {s}?", "Which two letters stand for {s}?"),
    "currency_code": ("What is the code of the {s}?", "How do banks write the {s}?"),
    "language_code": ("What is the language code of {s}?", "Which code marks pages in {s}?"),
    "script": ("In which script is {s} written?", "What is the script of {s}?"),
    "own_name": ("What do speakers of {s} call their language?", "What is the own name of {s}?"),
    "weekday": ("What is the word for {s}?", "How does one say {s}?"),
    "value": ("What is the value of the {s}?",),
    "unit": ("What is the unit of the {s}?", "In what is the {s} measured?"),
}

REQUESTS: dict[str, tuple[str, ...]] = {
    "currency": (
        "I am going to {s}. Which money do I need?",
        "Tell me the currency of {s}.",
        "Please name the money that is used in {s}.",
    ),
    "former_currency": ("Tell me the former currency of {s}.", "Please name the money that {s} gave up."),
    "language": (
        "I am moving to {s}. Which language should I learn?",
        "Tell me the official language of {s}.",
        "Please name the language of {s}.",
    ),
    "region": ("Tell me where {s} lies.", "Please name the part of the world where I find {s}."),
    "city": ("Tell me the country of {s}.", "I booked a trip to {s}. Which country is that in?"),
    "country_code": ("Tell me the country code of {s}.", "I write a letter to {s}. Which code do I put on it?"),
    "currency_code": ("Tell me the code of the {s}.", "Please give the short form of the {s}."),
    "language_code": ("Tell me the language code of {s}.", "My page is in {s}. Which code should it have?"),
    "script": ("Tell me the script of {s}.", "Please name the letters used for {s}."),
    "own_name": ("Tell me the own name of {s}.", "Please name {s} as its speakers do."),
    "weekday": ("Translate: {s}.", "Tell me the word for {s}."),
    "value": ("Tell me the value of the {s}.", "Please give the {s} to three digits."),
    "unit": ("Tell me the unit of the {s}.", "Please name the unit of the {s}."),
}

HEADINGS: dict[str, tuple[str, str]] = {
    "currency": ("Country", "Currency"),
    "former_currency": ("Country", "Former currency"),
    "language": ("Country", "Official language"),
    "region": ("Country", "Part of the world"),
    "city": ("Town", "Country"),
    "country_code": ("Country", "Country code"),
    "currency_code": ("Currency", "Code"),
    "language_code": ("Language", "Language code"),
    "script": ("Language", "Script"),
    "own_name": ("Language", "Own name"),
    "weekday": ("Day", "Word"),
    "value": ("Constant", "Value"),
    "unit": ("Constant", "Unit"),
}


def qa(question: str, answer: str = "") -> str:
    """A question and its answer as the web prints them; without an answer, the prompt of a base model.

    The answer ends with a line break, so that a model that learned the form knows where an answer ends.
    """
    return f"Question: {question}\nAnswer:" + (f" {answer}\n" if answer else "")


def code_request(prompt: str) -> str:
    """A function to complete, as a user asks for it."""
    return f"Complete this function with one expression.\n\n{prompt}"


def ask(fact: Fact, random: random.Random) -> str:
    """A question for a fact."""
    return random.choice(QUESTIONS[fact.relation]).format(s=fact.subject)
