"""Methods that look at weights only keep finished blocks, too: a killed run goes on after them and ends the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit import AdapterPlan, PlanContext, QuantizationPlan, Stage
from quantkit.calibration import QuantizationWork
from quantkit.errors import UsageError
from quantkit.methods import installed_methods
from quantkit.numerics.blockwise import BlockReport

METHODS = {
    "RTN": {"group_size": 32, "symmetric": False},
    "FP8": {},
    "HQQ": {"group_size": 32, "iterations": 2},
    "QuaRot": {"group_size": 32, "rounding": "rtn"},
}


def plan_of(case: str, **options: Any) -> QuantizationPlan:
    context = PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft"))
    return installed_methods().plan(case, METHODS[case] | options, context)


def quantize(plan: QuantizationPlan, base: Path, **work: Any) -> dict[str, torch.Tensor]:
    hf_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(base)
    return installed_methods().quantize_model(plan, model, None, QuantizationWork(**work)).state_dict()


def kill_in_block_2(report: BlockReport) -> None:
    if report.index == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("case", METHODS)
def test_a_killed_run_without_calibration_goes_on_and_ends_the_same(case: str, tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(case)
    whole = quantize(plan, tiny_model)
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tiny_model, folder=tmp_path, report=kill_in_block_2)
    seen: list[BlockReport] = []
    again = quantize(plan, tiny_model, folder=tmp_path, report=seen.append)
    assert [report.resumed for report in seen] == [True, True, False, False]
    assert [report.name for report in seen] == [f"model.layers.{index}" for index in range(4)]
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_blocks_of_other_settings_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    quantize(plan_of("RTN"), tiny_model, folder=tmp_path)
    with pytest.raises(UsageError, match="holds blocks of another run; options, spec differ"):
        quantize(plan_of("RTN", weights_bits=8), tiny_model, folder=tmp_path)
    with pytest.raises(UsageError, match="holds blocks of another run; ignore differ"):
        quantize(plan_of("RTN"), tiny_model, folder=tmp_path, ignore=("model.layers.0.*",))


def test_blocks_of_another_model_are_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    quantize(plan_of("RTN"), tiny_model, folder=tmp_path)
    (tmp_path / "block-0001").rename(tmp_path / "block-0000.away")
    (tmp_path / "block-0000").rename(tmp_path / "block-0001")
    with pytest.raises(UsageError, match=r"the stored model\.layers\.1 has other layers than the model; remove"):
        quantize(plan_of("RTN"), tiny_model, folder=tmp_path)


def test_a_block_that_is_ignored_is_passed_over(tiny_model: Path, tmp_path: Path) -> None:
    seen: list[BlockReport] = []
    kept = quantize(plan_of("RTN"), tiny_model, folder=tmp_path, ignore=("model.layers.1.*",), report=seen.append)
    assert [report.index for report in seen] == [0, 1, 2, 3]
    assert not (tmp_path / "block-0001").exists()
    assert "model.layers.1.mlp.up_proj.weight" in kept
