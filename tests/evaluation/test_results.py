"""What is kept of a run survives JSON, and what is shown of it hides nothing."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from quantkit import console
from quantkit.errors import UsageError
from quantkit.evaluation.results import ArtifactResult, Cost, Mark, RowResult, TaskResult
from quantkit.evaluation.statistics import Floor, Score, mean_score, share_score
from quantkit.evaluation.table import table_of

LONG_NAME = "SmolLM2-135M-Instruct-openmath_SFT_LoRa16_QLORA_w4_headbf16_mergedbf16"


def perplexity(value: float) -> Score:
    floors = (Floor(name="uniform", value=49152.0), Floor(name="unigram", value=20.0))
    return Score(
        value=value,
        n=60,
        low=value * 0.9,
        high=value * 1.1,
        interval="bootstrap",
        coverage=1.0,
        floors=floors,
        higher_is_better=False,
    )


def result(right: int = 45, *, empty: int = 0, loops: int = 0, stopped: int = 60, task: str = "unseen_numbers") -> TaskResult:
    floors = [Floor(name="empty", value=0.0), Floor(name="sum", value=0.375)]
    return TaskResult(
        task=task,
        kind="numeric",
        metric="exact_match",
        source="rows.jsonl",
        data_fingerprint="ab" * 32,
        n=60,
        seed=0,
        settings={"batch_size": 16, "max_new_tokens": 48, "system_prompt": None},
        scores={
            "exact_match": share_score(right, 60, coverage=59 / 60, floors=floors),
            "perplexity_response": perplexity(1.5),
            "perplexity_all": perplexity(30.0),
            "parsed_rate": share_score(59, 60),
            "boxed_rate": share_score(60, 60),
            "empty_rate": share_score(empty, 60),
            "repetition_rate": share_score(loops, 60),
            "stop_rate": share_score(stopped, 60),
        },
        cost=Cost(generated_tokens=900, generation_s=9.0, tokens_per_s=100.0, perplexity_s=1.0, peak_rss_bytes=800 << 20),
        rows=[RowResult(row=1, gold="7", answer=None, correct=False, stopped=True, text="…")],
    )


def artifact(name: str = LONG_NAME, *results: TaskResult) -> ArtifactResult:
    return ArtifactResult(
        path=f"artifacts/{name}",
        name=name,
        artifact="cd" * 32,
        kind="model",
        quantization={"method": "QLORA"},
        evidence=["quantization_metadata.json"],
        memory={"stages": [{"stage": "load", "duration_s": 1.25, "peak_rss_bytes": 1}]},
        results=list(results) or [result()],
    )


def test_results_survive_json() -> None:
    made = artifact()
    assert ArtifactResult.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 99}, "schema_version is 99; this quantkit reads 2"),
        ({"scores": None}, "scores is missing or no object"),
        ({"metric": "exact_mtach"}, "scores has no 'exact_mtach'"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"n": "sixty"}, "n is 'sixty'"),
    ],
)
def test_a_result_that_is_not_ours_is_an_error(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TaskResult.from_dict(result().to_dict() | change)


def test_a_result_needs_the_rates_its_marks_are_read_off() -> None:
    data = result().to_dict()
    del data["scores"]["stop_rate"]
    with pytest.raises(UsageError, match="scores has no 'stop_rate'"):
        TaskResult.from_dict(data)


@pytest.mark.parametrize("name", ["seed", "data_fingerprint", "n", "settings", "rows"])
def test_a_result_cannot_be_had_without_what_it_was_measured_on(name: str) -> None:
    made = result()
    given = {item.name: getattr(made, item.name) for item in fields(made) if item.name != name}
    with pytest.raises(TypeError, match=name):
        TaskResult(**given)


def test_marks_say_what_is_wrong_with_the_answers() -> None:
    assert result().marks == []
    assert result(25).marks == ["FLOOR"]
    assert result(0, empty=60).marks == ["FLOOR", "EMPTY"]
    assert result(0, loops=30, stopped=0).marks == ["FLOOR", "LOOPS", "NO STOP"]


def test_a_weak_score_is_no_broken_artifact_but_loops_are() -> None:
    assert result(0).degenerate == []
    assert result(0, loops=30, stopped=0).degenerate == ["LOOPS", "NO STOP"]
    assert result(0, loops=30).to_dict()["degenerate"] == ["LOOPS"]


def rated(name: str, rows: int, *, golds: int = 60) -> TaskResult:
    """Return a result with one rate at `rows` of 60 and so many different references."""
    made = result()
    outcome = made.rows[0]
    told = [replace(outcome, row=row, gold=str(row % golds)) for row in range(60)]
    return replace(made, scores=made.scores | {name: share_score(rows, 60)}, rows=told)


@pytest.mark.parametrize(
    ("rate", "rows", "mark"),
    [
        ("constant_rate", 54, "CONSTANT"),
        ("echo_rate", 30, "ECHO"),
        ("gibberish_rate", 30, "GIBBERISH"),
        ("parsed_rate", 30, "UNPARSED"),
    ],
)
def test_each_rate_has_its_mark_and_threshold(rate: str, rows: int, mark: str) -> None:
    better = rows + 1 if rate == "parsed_rate" else rows - 1
    assert rated(rate, rows).marks == [mark]
    assert rated(rate, better).marks == []
    assert rated(rate, rows).degenerate == ([] if mark == "UNPARSED" else [mark])


def test_one_bad_row_of_two_earns_no_mark_and_three_of_three_do() -> None:
    mark = Mark("ECHO", "echo_rate", 0.5)
    assert [mark.is_earned(share_score(bad, n)) for bad, n in ((1, 1), (1, 2), (2, 4), (3, 3), (30, 60))] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_one_answer_for_all_is_a_broken_artifact_only_where_answers_are_many() -> None:
    assert rated("constant_rate", 60, golds=4).marks == ["CONSTANT"]
    assert rated("constant_rate", 60, golds=4).degenerate == []


def test_answers_cut_off_before_a_fair_length_are_no_broken_artifact() -> None:
    made = result(stopped=0)
    rows = [replace(made.rows[0], row=row, stopped=False, generated_tokens=24, nll_tokens=20) for row in range(60)]
    assert (replace(made, rows=rows).marks, replace(made, rows=rows).degenerate) == (["NO STOP"], [])
    longer = [replace(row, generated_tokens=40) for row in rows]
    assert replace(made, rows=longer).degenerate == ["NO STOP"]


def test_a_perplexity_worse_than_a_uniform_guess_is_a_broken_artifact() -> None:
    broken = replace(result(), scores=result().scores | {"perplexity_response": perplexity(1e8)})
    assert broken.marks == ["BROKEN"]
    assert broken.degenerate == ["BROKEN"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_fits_and_keeps_score_interval_floor_coverage_and_marks(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns, rows, caption = table_of([artifact("SmolLM2-135M-Instruct", result(20, stopped=0)), artifact()])
    console.table("Evaluation", columns, rows, caption=caption)
    table = capsys.readouterr().out.split("FLOOR:")[0]
    assert max(map(len, table.splitlines())) <= width
    flat = " ".join(table.split())
    for shown in ("exact", "match", "n = 60", "33.3%", "75.0%", "62.8–84.2", "sum", "37.5%", "FLOOR", "NO STOP", "98.3%"):
        assert shown in flat
    assert ("tokens/s" in table) == (width == 200)
    assert "mergedbf16" in table


def cells(*results: TaskResult) -> dict[str, object]:
    """Return the first row's cells by their headings."""
    columns, rows, _ = table_of([artifact(LONG_NAME, *results)])
    return {column.name: cell for column, cell in zip(columns, rows[0], strict=True)}


