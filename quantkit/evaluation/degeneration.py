"""Is what the model writes still an answer: not empty, not a loop, no echo, no garbage, not one text for all, ended by itself?

These rates stand beside every score, because a score can look plausible while the text behind it is garbage: on 50 rows of
SQuAD v2, `!!!!` to every question gets more than the models of a published table. Each is a share of rows with its interval;
where it is not over all rows, its coverage says over how many. Judging texts by their score alone was the alternative; it
needs the floors to be complete, and cannot tell a weak model from a broken one.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from quantkit.evaluation.generation import Generation
from quantkit.evaluation.gibberish import Language
from quantkit.evaluation.statistics import Score, share_score

if TYPE_CHECKING:
    from quantkit.evaluation.tasks import AnswerTask

LONGEST_PERIOD = 32
SHORTEST_LOOP = 24
"""Tokens; shorter repeats occur in healthy answers such as long numbers."""
ROUNDS = 3
GRAM = 4
DISTINCT = 0.4
"""Below this share of distinct 4-grams a text of 40 tokens or more counts as repetitive."""
LOOP_CHARACTERS = 60
"""Characters; repeating decimals and rules under a heading are shorter."""
LONGEST_CHARACTER_PERIOD = 120
COPIED, REPRODUCED = 0.8, 0.5
"""An echo: so much of the text stands in the question, word for word, and is so much of the question."""
CUT_ECHO_WORDS = 20
WORD = re.compile(r"\w+")


def degeneration_rates(generations: Sequence[Generation], task: "AnswerTask | None" = None) -> dict[str, Score]:
    """Return the shares of answers that are empty, that loop, and that stopped by themselves (the rest never stop).

    With the task whose rows they answer, also `constant_rate`, `echo_rate` and `gibberish_rate`. Rows where silence is right
    (a question that has no answer) do not count towards `empty_rate`, and right answers are no echoes.
    """
    n = len(generations)
    rates = {
        "repetition_rate": share_score(sum(is_loop(item) for item in generations), n),
        "stop_rate": share_score(sum(item.stopped for item in generations), n),
    }
    texts = [item.text for item in generations]
    blank = [not _visible(text) for text in texts]
    if task is None:
        return {"empty_rate": share_score(sum(blank), n)} | rates
    silence = task.correct([""] * n)
    correct = task.correct(texts)
    questions = [example.question for example in task.examples]
    language = Language.of([*questions, *(example.response for example in task.examples)])
    echoes = [
        not right and is_echo(item, question) for item, question, right in zip(generations, questions, correct, strict=True)
    ]
    return {
        "empty_rate": _share_where([not right for right in silence], blank),
        **rates,
        "constant_rate": constant_rate(texts, task.parse, task.correct),
        "echo_rate": share_score(sum(echoes), n),
        "gibberish_rate": share_score(sum(map(language.is_gibberish, texts)), n),
    }


def constant_rate(
    texts: Sequence[str], parse: Callable[[str], str | None], correct: Callable[[Sequence[str]], Sequence[bool]]
) -> Score:
    """Return how often the commonest answer is given where it is wrong; 1 means that the question plays no part.

    Over the rows where it is wrong only: `yes` to 62 % of the rows is what a good model says where that is right.
    """
    answers = [_answer(text, parse) for text in texts]
    counts = Counter(answer for answer in answers if answer)
    if not counts:
        return _share_where([False] * len(texts), [False] * len(texts))
    commonest = counts.most_common(1)[0][0]
    said = texts[answers.index(commonest)]
    given = [answer == commonest for answer in answers]
    return _share_where([not right for right in correct([said] * len(texts))], given)


def _answer(text: str, parse: Callable[[str], str | None]) -> str | None:
    """Return what is answered, else what is written, so that two texts with one answer are alike; None for blank text."""
    if not _visible(text):
        return None
    found = parse(text)
    return f"text {' '.join(text.casefold().split())}" if found is None else f"answer {found}"


def _share_where(judged: Sequence[bool], holds: Sequence[bool]) -> Score:
    """Return the share of the judged rows for which something holds; coverage 0 where none can be judged."""
    n, rows = len(judged), sum(judged)
    if not rows:
        return share_score(0, n, coverage=0.0)
    return share_score(sum(a and b for a, b in zip(judged, holds, strict=True)), rows, coverage=rows / n)


def _visible(text: str) -> bool:
    r"""Say whether anything can be seen: zero-width characters and spaces cannot.

    >>> _visible("\u200b \ufeff\n"), _visible(".")
    (False, True)
    """
    return any(character.isprintable() and not character.isspace() for character in text)


def is_loop(generation: Generation) -> bool:
    """Say whether an answer repeats itself, in tokens or, where a loop is spelled with changing tokens, in characters."""
    return is_repetitive(generation.tokens) or ends_in_loop(generation.text)


def is_repetitive(tokens: Sequence[int]) -> bool:
    """Say whether the end of an answer is one piece over and over, or few of its 4-grams are distinct.

    >>> is_repetitive([7] * 30), is_repetitive(range(100)), is_repetitive([1, 2, 3] * 4)
    (True, False, False)
    """
    tokens = list(tokens)
    for period in range(1, LONGEST_PERIOD + 1):
        length = max(ROUNDS * period, SHORTEST_LOOP)
        if length > len(tokens):
            continue
        tail = tokens[-length:]
        if tail[period:] == tail[:-period]:
            return True
    if len(tokens) < 40:
        return False
    grams = [tuple(tokens[at : at + GRAM]) for at in range(len(tokens) - GRAM + 1)]
    return len(set(grams)) / len(grams) < DISTINCT


def ends_in_loop(text: str) -> bool:
    """Say whether the last characters of a text are one piece at least three times.

    >>> ends_in_loop("no " * 25), ends_in_loop("1/3 = 0.333333333333333333")
    (True, False)
    """
    for period in range(1, min(LONGEST_CHARACTER_PERIOD, len(text) // ROUNDS) + 1):
        tail = text[-max(ROUNDS * period, LOOP_CHARACTERS) :]
        if len(tail) >= LOOP_CHARACTERS and tail[period:] == tail[:-period]:
            return True
    return False


def is_echo(generation: Generation, question: str) -> bool:
    """Say whether an answer is mostly its question, word for word; a cut-off one may hold only the part it came to.

    >>> is_echo(Generation("How many eggs are there now?", (), True), "Hi! How many eggs are there now?")
    True
    """
    said, asked = WORD.findall(generation.text.casefold()), WORD.findall(question.casefold())
    if len(asked) < 3 or len(said) < 3:
        return bool(said) and said == asked
    own, given = set(pairwise(said)), set(pairwise(asked))
    both = len(own & given)
    if both < COPIED * len(own):
        return False
    return both >= REPRODUCED * len(given) or (not generation.stopped and len(said) >= CUT_ECHO_WORDS)
