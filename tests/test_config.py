"""Settings: what a run may be asked for, and under which names."""

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from quantkit.aliases import RENAMED, SETTINGS, TRANSLATED, canonical, with_choices
from quantkit.config import RANGES, WITHOUT_EFFECT_ON_WEIGHTS, RunConfig
from quantkit.errors import PluginError, UnknownMethodError, UsageError
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
        ("output_dir", ""),
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


# Names of other tools


@pytest.mark.parametrize("alias", sorted(RENAMED))
def test_every_alias_means_a_setting_an_option_or_a_translated_name(alias: str) -> None:
    target = RENAMED[alias]
    options = {item.name for name in METHODS.names for item in fields(METHODS.info(name).options)}
    assert target in SETTINGS | set(TRANSLATED) | options
    assert alias not in SETTINGS


def test_the_constants_of_the_script_are_settings() -> None:
    namespace = {
        "__name__": "__main__",
        "__file__": "01_Train.py",
        "Path": Path,
        "sys": sys,
        "run": test_a_config_with_only_a_model_is_complete,
        "_HERE": "somewhere",
        "MODEL": "org/M",
        "QUANT_METHOD": "QLORA",
        "PEFT_CONFIG": "LoRa",
        "FINETUNING": "SFT",
        "DATASET_CHOICE": None,
        "TRUNC_TRAIN": 400,
        "lora_r": 16,
        "merge_after_train": False,
        "keep_lm_head_fp16": True,
        "Threshold": object(),
        "i": 3,
    }
    config = RunConfig.from_constants(namespace, methods=METHODS)
    assert config == RunConfig(
        model_name_or_path="org/M",
        quant_method="QLORA",
        trunc_train=400,
        lora_r=16,
        merge_after_train=False,
        lm_head_dtype="float16",
    )


def test_an_option_of_the_method_is_a_constant_like_the_others() -> None:
    upper = RunConfig.from_constants({"MODEL": "m", "QUANT_METHOD": "BNB4BIT", "QUANT_TYPE": "fp4"}, methods=METHODS)
    lower = RunConfig.from_constants({"MODEL": "m", "QUANT_METHOD": "BNB4BIT", "quant_type": "fp4"}, methods=METHODS)
    assert upper.method_options == lower.method_options == {"quant_type": "fp4"}


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"LORA_RR": 8}, "train.py: 'LORA_RR' is no setting and no option of NoQuant. Did you mean 'lora_r'?"),
        ({"ZZZ": 8}, "train.py: 'ZZZ' is no setting and no option of NoQuant."),
        (
            {"lora_rr": 8},
            "train.py: 'lora_rr' is no setting. Did you mean 'lora_r'? A name of the script's own may start with _",
        ),
        ({"epochs": 3}, "train.py: 'epochs' is no setting. Did you mean 'num_epochs'?"),
        ({"LORA_R": 0}, "train.py: lora_r is 0; it must be between 1 and 65536, or None"),
        ({"LORA_R": 8, "lora_r": 16}, "train.py: LORA_R=8 and lora_r=16 both set lora_r; keep one"),
    ],
)
def test_a_constant_that_is_no_setting_is_an_error(constants: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig.from_constants({"__file__": "train.py", "MODEL": "m"} | constants, methods=METHODS)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("values", "method", "options", "kind"),
    [
        ({"quant_bits": 8}, "INT8", {}, "LoRa"),
        ({"quant_bits": 4}, "QLORA", {}, "LoRa"),
        ({"quant_bits": "4", "peft_use_dora": True}, "BNB4BIT", {"quant_type": "nf4", "double_quant": True}, "DoRa"),
        ({"quant_bits": 4, "peft_config": "VeRa"}, "BNB4BIT", {"quant_type": "nf4", "double_quant": True}, "VeRa"),
        ({"quant_bits": 16}, "NoQuant", {}, "LoRa"),
        ({"quant_bits": None}, "NoQuant", {}, "LoRa"),
        ({"load_in_4bit": True}, "QLORA", {}, "LoRa"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "QLORA", {}, "LoRa"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "BNB4BIT", {"quant_type": "fp4", "double_quant": True}, "LoRa"),
        ({"load_in_4bit": False, "load_in_8bit": "true", "llm_int8_threshold": 5}, "INT8", {"llm_int8_threshold": 5.0}, "LoRa"),
        ({"quant_method": "bnb4bit", "quant_bits": 4, "double_quant": True}, "BNB4BIT", {"double_quant": True}, "LoRa"),
        ({"quant_method": "QLORA", "bnb_4bit_quant_type": "nf4"}, "QLORA", {}, "LoRa"),
        ({"use_dora": True, "peft_config": "LoRa"}, "NoQuant", {}, "DoRa"),
        ({"use_dora": False, "peft_config": "VeRa"}, "NoQuant", {}, "VeRa"),
    ],
)
def test_other_tools_words_for_quantization_and_adapter(
    values: dict[str, Any], method: str, options: dict[str, Any], kind: str
) -> None:
    config = config_of(**values)
    assert (config.quant_method, config.method_options, config.peft_config) == (method, options, kind)


