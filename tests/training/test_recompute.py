"""Recomputing: loss and gradients stay bit for bit, less is kept, and `selective` computes MLPs alone twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantkit.adapters import attach_adapter
from quantkit.errors import UsageError
from quantkit.plan import AdapterPlan
from quantkit.training.fused_adapters import fused_adapters
from quantkit.training.recompute import mlps, mlps_recomputed, recompute_of
from tests.training.families import family, loss_and_gradients
from tests.training.helpers import adapted, config, equal, run, trained

FAMILIES = ("Llama", "Qwen3", "Gemma 2 with soft caps", "Phi-3", "gpt-oss with sinks", "GPT-2")


def adapters_on(name: str) -> Any:
    """Return a model of a family with adapters on its attention, in training mode."""
    model = family(name, torch.float32)
    return attach_adapter(model, AdapterPlan(kind="LoRa", r=4, lora_alpha=8, target_modules=("attention",)), seed=1).train()


@pytest.mark.parametrize("name", FAMILIES[:4])
@pytest.mark.parametrize("flat", [False, True])
def test_loss_and_gradients_stay_bit_for_bit(name: str, flat: bool) -> None:
    model = adapters_on(name)
    with fused_adapters(model):
        loss, gradients = loss_and_gradients(model, flat=flat)
        with mlps_recomputed(model) as count:
            again, repeated = loss_and_gradients(model, flat=flat)
    assert count == len(mlps(model)) > 0
    assert torch.equal(loss, again)
    assert equal(gradients, repeated)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_mlp_of_each_block_is_found_by_its_width() -> None:
    found = {name: [type(module).__name__ for module in mlps(family(name))] for name in FAMILIES}
    assert found["Llama"] == ["LlamaMLP"] * 3
    assert found["Phi-3"] == ["Phi3MLP"] * 3
    assert found["Gemma 2 with soft caps"] == ["Gemma2MLP"] * 3
    assert found["GPT-2"] == ["GPT2MLP"] * 2


def test_a_model_without_an_mlp_of_its_own_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

        def get_output_embeddings(self) -> None:
            return None

    with mlps_recomputed(Flat()) as count:
        assert count == 0
    assert "recompute selective is off for this model" in " ".join(capsys.readouterr().out.split())


def test_more_recomputing_keeps_less() -> None:
    def kept(model: Any) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Any) -> Any:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            held = model(input_ids=torch.arange(1, 60).unsqueeze(0), use_cache=False)
        del held
        return sum(sizes.values())

    model = adapters_on("Llama")
    with fused_adapters(model):
        nothing = kept(model)
        with mlps_recomputed(model):
            assert kept(model) < nothing


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_a_run_that_recomputes_gives_the_same_weights(
    recompute: Any, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    once, twice = adapted(tiny_model), adapted(tiny_model)
    run(once, data, config(max_steps=2), tokenizer, tmp_path / "once")
    result = run(twice, data, config(max_steps=2, recompute=recompute), tokenizer, tmp_path / "twice")
    assert result.recompute == recompute
    assert equal(trained(once), trained(twice))
    assert not any("forward" in vars(module) for module in twice.modules())


def test_gradient_checkpointing_means_full_and_contradictions_are_refused() -> None:
    assert recompute_of(config(gradient_checkpointing=True)) == "full"
    assert recompute_of(config(recompute="selective")) == "selective"
    assert recompute_of(config()) == "none"
    with pytest.raises(UsageError, match="recompute is selective and gradient_checkpointing is on, which means full"):
        config(recompute="selective", gradient_checkpointing=True)
