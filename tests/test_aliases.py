"""The names under which people type a setting: constants of a script, keys of other tools."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from quantkit.aliases import RENAMED, TRANSLATED, canonical
from quantkit.choices import with_choices
from quantkit.config import SETTINGS, RunConfig
from quantkit.errors import PluginError, UnknownMethodError, UsageError
from quantkit.methods import installed_methods
from tests.settings_methods import settings_methods

METHODS = settings_methods()
M = {"model_name_or_path": "org/M"}


def config_of(**values: Any) -> RunConfig:
    return RunConfig.from_mapping(M | values, methods=METHODS)


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
        "run": config_of,
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
        optim: str = ""

    with pytest.raises(PluginError, match=r"plugin 'RTN' of tests 1\.0: the options optim have the names of run settings"):
        RunConfig.from_mapping(M | {"quant_method": "RTN"}, methods=settings_methods(RTN=Options))


def test_a_method_with_a_seed_gets_the_runs() -> None:
    @dataclass(frozen=True)
    class Options:
        seed: int = 0

    methods = settings_methods(RTN=Options)
    config = RunConfig.from_mapping(M | {"quant_method": "RTN", "seed": 7}, methods=methods)
    assert (config.seed, config.method_options) == (7, {"seed": 7})
    assert RunConfig.from_mapping(M | {"quant_method": "RTN"}, methods=methods).method_options == {}
    nested = M | {"quant_method": "RTN", "seed": 7, "method_options": {"seed": 3}}
    assert RunConfig.from_mapping(nested, methods=methods).method_options == {"seed": 3}


@pytest.mark.parametrize("method", installed_methods().names)
def test_a_run_can_name_every_method_that_ships(method: str) -> None:
    config = RunConfig.from_mapping(M | {"quant_method": method, "seed": 7})
    assert config.quant_method == method


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
