"""The faults that were published as results: each is found in files that hold it, and sound files are left in peace."""

import json
from pathlib import Path

import pytest

from quantkit.audit import Finding
from quantkit_tools.audit import judged
from tests.audit import files


def audit(*paths: Path) -> list[Finding]:
    from quantkit.audit import read_paths

    readings = read_paths(paths)
    assert [fault for reading in readings for fault in reading.faults] == []
    return list(judged(readings).findings)


def found(findings: list[Finding], check: str, severity: str = "error") -> list[Finding]:
    return [item for item in findings if (item.check, item.severity) == (check, severity)]


def test_a_silent_model_ranked_best_is_found_in_the_raw_generations(tmp_path: Path) -> None:
    findings = audit(files.write_json(tmp_path / "metrics.json", files.math_metrics()))
    answers, latency = found(findings, "silent")
    assert answers.found == "45 of 50 answers say nothing"
    assert "0.61 s are the latency of silence" in latency.found
    (mean,) = found(findings, "conditional mean")
    assert mean.where == "openmath: metrics.mean_abs_difference"
    assert mean.found.startswith("9.0 is the mean over what little was said")


def test_the_summary_that_ranks_it_best_is_judged_by_the_generations_beside_it(tmp_path: Path) -> None:
    files.write_json(tmp_path / "metrics.json", files.math_metrics())
    summary = files.write_csv(tmp_path / "summary.csv", files.math_summary())
    (leader,) = found(audit(tmp_path), "silent leader")
    assert (leader.file, leader.model) == (str(summary), files.SILENT)
    assert "mean_abs_difference (9.0; the next has 1258.5)" in leader.found
    assert "latency (0.61 s; the next takes 13.8 s)" in leader.found
    assert "90% of its answers" in leader.found


def test_the_summary_alone_says_that_it_cannot_be_judged(tmp_path: Path) -> None:
    findings = audit(files.write_csv(tmp_path / "summary.csv", files.math_summary()))
    (coverage,) = found(findings, "no coverage", "warning")
    assert coverage.needed == "how many answers parsed, of how many"
    (speed,) = found(findings, "short answers", "warning")
    assert speed.model == files.SILENT
    assert "silence is fast" in speed.found


@pytest.mark.parametrize(
    ("column", "value"), [("empty_answers", 45), ("empty_rate", 0.9), ("zero_token_rate", "90%"), ("avg_generated_tokens", 0)]
)
def test_a_summary_that_counts_silence_is_enough(tmp_path: Path, column: str, value: object) -> None:
    silent, fluent = files.math_summary()
    rows = [{**silent, column: value}, {**fluent, column: 200 if "tokens" in column else 0}]
    findings = audit(files.write_csv(tmp_path / "summary.csv", rows))
    assert [item.model for item in found(findings, "silent leader")] == [files.SILENT]
    assert found(findings, "conditional mean")


def test_exact_match_below_what_exclamation_marks_get_is_found(tmp_path: Path) -> None:
    findings = audit(files.write_json(tmp_path / "metrics.json", files.squad_metrics()))
    (floor,) = found(findings, "floor")
    assert floor.found == ("40.0%, and a predictor that understands nothing gets 42.0% (empty or '!!!!') on the same rows")


def test_floors_of_one_models_rows_hold_for_the_whole_table(tmp_path: Path) -> None:
    files.write_json(tmp_path / "metrics.json", files.squad_metrics())
    summary = files.write_csv(tmp_path / "summary.csv", files.squad_summary())
    floors = [item for item in found(audit(tmp_path), "floor") if item.file == str(summary)]
    assert [item.found[:5] for item in floors] == ["40.0%", "38.0%", "22.0%"]


def test_a_table_of_such_a_set_without_rows_cannot_be_judged(tmp_path: Path) -> None:
    findings = audit(files.write_csv(tmp_path / "summary.csv", files.squad_summary()))
    assert any("in SQuAD v2 an always-empty one" in item.found for item in found(findings, "floor unknown", "warning"))
    known = [{**row, "NoAns_total": 21} for row in files.squad_summary()]
    findings = audit(files.write_csv(tmp_path / "known.csv", known))
    assert len(found(findings, "floor")) == 3
    assert not found(findings, "floor unknown", "warning")


