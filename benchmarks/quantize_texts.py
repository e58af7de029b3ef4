"""On which tokens does everybody calibrate, and on which is everybody judged? Rendered once, by quantkit's own readers."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEED = 42
LENGTH = 256


def write_texts(target: Path, model: str, data: Sequence[str], *, calib_rows: int, test_rows: int) -> dict[str, Any]:
    """Write calibration and held-out rows of 256 tokens; return what the result says of them, with a fingerprint.

    `data` is a file to calibrate on and one to judge on, or one for both, of which part is held back, or nothing: then the
    project's generated arithmetic is used.
    """
    from quantkit.calibrating import CalibrationSettings, read_texts
    from quantkit.data.arithmetic import arithmetic_data
    from quantkit.files import write_json
    from quantkit.modeling import load_tokenizer
    from quantkit.skeleton import read_stop_tokens

    tokenizer = load_tokenizer(model)
    settings = CalibrationSettings(
        calib_rows=calib_rows, calib_length=LENGTH, calib_min_tokens=256, gate_tokens=test_rows * LENGTH, seed=SEED
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = list(data)
        if not files:
            made = arithmetic_data(train=2000, held_out=1000)
            for name, rows in (("arithmetic_train", made.train), ("arithmetic_unseen_numbers", made.unseen_numbers)):
                files.append(str(Path(scratch) / f"{name}.jsonl"))
                Path(files[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        stops = read_stop_tokens(model, tokenizer)
        texts = read_texts(files[0], tokenizer, settings, gate_dataset=files[1] if files[1:] else None, stop_token_ids=stops)
    if texts.calibration is None:
        raise ValueError("text was read without calibration rows")  # read_texts calibrates unless told otherwise
    found = {
        "calibration": texts.calibration.to_dict() | {"source": Path(files[0]).name},
        "held_out": texts.held_out.to_dict() | {"source": Path(files[-1]).name, "rows": len(texts.held_out.rows)},
    }
    write_json(
        target,
        {
            "calibration": texts.calibration.rows,
            "calibration_source": found["calibration"]["source"],
            "held_out": texts.held_out.rows,
            "held_out_source": found["held_out"]["source"],
        },
    )
    return found | {"fingerprint": hashlib.sha256(target.read_bytes()).hexdigest()}
