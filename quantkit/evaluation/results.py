"""What is kept of an evaluation? Enough to judge each number and to pair two models row by row later.

A result names its data by fingerprint and its artifact by content hash. The alternative, a score filed under a folder name,
goes on standing there when the folder's content has changed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Self

from quantkit.errors import UsageError
from quantkit.evaluation.statistics import Score
from quantkit.spec import read_fields

SCHEMA_VERSION = 2


class Mark(NamedTuple):
    """A word beside the score, earned when a rate passes a threshold."""

    name: str
    rate: str
    """Key of `TaskResult.scores`."""
    threshold: float
    """Share of rows from which it is earned; of 30 healthy runs none comes near (`tests/evaluation/test_garbage.py`)."""
    bad_when_high: bool = True
    fails: bool = True
    """Whether the artifact is degenerate then, so that evaluating it exits 3; else it is only said."""

    def is_earned(self, rate: Score) -> bool:
        """Say whether a rate passes the threshold, and by its interval half of it: one row of two proves nothing."""
        value, low = (rate.value, rate.low) if self.bad_when_high else (1.0 - rate.value, 1.0 - rate.high)
        return value >= self.threshold and 2 * low >= self.threshold


MARKS = (
    Mark("EMPTY", "empty_rate", 0.5),
    Mark("LOOPS", "repetition_rate", 0.5),
    Mark("NO STOP", "stop_rate", 0.5, bad_when_high=False),
    Mark("CONSTANT", "constant_rate", 0.9),
    Mark("ECHO", "echo_rate", 0.5),
    Mark("GIBBERISH", "gibberish_rate", 0.5),
    Mark("UNLIKELY", "unlikely_rate", 0.5),
    Mark("UNPARSED", "parsed_rate", 0.5, bad_when_high=False, fails=False),
)
FLOOR, BROKEN = "FLOOR", "BROKEN"
"""A score not above its best floor by its interval; a perplexity no better than the size of the vocabulary, which is chance."""
FEW_LABELS = 10
"""Up to so many different references, one answer for all rows is a weak model's habit, not a broken artifact's."""
FAIR = 2
"""An answer that goes on past so many times its reference's tokens was given the room to end."""
OF_TOKENS = ("perplexity", "kl_", "top1_")
"""Scores whose coverage counts tokens; of rows that are cut off some may be left out whole."""
REQUIRED_RATES = ("empty_rate", "repetition_rate", "stop_rate")
"""What a result with generated answers cannot be read without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row's outcome, for paired comparisons and for people who want to read what was said."""

    row: int
    gold: str
    answer: str | None
    correct: bool
    stopped: bool | None = None
    """Whether the answer ended by itself; None where none was generated."""
    text: str = ""
    value: float | None = None
    """The task's measure of this row where right or wrong is too coarse for it, e.g. F1."""
    generated_tokens: int = 0
    nll: float | None = None
    """Summed negative log-likelihood of the response, in nats, over `nll_tokens`."""
    nll_tokens: int = 0
    kl: float | None = None
    """Mean divergence from the reference model over the response's positions, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the run took, on the machine it ran on."""

    generated_tokens: int
    generation_s: float
    tokens_per_s: float
    """Generated tokens per second, all rows of a batch together, prompts' processing included."""
    perplexity_s: float
    peak_rss_bytes: int
    """Largest resident memory of the process in this task's stages."""
    prefill_tokens_per_s: float | None = None
    """Prompt tokens per second of one prompt at a time, after warm-up; None where it was not measured."""
    decode_tokens_per_s: float | None = None
    """Tokens per second after the first of one answer at a time, after warm-up."""
    latency_s: dict[str, float] = field(default_factory=dict)
    """Seconds one prompt alone takes to its whole answer, after warm-up: `p50`, from 10 prompts on `p90`, from 100 on `p99`."""
    latency_n: int = 0
    """Prompts that the latencies and the two speeds were measured on."""
    peak_allocated_bytes: dict[str, int] = field(default_factory=dict)
    peak_reserved_bytes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """All that one task measured on one model."""

    task: str
    kind: str
    metric: str
    """Key of `scores` that is the task's own."""
    source: str
    data_fingerprint: str
    n: int
    seed: int
    settings: dict[str, Any]
    """What else the numbers depend on: batch size, `max_new_tokens`, decoding, data type, device, system prompt."""
    scores: dict[str, Score]
    """The metric, `perplexity_response`, `perplexity_all` and the rates."""
    cost: Cost
    rows: list[RowResult]

    def __post_init__(self) -> None:
        self.check_coverages()

    def check_coverages(self) -> None:
        """Raise `UsageError` for a score over some of the rows that claims to cover more of them."""
        for name, score in self.scores.items():
            if not name.startswith(OF_TOKENS) and score.n < self.n and score.coverage * self.n > score.n * (1 + 1e-9):
                raise UsageError(
                    f"result: scores.{name} is over {score.n} of {self.n} rows but says that it covers {score.coverage:.1%};"
                    f" its coverage is at most {score.n / self.n:.1%}"
                )

    @property
    def main(self) -> Score:
        """Return the score of the task's own metric."""
        return self.scores[self.metric]

    @property
    def marks(self) -> list[str]:
        """Return what must be said beside the score, e.g. FLOOR, or that most answers are empty or loop."""
        return [name for name, _ in self._found_marks()]

    @property
    def degenerate(self) -> list[str]:
        """Return the marks that say the artifact is broken, not only weak on this task."""
        return [name for name, fails in self._found_marks() if fails]

    def _found_marks(self) -> list[tuple[str, bool]]:
        found = [(FLOOR, False)] if self.main.is_floor else []
        for mark in MARKS:
            if mark.rate not in self.scores:
                continue
            if mark.is_earned(self.scores[mark.rate]):
                found.append((mark.name, mark.fails and not self._excused(mark)))
        return [*found, (BROKEN, True)] if self._worse_than_uniform() else found

    def _excused(self, mark: Mark) -> bool:
        """Whether a mark says nothing against the artifact: few possible answers, or answers cut off before a fair length."""
        if mark.rate == "constant_rate":
            return len({row.gold for row in self.rows}) <= FEW_LABELS
        cut = [row for row in self.rows if row.stopped is False]
        return mark.rate == "stop_rate" and 2 * sum(row.generated_tokens < FAIR * row.nll_tokens for row in cut) > len(cut)

    def _worse_than_uniform(self) -> bool:
        scores = [score for name, score in self.scores.items() if name.startswith("perplexity")]
        return any(floor.name == "uniform" and score.low >= floor.value for score in scores for floor in score.floors)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` is its inverse."""
        return {
            "schema_version": SCHEMA_VERSION,
            **{key: getattr(self, key) for key in ("task", "kind", "metric", "source", "data_fingerprint", "n", "seed")},
            "settings": dict(self.settings),
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "cost": asdict(self.cost),
            "marks": self.marks,
            "degenerate": self.degenerate,
            "rows": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a result back; raises `UsageError` for another schema, missing or unknown keys."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise UsageError(f"result: schema_version is {data.get('schema_version')!r}; this quantkit reads {SCHEMA_VERSION}")
        derived = ("schema_version", "scores", "marks", "degenerate", "artifact")  # a filed result says whose it is
        plain = {key: value for key, value in data.items() if key not in derived}
        scores = data.get("scores")
        if not isinstance(scores, Mapping):
            raise UsageError("result: scores is missing or no object")
        result = read_fields(cls, plain | {"scores": {}}, where="result")
        object.__setattr__(result, "scores", {str(name): Score.from_dict(score) for name, score in scores.items()})
        result.check_coverages()
        generated = any(row.stopped is not None for row in result.rows)
        for name in (result.metric, *(REQUIRED_RATES if generated else ())):
            if name not in result.scores:
                raise UsageError(f"result: scores has no {name!r}; it has {', '.join(result.scores) or 'nothing'}")
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactResult:
    """What was found and measured for one path."""

    path: str
    name: str
    artifact: str
    """Hash of the content the numbers belong to."""
    kind: str
    """`model` or `adapter`."""
    quantization: dict[str, Any]
    """What the weights are; the loaded model was measured against it. What it computes in is a setting of each result."""
    evidence: list[str]
    """What the method was read off."""
    memory: dict[str, Any]
    """Peaks of every stage, `load` first (`quantkit.memory.MemoryLog`)."""
    results: list[TaskResult]
    size_bytes: int | None = None
    """Bytes on disk of the artifact's own files, without the base of an adapter."""
    bits_per_weight: float | None = None
    """Stored bits of all weights used (an adapter's base included), by their number; read off the files."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` is its inverse."""
        plain = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "results"}
        return plain | {"results": [result.to_dict() for result in self.results]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read it back; raises `UsageError` for missing or unknown keys."""
        artifact = read_fields(cls, {**data, "results": []}, where="evaluation")
        object.__setattr__(artifact, "results", [TaskResult.from_dict(item) for item in data.get("results", ())])
        return artifact
