"""Does a run that was killed between two blocks go on where it was, and end with the weights of one that was not?"""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit import AdapterPlan, PlanContext, Stage
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.methods import installed_methods


@pytest.mark.parametrize(("method", "options"), [("SmoothQuant", {"alpha": "search"}), ("QuaRot", {"group_size": 32})])
def test_a_killed_run_goes_on_and_ends_the_same(method, options, tiny_model, tmp_path):
    hf_logging.disable_progress_bar()
    methods = installed_methods()
    plan = methods.plan(method, options, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))
    rows = torch.randint(3, 500, (4, 24), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tuple(tuple(row.tolist()) for row in rows), "test")
    resumed = []

    def killed(report):
        if report.index == 1:
            raise KeyboardInterrupt

    def run(work):
        model = methods.quantize_model(plan, AutoModelForCausalLM.from_pretrained(tiny_model), calibration, work)
        return model.state_dict()

    whole = run(QuantizationWork())
    with pytest.raises(KeyboardInterrupt):
        run(QuantizationWork(folder=tmp_path / "work", report=killed))
    again = run(QuantizationWork(folder=tmp_path / "work", report=lambda report: resumed.append(report.resumed)))
    assert resumed == [True, True, False, False]
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
