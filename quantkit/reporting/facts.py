"""What does a report say about one artifact on one task? A flat row, and the artifact that rows belong to.

The row's fields are the columns of the CSV and the keys of the JSON, so the table, the files and the page cannot disagree.
Nested objects would be kinder to programs that wrote them, and useless in a spreadsheet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantkit.evaluation.results import FLOOR, ArtifactResult, TaskResult

NO_ADAPTER = "NoPeft"
Key = tuple[str, str, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One artifact of the report."""

    number: int
    """Its place in the order of names; points of a plot and lines of a table are labelled with it."""
    name: str
    artifact: str
    """Hash of the content that results were filed under; empty where nothing could be filed."""
    kind: str
    method: str
    """Method of the recipe; of something that only results know: method of the weights that were loaded."""
    peft: str
    base: str | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)
    size_bytes: int | None = None
    bits_per_weight: float | None = None
    here: bool = True
    """Whether its folder is in the registry with this content; results outlive folders."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """`quantization_metadata.json`; empty for what quantkit did not write."""
    lineage: Sequence[str] = ()
    """What it was made from, one line per step, indented."""
    evidence: Sequence[str] = ()
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Peaks of every stage of its evaluation."""
    results: Sequence[TaskResult] = ()

    @property
    def gate(self) -> str | None:
        """Return the outcome of its gate; None where it has none."""
        gate = _mapping(_mapping(self.record.get("verification")).get("gate"))
        return str(gate["outcome"]) if "outcome" in gate else None

    @property
    def gate_reasons(self) -> list[str]:
        """Return which limits its gate found it beyond."""
        gate = _mapping(_mapping(self.record.get("verification")).get("gate"))
        reasons = gate.get("reasons")
        return [str(reason) for reason in reasons] if isinstance(reasons, list) and self.gate == "failed" else []

    @property
    def stored(self) -> str | None:
        """Return what the weights are, in a word: their grid or data type."""
        dtype = self.quantization.get("weights_dtype")
        return str(dtype) if dtype else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One artifact on one task: the columns of the CSV and the keys of the JSON."""

    number: int
    name: str
    artifact: str
    kind: str
    method: str
    peft: str
    base: str | None
    weights_dtype: str | None
    bits_per_weight: float | None
    size_bytes: int | None
    gate: str | None
    task: str
    task_kind: str
    metric: str
    higher_is_better: bool
    value: float
    low: float
    high: float
    interval: str
    n: int
    coverage: float
    best_floor: float | None
    best_floor_name: str | None
    marks: tuple[str, ...]
    degenerate: tuple[str, ...] = ()
    """The marks that say the artifact is broken, not only weak on this task."""
    rank_low: int | None = None
    """Best and worst place the 95 % intervals allow among results of this task above their floors; null for any other."""
    rank_high: int | None = None
    kl_mean: float | None = None
    """Mean divergence from the reference model in nats."""
    kl_of: str | None = None
    """Where `kl_mean` was measured, and from which model."""
    kl_p99: float | None = None
    top1_agreement: float | None = None
    reference: str | None = None
    """The reference model of this result's own divergences."""
    perplexity_response: float | None = None
    peak_memory_bytes: int | None = None
    peak_memory_of: str | None = None
    """Whose number the peak is: a GPU's allocator, or the process's resident memory."""
    tokens_per_s: float | None = None
    """Generated tokens per second, all rows of a batch together; null where nothing was generated."""
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    latency_p50_s: float | None = None
    latency_p90_s: float | None = None
    latency_p99_s: float | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    source: str = ""
    data_fingerprint: str = ""

    @property
    def board(self) -> Key:
        """Return what two rows must share to be compared: task, metric, data, device, of a divergence also the reference."""
        reference = self.reference or "" if self.metric.startswith("kl_") else ""
        return self.task, self.metric, self.data_fingerprint, self.device or "", reference

    @property
    def is_ranked(self) -> bool:
        """Whether the score may stand among others: above its floor, and texts that are not degenerate."""
        return FLOOR not in self.marks and not self.degenerate

    @property
    def is_share(self) -> bool:
        """Whether the metric reads as a percentage."""
        return self.higher_is_better and self.low >= 0.0 and self.high <= 1.0


