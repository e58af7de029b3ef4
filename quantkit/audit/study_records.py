"""How does a record of named cells become what was measured, and which of its names were understood?"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.audit.aliases import Metric, bound_of, field_of, metric_of
from quantkit.audit.facts import Measured, Number
from quantkit.audit.study_rows import Names, read_row, whole
from quantkit.audit.values import Cell, as_percent, in_bytes, in_seconds, plain_name, read_number
from quantkit.errors import UsageError

SETTINGS = ("batch_size", "max_new_tokens", "num_fewshot", "system_prompt", "dtype", "device")
DRAWING = ("decoding", "temperature", "do_sample")
WORDS = ("model", "task", "method", "seed", "fingerprint", "metric", "load_in_4bit", "load_in_8bit", *SETTINGS, *DRAWING)
"""Facts that are text."""
COMMON = re.compile(
    r"(?:[a-z0-9]+_)*(?:metrics?|results?|summary|scores?|predictions?|outputs?|report|evaluation|eval)(?:_.*)?"
)
"""Names of files that many models have."""
TRUE = ("true", "1", "yes")
COLD = ("0", "0.0", "none", "null")
DENSE_WORDS = ("noquant", "none", "fp16", "bf16", "fp32", "float16", "bfloat16", "float32", "16bit", "no")


@dataclass
class Raw:
    """One record as it stands in the file."""

    where: str
    cells: dict[str, Any]
    samples: list[tuple[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)
    """Column → the plain name it is read under, where that is not its own."""


@dataclass
class Record:
    """One record with its cells understood, before it is known which columns are in percent."""

    raw: Raw
    words: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    metrics: list[tuple[str, str, Metric, Cell]] = field(default_factory=list)
    """Name, column, what is known of it, and the number."""
    bounds: dict[tuple[str, str], Cell] = field(default_factory=dict)


def to_measured(file: str, raws: Sequence[Raw], names: Names) -> tuple[list[Measured], list[str]]:
    """Return each record's facts; cells that hold something else than they should are faults that name file, row and field."""
    faults: list[str] = []
    columns: dict[str, list[Cell]] = {}
    records = []
    for raw in raws:
        faults += [f"{file}, {fault}" for fault in raw.faults]
        record = understand(file, raw, names, faults)
        for _, where, metric, cell in record.metrics:
            if metric.kind == "share":
                columns.setdefault(where, []).append(cell)
        records.append(record)
    percents = {where for where, cells in columns.items() if as_percent(cells)}
    return [_measured(file, record, percents, names, faults) for record in records], faults


def understand(file: str, raw: Raw, names: Names, faults: list[str]) -> Record:
    """Return a record with every cell that was understood in its place."""
    record = Record(raw)
    place = f"{file}, {raw.where}" if raw.where else file
    for name, value in raw.cells.items():
        parts = [raw.taken[name]] if name in raw.taken else [plain_name(part) for part in name.split(".")]
        both, last = "_".join(parts[-2:]), parts[-1]
        known = field_of(both) or field_of(last)
        metric, bound = metric_of(last) or metric_of(both), bound_of(both) or bound_of(last)
        taken = f"{bound[1]} of {bound[0]}" if bound else known or (last if metric else None)
        if taken is None:
            names.not_understood[name] = None
            continue
        if not (raw.taken and name == "task"):
            names.understood[name] = f"{taken}, {raw.cells['task']}" if name in raw.taken else taken
        try:
            if bound is None and known in WORDS:
                if value is not None and str(value).strip():
                    record.words.setdefault(str(known), str(value).strip()[:2000])
            elif (cell := read_number(value)) is None:
                continue
            elif bound is not None:
                record.bounds[bound] = cell
            elif known is not None:
                number = in_units(known, cell, last)
                larger = known == "memory_bytes" and number > record.values.get(known, 0.0)
                if larger or known not in record.values:
                    record.values[known] = number
            elif metric is not None:
                record.metrics.append((last, name, metric, cell))
        except UsageError as error:
            faults.append(f"{place}, {name}: {error}")
    named = plain_name(record.words.get("metric", ""))
    if (metric := metric_of(named)) is not None and "value" in record.values:
        value = record.values["value"]
        record.metrics.append((named, named, metric, Cell(value, f"{value:g}", 5e-7)))
    return record


