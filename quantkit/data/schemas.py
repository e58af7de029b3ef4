"""How does a row become a conversation? Its columns decide the kind; each kind is one line of `KINDS`.

The system turn comes first. Text is put together here and nowhere else: a question with a `context` reads context, blank
line, question; alpaca reads instruction, blank line, input. Guessing prompt and response among unknown columns would train on
whatever comes first; it is an error that lists the known kinds.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quantkit.data.findings import Findings, RowError, normalised, shown
from quantkit.data.tasks import NO_ANSWER, DatasetInfo
from quantkit.data.turns import Message, Turns, chat_turns, content_text
from quantkit.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row as turns (`{"role", "content"}`, strings only), or as plain text that is learnt whole."""

    messages: list[Message]
    row: int
    """Number of the row in its set, from 1."""
    text: str | None = None
    """The whole text of a `text` row; `messages` is empty then."""
    first_response: int = 0
    """Assistant turns before this index are prompt, not response."""
    column: str = ""
    """Column that the response was read from."""
    answers: tuple[str, ...] = ()
    """All reference answers, where the columns hold several (SQuAD): what an evaluation accepts."""
    options: tuple[tuple[str, str], ...] = ()
    """Label and text of each option, where the columns hold them (ARC)."""

    @property
    def prompt(self) -> list[Message]:
        """Return the turns before the last response: what a model is asked in an evaluation."""
        return self.messages[: self.last_response]

    @property
    def response(self) -> str:
        """Return the last response, or the whole text of a `text` row."""
        return self.messages[self.last_response]["content"] if self.text is None else self.text

    @property
    def last_response(self) -> int:
        """Return the index of the last assistant turn; 0 in a `text` row."""
        return max((index for index, turn in enumerate(self.messages) if turn["role"] == "assistant"), default=0)

    @property
    def key(self) -> str:
        """Return the prompt without system turn, case-folded with single spaces: equal keys mean the same question."""
        turns = [turn["content"] for turn in self.messages if turn["role"] != "system"]
        first = turns[0] if self.text is None else self.text
        return normalised(first)


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to read a row: the columns it needs, and how they become turns."""

    columns: tuple[str, ...]
    """Needed columns; the response stands in the last one."""
    build: Callable[["Cells"], Turns]


@dataclass(frozen=True, slots=True)
class Cells:
    """A row's cells, read as text; what cannot be read raises `RowError`."""

    row: Mapping[str, Any]
    findings: Findings

    def raw(self, column: str) -> Any:
        """Return the cell as it is; a missing one is a bad value."""
        if column not in self.row:
            raise RowError(f"the row has only {shown(list(self.row))}", column=column, reason=f"missing column {column!r}")
        return self.row[column]

    def text(self, column: str) -> str:
        """Return the cell as text, which must not be blank."""
        return content_text(self.raw(column), column, self.findings)

    def optional(self, column: str) -> str:
        """Return the cell as text; missing, null and blank cells give the empty string."""
        value = self.row.get(column)
        return "" if value is None else self.findings.text(value, column).strip()

    def pair(
        self, prompt: str, response: str, *, answers: Iterable[str] = (), options: Iterable[tuple[str, str]] = ()
    ) -> Turns:
        """Return one user and one assistant turn."""
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return Turns(turns, answers=tuple(answers), options=tuple(options))

    def strings(self, column: str, key: str) -> list[str]:
        """Return the list of texts under `key` of a nested cell such as SQuAD's `answers`."""
        cell = self.raw(column)
        values = cell.get(key) if isinstance(cell, Mapping) else None
        if not isinstance(values, list):
            raise RowError(f"{shown(cell)} holds no list {key!r}", column=column, reason=f"unusable value in {column!r}")
        return [content_text(value, f"{column}.{key}", self.findings) for value in values]


def _question(cells: Cells) -> str:
    context = cells.optional("context")
    return f"{context}\n\n{cells.text('question')}" if context else cells.text("question")


