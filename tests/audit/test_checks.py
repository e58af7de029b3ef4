"""One change to a sound file, one finding: every check sees what it looks for, and nothing else speaks up for it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from quantkit.audit import Finding, read_paths
from quantkit.evaluation.statistics import Score, share_score
from tests.audit import files
from tests.audit.test_stories import audit, found

ALWAYS = share_score(60, 60).to_dict()
NEVER_STOPS = share_score(0, 60).to_dict()
LAST_WRONG = [{"row": 59, "gold": "69", "answer": "70", "correct": True, "stopped": True, "text": "\\boxed{70}"}]

Expected = tuple[str, str, str] | None
"""Severity, check and a part of what is said; None: nothing at all."""


def expect(findings: list[Finding], expected: Expected) -> None:
    if expected is None:
        assert findings == []
    else:
        severity, check, said = expected
        assert any(said in item.found for item in found(findings, check, severity)), findings


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("scores.exact_match.value", math.nan, ("error", "impossible", "nan is not finite")),
        ("scores.exact_match.value", 1.75, ("error", "impossible", "1.75 is no share of anything")),
        ("scores.exact_match.value", 0.99, ("error", "impossible", "0.99 lies outside its own interval")),
        ("scores.exact_match.value", 0.755, ("error", "not k of n", "0.755 is no k/60: 45.30 right answers")),
        ("scores.exact_match.coverage", 1.5, ("error", "impossible", "its coverage is 1.5")),
        ("scores.exact_match.coverage", 0.3, ("error", "rows disagree", "coverage 0.3 is stated, 60/60 answers parsed")),
        (
            "scores.exact_match.floors",
            [{"name": "majority", "value": 0.01}],
            ("error", "floor", "the best floor is stated as 1.0%"),
        ),
        (
            "scores.exact_match.floors",
            [{"name": "sum", "value": 0.8}],
            ("error", "floor", "understands nothing gets 80.0% (sum)"),
        ),
        ("scores.exact_match.floors", [{"name": "sum", "value": 0.7}], ("warning", "floor", "75.0% is not above 70.0% (sum)")),
        ("scores.empty_rate.value", 0.75, ("error", "impossible", "0.75 lies outside its own interval")),
        ("rows.59.correct", True, ("error", "rows disagree", "the rows give 46/60")),
        ("rows", [], None),
        ("rows", LAST_WRONG, ("error", "rows disagree", "n is 60, but 1 answers stand in the file")),
        ("rows.3.generated_tokens", 700, ("error", "rows disagree", "the rows add up to 1585")),
        ("cost.tokens_per_s", 1000.0, ("error", "speed", "900 tokens in 9 s are 100")),
        ("cost.generated_tokens", -5, ("error", "impossible", "total_tokens is -5")),
        ("settings.max_new_tokens", 10, ("error", "impossible", "15 tokens an answer where max_new_tokens is 10")),
        ("settings.decoding", "sampled", ("warning", "sampling", "answers were drawn at random, once")),
        ("schema_version", 1, ("warning", "old schema", "schema_version is 1; this quantkit writes 2")),
        ("seed", "del", ("error", "not whole", "seed")),
        ("marks", ["FLOOR"], None),
        ("scores.stop_rate", NEVER_STOPS, ("error", "not whole", "its scores earn NO STOP, which its marks leave out")),
        ("scores.echo_rate", ALWAYS, ("error", "marked", "the scores earn the mark ECHO: answers repeat the question")),
        ("artifact.bits_per_weight", 16.0, ("error", "label", "4-bit weights are recorded, 16.00 bits per weight")),
        (
            "artifact.quantization.weights_dtype",
            "bfloat16",
            ("error", "label", "the name says QLORA, 4 bits, the record QLORA"),
        ),
        ("artifact.quantization.weights_bits", 8, ("error", "label", "the record 8 bits")),
        ("artifact.quantization.method", "HQQ", ("error", "label", "the record HQQ")),
        ("artifact.name", "Llama-3-8B-GPTQ-Int3", ("warning", "label", "GPTQ weights (3 bits), the record 4 bits")),
    ],
)
def test_one_change_to_a_result_of_ours(place: str, value: Any, expected: Expected, tmp_path: Path) -> None:
    findings = audit(files.write_json(tmp_path / "sums.json", files.changed(files.quantkit_result(), place, value)))
    expect(findings, expected)


GARBAGE: dict[str, dict[str, Any]] = {
    "silent": {"text": "", "generated_tokens": 0},
    "marks": {"text": "!!!!"},
    "cut": {"stopped": False},
    "constant": {"text": "always seven", "answer": "7", "correct": False},
}


def degenerate(change: str) -> dict[str, Any]:
    """Return our result with every row's answer made into one kind of garbage, its rates left as they were."""
    data = files.quantkit_result()
    for row in data["rows"]:
        row.update(GARBAGE[change])
    return data


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        ("silent", "silent", "60 of 60 answers say nothing"),
        ("marks", "silent", "60 of 60 answers say nothing"),
        ("cut", "cut answers", "100% of the answers never stop"),
        ("constant", "constant answers", "60 of 60 answers are '7', whatever is asked"),
    ],
)
def test_garbage_in_the_rows_is_found_whatever_the_rates_say(change: str, check: str, said: str, tmp_path: Path) -> None:
    findings = audit(files.write_json(tmp_path / "sums.json", degenerate(change)))
    assert said in [item.found.partition(":")[0] for item in found(findings, check)]


