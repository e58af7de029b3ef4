r"""What is asked, what counts as an answer, and when is it right?

One dataclass per kind of task, all with the same face: prompts and gold answers, `parse` (text to answer, or None), `matches`,
and the predictors that know nothing. The score and its floors come out of the same method, so a floor can never be judged by
kinder rules than the model. Rows whose answer does not parse count as wrong; they are never left out of the mean.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from quantkit.errors import UsageError
from quantkit.evaluation.answers import canonical_number, choice_label, last_boxed, numbers_in
from quantkit.evaluation.statistics import Floor, Score, share_score


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One conversation with its reference answer, rendered exactly as a training row would be."""

    row: int
    """Index in the data file, from 0."""
    messages: tuple[Mapping[str, str], ...]
    """`{"role", "content"}`; the last one is the assistant's."""

    @property
    def question(self) -> str:
        """Return the text of the user's last turn."""
        return next((turn["content"] for turn in reversed(self.messages) if turn["role"] == "user"), "")

    @property
    def response(self) -> str:
        """Return the reference text of the assistant's turn."""
        return self.messages[-1]["content"]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Rows of one data set under one rule of scoring.

    Raises:
        UsageError: there are no rows, or a row's reference holds no answer of this kind.
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
    metric: ClassVar[str] = "exact_match"
    constant: ClassVar[str]
    """An answer chosen before any data was seen, for the floor `constant`."""

    def __post_init__(self) -> None:
        if not self.examples:
            raise UsageError(f"{self.source}: no rows to evaluate")
        _ = self.gold

    @cached_property
    def gold(self) -> tuple[str, ...]:
        """Return the reference answer of each row, in its one spelling."""
        return tuple(self.reference(example) for example in self.examples)

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
        """Say for each row whether its output gives the right answer; what does not parse is wrong."""
        answers = [self.parse(text) for text in outputs]
        return [answer is not None and self.matches(answer, gold) for answer, gold in zip(answers, self.gold, strict=True)]

    def score(self, outputs: Sequence[str]) -> Score:
        """Return the share of right answers among all rows, with coverage and floors."""
        n = len(self.examples)
        floors = [Floor(name=name, value=sum(self.correct(texts)) / n) for name, texts in self.predictors().items()]
        parsed = sum(self.parse(text) is not None for text in outputs)
        return share_score(sum(self.correct(outputs)), n, coverage=parsed / n, floors=floors)

    def rates(self, outputs: Sequence[str]) -> dict[str, Score]:
        """Return further shares of this kind of task, e.g. how often the asked-for format was kept."""
        return {"parsed_rate": share_score(sum(self.parse(text) is not None for text in outputs), len(outputs))}


@dataclass(frozen=True, kw_only=True)
class NumericBoxed(Task):
    r"""Questions whose answer is a number or fraction in `\boxed{…}`."""

    kind: ClassVar[str] = "numeric"
    constant: ClassVar[str] = "0"

    def reference(self, example: Example) -> str:
        r"""Return the number in the last `\boxed{…}` of the reference, or the reference itself where it is a number."""
        boxed = last_boxed(example.response)
        found = canonical_number(example.response if boxed is None else boxed)
        if found is None:
            shown = example.response if len(example.response) <= 60 else f"{example.response[:57]}…"
            raise UsageError(
                f"{self.source}, row {example.row}: the answer {shown!r} is no number and holds none in \\boxed{{…}};"
                " fix the row or choose another --task"
            )
        return found

    def parse(self, text: str) -> str | None:
        """Return the number in the last box."""
        boxed = last_boxed(text)
        return None if boxed is None else canonical_number(boxed)

    def write(self, answer: str) -> str:
        """Return the answer in a box."""
        return f"\\boxed{{{answer}}}"

    def predictors(self) -> dict[str, list[str]]:
        """Add `sum`: all numbers of the question added up, which alone solves many addition problems."""
        sums = [str(sum(numbers_in(example.question))) for example in self.examples]
        return super().predictors() | {"sum": [self.write(text) for text in sums]}

    def rates(self, outputs: Sequence[str]) -> dict[str, Score]:
        r"""Add `boxed_rate`: outputs with a closed `\boxed{…}`, whatever it holds."""
        boxed = sum(last_boxed(text) is not None for text in outputs)
        return super().rates(outputs) | {"boxed_rate": share_score(boxed, len(outputs))}


LETTERS, DIGITS = "ABCDEFGHIJ", "12345"
"""Labels of options; a few rows of ARC number them."""


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceLetter(Task):
    """Questions with labelled options (ARC), answered by the label in free text."""

    kind: ClassVar[str] = "choice"
    constant: ClassVar[str] = "A"

    @cached_property
    def labels(self) -> str:
        """Return the labels an answer can be: A to the largest reference, at least A to D; digits where a reference is one."""
        last = max((LETTERS.index(label) for label in self.gold if label in LETTERS), default=0)
        return LETTERS[: max(4, last + 1)] + (DIGITS if any(label in DIGITS for label in self.gold) else "")

    def reference(self, example: Example) -> str:
        """Return the label of the reference text."""
        found = choice_label(example.response, LETTERS + DIGITS)
        if found is None:
            shown = example.response if len(example.response) <= 60 else f"{example.response[:57]}…"
            raise UsageError(
                f"{self.source}, row {example.row}: the answer {shown!r} is no label from A to J or 1 to 5;"
                " fix the row or choose another --task"
            )
        return found

    def parse(self, text: str) -> str | None:
        """Return the chosen label."""
        return choice_label(text, self.labels)


TASKS: dict[str, type[Task]] = {task.kind: task for task in (NumericBoxed, MultipleChoiceLetter)}
"""The word of `--task` to its class."""


def guess_kind(examples: Sequence[Example]) -> str:
    """Return `choice` where every reference is one label and some are letters, else `numeric`."""
    references = [example.response.strip(" .()") for example in examples]
    single = all(len(text) == 1 and text in LETTERS + DIGITS for text in references)
    return MultipleChoiceLetter.kind if single and any(text in LETTERS for text in references) else NumericBoxed.kind
