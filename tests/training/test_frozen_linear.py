"""Adapters computed in place: loss and gradients are exact, files and names stay PEFT's, what does not fit is left alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from quantkit.layers import linear_layers
from quantkit.methods import installed_methods
from quantkit.training import fused_adapters as module_under_test
from quantkit.training.checkpoints import FACTS
from quantkit.training.frozen_linear import _copies, as_computed, frozen_weight
from quantkit.training.fused_adapters import fused_adapters
from quantkit.training.precision import training_dtypes
from tests.bench import load, plan_for
from tests.training.adapters import KINDS, apart, dense_float64, on_a_batch, with_adapters
from tests.training.families import family, loss_and_gradients
from tests.training.helpers import adapted, config, equal, run, trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Qwen3", "Gemma 2 with soft caps", "Phi-3"])
def test_loss_and_gradients_are_those_of_float64(name: str, kind: str) -> None:
    expected_loss, expected = loss_and_gradients(with_adapters(family(name), kind).double(), flat=True)
    model = with_adapters(family(name), kind).float()
    with fused_adapters(model) as count:
        loss, gradients = loss_and_gradients(model, flat=True)
        assert count == len(linear_layers(model))
    assert abs(float(loss - expected_loss)) < 1e-6 * abs(float(expected_loss))
    assert apart(gradients, expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["QLORA", "INT8", "HQQ"])
def test_on_a_quantized_base_gradients_are_those_of_float64_on_its_dequantized_weights(
    method: str, kind: str, tiny_model: Path
) -> None:
    plan = plan_for(method, "LoRa")
    model = with_adapters(installed_methods().prepare_model(plan, load(tiny_model, plan)), kind)
    expected_loss, expected = on_a_batch(dense_float64(tiny_model, model, kind))
    with fused_adapters(model) as count:
        assert count == len(linear_layers(model))
        loss, gradients = on_a_batch(model)
    assert abs(float(loss - expected_loss)) < 1e-6 * float(expected_loss)
    assert apart(gradients, expected) < 1e-5


def test_layers_that_share_an_input_share_its_copy_in_autocast_s_type_for_as_long_as_the_input_is_there() -> None:
    x = torch.randn(3, 4)
    assert as_computed(x) is x
    before = len(_copies)
    with torch.autocast("cpu", torch.bfloat16):
        copy = as_computed(x)
        assert as_computed(x) is copy
        assert as_computed(copy) is copy
        x.add_(1)
        assert torch.equal(as_computed(x), x.bfloat16())
    assert len(_copies) == before + 1
    del x
    assert len(_copies) == before


def test_a_base_loaded_in_bfloat16_is_exact_where_bitsandbytes_rounds_its_backward_pass(tiny_model: Path) -> None:
    plan = plan_for("QLORA", dtype="bfloat16")
    prepared = installed_methods().prepare_model(plan, load(tiny_model, plan))
    model = with_adapters(prepared, target_modules=("attention",))
    with training_dtypes(model, "float32"):
        theirs = on_a_batch(model)[1]
        expected = on_a_batch(dense_float64(tiny_model, model, "LoRA", target_modules=("attention",)))[1]
        with fused_adapters(model):
            ours = on_a_batch(model)[1]
    assert apart(ours, expected) < 1e-5
    assert apart(theirs, expected) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["NoQuant", "QLORA"])
def test_a_base_in_bfloat16_passes_the_trial_under_autocast(method: str, kind: str, tiny_model: Path) -> None:
    plan = plan_for(method, dtype="bfloat16")
    model = with_adapters(installed_methods().prepare_model(plan, load(tiny_model, plan)), kind)
    with training_dtypes(model, "bfloat16"), fused_adapters(model, arithmetic="bfloat16") as count:
        assert count == len(linear_layers(model))


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_gradients_are_as_near_to_float64_as_peft_s(kind: str) -> None:
    exact = loss_and_gradients(with_adapters(family("Llama"), kind).double(), flat=False)[1]
    model = with_adapters(family("Llama"), kind).float()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = loss_and_gradients(model, flat=False)[1]
        with fused_adapters(model):
            ours = loss_and_gradients(model, flat=False)[1]
    assert {item.dtype for item in ours.values()} == {torch.float32}
    assert apart(ours, exact) < 1.5 * apart(theirs, exact)


def test_everything_is_as_before_afterwards_and_without_gradients_within() -> None:
    model = with_adapters(family("Llama")).float()
    names, before, ids = list(model.state_dict()), trained(model), torch.arange(1, 20).unsqueeze(0)
    with torch.no_grad():
        expected = model(ids).logits
        with fused_adapters(model):
            assert torch.equal(model(ids).logits, expected)
            with model.disable_adapter():
                assert not torch.equal(model(ids).logits, expected)
            assert list(model.state_dict()) == names
    assert equal(trained(model), before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_adapters_switched_off_while_training_change_nothing() -> None:
    model = with_adapters(family("Llama")).float()
    with fused_adapters(model), model.disable_adapter():
        without = model(torch.arange(1, 20).unsqueeze(0)).logits
    with model.disable_adapter():
        assert torch.equal(model(torch.arange(1, 20).unsqueeze(0)).logits, without)


def test_a_lever_that_is_off_touches_nothing() -> None:
    model = with_adapters(family("Llama")).float()
    with fused_adapters(model, wanted=False) as count:
        assert count == 0
        assert not any("forward" in vars(module) for module in model.modules())


def test_what_does_not_fit_stays_with_peft_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = with_adapters(family("Llama"), lora_dropout=0.1)
    with fused_adapters(model) as count:
        assert count == 0
    assert "fused_adapters is off for 21 of 21 adapters: 21 for dropout" in " ".join(capsys.readouterr().out.split())

    model = with_adapters(family("GPT-2"))
    with fused_adapters(model) as count:
        assert count == 0
    assert "8 for a base of type Conv1D" in " ".join(capsys.readouterr().out.split())

    model = with_adapters(family("Llama"))
    first = next(item for item in model.modules() if hasattr(item, "base_layer"))
    first.base_layer.weight.requires_grad_()
    with fused_adapters(model) as count:
        assert count == 20
    assert "1 for a base that is trained too" in " ".join(capsys.readouterr().out.split())


def test_an_adapter_with_hooks_on_its_parts_stays_with_peft(capsys: pytest.CaptureFixture[str]) -> None:
    model = with_adapters(family("Llama"))
    first = next(item for item in model.modules() if hasattr(item, "base_layer"))
    first.lora_B["default"].register_forward_hook(lambda *_: None)
    with fused_adapters(model) as count:
        assert count == 20
    assert "1 for hooks on an adapter's parts" in " ".join(capsys.readouterr().out.split())


def test_arithmetic_that_is_not_peft_s_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = with_adapters(family("Llama"))
    honest = module_under_test.Site
    monkeypatch.setattr(module_under_test, "Site", lambda layer, call, scale=1.0, *more: honest(layer, call, 2 * scale, *more))
    with fused_adapters(model) as count:
        assert count == 0
    assert "21 for a result other than PEFT's (relative difference" in " ".join(capsys.readouterr().out.split())


def test_less_is_kept_for_the_backward_pass_than_peft_keeps() -> None:
    def kept(model: Any) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Any) -> Any:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            held = model(torch.arange(1, 60).unsqueeze(0), use_cache=False)
        del held
        return sum(sizes.values())

    for kind in ("DoRA", "VeRA"):
        model = with_adapters(family("Llama"), kind).float()
        theirs = kept(model)
        with fused_adapters(model):
            assert kept(model) < theirs


def test_a_resumed_run_ends_in_the_weights_and_files_of_one_that_was_never_interrupted(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    whole, again = adapted(tiny_model, "DoRa"), adapted(tiny_model, "DoRa")
    settings = config(save_steps=3)
    run(whole, data, settings, tokenizer, tmp_path)
    assert (tmp_path / "checkpoint-3" / FACTS).exists()
    resumed = settings.with_changes(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    result = run(again, data, resumed, tokenizer, tmp_path)
    assert result.resumed_from == 3
    assert equal(trained(whole), trained(again))


@pytest.mark.parametrize("kind", ["LoRa", "DoRa", "VeRa"])
def test_a_run_without_the_lever_ends_where_one_with_it_does(
    kind: Any, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    settings = config(max_steps=3)
    with_it, without = (
        run(adapted(tiny_model, kind), data, settings.with_changes(fused_adapters=on), tokenizer, tmp_path / str(on))
        for on in (True, False)
    )
    assert with_it.losses == pytest.approx(without.losses, rel=1e-5)
    assert with_it.fused_adapters > 0
    assert without.fused_adapters == 0


@pytest.mark.parametrize(("kind", "arithmetic"), [("LoRa", "bfloat16"), ("DoRa", "float32"), ("DoRa", "bfloat16")])
def test_blocks_that_are_computed_again_end_where_kept_ones_do(  # noqa: PLR0917
    kind: Any, arithmetic: Any, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    settings = config(max_steps=2, compute_dtype=arithmetic)
    kept, again = (
        run(adapted(tiny_model, kind), data, settings.with_changes(recompute=recompute), tokenizer, tmp_path / recompute)
        for recompute in ("none", "full")
    )
    assert again.losses == pytest.approx(kept.losses, rel=1e-5)


def test_weights_asked_for_before_the_first_step_are_those_of_float32_arithmetic() -> None:
    """DoRA's norms are; a layer that rounds to bfloat16 until it has seen an input would give others after a resume."""
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 32, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    model = torch.nn.Sequential(layer.to("cpu"))
    rounded = frozen_weight(model[0], torch.float32)
    with training_dtypes(model, "float32"):
        exact = frozen_weight(model[0], torch.float32)
        model[0](torch.ones(1, 64))
        assert torch.equal(frozen_weight(model[0], torch.float32), exact)
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)
    assert model[0].compute_dtype == torch.bfloat16
