"""The CSV, the JSON and the terminal's table say the same, completely, and nothing in them can run."""

import csv
import io
import json
from dataclasses import replace

from quantkit import console
from quantkit.reporting.facts import row_of
from quantkit.reporting.listing import CAPTION, CSV_COLUMNS, csv_text, table_columns, table_rows
from quantkit.reporting.report import Report
from tests.reporting.conftest import perplexity_result, subject, task_result


def test_the_csv_has_a_line_per_artifact_and_task_with_everything_a_number_needs(report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(report.rows))))
    assert len(lines) == 8
    assert tuple(lines[0]) == CSV_COLUMNS
    floor = next(line for line in lines if line["name"] == "at-its-floor" and line["task"] == "codes")
    told = {key: floor[key] for key in ("n", "seed", "marks", "rank_low", "best_floor", "best_floor_name", "data_fingerprint")}
    assert told == {
        "n": "60",
        "seed": "0",
        "marks": "FLOOR",
        "rank_low": "",
        "best_floor": "0.1",
        "best_floor_name": "majority",
        "data_fingerprint": "ab" * 32,
    }
    assert float(floor["low"]) < float(floor["value"]) < float(floor["high"])
    assert float(floor["coverage"]) == 59 / 60


def test_a_text_that_a_spreadsheet_would_run_is_quoted() -> None:
    named = subject(1, "=HYPERLINK(1)", task_result(50))
    text = csv_text([row_of(named, task_result(50))])
    assert "'=HYPERLINK(1)" in text


def test_the_json_is_plain_and_has_the_same_rows(report: Report) -> None:
    data = json.loads(json.dumps(report.with_comparisons("middle").to_dict(), allow_nan=False))
    assert [row["name"] for row in data["rows"]] == [row.name for row in report.rows]
    assert tuple(data["rows"][0]) == CSV_COLUMNS
    assert data["missing"] == list(report.missing)
    assert data["faults"] == list(report.faults)
    assert {item["second"] for item in data["comparisons"]} == {"middle"}


def test_speeds_and_peaks_are_null_where_nothing_was_generated_or_measured() -> None:
    row = row_of(subject(1, "a", perplexity_result(3.0)), perplexity_result(3.0))
    assert row.tokens_per_s is None
    assert row.peak_memory_of == "resident memory of the process"
    gpu = task_result(50, peak_reserved_bytes={"cuda:0": 5, "cuda:1": 7})
    assert (row_of(subject(1, "a", gpu), gpu).peak_memory_bytes, row_of(subject(1, "a", gpu), gpu).peak_memory_of) == (
        7,
        "cuda:1, reserved by the allocator",
    )


def test_divergence_says_from_what_it_was_measured() -> None:
    row = row_of(subject(1, "a", task_result(50)), task_result(50))
    assert (row.kl_mean, row.kl_of) == (0.02, "from the model it was quantized from, on its gate's text")
    score = perplexity_result(0.5).main
    own = replace(task_result(50), settings={"reference": "Base [abc]"})
    own = replace(own, scores=own.scores | {"kl_mean": score})
    row = row_of(subject(1, "a", own), own)
    assert (row.kl_mean, row.kl_of, row.reference) == (0.5, "from Base [abc], on the rows of codes", "Base [abc]")
    bare = replace(subject(1, "a", task_result(50)), record={})
    assert row_of(bare, task_result(50)).kl_mean is None


def printed(report: Report, width: int, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    console.table("Report", table_columns(report.boards), table_rows(report.subjects, report.boards), caption=CAPTION)
    return capsys.readouterr().out


def test_the_table_fits_keeps_intervals_and_marks_and_puts_nobody_at_the_floor_first(report, capsys, monkeypatch) -> None:
    for width in (60, 160):
        shown = printed(report, width, capsys, monkeypatch)
        table = shown.split("Under each")[0]
        assert max(map(len, table.splitlines())) <= width
        for word in ("96.7%", "88.6–99.1", "FLOOR", "EMPTY", "#2–3"):
            assert word in table
        assert table.index("best") < table.index("middle") < table.index("silent") < table.index("at-its-floor")
    assert "tokens/s" in shown


def test_a_report_without_results_has_an_empty_table(capsys, monkeypatch) -> None:
    assert "(none)" in printed(Report.of([], title="t"), 80, capsys, monkeypatch)
