"""What all runs of a sweep share is refused once, before the first starts; what only some have costs only them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.methods import installed_methods
from quantkit_tools import stages
from quantkit_tools.sweep_planning import Step
from quantkit_tools.sweep_shared import _take_out, refuse_hopeless
from tests.tools.sweeps import journal_of, planned

KINDS = {"peft_config": ["LoRa", "DoRa"], "seed": [1, 2]}


@pytest.fixture
def silent(tmp_path: Path) -> str:
    """Rows that would teach nothing: their answers are empty."""
    path = tmp_path / "silent.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": ""}) + "\n" for n in range(8)))
    return str(path)


def refused(quantkit: Any, *words: object) -> str:
    code, _, err = quantkit("sweep", *words)
    assert code == 2, err
    return str(err).splitlines()[-1]


@pytest.mark.parametrize("how", [[], ["--dry-run"], ["--emit", "commands"]])
def test_rows_that_teach_nothing_are_refused_once(
    how: list[str], write_sweep: Any, silent: str, quantkit: Any, tmp_path: Path
) -> None:
    said = refused(quantkit, write_sweep({"dataset_name": silent}, vary=KINDS), *how)
    assert "small.json: no run can start: dataset_name " in said
    assert said.count(silent) <= 2
    assert not (tmp_path / "artifacts").exists()


def test_each_setting_is_named_with_what_is_wrong_with_it(
    write_sweep: Any, silent: str, tiny_model: Path, quantkit: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_model / "config.json", bare)
    base = {"dataset_name": silent, "output_dir": str(tmp_path / "file" / "artifacts")}
    said = refused(quantkit, write_sweep(base, vary={"model_name_or_path": [str(tiny_model), str(bare)]}))
    assert f"output_dir {tmp_path}/file/artifacts: nothing can be written there; dataset_name {silent}: " in said
    assert said.endswith(f"model_name_or_path {bare}: {bare}: no *.safetensors weights in it")


def test_a_model_that_is_not_there_is_said_once(write_sweep: Any, quantkit: Any) -> None:
    said = refused(quantkit, write_sweep({"model_name_or_path": "./nowhere"}, vary=KINDS))
    assert said.count("nowhere") == 1


def test_runs_that_differ_go_on_and_what_they_share_is_read_once(
    write_sweep: Any, silent: str, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, own = [], stages.prepare_rows
    monkeypatch.setattr(stages, "prepare_rows", lambda run, *more: read.append(run.name) or own(run, *more))
    vary = KINDS | {"dataset_name": [silent, f"openmath:{rows}"], "merge": ["kept", "dequantized"]}
    plan = planned(write_sweep(vary=vary))
    before = len(plan.steps)
    refuse_hopeless(plan, journal_of(plan), installed_methods())
    assert len(read) == 2
    assert {step.config.dataset_name for step in plan.steps} == {f"openmath:{rows}"}
    assert len(plan.steps) == len(plan.refused) == before / 2
    assert all(item.reason.startswith(f"dataset_name {silent}: ") for item in plan.refused)


def test_where_the_first_on_a_base_is_taken_out_the_next_makes_it(write_sweep: Any) -> None:
    gptq = {"quant_method": "GPTQ", "group_size": 64}
    plan = planned(write_sweep(vary={"quant_method": [gptq], "peft_config": ["LoRa", "DoRa", "VeRa"]}))
    first, *others = plan.steps
    assert [step.after for step in others] == [first.name, first.name]
    _take_out(plan, {first.name: "a fault"})
    left: list[Step] = plan.steps
    assert [(step.name, step.after) for step in left] == [(others[0].name, None), (others[1].name, others[0].name)]