def test_repetition_and_cut_answers_are_read_off_a_studys_texts(tmp_path: Path) -> None:
    data = files.healthy_study()
    for run in data["models"].values():
        for row in run["answers"]:
            row.update({"output": "and so on " * 20, "generated_tokens": 32})
    findings = audit(files.write_json(tmp_path / "study.json", data))
    assert [item.found for item in found(findings, "repetition")] == ["100% of the answers repeat themselves"]
    assert "100% of the answers are 32 tokens long, which is max_new_tokens" in found(findings, "cut answers")[0].found
    (same,) = found(findings, "same answers", "warning") or [None]
    assert same is None  # one text to all questions is constant, not copied


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("config.limit", 100.0, ("warning", "limit", "limit 100.0: the first rows of the set")),
        ("results.arc_easy.acc,none", 0.4005, ("error", "not k of n", "is no k/1000: 400.50 right answers")),
        ("results.arc_easy.acc,none", math.inf, ("error", "impossible", "inf is not finite")),
        ("results.arc_easy.acc_stderr,none", 0.002, ("warning", "standard error", "0.4 of n 1000 has 0.0155")),
        ("results.arc_easy.acc_stderr,none", "N/A", ("warning", "no interval", "no interval; with n 1000")),
        ("n-samples", {}, ("warning", "no n", "how many rows were asked is not said")),
        ("model_name", "org/Model-1B-x_SFT_LoRa8_QLORA_w4_headbf16", None),
        (
            "config.model_args",
            "pretrained=org/Model-1B,peft=me/M-x_SFT_LoRa8_QLORA_w4_headbf16",
            ("warning", "label", "its base org/Model-1B was loaded without load_in_4bit"),
        ),
        ("config.model_args", "pretrained=org/Model-1B,peft=me/M-x_SFT_LoRa8_QLORA_w4_headbf16,load_in_4bit=True", None),
    ],
)
def test_one_change_to_a_result_of_lm_eval(place: str, value: Any, expected: Expected, tmp_path: Path) -> None:
    findings = audit(files.write_json(tmp_path / "results_x.json", files.changed(files.lm_eval_results(), place, value)))
    expect(findings, expected)


