r"""What do the built-in names `openmath`, `squad`, `arc` and `boolq` stand for? A hub id, a system prompt and a response rule.

Training and evaluation read the same table, so a model is asked as it was taught. The rows may come from the hub or from
local files (`openmath:train.parquet`): the name decides prompt and response, the columns decide how a row is read. A
guess of the task from a file's name or columns would change what is trained without being asked.
"""

from dataclasses import dataclass
from typing import Literal

from quantkit.errors import UsageError, did_you_mean

NO_ANSWER = "unanswerable"
"""The response to a question that its passage does not answer (SQuAD v2)."""

ResponseRule = Literal["plain", "boxed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """A built-in data set: where its rows are, which kinds of columns it comes with, how it is asked and answered."""

    name: str
    """The word users type, and the tag in artifact names."""
    hub_id: str
    subset: str | None = None
    """Configuration of the hub data set."""
    split: str = "train"
    eval_split: str = "train"
    """Split that `eval_dataset` reads from the hub."""
    kinds: tuple[str, ...]
    """Kinds of `quantkit.data.schemas.KINDS` that its rows may have."""
    system_prompt: str
    judged_as: str
    """Kind of evaluation task its rows call for (`quantkit.evaluation.tasks`)."""
    response: ResponseRule = "plain"
    r"""`boxed`: a response without `\boxed` is put into one; `plain`: it stays as it is."""


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="openmath",
            hub_id="nvidia/OpenMathInstruct-2",
            kinds=("problem/solution", "question/answer"),
            system_prompt="Solve the math problem. Put the final answer in \\boxed{}.",
            judged_as="numeric",
            response="boxed",
        ),
        DatasetInfo(
            name="squad",
            hub_id="rajpurkar/squad_v2",
            eval_split="validation",
            kinds=("squad", "question/answer"),
            system_prompt="Answer the question with the shortest span of the passage that answers it."
            f" If the passage does not answer it, reply: {NO_ANSWER}",
            judged_as="qa",
        ),
        DatasetInfo(
            name="arc",
            hub_id="allenai/ai2_arc",
            subset="ARC-Challenge",
            eval_split="validation",
            kinds=("arc", "question/answer"),
            system_prompt="Answer the multiple-choice question with the letter of the right option only.",
            judged_as="choice",
        ),
        DatasetInfo(
            name="boolq",
            hub_id="google/boolq",
            eval_split="validation",
            kinds=("boolq",),
            system_prompt="Answer the question about the passage with yes or no only.",
            judged_as="yesno",
        ),
    )
}


def dataset_info(name: str) -> DatasetInfo:
    """Return the built-in data set of this name.

    Raises:
        UsageError: there is none; the closest name is suggested.
    """
    if name not in DATASETS:
        raise UsageError(
            f"no built-in data set is called {name!r}.{did_you_mean(name, DATASETS)} Known: {', '.join(DATASETS)}."
        )
    return DATASETS[name]
