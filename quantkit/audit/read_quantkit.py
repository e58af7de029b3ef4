"""What does a result of quantkit say, of this version or another, whole or tampered with?

Read field by field, so that an impossible value is a finding that names it. `TaskResult.from_dict` alone would stop at the
first; its verdict is kept beside.
"""

from collections.abc import Mapping
from typing import Any

from quantkit.audit.facts import Measured, Number, Reading, Row
from quantkit.audit.plain import as_count, as_number, as_object, as_objects, as_settings, as_text
from quantkit.errors import UsageError
from quantkit.evaluation.results import SCHEMA_VERSION, TaskResult
from quantkit.evaluation.statistics import Floor
from quantkit.spec import DENSE_BITS

KIND = "quantkit"
BOUNDED = ("wilson",)


def read(file: str, data: Any) -> Reading | None:
    """Return what one filed result, or the object that `quantkit evaluate --json` prints, says; None for anything else."""
    if not isinstance(data, Mapping) or "schema_version" not in data:
        return None
    found: list[Measured] = []
    faults: list[str] = []
    if isinstance(data.get("artifacts"), list) and "failed" in data:
        for index, about in enumerate(as_objects(data["artifacts"])):
            for at, result in enumerate(as_objects(about.get("results"))):
                found.append(_measured(file, f"artifacts[{index}].results[{at}]", result, about, faults))
    elif "task" in data and "scores" in data:
        found.append(_measured(file, "", data, as_object(data.get("artifact")), faults))
    else:
        return None
    return Reading(file=file, kind=KIND, measured=tuple(found), faults=tuple(faults))


def _measured(file: str, where: str, data: Mapping[str, Any], about: Mapping[str, Any], faults: list[str]) -> Measured:
    def number(raw: Any, field: str) -> float | None:
        value = as_number(raw)
        if raw is not None and value is None:
            faults.append(f"{file}: {field} is {type(raw).__name__}; a number is wanted")
        return value

    metric, version = as_text(data.get("metric")), data.get("schema_version")
    scores = as_object(data.get("scores"))
    read = [_number(name, as_object(score), number, main=name == metric) for name, score in scores.items()]
    numbers = sorted((item for item in read if item is not None), key=lambda item: not item.main)
    rates = {item.name: item.value for item in numbers}
    quantization, cost = as_object(about.get("quantization")), as_object(data.get("cost"))
    settings = as_settings(data.get("settings"))
    dtype = as_text(quantization.get("weights_dtype"))
    latency = as_object(cost.get("latency_s"))
    rows = _rows(data.get("rows"))
    refused, marks = _own_verdict(data) if version == SCHEMA_VERSION else (None, ())
    generated = any(row.stopped is not None for row in rows)
    return Measured(
        source="quantkit",
        file=file,
        where=where,
        model=as_text(about.get("name")) or "unnamed",
        task=as_text(data.get("task")) or "unnamed",
        numbers=tuple(numbers),
        rows=rows,
        n=as_count(data.get("n")),
        artifact=as_text(about.get("artifact")),
        method=as_text(quantization.get("method")),
        bits=as_count(quantization.get("weights_bits")),
        quantized=None if dtype is None else dtype not in DENSE_BITS,
        bits_per_weight=number(about.get("bits_per_weight"), "artifact.bits_per_weight"),
        fingerprint=as_text(data.get("data_fingerprint")),
        settings=settings,
        seed=None if data.get("seed") is None else str(data["seed"])[:40],
        greedy=settings.get("decoding", "greedy") == "greedy",
        latency_s=number(latency.get("p50"), "cost.latency_s.p50"),
        total_tokens=number(cost.get("generated_tokens"), "cost.generated_tokens") if generated else None,
        total_s=number(cost.get("generation_s"), "cost.generation_s") if generated else None,
        tokens_per_s=number(cost.get("tokens_per_s"), "cost.tokens_per_s") if generated else None,
        empty=rates.get("empty_rate"),
        repetition=rates.get("repetition_rate"),
        stopped=rates.get("stop_rate"),
        coverage=next((item.coverage for item in numbers if item.main), None),
        answers_recorded=generated,
        old_schema=None
        if version == SCHEMA_VERSION
        else f"schema_version is {version!r}; this quantkit writes {SCHEMA_VERSION}",
        refused=refused,
        marks=marks,
    )


def _number(name: str, score: Mapping[str, Any], number: Any, *, main: bool) -> Number | None:
    value = number(score.get("value"), f"scores.{name}.value")
    if value is None:
        return None
    interval, better = score.get("interval"), score.get("higher_is_better", True)
    floors = []
    for floor in as_objects(score.get("floors")):
        height = number(floor.get("value"), f"scores.{name}.floors")
        if height is not None:
            floors.append(Floor(name=as_text(floor.get("name")) or "unnamed", value=height))
    return Number(
        name=name,
        where=f"scores.{name}",
        value=value,
        shown=f"{value:.4g}",
        kind="perplexity" if "perplexity" in name else "share" if interval in BOUNDED else "other",
        countable=interval in BOUNDED,
        n=as_count(score.get("n")),
        low=number(score.get("low"), f"scores.{name}.low"),
        high=number(score.get("high"), f"scores.{name}.high"),
        coverage=number(score.get("coverage"), f"scores.{name}.coverage"),
        floors=tuple(floors),
        higher_is_better=better is True,
        main=main,
    )


def _rows(raw: Any) -> tuple[Row, ...]:
    rows = as_objects(raw)
    counted = any(as_count(row.get("generated_tokens")) for row in rows)
    found = []
    for index, row in enumerate(rows):
        stopped, correct, gold = row.get("stopped"), row.get("correct"), as_text(row.get("gold"))
        said = isinstance(stopped, bool)
        found.append(
            Row(
                key=str(row.get("row", index))[:80],
                text=as_text(row.get("text")) if said else None,
                gold=None if gold is None else (gold,),
                answer=as_text(row.get("answer")),
                correct=correct if isinstance(correct, bool) else None,
                tokens=as_count(row.get("generated_tokens")) if said and counted else None,
                stopped=stopped if said else None,
            )
        )
    return tuple(found)


def _own_verdict(data: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """Return why quantkit's own reader refuses a result, and the marks that it gives the answers."""
    try:
        result = TaskResult.from_dict(data)
    except UsageError as error:
        return str(error), ()
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        return f"it is not built as a result is: {error}", ()
    stated = data.get("marks")
    hidden = [mark for mark in result.marks if not isinstance(stated, list) or mark not in stated]
    refused = f"its scores earn {', '.join(hidden)}, which its marks leave out" if hidden else None
    return refused, tuple(result.degenerate)
