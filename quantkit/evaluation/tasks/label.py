"""Which of a few labels does the text give? (sentiment, topics; yes and no)

The label set is read off all references, also those of rows that are not asked. A text gives a label that it begins with, or
states ("the sentiment is negative"); one that merely occurs is no choice. Accuracy alone flatters the majority, so macro-F1,
where each label weighs the same, stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from quantkit.evaluation.answers import normal_label, stated_label
from quantkit.evaluation.resampling import interval, resample
from quantkit.evaluation.statistics import Floor, Score, wilson_interval
from quantkit.evaluation.tasks.base import AnswerTask, Example

if TYPE_CHECKING:
    from quantkit.evaluation.resampling import Floats


@dataclass(frozen=True, kw_only=True)
class LabelChoice(AnswerTask):
    """Texts to be put into one of a few classes, named by their references (`context`/`target` rows)."""

    labels: tuple[str, ...] = ()
    """The label set in one spelling; empty: those of the rows asked."""

    kind: ClassVar[str] = "label"
    constant: ClassVar[str] = ""

    @classmethod
    def decided_by(cls, examples: Sequence[Example]) -> dict[str, Any]:
        """Read the label set off all rows."""
        return {"labels": tuple(sorted({normal_label(example.response) for example in examples} - {""}))}

    @cached_property
    def known(self) -> tuple[str, ...]:
        """Return the labels that an answer can be."""
        return self.labels or tuple(sorted(set(self.gold)))

    def predictors(self) -> dict[str, list[str]]:
        """Take the first label of the alphabet as the constant one, where the kind has none of its own."""
        return super().predictors() | {"constant": [self.constant or self.known[0]] * len(self.examples)}

    def reference(self, example: Example) -> str:
        """Return the label in its one spelling."""
        found = normal_label(example.response)
        if not found or (self.labels and found not in self.labels):
            raise self.unfit(example, f"is none of the labels {', '.join(self.labels)}" if self.labels else "is no label")
        return found

    def parse(self, text: str) -> str | None:
        """Return the label that the text gives."""
        return stated_label(text, self.known)

    def scores(self, outputs: Sequence[str], *, seed: int) -> dict[str, Score]:
        """Add `macro_f1` over the labels of the references, with floors of its own."""
        floors = [Floor(name=name, value=self._macro(texts)) for name, texts in self.predictors().items()]
        gold, said = self._codes(outputs)
        value, classes = self._macro(outputs), len(self.known)
        bounds, how = interval(resample((gold, said), lambda a, b: macro_f1(a, b, classes), seed=seed), len(gold)), "bootstrap"
        if value in (0.0, 1.0):  # all rows alike: resampling shows no spread
            bounds, how = wilson_interval(round(value) * len(gold), len(gold)), "wilson"
        score = Score(
            value=value,
            n=len(gold),
            low=min(bounds[0], value),
            high=max(bounds[1], value),
            interval=how,
            coverage=self.coverage(outputs),
            floors=tuple(floors),
        )
        return super().scores(outputs, seed=seed) | {"macro_f1": score}

    def _codes(self, outputs: Sequence[str]) -> tuple[list[float], list[float]]:
        code = {label: float(index) for index, label in enumerate(self.known)}
        answers = [self.parse(text) for text in outputs]
        return [code[gold] for gold in self.gold], [-1.0 if answer is None else code[answer] for answer in answers]

    def _macro(self, outputs: Sequence[str]) -> float:
        import numpy as np

        gold, said = self._codes(outputs)
        return float(macro_f1(np.asarray([gold]), np.asarray([said]), len(self.known))[0])


def macro_f1(gold: "Floats", said: "Floats", classes: int) -> "Floats":
    """Return the mean F1 over the classes that occur among the references, for each line of `[draws, rows]` class numbers.

    >>> import numpy as np
    >>> macro_f1(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0, -1]]), 3).round(3).tolist()
    [0.4]
    """
    import numpy as np

    total, counted = np.zeros(len(gold)), np.zeros(len(gold))
    for label in range(classes):
        wanted, given = gold == label, said == label
        occurs = wanted.any(axis=1)
        both = 2.0 * (wanted & given).sum(axis=1)
        total += np.where(occurs, both / np.maximum(wanted.sum(axis=1) + given.sum(axis=1), 1), 0.0)
        counted += occurs
    result: Floats = total / counted
    return result


@dataclass(frozen=True, kw_only=True)
class YesNo(LabelChoice):
    """Questions to be answered by yes or no (BoolQ; bool columns read yes and no)."""

    labels: tuple[str, ...] = ("no", "yes")

    kind: ClassVar[str] = "yesno"
    constant: ClassVar[str] = "yes"

    @classmethod
    def decided_by(cls, examples: Sequence[Example]) -> dict[str, Any]:  # noqa: ARG003
        """Leave the label set as it is."""
        return {}

    def reference(self, example: Example) -> str:
        """Return `yes` or `no`; `true` and `false` mean the same."""
        found = self.parse(normal_label(example.response))
        if found is None:
            raise self.unfit(example, "is neither yes nor no")
        return found

    def parse(self, text: str) -> str | None:
        """Return `yes` or `no`."""
        found = stated_label(text, ("no", "yes", "false", "true"), closed=True)
        return None if found is None else {"true": "yes", "false": "no"}.get(found, found)
