"""Rows of four kinds of task, predictors that are broken in twelve ways, and ways in which healthy models write."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pydoc_data.topics import topics

from quantkit.data.arithmetic import NAMES, THINGS, arithmetic_data
from quantkit.evaluation.degeneration import degeneration_rates
from quantkit.evaluation.generation import Generation
from quantkit.evaluation.results import Cost, RowResult, TaskResult
from quantkit.evaluation.tasks import AnswerTask, Example, ExtractiveQA, MultipleChoiceLetter, NumericBoxed, YesNo

ROWS = 60
BUDGET = 96
"""`max_new_tokens`, in words and single characters."""
CITIES = ("Oslo", "Lima", "Cairo", "Kyoto", "Quito", "Turin", "Porto", "Perth", "Delhi", "Accra")
JOBS = ("a baker", "a nurse", "a pilot", "a tailor", "a farmer", "a judge", "a miner", "a painter")
PIECE = re.compile(r"\w+\s*|\W")

Predictor = Callable[[AnswerTask, random.Random], list[str]]


def _example(row: int, question: str, answer: str, answers: tuple[str, ...] = ()) -> Example:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Example(row=row, messages=messages, answers=answers)


def _story(chance: random.Random) -> tuple[str, list[tuple[str, str, str]]]:
    people = [
        (name, city, job)
        for name, city, job in zip(chance.sample(NAMES, 3), chance.sample(CITIES, 3), chance.sample(JOBS, 3), strict=True)
    ]
    told = [
        f"{name} was born in {city}, not far from the river, and has worked as {job} for many years."
        for name, city, job in people
    ]
    return f"{' '.join(told)} They met at a small market in the south, where they sold {chance.choice(THINGS)}.", people


@cache
def tasks() -> tuple[AnswerTask, ...]:
    """Return a numeric, a choice, a question-answering and a yes-or-no task of 60 rows each."""
    chance = random.Random(4)
    numeric = [
        _example(row, item["question"], item["answer"])
        for row, item in enumerate(arithmetic_data(held_out=ROWS).unseen_templates, 1)
    ]
    choice, qa, yesno = [], [], []
    for row in range(1, ROWS + 1):
        story, people = _story(chance)
        name, city, job = chance.choice(people)
        options = [city, *chance.sample([other for other in CITIES if other != city], 3)]
        chance.shuffle(options)
        listed = " ".join(f"{label}. {option}" for label, option in zip("ABCD", options, strict=True))
        choice.append(_example(row, f"{story} Where was {name} born? {listed}", "ABCD"[options.index(city)]))
        asked, answer = (name, job) if row % 5 < 3 else (f"the sister of {name}", "unanswerable")
        question = f"{story}\n\nWhat is the work of {asked}? If the text does not say, answer: unanswerable"
        qa.append(_example(row, question, answer, (answer,)))
        true = chance.random() < 0.62
        claimed = job if true else chance.choice([other for _, _, other in people if other != job])
        yesno.append(_example(row, f"{story}\n\nIs it right that {name} has worked as {claimed}?", "yes" if true else "no"))
    kinds = ((NumericBoxed, numeric), (MultipleChoiceLetter, choice), (ExtractiveQA, qa), (YesNo, yesno))
    return tuple(kind(name=kind.kind, source="generated", fingerprint=kind.kind, examples=tuple(rows)) for kind, rows in kinds)


@cache
def prose() -> tuple[list[str], list[str]]:
    """Return paragraphs of English (Python's own reference) and all of its words, each once."""
    text = "\n\n".join(topics.values())
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    fluent = [part for part in paragraphs if len(part) > 600 and part[0].isupper() and "   " not in part]
    return fluent, sorted(set(re.findall(r"[a-z]{3,14}", text)))


def _shuffled(task: AnswerTask, chance: random.Random) -> list[str]:
    golds = [task.write(gold) for gold in task.gold]
    chance.shuffle(golds)
    return golds


def _unicode(_: AnswerTask, chance: random.Random) -> list[str]:
    ranges = ((0x4E00, 0x9FA5), (0x0621, 0x064A), (0x0E01, 0x0E30), (0x10A0, 0x10FF), (0x0400, 0x045F), (0xFFFD, 0xFFFD))
    return ["".join(chr(chance.randint(*chance.choice(ranges))) for _ in range(40)) for _ in range(ROWS)]


DEGENERATE: dict[str, tuple[str, Predictor]] = {
    "empty": ("EMPTY", lambda _, __: [""] * ROWS),
    "exclamation marks": ("GIBBERISH", lambda _, __: ["!!!!"] * ROWS),
    "one word for ever": ("LOOPS", lambda _, __: ["the " * 500] * ROWS),
    "a phrase for ever": (
        "LOOPS",
        lambda task, __: [f"{item.question[:20]} so I think that is it. " * 90 for item in task.examples],
    ),
    "a constant answer": (
        "CONSTANT",
        lambda task, __: [f"The answer is {task.write('unanswerable' if task.kind == 'qa' else task.constant)}"] * ROWS,
    ),
    "the majority's answer": ("CONSTANT", lambda task, __: [task.write(Counter(task.gold).most_common(1)[0][0])] * ROWS),
    "the question again": ("ECHO", lambda task, __: [item.question for item in task.examples]),
    "random characters": (
        "GIBBERISH",
        lambda _, chance: ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789    .,;", k=90)) for _ in range(ROWS)],
    ),
    "random words": ("GIBBERISH", lambda _, chance: [" ".join(chance.choices(prose()[1], k=25)) for _ in range(ROWS)]),
    "other rows' answers": ("FLOOR", _shuffled),
    "fluent without end": ("NO STOP", lambda _, chance: [chance.choice(prose()[0]) for _ in range(ROWS)]),
    "other scripts": ("GIBBERISH", _unicode),
}
"""Name to the mark that it must earn, whatever its score, and how it writes."""


def evaluated(task: AnswerTask, texts: Sequence[str]) -> TaskResult:
    """Return the result of these texts, cut off at the budget as generation would."""
    vocabulary: dict[str, int] = {}
    answers = []
    for text in texts:
        pieces = PIECE.findall(text)
        tokens = [vocabulary.setdefault(piece, len(vocabulary)) for piece in pieces[:BUDGET]]
        answers.append(Generation("".join(pieces[:BUDGET]).strip(), tuple(tokens), len(pieces) < BUDGET))
    return result_of(task, answers)


def result_of(task: AnswerTask, answers: Sequence[Generation]) -> TaskResult:
    """Return the result of these answers, without what needs a model."""
    texts = [answer.text for answer in answers]
    rows = [
        RowResult(
            row=example.row,
            gold=gold,
            answer=task.parse(answer.text),
            correct=correct,
            stopped=answer.stopped,
            text=answer.text,
            generated_tokens=len(answer.tokens),
            nll_tokens=len(PIECE.findall(example.response)),
        )
        for example, gold, correct, answer in zip(task.examples, task.gold, task.correct(texts), answers, strict=True)
    ]
    return TaskResult(
        task=task.name,
        kind=task.kind,
        metric=task.metric,
        source=task.source,
        data_fingerprint=task.fingerprint,
        n=len(rows),
        seed=0,
        settings={},
        scores=task.scores(texts, seed=0) | degeneration_rates(answers, task),
        cost=Cost(generated_tokens=1, generation_s=1.0, tokens_per_s=1.0, perplexity_s=0.0, peak_rss_bytes=1),
        rows=rows,
    )


def _thoughts(example: Example, answer: str) -> str:
    """Return a chain of thought as instruction-tuned models write it."""
    sentences = re.split(r"(?<=[.?])\s", example.question)
    return (
        f"Let's look at this step by step. First, we know that {sentences[0][0].lower()}{sentences[0][1:]} This is what the"
        f" question is about. Then we have to see what it asks for, and whether the text says it. So the answer is {answer}."
    )


STYLES: dict[str, list[Callable[[Example, str], str]]] = {
    "numeric": [
        lambda _, answer: f"\\boxed{{{answer}}}",
        lambda example, answer: f"{example.response.split('=')[0]}={answer} \\boxed{{{answer}}}",
        lambda example, answer: _thoughts(example, f"\\(\\boxed{{{answer}}}\\)"),
        lambda example, answer: (
            f"Step 1: \\[ {example.response.split('=')[0]} = {answer} \\]\nStep 2: \\[ \\boxed{{{answer}}} \\]"
        ),
    ],
    "choice": [
        lambda _, answer: answer,
        lambda _, answer: f"({answer})",
        lambda example, answer: f"{answer}. {example.question.split(answer + '. ')[-1].split()[0]}",
        _thoughts,
    ],
    "qa": [
        lambda _, answer: answer,
        lambda _, answer: answer.capitalize() + ".",
        lambda _, answer: f"the {answer}" if answer != "unanswerable" else "Unanswerable!",
    ],
    "yesno": [
        lambda _, answer: answer,
        lambda _, answer: answer.capitalize() + ".",
        lambda _, answer: (
            f"{answer.capitalize()}, the text says what the work was, and it is {'the' if answer == 'yes' else 'not the'} same."
        ),
        _thoughts,
    ],
}


def healthy(task: AnswerTask, style: Callable[[Example, str], str], *, share: float, chance: random.Random) -> list[str]:
    """Return texts in a style of which about `share` are right; a few of the others are empty or go on too long."""
    others = sorted(set(task.gold))
    texts = []
    for example, gold in zip(task.examples, task.gold, strict=True):
        right = chance.random() < share
        wrong = chance.choice([other for other in others if other != gold])
        text = style(example, gold if right else wrong)
        if not right and chance.random() < 0.2:
            text = chance.choice(["", chance.choice(prose()[0])])
        texts.append(text)
    return texts
