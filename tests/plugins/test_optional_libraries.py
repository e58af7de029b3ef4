"""Methods of libraries that need not be there: listed with what is missing and refused where it is, right where they are."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit import AdapterPlan, PlanContext, QuantizationPlan, Stage
from quantkit.backends import LayerFacts, layer_facts
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.errors import UsageError, VerificationError
from quantkit.methods import installed_methods, require_usable
from quantkit.modeling import ModelSource, load_base, load_source, load_tokenizer
from quantkit.saving import save_artifact
from quantkit.testing import logits
from quantkit_registry.detect import detect
from quantkit_registry.names import ArtifactName, format_name
from quantkit_registry.records import ArtifactRecord, BaseReference
from quantkit_tools.methods import describe_method

LAYER = "model.layers.1.mlp.up_proj"
ROWS = Calibration(tuple(tuple(range(start, start + 32)) for start in range(3, 400, 40)), "numbers")


def plan_of(method: str, **options: Any) -> QuantizationPlan:
    return installed_methods().plan(method, options, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))


@pytest.mark.parametrize(
    ("method", "package", "need"),
    [("TorchAO", "torchao", "torchao>=0.18"), ("AutoRound", "auto-round", "auto-round>=0.16.1,<0.17")],
)
def test_without_its_library_a_method_is_listed_as_unusable_and_planned_all_the_same(
    monkeypatch: pytest.MonkeyPatch, method: str, package: str, need: str
) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr("quantkit.methods.version", version)
    entry = describe_method(installed_methods(), method, ("cpu",))
    assert (entry["usable"], entry["missing"]) == (False, [f"{need} (not installed)"])
    assert entry["why_not"] == f"{method} needs {need} (not installed); install it with pip"
    with pytest.raises(UsageError, match=f"{method} needs {package}"):
        require_usable(installed_methods(), [method], "cpu")
    assert plan_of(method).spec.weights_bits in (4, 8)


@pytest.mark.parametrize("options", [{}, {"weights_bits": 4, "group_size": 32}, {"group_size": 64}])
def test_a_torchao_artifact_is_detected_and_comes_back_as_what_it_was(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    pytest.importorskip("torchao")
    hf_logging.disable_progress_bar()
    methods, plan = installed_methods(), plan_of("TorchAO", **options)
    work = QuantizationWork(ignore=("model.layers.0.mlp.*",))
    model = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu", work=work)
    name = format_name(ArtifactName.of(base="Tiny-Llama", dataset=None, adapter=plan.adapter, recipe=plan.spec))
    base = BaseReference(name_or_path=str(tiny_model))
    record = ArtifactRecord(name=name, kind="model", quantization=plan.spec, recipe=plan, base=base).to_dict()
    save_artifact(tmp_path / name, model=model, tokenizer=load_tokenizer(str(tiny_model)), record=record)
    found = detect(tmp_path / name, claims=methods.claims())
    assert (found.method, found.spec, found.format) == ("TorchAO", plan.spec, "torchao")
    again = load_source(ModelSource(**found.source_fields), methods, device="cpu")
    assert torch.equal(logits(again), logits(model))
    facts = LayerFacts(plan.spec.weights_bits, plan.spec.weights_dtype, "torchao", plan.spec.group_size, True)
    assert layer_facts(again.get_submodule(LAYER)) == facts
    assert type(again.get_submodule("model.layers.0.mlp.up_proj").weight) is torch.nn.Parameter


def test_a_torchao_folder_carries_adapters_in_another_data_type_than_it_was_stored_in(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    methods, plan = installed_methods(), plan_of("TorchAO", weights_bits=4, group_size=32)
    model = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu")
    model.save_pretrained(tmp_path)
    float32 = plan.with_changes(compute_dtype="float32")
    stored = load_base(str(tmp_path), plan=float32, methods=methods, device="cpu")
    assert float((logits(stored) - logits(model)).abs().mean()) < 0.02


def test_what_torchao_cannot_group_and_what_is_no_number_is_refused_by_name(tiny_model: Path) -> None:
    pytest.importorskip("torchao")
    methods = installed_methods()
    with pytest.raises(UsageError, match=r"group_size 48 does not divide the 128 input columns of model\.layers\.0"):
        load_base(str(tiny_model), plan=plan_of("TorchAO", group_size=48), methods=methods, device="cpu")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_submodule(LAYER).weight.data[0, 0] = torch.nan
    with pytest.raises(UsageError, match=f"{LAYER} holds weights that are not finite"):
        methods.quantize_model(plan_of("TorchAO"), model)
    with pytest.raises(UsageError, match="group_size is 0; it must be a number of columns, or -1"):
        plan_of("TorchAO", group_size=0)


def test_torchao_layers_that_round_activations_or_share_scales_among_rows_are_not_taken_for_ours() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    layer = torch.nn.Linear(64, 32, bias=False)
    quantization.quantize_(layer, quantization.Int8DynamicActivationInt8WeightConfig())
    assert layer_facts(layer) == LayerFacts(8, "int8", "torchao", -1, True, activations_bits=8)
    other = torch.nn.Linear(64, 32, bias=False)
    quantization.quantize_(other, quantization.Int8WeightOnlyConfig(granularity=quantization.PerTensor()))
    with pytest.raises(VerificationError, match="shares a scale among 32 rows"):
        layer_facts(other)


def test_storing_no_torchao_layer_is_refused(tiny_model: Path) -> None:
    pytest.importorskip("torchao")
    from quantkit.backends.torchao import store_torchao

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(UsageError, match="no layer was quantized, so there is nothing to store in the torchao format"):
        store_torchao(model, {}, plan_of("TorchAO").spec)


@pytest.mark.parametrize("symmetric", [True, False])
def test_autoround_lowers_the_error_of_rounding_to_nearest_and_repeats_itself(tiny_model: Path, symmetric: bool) -> None:
    pytest.importorskip("auto_round")
    errors: dict[int, list[float]] = {}

    def learnt(iterations: int) -> torch.Tensor:
        settings = {
            "weights_bits": 3,
            "group_size": 32,
            "symmetric": symmetric,
            "iterations": iterations,
            "rounding_learning_rate": 0.02,
        }
        plan, seen = plan_of("AutoRound", **settings), errors.setdefault(iterations, [])
        work = QuantizationWork(report=lambda report: seen.append(report.output_error or 0.0))
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        return logits(installed_methods().quantize_model(plan, model, ROWS, work))

    assert torch.equal(learnt(20), learnt(20))
    learnt(1)
    assert errors[20][0] < 0.9 * errors[1][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": 0}, "iterations is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"rounding_learning_rate": 2.0}, "rounding_learning_rate is 2.0; it must be above 0 and at most 1"),
        ({"group_size": 0}, "group_size is 0; it must be a number of columns, or -1"),
    ],
)
def test_settings_of_autoround_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan_of("AutoRound", **options)
