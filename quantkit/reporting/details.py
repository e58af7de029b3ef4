"""What does the page say about one artifact? Its origin, recipe, checks, memory and every score, as tables of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.card import OUTCOME, SETTINGS
from quantkit.layout import format_bytes, format_duration
from quantkit.reporting.facts import Row, Subject
from quantkit.reporting.report import Report
from quantkit.reporting.wording import floor_text, interval_text, number_text, pairs, without_folders

Table = dict[str, Any]
"""`title`, `columns` (empty: keys and values) and `rows` of text."""
NOT_A_TABLE = ("gate", "fidelity")


def anchor(number: int) -> str:
    """Return the id of an artifact's section."""
    return f"artifact-{number}"


def details(subject: Subject, report: Report) -> dict[str, Any]:
    """Return everything the page's section of an artifact shows."""
    rows = [row for row in report.rows if row.number == subject.number]
    said = _mapping(subject.record.get("verification"))
    tables = [
        _pairs("What the weights are", subject.quantization),
        _pairs("Recipe", _recipe(subject.record)),
        _pairs("Training", _training(subject.record)),
        _pairs("Gate", _mapping(said.get("gate"))),
        _fidelity(said.get("fidelity")),
        _pairs("Checked before saving", {key: value for key, value in said.items() if key not in NOT_A_TABLE}),
        _memory("Memory while it was made", subject.record.get("memory")),
        _memory("Memory while it was evaluated", subject.memory),
        _scores(subject),
        _pairs("Data", {key: value for key, value in _mapping(subject.record.get("data")).items() if key != "fingerprint"}),
        _pairs("Made on", _mapping(subject.record.get("environment"))),
    ]
    return {
        "subject": subject,
        "id": anchor(subject.number),
        "facts": _facts(subject),
        "marks": list(dict.fromkeys(mark for row in rows for mark in row.marks)),
        "lineage": [without_folders(line) for line in subject.lineage],
        "evidence": [without_folders(line) for line in subject.evidence],
        "summary": [_result(row) for row in rows],
        "tables": [table for table in tables if table["rows"]],
    }


def _result(row: Row) -> dict[str, str]:
    return {
        "task": row.task,
        "score": number_text(row.value, row),
        "interval": interval_text(row),
        "floor": floor_text(row) or "–",
    }


def _facts(subject: Subject) -> list[tuple[str, str]]:
    bits = subject.bits_per_weight
    found = {
        "kind": subject.kind,
        "method": subject.method,
        "PEFT": subject.peft,
        "stored as": subject.stored,
        "bits per weight": None if bits is None else f"{bits:.2f}, measured",
        "size on disk": None if subject.size_bytes is None else format_bytes(subject.size_bytes),
        "base": None if subject.base is None else without_folders(subject.base),
        "created": subject.record.get("created_at"),
        "content": subject.artifact or None,
        "gate": subject.gate,
    }
    return [(key, str(value)) for key, value in found.items() if value is not None]


def _recipe(record: Mapping[str, Any]) -> dict[str, Any]:
    recipe = dict(_mapping(record.get("recipe")))
    return recipe | ({"merge": record["merge"]} if record.get("merge") else {})


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    training = _mapping(record.get("training"))
    settings = _mapping(training.get("settings"))
    chosen = {key: training[key] for key in OUTCOME if training.get(key) is not None}
    return chosen | {f"settings.{key}": settings[key] for key in SETTINGS if settings.get(key) is not None}


def _pairs(title: str, data: Mapping[str, Any]) -> Table:
    return {"title": title, "columns": [], "rows": list(pairs(data))}


def _fidelity(said: Any) -> Table:
    if isinstance(said, str):
        return {"title": "Fidelity of the merge", "columns": [], "rows": [("measured", without_folders(said))]}
    return _pairs("Fidelity of the merge", _mapping(said))


def _memory(title: str, said: Any) -> Table:
    stages = _mapping(said).get("stages")
    known = [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, Sequence) else []
    devices = sorted({str(gpu) for stage in known for gpu in _mapping(stage.get("peak_reserved_bytes"))})
    rows = []
    for stage in known:
        name = f"{stage['inside']}: {stage.get('stage')}" if stage.get("inside") else str(stage.get("stage"))
        gpus = [_bytes(_mapping(stage.get("peak_reserved_bytes")).get(gpu)) for gpu in devices]
        seconds = stage.get("duration_s")
        time = format_duration(seconds) if isinstance(seconds, int | float) else "–"
        rows.append((name, time, *gpus, _bytes(stage.get("peak_rss_bytes"))))
    return {
        "title": title,
        "columns": ["stage", "time", *(f"{gpu} reserved" for gpu in devices), "process resident"],
        "rows": rows,
    }


def _bytes(value: Any) -> str:
    return format_bytes(value) if isinstance(value, int) and not isinstance(value, bool) else "–"


def _scores(subject: Subject) -> Table:
    rows = []
    for result in subject.results:
        for name, score in result.scores.items():
            floor = score.best_floor
            rows.append(
                (
                    result.task,
                    name.replace("_", " "),
                    f"{score.value:.4g}",
                    f"{score.low:.4g}–{score.high:.4g} ({score.interval})",
                    str(score.n),
                    f"{score.coverage:.1%}",
                    "–" if floor is None else f"{floor.value:.4g} ({floor.name})" + (" FLOOR" if score.is_floor else ""),
                )
            )
    columns = ["task", "measure", "value", "95 % interval", "n", "coverage", "best floor"]
    return {"title": "Every score", "columns": columns, "rows": rows}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