def test_score_above_the_floor_by_luck_only_is_a_warning(tmp_path: Path) -> None:
    findings = audit(files.write_json(tmp_path / "metrics.json", files.squad_metrics(right=24)))
    assert not found(findings, "floor")
    (floor,) = found(findings, "floor", "warning")
    assert "48.0% is not above 42.0%" in floor.found


def test_labels_that_lie_are_found_one_by_one_and_as_a_pattern(tmp_path: Path) -> None:
    findings = audit(files.write_csv(tmp_path / "summary.csv", files.labels_summary()))
    labels = " ".join(item.model for item in found(findings, "label"))
    assert all(name in labels for name in files.QUANTIZED)
    (pattern,) = found(findings, "labelled unquantized")
    assert pattern.found.startswith("3 of 4 models with a quantized name are recorded as NoQuant")
    assert "substring test" in pattern.found


def test_a_label_in_the_folders_name_counts_where_the_file_names_no_model(tmp_path: Path) -> None:
    data = {"dataset": "boolq", "n": 50, "accuracy": 0.5, "quantization": {"method": "NoQuant"}}
    (label,) = found(audit(files.write_json(tmp_path / files.SILENT / "metrics.json", data)), "label")
    assert (label.model, label.found) == (files.SILENT, "the name says QLORA, 4 bits, the record NoQuant")


def test_four_bits_in_the_memory_of_sixteen_are_found(tmp_path: Path) -> None:
    rows = files.labels_summary()
    (memory,) = found(audit(files.write_csv(tmp_path / "summary.csv", rows)), "memory")
    assert memory.model == "Big-23B-boolq_SFT_LoRa64_QLORA_w4_headbf16"
    assert memory.found == "46.00 GiB for 4-bit weights; the 16-bit Big-23B-base took 46.00 GiB"
    (alone,) = found(audit(files.write_csv(tmp_path / "alone.csv", rows[-1:])), "memory")
    assert alone.found.endswith("23 B parameters, which take 10.71 GiB; in 16 bits they take 42.84 GiB")
    honest = [{**rows[-1], "vram_gb": 14.0}]
    assert not found(audit(files.write_csv(tmp_path / "honest.csv", honest)), "memory")


def test_a_name_that_holds_noquant_and_four_bits_is_a_substring_trap(tmp_path: Path) -> None:
    row = {"model": "Qwen3-0.6B-NoQuant_SFT_LoRa64_GPTQ_w4", "dataset": "x", "n": 9, "accuracy": "0.5", "method": "NoQuant"}
    (label,) = found(audit(files.write_csv(tmp_path / "summary.csv", [row])), "label")
    assert "what a substring test with the unquantized method first gives" in label.found


def test_a_merge_that_destroyed_the_model_is_found(tmp_path: Path) -> None:
    findings = audit(files.write_csv(tmp_path / "summary.csv", files.merge_summary()))
    assert len(found(findings, "destroyed model")) == 1
    (merge,) = found(findings, "broken merge")
    assert "before the merge it was 8.9" in merge.found


def test_nothing_is_found_in_sound_files(tmp_path: Path) -> None:
    files.write_json(tmp_path / "study.json", files.healthy_study())
    for index, model in enumerate(("org/Model-1B", "org/Other-1B")):
        right = 400 + 200 * index
        files.write_json(tmp_path / model / "results_2026-01-01T00.json", files.lm_eval_results(model, right=right))
        lines = [json.dumps(line) for line in files.lm_eval_samples(right, 1000)]
        (tmp_path / model / "samples_arc_easy_2026-01-01T00.jsonl").write_text("\n".join(lines))
    for artifact, right, name in (("cd" * 32, 30, "Tiny-Llama"), ("ef" * 32, 52, "Tiny-sums_SFT_LoRa4_QLORA_w4_headbf16")):
        data = files.quantkit_result(right=right, name=name, artifact=artifact)
        files.write_json(tmp_path / "ours" / f"{artifact[:4]}.json", data)
    assert audit(tmp_path) == []
