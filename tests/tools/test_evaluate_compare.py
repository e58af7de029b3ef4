"""What `quantkit evaluate A B` says of the two: a table of paired comparisons, and a code for artifacts that are broken."""

import json
from dataclasses import replace
from typing import Any

import pytest

from quantkit import console
from quantkit.errors import UsageError
from quantkit.evaluation.results import ArtifactResult
from quantkit.evaluation.statistics import share_score
from quantkit_tools import evaluate
from quantkit_tools.evaluation.comparing import MEANING, check_baseline, compare_artifacts, show_comparisons, warn_degenerate
from tests.evaluation.test_comparison import result

LONG_NAME = "SmolLM2-135M-Instruct-openmath_SFT_LoRa16_QLORA_w4_headbf16_mergedbf16"


def artifact(name: str, right: int, *, path: str = "", **scores: Any) -> ArtifactResult:
    made = result([True] * right + [False] * (60 - right))
    return ArtifactResult(
        path=path or f"artifacts/{name}",
        name=name,
        artifact="cd" * 32,
        kind="model",
        quantization={},
        evidence=[],
        memory={},
        results=[replace(made, scores=made.scores | scores)],
    )


@pytest.mark.parametrize("width", [60, 200])
def test_the_table_says_who_is_better_and_fits(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_comparisons(compare_artifacts([artifact(LONG_NAME, 30), artifact("Base", 55)]))
    text = capsys.readouterr().out
    table, below = text.split("1: Base\n")
    assert max(map(len, table.splitlines())) <= width
    for shown in ("sums", "exact match", "2 – 1", "-41.7", "1 is better"):
        assert shown in table
    assert below.startswith(f"2: {LONG_NAME}\n")


def test_who_is_marked_is_named_and_does_not_win(capsys: pytest.CaptureFixture[str]) -> None:
    loops = artifact("Loops", 55, repetition_rate=share_score(60, 60))
    (found,) = compare_artifacts([loops, artifact("Plain", 30)]).comparisons
    assert (found.first, found.second) == ("Loops", "Plain")
    assert found.verdict == "no winner: Loops is marked LOOPS"
    assert warn_degenerate([loops]) == 3
    assert "Loops is degenerate on sums: LOOPS, most answers repeat themselves" in capsys.readouterr().err
    assert warn_degenerate([artifact("Weak", 0)]) == 0


def test_every_mark_that_fails_an_artifact_has_a_meaning() -> None:
    from quantkit.evaluation.results import BROKEN, MARKS

    assert MEANING.keys() == {mark.name for mark in MARKS if mark.fails} | {BROKEN}


def test_artifacts_of_one_name_are_told_apart_by_their_paths() -> None:
    (found,) = compare_artifacts([artifact("A", 30, path="one/A"), artifact("A", 55, path="two/A")]).comparisons
    assert (found.first, found.second) == ("one/A", "two/A")


def test_a_baseline_is_found_by_name_or_path_and_must_be_one() -> None:
    three = [artifact("A", 50), artifact("B", 40), artifact("C", 30)]
    for name in ("B", "artifacts/B"):
        assert {item.second for item in compare_artifacts(three, baseline=name).comparisons} == {"B"}
    with pytest.raises(UsageError, match="--baseline 'X' is none of what was evaluated: A, B, C"):
        compare_artifacts(three, baseline="X")
    twins = [artifact("A", 50, path="one/A"), artifact("A", 40, path="two/A")]
    with pytest.raises(UsageError, match="--baseline 'A' names several of what was evaluated"):
        compare_artifacts(twins, baseline="A")


def test_a_baseline_that_is_not_to_be_evaluated_is_refused_before_anything_is() -> None:
    check_baseline("A", ["runs/A", "B"])
    check_baseline(None, ["B"])
    with pytest.raises(UsageError, match="--baseline 'C' is none of what is to be evaluated: runs/A, B"):
        check_baseline("C", ["runs/A", "B"])


def test_what_cannot_be_compared_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    other = artifact("B", 40)
    other = replace(other, results=[replace(other.results[0], data_fingerprint="00" * 32)])
    compared = compare_artifacts([artifact("A", 50), other])
    show_comparisons(compared)
    assert compared.comparisons == []
    assert "B and A cannot be compared: they saw different data" in " ".join(capsys.readouterr().err.split())


def test_json_carries_the_comparisons_and_a_degenerate_artifact_ends_with_code_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = artifact("A", 30, empty_rate=share_score(60, 60))
    monkeypatch.setattr(evaluate, "evaluate_path", lambda *_: broken)
    try:
        assert evaluate.main(["artifacts/A", "--json"]) == 3
    finally:
        console.use_stdout()
    printed = json.loads(capsys.readouterr().out)
    assert (printed["comparisons"], printed["not_compared"]) == ([], [])
    assert printed["artifacts"][0]["results"][0]["degenerate"] == ["EMPTY"]
