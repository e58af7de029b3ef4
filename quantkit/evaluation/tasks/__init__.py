"""Which kinds of task are there, and which one do these rows call for?"""

from collections.abc import Callable, Sequence

from quantkit.evaluation.answers import Option, canonical_number, last_boxed, normal_label
from quantkit.evaluation.tasks.base import AnswerTask, Asks, Example, Task
from quantkit.evaluation.tasks.choice import DIGITS, LETTERS, ChoiceLikelihood, MultipleChoiceLetter
from quantkit.evaluation.tasks.label import LabelChoice, YesNo
from quantkit.evaluation.tasks.numeric import NumericBoxed
from quantkit.evaluation.tasks.qa import ExtractiveQA
from quantkit.evaluation.tasks.unasked import Divergence, Perplexity

__all__ = [
    "TASKS",
    "AnswerTask",
    "Asks",
    "ChoiceLikelihood",
    "Divergence",
    "Example",
    "ExtractiveQA",
    "LabelChoice",
    "MultipleChoiceLetter",
    "NumericBoxed",
    "Option",
    "Perplexity",
    "Task",
    "YesNo",
    "guess_kind",
]

TASKS: dict[str, type[Task]] = {
    task.kind: task
    for task in (
        NumericBoxed,
        MultipleChoiceLetter,
        ChoiceLikelihood,
        ExtractiveQA,
        YesNo,
        LabelChoice,
        Perplexity,
        Divergence,
    )
}
"""The word of `--task` to its class; plugins may add more (`quantkit.evaluation.plugged`)."""

MOST_LABELS, LONGEST_LABEL, ROWS_PER_LABEL = 20, 3, 3
"""References are labels where they are few, of few words, and each stands for several rows."""


def guess_kind(examples: Sequence[Example]) -> str:
    """Return the kind that the rows call for; `numeric`, which then names the first row that is no number, where none does.

    Plain texts call for `perplexity`, several gold answers for `qa`, single letters for `choice`, yes and no for `yesno`,
    numbers for `numeric`, and a few short references that come again and again for `label`.
    """
    tests: tuple[tuple[type[Task], Callable[[], bool]], ...] = (
        (Perplexity, lambda: all(example.text is not None for example in examples)),
        (ExtractiveQA, lambda: any(example.answers for example in examples)),
        (MultipleChoiceLetter, lambda: _letters(examples)),
        (NumericBoxed, lambda: all(_number(example.response) for example in examples)),
        (YesNo, lambda: {normal_label(example.response) for example in examples} <= {"yes", "no", "true", "false"}),
        (LabelChoice, lambda: _few_labels(examples)),
    )
    return next((task.kind for task, fits in tests if fits()), NumericBoxed.kind)


def _letters(examples: Sequence[Example]) -> bool:
    single = [example.response.strip(" .()") for example in examples]
    return all(len(text) == 1 and text in LETTERS + DIGITS for text in single) and any(text in LETTERS for text in single)


def _few_labels(examples: Sequence[Example]) -> bool:
    labels = {normal_label(example.response) for example in examples}
    few = 2 <= len(labels) <= MOST_LABELS and len(labels) * ROWS_PER_LABEL <= len(examples)
    return few and all(label and len(label.split()) <= LONGEST_LABEL for label in labels)


def _number(text: str) -> bool:
    boxed = last_boxed(text)
    return canonical_number(text if boxed is None else boxed) is not None
