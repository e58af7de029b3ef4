"""Are settings, recipes and folders refused by which no merge could be right?"""

import pytest

from quantkit.errors import UsageError
from tests.bench import plan_for
from tests.merging.folders import edit_json, streamed
from tests.merging.spoilt import refused


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peft_type": "LOHA"}, "adapters of type LOHA cannot be folded in; LoRA, DoRA and VeRA can"),
        ({"lora_bias": True}, "lora_bias gives adapters a bias of their own; it cannot be folded in"),
        ({"bias": "all"}, "bias is 'all': trained biases cannot be folded in; 'none' can"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changed the base's weights when training began"),
        ({"use_something_new": True}, "use_something_new is a setting that is not known here; it cannot be folded in"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices trains single rows of the embeddings"),
        ({"r": 0}, "r is '0'; a whole number from 1 on is wanted"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; a number is wanted"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; true or false is wanted"),
        ({"rank_pattern": {"(": 2}}, r"rank_pattern has the pattern '\(', which is no regular expression"),
        ({"alpha_pattern": [1]}, r"alpha_pattern is '\[1\]'; an object of patterns is wanted"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'; a list of module names is wanted"),
        ({"target_modules": None}, "target_modules is 'None'; names, or a regular expression, are wanted"),
        ({"target_modules": "("}, r"target_modules '\(' is no regular expression"),
    ],
)
def test_settings_that_cannot_be_folded(case, change, text):
    edit_json(case[1] / "adapter_config.json", **change)
    refused(case, UsageError, text)


def test_a_recipe_that_nothing_records(case):
    base, adapter, _ = case
    with pytest.raises(UsageError, match="which quantization its base had in training is recorded nowhere; name its recipe"):
        streamed(base, adapter, base.parent / "out", None)


def test_a_recipe_whose_quantized_base_is_a_folder_of_its_own(case):
    refused(
        (*case[:2], plan_for("QLORA", calibrated=True)),
        UsageError,
        "QLORA made the training base a quantized folder of its own",
    )


def test_a_data_type_that_is_none(case):
    refused(
        case, UsageError, "dtype 'int8' with lm_head_dtype None: merged weights are bfloat16, float16, float32", dtype="int8"
    )


def test_folders_that_are_no_adapter_or_base(case):
    base, adapter, plan = case
    refused(
        (base, base, plan), UsageError, "not an adapter folder; adapter_config.json and adapter_model.safetensors are needed"
    )
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"")
    refused(case, UsageError, "the weights are pickled")


def test_an_output_folder_that_exists(case):
    (case[0].parent / "out").mkdir()
    with pytest.raises(UsageError, match="exists; choose another output folder"):
        streamed(case[0], case[1], case[0].parent / "out", case[2])
