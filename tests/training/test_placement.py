"""One model on several devices of one process: what is refused, and that hooks of accelerate change no result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model

from quantkit.adapters import attach_adapter
from quantkit.errors import UsageError
from quantkit.fidelity import compare_logits, probe_logits
from quantkit.merging import fold_adapters
from quantkit.methods import installed_methods
from quantkit.modeling import load_base
from quantkit.placement import check_placed, check_placement, check_splitting, placement
from quantkit.plan import AdapterPlan
from tests.bench import plan_for, token_batch
from tests.training.helpers import adapted, config, run, trained

BLOCKS = {f"model.layers.{number}": "cpu" for number in range(4)}
MAP = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu", **BLOCKS}


def spread(folder: Path) -> Any:
    """Return the tiny model with adapters, its modules sent to their devices by accelerate's hooks, all to the CPU."""
    plan = plan_for("NoQuant")
    base = load_base(str(folder), plan=plan, methods=installed_methods(), device="cpu", device_map=MAP)
    base = dispatch_model(base.float(), MAP, force_hooks=True)
    return attach_adapter(base, AdapterPlan(kind="LoRa", r=4, lora_alpha=8), seed=1)


def test_a_model_with_hooks_trains_as_one_without(
    tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(max_steps=3, device_map=MAP, recompute="selective", save_steps=2)
    model, plain = spread(tiny_model), adapted(tiny_model)
    result = run(model, data, settings, tokenizer, tmp_path / "hooks")
    said = " ".join(capsys.readouterr().out.split())
    assert "fused_adapters is off for 28 of 28 adapters: 28 for a forward pass of another library (device_map)" in said
    assert result.recompute == "selective"
    without = settings.with_changes(device_map=None, recompute="none", fused_adapters=False)
    expected = run(plain, data, without, tokenizer, tmp_path / "plain")
    assert result.losses == expected.losses
    assert result.padding_free
    assert result.prefix_sharing
    for name, weight in trained(plain).items():
        torch.testing.assert_close(trained(model)[name], weight, rtol=0, atol=0)

    again = spread(tiny_model)
    on = settings.with_changes(resume_from_checkpoint=str(tmp_path / "hooks" / "checkpoint-2"))
    resumed = run(again, data, on, tokenizer, tmp_path / "hooks")
    assert resumed.resumed_from == 2
    assert resumed.losses == expected.losses

    ids = [row.tolist() for row in token_batch()]
    before = probe_logits(model, ids)
    assert compare_logits(before, probe_logits(fold_adapters(model), ids)).mean_kl < 1e-6


def test_words_mean_one_device_where_there_is_one_and_modules_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement("auto", "cpu") == placement(None, "cpu") == {"": "cpu"}
    assert placement(MAP, "cpu") == MAP
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert placement("balanced", "cuda") == "balanced"
    assert placement(None, "cuda") == {"": "cuda"}


@pytest.mark.parametrize(
    ("given", "found"),
    [('{"model": 0, "lm_head": "cuda:1"}', {"model": 0, "lm_head": "cuda:1"}), ("auto", "auto"), ({"": 0}, {"": 0})],
)
def test_a_map_is_a_word_a_mapping_or_a_json_object(given: Any, found: Any) -> None:
    settings = config(device_map=given)
    assert settings.device_map == found
    assert type(settings)(**settings.to_dict()) == settings


@pytest.mark.parametrize(("given", "text"), [("everywhere", "it must be auto, balanced"), ("{x}", "which is no JSON object")])
def test_other_maps_are_refused(given: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        config(device_map=given)


def test_a_map_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    check_placement(config(), "cuda", quantized=True)
    check_placement(config(device_map="auto"), "cuda", quantized=False)
    with pytest.raises(UsageError, match="but the base is quantized; only 16-bit bases are spread over devices"):
        check_placement(config(device_map="auto"), "cuda", quantized=True)
    with pytest.raises(UsageError, match="but the run has 1 processes and sharding fsdp2; start one process"):
        check_placement(config(device_map="auto", sharding="fsdp2"), "cuda", quantized=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="but the run has 2 processes and sharding none; start one process"):
        check_placement(config(device_map="auto"), "cuda", quantized=False)


def test_layers_away_from_the_gpus_are_refused() -> None:
    mixed = {"model.embed_tokens": 0, "model.layers": "cpu", "lm_head": "disk"}
    with pytest.raises(
        UsageError, match=r"device_map is \{.*2 modules \(e.g. 'model.layers'\) would stand on cpu, where they get"
    ):
        check_placement(config(device_map=mixed), "cuda", quantized=False)
    model = torch.nn.Module()
    check_placed(model, "cuda")
    model.hf_device_map = mixed  # type: ignore[assignment]
    check_placed(model, "cpu")
    with pytest.raises(UsageError, match="the GPUs are too small: 2 modules"):
        check_placed(model, "cuda")


def test_settings_that_stand_against_splitting_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_splitting(config())
    with pytest.raises(UsageError, match="the run has one process; start several with torchrun or accelerate launch"):
        check_splitting(config(sharding="fsdp2"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_splitting(config(sharding="fsdp2"))
    check_splitting(config(sharding="fsdp2", peft_config="NoPeft"))
    with pytest.raises(UsageError, match=r"states are split as well, but optim is 'adamw_8bit'; use adamw_torch, .*, sgd, or"):
        check_splitting(config(sharding="fsdp2", peft_config="NoPeft", optim="adamw_8bit"))
    with pytest.raises(UsageError, match="activation_offloading is on, which would move the weights gathered"):
        check_splitting(config(sharding="fsdp2", activation_offloading=True))
