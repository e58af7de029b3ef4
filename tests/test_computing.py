"""A machine computes everything that is evaluated in one data type, and no weight is rounded for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from quantkit import AdapterPlan, PlanContext, Stage, computing
from quantkit.errors import UsageError
from quantkit.measure import measure_model
from quantkit.methods import installed_methods
from quantkit.modeling import ModelSource, load_base, load_source
from quantkit.spec import QuantizationSpec
from quantkit.testing import logits


@pytest.fixture(params=["bfloat16", "float32"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What this machine is said to be fast in."""
    hf_logging.disable_progress_bar()
    has_units = request.param == "bfloat16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return str(request.param)


def dense(tiny_model: Path, dtype: str, *, round_to: str = "bfloat16") -> Any:
    """The tiny model in a data type; its weights are numbers of another one."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, round_to))
    if round_to == "float32":
        model.model.layers[0].mlp.up_proj.weight.data *= 1.001
    for item in model.parameters():  # buffers stay as they are loaded
        item.data = item.data.to(getattr(torch, dtype))
    return model.eval()


def test_the_data_type_is_that_of_the_device(machine: str) -> None:
    assert computing.device_dtype("cpu") == machine


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_a_model_computes_as_the_machine_does_whatever_it_is_stored_in(machine: str, stored: str, tiny_model: Path) -> None:
    model = computing.compute_in(dense(tiny_model, stored), "auto", "cpu")
    assert {str(item.dtype) for item in model.parameters()} == {f"torch.{machine}"}
    assert model.config.dtype == getattr(torch, machine)
    assert computing.why(model, "auto", "cpu") == computing.OF_DEVICE
    assert torch.equal(logits(model), logits(dense(tiny_model, machine)))


@pytest.mark.parametrize(("stored", "numbers"), [("float32", "float32"), ("float16", "float32")])
def test_weights_that_would_be_rounded_are_computed_in_float32(
    stored: str, numbers: str, machine: str, tiny_model: Path
) -> None:
    model = dense(tiny_model, stored, round_to=numbers)
    before = [item.detach().float().clone() for item in model.parameters()]
    model = computing.compute_in(model, "auto", "cpu")
    assert model.dtype is torch.float32
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    expected = computing.OF_DEVICE if machine == "float32" else computing.OF_WEIGHTS
    assert computing.why(model, "auto", "cpu") == expected


def test_a_data_type_that_is_asked_for_wins(machine: str, tiny_model: Path) -> None:
    model = computing.compute_in(dense(tiny_model, "float32", round_to="float32"), "bfloat16", "cpu")
    assert model.dtype is torch.bfloat16
    assert computing.why(model, "bfloat16", "cpu") == computing.ASKED
    with pytest.raises(UsageError, match="--dtype is 'int8'; use auto, bfloat16, float16, float32"):
        computing.check_dtype("int8")


def test_parameters_that_an_architecture_keeps_in_float32_stay_so(machine: str, tiny_model: Path) -> None:
    model = dense(tiny_model, "bfloat16")
    model.model.norm.float()
    assert computing.compute_in(model, "bfloat16", "cpu").model.norm.weight.dtype is torch.float32


def test_float32_for_which_there_is_no_memory_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    from types import SimpleNamespace

    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1024))
    model = dense(tiny_model, "bfloat16")
    with pytest.raises(UsageError, match=r"computing in float32 takes .* MiB more .* 1.0 KiB are free; --dtype bfloat16"):
        computing.compute_in(model, "float32", "cpu")


@pytest.mark.parametrize(
    ("method", "options"),
    [("BNB4BIT", {}), ("RTN", {"group_size": 32}), ("DynamicINT8", {}), ("FP8", {"activations_bits": 8})],
)
def test_a_quantized_folder_keeps_its_codes_and_computes_as_the_dense_model_does(
    method: str, options: dict[str, Any], machine: str, tiny_model: Path, tmp_path: Path
) -> None:
    methods = installed_methods()
    plan = methods.plan(method, options, PlanContext(stage=Stage.TRAINED, adapter=AdapterPlan(kind="NoPeft")))
    model = load_base(str(tiny_model), plan=plan, methods=methods, device="cpu")
    model.save_pretrained(tmp_path)
    source = ModelSource(path=str(tmp_path), spec=plan.spec)
    loaded = load_source(source, methods, device="cpu", compute_dtype="auto")
    assert str(loaded.dtype) == f"torch.{machine}"
    kept = plan.spec.with_changes(lm_head_dtype=machine)
    assert measure_model(loaded, method=method) == QuantizationSpec.from_dict(kept.to_dict())
    stored = logits(load_source(source, methods, device="cpu"))
    assert float((logits(loaded) - stored).abs().max()) == 0 if machine == "bfloat16" else bool(logits(loaded).isfinite().all())


@pytest.mark.parametrize("trained_in", ["bfloat16", "float32"])
def test_the_base_of_an_adapter_computes_as_the_machine_does_whatever_training_computed_in(
    trained_in: str, machine: str, tiny_model: Path
) -> None:
    methods = installed_methods()
    plan = methods.plan("QLORA", {}, PlanContext(adapter=AdapterPlan(r=4), compute_dtype=trained_in))
    source = ModelSource(path=str(tiny_model), plan=plan, spec=plan.spec)
    model = load_source(source, methods, device="cpu", compute_dtype="auto")
    layer = model.model.layers[0].mlp.up_proj
    assert (str(model.dtype), str(layer.compute_dtype)) == (f"torch.{machine}", f"torch.{machine}")
    codes = load_source(source, methods, device="cpu").model.layers[0].mlp.up_proj.weight
    assert torch.equal(layer.weight.data, codes.data)