def row_of(subject: Subject, result: TaskResult) -> Row:
    """Return the row of one result; ranks come with `ranking.ranked`."""
    score, cost, settings = result.main, result.cost, result.settings
    floor = score.best_floor
    peak, peak_of = peak_memory(result)
    kl, kl_of = divergence(subject, result)
    return Row(
        number=subject.number,
        name=subject.name,
        artifact=subject.artifact,
        kind=subject.kind,
        method=subject.method,
        peft=subject.peft,
        base=subject.base,
        weights_dtype=subject.stored,
        bits_per_weight=subject.bits_per_weight,
        size_bytes=subject.size_bytes,
        gate=subject.gate,
        task=result.task,
        task_kind=result.kind,
        metric=result.metric,
        higher_is_better=score.higher_is_better,
        value=score.value,
        low=score.low,
        high=score.high,
        interval=score.interval,
        n=result.n,
        coverage=score.coverage,
        best_floor=floor.value if floor else None,
        best_floor_name=floor.name if floor else None,
        marks=tuple(result.marks),
        degenerate=tuple(result.degenerate),
        kl_mean=kl,
        kl_of=kl_of,
        kl_p99=_value(result, "kl_p99"),
        top1_agreement=_value(result, "top1_agreement"),
        reference=_text(settings.get("reference")),
        perplexity_response=_value(result, "perplexity_response"),
        peak_memory_bytes=peak,
        peak_memory_of=peak_of,
        tokens_per_s=cost.tokens_per_s if cost.generated_tokens else None,
        prefill_tokens_per_s=cost.prefill_tokens_per_s,
        decode_tokens_per_s=cost.decode_tokens_per_s,
        latency_p50_s=cost.latency_s.get("p50"),
        latency_p90_s=cost.latency_s.get("p90"),
        latency_p99_s=cost.latency_s.get("p99"),
        device=_text(settings.get("device")),
        dtype=_text(settings.get("dtype")),
        batch_size=_whole(settings.get("batch_size")),
        max_new_tokens=_whole(settings.get("max_new_tokens")),
        seed=result.seed,
        source=result.source,
        data_fingerprint=result.data_fingerprint,
    )


def peak_memory(result: TaskResult) -> tuple[int | None, str | None]:
    """Return the peak of a task's stages and whose number it is: the fullest GPU's allocator, else the process's."""
    gpus = result.cost.peak_reserved_bytes
    if gpus:
        device = max(gpus, key=gpus.__getitem__)
        return gpus[device], f"{device}, reserved by the allocator"
    return (result.cost.peak_rss_bytes or None), "resident memory of the process"


def divergence(subject: Subject, result: TaskResult) -> tuple[float | None, str | None]:
    """Return the mean divergence in nats and where it was measured: this result's, else what saving measured."""
    for measured in (result, *subject.results):
        if (score := measured.scores.get("kl_mean")) is not None:
            reference = measured.settings.get("reference") or "the reference model"
            return score.value, f"from {reference}, on the rows of {measured.task}"
    said = _mapping(subject.record.get("verification"))
    gate, fidelity = _mapping(said.get("gate")), _mapping(said.get("fidelity"))
    for found, where in (
        (_mapping(gate.get("reloaded")), "from the model it was quantized from, on its gate's text"),
        (_mapping(gate.get("in_memory")), "from the model it was quantized from, on its gate's text"),
        (_mapping(fidelity.get("as_loaded")), "from the adapter on its training base, on the merge's rows"),
    ):
        if isinstance(found.get("mean_kl"), int | float):
            return float(found["mean_kl"]), where
    return None, None


def about_result(data: Mapping[str, Any]) -> ArtifactResult | None:
    """Return what a filed result says about its artifact; None where it says nothing.

    Raises:
        UsageError: it says something that is no statement about an artifact.
    """
    about = data.get("artifact")
    return ArtifactResult.from_dict({**about, "path": "", "results": []}) if isinstance(about, Mapping) else None


def _value(result: TaskResult, name: str) -> float | None:
    score = result.scores.get(name)
    return None if score is None else score.value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
