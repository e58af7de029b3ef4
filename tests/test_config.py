"""Settings: what a run may be asked for, and under which names."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from quantkit.config import WITHOUT_EFFECT_ON_WEIGHTS, RunConfig
from quantkit.errors import UsageError
from quantkit.ranges import RANGES
from tests.settings_methods import settings_methods

METHODS = settings_methods()
M = {"model_name_or_path": "org/M"}


def config_of(**values: Any) -> RunConfig:
    return RunConfig.from_mapping(M | values, methods=METHODS)


def test_a_config_with_only_a_model_is_complete() -> None:
    config = RunConfig(model_name_or_path="org/M")
    assert (config.quant_method, config.peft_config, config.learning_rate, config.max_steps) == ("NoQuant", "LoRa", 2e-4, -1)


def test_plain_data_and_back_is_the_same_config() -> None:
    config = config_of(quant_method="BNB4BIT", quant_type="fp4", target_modules="q_proj, v_proj", lora_r=4)
    assert RunConfig.from_mapping(config.to_dict(), methods=METHODS) == config
    assert RunConfig(**config.to_dict()) == config


def test_every_field_has_a_docstring_for_the_help() -> None:
    source = Path(sys.modules["quantkit.config"].__file__ or "").read_text()
    for item in fields(RunConfig):
        line = next(number for number, text in enumerate(source.splitlines()) if text.startswith(f"    {item.name}: "))
        assert source.splitlines()[line + 1].strip().startswith('"""'), item.name


def test_text_becomes_the_annotated_type() -> None:
    config = config_of(lora_r="8", learning_rate="1e-3", gradient_checkpointing="true", report_to="wandb", output_dir=Path("a"))
    assert (config.lora_r, config.learning_rate, config.gradient_checkpointing) == (8, 1e-3, True)
    assert (config.report_to, config.output_dir) == (("wandb",), "a")


def test_spellings_with_one_meaning_are_brought_to_one_form() -> None:
    config = config_of(peft_config="dora", save_dtype="bf16", compute_dtype="torch.float32", report_to="none")
    assert (config.peft_config, config.save_dtype, config.compute_dtype, config.report_to) == (
        "DoRa",
        "bfloat16",
        "float32",
        (),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_name_or_path", ""),
        ("trunc_train", 0),
        ("max_length", 1),
        ("lora_r", 0),
        ("lora_r", 70000),
        ("lora_alpha", 0.0),
        ("calib_rows", 0),
        ("calib_length", 1),
        ("lora_dropout", 1.0),
        ("lora_dropout", float("nan")),
        ("target_modules", ()),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("num_train_epochs", -1),
        ("max_steps", 0),
        ("per_device_train_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("max_grad_norm", -1),
        ("seed", -1),
        ("logging_steps", 0),
        ("save_steps", -1),
        ("save_total_limit", 0),
        ("dataloader_num_workers", -1),
        ("output_dir", ""),
        ("device_map", "everywhere"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_wanted(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"settings: {name} is .*; it must be "):
        RunConfig(**(M | {name: value}))


def test_every_range_has_a_case_above() -> None:
    (mark,) = (
        item
        for item in test_a_value_out_of_range_is_refused_with_what_is_wanted.pytestmark  # type: ignore[attr-defined]
    )
    assert {name for name, _ in mark.args[1]} == set(RANGES)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("finetuning", "DPO", "settings: finetuning is 'DPO': Input should be 'SFT'"),
        ("lora_r", "many", "settings: lora_r is 'many': Input should be a valid integer"),
        ("lora_r", True, "settings: lora_r is True; it must be a number"),
        ("peft_config", "Lorra", "settings: peft_config is 'Lorra': Input should be 'NoPeft', 'LoRa'"),
        ("save_dtype", "int8", "settings: save_dtype is 'int8'"),
        ("merge_after_train", "perhaps", "settings: merge_after_train is 'perhaps'"),
        ("lr_scheduler_type", "greedy", "settings: lr_scheduler_type is 'greedy'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(name: str, value: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig(**(M | {name: value}))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_changes_are_accepted_by_resumed_runs_only() -> None:
    assert RunConfig(**(M | {"accept_changes": "seed,torch", "resume_from_checkpoint": True})).accept_changes == (
        "seed",
        "torch",
    )
    with pytest.raises(UsageError, match="accept_changes is set and resume_from_checkpoint is off"):
        RunConfig(**(M | {"accept_changes": "seed"}))


def test_the_fingerprint_is_that_of_the_weights() -> None:
    config = RunConfig(model_name_or_path="org/M")
    elsewhere = config.with_changes(output_dir="b", overwrite=True, logging_steps=1, save_steps=5, report_to=("wandb",))
    assert elsewhere.fingerprint == config.fingerprint
    assert config.with_changes(seed=1).fingerprint != config.fingerprint
    assert config.with_changes(method_options={"group_size": 64}).fingerprint != config.fingerprint
    assert {item.name for item in fields(RunConfig)} >= WITHOUT_EFFECT_ON_WEIGHTS


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = "from quantkit.config import RunConfig; print(RunConfig(model_name_or_path='org/M').fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == RunConfig(model_name_or_path="org/M").fingerprint


def test_the_adapter_plan_fills_rank_and_alpha() -> None:
    assert RunConfig(model_name_or_path="m").adapter_plan(recommended_r=64).lora_alpha == 128
    plan = config_of(lora_r=8, lora_alpha=4, use_rslora=True, target_modules=["attention"]).adapter_plan(64)
    assert (plan.r, plan.lora_alpha, plan.label, plan.target_modules) == (8, 4, "RsLoRa8", ("attention",))


def test_settings_are_read_without_importing_torch() -> None:
    code = (
        "import sys; from quantkit.config import RunConfig; RunConfig.from_mapping({'model': 'm', 'quant_bits': 4});"
        "print([name for name in ('torch', 'transformers', 'peft', 'rich', 'tyro') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
