"""Does the comparison of rotations judge what a checkpoint computes, and do its controls change only what they say?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from full_precision import break_grid, plant_outliers
from rotation import documents, judge, load
from rotation_ways import RowScore, Setting, Subject, effects, judged, largest_change, quantized, scores

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SETTING = Setting(bits=(4,), group_size=32, calib_rows=2, held_out_tokens=256)


@pytest.fixture
def subject(tiny_model: Path) -> Subject:
    return Subject("tiny", lambda: load(str(tiny_model)).float(), *documents(str(tiny_model), SETTING))


def test_the_quick_form_runs(tiny_model: Path, tmp_path: Path):
    command = [
        sys.executable,
        str(BENCHMARKS / "rotation.py"),
        "--quick",
        "--bits",
        "4",
        "--json",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["subjects"]) == ["trained in full precision", "the same with planted outliers"]
    planted = {
        (item["way"], item["bits"]): item["verdict"] for item in found["subjects"]["the same with planted outliers"]["effects"]
    }
    assert planted["QuaRot + RTN", "W4A4"] == planted["QuaRot + GPTQ", "W4A4"] == "better"


def test_planted_outliers_change_what_layers_read_and_not_what_the_model_says(subject: Subject):
    plain = scores(subject.load(), subject.rows)
    planted = Subject("planted", lambda: plant_outliers(subject.load()), subject.calibration, subject.rows)
    assert max(row.kl for row in scores(planted.load(), subject.rows, plain)) < 1e-4
    (_, before), (change, after) = largest_change(subject), largest_change(planted)
    assert after["before"] > 1.5 * before["before"]
    assert after["after"] == pytest.approx(before["after"], rel=0.05)
    assert all(goal.holds for goal in judge({"planted": {"largest_change_by_rotation": change}}))


def test_noise_moves_weights_by_half_a_step_at_most(subject: Subject):
    one, other = (
        model.model.layers[0].mlp.up_proj.weight.reshape(-1, 32) for model in (subject.load(), break_grid(subject.load()))
    )
    step = (one.amax(-1, keepdim=True) - one.amin(-1, keepdim=True)) / 15
    share = ((other - one) / step).abs()
    assert 0.45 < share.max().item() <= 0.5 + 1e-4


def test_activations_rounded_here_are_those_of_a_checkpoint_that_rounds_them(subject: Subject):
    dense = scores(subject.load(), subject.rows)
    options = {"weights_bits": 4, "group_size": 32, "rounding": "rtn"}
    plain, _ = quantized(subject, "QuaRot", options)
    rounding, _ = quantized(subject, "QuaRot", options | {"activations_bits": 8})
    assert judged(plain, subject, dense, 8) == judged(rounding, subject, dense, 8) != judged(plain, subject, dense, None)


def test_a_ratio_is_a_gain_only_where_its_interval_excludes_one():
    def way(name: str, kls: list[float]) -> dict[str, object]:
        return {"name": name, "bits": "W4A16", "scores": [RowScore(1.0, 1, kl, 1, None) for kl in kls]}

    (found,) = effects([way("GPTQ", [1.0, 2.0, 1.0, 2.0]), way("QuaRot + GPTQ", [0.5, 1.0, 0.5, 1.0])])
    assert (found["way"], found["against"], found["value"], found["verdict"]) == ("QuaRot + GPTQ", "GPTQ", 0.5, "better")
    (mixed,) = effects([way("GPTQ", [1.0, 2.0, 1.0, 2.0]), way("QuaRot + GPTQ", [2.0, 1.0, 2.0, 1.0])])
    assert mixed["verdict"] == "no difference shown"
