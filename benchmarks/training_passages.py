"""What stands in rows whose response is most of the row? A question about a town that is made up, answered by a passage.

Generated, so that everybody can measure on them; every question is asked once. Passages of an encyclopedia, the alternative,
would need a download and a licence to repeat them.
"""

import random

START = ("Ald", "Bran", "Cor", "Dun", "Elm", "Fal", "Gren", "Hol", "Kel", "Lin", "Mar", "Nor", "Ost", "Pel", "Thorn")
END = ("bridge", "bury", "dale", "field", "ford", "gate", "ham", "mere", "stead", "ton", "wick", "worth")
QUESTIONS = (
    "What is the town of {town} like?",
    "What should a visitor to {town} know?",
    "Why do people like to live in {town}?",
    "How does a year pass in {town}?",
)
OPENING = "{town} is a small town {place}, and about {people} people live there."
MIDDLE = (
    "Most of them work in the {work} or on the farms outside the walls.",
    "On {day}s the market opens at {hour} in the morning, and the stalls sell {goods} and {dish}.",
    "The old {building} was built {years} years ago from {stone} and is still in use.",
    "A river runs past the {building}, and in {season} the children go there to swim.",
    "Trains stop {count} times a day, the first of them long before {hour} in the morning.",
    "In {season} the wind comes from the {wind}, so the walls on that side have no windows.",
    "Guests are told to try the {dish}, which is made with {goods} and served while it is warm.",
    "The school has {pupils} pupils and a garden in which they grow {goods}.",
    "When the {goods} are ripe, everybody helps to bring them in, and there is music for {count} days.",
    "The baker is called {name} and has sold everything by {hour}, as everyone in the street will tell you.",
)
CLOSING = (
    "Those who move away often come back, because they miss the {dish}.",
    "Nobody is in a hurry, and a letter to the next town takes {count} days.",
    "At night it is so quiet that one hears the clock of the {building} from every house.",
)
WORDS = {
    "place": ("by the sea", "on a hill", "at the edge of a forest", "between two lakes", "in a narrow valley"),
    "work": ("mill", "brewery", "harbour", "quarry", "paper factory", "shipyard"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "hour": ("six", "seven", "eight", "nine", "ten"),
    "goods": ("apples", "cherries", "beans", "pears", "onions", "plums", "carrots"),
    "dish": ("cheese", "fish soup", "honey cake", "dark bread", "onion pie"),
    "building": ("town hall", "tower", "church", "library", "watermill", "bath house"),
    "stone": ("red brick", "grey slate", "oak beams", "white limestone"),
    "season": ("spring", "summer", "autumn", "winter"),
    "wind": ("north", "east", "south", "west"),
    "name": ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo"),
}
"""What a sentence's blanks are filled with, and `NUMBERS` those that take a number from a range."""
NUMBERS = {"people": (400, 9000), "years": (80, 700), "count": (2, 9), "pupils": (30, 300)}


def passages(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Return `count` rows `{"question": str, "answer": str}`, the same for the same arguments; answers have 4 to 6 sentences.

    Raises:
        ValueError: there are fewer questions.
    """
    chance = random.Random(seed)
    asked = [(first + second, question) for first in START for second in END for question in QUESTIONS]
    return [
        {"question": question.format(town=town), "answer": _passage(chance, town)}
        for town, question in chance.sample(asked, count)
    ]


def _passage(chance: random.Random, town: str) -> str:
    sentences = [OPENING, *chance.sample(MIDDLE, chance.randint(2, 4)), chance.choice(CLOSING)]
    return " ".join(sentence.format(town=town, **_filling(chance)) for sentence in sentences)


def _filling(chance: random.Random) -> dict[str, str]:
    words = {blank: chance.choice(choices) for blank, choices in WORDS.items()}
    return words | {blank: str(chance.randint(*span)) for blank, span in NUMBERS.items()}
