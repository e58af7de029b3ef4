"""Weights whose layers round their inputs, and floating-point ones: saved as artifacts, recognised, loaded, and the same."""

import json
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as hf_logging

from quantkit import AdapterPlan, PlanContext, Stage
from quantkit.errors import UsageError
from quantkit.methods import installed_methods
from quantkit.modeling import ModelSource, load_base, load_source, load_tokenizer
from quantkit.saving import save_artifact
from quantkit.testing import logits, reload_logits
from quantkit_registry.detect import detect
from quantkit_registry.names import ArtifactName, format_name
from quantkit_registry.records import ArtifactRecord, BaseReference

CASES = {
    "FP8 weights": ("FP8", {}, "float-quantized"),
    "FP8 weights and activations": ("FP8", {"activations_bits": 8}, "float-quantized"),
    "RTN W8A8": ("RTN", {"weights_bits": 8, "group_size": -1, "activations_bits": 8}, "int-quantized"),
    "QuaRot W4A8": ("QuaRot", {"rounding": "rtn", "group_size": 32, "activations_bits": 8}, "pack-quantized"),
    "QuaRot W8A8": (
        "QuaRot",
        {"rounding": "rtn", "weights_bits": 8, "group_size": -1, "activations_bits": 8},
        "int-quantized",
    ),
}


def test_rounded_activations_want_weights_without_zero_points():
    with pytest.raises(UsageError, match="activations_bits is 8 and symmetric false; transformers loads weights with zero"):
        installed_methods().plan("RTN", {"activations_bits": 8, "symmetric": False}, PlanContext(stage=Stage.TRAINED))


@pytest.mark.parametrize("case", CASES)
def test_an_artifact_is_detected_and_loads_with_the_logits_it_was_saved_with(case: str, tiny_model: Path, tmp_path: Path):
    hf_logging.disable_progress_bar()
    method, options, layout = CASES[case]
    methods = installed_methods()
    plan = methods.plan(method, options, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))
    model = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu")
    before = logits(model)
    base = BaseReference(name_or_path=str(tiny_model))
    name = format_name(ArtifactName.of(base="Tiny-Llama", dataset=None, adapter=plan.adapter, recipe=plan.spec))
    record = ArtifactRecord(name=name, kind="model", quantization=plan.spec, recipe=plan, base=base).to_dict()
    save_artifact(tmp_path / "artifact", model=model, tokenizer=load_tokenizer(str(tiny_model)), record=record)
    assert json.loads((tmp_path / "artifact" / "config.json").read_text())["quantization_config"]["format"] == layout
    found = detect(tmp_path / "artifact", claims=methods.claims())
    assert (found.method, found.spec) == (method, plan.spec)
    assert torch.equal(logits(load_source(ModelSource(**found.source_fields), methods, device="cpu")), before)
    assert torch.equal(reload_logits(tmp_path / "artifact", tmp_path / "logits"), before)
