r"""How do the rows of one source become conversations? Each by its kind; what spoils a row is counted or refused.

Under a built-in name whose rule is `boxed`, a response without `\boxed` becomes `\boxed{response}`, which is counted as a
conversion; answers that mostly cannot be meant under that name are refused (`quantkit.data.fit`).
"""

from quantkit.data.findings import Findings, RowError
from quantkit.data.fit import require_fit
from quantkit.data.schemas import KINDS, Cells, Conversation, kind_of
from quantkit.data.sources import Rows
from quantkit.data.tasks import DatasetInfo


def to_conversations(
    rows: Rows, *, task: DatasetInfo | None = None, system_prompt: str | None = None, findings: Findings | None = None
) -> list[Conversation]:
    """Turn every row into a conversation; a row's own system turn wins over `system_prompt`, which wins over the task's.

    `system_prompt=""` means none. With `findings`, unusable rows are left out and collected there.

    Raises:
        UsageError: the columns make no kind, most answers do not fit the task, or (without `findings`) a row cannot be used.
    """
    columns = list(dict.fromkeys(column for row in rows.rows for column in row))
    kind = kind_of(columns, rows.source, task)
    found = findings or Findings(rows.place)
    system = (task.system_prompt if task else "") if system_prompt is None else system_prompt
    result = []
    for number, row in enumerate(rows.rows, start=1):
        try:
            result.append(_conversation(kind, Cells(row, found), number, task, system))
        except RowError as error:
            found.bad(number, error)
    if findings is None:
        found.settle("error")
    if task is not None:
        require_fit(task, result, columns, source=rows.source, place=rows.place)
    return result


def _conversation(kind: str, cells: Cells, number: int, task: DatasetInfo | None, system: str) -> Conversation:
    if kind == "text":
        return Conversation([], number, text=cells.text("text"), column="text")
    turns = KINDS[kind].build(cells)
    messages, first, column = turns.messages, turns.first_response, KINDS[kind].columns[-1]
    if task is not None and task.response == "boxed" and "\\boxed" not in messages[-1]["content"]:
        plain = messages[-1]["content"].strip()
        boxed = f"\\boxed{{{plain}}}"
        cells.findings.converted(column, "put into \\boxed{}", f"{plain} → {boxed}")
        messages[-1]["content"] = boxed
    if system and messages[0]["role"] != "system":
        messages, first = [{"role": "system", "content": system}, *messages], first + 1
    return Conversation(messages, number, first_response=first, column=column, answers=turns.answers, options=turns.options)