def test_a_perplexity_no_better_than_token_counts_is_marked() -> None:
    assert cells()["perplexity"] == "1.50 (1.35–1.65)\n30.0 (27.0–33.0) FLOOR"


def test_gpu_memory_is_shown_per_device() -> None:
    on_gpu = replace(result(), cost=replace(result().cost, peak_reserved_bytes={"cuda:0": 3 << 30, "cuda:1": 1 << 30}))
    assert cells(on_gpu)["peak memory"] == "cuda:0 3.00 GiB\ncuda:1 1.00 GiB"


def test_each_task_is_shown_under_its_own_metric_and_in_its_own_unit() -> None:
    kl = mean_score(
        [0.01, 0.02, 0.03] * 20, seed=0, coverage=0.5, higher_is_better=False, floors=[Floor(name="uniform", value=9.0)]
    )
    made = replace(result(), metric="kl_mean", scores={"kl_mean": kl, "top1_agreement": share_score(50, 60)}, rows=[])
    shown = cells(made)
    assert shown["data\nmetric"] == "unseen_numbers\nkl mean\nn = 60"
    assert str(shown["score\n95 %"]).split("\n")[0] == "0.0200"
    assert shown["best\nfloor"] == "uniform\n9.00"
    assert shown["judged\nstopped"] == "50.0%"
    assert shown["further scores"] == "top1 agreement 83.3% (72.0–90.7)"
    assert "perplexity" not in shown


def test_a_further_score_over_some_rows_says_over_how_many() -> None:
    some = share_score(15, 30, coverage=0.5, floors=[Floor(name="abstain", value=0.5)])
    made = replace(result(), scores=result().scores | {"has_answer_exact_match": some})
    assert "has answer exact match 50.0% (33.2–66.8, of 50%) FLOOR" in str(cells(made)["further scores"])


def test_a_score_over_some_rows_cannot_claim_to_cover_all() -> None:
    some = result().scores | {"has_answer_exact_match": share_score(15, 30)}
    said = r"scores.has_answer_exact_match is over 30 of 60 rows but says that it covers 100.0%; its coverage is at most 50.0%"
    with pytest.raises(UsageError, match=said):
        replace(result(), scores=some)
    data = result().to_dict()
    data["scores"]["has_answer_exact_match"] = share_score(15, 30).to_dict()
    with pytest.raises(UsageError, match=said):
        TaskResult.from_dict(data)
