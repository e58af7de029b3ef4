"""Which of the labelled options does the model choose: by what it writes, or by what it finds likeliest?

Both read the same rows under the same prompt. The likelihood of an option is that of its text where all rows offer texts (in
ARC's columns, or after labels in the question), else that of its label alone; `continuation` names one of the two. Summed
log-likelihood favours short options, so the share per character (lm-eval's `acc_norm`) stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from quantkit.errors import UsageError
from quantkit.evaluation.answers import Option, choice_label, lettered_options
from quantkit.evaluation.statistics import Score
from quantkit.evaluation.tasks.base import AnswerTask, Asks, Example

LETTERS, DIGITS = "ABCDEFGHIJ", "12345"
"""Labels of options; a few rows of ARC number them."""


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceLetter(AnswerTask):
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
            raise self.unfit(example, "is no label from A to J or 1 to 5")
        return found

    def parse(self, text: str) -> str | None:
        """Return the chosen label."""
        return choice_label(text, self.labels)


Continuation = Literal["auto", "text", "label"]


@dataclass(frozen=True, kw_only=True)
class ChoiceLikelihood(MultipleChoiceLetter):
    """Questions with labelled options, answered by the option whose continuation of the prompt is likeliest.

    Its outputs are labels, one per row; the predictors behind the floors choose labels too.

    Raises:
        UsageError: `text` is asked for and a row offers no texts, or a row's reference is none of its options.
    """

    continuation: Continuation = "auto"
    """What is weighed: the options' texts, their labels, or (auto) texts where every row offers them."""

    kind: ClassVar[str] = "choice-likelihood"
    asks: ClassVar[Asks] = "options"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.choices

    @cached_property
    def choices(self) -> tuple[tuple[Option, ...], ...]:
        """Return the options of each row, without texts where labels are weighed."""
        found = [example.options or lettered_options(example.question) for example in self.examples]
        with_texts = [
            all(option.text for option in options) and gold in [option.label for option in options]
            for options, gold in zip(found, self.gold, strict=True)
        ]
        if self.continuation == "text" and not all(with_texts):
            raise UsageError(
                f"{self.source}, row {self.examples[with_texts.index(False)].row}: the question offers no option"
                f" {self.gold[with_texts.index(False)]!r} with a text after its label; weigh the labels instead"
            )
        if self.continuation != "label" and all(with_texts):
            return tuple(found)
        labels = tuple(Option(label) for label in self.labels)
        return tuple(
            tuple(Option(option.label) for option in options) if fits else labels
            for options, fits in zip(found, with_texts, strict=True)
        )

    @property
    def weighs(self) -> str:
        """Return what is weighed: `text` or `label`."""
        return "text" if self.choices[0][0].text else "label"

    def parse(self, text: str) -> str | None:
        """Return the label; anything else is no choice."""
        return text if len(text) == 1 and text in self.labels else None

    def chosen(self, likelihoods: Sequence[Sequence[float]], *, per_character: bool = False) -> list[str]:
        """Return the label of each row's likeliest option; of equals, the first."""
        result = []
        for options, row in zip(self.choices, likelihoods, strict=True):
            values = [value / len(option.text) if per_character else value for option, value in zip(options, row, strict=True)]
            result.append(options[values.index(max(values))].label)
        return result

    def predictors(self) -> dict[str, list[str]]:
        """Add `first`, the first option, and `longest`, the option with the longest text."""
        more = {"first": [options[0].label for options in self.choices]}
        if self.weighs == "text":
            more["longest"] = [max(options, key=lambda option: len(option.text)).label for options in self.choices]
        return super().predictors() | more

    def likelihood_scores(self, likelihoods: Sequence[Sequence[float]]) -> dict[str, Score]:
        """Return the scores of one log-likelihood per option and row; per character only where texts are weighed."""
        found = {self.metric: self.score(self.chosen(likelihoods))}
        if self.weighs == "text":
            found["exact_match_norm"] = self.score(self.chosen(likelihoods, per_character=True))
        return found

    def settings(self) -> dict[str, Any]:
        """Say what is weighed."""
        return {"continuation": self.weighs}
