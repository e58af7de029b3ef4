"""What is kept of a run survives JSON, and what is shown of it hides nothing."""

import json
from typing import Any

import pytest

from quantkit import console
from quantkit.errors import UsageError
from quantkit.evaluation.results import ArtifactResult, Cost, RowResult, TaskResult
from quantkit.evaluation.statistics import Floor, Score, share_score
from quantkit.evaluation.table import CAPTION, COLUMNS, table_rows

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


def test_marks_say_what_is_wrong_with_the_answers() -> None:
    assert result().marks == []
    assert result(25).marks == ["FLOOR"]
    assert result(0, empty=60).marks == ["FLOOR", "EMPTY"]
    assert result(0, loops=30, stopped=0).marks == ["FLOOR", "LOOPS", "NO STOP"]


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_and_keeps_score_interval_floor_and_marks(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = table_rows([artifact("SmolLM2-135M-Instruct", result(20, stopped=0)), artifact()])
    console.table("Evaluation", COLUMNS, rows, caption=CAPTION)
    text = capsys.readouterr().out
    table = text.split("FLOOR:")[0]
    assert max(map(len, text.splitlines()[:-1])) <= width
    for shown in ("33.3%", "75.0%", "62.8–84.2", "sum", "37.5%", "FLOOR", "NO STOP", "98.3%", "unseen_numbers"):
        assert shown in table
    assert ("tokens/s" in table) == (width == 160)
    assert "_mergedbf16" in table


def test_a_perplexity_no_better_than_token_counts_is_marked() -> None:
    cell = str(table_rows([artifact()])[0][5])
    assert cell.split("\n") == ["1.5 (1.35–1.65)", "30 (27–33) FLOOR"]


def test_gpu_memory_is_shown_per_device() -> None:
    from dataclasses import replace

    on_gpu = replace(result(), cost=replace(result().cost, peak_reserved_bytes={"cuda:0": 3 << 30, "cuda:1": 1 << 30}))
    assert table_rows([artifact(LONG_NAME, on_gpu)])[0][6] == "cuda:0 3.00 GiB\ncuda:1 1.00 GiB"
