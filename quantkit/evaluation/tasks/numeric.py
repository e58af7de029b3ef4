r"""Is the number in the last `\boxed{…}` the right one?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from quantkit.evaluation.answers import canonical_number, last_boxed, numbers_in
from quantkit.evaluation.statistics import Score, share_score
from quantkit.evaluation.tasks.base import AnswerTask, Example


@dataclass(frozen=True, kw_only=True)
class NumericBoxed(AnswerTask):
    r"""Questions whose answer is a number or fraction in `\boxed{…}`."""

    kind: ClassVar[str] = "numeric"
    constant: ClassVar[str] = "0"

    def reference(self, example: Example) -> str:
        r"""Return the number in the last `\boxed{…}` of the reference, or the reference itself where it is a number."""
        boxed = last_boxed(example.response)
        found = canonical_number(example.response if boxed is None else boxed)
        if found is None:
            raise self.unfit(example, "is no number and holds none in \\boxed{…}")
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
