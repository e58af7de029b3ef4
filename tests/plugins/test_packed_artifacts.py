"""An artifact in the GPTQ or AWQ format: saved, detected, loaded and measured without a library for the format."""

from pathlib import Path

import pytest

from quantkit import AdapterPlan, PlanContext, Stage
from quantkit.calibration import Calibration
from quantkit.methods import installed_methods
from quantkit.modeling import ModelSource, load_base, load_source, load_tokenizer
from quantkit.saving import save_artifact
from quantkit.testing import logits
from quantkit_registry.detect import detect
from quantkit_registry.names import ArtifactName, format_name
from quantkit_registry.records import ArtifactRecord, BaseReference

ROWS = Calibration(tuple(tuple(range(start, start + 32)) for start in range(3, 400, 40)), "numbers")


@pytest.mark.parametrize(
    ("method", "options", "tail"),
    [
        ("GPTQ", {"format": "gptq", "group_size": 64}, "GPTQ_w4_g64_gptq_headbf16"),
        ("GPTQ", {"format": "gptq", "group_size": 32, "symmetric": False, "weights_bits": 3}, "GPTQ_w3_g32_asym_gptq_headbf16"),
        ("AWQ", {"format": "awq", "group_size": 64, "n_grid": 2}, "AWQ_w4_g64_asym_awq_headbf16"),
    ],
)
def test_it_comes_back_as_what_it_was(tiny_model: Path, tmp_path: Path, method: str, options: dict, tail: str) -> None:
    methods = installed_methods()
    plan = methods.plan(method, options, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))
    name = format_name(ArtifactName.of(base="Tiny-Llama", dataset=None, adapter=plan.adapter, recipe=plan.spec))
    assert name == f"Tiny-Llama-base_{tail}"
    model = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu", calibration=ROWS)
    record = ArtifactRecord(
        name=name, kind="model", quantization=plan.spec, recipe=plan, base=BaseReference(name_or_path=str(tiny_model))
    )
    save_artifact(tmp_path / name, model=model, tokenizer=load_tokenizer(str(tiny_model)), record=record.to_dict())

    found = detect(tmp_path / name, claims=methods.claims())
    assert (found.method, found.spec, found.format) == (method, plan.spec, options["format"])
    loaded = load_source(ModelSource(**found.source_fields), methods, device="cpu")
    assert float((logits(loaded) - logits(model)).abs().max()) == 0.0


def test_bare_checkpoints_of_these_formats_are_read_as_these_methods() -> None:
    claims = installed_methods().claims()
    assert (claims["gptq"], claims["awq"]) == ("GPTQ", "AWQ")