def _prompt_completion(cells: Cells) -> Turns:
    prompt, completion = cells.raw("prompt"), cells.raw("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return cells.pair(cells.text("prompt"), cells.text("completion"))
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise RowError(
            f"it is {type(completion).__name__}, prompt is {type(prompt).__name__}; both must be text or both lists of turns",
            column="completion",
            reason="unusable value in 'completion'",
        )
    asked = chat_turns(prompt, "prompt", cells.findings, answered=False)
    return chat_turns(completion, "completion", cells.findings, follows=asked.messages)


def _alpaca(cells: Cells) -> Turns:
    more = cells.optional("input")
    return cells.pair(cells.text("instruction") + (f"\n\n{more}" if more else ""), cells.text("output"))


def _solution(cells: Cells) -> Turns:
    solution, final = cells.text("generated_solution"), cells.optional("expected_answer")
    if "\\boxed" not in solution and final:
        cells.findings.converted("generated_solution", "ended with the expected answer", f"… \\boxed{{{final}}}")
        solution = f"{solution} \\boxed{{{final}}}"
    return cells.pair(cells.text("problem"), solution)


def _squad(cells: Cells) -> Turns:
    answers = cells.strings("answers", "text") or [NO_ANSWER]
    return cells.pair(_question(cells), answers[0], answers=dict.fromkeys(answers))


def _arc(cells: Cells) -> Turns:
    labels, options = cells.strings("choices", "label"), cells.strings("choices", "text")
    answer = cells.text("answerKey")
    if answer not in labels or len(labels) != len(options):
        raise RowError(
            f"{answer!r} is none of the labels {shown(labels)}", column="answerKey", reason="unusable value in 'answerKey'"
        )
    pairs = list(zip(labels, options, strict=True))
    listed = "\n".join(f"{label}. {option}" for label, option in pairs)
    return cells.pair(f"{cells.text('question')}\n{listed}", answer, options=pairs)


KINDS: dict[str, Kind] = {
    "messages": Kind(("messages",), lambda cells: chat_turns(cells.raw("messages"), "messages", cells.findings)),
    "conversations": Kind(
        ("conversations",), lambda cells: chat_turns(cells.raw("conversations"), "conversations", cells.findings)
    ),
    "prompt/completion": Kind(("prompt", "completion"), _prompt_completion),
    "instruction/input/output": Kind(("instruction", "output"), _alpaca),
    "problem/solution": Kind(("problem", "generated_solution"), _solution),
    "boolq": Kind(
        ("question", "passage", "answer"),
        lambda cells: cells.pair(f"{cells.text('passage')}\n\n{cells.text('question')}", cells.text("answer")),
    ),
    "arc": Kind(("question", "choices", "answerKey"), _arc),
    "squad": Kind(("context", "question", "answers"), _squad),
    "question/answer": Kind(("question", "answer"), lambda cells: cells.pair(_question(cells), cells.text("answer"))),
    "context/target": Kind(("context", "target"), lambda cells: cells.pair(cells.text("context"), cells.text("target"))),
    "text": Kind(("text",), lambda _: Turns([])),
}
"""Kind → needed columns. Optional: `context` beside question/answer, `input` beside instruction/output, `expected_answer`
beside problem/generated_solution. `text` beside the columns of another kind (alpaca files have both) is not read."""


def kind_of(columns: Iterable[str], source: str, task: DatasetInfo | None = None) -> str:
    """Return the kind that these columns make.

    Raises:
        UsageError: they make none or several, or one that the named built-in data set does not have.
    """
    names = list(columns)
    allowed = {name: set(kind.columns) for name, kind in KINDS.items() if task is None or name in task.kinds}
    fits = [name for name, needed in allowed.items() if needed <= set(names)]
    fits = [name for name in fits if not any(allowed[name] < allowed[other] for other in fits)]
    if len(fits) > 1 and "text" in fits:
        fits.remove("text")
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UsageError(f"{source}: the columns {shown(names, 200)} fit {' and '.join(fits)}; keep the columns of one kind")
    wanted = sorted({column for needed in allowed.values() for column in needed})
    hints = [f"{name!r}:{hint}" for name in names if name not in wanted and (hint := did_you_mean(name, wanted))]
    known = "; ".join("+".join(KINDS[name].columns) for name in allowed)
    whose = f"data set {task.name!r}" if task else "known kinds"
    raise UsageError(f"{source}: the columns {shown(names, 200)} are not those of {whose}: {known}. {' '.join(hints)}".rstrip())