def in_units(known: str, cell: Cell, name: str) -> float:
    """Return a number in bytes, seconds, parameters or shares, as its column's name says."""
    if known == "memory_bytes":
        return in_bytes(cell.value, name)
    if known in ("latency_s", "total_s"):
        return in_seconds(cell.value, name)
    if known == "parameters":
        return cell.value * {"b": 1e9, "m": 1e6}.get(name.rpartition("_")[2], 1.0)
    return cell.value / 100 if cell.percent else cell.value


def _numbers(record: Record, percents: set[str]) -> tuple[Number, ...]:
    found = []
    for name, where, metric, cell in record.metrics:
        scale = 100.0 if where in percents else 1.0
        low, high, stderr = (record.bounds.get((name, side)) for side in ("low", "high", "stderr"))
        found.append(
            Number(
                name=name,
                where=where,
                value=cell.value / scale,
                shown=cell.shown,
                kind=metric.kind,
                countable=metric.countable,
                step=cell.step / scale,
                higher_is_better=metric.higher_is_better,
                percent=scale != 1.0,
                low=None if low is None else low.value / scale,
                high=None if high is None else high.value / scale,
                stderr=None if stderr is None else stderr.value / scale,
            )
        )
    return tuple(found)


def _measured(file: str, record: Record, percents: set[str], names: Names, faults: list[str]) -> Measured:
    words, values = record.words, record.values
    rows = tuple(read_row(file, item, index, names, faults) for index, item in enumerate(record.raw.samples))
    counted = whole(values.get("n"))
    n = (len(rows) or None) if counted is None else counted
    method = words.get("method")
    four, eight = (words.get(f"load_in_{bits}bit", "").lower() in TRUE for bits in (4, 8))
    bits = whole(values.get("weights_bits")) or (4 if four else 8 if eight else None)
    dense = method is not None and plain_name(method).replace("_", "") in DENSE_WORDS
    drawn = words.get("do_sample", "").lower() in TRUE or words.get("temperature", "0").lower() not in COLD
    lengths = [row.tokens for row in rows if row.tokens is not None]
    return Measured(
        source="study",
        file=file,
        where=record.raw.where,
        model=words.get("model") or named_after(file),
        task=words.get("task", "unnamed"),
        numbers=_numbers(record, percents),
        rows=rows,
        n=n,
        method=method,
        bits=bits,
        quantized=not dense if method is not None else None if bits is None else bits < 16,
        bits_per_weight=values.get("bits_per_weight"),
        fingerprint=words.get("fingerprint"),
        settings={name: words[name] for name in (*SETTINGS, *DRAWING) if name in words},
        seed=words.get("seed"),
        greedy=not drawn if set(DRAWING) & set(words) else None,
        latency_s=values.get("latency_s"),
        answer_tokens=values.get("answer_tokens", sum(lengths) / len(lengths) if lengths else None),
        total_tokens=values.get("tokens"),
        total_s=values.get("total_s"),
        tokens_per_s=values.get("tokens_per_s"),
        empty=_share(values.get("empty"), values.get("empty_count"), n),
        repetition=values.get("repetition"),
        stopped=values.get("stopped"),
        coverage=_share(values.get("coverage"), values.get("parsed"), n),
        answers_recorded=any(row.answer is not None for row in rows),
        no_answer=_share(values.get("no_answer"), values.get("no_answer_count"), n),
        memory_bytes=values.get("memory_bytes"),
        parameters=values.get("parameters"),
        overlap=values.get("overlap"),
    )


def named_after(file: str) -> str:
    """Return the name of a model that only its file or folder names.

    >>> named_after("runs/Qwen3-0.6B-base/metrics.json"), named_after("Qwen3-0.6B-base.json")
    ('Qwen3-0.6B-base', 'Qwen3-0.6B-base')
    """
    path = Path(file)
    return (path.parent.name if COMMON.fullmatch(plain_name(path.stem)) else path.stem) or "unnamed"


def _share(share: float | None, count: float | None, n: int | None) -> float | None:
    if share is not None:
        return share / 100 if share > 1 else share
    return count / n if count is not None and n else None