def test_samples_beside_lm_evals_results_are_read_with_them(tmp_path: Path) -> None:
    files.write_json(tmp_path / "results_x.json", files.lm_eval_results(right=240))
    lines = files.lm_eval_samples(250, 1000)
    (tmp_path / "samples_arc_easy_x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    findings = audit(tmp_path)
    (rows,) = found(findings, "rows disagree")
    assert rows.found == "0.24 is reported, the rows give 250/1000 = 0.25"
    assert any("gets 25.0% (always '0')" in item.found for item in found(findings, "floor"))


def test_differences_within_noise_are_named_and_paired_where_rows_are_there(tmp_path: Path) -> None:
    from quantkit_tools.audit import judged

    for index, right in enumerate((40, 44)):
        data = files.quantkit_result(right=right, artifact=f"{index}" * 64)
        files.write_json(tmp_path / f"{index}.json", files.changed(data, "artifact.name", f"Tiny-{index}"))
    result = judged(read_paths([tmp_path]))
    (difference,) = result.differences
    assert not difference.real
    assert "paired by row, p 0.12" in difference.said
    (note,) = [item for item in result.findings if item.check == "within noise"]
    assert note.severity == "note"
    assert note.found.startswith("66.7% (54.1 to 77.3); Tiny-1 has 73.3%")


def test_one_result_in_two_files_is_counted_once(tmp_path: Path) -> None:
    for name in ("a.json", "copy.json"):
        files.write_json(tmp_path / name, files.quantkit_result())
    (twice,) = found(audit(tmp_path), "counted twice", "warning")
    assert twice.found == "the artifact cdcdcdcdcdcd has 2 results of this task; counted once"


def test_two_models_with_the_same_answers_are_questioned(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", files.quantkit_result())
    files.write_json(tmp_path / "b.json", files.quantkit_result(artifact="ef" * 32, name="Tiny-Llama"))
    (same,) = found(audit(tmp_path), "same answers", "warning")
    assert "2 models gave the same text to all 60 questions" in same.found


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"exact_match": 42.0}, {"exact_match": 0.4}], ("error", "mixed scales", "0.4 stands in a column of percentages")),
        ([{"exact_match": 42.3}], ("error", "not k of n", "42.3 is no k/50: 21.15 right answers")),
        ([{"accuracy": 0.45, "parsed": 40}], ("error", "not k of n", "it is 18/40 of the parsed ones only")),
        ([{"accuracy": 130.0}], ("error", "impossible", "130.0 is no share of anything")),
        ([{"perplexity": 0.3}], ("error", "impossible", "a perplexity is at least 1")),
        ([{"mae": -2.0}], ("error", "impossible", "an absolute difference is not negative")),
        ([{"mae": 2.0, "parse_rate": 0.4}], ("error", "conditional mean", "a mean over 40% of the answers")),
        (
            [{"accuracy": 0.5, "latency": 2.0, "mean_generated_tokens": 100, "tokens_per_s": 500}],
            ("error", "speed", "2 s are 50"),
        ),
        ([{"accuracy": 0.5, "train_test_overlap": 3}], ("error", "overlap", "3 of 50 test questions also stand")),
        ([{"accuracy": 0.5, "temperature": 0.7}], ("warning", "sampling", "no seed is recorded")),
        ([{"accuracy": 0.5, "parse_rate": 0.3}], ("warning", "low coverage", "30% of the answers parsed: 50.0% says more")),
        ([{"accuracy": 0.5}], ("warning", "no seed", "neither a seed nor greedy decoding")),
        (
            [{"accuracy": 0.5, "max_new_tokens": 64, "avg_generated_tokens": 64}],
            ("error", "cut answers", "max_new_tokens (64)"),
        ),
        (
            [{"accuracy": 0.5, "max_new_tokens": 64}, {"accuracy": 0.6, "max_new_tokens": 128}],
            ("error", "different settings", "max_new_tokens differs between the models compared: 64, 128"),
        ),
        (
            [{"accuracy": 0.5}, {"accuracy": 0.6, "n": 100}],
            ("error", "different rows", "n differs between the models compared: 50, 100"),
        ),
        (
            [{"accuracy": 0.5, "latency": 0.2, "avg_new_tokens": 2}, {"accuracy": 0.6, "latency": 9, "avg_new_tokens": 99}],
            ("warning", "short answers", "latency 0.2 s for 2 tokens an answer"),
        ),
        ([{"metric": "accuracy", "value": -0.2}], ("error", "impossible", "-0.2 is no share of anything")),
        ([{"accuracy": "nan"}], ("error", "impossible", "nan is not finite")),
        (
            [{"accuracy": 0.5, "model": "Llama-3-8B-bnb-4bit", "method": "NoQuant"}],
            ("warning", "label", "bitsandbytes 4-bit weights"),
        ),
    ],
)
def test_what_a_table_of_an_unknown_study_gives_away(rows: list[dict[str, Any]], expected: Expected, tmp_path: Path) -> None:
    table = [{"model": f"M{index}", "dataset": "x", "n": 50, **row} for index, row in enumerate(rows)]
    findings = audit(files.write_csv(tmp_path / "summary.csv", table))
    expect(findings, expected)


def test_means_over_parsed_answers_are_recognised_by_their_rows(tmp_path: Path) -> None:
    data = files.healthy_study()
    run = data["models"]["Base-1B"]
    for row in run["answers"][:20]:
        row.update({"parsed": None, "correct": False})
    parsed = [row["correct"] for row in run["answers"] if row["parsed"] is not None]
    run["metrics"] = {"accuracy": round(sum(parsed) / len(parsed), 4)}
    findings = audit(files.write_json(tmp_path / "study.json", {"models": {"Base-1B": run}}))
    assert any("it is the mean over the 40 parsed answers only" in item.found for item in found(findings, "conditional mean"))


def test_a_perplexity_over_a_part_of_the_tokens_is_said_to_be_one(tmp_path: Path) -> None:
    data = files.quantkit_result()
    data["scores"]["perplexity_all"] = Score(
        value=9.0, n=60, low=8.0, high=10.0, interval="bootstrap", coverage=0.5, floors=(), higher_is_better=False
    ).to_dict()
    findings = audit(files.write_json(tmp_path / "sums.json", data))
    assert [item.found for item in found(findings, "low coverage", "warning")] == ["9 covers 50% of the tokens"]


def test_sixteen_bits_recorded_and_four_measured_is_a_lie_too(tmp_path: Path) -> None:
    data = files.quantkit_result(name="Tiny-Llama")
    data["artifact"]["quantization"] |= {"method": "NoQuant", "weights_bits": 16, "weights_dtype": "bfloat16"}
    (label,) = found(audit(files.write_json(tmp_path / "sums.json", data)), "label")
    assert label.found == "unquantized weights are recorded, 5.10 bits per weight were measured"
