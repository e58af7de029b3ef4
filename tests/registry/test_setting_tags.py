"""Names carry a setting's value as it was, and a name that says another one is found."""

from dataclasses import replace
from typing import Any

import pytest

from quantkit.config import RunConfig
from quantkit.errors import UsageError
from quantkit.spec import NAME_TAG
from quantkit_registry.names import ArtifactName, format_name, parse_name
from quantkit_registry.setting_tags import setting_tag
from quantkit_registry.verify import name_contradictions
from tests.registry.records_of import LORA, QLORA, record

VALUES: list[tuple[str, Any]] = [
    ("seed", 0), ("seed", 4294967295), ("learning_rate", 2e-4), ("learning_rate", 1.25e-5), ("max_steps", -1),
    ("target_modules", ("all-linear",)), ("target_modules", ("attention",)), ("lora_alpha", None), ("use_rslora", True),
    ("damp_percent", 0.01), ("system_prompt", "Answer."), ("system_prompt", "An answer."), ("gradient_checkpointing", False),
    ("calib_rows", 128), ("head", 1), ("w", 4),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_every_setting_has_a_tag_that_names_can_carry_and_read_back(name: str, value: Any) -> None:
    assert NAME_TAG.fullmatch(setting_tag(name, value))
    named = ArtifactName.of(base="o/M", dataset="arc", adapter=LORA, recipe=QLORA, named={name: value})
    assert parse_name(format_name(named)) == named


def test_different_values_have_different_tags() -> None:
    assert len({setting_tag(name, value) for name, value in VALUES}) == len(VALUES)
    assert setting_tag("target_modules", ["q_proj", "v_proj"]) == setting_tag("target_modules", ("q_proj", "v_proj"))


def test_the_tags_stand_before_the_head_and_stay_through_merging_and_quantizing() -> None:
    name = ArtifactName.of(base="o/M", dataset="arc", adapter=LORA, recipe=QLORA, named={"seed": 1, "learning_rate": 1e-3})
    assert format_name(name) == "M-arc_SFT_LoRa8_QLORA_w4_seed1_lr1em3_headbf16"
    assert format_name(name.merged("bfloat16")) == "M-arc_SFT_LoRa8_QLORA_w4_seed1_lr1em3_headbf16_mergedbf16"
    gptq = replace(QLORA, method="GPTQ", weights_dtype="int4", group_size=64)
    assert format_name(name.quantized(gptq, {"seed": 1})) == "M-arc_SFT_LoRa8_GPTQ_w4_g64_seed1_headbf16"


def test_a_config_lists_what_its_name_carries() -> None:
    config = RunConfig(
        model_name_or_path="m", name_settings="seed, double_quant", method_options={"double_quant": True}, seed=7
    )  # type: ignore[arg-type]
    assert config.named == {"seed": 7, "double_quant": True}
    assert config.fingerprint == config.with_changes(name_settings=()).fingerprint


@pytest.mark.parametrize("name", ["sead", "output_dir", "method_options", "device"])
def test_what_has_no_effect_on_the_weights_is_not_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"name_settings has '{name}'; it must be a setting with an effect on the weights"):
        RunConfig(model_name_or_path="m", name_settings=(name,))


def test_a_name_that_says_another_setting_than_the_run_had_fails_verification() -> None:
    name = "Base-d_SFT_LoRa8_QLORA_w4_seed1_headbf16"
    named = {"name_settings": {"seed": 1}}
    assert name_contradictions(record(name=name, data=named, training={"settings": {"seed": 1}})) == []
    assert name_contradictions(record(name=name, data=named, training={"settings": {"seed": 2}})) == [
        "named by seed 1, trained with 2"
    ]
    assert "give the name" in name_contradictions(record(name=name))[0]
    assert "give the name" in name_contradictions(record(data=named))[0]
