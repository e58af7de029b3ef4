"""On which rows is an adopted adapter looked at? Rows that its user names, else generated arithmetic."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.data import prepare_data
from quantkit.merging.report import ReportRows, choose_rows

UNCUT = 1 << 30
SEED = 42


def rows_of(base: str, revision: str | None, dataset: str | None, tokenizer: Any) -> ReportRows:
    """Return rows to compare base and adapter on; they are judged as held out, since nobody recorded what it was trained on.

    Raises:
        UsageError: the rows cannot be read.
    """
    from quantkit.data.arithmetic import arithmetic_data
    from quantkit.skeleton import read_stop_tokens

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arithmetic.jsonl"
        if dataset is None:
            path.write_text("".join(f"{json.dumps(row)}\n" for row in arithmetic_data(train=64).train), encoding="utf-8")
        data = prepare_data(
            dataset=dataset or str(path),
            tokenizer=tokenizer,
            max_length=UNCUT,
            on_bad_rows="drop",
            stop_token_ids=read_stop_tokens(base, tokenizer, revision=revision),
        )
    held = data if data.evaluation else replace(data, evaluation=data.train)
    named = data.report.source if dataset else "generated arithmetic rows"
    return choose_rows(held, seed=SEED, source=None if data.evaluation else named)
