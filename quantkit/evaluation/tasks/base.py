"""What is asked, what counts as an answer, and when is it right?

One dataclass per kind of task, all with the same face: rows and gold answers, `parse` (text to answer, or None), `matches`,
and the predictors that know nothing. The score and its floors come out of the same method, so a floor can never be judged by
kinder rules than the model. Rows whose answer does not parse count as wrong; they are never left out of the mean.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from quantkit.errors import UsageError
from quantkit.evaluation.answers import Option
from quantkit.evaluation.statistics import Floor, Score, share_score

Asks = Literal["answers", "options", "tokens", "divergence"]
"""What is done with the rows: answers are generated; given options are weighed by their likelihood; the rows' own tokens are
judged; they are judged beside a reference model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One conversation with its reference answer, rendered exactly as a training row would be; or a plain text."""

    row: int
    """Number in the data set, from 1."""
    messages: tuple[Mapping[str, str], ...]
    """`{"role", "content"}`; the last one is the assistant's. Empty for a plain text."""
    answers: tuple[str, ...] = ()
    """All reference answers, where the columns hold several (SQuAD)."""
    options: tuple[Option, ...] = ()
    """The options to choose from, where the columns hold them (ARC)."""
    text: str | None = None
    """The whole text of a row that is neither question nor answer."""

    @property
    def question(self) -> str:
        """Return the text of the user's last turn."""
        return next((turn["content"] for turn in reversed(self.messages) if turn["role"] == "user"), "")

    @property
    def response(self) -> str:
        """Return the reference text of the assistant's turn, or the whole plain text."""
        return self.messages[-1]["content"] if self.text is None else self.text


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Rows of one data set and what is measured on them.

    Raises:
        UsageError: there are no rows, or a row is not fit for this kind.
    """

    name: str
    """Short tag: letters, digits, dots, hyphens, underscores; results are filed under it."""
    source: str
    """Where the rows come from, for people."""
    fingerprint: str
    """Hash of the rows' content: two results compare only where it is equal."""
    examples: tuple[Example, ...]

    kind: ClassVar[str]
    """The word of `--task`."""
    asks: ClassVar[Asks] = "answers"
    metric: ClassVar[str] = "exact_match"
    """The main one of its scores."""

    def __post_init__(self) -> None:
        if not self.examples:
            raise UsageError(f"{self.source}: no rows to evaluate")

    @property
    def system_prompt(self) -> str | None:
        """Return the one system prompt of the rows; None where there is none or they differ."""
        found = {turn["content"] for example in self.examples for turn in example.messages if turn["role"] == "system"}
        return found.pop() if len(found) == 1 else None

    @classmethod
    def decided_by(cls, examples: Sequence[Example]) -> dict[str, Any]:  # noqa: ARG003
        """Return fields that all rows of a data set decide, also those that `--limit` leaves out; none by default."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return what else the numbers depend on; it stands in the result."""
        return {}


@dataclass(frozen=True, kw_only=True)
class AnswerTask(Task):
    """Rows whose reference is an answer that can be told from a text, right or wrong."""

    constant: ClassVar[str]
    """An answer chosen before any data was seen, for the floor `constant`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(example.text is not None for example in self.examples):
            raise UsageError(f"{self.source}: rows of plain text hold no question; --task perplexity and divergence read them")
        _ = self.gold

    @cached_property
    def gold(self) -> tuple[str, ...]:
        """Return the reference answer of each row, in its one spelling."""
        return tuple(self.reference(example) for example in self.examples)

    @property
    def accepted(self) -> tuple[tuple[str, ...], ...]:
        """Return all answers of each row that are right."""
        return tuple((gold,) for gold in self.gold)

    @abstractmethod
    def reference(self, example: Example) -> str:
        """Return the answer that a row's reference text holds; raises `UsageError` naming the row where it holds none."""

    @abstractmethod
    def parse(self, text: str) -> str | None:
        """Return the answer that a model's text gives, in its one spelling; None where it gives none."""

    def matches(self, answer: str, gold: str) -> bool:
        """Say whether a parsed answer is right."""
        return answer == gold

    def write(self, answer: str) -> str:
        """Return a text that gives this answer, as the predictors behind the floors write it."""
        return answer

    def predictors(self) -> dict[str, list[str]]:
        """Return name → one text per row of predictors that understand nothing; the floors are their scores."""
        n = len(self.examples)
        majority = Counter(self.gold).most_common(1)[0][0]
        return {
            "empty": [""] * n,
            "constant": [self.write(self.constant)] * n,
            "majority": [self.write(majority)] * n,
            "echo": [example.question for example in self.examples],
        }

    def correct(self, outputs: Sequence[str]) -> list[bool]:
        """Say for each row whether its output gives a right answer; what does not parse is wrong."""
        answers = [self.parse(text) for text in outputs]
        return [
            answer is not None and any(self.matches(answer, gold) for gold in accepted)
            for answer, accepted in zip(answers, self.accepted, strict=True)
        ]

    def values(self, outputs: Sequence[str]) -> list[float | None]:
        """Return each row's measure where right or wrong is too coarse for it, such as F1; None for the others."""
        return [None] * len(outputs)

    def score(self, outputs: Sequence[str]) -> Score:
        """Return the share of right answers among all rows, with coverage and floors."""
        n = len(self.examples)
        floors = [Floor(name=name, value=sum(self.correct(texts)) / n) for name, texts in self.predictors().items()]
        return share_score(sum(self.correct(outputs)), n, coverage=self.coverage(outputs), floors=floors)

    def scores(self, outputs: Sequence[str], *, seed: int) -> dict[str, Score]:  # noqa: ARG002
        """Return all scores of one text per row, the main one first; `seed` drives bootstraps."""
        return {self.metric: self.score(outputs), **self.rates(outputs)}

    def coverage(self, outputs: Sequence[str]) -> float:
        """Return the share of outputs that give an answer."""
        return sum(self.parse(text) is not None for text in outputs) / len(outputs)

    def rates(self, outputs: Sequence[str]) -> dict[str, Score]:
        """Return further shares of this kind of task, e.g. how often the asked-for format was kept."""
        return {"parsed_rate": share_score(sum(self.parse(text) is not None for text in outputs), len(outputs))}

    def unfit(self, example: Example, why: str) -> UsageError:
        """Return the error of a row whose reference is no answer of this kind; `why` goes on after the reference."""
        shown = example.response if len(example.response) <= 60 else f"{example.response[:57]}…"
        return UsageError(f"{self.source}, row {example.row}: the answer {shown!r} {why}; fix the row or choose another --task")
