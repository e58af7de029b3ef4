"""Files of rows: every kind is read, and every fault is one line that says where."""

import csv
import json
from pathlib import Path

import pytest

from quantkit.data import parse_dataset, read_rows
from quantkit.errors import UsageError
from tests.data.conftest import Write

ROWS = [{"question": "1+1?", "answer": 2.0}, {"question": "é?", "answer": 3.5}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_rows_keep_their_values_and_types(write: Write, name: str) -> None:
    rows = read_rows(write(ROWS, name))
    assert rows.rows == ROWS
    assert rows.source.endswith(name)


def test_json_may_hold_its_rows_under_data_or_one_per_line(write: Write) -> None:
    assert read_rows(write(json.dumps({"version": 1, "data": ROWS}), "a.json")).rows == ROWS
    assert read_rows(write("".join(json.dumps(row) + "\n" for row in ROWS), "b.json")).rows == ROWS


def test_csv_cells_stay_text_and_may_span_lines(write: Write, tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows([["question", "answer"], ["two\nlines, “quoted”\u2028", "1008.0"], ["b", "2"]])
    rows = read_rows(tmp_path / "rows.csv")
    assert rows.rows == [{"question": "two\nlines, “quoted”\u2028", "answer": "1008.0"}, {"question": "b", "answer": "2"}]
    assert rows.place(2).endswith("rows.csv line 4")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_a_limit_takes_the_first_rows_and_changes_the_fingerprint(write: Write, name: str) -> None:
    path = write([{"text": str(i)} for i in range(10)], name)
    few = read_rows(path, limit=3)
    assert [row["text"] for row in few.rows] == ["0", "1", "2"]
    assert few.fingerprint != read_rows(path).fingerprint


def test_places_name_the_line_although_blank_lines_were_skipped(write: Write) -> None:
    rows = read_rows(write('{"text": "a"}\n\n\n{"text": "b"}\n'))
    assert rows.place(2).endswith("rows.jsonl line 4")


def test_a_folder_is_split_by_file_names(write: Write, tmp_path: Path) -> None:
    for name in ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/my_test.jsonl", "val/x.jsonl"):
        write([{"text": name}], f"set/{name}")
    write("no rows", "set/README.md")
    folder = tmp_path / "set"
    assert [row["text"] for row in read_rows(folder).rows] == [
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
    ]
    assert [row["text"] for row in read_rows(folder, limit=1).rows] == ["data/train-00000-of-00002.jsonl"]
    assert read_rows(folder, split="test").rows == [{"text": "data/my_test.jsonl"}]
    assert read_rows(folder, split="validation").rows == [{"text": "val/x.jsonl"}]
    assert read_rows(folder).place(2).endswith("train-00001-of-00002.jsonl line 1")


def test_the_fingerprint_follows_the_bytes(write: Write) -> None:
    first = read_rows(write(ROWS)).fingerprint
    assert read_rows(write(ROWS)).fingerprint == first
    assert read_rows(write(ROWS[:1] * 2)).fingerprint != first


FAULTS = {
    "a broken line": (b'{"text": "a"}\n{"text": \n', "x.jsonl", r"x.jsonl line 2: not valid JSON: .*'\{\"text\": '"),
    "a line that is no object": (b'{"text": "a"}\n[1, 2]\n', "x.jsonl", r"x.jsonl line 2: .*found list: \[1, 2\]"),
    "bytes that are not UTF-8": (
        b'{"text": "a"}\n{"text": "\xff"}',
        "x.jsonl",
        r"line 2: byte 0xff \(offset 24\) is not UTF-8",
    ),
    "broken JSON": (b'[{"text": "a"},\n{"text"]', "x.json", r"x.json line 2: not valid JSON"),
    "JSON nested too deep": (b"[" * 100_000, "x.json", r"x.json: not valid JSON"),
    "a number too long to be read": (b'{"text": ' + b"9" * 5000 + b"}", "x.jsonl", r"line 1: not valid JSON"),
    "JSON without rows": (b'{"rows": []}', "x.json", r"found an object with the keys \['rows'\]"),
    "JSON that is one word": (b'"rows"', "x.json", r"found str"),
    "a row in JSON that is no object": (b'[{"text": "a"}, 7]', "x.json", r"x.json row 2: .* found int: 7"),
    "a CSV line with too many cells": (b"a,b\n1,2\n1,2,3\n", "x.csv", r"x.csv line 3: 3 cells, the header has 2"),
    "an open quote in CSV": (b'a,b\n1,"2\n', "x.csv", r"x.csv line 2: not valid CSV"),
    "two CSV columns of one name": (b"a,a\n1,2\n", "x.csv", r"line 1: two columns have the same name"),
    "a parquet file of nothing": (b"", "x.parquet", r"x.parquet: not a readable parquet file"),
    "a parquet file of noise": (b"PAR1" + b"noise" * 9 + b"PAR1", "x.parquet", r"x.parquet: not a readable parquet file"),
    "no rows": (b"\n", "x.jsonl", r"x.jsonl: holds no rows"),
    "an empty list": (b"[]", "x.json", r"x.json: holds no rows"),
    "a CSV header alone": (b"a,b\n", "x.csv", r"x.csv: holds no rows"),
    "an unknown suffix": (b"x", "x.xml", r"rows are read from .jsonl, .json, .csv, .parquet, .txt files; found '?.xml"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_file_and_place(write: Write, fault: str) -> None:
    data, name, message = FAULTS[fault]
    with pytest.raises(UsageError, match=message) as caught:
        read_rows(write(data, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [8, 100, 400, -1])
def test_a_truncated_parquet_file_is_refused(write: Write, tmp_path: Path, keep: int) -> None:
    whole = Path(write([{"question": f"{i}?", "answer": i} for i in range(200)], "whole.parquet")).read_bytes()
    with pytest.raises(UsageError, match=r"cut.parquet: not a readable parquet file: "):
        read_rows(write(whole[:keep], "cut.parquet"))


def test_a_parquet_file_with_damaged_pages_is_refused_or_read_never_a_traceback(write: Write) -> None:
    whole = bytearray(Path(write([{"question": f"{i}?", "answer": i} for i in range(200)], "whole.parquet")).read_bytes())
    whole[4:60] = b"\xff" * 56
    with pytest.raises(UsageError, match=r"bad.parquet: not a readable parquet file: "):
        read_rows(write(bytes(whole), "bad.parquet"))


def test_an_unreadable_path_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"no train file \(.jsonl, .json, .csv, .parquet, .txt\) in this folder"):
        read_rows(tmp_path / "folder.jsonl")
    with pytest.raises(UsageError, match="the number of rows to read is 0"):
        read_rows(tmp_path, limit=0)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("openmath", ("openmath", "nvidia/OpenMathInstruct-2", None, None, "openmath")),
        ("openmath@train_1M", ("openmath", "nvidia/OpenMathInstruct-2", None, "train_1M", "openmath")),
        ("arc", ("arc", "allenai/ai2_arc", "ARC-Challenge", None, "arc")),
        ("owner/some-set", ("someset", "owner/some-set", None, None, None)),
        ("owner/set:main@test", ("set", "owner/set", "main", "test", None)),
    ],
)
def test_names_and_hub_ids_are_told_apart(written: str, found: tuple[str | None, ...]) -> None:
    ref = parse_dataset(written)
    assert (ref.tag, ref.hub_id, ref.subset, ref.split, ref.task and ref.task.name) == found


def test_local_rows_may_carry_a_built_in_name(write: Write) -> None:
    path = write(ROWS, "train.parquet")
    ref = parse_dataset(f"openmath:{path}")
    assert (str(ref.path), ref.tag) == (path, "openmath")
    assert parse_dataset(path).task is None


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("train-Open_Math.v2.jsonl", "OpenMath.v2"),
        ("set one/train.jsonl", "setone"),
        ("set/é.jsonl", "set"),
        ("x" * 60 + ".csv", "x" * 40),
    ],
)
def test_tags_are_letters_digits_and_dots(write: Write, name: str, tag: str) -> None:
    assert parse_dataset(write(ROWS, name)).tag == tag


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("openmaht", r"'openmaht' is no file, no folder and no built-in name. Did you mean 'openmath'\?"),
        ("", r"dataset '' is no file"),
        ("openmath:", r"'openmath:': there is no file or folder ''"),
        ("openmath:/nowhere/x.csv", r"there is no file or folder '/nowhere/x.csv'. The folder '/nowhere' is not there either"),
        ("/nowhere/x.csv", r"dataset '/nowhere/x.csv': there is no such file or folder. The folder '/nowhere' is not there"),
        ("a" * 5000 + ".csv", r"there is no such file or folder"),
        ("a\0b", r"is no file"),
    ],
)
def test_what_is_nowhere_is_named_with_a_suggestion(written: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_dataset(written)


def test_a_misspelt_file_name_is_suggested(write: Write) -> None:
    path = write(ROWS, "train.jsonl")
    with pytest.raises(UsageError, match=r"there is no such file or folder. Did you mean 'train.jsonl'\?"):
        parse_dataset(path.replace("train", "trian"))


def test_hub_rows_come_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[object] = []

    def load(*arguments: object, **options: object) -> object:
        asked.append((arguments, options))
        found = datasets.Dataset.from_list(ROWS)
        return found.to_iterable_dataset() if options["streaming"] else found

    monkeypatch.setattr("quantkit.hub._found", [""])
    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = read_rows("arc", split="validation")
    assert rows.rows == ROWS
    assert asked == [(("allenai/ai2_arc", "ARC-Challenge"), {"split": "validation", "streaming": False})]
    assert rows.place(2) == "allenai/ai2_arc:ARC-Challenge@validation row 2"
    few = read_rows("arc@test", limit=1)
    assert few.rows == ROWS[:1]
    assert asked[-1] == (("allenai/ai2_arc", "ARC-Challenge"), {"split": "test", "streaming": True})
    assert few.fingerprint != rows.fingerprint


def test_an_empty_hub_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("quantkit.hub._found", [""])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [])
    with pytest.raises(UsageError, match="data set google/boolq@train holds no rows"):
        read_rows("boolq")


def test_without_a_network_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("quantkit.hub._found", ["nobody answers"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(
        UsageError, match=r"^google/boolq: no such .* the hub cannot be asked: nobody answers.*give local files"
    ) as caught:
        read_rows("boolq")
    assert "\n" not in str(caught.value)
