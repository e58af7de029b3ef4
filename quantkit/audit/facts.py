"""What is read out of a result file, whoever wrote it, and what is said about it?

One neutral form for every format, in which each fact may be missing: a check that finds its facts judges them, and says what
would be needed where it does not. Shares are between 0 and 1 here, whatever scale the file used.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from quantkit.evaluation.statistics import Floor

Source = Literal["quantkit", "lm-eval", "study"]
Severity = Literal["error", "warning", "note"]
NumberKind = Literal["share", "difference", "perplexity", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer that was judged."""

    key: str
    """What pairs it with the same question's answer of another model."""
    text: str | None = None
    """What the model wrote."""
    gold: tuple[str, ...] | None = None
    """Reference answers; an empty tuple where the question has none."""
    answer: str | None = None
    """What was parsed out of the text; None: nothing, or not recorded (see `Measured.answers_recorded`)."""
    correct: bool | None = None
    difference: float | None = None
    """Absolute difference to the reference."""
    tokens: int | None = None
    stopped: bool | None = None
    prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One number as a file reports it."""

    name: str
    where: str
    """Column or key in the file."""
    value: float
    shown: str
    """As it stands in the file."""
    kind: NumberKind
    countable: bool = False
    """Whether it is right answers over answers, so that it must be k/n."""
    n: int | None = None
    """Rows it was measured on, where those are not all."""
    step: float = 0.0
    """Half a unit of the last digit given."""
    low: float | None = None
    high: float | None = None
    stderr: float | None = None
    coverage: float | None = None
    floors: tuple[Floor, ...] = ()
    higher_is_better: bool = True
    main: bool = True
    """Whether models would be ranked by it."""
    percent: bool = False
    """Whether the file writes it in percent."""

    @property
    def is_finite(self) -> bool:
        """Whether it is a number at all."""
        return math.isfinite(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether the file says how sure it is."""
        return self.stderr is not None or (self.low is not None and self.high is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason not to believe a number."""

    severity: Severity
    """`error`: the number cannot stand; `warning`: it cannot be judged; `note`: to be known when reading it."""
    check: str
    file: str
    model: str
    where: str
    """Task and number, column or row."""
    found: str
    needed: str


def listed(models: Iterable[str], most: int = 3) -> str:
    """Return names for people: each once, and of many the first two.

    >>> listed(["a", "b", "a"]), listed("abcde")
    ('a, b', 'a, b and 3 more')
    """
    names = list(dict.fromkeys(models))
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:2])} and {len(names) - 2} more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that a file says about one model on one task; what it does not say is None."""

    source: Source
    file: str
    where: str
    """Place in the file, for people."""
    model: str
    task: str
    numbers: tuple[Number, ...]
    rows: tuple[Row, ...] = ()
    n: int | None = None
    artifact: str | None = None
    """Hash of the content that was measured."""
    method: str | None = None
    """Quantization as the file records it."""
    bits: int | None = None
    quantized: bool | None = None
    """Whether the file records quantized weights."""
    bits_per_weight: float | None = None
    fingerprint: str | None = None
    """Hash of the rows that were asked."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What else the numbers depend on, as text, under quantkit's names."""
    seed: str | None = None
    greedy: bool | None = None
    latency_s: float | None = None
    answer_tokens: float | None = None
    """Tokens of one answer, on average."""
    total_tokens: float | None = None
    total_s: float | None = None
    tokens_per_s: float | None = None
    empty: float | None = None
    """Share of answers without content."""
    repetition: float | None = None
    stopped: float | None = None
    coverage: float | None = None
    """Share of answers that parsed."""
    answers_recorded: bool = False
    """Whether the rows say what was parsed."""
    no_answer: float | None = None
    """Share of questions whose right answer is none."""
    memory_bytes: float | None = None
    parameters: float | None = None
    overlap: float | None = None
    """Test questions that also stand in the training data."""
    base: str | None = None
    """Model that an adapter was loaded on."""
    old_schema: str | None = None
    marks: tuple[str, ...] = ()
    """What quantkit itself says of the answers: that they are degenerate, and how."""
    refused: str | None = None
    """Why quantkit's own reader does not take the file."""

    def finding(self, severity: Severity, check: str, where: str, found: str, needed: str) -> Finding:
        """Return a finding about this model on this task."""
        place = f"{self.task}: {where}" if where else self.task
        return Finding(
            severity=severity, check=check, file=self.file, model=self.model, where=place, found=found, needed=needed
        )

    @property
    def main(self) -> Number | None:
        """Return the first number that models would be ranked by."""
        return next((number for number in self.numbers if number.main), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One file: what it is, what was understood of it, and what could not be read."""

    file: str
    kind: str
    measured: tuple[Measured, ...] = ()
    understood: Mapping[str, str] = field(default_factory=dict)
    """Column or key → what it was taken for."""
    not_understood: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    """What could not be read, each naming file, row and field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a model's name says about its weights; words, not facts."""

    text: str
    """The name's words, for people."""
    quantized: bool
    bits: int | None = None
    method: str | None = None
    strict: bool = True
    """Whether the name follows a grammar; otherwise it is a habit of the community, a hint."""
    ambiguous: bool = False
    """Whether the name holds words of both quantized and unquantized weights."""
    unmerged: str | None = None
    """Name of the artifact this one was merged from."""
