"""On which rows is a merge judged, and on which other rows are its weights rounded?

The adapter's record knows what it was trained on, so by default nothing need be named: its evaluation rows judge, its training
rows calibrate. Rows that judge never calibrate.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quantkit import console
from quantkit.calibrating import CalibrationSettings, read_training_rows, split_texts
from quantkit.calibration import Calibration
from quantkit.data import prepare_data
from quantkit.errors import UsageError
from quantkit.layout import counted
from quantkit.merging.report import ReportRows, choose_rows
from quantkit.skeleton import read_stop_tokens
from quantkit_tools.adopting.rows import rows_of
from quantkit_tools.merging.planning import MergeJob

if TYPE_CHECKING:
    from quantkit.data import PreparedData

SFT = "sft"
UNCUT = 1 << 30


def texts_of(job: MergeJob, tokenizer: Any) -> tuple[ReportRows, Calibration | None]:
    """Return the rows that judge and, for a requantized merge, the text to round on; say where they come from.

    Raises:
        UsageError: rows cannot be read, are not those of the training any more, or are too few.
    """
    config = job.config
    trained = _training_rows(job, tokenizer) if config.data is None or _calibrates_on_training(job) else None
    if config.data is not None:
        rows = _held_out(_read(job, config.data, tokenizer), config.seed)
    elif trained is not None:
        rows = choose_rows(trained, seed=config.seed)
    else:
        rows = rows_of(job.into, job.into_revision, None, tokenizer)
    many = counted(len(rows.rows), "held-out row" if rows.held_out else "row")
    what = many if rows.held_out else f"{many} it was trained on (--data names held-out ones)"
    console.say(f"compared on: {what} of {rows.source}")
    if job.policy != "requantized":
        return rows, None
    source = trained if _calibrates_on_training(job) else _read(job, str(config.calib), tokenizer)
    if source is None:
        raise UsageError(f"--calib {SFT}: {job.record.name} has no record of what it was trained on; name a file")
    settings = CalibrationSettings(
        calib_rows=config.calib_rows,
        calib_length=config.calib_length,
        calib_min_tokens=config.calib_min_tokens,
        seed=config.seed,
    )
    named = f"training rows of {source.report.source}" if _calibrates_on_training(job) else source.report.source
    found = split_texts(replace(source, evaluation=list(rows.rows)), settings, source=named).calibration
    if found is not None:
        console.say(f"rounds on: {counted(len(found.rows), 'row')}, {found.tokens:,} tokens of {found.source}")
    return rows, found


def _calibrates_on_training(job: MergeJob) -> bool:
    return job.policy == "requantized" and job.config.calib in (None, SFT)


def _training_rows(job: MergeJob, tokenizer: Any) -> "PreparedData | None":
    settings = job.record.training.get("settings")
    if not isinstance(settings, dict) or not settings.get("dataset_name"):
        return None
    recorded = job.record.data.get("fingerprint")
    return read_training_rows(settings, recorded if isinstance(recorded, str) else None, tokenizer, flag="--data")


def _read(job: MergeJob, dataset: str, tokenizer: Any) -> "PreparedData":
    return prepare_data(
        dataset=dataset,
        tokenizer=tokenizer,
        max_length=UNCUT,
        system_prompt=job.opened.system_prompt,
        on_bad_rows="drop",
        stop_token_ids=read_stop_tokens(job.into, tokenizer, revision=job.into_revision),
    )


def _held_out(data: "PreparedData", seed: int) -> ReportRows:
    """Return rows of a set that was named to judge on: its own evaluation rows, else all of it."""
    named = data if data.evaluation else replace(data, evaluation=data.train)
    return choose_rows(named, seed=seed, source=None if data.evaluation else data.report.source)
