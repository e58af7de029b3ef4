"""On which rows does every tool train, in which order? Encoded once by quantkit's readers and handed out as token ids.

One warm-up batch, then the batches that are measured: as they were drawn, and the same rows sorted so that rows of similar
length share a batch. Grouping by each tool's own sampler, the alternative, would give every tool other rows. Rows of full
length, for the peak of memory, are rows put behind one another and cut. Two sets of rows are generated: arithmetic, most of it
question, and passages, most of it response.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, list[int]]
Batches = list[list[Row]]
GENERATED = ("arithmetic", "passages")
"""Data sets that are no file."""
GENERATED_ROWS = 400


def read_rows(model: str, data: str, *, batch_size: int, steps: int, max_length: int, seed: int) -> dict[str, Batches]:
    """Return `random`, `grouped` and `long` batches of rows with `input_ids` and `labels`; `data` is a file or `GENERATED`.

    Raises:
        UsageError: the file has too few rows for so many batches.
    """
    from quantkit.errors import UsageError

    encoded = [{"input_ids": row.input_ids, "labels": row.labels} for row in _encoded(model, data, max_length)]
    needed = (steps + 1) * batch_size
    if len(encoded) < needed:
        what = f"{data}, which is generated," if data in GENERATED else data
        raise UsageError(f"{what} has {len(encoded)} rows; {steps} steps of {batch_size} need {needed}")
    chosen = random.Random(seed).sample(encoded, needed)
    warm_up, rows = chosen[:batch_size], chosen[batch_size:]
    in_order = sorted(rows, key=lambda row: -len(row["input_ids"]))
    return {
        "random": [warm_up, *_batches(rows, batch_size)],
        "grouped": [warm_up, *_batches(in_order, batch_size)],
        "long": [_long_rows(encoded, batch_size, max_length)] * 2,
    }


def whole_runs(
    model: str, data: str, names: Sequence[str], *, batch_size: int, steps: int, max_length: int
) -> dict[str, Batches]:
    """Return the batches of whole runs by name, each the same rows in an order of its own."""
    encoded = [{"input_ids": row.input_ids, "labels": row.labels} for row in _encoded(model, data, max_length)]
    found: dict[str, Batches] = {}
    for seed, name in enumerate(names, start=1):
        rows: list[Row] = []
        while len(rows) < steps * batch_size:  # another epoch
            rows += random.Random(1000 * seed + len(rows)).sample(encoded, len(encoded))
        found[name] = _batches(rows[: steps * batch_size], batch_size)
    return found


def facts(batches: Batches) -> dict[str, Any]:
    """Return of the measured batches tokens, response tokens, and what padding them would add."""
    measured = batches[1:]
    lengths = [[len(row["input_ids"]) for row in batch] for batch in measured]
    padded = sum(max(batch) * len(batch) for batch in lengths)
    return {
        "tokens": [sum(batch) for batch in lengths],
        "response_tokens": [sum(response(row) for row in batch) for batch in measured],
        "squares": [sum(length**2 for length in batch) for batch in lengths],
        "padding_share": 1 - sum(map(sum, lengths)) / padded,
    }


def response(row: Row) -> int:
    """Return how many tokens of a row are predicted."""
    return sum(label != -100 for label in row["labels"][1:])


def _batches(rows: Sequence[Row], size: int) -> Batches:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _long_rows(rows: Sequence[Row], count: int, length: int) -> list[Row]:
    """Return `count` rows of exactly `length` tokens."""
    found, at = [], 0
    for _ in range(count):
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            row = rows[at % len(rows)]
            ids, labels, at = ids + row["input_ids"], labels + row["labels"], at + 1
        found.append({"input_ids": ids[:length], "labels": labels[:length]})
    return found


def _encoded(model: str, data: str, max_length: int) -> list[Any]:
    import tempfile

    from quantkit.data import prepare_data
    from quantkit.modeling import load_tokenizer
    from quantkit.skeleton import read_stop_tokens

    tokenizer = load_tokenizer(model)
    with tempfile.TemporaryDirectory() as scratch:
        if data in GENERATED:
            rows, data = _generated(data), str(Path(scratch) / f"{data}.jsonl")
            Path(data).write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepared = prepare_data(
            dataset=data,
            tokenizer=tokenizer,
            max_length=max_length,
            on_bad_rows="drop",
            stop_token_ids=read_stop_tokens(model, tokenizer),
        )
    return list(prepared.train)


def _generated(name: str) -> list[dict[str, str]]:
    from training_passages import passages

    from quantkit.data.arithmetic import arithmetic_data

    return passages(GENERATED_ROWS) if name == "passages" else arithmetic_data(train=GENERATED_ROWS).train
