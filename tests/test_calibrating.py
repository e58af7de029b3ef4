"""Is calibration text what was asked for, and kept apart from the text a result is judged on?"""

import json

import pytest

from quantkit.calibrating import CalibrationSettings, read_texts, read_training_texts
from quantkit.data.arithmetic import arithmetic_data
from quantkit.errors import UsageError

SMALL = CalibrationSettings(calib_rows=8, calib_length=64, calib_min_tokens=200, gate_tokens=256, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    from tests.tiny import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in arithmetic_data(train=60).train))
    return path


def documents(rows):
    return {tuple(row) for row in rows}


def test_rows_have_one_length_and_the_same_seed_draws_the_same(rows, tokenizer):
    texts = read_texts(f"openmath:{rows}", tokenizer, SMALL)
    assert [len(row) for row in texts.calibration.rows] == [64] * 8
    again = read_texts(f"openmath:{rows}", tokenizer, SMALL)
    assert again == texts
    from dataclasses import replace

    other = read_texts(f"openmath:{rows}", tokenizer, replace(SMALL, seed=4))
    assert other.calibration.fingerprint != texts.calibration.fingerprint
    assert texts.to_dict()["tokens"] == 512


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_plain_text_is_read_from_text_jsonl_and_parquet(suffix, tmp_path, tokenizer):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"Number {at} is followed by {at + 1}.\nSo says the book." for at in range(60)]
    path = tmp_path / f"book.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        path.write_text("\n\n".join(texts) if suffix == "txt" else "".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = read_texts(str(path), tokenizer, SMALL)
    assert found.calibration.tokens == 512
    assert "is followed by" in tokenizer.decode(found.calibration.rows[0])


def test_held_out_documents_are_not_calibrated_on(rows, tokenizer):
    evaluation = rows.with_name("evaluation.jsonl")
    evaluation.write_text("".join(rows.read_text().splitlines(keepends=True)[:10]))
    texts = read_texts(f"openmath:{rows}", tokenizer, SMALL, gate_dataset=f"openmath:{evaluation}")
    assert texts.overlap == 10
    calibrated = tokenizer.decode([token for row in texts.calibration.rows for token in row])
    for line in evaluation.read_text().splitlines():
        assert json.loads(line)["question"] not in calibrated
    assert texts.to_dict()["overlap_left_out"] == 10
    everything = rows.with_name("same.jsonl")
    everything.write_text(rows.read_text())
    with pytest.raises(UsageError, match="has 0 tokens; at least 200 are needed"):
        read_texts(f"openmath:{rows}", tokenizer, SMALL, gate_dataset=f"openmath:{everything}")


def test_too_little_text_is_an_error(rows, tokenizer):
    with pytest.raises(UsageError, match=r"calibration from .*rows\.jsonl has \d+ tokens; at least 2048 are needed"):
        read_texts(f"openmath:{rows}", tokenizer, CalibrationSettings(calib_rows=8, calib_length=64))
    with pytest.raises(UsageError, match="calib_rows is 1; it must be at least 2"):
        CalibrationSettings(calib_rows=1)


def test_training_rows_that_changed_are_refused(rows, tokenizer, tiny_model):
    run = {"dataset_name": f"openmath:{rows}", "max_length": 256, "model_name_or_path": str(tiny_model)}
    assert read_training_texts(run, None, tokenizer, SMALL).calibration.source.startswith("training rows of ")
    with pytest.raises(UsageError, match=r"are not those the model was trained on \(.{12}… here, abababababab… recorded\)"):
        read_training_texts(run, "ab" * 32, tokenizer, SMALL)
