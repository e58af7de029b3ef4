"""Is the answer one of the passage's spans that people gave, or rightly withheld? (SQuAD v2)

Exact match (the main score: it says right or wrong, so two models can be paired by it) and F1 over words, each the best over
all gold answers, after SQuAD's normalisation: lower case, no punctuation, no articles. One rule of abstention for models,
floors and references alike: an answer abstains if and only if, normalised, it is the word that the prompt asks for. Text of
which nothing is left gives no answer, so it is wrong; counting silence as abstention is how a model that prints `!!!!` came to
lead a table.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from quantkit.data.tasks import NO_ANSWER
from quantkit.evaluation.statistics import Floor, Score, mean_score, share_score
from quantkit.evaluation.tasks.base import AnswerTask, Example

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return the text as SQuAD compares it (Rajpurkar et al. 2016, section 5).

    >>> normalise("The  Sun, again!"), normalise("!!!!")
    ('sun again', '')
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


ABSTAINS = normalise(NO_ANSWER)


def word_f1(answer: str, gold: str) -> float:
    """Return F1 over the words of two normalised answers; an abstention has no words to share.

    >>> word_f1("big red dog", "red dog"), word_f1("unanswerable", "dog"), word_f1("unanswerable", "unanswerable")
    (0.8, 0.0, 1.0)
    """
    if ABSTAINS in (answer, gold):
        return float(answer == gold)
    mine, wanted = answer.split(), gold.split()
    shared = sum((Counter(mine) & Counter(wanted)).values())
    return 2 * shared / (len(mine) + len(wanted))


@dataclass(frozen=True, kw_only=True)
class ExtractiveQA(AnswerTask):
    """Questions about a passage that some span of it answers, or none."""

    kind: ClassVar[str] = "qa"
    constant: ClassVar[str] = "yes"

    @cached_property
    def accepted(self) -> tuple[tuple[str, ...], ...]:
        """Return the normalised gold answers of each row, each once; the word of abstention where there is none."""
        found = []
        for example in self.examples:
            golds = [normalise(text) for text in example.answers or (example.response,)]
            found.append(tuple(dict.fromkeys(gold for gold in golds if gold)) or (ABSTAINS,))
        return tuple(found)

    def reference(self, example: Example) -> str:
        """Return the first gold answer, normalised."""
        golds = [normalise(text) for text in example.answers or (example.response,)]
        return next((gold for gold in golds if gold), ABSTAINS)

    def parse(self, text: str) -> str | None:
        """Return the normalised text; None where nothing is left of it."""
        return normalise(text) or None

    def predictors(self) -> dict[str, list[str]]:
        """Add `abstain`, which never answers."""
        return {"abstain": [NO_ANSWER] * len(self.examples)} | super().predictors()

    def values(self, outputs: Sequence[str]) -> list[float | None]:
        """Return the F1 of each row."""
        return list(self.f1(outputs))

    def f1(self, outputs: Sequence[str]) -> list[float]:
        """Return the best F1 of each row over its gold answers; 0 where nothing parses."""
        return [
            max(word_f1(answer, gold) for gold in golds) if (answer := self.parse(text)) else 0.0
            for text, golds in zip(outputs, self.accepted, strict=True)
        ]

    def scores(self, outputs: Sequence[str], *, seed: int) -> dict[str, Score]:
        """Add F1, both measures on the rows with and without an answer, and how often the model abstains."""
        told = super().scores(outputs, seed=seed)
        told["f1"] = self._mean(outputs, range(len(outputs)), seed)
        without = [row for row, golds in enumerate(self.accepted) if ABSTAINS in golds]
        having = [row for row, golds in enumerate(self.accepted) if ABSTAINS not in golds]
        if having:
            told["has_answer_exact_match"] = self._share(outputs, having)
            told["has_answer_f1"] = self._mean(outputs, having, seed)
        if without:
            told["no_answer_exact_match"] = self._share(outputs, without)
        abstained = sum(self.parse(text) == ABSTAINS for text in outputs)
        return told | {"abstention_rate": share_score(abstained, len(outputs))}

    def covered(self, outputs: Sequence[str], rows: Sequence[int]) -> float:
        """Return the share of all rows that are among these and whose output gives an answer: what a mean over them covers."""
        return sum(self.parse(outputs[row]) is not None for row in rows) / len(outputs)

    def _share(self, outputs: Sequence[str], rows: Sequence[int]) -> Score:
        def right(texts: Sequence[str]) -> int:
            correct = self.correct(texts)
            return sum(correct[row] for row in rows)

        floors = [Floor(name=name, value=right(texts) / len(rows)) for name, texts in self.predictors().items()]
        return share_score(right(outputs), len(rows), coverage=self.covered(outputs, rows), floors=floors)

    def _mean(self, outputs: Sequence[str], rows: Sequence[int], seed: int) -> Score:
        def chosen(texts: Sequence[str]) -> list[float]:
            values = self.f1(texts)
            return [values[row] for row in rows]

        floors = [Floor(name=name, value=sum(chosen(texts)) / len(rows)) for name, texts in self.predictors().items()]
        return mean_score(chosen(outputs), seed=seed, coverage=self._covered(outputs, rows), floors=floors)

    def _covered(self, outputs: Sequence[str], rows: Sequence[int]) -> float:
        """Return the share of all rows that these are and that give an answer."""
        return sum(self.parse(outputs[row]) is not None for row in rows) / len(outputs)
