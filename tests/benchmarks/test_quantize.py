"""Does the comparison of methods run, judge what was measured only, and turn failures into rows?"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import quantize_run
from peers import environments
from quantize_cases import OURS, PEERS, SLOW, Case, all_cases, own_cases, peer_cases
from quantize_judge import closed_gap, compare, judge, summary
from quantize_run import ProcessFailed, Setting, measured

from quantkit.errors import QuantkitError
from quantkit.methods import installed_methods

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def row(name: str, nll: float, *, cpu_s: float = 1.0, reload: float = 0.0) -> dict[str, Any]:
    rows = [{"nll": 10 * nll + index / 10, "tokens": 10, "kl": 0.1, "top1": 0.9} for index in range(4)]
    own = {"by": name.split(maxsplit=1)[0], "name": name, "cpu_s": cpu_s, "reload": reload, "stored_drift": 0.0}
    return own | {"rows": rows} | summary(rows)


def rows_of(**losses: float) -> dict[str, Any]:
    names = {name.replace("_", " "): loss for name, loss in losses.items()}
    return {name: row(name, loss) for name, loss in names.items()}


def held(rows: dict[str, Any]) -> dict[str, bool]:
    return {goal.name.split(":")[0]: goal.holds for goal in judge(rows)[0]}


def test_a_row_says_perplexity_with_its_interval():
    found = row("16 bit", 2.0)
    assert found["low"] < found["perplexity"] < found["high"]
    assert found["mean_kl"] == pytest.approx(0.1)
    assert found["top1_agreement"] == pytest.approx(0.9)


def test_equal_results_meet_at_most_but_not_better_than():
    found = held(rows_of(quantkit_AWQ_3=2.0, quantkit_RTN_3=2.0, quantkit_AdaRound_3=2.0, quantkit_GPTQ_3=2.0))
    assert found["quantkit AWQ 3 against quantkit RTN 3"]
    assert found["quantkit AdaRound 3 against quantkit GPTQ 3"]
    assert not found["quantkit AdaRound 3 against quantkit RTN 3"]


def test_gptq_is_timed_against_the_peer_that_is_better():
    rows = {
        f"{OURS} GPTQ 4": row(f"{OURS} GPTQ 4", 2.0, cpu_s=30),
        "llmcompressor GPTQ 4": row("llmcompressor GPTQ 4", 2.1, cpu_s=300),
        "gptqmodel GPTQ 4": row("gptqmodel GPTQ 4", 1.9, cpu_s=100),
    }
    goal = next(goal for goal in judge(rows)[0] if "processor seconds" in goal.name)
    assert goal.name == "quantkit GPTQ 4: processor seconds as a share of gptqmodel GPTQ 4's"
    assert (goal.value, goal.holds) == (pytest.approx(0.3), False)
    assert not held(rows)["quantkit GPTQ 4 against gptqmodel GPTQ 4"]


def test_what_was_not_measured_is_not_judged():
    goals, missing = judge(rows_of(quantkit_HQQ_4=2.0))
    assert [goal.name.split(",")[0] for goal in goals] == ["saved models loaded by transformers"]
    assert "quantkit HQQ 4 against hqq HQQ 4" in missing
    assert compare(rows_of(quantkit_HQQ_4=2.0)) == []


def test_a_saved_model_that_differs_loses_a_goal():
    goals, _ = judge({f"{OURS} RTN 4": row(f"{OURS} RTN 4", 2.0, reload=0.01)})
    assert [goal.holds for goal in goals] == [False]


def test_the_share_of_the_gap_that_calibration_closes():
    rows = {"16 bit": row("16 bit", 1.0)} | {
        name: row(name, loss) for name, loss in ((f"{OURS} NF4 4", 1.4), (f"{OURS} NF4, calibrated 4", 1.1))
    }
    found = closed_gap(rows, "NF4")
    assert found is not None
    assert found["value"] == pytest.approx(0.75)
    assert closed_gap(rows, "FP4") is None


def test_every_method_that_quantizes_stands_in_the_table():
    measured_here = {case.plugin for case in own_cases((8, 4, 3, 2), None)}
    assert set(installed_methods().names) - measured_here == {"NoQuant", "QLORA"}  # QLORA's weights are BNB4BIT's
    assert {case.by for case in peer_cases(tuple(PEERS), (8, 4, 3, 2), None)} == set(PEERS)


def test_names_choose_one_row_and_methods_all_of_theirs():
    assert [case.method for case in own_cases((4,), ["RTN"])] == ["RTN"]
    assert {case.method for case in own_cases((4,), ["BNB4BIT"])} == {"NF4", "NF4, calibrated", "FP4", "FP4, calibrated"}


def test_what_takes_longest_comes_last():
    cases = all_cases((4, 8, 3), None, tuple(PEERS))
    assert {(case.by, case.method) for case in cases[-3:]} == SLOW
    widths = [case.weights_bits for case in cases[:-3]]
    assert widths == sorted(widths, key=(4, 8, 3).index)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """A setting without model or text."""
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"calibration": [[1, 2]], "held_out": [[1, 2]]}))
    return Setting(
        model="none",
        texts=texts,
        fingerprint="",
        scratch=tmp_path,
        peer_envs=tmp_path / "envs",
        results=tmp_path / "results",
        resume=True,
        limit_s=60,
    )


def test_a_process_that_fails_is_a_row_with_its_last_line(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    command = [sys.executable, "-c", "raise RuntimeError('no accelerator')"]
    maker = quantize_run.Maker(command, "", "1.0")
    monkeypatch.setattr(quantize_run, "_maker", lambda *_: maker)
    found = measured(Case("hqq", "HQQ", 4), setting)
    assert found["error"] == "RuntimeError: no accelerator"
    assert found["version"] == "1.0"
    assert measured(Case("hqq", "HQQ", 4), setting)["from_file"]


def test_a_process_that_takes_too_long_is_given_up(setting: Setting, tmp_path: Path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(ProcessFailed, match="given up after 1 s"):
        quantize_run._process(command, {"answer": "none"}, tmp_path / "job.json", replace(setting, limit_s=1))


def test_a_peer_that_pip_refuses_is_a_row(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    def refuse(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Collecting hqq\nERROR: no matching distribution\nnote: a hint\n")

    monkeypatch.setattr(environments.venv, "create", lambda *_, **__: None)
    monkeypatch.setattr(environments.subprocess, "run", refuse)
    with pytest.raises(QuantkitError, match="hqq: ERROR: no matching distribution"):
        environments.peer_python("hqq", setting.peer_envs)
    assert measured(Case("hqq", "HQQ", 4), setting)["error"] == "hqq: ERROR: no matching distribution"


def test_the_quick_form_runs(tiny_model: Path, tmp_path: Path):
    command = [sys.executable, str(BENCHMARKS / "quantize.py"), "--quick", "--methods", "RTN", "--results", str(tmp_path)]
    done = subprocess.run([*command, "--json", str(tmp_path / "found.json")], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {item["name"]: item for item in found["rows"]}
    assert rows["16 bit"]["bits_per_weight"] == 16
    ours = rows["quantkit RTN 4"]
    assert 4.25 <= ours["bits_per_weight"] < 4.3
    assert 0 < ours["mean_kl"] < 0.1
    assert ours["reload"] == ours["stored_drift"] == ours["run_drift"] == 0
    assert [goal["holds"] for goal in found["goals"]] == [True]
