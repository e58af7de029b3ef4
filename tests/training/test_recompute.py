"""Recomputing: loss and gradients stay bit for bit, whichever blocks; less is kept; `selective` computes MLPs alone twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantkit.adapters import attach_adapter
from quantkit.errors import UsageError
from quantkit.plan import AdapterPlan
from quantkit.training.fused_adapters import fused_adapters
from quantkit.training.recompute import mlps, recompute_of, recomputed
from tests.training.families import family, loss_and_gradients
from tests.training.helpers import adapted, config, equal, run, trained

FAMILIES = ("Llama", "Qwen3", "Gemma 2 with soft caps", "Phi-3", "GPT-2", "gpt-oss with sinks")
MIXED = "full:1,selective:1"


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
        for wanted in ("selective", MIXED, "full:2", "full"):
            with recomputed(model, wanted) as actual:
                again, repeated = loss_and_gradients(model, flat=flat)
            assert actual == wanted
            assert torch.equal(loss, again)
            assert equal(gradients, repeated)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_mlp_of_each_block_is_found_by_its_width_outside_of_attention() -> None:
    found = {name: [type(module).__name__ for module in mlps(family(name))] for name in FAMILIES}
    assert found["Llama"] == ["LlamaMLP"] * 3
    assert found["Phi-3"] == ["Phi3MLP"] * 3
    assert found["Gemma 2 with soft caps"] == ["Gemma2MLP"] * 3
    assert found["GPT-2"] == ["GPT2MLP"] * 2
    assert set(found["gpt-oss with sinks"]) == {"NoneType"}  # its experts are no linear layers


class Flat(nn.Module):
    """A model whose blocks are one layer each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        if blocks:
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(blocks)])

    def get_output_embeddings(self) -> None:
        return None


@pytest.mark.parametrize(
    ("blocks", "wanted", "actual", "reason"),
    [
        (3, "selective", "none", "recompute selective is off for this model: its decoder blocks have no module for the MLP"),
        (3, "full:1,selective:1", "full:1", "recompute selective is off for this model"),
        (0, "full", "none", "recompute full is off for this model: it has no list of decoder blocks"),
    ],
)
def test_what_a_model_has_no_modules_for_is_told_in_one_line(
    blocks: int, wanted: str, actual: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with recomputed(Flat(blocks), wanted) as found:
        assert found == actual
    assert reason in " ".join(capsys.readouterr().out.split())
    with recomputed(Flat(blocks), wanted, notice=False):
        assert capsys.readouterr().out == ""


def test_more_recomputing_keeps_less() -> None:
    def kept(model: Any, wanted: str) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Any) -> Any:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with recomputed(model, wanted), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            held = model(input_ids=torch.arange(1, 60).unsqueeze(0), use_cache=False)
        del held
        return sum(sizes.values())

    model = adapters_on("Llama")
    with fused_adapters(model):
        found = [kept(model, wanted) for wanted in ("none", "selective:1", "full:1", "selective", MIXED, "full:2", "full")]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("recompute", ["selective", "full", MIXED])
def test_a_run_that_recomputes_gives_the_same_weights(
    recompute: str, tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    once, twice = adapted(tiny_model), adapted(tiny_model)
    run(once, data, config(max_steps=2), tokenizer, tmp_path / "once")
    result = run(twice, data, config(max_steps=2, recompute=recompute), tokenizer, tmp_path / "twice")
    assert result.recompute == recompute
    assert equal(trained(once), trained(twice))
    assert not any("forward" in vars(module) for module in twice.modules())


def test_a_resumed_run_computes_again_what_its_checkpoint_says_unless_it_is_told(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    once, twice = adapted(tiny_model), adapted(tiny_model)
    settings = config(max_steps=3, save_steps=2)
    run(once, data, settings, tokenizer, tmp_path / "once")
    run(twice, data, settings.with_changes(recompute=MIXED), tokenizer, tmp_path / "twice")
    on = settings.with_changes(resume_from_checkpoint=str(tmp_path / "twice" / "checkpoint-2"))
    for asked, done in (("auto", MIXED), ("none", "none")):
        again = adapted(tiny_model)
        result = run(again, data, on.with_changes(recompute=asked), tokenizer, tmp_path / "twice")
        assert (result.resumed_from, result.recompute) == (2, done)
        assert equal(trained(once), trained(again))


def test_a_run_that_names_more_blocks_than_there_are_is_refused(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="recompute full:40 names 40 decoder blocks, the model has 4; name fewer, or say full"):
        run(adapted(tiny_model), data, config(recompute="full:40"), tokenizer, tmp_path)


def test_gradient_checkpointing_means_full_and_contradictions_are_refused() -> None:
    assert recompute_of(config(gradient_checkpointing=True)) == "full"
    assert recompute_of(config(recompute="selective"), "full:2") == "selective"
    assert recompute_of(config(), "full:2") == "full:2"
    assert recompute_of(config()) == "none"
    for wanted in ("selective", "full:3"):
        with pytest.raises(UsageError, match=f"recompute is {wanted} and gradient_checkpointing is on, which means full"):
            config(recompute=wanted, gradient_checkpointing=True)


@pytest.mark.parametrize("text", ["", "half", "full:", "full:0", "full:-1", "full:2,full:3", "none:2", "full,selective:2"])
def test_what_says_nothing_of_blocks_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="it must be auto, none, selective, full, or numbers of decoder blocks: full:12"):
        config(recompute=text)


def test_numbers_of_blocks_are_written_in_one_way() -> None:
    assert config().recompute == "auto"
    assert config(recompute=" selective:3 ,full:2").recompute == "full:2,selective:3"
