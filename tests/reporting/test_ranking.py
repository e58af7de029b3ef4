"""Nobody is first by luck: ties are ties, and what is at its floor or degenerate has no place."""

from dataclasses import replace

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.results import TaskResult
from quantkit.reporting.facts import row_of
from quantkit.reporting.ranking import boards, front, place_text
from quantkit.reporting.report import Report
from tests.reporting.conftest import perplexity_result, subject, task_result


def places(report: Report, task: str) -> list[tuple[str, str]]:
    return [(row.name, place_text(row)) for board in report.boards if board.first.task == task for row in board.rows]


def test_overlapping_intervals_share_a_place_and_the_unranked_stand_last(report: Report) -> None:
    assert places(report, "codes") == [
        ("best", "1"),
        ("middle", "2–3"),
        ("middle-too", "2–3"),
        ("silent", ""),
        ("at-its-floor", ""),
    ]


def test_of_measures_that_should_be_small_the_smallest_is_first(report: Report) -> None:
    assert places(report, "text") == [("best", "1–2"), ("middle", "1–2"), ("at-its-floor", "3")]


def test_the_front_holds_what_nobody_beats_in_both_and_never_a_marked_result(report: Report) -> None:
    rows = report.boards[0].rows
    assert [row.name for row in front(rows, lambda row: row.peak_memory_bytes, less_is_better=True)] == [
        "middle-too",
        "middle",
        "best",
    ]
    assert [row.name for row in front(rows, lambda row: row.tokens_per_s, less_is_better=False)] == ["best", "middle-too"]
    assert front(rows, lambda _: None, less_is_better=True) == []


def test_of_two_equal_results_both_are_on_the_front() -> None:
    rows = [row_of(subject(number, name, task_result(50)), task_result(50)) for number, name in ((1, "a"), (2, "b"))]
    assert [row.name for row in front(rows, lambda row: row.peak_memory_bytes, less_is_better=True)] == ["a", "b"]


def test_other_data_or_another_device_is_another_board_and_says_so() -> None:
    made = [task_result(50), replace(task_result(50), data_fingerprint="cd" * 32), task_result(50, device="cuda:0")]
    rows = [row_of(subject(number, f"m{number}", result), result) for number, result in enumerate(made, 1)]
    assert [board.title for board in boards(rows)] == [
        "codes · rows abababab · cpu",
        "codes · rows abababab · cuda:0",
        "codes · rows cdcdcdcd · cpu",
    ]


def test_divergences_from_different_models_are_not_ranked_together() -> None:
    def kl(reference: str) -> TaskResult:
        made = perplexity_result(0.5)
        return replace(
            made, metric="kl_mean", scores={"kl_mean": made.main}, settings={"reference": reference, "device": "cpu"}
        )

    rows = [row_of(subject(number, f"m{number}"), kl(name)) for number, name in enumerate(("Base", "Base", "Other"), 1)]
    assert [(board.title, len(board.rows)) for board in boards(rows)] == [("text · from Base", 2), ("text · from Other", 1)]


def test_tasks_come_in_the_order_asked_for(report: Report) -> None:
    ordered = Report.of(report.subjects, title="t", tasks=["text", "codes"])
    assert [board.title for board in ordered.boards] == ["text", "codes"]
    assert [board.title for board in Report.of(report.subjects, title="t", tasks=["text"]).boards] == ["text"]


def test_a_task_without_results_is_refused(report: Report) -> None:
    with pytest.raises(UsageError, match=r"no artifact here has a result for the task 'code'. Did you mean 'codes'\?"):
        Report.of(report.subjects, title="t", tasks=["code"])


def test_what_is_missing_is_said(report: Report) -> None:
    assert report.missing == (
        "No results at all (quantkit evaluate makes them): unmeasured.",
        "No result for text: middle-too, silent.",
    )
    gone = Report.of([subject(1, "gone", perplexity_result(3.0), here=False)], title="t")
    assert "Known from results only, so without lineage, recipe and gate: gone [000000000001]" in gone.missing[0]


def test_comparisons_are_paired_with_the_best_or_with_the_one_named(report: Report) -> None:
    best = report.with_comparisons()
    assert [(item.board.title, item.baseline, item.chosen) for item in best.compared] == [
        ("codes", "best", False),
        ("text", "best", False),
    ]
    assert {item.first: item.winner for item in best.compared[0].comparisons}["middle"] == "second"
    named = report.with_comparisons("middle-too")
    assert named.compared[1].refused == ("middle-too has no result here",)
    assert {item.first: item.winner for item in named.compared[0].comparisons} == {
        "best": "first",
        "middle": "none",
        "silent": "none",
        "at-its-floor": "second",
    }


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("bset", "--baseline bset: no artifact of this report is called so. Did you mean 'best'?"),
        ("twin", "--baseline twin: 2 contents have this name; give the beginning of a hash: 000000000007, 000000000008"),
    ],
)
def test_a_baseline_that_is_not_one_artifact_is_refused(report: Report, wanted: str, said: str) -> None:
    twins = [subject(number, "twin", task_result(50)) for number in (7, 8)]
    with pytest.raises(UsageError) as refused:
        Report.of([*report.subjects, *twins], title="t").with_comparisons(wanted)
    assert str(refused.value).startswith(said)
