"""Which text does a method calibrate on, and on which other text is the result judged?

Both come from one place, rendered as training rows are, and share no question. Documents are drawn by seed, joined and
cut into rows of one length. Taking the first rows of a file calibrates on whatever it is sorted by; judging on the rows a
method was calibrated on flatters it, most of all the methods that fit best.
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.calibration import Calibration
from quantkit.data import prepare_data
from quantkit.errors import UsageError
from quantkit.gate import PROMPTS, GateText

if TYPE_CHECKING:
    from quantkit.data import PreparedData
    from quantkit.data.encode import EncodedRow

UNCUT = 1 << 30
GATE_ROW = 256
"""Tokens of a row that the result is judged on."""
LARGEST_SHARE = 0.25
"""The most of a source that is held back to judge on, where no evaluation rows are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """How much text is taken, and by which seed."""

    calib_rows: int = 128
    """Rows of calibration text."""
    calib_length: int = 512
    """Tokens of a row."""
    calib_min_tokens: int = 2048
    """Fewest tokens of calibration text that are accepted."""
    gate_tokens: int = 4096
    """Tokens of held-out text."""
    seed: int = 42
    """Draws the documents."""

    def __post_init__(self) -> None:
        for name in ("calib_rows", "calib_length", "gate_tokens"):
            if getattr(self, name) < 2:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 2")


@dataclass(frozen=True, slots=True)
class Texts:
    """Calibration text (None: not asked for) and held-out text, without a question in common."""

    calibration: Calibration | None
    held_out: GateText
    overlap: int = 0
    """Documents that were left out of the calibration because they are held out."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a record keeps of the calibration."""
        return {} if self.calibration is None else self.calibration.to_dict() | {"overlap_left_out": self.overlap}


def read_texts(
    dataset: str,
    tokenizer: Any,
    settings: CalibrationSettings,
    *,
    calibrates: bool = True,
    gate_dataset: str | None = None,
    stop_token_ids: Collection[int] = (),
) -> Texts:
    """Return calibration and held-out text from a data set (grammar of `quantkit.data.sources`; `.txt` files too).

    Without `gate_dataset`, a folder's own validation or test files are held out, else part of the documents.

    Raises:
        UsageError: a source cannot be read, or holds too few tokens.
    """
    needed = settings.gate_tokens + (settings.calib_rows * settings.calib_length if calibrates else 0)
    limit = 512
    while True:
        data = prepare_data(
            dataset=dataset,
            tokenizer=tokenizer,
            max_length=UNCUT,
            eval_dataset=gate_dataset,
            trunc_train=limit,
            on_bad_rows="drop",
            stop_token_ids=stop_token_ids,
        )
        if data.report.rows_read < limit or sum(len(row.input_ids) for row in data.train) >= 2 * needed:
            return split_texts(data, settings, source=data.report.source, calibrates=calibrates)
        limit *= 4


def read_training_texts(
    run: Mapping[str, Any], fingerprint: str | None, tokenizer: Any, settings: CalibrationSettings, *, calibrates: bool = True
) -> Texts:
    """Return texts from the rows that a model was trained on, rendered as they were then; `run` are its recorded settings.

    Raises:
        UsageError: the rows are not there any more, or are others than those it was trained on.
    """
    data = read_training_rows(run, fingerprint, tokenizer, flag="--calib")
    return split_texts(data, settings, source=f"training rows of {data.report.source}", calibrates=calibrates)


def read_training_rows(run: Mapping[str, Any], fingerprint: str | None, tokenizer: Any, *, flag: str) -> "PreparedData":
    """Return the rows that a model was trained on, and its evaluation rows; `flag` is the one that names others.

    Raises:
        UsageError: they are not there any more, or are others than those it was trained on.
    """
    from quantkit.skeleton import read_stop_tokens

    data = prepare_data(
        dataset=str(run["dataset_name"]),
        tokenizer=tokenizer,
        max_length=int(run["max_length"]),
        eval_dataset=run.get("eval_dataset_name"),
        system_prompt=run.get("system_prompt"),
        trunc_train=run.get("trunc_train"),
        on_bad_rows="drop" if run.get("on_bad_rows") == "drop" else "error",
        stop_token_ids=read_stop_tokens(str(run["model_name_or_path"]), tokenizer, revision=run.get("revision")),
    )
    if fingerprint is not None and data.fingerprint != fingerprint:
        raise UsageError(
            f"the rows of {run['dataset_name']} are not those the model was trained on"
            f" ({data.fingerprint[:12]}… here, {fingerprint[:12]}… recorded); name a file with {flag} FILE"
        )
    return data


def split_texts(data: "PreparedData", settings: CalibrationSettings, *, source: str, calibrates: bool = True) -> Texts:
    """Return calibration text from the training rows of a data set, held-out text from its evaluation rows or the rest.

    Raises:
        UsageError: there are too few tokens.
    """
    draw = random.Random(settings.seed)
    pool = draw.sample(data.train, len(data.train))
    held, rest = (draw.sample(data.evaluation, len(data.evaluation)), pool) if data.evaluation else _hold_back(pool, settings)
    held_source = data.report.evaluation.source if data.report.evaluation else f"documents of {source} that were held back"
    questions = {_question(row) for row in held}
    kept = [row for row in rest if _question(row) not in questions]
    rows = _rows(held, GATE_ROW, -(-settings.gate_tokens // GATE_ROW))
    if not rows:
        raise UsageError(f"{held_source}: no text of two tokens or more is left to judge the result on")
    text = GateText(rows, tuple(_prompt(row) for row in held[:PROMPTS]), held_source)
    if not calibrates:
        return Texts(None, text)
    found = Calibration(_rows(kept, settings.calib_length, settings.calib_rows), source)
    found.require(settings.calib_min_tokens)
    return Texts(found, text, len(rest) - len(kept))


def _hold_back(
    pool: "Sequence[EncodedRow]", settings: CalibrationSettings
) -> "tuple[Sequence[EncodedRow], Sequence[EncodedRow]]":
    """Split off the first documents: as many tokens as the gate wants, at most a quarter of all."""
    wanted = min(settings.gate_tokens, LARGEST_SHARE * sum(len(row.input_ids) for row in pool))
    tokens = 0
    for count, row in enumerate(pool, start=1):
        tokens += len(row.input_ids)
        if tokens >= wanted:
            return pool[:count], pool[count:]
    return pool, []


def _rows(documents: "Iterable[EncodedRow]", length: int, count: int) -> tuple[tuple[int, ...], ...]:
    """Join documents and cut them into at most `count` rows of `length` tokens; the last may be shorter where text ends."""
    joined: list[int] = []
    for document in documents:
        joined += document.input_ids
        if len(joined) >= length * count:
            break
    starts = range(0, min(len(joined), length * count), length)
    return tuple(row for start in starts if len(row := tuple(joined[start : start + length])) >= 2)


def _question(row: "EncodedRow") -> tuple[int, ...]:
    """Return the tokens before the first that is learnt; of plain text: all."""
    first = next((at for at, label in enumerate(row.labels) if label != -100), 0)
    return tuple(row.input_ids[:first] if first > 1 else row.input_ids)


def _prompt(row: "EncodedRow") -> tuple[int, ...]:
    question = _question(row)
    return question if len(question) < len(row.input_ids) else tuple(row.input_ids[: max(1, min(16, len(question) // 2))])
