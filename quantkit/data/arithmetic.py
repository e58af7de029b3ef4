"""Where do the demo's and the tests' rows come from? They are generated: one-step arithmetic word problems.

Two held-out sets ask two questions: `unseen_numbers` uses templates of the training set with number pairs that do not
occur in it, `unseen_templates` uses stories that do not occur in it. A public benchmark would need a download, and its
rows may stand in the model's own training data.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

TRAIN_TEMPLATES = (
    ("+", "{name} has {a} {thing}. {name} buys {b} more. How many {thing} does {name} have now?"),
    ("+", "There are {a} {thing} in a box and {b} {thing} in a bag. How many {thing} are there in total?"),
    ("+", "{name} picked {a} {thing} on Monday and {b} on Tuesday. How many {thing} did {name} pick?"),
    ("-", "{name} had {a} {thing} and gave away {b}. How many {thing} are left?"),
    ("-", "A shop had {a} {thing} and sold {b} of them. How many {thing} remain?"),
    ("-", "{name} needs {a} {thing} and already has {b}. How many more {thing} does {name} need?"),
    ("*", "There are {a} boxes with {b} {thing} each. How many {thing} are there?"),
    ("*", "{name} reads {b} pages a day for {a} days. How many pages does {name} read?"),
)
UNSEEN_TEMPLATES = (
    ("+", "{name} counted {a} {thing}, then found another {b}. What is the total number of {thing}?"),
    ("-", "Out of {a} {thing}, {b} were lost. How many {thing} does {name} still have?"),
    ("*", "Each of {a} children carries {b} {thing}. How many {thing} do they carry together?"),
)
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo")
LARGEST_FACTOR = 12
THINGS = ("apples", "books", "coins", "eggs", "marbles", "pens", "shells", "stamps")


@dataclass(frozen=True, slots=True)
class ArithmeticData:
    """Rows `{"question": str, "answer": str}`; the answer reads `3+4=7 \\boxed{7}`."""

    train: list[dict[str, str]]
    unseen_numbers: list[dict[str, str]]
    unseen_templates: list[dict[str, str]]


def arithmetic_data(*, train: int = 400, held_out: int = 60, seed: int = 0, largest: int = 50) -> ArithmeticData:
    """Generate `train` training rows and two held-out sets of `held_out` rows; operands are 2 to `largest`.

    The same arguments give the same rows. Number pairs of `unseen_numbers` occur in no
    training row, in neither order.

    >>> arithmetic_data(train=1).train[0]["answer"]
    '33+23=56 \\\\boxed{56}'
    """
    chance = random.Random(seed)
    pairs = [(a, b) for a in range(2, largest + 1) for b in range(a, largest + 1)]
    chance.shuffle(pairs)
    cut = len(pairs) // 4
    unseen, seen = pairs[:cut], pairs[cut:]
    return ArithmeticData(
        train=list(_rows(chance, TRAIN_TEMPLATES, seen, train)),
        unseen_numbers=list(_rows(chance, TRAIN_TEMPLATES, unseen, held_out)),
        unseen_templates=list(_rows(chance, UNSEEN_TEMPLATES, seen, held_out)),
    )


def _rows(
    chance: random.Random, templates: tuple[tuple[str, str], ...], pairs: list[tuple[int, int]], count: int
) -> Iterator[dict[str, str]]:
    small = [pair for pair in pairs if max(pair) <= LARGEST_FACTOR] or pairs
    for index in range(count):
        operation, template = templates[index % len(templates)]
        low, high = chance.choice(small if operation == "*" else pairs)
        a, b = (high, low) if operation == "-" or chance.random() < 0.5 else (low, high)
        result = {"+": a + b, "-": a - b, "*": a * b}[operation]
        question = template.format(name=chance.choice(NAMES), thing=chance.choice(THINGS), a=a, b=b)
        yield {"question": question, "answer": f"{a}{operation}{b}={result} \\boxed{{{result}}}"}
