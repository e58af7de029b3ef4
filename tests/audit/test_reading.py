"""Files of three kinds and of none: what they are is told by content, what cannot be read is named by file, row, field."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantkit.audit import Reading, read_paths, reading, tables
from quantkit.errors import UsageError
from quantkit_tools.audit import judged
from tests.audit import files


def read(path: Path) -> Reading:
    (only,) = read_paths([path])
    return only


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.json", files.quantkit_result(), "quantkit"),
        ("b.json", {"schema_version": 1, "artifacts": [], "failed": []}, "quantkit"),
        ("c.json", files.lm_eval_results(), "lm-eval"),
        ("results_of_something.json", files.healthy_study(), "study"),
        ("metrics.json", [{"model": "a", "accuracy": 0.5}], "study"),
        ("d.json", {"Base-1B": {"openmath": {"exact_match": 0.5}}}, "study"),
    ],
)
def test_the_kind_is_told_by_content(name: str, data: Any, kind: str, tmp_path: Path) -> None:
    assert read(files.write_json(tmp_path / name, data)).kind == kind


def test_what_evaluate_prints_can_be_audited(tmp_path: Path) -> None:
    filed = files.quantkit_result()
    about = filed.pop("artifact")
    printed = {"schema_version": 1, "artifacts": [about | {"results": [filed]}], "failed": []}
    (measured,) = read(files.write_json(tmp_path / "printed.json", printed)).measured
    assert (measured.model, measured.task, measured.n, measured.bits) == (about["name"], "sums", 60, 4)


def test_nested_metrics_are_found_by_model_and_data_set(tmp_path: Path) -> None:
    data = {"seed": 3, "Base-1B": {"openmath": {"exact_match": 0.5, "latency": {"mean_ms": 900}}, "squad": {"f1": 61.0}}}
    found = read(files.write_json(tmp_path / "metrics.json", data)).measured
    assert [(item.model, item.task, item.seed) for item in found] == [("Base-1B", "openmath", "3"), ("Base-1B", "squad", "3")]
    assert found[0].latency_s == 0.9
    assert (found[1].numbers[0].value, found[1].numbers[0].percent) == (0.61, True)


def test_columns_are_said_to_be_understood_or_not(tmp_path: Path) -> None:
    row = {"Model Name": "a", "Exact Match (%)": 42.0, "Peak VRAM (GB)": 3, "Avg Latency (s)": 2, "colour": "red"}
    found = read(files.write_csv(tmp_path / "table.csv", [row]))
    assert found.understood == {
        "Model Name": "model",
        "Exact Match (%)": "exact_match",
        "Peak VRAM (GB)": "memory_bytes",
        "Avg Latency (s)": "latency_s",
    }
    assert found.not_understood == ("colour",)
    assert found.measured[0].memory_bytes == 3 << 30


def test_columns_of_several_data_sets_are_taken_apart(tmp_path: Path) -> None:
    row = {"model": "a", "peak_vram_gb": 2, "squad_v2_em": 40.0, "squad_v2_f1": 44.1, "squad_v2_n": 50, "accuracy_boolq": 0.6}
    found = read(files.write_csv(tmp_path / "wide.csv", [row | {"openmath_mean_abs_diff": 9.0, "openmath_latency_s": 0.6}]))
    assert [(item.task, item.n, [number.name for number in item.numbers]) for item in found.measured] == [
        ("squad_v2", 50, ["em", "f1"]),
        ("boolq", None, ["accuracy"]),
        ("openmath", None, ["mean_abs_diff"]),
    ]
    assert [item.latency_s for item in found.measured] == [None, None, 0.6]
    assert {item.memory_bytes for item in found.measured} == {2 << 30}
    assert found.understood["squad_v2_em"] == "em, squad_v2"
    assert found.not_understood == ()


def test_single_answers_in_a_table_become_rows(tmp_path: Path) -> None:
    row = {"model": "a", "correct": "True", "num_tokens": 3}
    rows = [{**row, "question": f"{i}?", "gold": i, "prediction": i} for i in range(4)]
    (measured,) = read(files.write_csv(tmp_path / "answers.csv", rows)).measured
    assert [(row.text, row.gold, row.correct, row.tokens) for row in measured.rows][1] == ("1", ("1",), True, 3)


def test_semicolons_and_byte_order_marks_are_understood(tmp_path: Path) -> None:
    (measured,) = read(write(tmp_path / "t.csv", "\ufeffmodel;accuracy;note\na;0.5;x, y\n")).measured
    assert (measured.model, measured.numbers[0].value) == ("a", 0.5)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "a.json: not valid JSON"),
        ("a.json", b"\xff\xfe{}", "a.json: not valid JSON"),
        ("a.json", "[" * 100_000, "a.json: not valid JSON"),
        ("a.json", '{"x": 1}', "a.json: no result of quantkit or lm-eval, and no model with a metric"),
        ("a.json", "[1, 2]", "a.json: no result of quantkit or lm-eval"),
        ("a.json", '{"model": "m", "accuracy": "high"}', "a.json, accuracy: 'high' is no number"),
        ("a.json", '{"model": "m", "accuracy": true}', "a.json, accuracy: True is no number"),
        (
            "a.json",
            '[{"model": "m", "accuracy": 0.5}, {"model": "n", "accuracy": "?"}]',
            "a.json, [1], accuracy: '?' is no number",
        ),
        ("a.json", '{"results": {"arc": 3}, "configs": {}}', "a.json: results.arc is int; an object of metrics is wanted"),
        (
            "a.json",
            json.dumps(files.changed(files.quantkit_result(), "scores.exact_match.value", "high")),
            "a.json: scores.exact_match.value is str; a number is wanted",
        ),
        (
            "a.json",
            '{"model": "m", "accuracy": 1, "answers": [{"output": "x", "gold": "y"}, 7]}',
            "a.json, answers[1] is int; an answer as an object is wanted",
        ),
        (
            "a.json",
            '{"model": "m", "answers": [{"output": "x", "gold": "y", "correct": "maybe"}]}',
            "a.json, answers[0], correct: 'maybe' is neither true nor false",
        ),
        ("a.json", '{"a":' * 12 + '{"accuracy": 1}' + "}" * 12, "is nested more than 8 objects deep"),
        ("a.json", '{"a":' * 40 + '{"b": 1}' + "}" * 40, "a.json: no result of quantkit or lm-eval"),
        ("a.jsonl", '{"model": "m", "accuracy": 0.5}\n{', "a.jsonl, line 2: not valid JSON"),
        ("a.csv", "model,accuracy\nm,0.5\nn,0.5,0.6\n", "a.csv, line 3: 3 cells for 2 columns; '0.6' has no column"),
        ("a.csv", "model,accuracy\nm\n", "a.csv, line 2: 1 cells for 2 columns; 'accuracy' is missing"),
        ("a.csv", "model,accuracy\nm,abc\n", "a.csv, line 2, accuracy: 'abc' is no number"),
        ("a.csv", "model,accuracy,accuracy\nm,1,2\n", "a.csv: the column 'accuracy' stands there twice"),
        ("a.csv", 'model,accuracy\n"m,0.5\n', "a.csv: not a table: "),
        ("a.csv", "", "a.csv: 0 columns in line 1"),
        ("a.csv", b"model,accuracy\n\xff,1\n", "a.csv: not UTF-8: byte 0xff at offset 15"),
        ("a.csv", "model,accuracy\n" + "9" * 200_000 + ",1\n", "a.csv: not a table: field larger than field limit"),
    ],
)
def test_broken_files_are_one_line_naming_the_place(name: str, text: str | bytes, said: str, tmp_path: Path) -> None:
    faults = read(write(tmp_path / name, text)).faults
    assert any(said in fault for fault in faults), faults


def test_the_vocabulary_of_a_model_in_the_named_folder_is_no_result(tmp_path: Path) -> None:
    vocabulary = {"model": {"vocab": {"accuracy": 1, "exact_match": 3856}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert read_paths([tmp_path]) == []


def test_json_too_deep_for_a_result_is_something_else_below_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.json", '{"metrics":' * 12 + '{"accuracy": 1}' + "}" * 12)
    assert [item.kind for item in read_paths([tmp_path])] == ["other"]


def test_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_csv(tmp_path / "a.csv", [{"model": "m", "accuracy": 1}] * 9)
    monkeypatch.setattr(tables, "MAX_ROWS", 5)
    assert "a.csv: more than 5 rows" in read(path).faults[0]
    monkeypatch.setattr(tables, "MAX_BYTES", 10)
    assert "at most 10 are read" in read(path).faults[0]
    monkeypatch.setattr(reading, "MAX_FILES", 0)
    with pytest.raises(UsageError, match="more than 0 files; name the folder of the results"):
        read_paths([tmp_path])


def test_a_folder_may_hold_anything_but_models_are_passed_by(tmp_path: Path) -> None:
    files.write_json(tmp_path / "results" / "a.json", files.quantkit_result())
    files.write_json(tmp_path / "notes.json", {"x": 1})
    files.write_json(tmp_path / "model" / "config.json", {"accuracy": 1})
    files.write_json(tmp_path / "model" / "results.json", {"accuracy": 1})
    files.write_json(tmp_path / ".hidden" / "results.json", {"accuracy": 1})
    assert [(Path(item.file).name, item.kind) for item in read_paths([tmp_path])] == [
        ("notes.json", "other"),
        ("a.json", "quantkit"),
    ]


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read_paths([tmp_path / "nowhere"])


WEIRD: list[Any] = [
    None,
    [],
    {},
    "x",
    "",
    math.inf,
    math.nan,
    -1,
    0,
    True,
    10**400,
    "9" * 500,
    [[[]]],
    {"a": {"b": [1]}},
    "\x1b[31m",
]


def test_no_value_in_any_place_breaks_the_audit() -> None:
    chance, broken = random.Random(0), 0
    sound = [
        files.quantkit_result(),
        files.lm_eval_results(),
        files.healthy_study(),
        files.math_metrics(),
        files.squad_metrics(),
    ]
    for _ in range(200):
        data = json.loads(json.dumps(chance.choice(sound)))
        for _ in range(chance.choice((1, 2, 4))):
            way = chance.choice(list(places(data)))
            files.changed_in_place(data, way, chance.choice(WEIRD))
        try:
            found = reading.read_data(Path("fuzzed.json"), data)
        except UsageError:
            broken += 1
            continue
        if found is not None:
            audit = judged([found])
            json.dumps([item.found for item in audit.findings], allow_nan=False)
    assert broken < 20


def places(node: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to every value, of lists to the first three."""
    if way:
        yield way
    inside = node.items() if isinstance(node, dict) else list(enumerate(node))[:3] if isinstance(node, list) else ()
    for key, value in inside:
        yield from places(value, (*way, key))
