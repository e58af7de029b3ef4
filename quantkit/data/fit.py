r"""Do the answers of these rows fit the built-in data set whose name was put before them?

A name decides prompt and form of the answer, whatever the rows hold: `arc:` before sums teaches a model to answer `19600` when
it is asked for a letter. Rows that mostly cannot be meant are refused. Correcting the name silently, the alternative, would
change what is trained without being asked. Only columns that several data sets share are looked at (`question`, `answer`).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from quantkit.data.findings import normalised, shown
from quantkit.data.schemas import KINDS, Conversation
from quantkit.data.tasks import DATASETS, NO_ANSWER, DatasetInfo
from quantkit.errors import UsageError
from quantkit.evaluation.answers import AROUND, choice_label, last_boxed, lettered_options, normal_label, stated_label

Fit = Literal["fits", "doubtful", "unfit"]
SHARED = "answer"
"""Column of the responses that are looked at."""
LABELS = "ABCDEFGHIJ12345"
YES_NO = ("yes", "no", "true", "false")
ARITHMETIC = re.compile(r"[\d\\=^_+*/<>]|^\W*\w\W*$")
"""What a number or an expression holds, or is: a digit, a sign, a letter alone."""
MOST = 0.5
"""Share of unfit answers beyond which rows are refused."""


def _openmath(question: str, answer: str, _context: bool) -> Fit:
    boxed = last_boxed(answer)
    plain = (answer if boxed is None else boxed).strip()
    if _offers(question, plain) or normal_label(plain) in YES_NO:
        return "unfit"
    return "fits" if ARITHMETIC.search(plain) else "doubtful"


def _arc(question: str, answer: str, _context: bool) -> Fit:
    plain = answer.strip()
    label = choice_label(plain.upper() if len(plain) == 1 else plain, LABELS)
    stands = label is not None and re.search(rf"(?<!\w){label}(?!\w)", question, re.IGNORECASE)
    return "fits" if stands else "unfit"


def _boolq(_question: str, answer: str, _context: bool) -> Fit:
    return "unfit" if stated_label(answer, YES_NO) is None else "fits"


def _squad(question: str, answer: str, context: bool) -> Fit:
    plain = normalised(answer).strip(AROUND)
    if _offers(question, answer.strip()):
        return "unfit"
    if plain == NO_ANSWER or plain in normalised(question):
        return "fits"
    return "doubtful" if context else "unfit"


def _offers(question: str, answer: str) -> bool:
    """Say whether an answer is the letter of one of the options in its question."""
    label = answer.strip(AROUND)
    return len(label) == 1 and label.isalpha() and label in {option.label for option in lettered_options(question)}


RULES: dict[str, tuple[str, Callable[[str, str, bool], Fit]]] = {
    "openmath": ("a number or an expression", _openmath),
    "squad": (f"words of the passage, or {NO_ANSWER}", _squad),
    "arc": ("the label of an option in the question", _arc),
    "boolq": ("yes or no", _boolq),
}
"""Built-in name → what it asks for, and whether an answer can be that."""


def judged(task: DatasetInfo, found: Iterable[Conversation], columns: Iterable[str]) -> list[tuple[Conversation, Fit]]:
    """Return each row whose answer stands in a shared column with how it fits the data set."""
    rule, context = RULES[task.name][1], "context" in set(columns)
    return [(item, rule(item.prompt[-1]["content"], item.response, context)) for item in found if item.column == SHARED]


def require_fit(
    task: DatasetInfo, found: Sequence[Conversation], columns: Iterable[str], *, source: str, place: Callable[[int], str]
) -> None:
    """Raise `UsageError` where most answers cannot be what the data set asks for; it names the first one and a better name."""
    columns = set(columns)
    unfit = [item for item, fit in judged(task, found, columns) if fit == "unfit"]
    if len(unfit) <= MOST * len(found):
        return
    better = [name for name, info in DATASETS.items() if info is not task and _all_fit(info, found, columns)]
    instead = f"{better[0]!r} or no name" if len(better) == 1 else "no name"
    first = unfit[0]
    raise UsageError(
        f"{source}: {len(unfit):,} of {len(found):,} answers do not fit {task.name!r}, which asks for {RULES[task.name][0]};"
        f" first {place(first.row)}: {shown(last_boxed(first.response) or first.response)}. Put {instead} before these rows"
        " (without a name, the columns decide and no prompt is added)"
    )


def _all_fit(task: DatasetInfo, found: Sequence[Conversation], columns: set[str]) -> bool:
    return any(set(KINDS[kind].columns) <= columns for kind in task.kinds) and all(
        fit == "fits" for _, fit in judged(task, found, columns)
    )