def test_the_compute_dtype_of_bitsandbytes_and_the_fp16_head_are_settings() -> None:
    config = config_of(load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16", keep_lm_head_fp16=True)
    assert (config.compute_dtype, config.lm_head_dtype) == ("bfloat16", "float16")
    assert config_of(keep_lm_head_fp16=False).lm_head_dtype is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lora_rr": 8}, "'lora_rr' is no setting and no option of NoQuant. Did you mean 'lora_r'?"),
        ({"base_model": "other"}, "model_name_or_path='org/M' and base_model='other' both set model_name_or_path; keep one"),
        ({"use_dora": True, "peft_config": "VeRa"}, "use_dora=True contradicts peft_config='VeRa'; keep one"),
        ({"peft_use_dora": False, "PEFT_CONFIG": "DoRa"}, "peft_use_dora=False contradicts PEFT_CONFIG='DoRa'; keep one"),
        ({"use_dora": "maybe"}, "use_dora is 'maybe'; it must be true or false"),
        ({"quant_bits": 3}, "quant_bits is 3; it must be 4, 8 or 16"),
        ({"quant_bits": 8, "load_in_4bit": True}, "quant_bits=8 and load_in_4bit=True contradict each other; keep one"),
        (
            {"quant_bits": 4, "QUANT_METHOD": "INT8"},
            "quant_bits=4 contradicts QUANT_METHOD='INT8'; it asks for QLORA or BNB4BIT",
        ),
        (
            {"keep_lm_head_fp16": True, "lm_head_dtype": "float32"},
            "keep_lm_head_fp16=True contradicts lm_head_dtype='float32'; keep one",
        ),
        (
            {"quant_method": "QLORA", "bnb_4bit_quant_type": "fp4"},
            "bnb_4bit_quant_type='fp4' is no option of QLORA but of BNB4BIT",
        ),
        ({"quant_method": "BNB4BIT", "quant_type": "int4"}, "options of BNB4BIT: quant_type is 'int4'"),
        (
            {"quant_method": "BNB4BIT", "quant_type": "fp4", "method_options": {"quant_type": "nf4"}},
            "quant_type='fp4' and method_options.quant_type='nf4' contradict each other; keep one",
        ),
        ({"method_options": 3}, "method_options is 3; it must map option names to values"),
        ({"method_options": {"grup": 3}}, "'method_options.grup' is no setting and no option of NoQuant."),
    ],
)
def test_what_contradicts_itself_or_is_unknown_is_refused_naming_both(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(**values)
    assert str(caught.value).startswith(f"settings: {said}")


def test_an_unknown_method_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UnknownMethodError, match=r"no method is called 'QLoR'\. Did you mean 'QLORA'"):
        config_of(quant_method="QLoR")


def test_a_run_without_a_model_says_so() -> None:
    with pytest.raises(UsageError, match=r"settings: no model is named; set model_name_or_path \(MODEL, base_model\)"):
        RunConfig.from_mapping({"lora_r": 8}, methods=METHODS)


def test_a_plugin_whose_option_has_the_name_of_a_setting_is_told() -> None:
    @dataclass(frozen=True)
    class Options:
        seed: int = 0

    with pytest.raises(PluginError, match=r"plugin 'RTN' of tests 1\.0: the options seed have the names of run settings"):
        RunConfig.from_mapping(M | {"quant_method": "RTN"}, methods=settings_methods(RTN=Options))


def test_a_choice_replaces_what_decided_it_under_any_name() -> None:
    file = {"base_model": "m", "quant_bits": 4, "bnb_4bit_quant_type": "fp4", "peft_use_dora": True, "lora_r": 8}
    assert with_choices(file, {"quant_method": "INT8"}) == {
        "base_model": "m",
        "peft_use_dora": True,
        "lora_r": 8,
        "quant_method": "INT8",
    }
    assert with_choices(file, {"peft_config": "LoRa", "lora_rank": 4}) == {
        "base_model": "m",
        "quant_bits": 4,
        "bnb_4bit_quant_type": "fp4",
        "peft_config": "LoRa",
        "lora_rank": 4,
    }
    assert with_choices({"quant_method": "QLORA", "method_options": {"a": 1}}, {"quant-method": "qlora"}) == {
        "a": 1,
        "quant-method": "qlora",
    }
    assert canonical("Bnb-4bit-Quant-Type") == "quant_type"


def test_settings_are_read_without_importing_torch() -> None:
    code = (
        "import sys; from quantkit.config import RunConfig; RunConfig.from_mapping({'model': 'm', 'quant_bits': 4});"
        "print([name for name in ('torch', 'transformers', 'peft', 'rich', 'tyro') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
