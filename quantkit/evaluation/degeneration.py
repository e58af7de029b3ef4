"""Is what the model writes still language: not empty, not a loop, ended by itself?

These rates stand beside every score, because a score can look plausible while the text behind it is garbage. They need no
reference answers, so they hold for any task.
"""

from collections.abc import Sequence

from quantkit.evaluation.generation import Generation
from quantkit.evaluation.statistics import Score, share_score

LONGEST_PERIOD = 32
SHORTEST_LOOP = 24
"""Tokens; shorter repeats occur in healthy answers such as long numbers."""
ROUNDS = 3
GRAM = 4
DISTINCT = 0.4
"""Below this share of distinct 4-grams a text of 40 tokens or more counts as repetitive."""


def degeneration_rates(generations: Sequence[Generation]) -> dict[str, Score]:
    """Return the shares of answers that are empty, that loop, and that stopped by themselves (the rest never stop)."""
    n = len(generations)
    return {
        "empty_rate": share_score(sum(not item.text for item in generations), n),
        "repetition_rate": share_score(sum(is_repetitive(item.tokens) for item in generations), n),
        "stop_rate": share_score(sum(item.stopped for item in generations), n),
    }


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
