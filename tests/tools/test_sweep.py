"""`quantkit sweep`: what it plans, what it refuses, and that it goes on after whatever stopped it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.methods import installed_methods
from quantkit.sweeping import read_sweep
from quantkit_registry.records import read_record
from quantkit_registry.store import Registry
from quantkit_registry.verify import name_contradictions
from quantkit_tools.merging.flags import parse_merge_flags
from quantkit_tools.merging.planning import plan_merge
from quantkit_tools.sweep_commands import command_of
from quantkit_tools.sweep_costs import adapter_weights
from quantkit_tools.sweep_evaluation import evaluation_words
from quantkit_tools.sweep_journal import Standing
from quantkit_tools.sweep_planning import SweepPlan
from quantkit_tools.sweep_running import left_to_do
from tests.tools.sweeps import journal_of, planned

TAG = "seed1_headbf16"


TWO_BY_TWO = {
    "vary": {
        "quant_method": ["NoQuant", "QLORA"],
        "peft_config": ["LoRa", "DoRa"],
        "merge": ["kept", "dequantized", "base"],
        "seed": [1],
    }
}


def test_the_plan_trains_each_adapter_once_and_says_what_cannot_run(write_sweep: Any) -> None:
    plan = planned(write_sweep(**TWO_BY_TWO))
    assert [(step.kind, step.name.removeprefix("Tiny-Llama-openmath_SFT_"), step.policy) for step in plan.steps] == [
        ("train", f"LoRa4_NoQuant_w16_{TAG}", "kept"),
        ("merge", f"LoRa4_NoQuant_w16_{TAG}_mergedbf16", "dequantized"),
        ("train", f"DoRa4_NoQuant_w16_{TAG}", "kept"),
        ("merge", f"DoRa4_NoQuant_w16_{TAG}_mergedbf16", "dequantized"),
        ("train", f"LoRa4_QLORA_w4_{TAG}", "kept"),
        ("merge", f"LoRa4_QLORA_w4_{TAG}_mergedbf16", "dequantized"),
        ("merge", f"LoRa4_QLORA_w4_{TAG}_mergedbasebf16", "base"),
    ]
    assert plan.refused == []
    assert plan.notes[0] == "NoQuant, LoRa, seed 1, base: the same as dequantized, the base is dense"
    assert all(step.evaluated and step.disk_bytes > 0 for step in plan.steps)


def test_a_kind_of_adapter_that_its_method_does_not_train_runs_as_the_one_it_does_and_once(write_sweep: Any) -> None:
    """As `quantkit train` does it, whose run of these settings has the same name."""
    plan = planned(write_sweep(**TWO_BY_TWO))
    assert [note for note in plan.notes if note.startswith("QLORA")] == [
        "QLORA, DoRa, seed 1: QLORA trains LoRa adapters, not DoRa; for DoRa on a 4-bit base use BNB4BIT.",
        *(
            f"QLORA, DoRa, seed 1, {policy}: the same as QLORA, LoRa, seed 1, {policy}, which runs once"
            for policy in ("kept", "dequantized", "base")
        ),
    ]
    alone = planned(write_sweep(vary={"quant_method": ["QLORA"], "peft_config": ["DoRa"], "merge": ["kept"], "seed": [1]}))
    assert [(step.label, step.name) for step in alone.steps] == [
        ("QLORA, DoRa, seed 1, kept", f"Tiny-Llama-openmath_SFT_LoRa4_QLORA_w4_{TAG}")
    ]
    assert alone.steps[0].config.peft_config == "LoRa"
    assert alone.steps[0].config == plan.steps[4].config
    left_out = TWO_BY_TWO | {"exclude": [{"quant_method": "QLORA", "peft_config": "LoRa", "merge": "kept"}]}
    asked_by_the_other = planned(write_sweep(**left_out))
    assert asked_by_the_other.steps[4].evaluated
    assert len(asked_by_the_other.steps) == 7


@pytest.mark.parametrize("kinds", [["LoRa", "DoRa"], ["DoRa", "LoRa"]])
def test_a_merge_that_two_combinations_of_one_training_ask_for_is_made_once_and_not_refused(
    kinds: list[str], write_sweep: Any
) -> None:
    vary = {"quant_method": ["QLORA"], "peft_config": kinds, "merge": ["kept", "dequantized", "base"]}
    left_out = [{"peft_config": "DoRa", "merge": policy} for policy in ("kept", "base")]
    plan = planned(write_sweep(vary=vary, exclude=left_out))
    assert plan.refused == []
    assert sorted((step.kind, step.policy, step.evaluated) for step in plan.steps) == [
        ("merge", "base", True),
        ("merge", "dequantized", True),
        ("train", "kept", True),
    ]
    assert [note for note in plan.notes if "which runs once" in note and "dequantized" in note] == [
        f"QLORA, {kinds[1]}, dequantized: the same as QLORA, {kinds[0]}, dequantized, which runs once"
    ]


def test_one_policy_merges_in_the_run_and_an_adapter_for_merges_only_is_not_evaluated(write_sweep: Any) -> None:
    alone = planned(write_sweep(vary={"quant_method": ["QLORA"], "merge": ["base"]}))
    assert [(step.kind, step.policy) for step in alone.steps] == [("train", "base")]
    assert alone.steps[0].config.merge_after_train
    both = planned(write_sweep(vary={"quant_method": ["QLORA"], "merge": ["base", "requantized"]}))
    assert [(step.kind, step.evaluated) for step in both.steps] == [("train", False), ("merge", True), ("merge", True)]
    assert "--calib-rows" in command_of(both, both.steps[2])


def test_runs_on_one_quantized_base_come_one_after_another(write_sweep: Any) -> None:
    gptq = {"quant_method": "GPTQ", "group_size": 64}
    plan = planned(write_sweep(vary={"quant_method": [gptq], "peft_config": ["LoRa", "DoRa"], "seed": [1, 2]}))
    assert [step.after for step in plan.steps] == [None, None, plan.steps[0].name, plan.steps[1].name]
    assert plan.steps[0].disk_bytes > plan.steps[2].disk_bytes


def test_what_cannot_run_is_refused_with_the_reason_of_whoever_knows(write_sweep: Any) -> None:
    gptq = {"quant_method": "GPTQ", "group_size": 96}
    plan = planned(write_sweep(vary={"quant_method": ["NoQuant", gptq], "merge": ["kept", "requantized"]}))
    reasons = {item.label: item.reason for item in plan.refused}
    assert "nothing to quantize again" in reasons["NoQuant, requantized"]
    assert "group_size 96 does not divide the 128 input columns" in reasons["GPTQ (group_size 96)"]
    names = {"quant_method": [{"quant_method": "GPTQ", "group_size": 64, "damp_percent": damp} for damp in (0.01, 0.1)]}
    clash = planned(write_sweep(vary=names)).refused[0]
    assert "they differ in damp_percent, which name_settings in base can put into names" in clash.reason
    told_apart = planned(write_sweep({"name_settings": ["damp_percent"]}, vary=names))
    assert not told_apart.refused
    assert "_damppercent1em2_" in told_apart.steps[0].name
    with pytest.raises(UsageError, match=r"no combination can run: .*gradient"):
        planned(write_sweep(vary={"quant_method": ["QLORA"], "peft_config": ["NoPeft"]}))
    with pytest.raises(UsageError, match="exclude leaves nothing to run"):
        planned(write_sweep(vary={"seed": [1]}, exclude=[{"seed": 1}]))


def test_the_evaluation_is_checked_before_anything_is_trained(write_sweep: Any, rows: Path) -> None:
    good = {"data": [f"openmath:{rows}"], "limit": 2, "base": True}
    assert evaluation_words(read_sweep(write_sweep(evaluate=good))) == ["--data", f"openmath:{rows}", "--limit", "2"]
    assert evaluation_words(read_sweep(write_sweep())) is None
    for wrong, said in (
        ({"limits": 2}, "'limits' is no flag of quantkit evaluate. Did you mean 'limit'?"),
        ({"limit": "two"}, "limit is 'two'"),
        ({"data": "nowhere.jsonl"}, "there is no such file"),
        ({"pending": True}, "'pending' is no flag"),
    ):
        with pytest.raises(UsageError) as caught:
            evaluation_words(read_sweep(write_sweep(evaluate=wrong)))
        assert said in str(caught.value)


def test_a_dry_run_writes_nothing(write_sweep: Any, read_json: Any, tmp_path: Path) -> None:
    said = read_json("sweep", write_sweep(**TWO_BY_TWO), "--dry-run")
    assert [step["state"] for step in said["steps"]] == ["to do"] * 7
    assert said["steps"][1]["needs"] == said["steps"][0]["name"]
    assert said["refused"] == []
    assert not (tmp_path / "artifacts").exists()


def test_a_sweep_that_was_stopped_goes_on_and_repeats_nothing(write_sweep: Any, quantkit: Any, tmp_path: Path) -> None:
    vary = TWO_BY_TWO["vary"] | {"merge": ["kept"]}
    path, root = write_sweep(vary=vary), tmp_path / "artifacts"
    command = [sys.executable, "-m", "quantkit_tools.cli", "sweep", str(path)]
    second = root / ".sweeps" / "small" / "logs" / f"Tiny-Llama-openmath_SFT_DoRa4_NoQuant_w16_{TAG}.log"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for _ in range(3600):
            if second.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out = process.communicate(timeout=120)[0]
    assert process.returncode == 130, out
    assert "goes on" in out
    made = {entry.name: entry.hash for entry in Registry(root).artifacts()}
    assert list(made) == [f"Tiny-Llama-openmath_SFT_LoRa4_NoQuant_w16_{TAG}"]
    code, out, err = quantkit("sweep", path, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert len(said["done"]) == 3
    assert said["failed"] == {}
    entries = {entry.name: entry for entry in Registry(root).artifacts()}
    assert set(entries) == set(said["done"])
    assert {name: entries[name].hash for name in made} == made
    for entry in entries.values():
        record = read_record(entry.path)
        assert record.data["name_settings"] == {"seed": 1}
        assert name_contradictions(record) == []
    plan = planned(path)
    assert left_to_do(plan, journal_of(plan)) == []
    assert quantkit("sweep", path, "--emit", "commands")[1] == ""
    _without_the_journal_artifacts_speak_for_themselves(plan)
    _more_merges_train_nothing_again(planned(write_sweep(**TWO_BY_TWO)))
    shown = quantkit("sweep", write_sweep({"learning_rate": 0.5}, vary=vary), "--dry-run")[1]
    assert "in the way: remove the artifact, set another output_dir in base, or put the setting under vary" in shown
    assert "time left" not in shown
    _other_rows_or_settings_under_the_name_are_in_the_way(plan, write_sweep, vary)


def _without_the_journal_artifacts_speak_for_themselves(plan: SweepPlan) -> None:
    for file in (plan.work / "steps").iterdir():
        file.unlink()
    assert left_to_do(plan, journal_of(plan)) == []


def _more_merges_train_nothing_again(plan: SweepPlan) -> None:
    left = left_to_do(plan, journal_of(plan))
    assert [step.kind for step in left] == ["merge"] * 4
    for step in left:
        job = plan_merge(parse_merge_flags(command_of(plan, step)[1:]).config, installed_methods())
        assert (job.target, job.name, job.policy) == (step.target, step.name, step.policy)


def _other_rows_or_settings_under_the_name_are_in_the_way(plan: SweepPlan, write_sweep: Any, vary: dict[str, Any]) -> None:
    other = planned(write_sweep({"learning_rate": 0.5}, vary=vary))
    assert journal_of(other).standing(other.steps[0]) == Standing("in the way", "was trained with learning_rate 0.01")
    leaner = planned(write_sweep({"recompute": "full"}, vary=vary))
    assert journal_of(leaner).standing(leaner.steps[0]).state == "done"
    journal_of(plan).write(plan.steps[0], "done", duration_s=2.0)
    assert journal_of(plan).standing(plan.steps[0]).state == "done"
    seconds, peak = journal_of(plan).expected(plan.steps[1])
    assert seconds == 2.0
    assert peak is not None
    assert peak > 10**7
    rows = Path(str(plan.steps[0].config.dataset_name).partition(":")[2])
    before = rows.read_bytes()
    try:
        rows.write_bytes(before + b"\n")
        assert "was trained on other rows than openmath:" in journal_of(plan).standing(plan.steps[0]).detail
    finally:
        rows.write_bytes(before)
    weights = plan.steps[0].target / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "adapter_model.safetensors is not what its manifest says" in journal_of(plan).standing(plan.steps[0]).detail


def test_a_sweep_ends_in_evaluation_and_report(write_sweep: Any, quantkit: Any, tmp_path: Path) -> None:
    path = write_sweep(
        {"peft_config": "NoPeft", "max_steps": 1},
        vary={"seed": [1]},
        evaluate={"limit": 1, "max_new_tokens": 2, "latency_prompts": 0},
    )
    code, out, err = quantkit("sweep", path, "--json")
    said = json.loads(out)
    assert code == said["exit_code"]
    assert code in (0, 3), err  # two tokens are no whole answer
    artifact = Registry(tmp_path / "artifacts").artifacts()[0]
    assert len(Registry(tmp_path / "artifacts").results(str(artifact.hash))) == 2
    assert artifact.name in Path(said["report"]).read_text()


def test_sizes_of_adapters_are_those_of_their_papers() -> None:
    from quantkit.plan import AdapterPlan

    shapes = [(8, 16), (16, 8)]
    assert adapter_weights(AdapterPlan(kind="LoRa", r=2), shapes) == 96
    assert adapter_weights(AdapterPlan(kind="DoRa", r=2), shapes) == 120
    assert adapter_weights(AdapterPlan(kind="VeRa", r=2), shapes) == 24 + 2 * 2 + 2 * 32


def test_the_example_can_be_planned(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "Fine-tuning" / "sweep.yaml").read_text()
    text = text.replace("demo/model/SmolLM2-135M-Instruct", str(tiny_model)).replace("demo/data/train.jsonl", str(rows))
    (tmp_path / "sweep.yaml").write_text(text.replace("artifacts/sweep", str(tmp_path / "artifacts")))
    plan = planned(tmp_path / "sweep.yaml")
    assert [step.kind for step in plan.steps] == ["train", *["train", "merge"] * 6]
    assert plan.refused == []
    assert [note.split(":")[0] for note in plan.notes if "the same as QLORA" in note] == [
        f"QLORA, DoRa, seed 1, {policy}" for policy in ("kept", "dequantized")
    ]
    assert plan.excluded == 2
    assert "BNB4BIT (double_quant True), LoRa, seed 1, kept" in [step.label for step in plan.steps]


def test_no_workers_are_refused(write_sweep: Any, quantkit: Any) -> None:
    code, _, err = quantkit("sweep", write_sweep(), "--max-workers", 0)
    assert code == 2
    assert "max_workers is 0; it must be at least 1" in err
